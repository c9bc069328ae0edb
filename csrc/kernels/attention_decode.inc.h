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
#define decode_load_side SUFFIX(decode_load_side)
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
        load_padded(query, row_in(a, &a->query, batch, rows->head[h], rows->index[h]), &a->query, a->head_dim);
        for (int64_t d = 0; d < state->key_pitch; d += LANES)
            v_store(query + d, scaled_query(v_load(query + d), factor));
        state->top[h] = -REAL_INFINITY;
        state->sum[h] = 0;
        if (with_sink && a->sinks.data)
            row_sink(a, batch, rows, h, &state->top[h], &state->sum[h]);
    }
    return state;
}

/* One operand of a block: in place where its rows are whole vectors of a type that loads as REALs, else loaded and filled up with 0. */
static void
decode_load_side(const struct attn_tensor *t, const char *data, int keys, int64_t n, REAL *memory, struct stored_rows *side)
{
    int64_t pitch = (n + LANES - 1) / LANES * LANES;
    if (n % LANES == 0 && is_loadable(t, &side->stored)) {
        side->data = data;
        side->row = t->row;
        return;
    }
    for (int r = 0; r < keys; r++)
        load_padded(memory + r * pitch, data + r * t->row, t, n);
    side->data = (const char *)memory;
    side->row = pitch * (int64_t)sizeof(REAL);
    side->stored = ATTN_STORED_REAL;
}

/* What is done to the scores of one row between the product and the softmax; hidden ones, and those past the end, become -inf. */
static void
decode_terms(const struct attn_attention *a, int64_t batch, const struct row_block *rows, const struct key_block *block, const struct workplace *w,
             int h, REAL *score)
{
    const struct attn_tensor *additive[2] = {&a->bias, &a->attn_mask};
    int64_t first = block->first + w->from;
    uint64_t seen = attn_bit_range(0, w->keys);
    if (w->sight == ATTN_PARTIAL)
        seen &= w->seen[h];
    for (int t = 0; t < w->keys; t += LANES) {
        vreal s = v_load(score + t) * v_splat(score_factor(a));
        if (v_any(s - s != (vreal){0})) {
            v_store(score + t, s);
            for (int n = t; n < t + LANES && n < w->keys; n++)
                if (score[n] - score[n] != 0 && (seen >> n & 1))
                    score[n] = repaired_score(a, &a->query, row_in(a, &a->query, batch, rows->head[h], rows->index[h]), &a->key,
                                              block->key_data + (w->from + n) * a->key.row, score[n]);
            s = v_load(score + t);
        }
        if (a->softcap != 0)
            s = capped(a->softcap, softcap_tanh(a->softcap, s));
        for (int n = 0; n < 2; n++)
            if (is_added(additive[n]))
                s = saturating_sum(s, v_load(w->additive[n] + h * ATTN_BLOCK + t));
        if (a->alibi_slopes.data)
            s = saturating_sum(s, key_alibi(rows->slope[h], rows->position[h] - (first + t)));
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
    struct key_block block = {.first = first, .keys = keys, .key_data = scalar_at(a, &a->key, batch, kv_head) + first * a->key.row};
    if (tile_sight(a, batch, rows, &block, false, w) == ATTN_HIDDEN)
        return;
    struct stored_rows key, value;
    const char *value_data = scalar_at(a, &a->value, batch, kv_head) + (first + w->from) * a->value.row;
    decode_load_side(&a->key, block.key_data + w->from * a->key.row, w->keys, a->head_dim, w->block, &key);
    decode_load_side(&a->value, value_data, w->keys, a->value_dim, w->block + ATTN_BLOCK * state->key_pitch, &value);
    row_scores(rows->count, state->query, state->key_pitch, &key, w->keys, &value, state->value_pitch, state->scores);
    bool plain = w->sight == ATTN_FULL && w->keys % LANES == 0 && !has_terms(a) && !scales_scores(a);
    for (int h = 0; h < rows->count; h++) {
        REAL *score = state->scores + h * ATTN_BLOCK;
        if (!plain || !scores_are_finite(score, w->keys))
            decode_terms(a, batch, rows, &block, w, h, score);
        decode_softmax(a, batch, rows, first + w->from, w->keys, h, state);
    }
    if (w->sight == ATTN_PARTIAL && !rows_finite(&value, w->keys, state->value_pitch))
        row_values_selected(rows->count, state->scores, w->seen, &value, w->keys, state->value_pitch, state->decay, state->output);
    else
        row_values(rows->count, state->scores, &value, w->keys, state->value_pitch, state->decay, &key, state->output);
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
