/* attention_forward.inc.h: scaled_dot_product_attention by row blocks and key blocks (FlashAttention-2, algorithm 1).
 *
 * A task is a few row blocks of one (batch element, key/value head), which share each pass over a key block; or, where a head has one row block and
 * many keys, that row block and 1024 keys: then the parts are merged in ascending order in a second phase. Row blocks and key blocks lie at absolute
 * multiples of 64 and lanes do not know of each other, so no result depends on how work was cut. */
#ifndef ATTN_FORWARD_NAMES
#define ATTN_FORWARD_NAMES
#define softmax_step SUFFIX(softmax_step)
#define segment_output SUFFIX(segment_output)
#define value_output SUFFIX(value_output)
#define attend_segment SUFFIX(attend_segment)
#define attend SUFFIX(attend)
#define rows_store SUFFIX(rows_store)
#define rows_finish SUFFIX(rows_finish)
#define store_lse SUFFIX(store_lse)
#define output_row SUFFIX(output_row)
#define output_batch SUFFIX(output_batch)
#define attend_range SUFFIX(attend_range)

enum { ATTN_SPLIT = 1024 }; /* keys in a part, where one row block has to occupy several threads */

/* Row blocks that share a pass over the keys: as many as six, fewer where threads would go without. It changes no result. */
static inline int64_t
attn_blocks_per_task(const struct attn_attention *a, int64_t blocks)
{
    int64_t heads = a->batch * (a->heads / a->group), shared = 6;
    while (shared > 1 && heads * ((blocks + shared - 1) / shared) < 4 * a->call.threads)
        shared--;
    return shared;
}

/* How the forward pass is cut: by shape and storage alone, but for `shared`, `shares_head` and so `tasks`, which change no result. */
struct attn_forward_cut {
    struct attn_row_layout layout;
    int64_t kv_heads;  /* batch times key/value heads */
    int64_t rows;      /* of a key/value head */
    int64_t shared;    /* row blocks a task */
    int64_t parts;     /* of the keys; 1: not split */
    int64_t tasks;     /* of a key/value head */
    bool decodes;      /* the decode kernel takes the rows */
    bool keeps_parts;  /* results go through attention_parts.inc.h */
    bool shares_head;  /* one task a part, merged in a second phase; else a task computes all parts of its head */
};

/* The decode kernel is bound by memory while its few rows share a read; keys that are stored in fewer bytes leave less time, unless they are turned:
 * those are float32 by then. */
static inline bool
attn_decodes(const struct attn_attention *a)
{
    bool narrow = !attn_turns(a) && (a->key.type == ATTN_FLOAT16 || a->key.type == ATTN_BFLOAT16 || a->key.type == ATTN_INT8);
    return a->query_length * a->group <= (narrow ? 8 : 4) && !a->relative.key.data;
}

static inline struct attn_forward_cut
attn_forward_cut(const struct attn_attention *a)
{
    struct attn_forward_cut cut = {.layout = attn_row_layout(a, a->query_length), .kv_heads = a->batch * (a->heads / a->group), .parts = 1};
    cut.rows = a->query_length * a->group;
    cut.decodes = attn_decodes(a);
    if (cut.layout.blocks == 1 && a->key_length > ATTN_SPLIT)
        cut.parts = (a->key_length + ATTN_SPLIT - 1) / ATTN_SPLIT;
    cut.keeps_parts = cut.decodes || cut.parts > 1;
    cut.shares_head = cut.parts > 1 && cut.kv_heads < 4 * a->call.threads;
    cut.shared = cut.keeps_parts ? 1 : attn_blocks_per_task(a, cut.layout.blocks);
    cut.tasks = cut.shares_head ? cut.parts : cut.keeps_parts ? 1 : (cut.layout.blocks + cut.shared - 1) / cut.shared;
    return cut;
}
#endif

/* The maximum moves to `top`: base is what is subtracted from scores, decay what older sums are multiplied by. -inf - -inf would be NaN. */
ATTN_INLINE void
softmax_step(vreal old, vreal top, vreal *base, vreal *decay)
{
    *base = v_select(top == v_splat(-REAL_INFINITY), (vreal){0}, top);
    *decay = v_exp2_weight(old - *base);
}

/* The lanes of a segment decay and take up the sum over its keys of weights times values, rows of n; to: [group][n][width] of the row block. */
ATTN_INLINE void
segment_output(const struct workplace *w, const struct segment *s, const REAL *weights, const REAL *value, int64_t value_row, int keys, int64_t n,
               enum attn_finite *state, const vreal *decay, REAL *to)
{
    int base_lane = s->lane / (GROUP_VECTORS * LANES) * (GROUP_VECTORS * LANES);
    REAL *output = to + base_lane * n + (s->lane - base_lane);
    const REAL *first = value + (w->from + s->from) * value_row;
    if (w->sight == ATTN_PARTIAL && !block_is_finite(value, value_row, keys, n, state))
        output_selected(s->nv, weights, s->width, w->seen + s->from, s->lane, first, value_row, s->keys, decay, n, output);
    else
        group_output(s->nv, weights, s->width, first, value_row, s->keys, decay, n, output);
}

/* The same for values, whose weights are those of the segment; own: the sums of these. */
static void
value_output(const struct workplace *w, const struct segment *s, const vreal *own, const REAL *value, int64_t value_row, int keys, int64_t n,
             enum attn_finite *state, const vreal *decay, REAL *to)
{
    struct faint_tile tile;
    bool faint = is_faint(s->nv, own);
    if (faint)
        faint_open(s, own, n, w->staging, &tile);
    segment_output(w, s, s->scores, value, value_row, keys, n, state, faint ? tile.none : decay, faint ? w->staging : to);
    if (faint)
        faint_close(s, &tile, n, w->staging, decay, to);
}

static void
attend_segment(const struct attn_attention *a, int64_t batch, struct row_block *rows, struct key_block *block, const struct workplace *w,
               const struct segment *s)
{
    vreal top[GROUP_VECTORS], base[GROUP_VECTORS], decay[GROUP_VECTORS], sum[GROUP_VECTORS], own[GROUP_VECTORS];
    REAL *tops = rows->top + s->lane, *sums = rows->sum + s->lane;
    for (int i = 0; i < s->nv; i++)
        top[i] = v_load(tops + i * LANES);
    segment_scores(a, batch, rows, block, w, s, top);
    for (int i = 0; i < s->nv; i++) {
        softmax_step(v_load(tops + i * LANES), top[i], &base[i], &decay[i]);
        sum[i] = v_load(sums + i * LANES) * decay[i];
        v_store(tops + i * LANES, top[i]);
    }
    weights_of(s->nv, s->scores, s->width, s->keys, base, sum, own);
    for (int i = 0; i < s->nv; i++)
        v_store(sums + i * LANES, sum[i]);
    if (a->dropout_p > 0)
        drop_weights(a, batch, rows, s->lane, s->nv, s->width, s->scores, block->first + w->from + s->from, s->keys);
    struct vector_band band = {0};
    if (a->relative.value.data) /* before faint weights are lifted */
        band = band_make(&rows->vectors->key, rows, s, block->first + w->from + s->from, s->scores, s->width, rows->vectors->band);
    value_output(w, s, own, block->value, block->value_row, block->keys, a->value_dim, &block->value_state, decay, rows->output);
    if (a->relative.value.data)
        band_output(a, batch, rows, &rows->vectors->key, &a->relative.value, s, w->sight == ATTN_PARTIAL ? w->seen : NULL, &band, a->value_dim,
                    w->staging, rows->output);
}

/* One row block attends to one key block. */
static void
attend(const struct attn_attention *a, int64_t batch, struct row_block *rows, struct key_block *block, struct workplace *w)
{
    if (tile_sight(a, batch, rows, block, true, w) == ATTN_HIDDEN)
        return;
    if (a->relative.key.data)
        ring_prepare(a, batch, rows, &rows->vectors->key, block->first + w->from, w->keys, w->staging);
    for (struct segment s = {0}; next_segment(rows, w, a->head_dim, &s);)
        attend_segment(a, batch, rows, block, w, &s);
}

/* n row blocks, laid out `bytes` apart, attend to keys first ... end - 1. False: told to stop. */
static bool
attend_range(const struct attn_attention *a, int64_t batch, int64_t kv_head, char *blocks, size_t bytes, int64_t n, int64_t first, int64_t end,
             struct workplace *w)
{
    int64_t step = attn_block_keys(a), lowest = end, highest = first;
    for (int64_t i = 0; i < n; i++) {
        const struct row_block *rows = (struct row_block *)(blocks + (size_t)i * bytes);
        lowest = attn_min(lowest, rows->any_first);
        highest = attn_max(highest, rows->any_end);
    }
    first = attn_max(first, lowest / step * step);
    end = attn_min(end, highest);
    for (int64_t key = first; key < end; key += step) {
        struct key_block block;
        if (attn_stopped(a->call.stop))
            return false;
        key = next_visible(a, blocks, bytes, n, key, end) / step * step;
        if (key >= end)
            break;
        key_block_load(a, batch, kv_head, key, (int)attn_min(step, end - key), n > 1, w->block, &block);
        for (int64_t i = 0; i < n; i++) {
            w->first_use = i == 0;
            attend(a, batch, (struct row_block *)(blocks + (size_t)i * bytes), &block, w);
        }
    }
    return true;
}

/* The log-sum-exp of a row, from its maximum in log2 units and its sum. */
static void
store_lse(const struct attn_attention *a, char *batch_data, int64_t head, int64_t i, double top, double sum)
{
    double value = sum == 0 ? -__builtin_inf() : top * LN2 + log(sum);
    from_real(batch_data + head * a->lse.head + i * a->lse.row, narrowed(value), a->lse.type, a->lse.swapped);
}

/* Where row i of a head of `t` lies, in a batch element whose data is given. */
ATTN_INLINE char *
output_row(const struct attn_tensor *t, char *batch_data, int64_t head, int64_t i)
{
    return batch_data + head * t->head + i * t->row;
}

ATTN_INLINE char *
output_batch(const struct attn_attention *a, const struct attn_tensor *t, int64_t batch)
{
    return t->data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, t->batch);
}

/* Transposes [group][n][width] back and stores it, times factor[lane], as the row block's rows of an output (B.., H, L, n). */
static void
rows_store(const struct attn_attention *a, const struct attn_tensor *output, int64_t batch, const struct row_block *rows, const REAL *from, int64_t n,
           const REAL *factor, REAL *staging)
{
    int64_t pitch = (n + LANES - 1) / LANES * LANES;
    char *data = output_batch(a, output, batch);
    REAL *row[ATTN_BLOCK] = {NULL};
    bool direct = is_direct(output);
    for (int lane = 0; lane < rows->count; lane++)
        row[lane] = direct ? (REAL *)output_row(output, data, rows->head[lane], rows->out_row[lane]) : staging + lane * pitch;
    rows_out(rows, row, from, n, n, factor);
    if (!direct)
        for (int lane = 0; lane < rows->count; lane++)
            store_row(output_row(output, data, rows->head[lane], rows->out_row[lane]), output->column, row[lane], n, output->type, output->swapped);
}

/* Divides by the sums and stores a row block. */
static void
rows_finish(const struct attn_attention *a, int64_t batch, const struct row_block *rows, struct workplace *w)
{
    REAL factor[ATTN_BLOCK];
    row_factors(rows, (REAL)(1 / (1 - a->dropout_p)), factor);
    rows_store(a, &a->output, batch, rows, rows->output, a->value_dim, factor, w->staging);
    if (a->lse.data) {
        char *lse = output_batch(a, &a->lse, batch);
        for (int lane = 0; lane < rows->count; lane++)
            store_lse(a, lse, rows->head[lane], rows->out_row[lane], (double)rows->top[lane], (double)rows->sum[lane]);
    }
}
