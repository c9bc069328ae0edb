/* attention_stored.inc.h: the inner loops of decoding: scores of, and sums over, keys and values as they are stored (REALs, float16, bfloat16,
 * int8 before its scale).
 *
 * For up to four rows at a time: their products fit the registers, and the second four find the block in L2. Rows of a block are whole vectors. */
#ifndef ATTN_STORED_NAMES
#define ATTN_STORED_NAMES
#define stored_size SUFFIX(stored_size)
#define load_stored SUFFIX(load_stored)
#define is_loadable SUFFIX(is_loadable)
#define stored_scores SUFFIX(stored_scores)
#define stored_values SUFFIX(stored_values)
#define stored_columns SUFFIX(stored_columns)
#define stored_dot SUFFIX(stored_dot)
#define row_scores SUFFIX(row_scores)
#define row_scores_as SUFFIX(row_scores_as)
#define row_scores_n SUFFIX(row_scores_n)
#define row_values SUFFIX(row_values)
#define row_values_n SUFFIX(row_values_n)
#define row_values_selected SUFFIX(row_values_selected)
#define rows_finite SUFFIX(rows_finite)

enum attn_stored { ATTN_STORED_REAL, ATTN_STORED_FLOAT16, ATTN_STORED_BFLOAT16, ATTN_STORED_INT8 };

/* Rows of keys or values of a block. */
struct stored_rows {
    const char *const *row; /* where each begins */
    const char *const *next; /* and, `ahead` bytes on, what will be read after it: keys of the next block */
    int64_t ahead;
    enum attn_stored stored;
};

/* The next bytes are asked for a row at a time, into L2 (see attention_decode.inc.h); an address past the operand is not read. */
static inline void
attn_prefetch(const char *row, int64_t bytes)
{
    for (int64_t z = 0; z < bytes; z += 64)
        __builtin_prefetch(row + z, 0, 2);
}
#endif

ATTN_INLINE int64_t
stored_size(enum attn_stored stored)
{
    return stored == ATTN_STORED_REAL ? (int64_t)sizeof(REAL) : stored == ATTN_STORED_INT8 ? 1 : 2;
}

ATTN_INLINE vreal
load_stored(const char *p, enum attn_stored stored)
{
#if REAL_BITS == 32
    if (stored == ATTN_STORED_FLOAT16)
        return v_load_f16(p);
    if (stored == ATTN_STORED_BFLOAT16)
        return v_load_bf16(p);
    if (stored == ATTN_STORED_INT8)
        return v_load_i8(p);
#endif
    (void)stored;
    return v_loadu((const REAL *)p);
}

static bool
is_loadable(const struct attn_tensor *t, enum attn_stored *stored)
{
    *stored = ATTN_STORED_REAL;
#if REAL_BITS == 32
    if (!t->swapped && t->column == 2 && t->aligned && (t->type == ATTN_FLOAT16 || t->type == ATTN_BFLOAT16)) {
        *stored = t->type == ATTN_FLOAT16 ? ATTN_STORED_FLOAT16 : ATTN_STORED_BFLOAT16;
        return true;
    }
    if (t->type == ATTN_INT8 && t->column == 1) {
        *stored = ATTN_STORED_INT8;
        return true;
    }
#endif
    return is_direct(t);
}

/* part[h] = query h times key, lane by lane: two chains, over the even and the odd vectors of the head; of int8, where additions are what takes the time,
 * one. */
ATTN_INLINE void
stored_dot(int n, enum attn_stored stored, const REAL *query, int64_t pitch, const char *key, vreal *part)
{
    int64_t size = stored_size(stored), d = 0;
    vreal even[4], odd[4];
    ATTN_UNROLL
    for (int h = 0; h < n; h++)
        even[h] = odd[h] = (vreal){0};
    ATTN_UNROLL_4
    for (; d + 2 * LANES <= pitch; d += 2 * LANES) {
        vreal x = load_stored(key + d * size, stored), y = load_stored(key + (d + LANES) * size, stored);
        ATTN_UNROLL
        for (int h = 0; h < n; h++) {
            even[h] += x * v_load(query + h * pitch + d);
            if (stored == ATTN_STORED_INT8)
                even[h] += y * v_load(query + h * pitch + d + LANES);
            else
                odd[h] += y * v_load(query + h * pitch + d + LANES);
        }
    }
    if (d < pitch) {
        vreal x = load_stored(key + d * size, stored);
        ATTN_UNROLL
        for (int h = 0; h < n; h++)
            even[h] += x * v_load(query + h * pitch + d);
    }
    ATTN_UNROLL
    for (int h = 0; h < n; h++)
        part[h] = even[h];
    if (stored != ATTN_STORED_INT8)
        ATTN_UNROLL
        for (int h = 0; h < n; h++)
            part[h] += odd[h];
}

/* scores[h][t] for n rows; LANES keys at a time, whose partial sums are folded together. Past the end: 0. */
ATTN_INLINE void
stored_scores(int n, enum attn_stored stored, const REAL *query, int64_t pitch, const struct stored_rows *key, int keys,
              const struct stored_rows *value, int64_t value_bytes, REAL *scores)
{
    for (int t = 0; t < keys; t += LANES) {
        vreal part[4][VECTOR_BYTES / sizeof(REAL)];
        for (int j = 0; j < LANES; j++) {
            vreal dot[4] = {{0}, {0}, {0}, {0}};
            if (t + j < keys) {
                attn_prefetch(value->row[t + j], value_bytes);
                stored_dot(n, stored, query, pitch, key->row[t + j], dot);
            }
            ATTN_UNROLL
            for (int h = 0; h < n; h++)
                part[h][j] = dot[h];
        }
        ATTN_UNROLL
        for (int h = 0; h < n; h++)
            v_store(scores + h * ATTN_BLOCK + t, v_sums(part[h]));
    }
}

/* `nc` vectors of columns of stored_values. */
ATTN_INLINE void
stored_columns(int n, int nc, enum attn_stored stored, const REAL *weights, const struct stored_rows *value, int64_t column, int keys, int64_t pitch,
               const REAL *decay, const struct stored_rows *key, REAL *output)
{
    int64_t size = stored_size(stored);
    int64_t at = column * size, ahead = key->ahead + column * size;
    vreal sum[4][4];
    ATTN_UNROLL
    for (int h = 0; h < n; h++)
        ATTN_UNROLL
        for (int i = 0; i < nc; i++)
            sum[h][i] = (vreal){0};
    for (int t = 0; t < keys; t++) {
        attn_prefetch(key->next[t] + ahead, nc * LANES * size);
        ATTN_UNROLL
        for (int i = 0; i < nc; i++) {
            vreal x = load_stored(value->row[t] + at + i * LANES * size, stored);
            ATTN_UNROLL
            for (int h = 0; h < n; h++)
                sum[h][i] += v_splat(weights[h * ATTN_BLOCK + t]) * x;
        }
    }
    ATTN_UNROLL
    for (int h = 0; h < n; h++)
        ATTN_UNROLL
        for (int i = 0; i < nc; i++) {
            REAL *o = output + h * pitch + column + i * LANES;
            v_store(o, v_load(o) * v_splat(decay[h]) + sum[h][i]);
        }
}

/* output[h] = output[h] decay + sum over the keys of weights[h][t] value t; the sum starts at 0. */
ATTN_INLINE void
stored_values(int n, enum attn_stored stored, const REAL *weights, const struct stored_rows *value, int keys, int64_t pitch, const REAL *decay,
              const struct stored_rows *key, REAL *output)
{
    int64_t c = 0;
    for (; c + 4 * LANES <= pitch; c += 4 * LANES)
        stored_columns(n, 4, stored, weights, value, c, keys, pitch, decay, key, output);
    for (; c < pitch; c += LANES)
        stored_columns(n, 1, stored, weights, value, c, keys, pitch, decay, key, output);
}

/* The usual head sizes are constants where the loops over the head are inlined: 5 % of the time of a decoding step. */
ATTN_INLINE void
row_scores_as(int n, enum attn_stored stored, const REAL *query, int64_t pitch, const struct stored_rows *key, int keys,
              const struct stored_rows *value, int64_t value_bytes, REAL *scores)
{
    if (pitch == 64)
        stored_scores(n, stored, query, 64, key, keys, value, value_bytes, scores);
    else if (pitch == 128)
        stored_scores(n, stored, query, 128, key, keys, value, value_bytes, scores);
    else
        stored_scores(n, stored, query, pitch, key, keys, value, value_bytes, scores);
}

ATTN_INLINE void
row_scores_n(int n, const REAL *query, int64_t pitch, const struct stored_rows *key, int keys, const struct stored_rows *value, int64_t value_bytes,
             REAL *scores)
{
#if REAL_BITS == 32
    if (key->stored == ATTN_STORED_FLOAT16) {
        row_scores_as(n, ATTN_STORED_FLOAT16, query, pitch, key, keys, value, value_bytes, scores);
        return;
    }
    if (key->stored == ATTN_STORED_BFLOAT16) {
        row_scores_as(n, ATTN_STORED_BFLOAT16, query, pitch, key, keys, value, value_bytes, scores);
        return;
    }
    if (key->stored == ATTN_STORED_INT8) {
        row_scores_as(n, ATTN_STORED_INT8, query, pitch, key, keys, value, value_bytes, scores);
        return;
    }
#endif
    row_scores_as(n, ATTN_STORED_REAL, query, pitch, key, keys, value, value_bytes, scores);
}

/* scores [rows][64]; four rows at a time. The value rows are asked for meanwhile, the first time. */
ATTN_NOINLINE void
row_scores(int rows, const REAL *query, int64_t pitch, const struct stored_rows *key, int keys, const struct stored_rows *value, int64_t value_pitch,
           REAL *scores)
{
    int64_t bytes = value_pitch * stored_size(value->stored);
    for (int h = 0; h < rows; h += 4, query += 4 * pitch, scores += 4 * ATTN_BLOCK, bytes = 0)
        switch (rows - h) {
        case 1:
            row_scores_n(1, query, pitch, key, keys, value, bytes, scores);
            break;
        case 2:
            row_scores_n(2, query, pitch, key, keys, value, bytes, scores);
            break;
        case 3:
            row_scores_n(3, query, pitch, key, keys, value, bytes, scores);
            break;
        default:
            row_scores_n(4, query, pitch, key, keys, value, bytes, scores);
        }
}

ATTN_INLINE void
row_values_n(int n, const REAL *weights, const struct stored_rows *value, int keys, int64_t pitch, const REAL *decay, const struct stored_rows *key,
             REAL *output)
{
#if REAL_BITS == 32
    if (value->stored == ATTN_STORED_FLOAT16) {
        stored_values(n, ATTN_STORED_FLOAT16, weights, value, keys, pitch, decay, key, output);
        return;
    }
    if (value->stored == ATTN_STORED_BFLOAT16) {
        stored_values(n, ATTN_STORED_BFLOAT16, weights, value, keys, pitch, decay, key, output);
        return;
    }
    if (value->stored == ATTN_STORED_INT8) {
        stored_values(n, ATTN_STORED_INT8, weights, value, keys, pitch, decay, key, output);
        return;
    }
#endif
    stored_values(n, ATTN_STORED_REAL, weights, value, keys, pitch, decay, key, output);
}

/* Four rows at a time. The next block's keys are asked for meanwhile. */
ATTN_NOINLINE void
row_values(int rows, const REAL *weights, const struct stored_rows *value, int keys, int64_t pitch, const REAL *decay, const struct stored_rows *key,
           REAL *output)
{
    for (int h = 0; h < rows; h += 4, weights += 4 * ATTN_BLOCK, output += 4 * pitch, decay += 4)
        switch (rows - h) {
        case 1:
            row_values_n(1, weights, value, keys, pitch, decay, key, output);
            break;
        case 2:
            row_values_n(2, weights, value, keys, pitch, decay, key, output);
            break;
        case 3:
            row_values_n(3, weights, value, keys, pitch, decay, key, output);
            break;
        default:
            row_values_n(4, weights, value, keys, pitch, decay, key, output);
        }
}

/* The same sums where values hold NaN or inf and rows do not see all keys: hidden terms are left out, not multiplied by 0. seen: word = row. */
ATTN_NOINLINE void
row_values_selected(int rows, const REAL *weights, const uint64_t *seen, const struct stored_rows *value, int keys, int64_t pitch, const REAL *decay,
                    REAL *output)
{
    int64_t size = stored_size(value->stored);
    for (int h = 0; h < rows; h++)
        for (int64_t c = 0; c < pitch; c += LANES) {
            vreal sum = {0};
            for (int t = 0; t < keys; t++)
                if (seen[h] >> t & 1)
                    sum += v_splat(weights[h * ATTN_BLOCK + t]) * load_stored(value->row[t] + c * size, value->stored);
            REAL *o = output + h * pitch + c;
            v_store(o, v_load(o) * v_splat(decay[h]) + sum);
        }
}

/* Whether no value of a block is NaN or inf: 0 times such a value is NaN, and stays it. */
static bool
rows_finite(const struct stored_rows *value, int keys, int64_t pitch)
{
    int64_t size = stored_size(value->stored);
    vreal zero = {0};
    for (int t = 0; t < keys; t++)
        for (int64_t c = 0; c < pitch; c += LANES)
            zero += load_stored(value->row[t] + c * size, value->stored) * (vreal){0};
    return !v_any(zero != zero);
}
