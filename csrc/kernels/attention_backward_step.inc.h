/* attention_backward_step.inc.h: one row block meets one key block: weights, dS, and what both give to the gradients. */
#ifndef ATTN_BACKWARD_STEP_NAMES
#define ATTN_BACKWARD_STEP_NAMES
#define live_lanes SUFFIX(live_lanes)
#define weigh_segment SUFFIX(weigh_segment)
#define given_tile SUFFIX(given_tile)
#define given_gradients SUFFIX(given_gradients)
#define dropped_gradients SUFFIX(dropped_gradients)
#define hide_gradients SUFFIX(hide_gradients)
#define slope_gradients SUFFIX(slope_gradients)
#define sum_rows SUFFIX(sum_rows)
#define segment_gradients SUFFIX(segment_gradients)
#define add_key_sums SUFFIX(add_key_sums)
#define add_transposed SUFFIX(add_transposed)
#define add_additive SUFFIX(add_additive)
#define backward_tile SUFFIX(backward_tile)
#define add_query SUFFIX(add_query)
#define add_keys SUFFIX(add_keys)
#endif

/* Lanes that may see something, as far as ranges tell. */
ATTN_INLINE uint64_t
live_lanes(const struct row_block *rows)
{
    uint64_t live = 0;
    for (int lane = 0; lane < rows->count; lane++)
        live |= (uint64_t)(rows->first[lane] < rows->end[lane]) << lane;
    return live;
}

/* Scores become weights 2^(score - log-sum-exp). */
static void
weigh_segment(const struct attn_attention *a, int64_t batch, struct backward_place *p, const struct key_block *block, const struct segment *s)
{
    vreal top[GROUP_VECTORS], base[GROUP_VECTORS], sum[GROUP_VECTORS], own[GROUP_VECTORS];
    for (int i = 0; i < s->nv; i++) {
        top[i] = sum[i] = (vreal){0};
        base[i] = v_load(p->base + s->lane + i * LANES);
    }
    segment_scores(a, batch, p->rows, block, p->w, s, top);
    weights_of(s->nv, s->scores, s->width, s->keys, base, sum, own);
}

/* The gradients that attention_weights_backward was given for a tile, [lane][64] from the first key that the row block may see. Rows of lanes that see
 * nothing are left as they are. */
static void
given_tile(const struct attn_attention_backward *b, int64_t batch, const struct row_block *rows, int64_t key, int keys, REAL *tile)
{
    const struct attn_tensor *t = &b->gradient;
    const char *data = scalar_at(&b->forward, t, batch, 0) + key * t->column;
    for (int lane = 0; lane < rows->count; lane++)
        load_row(tile + lane * ATTN_BLOCK, data + rows->head[lane] * t->head + rows->out_row[lane] * t->row, t->column, keys, t->type, t->swapped);
}

/* dS = P (dP - delta) for such a tile, transposed on the way. */
static void
given_gradients(const struct segment *s, const REAL *tile, const vreal *start, REAL *gradients)
{
    for (int i = 0; i < s->nv; i++)
        for (int c = 0; c < s->from + s->keys; c += LANES) {
            vreal block[VECTOR_BYTES / sizeof(REAL)];
            tile_columns(tile, s->lane + i * LANES, c, block);
            for (int n = 0; n < LANES; n++)
                if (c + n >= s->from && c + n < s->from + s->keys) {
                    int64_t at = (c + n - s->from) * s->width + i * LANES;
                    v_store(gradients + at, v_load(s->scores + at) * (block[n] + start[i]));
                }
        }
}

/* From P dropped (dO . v) to dS = P (M (dO . v) - delta). */
static void
dropped_gradients(const struct segment *s, REAL whole, const vreal *start, REAL *gradients)
{
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv; i++) {
            int64_t at = t * s->width + i * LANES;
            v_store(gradients + at, v_load(gradients + at) * v_splat(whole) + v_load(s->scores + at) * start[i]);
        }
}

/* Hidden weights and dS become 0, by select: a row of which something else is NaN has NaN in all of them. */
static void
hide_gradients(const struct segment *s, const uint64_t *seen, REAL *tile)
{
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv; i++) {
            REAL *x = tile + t * s->width + i * LANES;
            v_store(x, v_select(v_lane_bits(seen[s->from + t] >> (s->lane + i * LANES)), v_load(x), (vreal){0}));
        }
}

/* dS times the derivative of the softcap. */
static void
slope_gradients(const struct segment *s, REAL *gradients)
{
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv; i++) {
            int64_t at = t * s->width + i * LANES;
            v_store(gradients + at, v_load(gradients + at) * v_load(s->slopes + at));
        }
}

/* Adds dS and - dS |distance| over the keys of a segment to its rows' sums. */
static void
sum_rows(const struct attn_attention_backward *b, const struct row_block *rows, const struct segment *s, int64_t key, const REAL *gradients,
         REAL *sums)
{
    for (int i = 0; i < s->nv; i++) {
        vreal ahead = {0}, sum = {0}, distance = {0};
        int lane = s->lane + i * LANES;
        for (int n = 0; n < LANES && lane + n < rows->count; n++)
            ahead[n] = (REAL)(rows->position[lane + n] - key);
        for (int t = 0; t < s->keys; t++) {
            vreal ds = v_load(gradients + t * s->width + i * LANES);
            sum += ds;
            if (b->grad_slopes.data)
                distance -= ds * v_abs(ahead - v_splat((REAL)t));
        }
        v_store(sums + lane, v_load(sums + lane) + sum);
        v_store(sums + ATTN_BLOCK + lane, v_load(sums + ATTN_BLOCK + lane) + distance);
    }
}

/* Weights, dS and the row sums of one segment. */
static void
segment_gradients(const struct attn_attention_backward *b, int64_t batch, struct backward_place *p, const struct key_block *block,
                  const struct segment *s)
{
    const struct attn_attention *a = &b->forward;
    const bool drops = a->dropout_p > 0;
    int64_t at = s->scores - p->w->scores;
    int first = p->w->from + s->from, base_lane = s->lane / (GROUP_VECTORS * LANES) * (GROUP_VECTORS * LANES);
    REAL *gradients = p->gradients + at;
    const REAL *weights = s->scores, *grad = p->rows->output + base_lane * a->value_dim + (s->lane - base_lane);
    vreal start[GROUP_VECTORS], none[GROUP_VECTORS];
    weigh_segment(a, batch, p, block, s);
    for (int i = 0; i < s->nv; i++) {
        none[i] = (vreal){0};
        start[i] = -v_load(p->delta + s->lane + i * LANES);
    }
    if (p->w->sight == ATTN_PARTIAL)
        hide_gradients(s, p->w->seen, s->scores);
    if (drops) {
        weights = p->dropped + at;
        for (int t = 0; t < s->keys; t++)
            memcpy(p->dropped + at + t * s->width, s->scores + t * s->width, (size_t)(s->nv * LANES) * sizeof(REAL));
        drop_weights(a, batch, p->rows, s->lane, s->nv, s->width, p->dropped + at, block->first + first, s->keys);
    }
    if (b->of_weights)
        given_gradients(s, p->dropped, start, gradients);
    else
        group_gradients(s->nv, grad, s->width, block->value + first * block->value_row, block->value_row, a->value_dim, s->keys, drops ? none : start,
                        weights, gradients);
    if (a->relative.value.data)
        ring_add(&p->rows->vectors->value, p->rows, s, block->first + first, weights, gradients);
    if (drops)
        dropped_gradients(s, (REAL)(1 / (1 - a->dropout_p)), start, gradients);
    if (p->w->sight == ATTN_PARTIAL)
        hide_gradients(s, p->w->seen, gradients);
    if (b->grad_slopes.data || attn_wants_row_sums(b))
        sum_rows(b, p->rows, s, block->first + first, gradients, p->sums);
}

/* The sums of dS over all rows of a block, for a mask or bias that is the same for them. */
static void
add_key_sums(const struct row_block *rows, const REAL *tile, int keys, const struct attn_tensor *t, char *to)
{
    uint64_t live = attn_bit_range(0, rows->count);
    for (int key = 0; key < keys; key++) {
        vreal sum = {0};
        for (int lane = 0; lane < rows->count;) {
            int nv = group_vectors(rows->count, lane);
            for (int i = 0; i < nv; i++)
                sum += v_select(v_lane_bits(live >> (lane + i * LANES)), v_load(tile + lane * ATTN_BLOCK + key * nv * LANES + i * LANES), (vreal){0});
            lane += nv * LANES;
        }
        *(REAL *)(to + key * t->column) += v_sum(sum);
    }
}

/* to[lane][key] += the transposed tile, for up to LANES lanes from `lane` on. The next key block's place is asked for: a row's 256 bytes are too few for
 * the processor to see a stream, and waiting for them made the whole pass a tenth longer. */
static void
add_transposed(const struct row_block *rows, const REAL *tile, int64_t width, int lane, int keys, const struct attn_tensor *t, char *data)
{
    int lanes = (int)attn_min(LANES, rows->count - lane);
    for (int c = 0; c < keys; c += LANES) {
        vreal block[VECTOR_BYTES / sizeof(REAL)];
        for (int n = 0; n < LANES; n++)
            block[n] = c + n < keys ? v_load(tile + (c + n) * width) : (vreal){0};
        v_transpose(block);
        for (int n = 0; n < lanes; n++) {
            REAL *to = (REAL *)(data + rows->head[lane + n] * t->head + rows->index[lane + n] * t->row) + c;
            __builtin_prefetch(to + ATTN_BLOCK, 1, 2);
            if (c + LANES <= keys)
                v_storeu(to, v_loadu(to) + block[n]);
            else
                for (int k = 0; k < keys - c; k++)
                    to[k] += block[n][k];
        }
    }
}

/* Adds a tile of dS to the gradient of a mask or bias, which lies in C order. */
static void
add_additive(const struct attn_attention_backward *b, int64_t batch, const struct backward_place *p, int64_t key, int keys,
             const struct attn_tensor *t)
{
    const struct row_block *rows = p->rows;
    char *data = output_batch(&b->forward, t, batch) + key * t->column;
    bool one_head = rows->head[0] == rows->head[rows->count - 1];
    if (t->row == 0 && (one_head || t->head == 0)) {
        add_key_sums(rows, p->gradients, keys, t, data + rows->head[0] * t->head);
        return;
    }
    for (int lane = 0; lane < rows->count;) {
        int width = group_vectors(rows->count, lane) * LANES;
        for (int i = 0; i < width && lane + i < rows->count; i += LANES)
            add_transposed(rows, p->gradients + lane * ATTN_BLOCK + i, width, lane + i, keys, t, data);
        lane += width;
    }
}

/* Weights and dS of a tile; the gradients of masks and biases get their part. False: the row block sees nothing of the key block. */
static bool
backward_tile(const struct attn_attention_backward *b, int64_t batch, struct backward_place *p, const struct key_block *block)
{
    const struct attn_attention *a = &b->forward;
    struct workplace *w = p->w;
    if (tile_sight(a, batch, p->rows, block, true, w) == ATTN_HIDDEN)
        return false;
    if (a->relative.key.data)
        ring_prepare(a, batch, p->rows, &p->rows->vectors->key, block->first + w->from, w->keys, w->staging);
    if (a->relative.value.data)
        ring_prepare(a, batch, p->rows, &p->rows->vectors->value, block->first + w->from, w->keys, w->staging);
    if (b->of_weights)
        given_tile(b, batch, p->rows, block->first + w->from, w->keys, p->dropped);
    if (w->sight == ATTN_PARTIAL) {
        memset(w->scores, 0, ATTN_BLOCK * ATTN_BLOCK * sizeof(REAL));
        memset(p->gradients, 0, ATTN_BLOCK * ATTN_BLOCK * sizeof(REAL));
        if (a->dropout_p > 0)
            memset(p->dropped, 0, ATTN_BLOCK * ATTN_BLOCK * sizeof(REAL));
    }
    for (struct segment s = {0}; next_segment(p->rows, w, a->head_dim, &s);) {
        s.slopes = a->softcap != 0 ? p->slopes + (s.scores - w->scores) : NULL;
        segment_gradients(b, batch, p, block, &s);
    }
    if (attn_is_dense(&b->grad_mask))
        add_additive(b, batch, p, block->first + w->from, w->keys, &b->grad_mask);
    if (attn_is_dense(&b->grad_bias))
        add_additive(b, batch, p, block->first + w->from, w->keys, &b->grad_bias);
    if (b->grad_relative.data)
        add_relative(b, batch, p, block);
    if (a->softcap != 0)
        for (struct segment s = {0}; next_segment(p->rows, w, a->head_dim, &s);) {
            s.slopes = p->slopes + (s.scores - w->scores);
            slope_gradients(&s, p->gradients + (s.scores - w->scores));
            if (w->sight == ATTN_PARTIAL) /* a hidden slope may be NaN */
                hide_gradients(&s, w->seen, p->gradients + (s.scores - w->scores));
        }
    return true;
}

/* grad_query of the row block += T K. */
static void
add_query(const struct attn_attention *a, struct backward_place *p, const struct key_block *block)
{
    const struct workplace *w = p->w;
    vreal one[GROUP_VECTORS];
    for (int i = 0; i < GROUP_VECTORS; i++)
        one[i] = v_splat(1);
    enum attn_finite state = block->key_abs - block->key_abs == 0 ? ATTN_FINITE : ATTN_NOT_FINITE;
    for (struct segment s = {0}; next_segment(p->rows, w, a->head_dim, &s);)
        segment_output(w, &s, p->gradients + (s.scores - w->scores), block->key, block->key_row, block->keys, a->head_dim, &state, one,
                       p->grad_query);
}

/* grad_value += P^T dO and grad_key += T^T Q, for key block number n of the chunk. */
static void
add_keys(const struct attn_attention_backward *b, struct backward_place *p, int n)
{
    const struct attn_attention *a = &b->forward;
    const struct workplace *w = p->w;
    struct lane_sum sum = {.count = p->rows->count, .keys = w->keys, .seen = w->sight == ATTN_PARTIAL ? w->seen : NULL};
    int64_t row = n * attn_block_keys(a) + w->from;
    if (b->grad_value.data) {
        sum.tile = a->dropout_p > 0 ? p->dropped : w->scores;
        sum.y = p->grad;
        sum.n = a->value_dim;
        sum.pitch = p->value_pitch;
        sum.sums = p->grad_value + row * p->value_pitch;
        sum_over_lanes(&sum, !sum.seen || block_is_finite(p->grad, p->value_pitch, sum.count, p->value_pitch, &p->grad_state));
    }
    if (b->grad_key.data) {
        sum.tile = p->gradients;
        sum.y = p->query;
        sum.n = a->head_dim;
        sum.pitch = p->query_pitch;
        sum.sums = p->grad_key + row * p->query_pitch;
        sum_over_lanes(&sum, !sum.seen || block_is_finite(p->query, p->query_pitch, sum.count, p->query_pitch, &p->query_state));
    }
}
