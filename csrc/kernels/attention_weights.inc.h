/* attention_weights.inc.h: the weights themselves, for all or chosen query rows, and their column sums.
 *
 * A row block first learns its maxima and sums. Where all its scores fit in scratch they are kept and become weights there; else they are computed
 * twice. Which of the two depends on S alone. */
#ifndef ATTN_WEIGHTS_NAMES
#define ATTN_WEIGHTS_NAMES
#define weights_place SUFFIX(weights_place)
#define weights_open SUFFIX(weights_open)
#define weights_load SUFFIX(weights_load)
#define score_tile SUFFIX(score_tile)
#define tile_weights SUFFIX(tile_weights)
#define decay_sums SUFFIX(decay_sums)
#define scale_tile SUFFIX(scale_tile)
#define store_tile SUFFIX(store_tile)
#define sums_kept SUFFIX(sums_kept)
#define sums_online SUFFIX(sums_online)
#define weights_plan SUFFIX(weights_plan)
#define weights_run SUFFIX(weights_run)
#define weights_bytes SUFFIX(weights_bytes)
#define weights_kept SUFFIX(weights_kept)
#define weights_again SUFFIX(weights_again)
#define attn_weights_kernel SUFFIX(attn_attention_weights)

enum {
    ATTN_KEPT_BYTES = 1 << 20, /* scores of a row block that are kept: half of a 2 MB second-level cache */
    ATTN_KEPT_BLOCKS = ATTN_KEPT_BYTES / (ATTN_BLOCK * (int)sizeof(float)) / 4 /* key blocks of kept scores, were they the shortest, of 4 keys */
};

static inline int64_t
attn_key_blocks(const struct attn_attention *a)
{
    return (a->key_length + attn_block_keys(a) - 1) / attn_block_keys(a);
}
#endif

struct weights_place {
    struct workplace *w;
    struct row_block *rows;
    REAL *tile;                  /* [group][64 keys][width]; one, or one for each key block */
    bool keeps;                  /* one for each key block */
};

ATTN_INLINE size_t
weights_bytes(const struct attn_attention *a, bool keeps)
{
    size_t tiles = keeps ? (size_t)attn_key_blocks(a) : 1;
    return workplace_bytes(a->head_dim, 0) + rows_bytes(a->head_dim, 0) + tiles * ATTN_BLOCK * ATTN_BLOCK * sizeof(REAL);
}

ATTN_INLINE bool
weights_kept(const struct attn_attention *a)
{
    return a->key_length <= ATTN_KEPT_BYTES / (ATTN_BLOCK * (int64_t)sizeof(REAL));
}

ATTN_INLINE struct weights_place
weights_open(const struct attn_attention *a, char *memory, bool keeps)
{
    struct weights_place p = {.w = workplace_open(memory, a->head_dim, 0), .keeps = keeps};
    memory += workplace_bytes(a->head_dim, 0);
    p.w->first_use = false;
    p.rows = rows_place(memory, a->head_dim);
    p.tile = (REAL *)(memory + rows_bytes(a->head_dim, 0));
    return p;
}

/* Key block number `n`; false: the row block sees nothing of it. */
static bool
weights_load(const struct attn_attention *a, int64_t batch, int64_t kv_head, int64_t n, const struct weights_place *p, struct key_block *block)
{
    int64_t first = n * attn_block_keys(a), keys = attn_min(attn_block_keys(a), a->key_length - first);
    if (first >= p->rows->any_end || first + keys <= p->rows->any_first)
        return false;
    if (a->block_mask.indptr && tiles_sight(p->rows, first, first + keys) == ATTN_HIDDEN)
        return false;
    key_block_load(a, batch, kv_head, first, (int)keys, false, p->w->block, block);
    return tile_sight(a, batch, p->rows, block, true, p->w) != ATTN_HIDDEN;
}

/* The scores of a row block and a key block that sees something, -inf where hidden; the running maxima follow. */
static void
score_tile(const struct attn_attention *a, int64_t batch, const struct weights_place *p, const struct key_block *block, REAL *tile)
{
    if (p->w->sight == ATTN_PARTIAL || p->w->keys < ATTN_BLOCK)
        for (int i = 0; i < ATTN_BLOCK * ATTN_BLOCK; i += LANES)
            v_store(tile + i, v_splat(-REAL_INFINITY));
    for (struct segment s = {0}; next_segment(p->rows, p->w, a->head_dim, &s);) {
        vreal top[GROUP_VECTORS];
        for (int i = 0; i < s.nv; i++)
            top[i] = v_load(p->rows->top + s.lane + i * LANES);
        s.scores = tile + (s.scores - p->w->scores) + p->w->from * s.width;
        segment_scores(a, batch, p->rows, block, p->w, &s, top);
        for (int i = 0; i < s.nv; i++)
            v_store(p->rows->top + s.lane + i * LANES, top[i]);
    }
}

/* The rows' maxima have moved on from `old`, and the sums follow. */
static void
decay_sums(struct row_block *rows, const REAL *old)
{
    for (int lane = 0; lane < ATTN_BLOCK; lane += LANES) {
        vreal base, decay;
        softmax_step(v_load(old + lane), v_load(rows->top + lane), &base, &decay);
        v_store(rows->sum + lane, v_load(rows->sum + lane) * decay);
    }
}

/* A tile's scores become 2^(score - maximum); their sums are added to the rows'. */
static void
tile_weights(struct row_block *rows, REAL *tile, int keys)
{
    for (int lane = 0; lane < rows->count;) {
        int nv = group_vectors(rows->count, lane);
        vreal base[GROUP_VECTORS], decay, sum[GROUP_VECTORS], own[GROUP_VECTORS];
        for (int i = 0; i < nv; i++) {
            vreal top = v_load(rows->top + lane + i * LANES);
            softmax_step(top, top, &base[i], &decay);
            sum[i] = v_load(rows->sum + lane + i * LANES);
        }
        weights_of(nv, tile + lane * ATTN_BLOCK, nv * LANES, keys, base, sum, own);
        for (int i = 0; i < nv; i++)
            v_store(rows->sum + lane + i * LANES, sum[i]);
        lane += nv * LANES;
    }
}

/* Divides a tile's weights by the sums; what is hidden stays 0, also in a row that is NaN. */
static void
scale_tile(const struct row_block *rows, const struct workplace *w, const REAL *factor, REAL *tile, int keys)
{
    for (int t = 0; t < keys; t++) {
        bool within = t >= w->from && t < w->from + w->keys;
        uint64_t seen = !within ? 0 : w->sight == ATTN_PARTIAL ? w->seen[t - w->from] : ~(uint64_t)0;
        for (int lane = 0; lane < rows->count;) {
            int nv = group_vectors(rows->count, lane);
            for (int i = 0; i < nv; i++) {
                REAL *weight = tile + lane * ATTN_BLOCK + t * nv * LANES + i * LANES;
                vreal scaled = v_load(weight) * v_loadu(factor + lane + i * LANES);
                v_store(weight, v_select(v_lane_bits(seen >> (lane + i * LANES)), scaled, (vreal){0}));
            }
            lane += nv * LANES;
        }
    }
}

/* Weights of the row block for the keys of a block, times the rows' factors; tile NULL: all 0. staging: 64 x 64 REALs. */
static void
store_tile(const struct attn_attention *a, int64_t batch, const struct row_block *rows, const REAL *tile, const REAL *factor, int64_t first, int keys,
           REAL *staging)
{
    const struct attn_tensor *output = &a->output;
    char *data = output_batch(a, output, batch) + first * output->column;
    REAL *row[ATTN_BLOCK];
    bool direct = tile && is_direct(output);
    for (int lane = 0; lane < rows->count; lane++)
        row[lane] = direct ? (REAL *)output_row(output, data, rows->head[lane], rows->out_row[lane]) : staging + lane * ATTN_BLOCK;
    if (!tile)
        memset(staging, 0, ATTN_BLOCK * ATTN_BLOCK * sizeof(REAL));
    else
        rows_out(rows, row, tile, ATTN_BLOCK, keys, factor);
    for (int lane = 0; lane < rows->count && !direct; lane++)
        store_row(output_row(output, data, rows->head[lane], rows->out_row[lane]), output->column, row[lane], keys, output->type, output->swapped);
}

/* Sums of a row block whose scores are kept, tile after tile. False where a row is NaN: then the scores are wanted again. */
static bool
sums_kept(const struct attn_attention *a, int64_t batch, int64_t kv_head, const struct weights_place *p, uint64_t *seen)
{
    int64_t blocks = attn_key_blocks(a), tile = ATTN_BLOCK * ATTN_BLOCK;
    struct key_block block;
    REAL sink_top[ATTN_BLOCK] __attribute__((aligned(64)));
    memcpy(sink_top, p->rows->top, sizeof sink_top);
    for (int64_t n = 0; n < blocks; n++) {
        bool sees = weights_load(a, batch, kv_head, n, p, &block);
        seen[n / 64] = (n % 64 ? seen[n / 64] : 0) | (uint64_t)sees << n % 64;
        if (sees)
            score_tile(a, batch, p, &block, p->tile + n * tile);
    }
    decay_sums(p->rows, sink_top);
    for (int64_t n = 0; n < blocks; n++)
        if (seen[n / 64] >> n % 64 & 1)
            tile_weights(p->rows, p->tile + n * tile, (int)attn_min(attn_block_keys(a), a->key_length - n * attn_block_keys(a)));
    uint64_t live = attn_bit_range(0, p->rows->count);
    vint bad = {0};
    for (int lane = 0; lane < p->rows->count; lane += LANES) {
        vreal sum = v_load(p->rows->sum + lane);
        bad |= (sum != sum) & v_lane_bits(live >> lane);
    }
    return !v_any(bad);
}

/* Running maxima and sums, as in the forward pass. */
static void
sums_online(const struct attn_attention *a, int64_t batch, int64_t kv_head, const struct weights_place *p)
{
    struct key_block block;
    for (int64_t n = 0; n < attn_key_blocks(a) && !attn_stopped(a->call.stop); n++) {
        REAL old[ATTN_BLOCK] __attribute__((aligned(64)));
        if (!weights_load(a, batch, kv_head, n, p, &block))
            continue;
        memcpy(old, p->rows->top, sizeof old);
        score_tile(a, batch, p, &block, p->tile);
        decay_sums(p->rows, old);
        tile_weights(p->rows, p->tile, block.keys);
    }
}

/* The weights of a key block from scores that are computed again; its rows' maxima and sums are final. sums of `rows` are left as they are. */
static void
weights_again(const struct attn_attention *a, int64_t batch, const struct weights_place *p, const struct key_block *block, const REAL *factor)
{
    REAL sum[ATTN_BLOCK];
    memcpy(sum, p->rows->sum, sizeof sum);
    score_tile(a, batch, p, block, p->tile);
    tile_weights(p->rows, p->tile, block->keys);
    memcpy(p->rows->sum, sum, sizeof sum);
    scale_tile(p->rows, p->w, factor, p->tile, block->keys);
}

static void
weights_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_attention *a = arguments;
    plan->phases = 1;
    plan->tasks[0] = a->batch * (a->heads / a->group) * attn_row_layout(a, a->row_count).blocks;
    plan->scratch = weights_bytes(a, weights_kept(a));
    plan->workspace = 0;
    plan->cost = 2.0 * (double)(a->batch * a->heads) * (double)a->row_count * (double)a->key_length * (double)(a->head_dim + 16);
}

/* A task is a row block. */
static void
weights_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_attention *a = arguments;
    struct attn_row_layout layout = attn_row_layout(a, a->row_count);
    int64_t kv = task / layout.blocks, kv_heads = a->heads / a->group, batch = kv / kv_heads, kv_head = kv % kv_heads;
    struct weights_place p = weights_open(a, scratch, weights_kept(a));
    uint64_t seen[ATTN_KEPT_BLOCKS / 64];
    (void)phase;
    rows_load(a, layout, batch, kv_head, task % layout.blocks, p.w->staging, p.rows);
    rows_start(a, batch, p.rows, true);
    bool kept = p.keeps && sums_kept(a, batch, kv_head, &p, seen);
    if (!p.keeps)
        sums_online(a, batch, kv_head, &p);
    REAL factor[ATTN_BLOCK], one[ATTN_BLOCK];
    row_factors(p.rows, 1, factor);
    for (int lane = 0; lane < ATTN_BLOCK; lane++)
        one[lane] = 1;
    for (int64_t n = 0; n < attn_key_blocks(a) && !attn_stopped(a->call.stop); n++) {
        int64_t first = n * attn_block_keys(a);
        int keys = (int)attn_min(attn_block_keys(a), a->key_length - first);
        REAL *tile = NULL;
        struct key_block block;
        if (kept)
            tile = seen[n / 64] >> n % 64 & 1 ? p.tile + n * ATTN_BLOCK * ATTN_BLOCK : NULL;
        else if (weights_load(a, batch, kv_head, n, &p, &block)) {
            weights_again(a, batch, &p, &block, factor);
            tile = p.tile;
        }
        store_tile(a, batch, p.rows, tile, kept ? factor : one, first, keys, p.w->scores);
    }
}

static const struct attn_kernel attn_weights_kernel = {weights_plan, weights_run};
