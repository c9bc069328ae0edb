/* attention_backward_sums.inc.h: what tasks of the backward pass leave for one another, and what is made of it: log-sum-exps and deltas of
 * attention_weights_backward, the sinks' shares, sums over rows. */
#ifndef ATTN_BACKWARD_SUMS_NAMES
#define ATTN_BACKWARD_SUMS_NAMES
#define backward_shared SUFFIX(backward_shared)
#define backward_shared_bytes SUFFIX(backward_shared_bytes)
#define backward_shared_open SUFFIX(backward_shared_open)
#define distances_of_all SUFFIX(distances_of_all)
#define kept_statistics SUFFIX(kept_statistics)
#define rows_are_visited SUFFIX(rows_are_visited)
#define add_given SUFFIX(add_given)
#define prepare_segment SUFFIX(prepare_segment)
#define prepare_weights SUFFIX(prepare_weights)
#define seeing_lanes SUFFIX(seeing_lanes)
#define given_statistics SUFFIX(given_statistics)
#define prepare_rows SUFFIX(prepare_rows)
#define sink_shares SUFFIX(sink_shares)
#define finish_rows SUFFIX(finish_rows)
#define add_row_values SUFFIX(add_row_values)
#define reduce_rows SUFFIX(reduce_rows)
#define reduce_query SUFFIX(reduce_query)
#define backward_reductions SUFFIX(backward_reductions)
#define backward_reduce SUFFIX(backward_reduce)
#endif

/* What all tasks share, by row block, counted (pair, row block). */
struct backward_shared {
    atomic_int *turn;      /* chunks that have added to the row block; [ATTN_TURN] apart */
    REAL *grad_query;      /* [group][E][width] */
    REAL *sums;            /* [ATTN_ROW_SUMS][64] over all keys */
    REAL *sinks;           /* [64] what the sink gets of each row */
    REAL *biases;          /* [2][pitch] sums over the rows of what biases of queries get */
    REAL *statistics;      /* [2][64] log-sum-exps in log2 units, and deltas: attention_weights_backward */
};

/* Sizes of the parts in order; returns their sum. */
ATTN_INLINE size_t
backward_shared_bytes(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, size_t *part)
{
    size_t blocks = (size_t)(cut->pairs * cut->layout.blocks), row = ATTN_BLOCK * sizeof(REAL), bytes = 0;
    part[0] = cut->turns ? blocks * ATTN_TURN * sizeof(atomic_int) : 0;
    part[1] = attn_wants_query(b) && !cut->own_query ? blocks * row * (size_t)(b->forward.head_dim * (attn_has_biases(&b->forward) ? 2 : 1)) : 0;
    part[2] = cut->row_sums ? blocks * ATTN_ROW_SUMS * row : 0;
    part[3] = b->grad_sinks.data ? blocks * row : 0;
    part[4] = cut->prepares ? blocks * 2 * row : 0;
    part[5] = b->grad_content_bias.data || b->grad_position_bias.data ? blocks * 2 * (size_t)whole_vectors(b->forward.head_dim) * sizeof(REAL) : 0;
    size_t vectors = (size_t)(b->forward.batch * b->forward.heads) * sizeof(REAL);
    vectors *= b->forward.relative.key.data ? (size_t)attn_vector_places(&b->forward) : 0;
    part[6] = b->grad_relative_key.data ? vectors * (size_t)whole_vectors(b->forward.head_dim) : 0;
    part[7] = b->grad_relative_value.data ? vectors * (size_t)whole_vectors(b->forward.value_dim) : 0;
    for (int i = 0; i < ATTN_SHARED_PARTS; i++)
        bytes += part[i];
    return bytes;
}

/* Those of one row block. What is not wanted is NULL. */
static struct backward_shared
backward_shared_open(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, int64_t batch, int64_t head, int64_t number)
{
    size_t part[ATTN_SHARED_PARTS], blocks = (size_t)(cut->pairs * cut->layout.blocks),
                                    block = (size_t)((batch * cut->heads + head) * cut->layout.blocks + number);
    char *at = b->forward.call.workspace, *of[6];
    backward_shared_bytes(b, cut, part);
    for (int i = 0; i < 6; i++) {
        of[i] = part[i] > 0 ? at + part[i] / blocks * block : NULL;
        at = part[i] > 0 ? at + part[i] : at;
    }
    return (struct backward_shared){.turn = (atomic_int *)of[0],
                                    .grad_query = (REAL *)of[1],
                                    .sums = (REAL *)of[2],
                                    .sinks = (REAL *)of[3],
                                    .biases = (REAL *)of[5],
                                    .statistics = (REAL *)of[4]};
}

/* Where the sums over equal distances of all of them are. */
ATTN_INLINE char *
distances_of_all(const struct attn_attention_backward *b, const struct attn_backward_cut *cut)
{
    size_t part[ATTN_SHARED_PARTS];
    return (char *)b->forward.call.workspace + backward_shared_bytes(b, cut, part);
}

/* Statistics that the first phase has kept. */
static void
kept_statistics(struct backward_place *p, const REAL *statistics)
{
    memcpy(p->base, statistics, sizeof p->base);
    memcpy(p->delta, statistics + ATTN_BLOCK, sizeof p->delta);
}

/* Whether some chunk visits a row block: attn_visit has a rank for it. */
ATTN_INLINE bool
rows_are_visited(const struct row_block *rows)
{
    return rows->any_first < rows->any_end && (!rows->one_tile_row || attn_tiles_meet(&rows->tiles, rows->any_first, rows->any_end));
}

/* Adds the sums of e^s dP over the keys of a segment to its rows' deltas. */
static void
add_given(const struct segment *s, const REAL *products, REAL *delta)
{
    for (int i = 0; i < s->nv; i++) {
        vreal sum = {0};
        for (int t = 0; t < s->keys; t++)
            sum += v_load(products + t * s->width + i * LANES);
        v_store(delta + s->lane + i * LANES, v_load(delta + s->lane + i * LANES) + sum);
    }
}

/* Running maxima, sums and deltas of a segment's rows. */
static void
prepare_segment(const struct attn_attention_backward *b, int64_t batch, struct backward_place *p, const struct key_block *block,
                const struct segment *s)
{
    REAL *tops = p->rows->top + s->lane, *sums = p->rows->sum + s->lane, *delta = p->delta + s->lane;
    REAL *products = p->gradients + (s->scores - p->w->scores);
    vreal top[GROUP_VECTORS], base[GROUP_VECTORS], decay, sum[GROUP_VECTORS], own[GROUP_VECTORS], none[GROUP_VECTORS];
    for (int i = 0; i < s->nv; i++) {
        none[i] = (vreal){0};
        top[i] = v_load(tops + i * LANES);
    }
    segment_scores(&b->forward, batch, p->rows, block, p->w, s, top);
    for (int i = 0; i < s->nv; i++) {
        softmax_step(v_load(tops + i * LANES), top[i], &base[i], &decay);
        sum[i] = v_load(sums + i * LANES) * decay;
        v_store(delta + i * LANES, v_load(delta + i * LANES) * decay);
        v_store(tops + i * LANES, top[i]);
    }
    weights_of(s->nv, s->scores, s->width, s->keys, base, sum, own);
    for (int i = 0; i < s->nv; i++)
        v_store(sums + i * LANES, sum[i]);
    given_gradients(s, p->dropped, none, products);
    if (p->w->sight == ATTN_PARTIAL)
        hide_gradients(s, p->w->seen, products);
    add_given(s, products, p->delta);
}

/* attention_weights_backward: the weights are made once to know their sums, and what dP is reduced by. */
static void
prepare_weights(const struct attn_attention_backward *b, int64_t batch, int64_t head, struct backward_place *p)
{
    const struct attn_attention *a = &b->forward;
    int64_t step = attn_block_keys(a);
    load_query(a, batch, p, live_lanes(p->rows));
    rows_start(a, batch, p->rows, true);
    memset(p->delta, 0, sizeof p->delta);
    for (int64_t key = p->rows->any_first / step * step; key < p->rows->any_end; key += step) {
        struct key_block *block = p->block;
        if (attn_stopped(a->call.stop))
            return;
        key_block_load(a, batch, head, key, (int)attn_min(step, a->key_length - key), false, p->loaded[0], block);
        if (tile_sight(a, batch, p->rows, block, true, p->w) == ATTN_HIDDEN)
            continue;
        given_tile(b, batch, p->rows, block->first + p->w->from, p->w->keys, p->dropped);
        for (struct segment s = {0}; next_segment(p->rows, p->w, a->head_dim, &s);)
            prepare_segment(b, batch, p, block, &s);
    }
    for (int lane = 0; lane < p->rows->count; lane++) {
        double sum = (double)p->rows->sum[lane];
        p->base[lane] = sum == 0 ? 0 : (REAL)((double)p->rows->top[lane] + log(sum) * LOG2E);
        p->delta[lane] = sum == 0 ? 0 : p->delta[lane] / p->rows->sum[lane];
    }
}

/* Lanes that see some key: a dense mask or bias may leave less than the ranges do. */
static uint64_t
seeing_lanes(const struct attn_attention *a, int64_t batch, const struct row_block *rows, struct workplace *w)
{
    uint64_t live = live_lanes(rows), sees = 0;
    int64_t step = attn_block_keys(a);
    if (!a->attn_mask.data && !a->bias.data && !a->relative_bias.data)
        return live;
    for (int64_t key = rows->any_first / step * step; key < rows->any_end && (sees & live) != live; key += step) {
        struct key_block block = {.first = key, .keys = (int)attn_min(step, a->key_length - key)};
        enum attn_sight sight = tile_sight(a, batch, rows, &block, false, w);
        for (int lane = 0; lane < rows->count && sight == ATTN_PARTIAL; lane++)
            sees |= (uint64_t)(w->seen[lane] != 0) << lane;
        if (sight == ATTN_FULL)
            return live;
    }
    return sees & live;
}

/* scaled_dot_product_attention_backward: log-sum-exps and deltas of a row block. */
static void
given_statistics(const struct attn_attention_backward *b, int64_t batch, struct backward_place *p)
{
    const struct attn_attention *a = &b->forward;
    uint64_t sees = b->grad_sinks.data ? seeing_lanes(a, batch, p->rows, p->w) : live_lanes(p->rows);
    copy_rows(a, &b->gradient, batch, p->rows, sees, a->value_dim, p->grad);
    row_statistics(b, batch, p, p->rows->valid, sees);
}

/* Log-sum-exps and deltas of a row block, where several tasks need them or they have to be computed from the scores. */
static void
prepare_rows(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, int64_t batch, int64_t head, int64_t number, void *scratch)
{
    const struct attn_attention *a = &b->forward;
    struct backward_place *p = backward_open(a, (int)cut->blocks, scratch);
    const struct backward_shared shared = backward_shared_open(b, cut, batch, head, number);
    if (attn_stopped(a->call.stop))
        return;
    if (cut->turns)
        atomic_store_explicit(shared.turn, 0, memory_order_relaxed);
    if ((cut->by_distance || cut->one_by_one) && number == 0)
        atomic_store_explicit(distance_sums_open(a, cut, batch, head, distances_of_all(b, cut)).turn, 0, memory_order_relaxed);
    rows_describe(a, cut->layout, batch, head, number, p->rows);
    if (b->of_weights)
        prepare_weights(b, batch, head, p);
    else
        given_statistics(b, batch, p);
    memcpy(shared.statistics, p->base, sizeof p->base);
    memcpy(shared.statistics + ATTN_BLOCK, p->delta, sizeof p->delta);
}

/* What the sink gets of each row: - exp(sink - lse) delta. */
static void
sink_shares(const struct attn_attention_backward *b, int64_t batch, struct backward_place *p, REAL *shares)
{
    memset(shares, 0, ATTN_BLOCK * sizeof(REAL));
    for (int lane = 0; lane < p->rows->count; lane++) {
        REAL sink = in_log2_units(*(const REAL *)scalar_at(&b->forward, &b->forward.sinks, batch, p->rows->head[lane]));
        if (p->rows->valid >> lane & 1 && sink != -REAL_INFINITY)
            shares[lane] = -v_exp2_weight(v_splat(sink - p->base[lane]))[0] * p->delta[lane];
    }
}

/* The sinks' shares of a row block; zeros where no chunk visits it. */
static void
finish_rows(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, int64_t batch, int64_t head, int64_t number, void *scratch)
{
    const struct attn_attention *a = &b->forward;
    struct backward_place *p = backward_open(a, (int)cut->blocks, scratch);
    const struct backward_shared shared = backward_shared_open(b, cut, batch, head, number);
    if (attn_stopped(a->call.stop))
        return;
    rows_describe(a, cut->layout, batch, head, number, p->rows);
    if (b->grad_sinks.data) {
        if (cut->prepares)
            kept_statistics(p, shared.statistics);
        else
            given_statistics(b, batch, p);
        sink_shares(b, batch, p, shared.sinks);
    }
    if (rows_are_visited(p->rows) || (cut->in_order && cut->chunks > 0))
        return;
    if (cut->row_sums)
        memset(shared.sums, 0, ATTN_ROW_SUMS * ATTN_BLOCK * sizeof(REAL));
    if (b->grad_query.data && !b->query_accumulates)
        clear_query(b, batch, p->rows, p->w->staging);
}

/* Adds a number for each row of a block to a gradient that is the same for all keys, or to column `column` of its rows. */
static void
add_row_values(const struct attn_attention *a, int64_t batch, const struct row_block *rows, const REAL *value, const struct attn_tensor *t,
               int64_t column)
{
    char *data = output_batch(a, t, batch) + column * t->column;
    if (t->row == 0 && (t->head == 0 || rows->head[0] == rows->head[rows->count - 1])) {
        REAL sum = 0;
        for (int lane = 0; lane < rows->count; lane++)
            sum += value[lane];
        *(REAL *)output_row(t, data, rows->head[0], 0) += sum;
        return;
    }
    for (int lane = 0; lane < rows->count; lane++)
        *(REAL *)output_row(t, data, rows->head[lane], rows->index[lane]) += value[lane];
}

/* Such a gradient from all rows, in order. */
static void
reduce_rows(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, const struct attn_tensor *t, struct backward_place *p)
{
    for (int64_t pair = 0; pair < cut->pairs && !attn_stopped(b->forward.call.stop); pair++)
        for (int64_t number = 0; number < cut->layout.blocks; number++) {
            int64_t batch = pair / cut->heads, head = pair % cut->heads;
            const struct backward_shared shared = backward_shared_open(b, cut, batch, head, number);
            rows_describe(&b->forward, cut->layout, batch, head, number, p->rows);
            if (t == &b->grad_relative) {
                add_row_values(&b->forward, batch, p->rows, shared.sums + 2 * ATTN_BLOCK, t, 0);
                add_row_values(&b->forward, batch, p->rows, shared.sums + 3 * ATTN_BLOCK, t, b->forward.relative_span - 1);
            } else
                add_row_values(&b->forward, batch, p->rows,
                               t == &b->grad_sinks    ? shared.sinks
                               : t == &b->grad_slopes ? shared.sums + ATTN_BLOCK
                                                      : shared.sums,
                               t, 0);
        }
}

/* grad_query of one key/value head where rows of several batch elements, or repeated rows, add up. */
static void
reduce_query(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, int64_t head, struct backward_place *p)
{
    for (int64_t batch = 0; batch < b->forward.batch && !attn_stopped(b->forward.call.stop); batch++)
        for (int64_t number = 0; number < cut->layout.blocks; number++) {
            rows_describe(&b->forward, cut->layout, batch, head, number, p->rows);
            if (rows_are_visited(p->rows) || (cut->in_order && cut->chunks > 0))
                store_query(b, batch, p->rows, backward_shared_open(b, cut, batch, head, number).grad_query, p->w->staging);
        }
}

/* The tasks of the last phase: the heads of grad_query where it accumulates, then the gradients that are sums over rows. */
ATTN_INLINE int64_t
backward_reductions(const struct attn_attention_backward *b, const struct attn_backward_cut *cut)
{
    return (b->grad_query.data && b->query_accumulates ? cut->heads : 0) + (b->grad_sinks.data || cut->row_sums || b->grad_relative.data ? 5 : 0);
}

static void
backward_reduce(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, int64_t task, void *scratch)
{
    const struct attn_tensor *of_rows[5] = {&b->grad_sinks, &b->grad_slopes, &b->grad_mask, &b->grad_bias, &b->grad_relative};
    struct backward_place *p = backward_open(&b->forward, (int)cut->blocks, scratch);
    int64_t heads = b->grad_query.data && b->query_accumulates ? cut->heads : 0;
    if (task < heads)
        reduce_query(b, cut, task, p);
    else if (task - heads == 4 && cut->by_distance)
        reduce_distances(b, cut, distances_of_all(b, cut));
    else if (task - heads == 4 ? attn_is_relative_by_row(b) : of_rows[task - heads]->data && (task - heads < 2 || of_rows[task - heads]->column == 0))
        reduce_rows(b, cut, of_rows[task - heads], p);
}
