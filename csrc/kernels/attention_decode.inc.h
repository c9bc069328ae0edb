/* attention_decode.inc.h: few query rows (up to 4 for each key/value head): every key and value is read once for all of them.
 *
 * Lanes run along the head, then along the keys. What decides the speed is when the next bytes are asked for: while a key is scored, its value row is
 * prefetched into L2; while a value is added, the key row of the next block: one row at a time, evenly. Bursts and L1 as the target were slower. */
#ifndef ATTN_DECODE_NAMES
#define ATTN_DECODE_NAMES
#define decode SUFFIX(decode)
#define decode_bytes SUFFIX(decode_bytes)
#define decode_state SUFFIX(decode_state)
#define decode_block SUFFIX(decode_block)
#define decode_place SUFFIX(decode_place)
#define load_stored SUFFIX(load_stored)
#define is_loadable SUFFIX(is_loadable)
#define decode_scores_of SUFFIX(decode_scores_of)
#define decode_scores SUFFIX(decode_scores)
#define decode_values_of SUFFIX(decode_values_of)
#define decode_values SUFFIX(decode_values)
#define decode_values_selected SUFFIX(decode_values_selected)
#define decode_terms SUFFIX(decode_terms)
#define decode_softmax SUFFIX(decode_softmax)
#define decode_repair SUFFIX(decode_repair)
#define decode_start SUFFIX(decode_start)
#define decode_step SUFFIX(decode_step)
#define prefetch_row SUFFIX(prefetch_row)

enum { DECODE_ROWS = 4 };
/* Lane by lane the same for one type and level; a stored row is REALs, float16 or bfloat16. */
enum attn_stored { ATTN_STORED_REAL, ATTN_STORED_FLOAT16, ATTN_STORED_BFLOAT16 };
#endif

struct decode_state {
    struct row_block *rows;                 /* what each row is and sees; its query and output are not used */
    int64_t key_pitch, value_pitch;         /* E and D in whole vectors */
    REAL *query;                            /* [rows][key_pitch], scaled */
    REAL *output;                           /* [rows][value_pitch] */
    REAL *scores;                           /* [rows][64] */
    REAL top[DECODE_ROWS], sum[DECODE_ROWS];
};

/* Stored rows that can be read whole vector by whole vector; else they have been loaded into scratch. */
struct decode_block {
    const char *key, *value;                /* row_bytes apart */
    int64_t key_bytes, value_bytes;
    enum attn_stored key_stored, value_stored;
    int keys;
};

ATTN_INLINE size_t
decode_bytes(const struct attn_attention *a)
{
    size_t pitches = (size_t)(a->head_dim + a->value_dim) + 2 * VECTOR_BYTES / sizeof(REAL) + ATTN_BLOCK;
    return attn_round_up(sizeof(struct row_block)) + attn_round_up(sizeof(struct decode_state)) + DECODE_ROWS * pitches * sizeof(REAL);
}

ATTN_INLINE struct decode_state *
decode_place(const struct attn_attention *a, char *memory)
{
    struct decode_state *state = (struct decode_state *)(memory + attn_round_up(sizeof(struct row_block)));
    state->rows = (struct row_block *)memory;
    state->key_pitch = (a->head_dim + LANES - 1) / LANES * LANES;
    state->value_pitch = (a->value_dim + LANES - 1) / LANES * LANES;
    state->query = (REAL *)((char *)state + attn_round_up(sizeof *state));
    state->output = state->query + DECODE_ROWS * state->key_pitch;
    state->scores = state->output + DECODE_ROWS * state->value_pitch;
    return state;
}

ATTN_INLINE vreal
load_stored(const char *p, enum attn_stored stored)
{
#if REAL_BITS == 32
    if (stored == ATTN_STORED_FLOAT16)
        return v_load_f16(p);
    if (stored == ATTN_STORED_BFLOAT16)
        return v_load_bf16(p);
#endif
    (void)stored;
    return v_loadu((const REAL *)p);
}

static bool
is_loadable(const struct attn_tensor *t, int64_t n, enum attn_stored *stored)
{
    *stored = ATTN_STORED_REAL;
    if (n % LANES != 0)
        return false;
#if REAL_BITS == 32
    if (!t->swapped && t->column == 2 && t->aligned && (t->type == ATTN_FLOAT16 || t->type == ATTN_BFLOAT16)) {
        *stored = t->type == ATTN_FLOAT16 ? ATTN_STORED_FLOAT16 : ATTN_STORED_BFLOAT16;
        return true;
    }
#endif
    return is_direct(t);
}

ATTN_INLINE void
prefetch_row(const char *row, int64_t bytes)
{
    for (int64_t z = 0; z < bytes; z += 64)
        __builtin_prefetch(row + z, 0, 2);
}

/* scores[h][j] = query h . key j for n rows, LANES keys at a time; keys past the end score 0. */
ATTN_INLINE void
decode_scores_of(int n, enum attn_stored stored, const struct decode_state *state, const struct decode_block *block, int64_t value_row_bytes)
{
    int64_t step = stored == ATTN_STORED_REAL ? (int64_t)sizeof(REAL) : 2, pitch = state->key_pitch;
    for (int t = 0; t < block->keys; t += LANES) {
        vreal part[DECODE_ROWS][VECTOR_BYTES / sizeof(REAL)];
        for (int j = 0; j < LANES; j++) {
            vreal even[DECODE_ROWS], odd[DECODE_ROWS];
            ATTN_UNROLL
            for (int h = 0; h < n; h++)
                even[h] = odd[h] = (vreal){0};
            if (t + j < block->keys) {
                const char *key = block->key + (t + j) * block->key_bytes;
                int64_t d = 0;
                prefetch_row(block->value + (t + j) * block->value_bytes, value_row_bytes);
                for (; d + 2 * LANES <= pitch; d += 2 * LANES) {
                    vreal x = load_stored(key + d * step, stored), y = load_stored(key + (d + LANES) * step, stored);
                    ATTN_UNROLL
                    for (int h = 0; h < n; h++) {
                        even[h] += x * v_load(state->query + h * pitch + d);
                        odd[h] += y * v_load(state->query + h * pitch + d + LANES);
                    }
                }
                if (d < pitch) {
                    vreal x = load_stored(key + d * step, stored);
                    ATTN_UNROLL
                    for (int h = 0; h < n; h++)
                        even[h] += x * v_load(state->query + h * pitch + d);
                }
            }
            ATTN_UNROLL
            for (int h = 0; h < n; h++)
                part[h][j] = even[h] + odd[h];
        }
        ATTN_UNROLL
        for (int h = 0; h < n; h++)
            v_store(state->scores + h * ATTN_BLOCK + t, v_sums(part[h]));
    }
}

/* output[h] += sum over the keys of scores[h][j] value j; the sum starts at 0. The next block's keys are asked for meanwhile. */
ATTN_INLINE void
decode_values_of(int n, enum attn_stored stored, const struct decode_state *state, const struct decode_block *block)
{
    int64_t step = stored == ATTN_STORED_REAL ? (int64_t)sizeof(REAL) : 2;
    for (int64_t c = 0; c < state->value_pitch;) {
        int columns = c + GROUP_VECTORS * LANES <= state->value_pitch ? GROUP_VECTORS : 1;
        vreal sum[DECODE_ROWS][GROUP_VECTORS];
        const char *next = block->key + ATTN_BLOCK * block->key_bytes + c * step;
        ATTN_UNROLL
        for (int h = 0; h < n; h++)
            ATTN_UNROLL
            for (int i = 0; i < GROUP_VECTORS; i++)
                sum[h][i] = (vreal){0};
        if (columns == GROUP_VECTORS)
            for (int j = 0; j < block->keys; j++) {
                const char *value = block->value + j * block->value_bytes + c * step;
                prefetch_row(next + j * block->key_bytes, GROUP_VECTORS * LANES * step);
                ATTN_UNROLL
                for (int i = 0; i < GROUP_VECTORS; i++) {
                    vreal x = load_stored(value + i * LANES * step, stored);
                    ATTN_UNROLL
                    for (int h = 0; h < n; h++)
                        sum[h][i] += v_splat(state->scores[h * ATTN_BLOCK + j]) * x;
                }
            }
        else
            for (int j = 0; j < block->keys; j++) {
                vreal x = load_stored(block->value + j * block->value_bytes + c * step, stored);
                ATTN_UNROLL
                for (int h = 0; h < n; h++)
                    sum[h][0] += v_splat(state->scores[h * ATTN_BLOCK + j]) * x;
            }
        ATTN_UNROLL
        for (int h = 0; h < n; h++)
            for (int i = 0; i < columns; i++) {
                REAL *o = state->output + h * state->value_pitch + c + i * LANES;
                v_store(o, v_load(o) + sum[h][i]);
            }
        c += columns * LANES;
    }
}

#define ATTN_BY_STORED(call, stored) \
    switch (stored) { \
    case ATTN_STORED_FLOAT16: \
        call(ATTN_STORED_FLOAT16); \
        break; \
    case ATTN_STORED_BFLOAT16: \
        call(ATTN_STORED_BFLOAT16); \
        break; \
    default: \
        call(ATTN_STORED_REAL); \
    }
#undef ATTN_BY_STORED
