/* attention_jvp.inc.h: attention and its derivative along a direction, in one pass over the keys.
 *
 * Beside the output O = sum e v of attention_forward.inc.h run T = sum e (dv + ds v) and the sum of e ds; all decay alike as the maximum moves. At the end
 * dO = (T - mu O) / sum e. Tasks are row blocks that share each pass over a key block, as there; no result depends on how work was cut. */
#ifndef ATTN_JVP_NAMES
#define ATTN_JVP_NAMES
#define tangent_rows SUFFIX(tangent_rows)
#define tangent_rows_bytes SUFFIX(tangent_rows_bytes)
#define tangent_rows_load SUFFIX(tangent_rows_load)
#define tangent_block SUFFIX(tangent_block)
#define tangent_block_load SUFFIX(tangent_block_load)
#define tangent_place SUFFIX(tangent_place)
#define tangent_place_bytes SUFFIX(tangent_place_bytes)
#define tangent_place_open SUFFIX(tangent_place_open)
#define tangent_product SUFFIX(tangent_product)
#define tangent_products SUFFIX(tangent_products)
#define join_products SUFFIX(join_products)
#define weigh_tangents SUFFIX(weigh_tangents)
#define drop_tangents SUFFIX(drop_tangents)
#define tangent_step SUFFIX(tangent_step)
#define tangent_segment SUFFIX(tangent_segment)
#define tangent_attend SUFFIX(tangent_attend)
#define tangent_range SUFFIX(tangent_range)
#define tangent_finish SUFFIX(tangent_finish)
#define attention_jvp_plan SUFFIX(attention_jvp_plan)
#define attention_jvp_run SUFFIX(attention_jvp_run)
#define attn_attention_jvp_kernel SUFFIX(attn_attention_jvp)

/* Whether the scores move at all; if not, only values and sinks do. */
static inline bool
attn_scores_move(const struct attn_attention_jvp *j)
{
    return j->query_tangent.data || j->key_tangent.data || j->bias_tangent.data;
}

static inline struct attn_forward_cut
attn_jvp_cut(const struct attn_attention *a)
{
    struct attn_forward_cut cut = {.layout = attn_row_layout(a, a->query_length), .kv_heads = a->batch * (a->heads / a->group), .parts = 1};
    cut.rows = a->query_length * a->group;
    cut.shared = attn_blocks_per_task(a, cut.layout.blocks);
    cut.tasks = (cut.layout.blocks + cut.shared - 1) / cut.shared;
    return cut;
}
#endif

/* A row block with what is summed for it. */
struct tangent_rows {
    struct row_block rows;
    REAL mean[ATTN_BLOCK] __attribute__((aligned(64))); /* running sum of 2^(score - top) ds, the sink's included */
    REAL query_abs;                                     /* sum of |query|, as that of row_block */
    REAL *query, *output;                               /* query_tangent and T, as query and output of row_block */
};

/* A key block with its tangents, in place or loaded; NULL: absent. */
struct tangent_block {
    struct key_block block;
    const REAL *key, *value;
    int64_t key_row, value_row;
    const char *key_data;
    REAL key_abs;
    enum attn_finite value_state;
};

/* What a thread needs beside its row blocks. */
struct tangent_place {
    struct workplace *w;
    REAL *block;    /* of tangent_block_load */
    REAL *first;    /* [64 keys][64 lanes]: dq . k, then ds, then e ds */
    REAL *second;   /* q . dk */
    REAL *additive; /* bias_tangent, [64 lanes][64 keys] */
};

ATTN_INLINE size_t
tangent_rows_bytes(int64_t head_dim, int64_t value_dim)
{
    return attn_round_up(sizeof(struct tangent_rows)) + 2 * ((size_t)head_dim + (size_t)value_dim) * ATTN_BLOCK * sizeof(REAL);
}

ATTN_INLINE size_t
tangent_place_bytes(int64_t head_dim, int64_t value_dim)
{
    return attn_round_up(sizeof(struct tangent_place)) + workplace_bytes(head_dim, value_dim) + key_block_bytes(head_dim, value_dim) +
           3 * ATTN_BLOCK * ATTN_BLOCK * sizeof(REAL);
}

ATTN_INLINE struct tangent_place *
tangent_place_open(char *memory, int64_t head_dim, int64_t value_dim)
{
    struct tangent_place *p = (struct tangent_place *)memory;
    memory += attn_round_up(sizeof *p);
    p->w = workplace_open(memory, head_dim, value_dim);
    memory += workplace_bytes(head_dim, value_dim);
    p->block = (REAL *)memory;
    p->first = (REAL *)(memory + key_block_bytes(head_dim, value_dim));
    p->second = p->first + ATTN_BLOCK * ATTN_BLOCK;
    p->additive = p->second + ATTN_BLOCK * ATTN_BLOCK;
    return p;
}

/* A row block at `memory`, loaded, before any key. A sink that counts is in the sum as 1. */
static void
tangent_rows_load(const struct attn_attention_jvp *j, struct attn_row_layout layout, int64_t batch, int64_t kv_head, int64_t block, REAL *staging,
                  char *memory)
{
    const struct attn_attention *a = &j->forward;
    struct tangent_rows *r = (struct tangent_rows *)memory;
    r->rows.query = (REAL *)(memory + attn_round_up(sizeof *r));
    r->rows.output = r->rows.query + a->head_dim * ATTN_BLOCK;
    r->query = r->rows.output + a->value_dim * ATTN_BLOCK;
    r->output = r->query + a->head_dim * ATTN_BLOCK;
    rows_load(a, layout, batch, kv_head, block, staging, &r->rows);
    rows_start(a, batch, &r->rows, true);
    if (j->query_tangent.data)
        r->query_abs = rows_transposed(a, &j->query_tangent, batch, &r->rows, a->head_dim, query_factor_of(a), staging, r->query);
    for (int lane = 0; lane < ATTN_BLOCK; lane++) {
        bool counts = j->sinks_tangent.data && lane < r->rows.count && r->rows.sum[lane] != 0;
        r->mean[lane] = counts ? *(const REAL *)scalar_at(a, &j->sinks_tangent, batch, r->rows.head[lane]) : 0;
    }
    memset(r->output, 0, (size_t)(a->value_dim * ATTN_BLOCK) * sizeof(REAL));
}

static void
tangent_block_load(const struct attn_attention_jvp *j, int64_t batch, int64_t kv_head, int64_t first, int keys, bool shared,
                   const struct tangent_place *p, struct tangent_block *b)
{
    const struct attn_attention *a = &j->forward;
    const struct attn_tensor *key = &j->key_tangent, *value = &j->value_tangent;
    key_block_load(a, batch, kv_head, first, keys, shared, p->w->block, &b->block);
    b->key = b->value = NULL;
    b->value_state = ATTN_UNKNOWN;
    if (key->data) {
        b->key_data = scalar_at(a, key, batch, kv_head) + first * key->row;
        b->key = block_rows(key, b->key_data, keys, a->head_dim, shared, p->block, &b->key_row);
        b->key_abs = sum_of_abs(b->key, b->key_row, keys, a->head_dim);
    }
    if (value->data) {
        REAL *memory = p->block + ATTN_BLOCK * ((a->head_dim + LANES - 1) / LANES * LANES);
        b->value = block_rows(value, scalar_at(a, value, batch, kv_head) + first * value->row, keys, a->value_dim, shared, memory, &b->value_row);
    }
}

/* One product of queries and keys of a segment, in log2 units; `most` bounds every partial sum of it. What of finite rows overflows saturates. */
static void
tangent_product(const struct attn_attention *a, int64_t batch, const struct row_block *rows, const struct segment *s,
                const struct attn_tensor *queries, const struct attn_tensor *keys, const REAL *key, int64_t key_row, const char *key_data, REAL most)
{
    vreal ignored[GROUP_VECTORS];
    for (int i = 0; i < s->nv; i++)
        ignored[i] = (vreal){0};
    group_scores(s->nv, s->query, s->width, key, key_row, a->head_dim, s->keys, NULL, 0, s->scores, ignored);
    if (scales_scores(a))
        scale_scores(score_factor(a), s);
    if (!(most < REAL_MAX))
        repair_scores(a, batch, rows, s, queries, keys, key_data);
}

/* first = (first + second) ln 2, times the slope of the softcap at the capped `scores`, where a tanh within rounding of 1 has none. second: NULL where
 * there is one product. */
static void
join_products(double softcap, const struct segment *s, REAL *first, const REAL *second)
{
    const vreal one = v_splat(1), unit = v_splat((REAL)LN2), to_tanh = v_splat(softcap != 0 ? (REAL)(LN2 / softcap) : 0);
    const vreal flat = v_splat(8 * (REAL_BITS == 32 ? (REAL)0x1p-24 : (REAL)0x1p-53));
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv; i++) {
            int64_t at = t * s->width + i * LANES;
            vreal x = v_load(first + at);
            if (second)
                x = saturating_sum(x, v_load(second + at));
            if (softcap != 0) {
                vreal tanh = v_load(s->scores + at) * to_tanh, slope = one - tanh * tanh;
                x *= v_select(slope < flat, (vreal){0}, slope); /* NaN stays */
            }
            v_store(first + at, x * unit);
        }
}

/* ds of a segment whose softcapped products are there, into `first`; in natural units. */
static void
tangent_products(const struct attn_attention_jvp *j, int64_t batch, const struct tangent_rows *r, const struct tangent_block *b,
                 const struct tangent_place *p, const struct segment *s)
{
    const struct attn_attention *a = &j->forward;
    int64_t place = s->scores - p->w->scores, key = p->w->from + s->from;
    struct segment first = *s, second = *s;
    first.scores = p->first + place;
    second.scores = j->query_tangent.data ? p->second + place : first.scores;
    first.query = r->query + (s->query - r->rows.query);
    if (j->query_tangent.data)
        tangent_product(a, batch, &r->rows, &first, &j->query_tangent, &a->key, b->block.key + key * b->block.key_row, b->block.key_row,
                        b->block.key_data + key * a->key.row, r->query_abs * b->block.key_abs);
    if (b->key)
        tangent_product(a, batch, &r->rows, &second, &a->query, &j->key_tangent, b->key + key * b->key_row, b->key_row,
                        b->key_data + key * j->key_tangent.row, r->rows.query_abs * b->key_abs);
    if (j->query_tangent.data || b->key)
        join_products(a->softcap, s, first.scores, j->query_tangent.data && b->key ? second.scores : NULL);
    else
        for (int t = 0; t < s->keys; t++)
            for (int i = 0; i < s->nv; i++)
                v_store(first.scores + t * s->width + i * LANES, (vreal){0});
    if (j->bias_tangent.data)
        add_tile(&first, p->additive);
}

/* ds becomes e ds, 0 where hidden; each lane's sum of them is added to `mean`. seen: word = key, or NULL. */
static void
weigh_tangents(const struct segment *s, const uint64_t *seen, REAL *tangents, REAL *mean)
{
    for (int i = 0; i < s->nv; i++) {
        vreal sum[2] = {{0}, {0}}; /* over the even and the odd keys, as those of the weights */
        for (int t = 0; t < s->keys; t++) {
            int64_t at = t * s->width + i * LANES;
            vreal x = v_load(s->scores + at) * v_load(tangents + at);
            if (seen)
                x = v_select(v_lane_bits(seen[s->from + t] >> (s->lane + i * LANES)), x, (vreal){0});
            v_store(tangents + at, x);
            sum[t % 2] += x;
        }
        v_store(mean + i * LANES, v_load(mean + i * LANES) + (sum[0] + sum[1]));
    }
}

/* Dropped weights are 0 by now: e ds too. */
static void
drop_tangents(const struct segment *s, REAL *tangents)
{
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv; i++) {
            int64_t at = t * s->width + i * LANES;
            v_store(tangents + at, v_select(v_load(s->scores + at) == (vreal){0}, (vreal){0}, v_load(tangents + at)));
        }
}

/* The maximum of a segment's lanes moves to `top`: sums so far decay, scores become weights. */
static void
tangent_step(struct tangent_rows *r, const struct segment *s, const vreal *top, vreal *decay)
{
    vreal base[GROUP_VECTORS], sum[GROUP_VECTORS];
    for (int i = 0; i < s->nv; i++) {
        int lane = s->lane + i * LANES;
        softmax_step(v_load(r->rows.top + lane), top[i], &base[i], &decay[i]);
        sum[i] = v_load(r->rows.sum + lane) * decay[i];
        v_store(r->rows.top + lane, top[i]);
        v_store(r->mean + lane, v_load(r->mean + lane) * decay[i]);
    }
    weights_of(s->nv, s->scores, s->width, s->keys, base, sum);
    for (int i = 0; i < s->nv; i++)
        v_store(r->rows.sum + s->lane + i * LANES, sum[i]);
}

static void
tangent_segment(const struct attn_attention_jvp *j, int64_t batch, struct tangent_rows *r, struct tangent_block *b, const struct tangent_place *p,
                const struct segment *s)
{
    const struct attn_attention *a = &j->forward;
    const struct workplace *w = p->w;
    const bool move = attn_scores_move(j);
    vreal top[GROUP_VECTORS], decay[GROUP_VECTORS], one[GROUP_VECTORS];
    REAL *tangents = p->first + (s->scores - w->scores);
    for (int i = 0; i < s->nv; i++) {
        top[i] = v_load(r->rows.top + s->lane + i * LANES);
        one[i] = v_splat(1);
    }
    bool changed = segment_products(a, batch, &r->rows, &b->block, w, s, top);
    if (move)
        tangent_products(j, batch, r, b, p, s);
    if (changed)
        segment_terms(a, &r->rows, &b->block, w, s, top);
    tangent_step(r, s, top, decay);
    if (move)
        weigh_tangents(s, w->sight == ATTN_PARTIAL ? w->seen : NULL, tangents, r->mean + s->lane);
    if (a->dropout_p > 0) {
        drop_weights(a, batch, &r->rows, s->lane, s->nv, s->width, s->scores, b->block.first + w->from + s->from, s->keys);
        if (move)
            drop_tangents(s, tangents);
    }
    segment_output(a, w, s, s->scores, b->block.value, b->block.value_row, b->block.keys, &b->block.value_state, decay, r->rows.output);
    if (b->value)
        segment_output(a, w, s, s->scores, b->value, b->value_row, b->block.keys, &b->value_state, decay, r->output);
    if (move)
        segment_output(a, w, s, tangents, b->block.value, b->block.value_row, b->block.keys, &b->block.value_state, b->value ? one : decay,
                       r->output);
}

/* One row block attends to one key block. */
static void
tangent_attend(const struct attn_attention_jvp *j, int64_t batch, struct tangent_rows *r, struct tangent_block *b, struct tangent_place *p)
{
    const struct attn_attention *a = &j->forward;
    if (tile_sight(a, batch, &r->rows, &b->block, true, p->w) == ATTN_HIDDEN)
        return;
    for (int lane = 0; j->bias_tangent.data && lane < r->rows.count; lane++) {
        REAL *row = p->additive + lane * ATTN_BLOCK;
        const char *data = lane_operand(&j->bias_tangent, scalar_at(a, &j->bias_tangent, batch, 0), &r->rows, lane, b->block.first + p->w->from);
        const REAL *from = additive_row(&j->bias_tangent, data, p->w->keys, row);
        if (from != row)
            memcpy(row, from, ATTN_BLOCK * sizeof(REAL));
    }
    for (struct segment s = {0}; next_segment(&r->rows, p->w, a->head_dim, &s);)
        tangent_segment(j, batch, r, b, p, &s);
}

/* n row blocks, laid out `bytes` apart, attend to all keys. False: told to stop. */
static bool
tangent_range(const struct attn_attention_jvp *j, int64_t batch, int64_t kv_head, char *blocks, size_t bytes, int64_t n, struct tangent_place *p)
{
    const struct attn_attention *a = &j->forward;
    int64_t step = attn_block_keys(a), first = a->key_length, end = 0;
    for (int64_t i = 0; i < n; i++) {
        const struct tangent_rows *r = (struct tangent_rows *)(blocks + (size_t)i * bytes);
        first = attn_min(first, r->rows.any_first);
        end = attn_max(end, r->rows.any_end);
    }
    for (int64_t key = first / step * step; key < end; key += step) {
        struct tangent_block block;
        if (attn_stopped(a->call.stop))
            return false;
        key = next_visible(a, blocks, bytes, n, key, end) / step * step;
        if (key >= end)
            break;
        tangent_block_load(j, batch, kv_head, key, (int)attn_min(step, end - key), n > 1, p, &block);
        for (int64_t i = 0; i < n; i++) {
            p->w->first_use = i == 0;
            tangent_attend(j, batch, (struct tangent_rows *)(blocks + (size_t)i * bytes), &block, p);
        }
    }
    return true;
}

/* mu, T - mu O, and all results of a row block stored. */
static void
tangent_finish(const struct attn_attention_jvp *j, int64_t batch, struct tangent_rows *r, struct workplace *w)
{
    const struct attn_attention *a = &j->forward;
    REAL factor[ATTN_BLOCK];
    row_factors(&r->rows, 1, factor);
    for (int lane = 0; lane < ATTN_BLOCK; lane += LANES)
        v_store(r->mean + lane, v_load(r->mean + lane) * v_loadu(factor + lane));
    for (int lane = 0; lane < r->rows.count;) {
        int width = group_vectors(r->rows.count, lane) * LANES;
        for (int64_t c = 0; c < a->value_dim; c++)
            for (int i = 0; i < width; i += LANES) {
                int64_t at = lane * a->value_dim + c * width + i;
                v_store(r->output + at, v_load(r->output + at) - v_load(r->mean + lane + i) * v_load(r->rows.output + at));
            }
        lane += width;
    }
    rows_finish(a, batch, &r->rows, w);
    row_factors(&r->rows, (REAL)(1 / (1 - a->dropout_p)), factor);
    rows_store(a, &j->output_tangent, batch, &r->rows, r->output, a->value_dim, factor, w->staging);
    if (!j->lse_tangent.data)
        return;
    char *data = output_batch(a, &j->lse_tangent, batch);
    for (int lane = 0; lane < r->rows.count; lane++)
        from_real(output_row(&j->lse_tangent, data, r->rows.head[lane], r->rows.out_row[lane]), r->mean[lane], j->lse_tangent.type,
                  j->lse_tangent.swapped);
}

static void
attention_jvp_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_attention_jvp *j = arguments;
    const struct attn_attention *a = &j->forward;
    struct attn_forward_cut cut = attn_jvp_cut(a);
    plan->phases = 1;
    plan->tasks[0] = cut.kv_heads * cut.tasks;
    plan->workspace = 0;
    plan->scratch = tangent_place_bytes(a->head_dim, a->value_dim) + (size_t)cut.shared * tangent_rows_bytes(a->head_dim, a->value_dim);
    plan->cost = 6.0 * (double)(a->batch * a->heads) * (double)a->query_length * (double)a->key_length * (double)(a->head_dim + a->value_dim + 8);
}

static void
attention_jvp_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_attention_jvp *j = arguments;
    const struct attn_attention *a = &j->forward;
    struct attn_forward_cut cut = attn_jvp_cut(a);
    int64_t kv_heads = a->heads / a->group, kv, chunk;
    (void)phase;
    place_task(a, &cut, task, &kv, &chunk);
    int64_t batch = kv / kv_heads, kv_head = kv % kv_heads, from = chunk * cut.shared, n = attn_min(cut.shared, cut.layout.blocks - from);
    struct tangent_place *p = tangent_place_open(scratch, a->head_dim, a->value_dim);
    char *blocks = (char *)scratch + tangent_place_bytes(a->head_dim, a->value_dim);
    size_t bytes = tangent_rows_bytes(a->head_dim, a->value_dim);
    for (int64_t i = 0; i < n; i++)
        tangent_rows_load(j, cut.layout, batch, kv_head, from + i, p->w->staging, blocks + (size_t)i * bytes);
    if (!tangent_range(j, batch, kv_head, blocks, bytes, n, p))
        return;
    for (int64_t i = 0; i < n; i++)
        tangent_finish(j, batch, (struct tangent_rows *)(blocks + (size_t)i * bytes), p->w);
}

static const struct attn_kernel attn_attention_jvp_kernel = {attention_jvp_plan, attention_jvp_run};
