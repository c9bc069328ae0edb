/* attention_decode.inc.h: few query rows for each key/value head: every key and value is read once for all of them.
 *
 * Lanes run along the head, then along the keys. What decides the speed is when the next bytes are asked for: while a key is scored, its value row is
 * prefetched into L2; while a value is added, the key row of the next block: one row at a time, evenly. Bursts and L1 as the target were slower. */
#ifndef ATTN_DECODE_NAMES
#define ATTN_DECODE_NAMES
#define decode SUFFIX(decode)
#define decode_bytes SUFFIX(decode_bytes)
#define decode_state SUFFIX(decode_state)
#define decode_open SUFFIX(decode_open)
#define load_padded SUFFIX(load_padded)
#define decode_side SUFFIX(decode_side)
#define side_open SUFFIX(side_open)
#define side_look_ahead SUFFIX(side_look_ahead)
#define side_row SUFFIX(side_row)
#define scale_scores_by_key SUFFIX(scale_scores_by_key)
#define scale_weights_by_value SUFFIX(scale_weights_by_value)
#define decode_step SUFFIX(decode_step)
#define decode_terms SUFFIX(decode_terms)
#define decode_softmax SUFFIX(decode_softmax)
#define scores_are_finite SUFFIX(scores_are_finite)

enum { DECODE_ROWS = 8 };
#endif

struct decode_state {
    struct row_block *rows;          /* what each row is and sees; its query and output are not used */
    int64_t key_pitch, value_pitch;  /* E and D in whole vectors */
    REAL *query;                     /* [rows][key_pitch], scaled */
    REAL *output;                    /* [rows][value_pitch] */
    REAL *scores;                    /* [rows][64] */
    REAL top[DECODE_ROWS], sum[DECODE_ROWS], decay[DECODE_ROWS];
};

ATTN_INLINE size_t
decode_bytes(const struct attn_attention *a)
{
    size_t pitches = (size_t)(a->head_dim + a->value_dim) + 2 * VECTOR_BYTES / sizeof(REAL) + ATTN_BLOCK;
    return attn_round_up(sizeof(struct row_block)) + attn_round_up(sizeof(struct decode_state)) + DECODE_ROWS * pitches * sizeof(REAL);
}

/* A row of n elements as REALs, filled up with 0 to whole vectors. */
static void
load_padded(REAL *row, const char *data, const struct attn_tensor *t, int64_t n)
{
    if (n > 0)
        v_store(row + (n - 1) / LANES * LANES, (vreal){0});
    load_row(row, data, t->column, n, t->type, t->swapped);
}

/* Describes and loads the rows of a key/value head; `memory` holds decode_bytes. */
static struct decode_state *
decode_open(const struct attn_attention *a, struct attn_row_layout layout, int64_t batch, int64_t kv_head, bool with_sink, char *memory)
{
    struct decode_state *state = (struct decode_state *)(memory + attn_round_up(sizeof(struct row_block)));
    struct row_block *rows = state->rows = (struct row_block *)memory;
    state->key_pitch = (a->head_dim + LANES - 1) / LANES * LANES;
    state->value_pitch = (a->value_dim + LANES - 1) / LANES * LANES;
    state->query = (REAL *)((char *)state + attn_round_up(sizeof *state));
    state->output = state->query + DECODE_ROWS * state->key_pitch;
    state->scores = state->output + DECODE_ROWS * state->value_pitch;
    rows_describe(a, layout, batch, kv_head, 0, rows);
    memset(state->output, 0, (size_t)(rows->count * state->value_pitch) * sizeof(REAL));
    struct query_factor factor = query_factor_of(a);
    for (int h = 0; h < rows->count; h++) {
        REAL *query = state->query + h * state->key_pitch;
        int64_t angle = attn_turns(a) ? query_angle(a, batch, rows, h) : -1;
        load_padded(query, row_in(a, &a->query, batch, rows->head[h], rows->index[h]), &a->query, a->head_dim);
        if (angle >= 0)
            turn(a, angle, query, query, false);
        for (int64_t d = 0; d < state->key_pitch; d += LANES)
            v_store(query + d, scaled_query(v_load(query + d), factor));
        state->top[h] = -REAL_INFINITY;
        state->sum[h] = 0;
        if (with_sink && a->sinks.data)
            row_sink(a, batch, rows, h, &state->top[h], &state->sum[h]);
    }
    return state;
}

/* One operand of a block. */
struct decode_side {
    struct stored_rows rows;
    const char *place[ATTN_BLOCK], *next[ATTN_BLOCK];
    bool scaled;                                         /* rows are read as they are, and scores or weights multiplied by `scale` */
    REAL scale[ATTN_BLOCK] __attribute__((aligned(64)));
};

/* Keys (or values) first ... first + keys - 1 of a head, all visible to some row: in place where they are whole vectors of a type that loads as REALs, else
 * loaded and filled up with 0. turns: keys are, by their positions. */
static void
side_open(const struct attn_attention *a, const struct attn_tensor *t, const struct attn_tensor *scale, int64_t batch, int64_t kv_head, int64_t first,
          int keys, int64_t n, bool turns, REAL *memory, struct decode_side *side)
{
    int64_t pitch = (n + LANES - 1) / LANES * LANES;
    struct stored_rows *rows = &side->rows;
    bool whole = n % LANES == 0 && is_loadable(t, &rows->stored), direct = whole && !turns, real = whole && rows->stored == ATTN_STORED_REAL;
    places_of(a, t, batch, kv_head, first, keys, side->place);
    side->scaled = direct && scale->data;
    if (scale->data)
        scales_of(a, scale, batch, kv_head, first, keys, side->scale);
    for (int r = keys; r < ATTN_BLOCK; r++)
        side->scale[r] = 0;
    if (!direct) {
        rows->stored = ATTN_STORED_REAL;
        for (int r = 0; r < keys; r++) {
            REAL *row = memory + r * pitch;
            if (!real)
                load_padded(row, side->place[r], t, n);
            if (scale->data)
                scale_row(row, n, side->scale[r]);
            if (turns)
                turn(a, key_angle(a, batch, first + r), row, real ? (const REAL *)side->place[r] : row, false);
            side->next[r] = whole ? side->place[r] : (const char *)row;
            side->place[r] = (const char *)row;
        }
    }
    rows->row = side->place;
    rows->next = direct ? side->place : side->next;
    rows->ahead = whole ? ATTN_BLOCK * t->row : 0;
}

/* Keys in pages: the places of the next block are looked up, so that it can be asked for. From `end` on the table must not be read. */
static void
side_look_ahead(const struct attn_attention *a, int64_t batch, int64_t kv_head, int64_t first, int keys, int64_t end, struct decode_side *side)
{
    int64_t following = first + attn_block_keys(a);
    int known = (int)attn_min(keys, end - following);
    side->rows.ahead = 0;
    if (known <= 0 || side->rows.next[0] != stored_at(a, &a->key, batch, kv_head, first)) /* loaded row by row: nothing is read ahead */
        return;
    places_of(a, &a->key, batch, kv_head, following, known, side->next);
    for (int r = known; r < keys; r++)
        side->next[r] = side->next[known - 1];
    side->rows.next = side->next;
}

/* Scores of a row times the scales of their keys. */
static void
scale_scores_by_key(const REAL *scale, int keys, REAL *score)
{
    for (int t = 0; t < keys; t += LANES)
        v_store(score + t, v_load(score + t) * v_load(scale + t));
}

/* Weights times the scales of their values; a hidden value's scale may be NaN. */
static void
scale_weights_by_value(const REAL *scale, int keys, uint64_t seen, REAL *weight)
{
    for (int t = 0; t < keys; t += LANES)
        v_store(weight + t, v_select(v_lane_bits(seen >> t), v_load(weight + t) * v_load(scale + t), (vreal){0}));
}

/* Key t of a block as REALs; an int8 that is not scaled yet is. */
static const REAL *
side_row(const struct decode_side *side, int t, int64_t n, REAL *memory)
{
    int64_t size = stored_size(side->rows.stored);
    for (int64_t d = 0; d < n; d += LANES) {
        vreal x = load_stored(side->place[t] + d * size, side->rows.stored);
        v_store(memory + d, x * v_splat(side->scaled ? side->scale[t] : 1));
    }
    return memory;
}

/* What is done to the scores of one row between the product and the softmax; hidden ones, and those past the end, become -inf. */
static void
decode_terms(const struct attn_attention *a, int64_t batch, const struct row_block *rows, int64_t first, const struct decode_side *key,
             const struct workplace *w, int h, REAL *score)
{
    const struct attn_tensor *additive[2] = {&a->bias, &a->attn_mask};
    uint64_t seen = attn_bit_range(0, w->keys);
    struct attn_tensor turned;
    if (w->sight == ATTN_PARTIAL)
        seen &= w->seen[h];
    for (int t = 0; t < w->keys; t += LANES) {
        vreal s = v_load(score + t) * v_splat(score_factor(a));
        if (v_any(s - s != (vreal){0})) {
            v_store(score + t, s);
            for (int n = t; n < t + LANES && n < w->keys; n++)
                if (score[n] - score[n] != 0 && (seen >> n & 1)) {
                    const struct attn_tensor *of = &a->query;
                    const char *query = turned_query(a, batch, rows, h, &of, &turned, w->staging + (a->head_dim + LANES - 1) / LANES * LANES);
                    score[n] = repaired_score(a, of, query, side_row(key, n, a->head_dim, w->staging), score[n]);
                }
            s = v_load(score + t);
        }
        if (a->softcap != 0)
            s = capped(a->softcap, softcap_tanh(a->softcap, s));
        for (int n = 0; n < 2; n++)
            if (is_added(additive[n]))
                s = saturating_sum(s, v_load(w->additive[n] + h * ATTN_BLOCK + t));
        if (a->alibi_slopes.data)
            s = saturating_sum(s, key_alibi(rows->slope[h], rows->position[h] - (first + t)));
        if (a->relative_bias.data)
            s = saturating_sum(s, v_load(w->additive[2] + h * ATTN_BLOCK + t));
        v_store(score + t, v_select(v_lane_bits(seen >> t), s, v_splat(-REAL_INFINITY)));
    }
}

static bool
scores_are_finite(const REAL *score, int keys)
{
    vreal zero = {0};
    for (int t = 0; t < keys; t += LANES)
        zero += v_load(score + t) * (vreal){0};
    return !v_any(zero != zero);
}

/* Scores of one row become weights; the running maximum moves, decay is what older sums are multiplied by. */
static void
decode_softmax(const struct attn_attention *a, int64_t batch, const struct row_block *rows, int64_t first, int keys, int h,
               struct decode_state *state)
{
    REAL *score = state->scores + h * ATTN_BLOCK;
    vreal highest = v_splat(state->top[h]), base, decay, sum = {0};
    for (int t = 0; t < keys; t += LANES)
        highest = v_max(v_load(score + t), highest);
    vreal top = v_splat(v_highest(highest));
    softmax_step(v_splat(state->top[h]), top, &base, &decay);
    for (int t = 0; t < keys; t += LANES) {
        vreal p = v_exp2_weight(v_load(score + t) - base);
        v_store(score + t, p);
        sum += p;
    }
    state->top[h] = top[0];
    state->decay[h] = decay[0];
    state->sum[h] = state->sum[h] * decay[0] + v_sum(sum);
    if (a->dropout_p > 0) {
        REAL kept[ATTN_BLOCK];
        drop_row(a->dropout_key, a->dropout_p, a->first_batch + batch, rows->head[h], rows->index[h], first, keys, 1, kept);
        for (int t = 0; t < keys; t++)
            score[t] = kept[t] != 0 ? score[t] : 0;
    }
}

/* All rows attend to a block of keys. */
static void
decode_step(const struct attn_attention *a, int64_t batch, int64_t kv_head, int64_t first, int keys, struct decode_state *state, struct workplace *w)
{
    struct row_block *rows = state->rows;
    struct key_block block = {.first = first, .keys = keys};
    struct decode_side key, value;
    if (tile_sight(a, batch, rows, &block, false, w) == ATTN_HIDDEN)
        return;
    first += w->from;
    side_open(a, &a->key, &a->key_scale, batch, kv_head, first, w->keys, a->head_dim, attn_turns(a), w->block, &key);
    if (a->block_table.data)
        side_look_ahead(a, batch, kv_head, first, w->keys, rows->any_end, &key);
    side_open(a, &a->value, &a->value_scale, batch, kv_head, first, w->keys, a->value_dim, false, w->block + ATTN_BLOCK * state->key_pitch, &value);
    row_scores(rows->count, state->query, state->key_pitch, &key.rows, w->keys, &value.rows, state->value_pitch, state->scores);
    bool plain = w->sight == ATTN_FULL && w->keys % LANES == 0 && !has_terms(a) && !scales_scores(a);
    for (int h = 0; h < rows->count; h++) {
        REAL *score = state->scores + h * ATTN_BLOCK;
        if (key.scaled)
            scale_scores_by_key(key.scale, w->keys, score);
        if (!plain || !scores_are_finite(score, w->keys))
            decode_terms(a, batch, rows, first, &key, w, h, score);
        decode_softmax(a, batch, rows, first, w->keys, h, state);
        if (value.scaled)
            scale_weights_by_value(value.scale, w->keys, w->sight == ATTN_PARTIAL ? w->seen[h] : ~(uint64_t)0, score);
    }
    if (w->sight == ATTN_PARTIAL && !rows_finite(&value.rows, w->keys, state->value_pitch))
        row_values_selected(rows->count, state->scores, w->seen, &value.rows, w->keys, state->value_pitch, state->decay, state->output);
    else
        row_values(rows->count, state->scores, &value.rows, w->keys, state->value_pitch, state->decay, &key.rows, state->output);
}

/* The rows of a key/value head attend to keys first ... end - 1; the result goes to `part` (attention_parts.inc.h). */
static void
decode(const struct attn_attention *a, struct attn_row_layout layout, int64_t batch, int64_t kv_head, int64_t first, int64_t end, REAL *part,
       struct workplace *w, char *memory)
{
    int64_t step = attn_block_keys(a);
    struct decode_state *state = decode_open(a, layout, batch, kv_head, first == 0, memory);
    int64_t from = attn_max(first, state->rows->any_first / step * step), to = attn_min(end, state->rows->any_end);
    for (int64_t key = from; key < to && !attn_stopped(a->call.stop); key += step)
        decode_step(a, batch, kv_head, key, (int)attn_min(step, to - key), state, w);
    for (int h = 0; h < state->rows->count; h++) {
        REAL *row = part + h * part_pitch(a);
        memcpy(row + LANES, state->output + h * state->value_pitch, (size_t)state->value_pitch * sizeof(REAL));
        row[0] = state->top[h];
        row[1] = state->sum[h];
    }
}
