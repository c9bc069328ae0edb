/* attention_tile.inc.h: the inner loops: scores, weights and output of one group of queries and one block of keys.
 *
 * Lanes are queries. A group is `nv` vectors of them (1, 2 or 4; GROUP_VECTORS at the most); query and output are held transposed, [E][width] and
 * [D][width], so that keys and values are read in place by scalar broadcasts and nothing of them is packed. Every lane is computed by the
 * same operations in the same order whatever its neighbours, the tile and the group: a score is one chain over E, an output one chain over at
 * most 64 keys, started at 0 and added once. */
#ifndef ATTN_TILE_NAMES
#define ATTN_TILE_NAMES
#define row_at SUFFIX(row_at)
#define score_ends SUFFIX(score_ends)
#define tile_product SUFFIX(tile_product)
#define tile_scores SUFFIX(tile_scores)
#define tile_output SUFFIX(tile_output)
#define scores_of SUFFIX(scores_of)
#define scores_by_4 SUFFIX(scores_by_4)
#define scores_by_2 SUFFIX(scores_by_2)
#define scores_by_1 SUFFIX(scores_by_1)
#define output_of SUFFIX(output_of)
#define output_by_4 SUFFIX(output_by_4)
#define output_by_2 SUFFIX(output_by_2)
#define output_by_1 SUFFIX(output_by_1)
#define output_selected SUFFIX(output_selected)
#define weigh SUFFIX(weigh)
#define weights_by SUFFIX(weights_by)
#define weights_of SUFFIX(weights_of)
#define group_scores SUFFIX(group_scores)
#define group_output SUFFIX(group_output)

/* Accumulators of a tile: as many as leave room for one row of vectors and a broadcast: 24 of 32 registers, 12 of 16; fewer where a product needs a
 * register of its own, without fused multiply-adds. */
#ifdef ATTN_ISA_AVX512
enum { GROUP_VECTORS = 4 };
#define TILE_ROWS(nv) ((nv) == 4 ? 6 : (nv) == 2 ? 12 : 16)
#elif defined ATTN_ISA_AVX2
enum { GROUP_VECTORS = 2 };
#define TILE_ROWS(nv) ((nv) == 2 ? 6 : 12)
#else
enum { GROUP_VECTORS = 2 };
#define TILE_ROWS(nv) ((nv) == 2 ? 4 : 6)
#endif
#endif

/* sum[r][i] += A[r][t] B[t][lanes of vector i], t = 0 ... steps - 1 in order. A is read at a[r a_row + t a_step], B at b[t width + i LANES]. */
ATTN_INLINE void
tile_product(vreal (*sum)[GROUP_VECTORS], int rows, int nv, const REAL *a, int64_t a_row, int64_t a_step, const REAL *b, int64_t width, int64_t steps)
{
    for (int64_t t = 0; t < steps; t++) {
        vreal lane[GROUP_VECTORS];
    ATTN_UNROLL
        for (int i = 0; i < nv; i++)
            lane[i] = v_load(b + t * width + i * LANES);
        ATTN_UNROLL
        for (int r = 0; r < rows; r++) {
            vreal x = v_splat(a[r * a_row + t * a_step]);
            ATTN_UNROLL
            for (int i = 0; i < nv; i++)
                sum[r][i] += x * lane[i];
        }
    }
}

/* What is done to products before they are stored as scores, in this order; NULL: not done. Key t of a segment, lane i: */
struct score_ends {
    const REAL *diagonal; /* + diagonal[i - t] */
    const REAL *added;    /* + added[t width + i] */
    const uint64_t *seen; /* -inf where bit shift + i of seen[t] is clear, whatever the score is */
    int shift;
};

/* scores[r][lane] = key r . query, and what `ends` says of keys t + r; top follows their maximum. Meanwhile the next keys are asked for, and the
 * rows of `soon`, one for each key. */
ATTN_INLINE void
tile_scores(int rows, int nv, const REAL *query, int64_t width, const REAL *key, int64_t key_row, int64_t head_dim, const REAL *soon, int64_t soon_row,
            const struct score_ends *ends, int64_t t, REAL *scores, vreal *top)
{
    vreal sum[16][GROUP_VECTORS];
    ATTN_UNROLL
    for (int r = 0; r < rows; r++)
        ATTN_UNROLL
        for (int i = 0; i < nv; i++)
            sum[r][i] = (vreal){0};
    for (int r = 0; r < rows; r++)
        for (int64_t d = 0; d < head_dim; d += 64 / (int64_t)sizeof(REAL))
            __builtin_prefetch(key + (rows + r) * key_row + d, 0, 3);
    for (int r = 0; soon && r < rows; r++)
        for (int64_t d = 0; d < head_dim; d += 64 / (int64_t)sizeof(REAL))
            __builtin_prefetch(soon + r * soon_row + d, 0, 2);
    tile_product(sum, rows, nv, key, key_row, 1, query, width, head_dim);
    if (ends->diagonal)
        ATTN_UNROLL
        for (int r = 0; r < rows; r++)
            ATTN_UNROLL
            for (int i = 0; i < nv; i++)
                sum[r][i] += v_loadu(ends->diagonal + i * LANES - (t + r));
    if (ends->added)
        ATTN_UNROLL
        for (int r = 0; r < rows; r++)
            ATTN_UNROLL
            for (int i = 0; i < nv; i++)
                sum[r][i] += v_load(ends->added + (t + r) * width + i * LANES);
    if (ends->seen)
        ATTN_UNROLL
        for (int r = 0; r < rows; r++)
            ATTN_UNROLL
            for (int i = 0; i < nv; i++)
                sum[r][i] = v_select(v_lane_bits(ends->seen[t + r] >> (ends->shift + i * LANES)), sum[r][i], v_splat(-REAL_INFINITY));
    ATTN_UNROLL
    for (int r = 0; r < rows; r++)
        ATTN_UNROLL
        for (int i = 0; i < nv; i++) {
            v_store(scores + r * width + i * LANES, sum[r][i]);
            top[i] = v_max(top[i], sum[r][i]);
        }
}

/* output[c][lane] = output[c][lane] decay + sum over keys of value[key][c] weight[key][lane], c = 0 ... columns - 1. */
ATTN_INLINE void
tile_output(int columns, int nv, const REAL *weights, int64_t width, const REAL *value, int64_t value_row, int64_t keys, const vreal *decay,
            REAL *output)
{
    vreal sum[16][GROUP_VECTORS];
    ATTN_UNROLL
    for (int c = 0; c < columns; c++)
        ATTN_UNROLL
        for (int i = 0; i < nv; i++)
            sum[c][i] = (vreal){0};
    tile_product(sum, columns, nv, value, 1, value_row, weights, width, keys);
    ATTN_UNROLL
    for (int c = 0; c < columns; c++)
        ATTN_UNROLL
        for (int i = 0; i < nv; i++) {
            REAL *o = output + c * width + i * LANES;
            v_store(o, v_load(o) * decay[i] + sum[c][i]);
        }
}

/* A row that may be absent altogether. */
ATTN_INLINE const REAL *
row_at(const REAL *rows, int64_t offset)
{
    return rows ? rows + offset : NULL;
}

/* All keys of a block, in tiles: whole ones, then what is left in tiles of 8, 4, 2 and 1. A rest of 2 behind a tile of 6 becomes two tiles of 4. */
ATTN_INLINE void
scores_of(int nv, const REAL *query, int64_t width, const REAL *key, int64_t key_row, int64_t head_dim, int64_t keys, const REAL *soon,
          int64_t soon_row, const struct score_ends *ends, REAL *scores, vreal *top)
{
    const int rows = TILE_ROWS(nv);
    int64_t t = 0, whole = rows == 6 && keys % 6 == 2 && keys > 6 ? keys - 8 : keys;
    vreal highest[GROUP_VECTORS];
    ATTN_UNROLL
    for (int i = 0; i < nv; i++)
        highest[i] = top[i];
    for (; t + rows <= whole; t += rows)
        tile_scores(rows, nv, query, width, key + t * key_row, key_row, head_dim, row_at(soon, t * soon_row), soon_row,
                    ends, t, scores + t * width, highest);
    for (; rows > 8 && t + 8 <= keys; t += 8)
        tile_scores(8, nv, query, width, key + t * key_row, key_row, head_dim, row_at(soon, t * soon_row), soon_row,
                    ends, t, scores + t * width, highest);
    for (; t + 4 <= keys; t += 4)
        tile_scores(4, nv, query, width, key + t * key_row, key_row, head_dim, row_at(soon, t * soon_row), soon_row,
                    ends, t, scores + t * width, highest);
    for (; t + 2 <= keys; t += 2)
        tile_scores(2, nv, query, width, key + t * key_row, key_row, head_dim, row_at(soon, t * soon_row), soon_row,
                    ends, t, scores + t * width, highest);
    for (; t < keys; t++)
        tile_scores(1, nv, query, width, key + t * key_row, key_row, head_dim, row_at(soon, t * soon_row), soon_row,
                    ends, t, scores + t * width, highest);
    ATTN_UNROLL
    for (int i = 0; i < nv; i++)
        top[i] = highest[i];
}

ATTN_INLINE void
output_of(int nv, const REAL *weights, int64_t width, const REAL *value, int64_t value_row, int64_t keys, const vreal *decay, int64_t value_dim,
          REAL *output)
{
    const int columns = TILE_ROWS(nv);
    int64_t c = 0, whole = columns == 6 && value_dim % 6 == 2 && value_dim > 6 ? value_dim - 8 : value_dim;
    for (; c + columns <= whole; c += columns)
        tile_output(columns, nv, weights, width, value + c, value_row, keys, decay, output + c * width);
    for (; columns > 8 && c + 8 <= value_dim; c += 8)
        tile_output(8, nv, weights, width, value + c, value_row, keys, decay, output + c * width);
    for (; c + 4 <= value_dim; c += 4)
        tile_output(4, nv, weights, width, value + c, value_row, keys, decay, output + c * width);
    for (; c + 2 <= value_dim; c += 2)
        tile_output(2, nv, weights, width, value + c, value_row, keys, decay, output + c * width);
    for (; c < value_dim; c++)
        tile_output(1, nv, weights, width, value + c, value_row, keys, decay, output + c * width);
}

ATTN_NOINLINE void
scores_by_1(const REAL *query, int64_t width, const REAL *key, int64_t key_row, int64_t head_dim, int64_t keys, const REAL *soon,
          int64_t soon_row, const struct score_ends *ends, REAL *scores, vreal *top)
{
    scores_of(1, query, width, key, key_row, head_dim, keys, soon, soon_row, ends, scores, top);
}

ATTN_NOINLINE void
scores_by_2(const REAL *query, int64_t width, const REAL *key, int64_t key_row, int64_t head_dim, int64_t keys, const REAL *soon,
          int64_t soon_row, const struct score_ends *ends, REAL *scores, vreal *top)
{
    scores_of(2, query, width, key, key_row, head_dim, keys, soon, soon_row, ends, scores, top);
}

ATTN_NOINLINE void
output_by_1(const REAL *weights, int64_t width, const REAL *value, int64_t value_row, int64_t keys, const vreal *decay, int64_t value_dim,
            REAL *output)
{
    output_of(1, weights, width, value, value_row, keys, decay, value_dim, output);
}

ATTN_NOINLINE void
output_by_2(const REAL *weights, int64_t width, const REAL *value, int64_t value_row, int64_t keys, const vreal *decay, int64_t value_dim,
            REAL *output)
{
    output_of(2, weights, width, value, value_row, keys, decay, value_dim, output);
}

#ifdef ATTN_ISA_AVX512
ATTN_NOINLINE void
scores_by_4(const REAL *query, int64_t width, const REAL *key, int64_t key_row, int64_t head_dim, int64_t keys, const REAL *soon,
          int64_t soon_row, const struct score_ends *ends, REAL *scores, vreal *top)
{
    scores_of(4, query, width, key, key_row, head_dim, keys, soon, soon_row, ends, scores, top);
}

ATTN_NOINLINE void
output_by_4(const REAL *weights, int64_t width, const REAL *value, int64_t value_row, int64_t keys, const vreal *decay, int64_t value_dim,
            REAL *output)
{
    output_of(4, weights, width, value, value_row, keys, decay, value_dim, output);
}
#endif

/* Scores of `nv` vectors of a group whose rows are `width` apart; pointers stand at the first of these vectors. */
ATTN_INLINE void
group_scores(int nv, const REAL *query, int64_t width, const REAL *key, int64_t key_row, int64_t head_dim, int64_t keys, const REAL *soon,
          int64_t soon_row, const struct score_ends *ends, REAL *scores, vreal *top)
{
#ifdef ATTN_ISA_AVX512
    if (nv == 4)
        scores_by_4(query, width, key, key_row, head_dim, keys, soon, soon_row, ends, scores, top);
    else
#endif
    if (nv == 2)
        scores_by_2(query, width, key, key_row, head_dim, keys, soon, soon_row, ends, scores, top);
    else
        scores_by_1(query, width, key, key_row, head_dim, keys, soon, soon_row, ends, scores, top);
}

ATTN_INLINE void
group_output(int nv, const REAL *weights, int64_t width, const REAL *value, int64_t value_row, int64_t keys, const vreal *decay, int64_t value_dim,
             REAL *output)
{
#ifdef ATTN_ISA_AVX512
    if (nv == 4)
        output_by_4(weights, width, value, value_row, keys, decay, value_dim, output);
    else
#endif
    if (nv == 2)
        output_by_2(weights, width, value, value_row, keys, decay, value_dim, output);
    else
        output_by_1(weights, width, value, value_row, keys, decay, value_dim, output);
}

/* The same sum where the values hold NaN or inf and some lanes do not see some keys: 0 NaN is NaN, so a hidden value becomes 0, as its weight is.
 * Were the sums selected, clang would select the products instead and no longer contract. visible[key] has a bit for each lane, the first one of
 * this group at `shift`. Visible terms are added in the same order as above. */
ATTN_NOINLINE void
output_selected(int nv, const REAL *weights, int64_t width, const uint64_t *visible, int shift, const REAL *value, int64_t value_row, int64_t keys,
                const vreal *decay, int64_t value_dim, REAL *output)
{
    for (int i = 0; i < nv; i++)
        for (int64_t c = 0; c < value_dim; c++) {
            vreal sum = {0};
            for (int64_t t = 0; t < keys; t++) {
                vint seen = v_lane_bits(visible[t] >> (shift + i * LANES));
                sum += v_select(seen, v_splat(value[t * value_row + c]), (vreal){0}) * v_load(weights + t * width + i * LANES);
            }
            REAL *o = output + c * width + i * LANES;
            v_store(o, v_load(o) * decay[i] + sum);
        }
}

/* One weight 2^(score - base) for each lane, in place. */
ATTN_INLINE vreal
weigh(REAL *score, vreal base)
{
    vreal weight = v_exp2_weight(v_load(score) - base);
    v_store(score, weight);
    return weight;
}

/* Two sums for each lane, over the even and the odd keys: half the chain, and half its error. */
ATTN_INLINE void
weights_by(int nv, REAL *scores, int64_t width, int64_t keys, const vreal *base, vreal *sum, vreal *own)
{
    vreal even[GROUP_VECTORS], odd[GROUP_VECTORS];
    int64_t t = 0;
    ATTN_UNROLL
    for (int i = 0; i < nv; i++)
        even[i] = odd[i] = (vreal){0};
    for (; t + 2 <= keys; t += 2)
        ATTN_UNROLL
        for (int i = 0; i < nv; i++) {
            even[i] += weigh(scores + t * width + i * LANES, base[i]);
            odd[i] += weigh(scores + (t + 1) * width + i * LANES, base[i]);
        }
    if (t < keys)
        ATTN_UNROLL
        for (int i = 0; i < nv; i++)
            even[i] += weigh(scores + t * width + i * LANES, base[i]);
    ATTN_UNROLL
    for (int i = 0; i < nv; i++) {
        vreal both = even[i] + odd[i];
        sum[i] += both;
        own[i] = both;
    }
}

/* Scores become weights 2^(score - base); each lane's sum of them is `own`, and is added to `sum`. */
ATTN_NOINLINE void
weights_of(int nv, REAL *scores, int64_t width, int64_t keys, const vreal *base, vreal *sum, vreal *own)
{
    if (nv == 1)
        weights_by(1, scores, width, keys, base, sum, own);
    else if (nv == 2)
        weights_by(2, scores, width, keys, base, sum, own);
    else
        weights_by(GROUP_VECTORS, scores, width, keys, base, sum, own);
}
