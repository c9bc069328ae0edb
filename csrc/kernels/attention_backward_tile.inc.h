/* attention_backward_tile.inc.h: the inner loops of the backward pass. Tiles lie as in the forward pass, [group][64 keys][width], lanes are queries.
 *
 * Of the five products, scores and grad_query are those of attention_tile.inc.h (grad_query is an output whose weights are T and whose values are the
 * keys). Here are dP, lanes being queries too, and the two sums over queries, where lanes are columns and what is summed is read as it lies. */
#ifndef ATTN_BACKWARD_TILE_NAMES
#define ATTN_BACKWARD_TILE_NAMES
#define tile_gradients SUFFIX(tile_gradients)
#define gradients_of SUFFIX(gradients_of)
#define group_gradients SUFFIX(group_gradients)
#define lane_sum SUFFIX(lane_sum)
#define tile_lanes SUFFIX(tile_lanes)
#define lanes_of SUFFIX(lanes_of)
#define lanes_by_1 SUFFIX(lanes_by_1)
#define lanes_by_2 SUFFIX(lanes_by_2)
#define lanes_by_4 SUFFIX(lanes_by_4)
#define lanes_seen SUFFIX(lanes_seen)
#define lanes_selected SUFFIX(lanes_selected)
#define sum_over_lanes SUFFIX(sum_over_lanes)
#endif

/* gradients[r][lane] = weights[r][lane] (start[lane] + value r . gradient of the output). Meanwhile the next values are asked for. */
ATTN_INLINE void
tile_gradients(int rows, int nv, const REAL *grad, int64_t width, const REAL *value, int64_t value_row, int64_t value_dim, const vreal *start,
               const REAL *weights, REAL *gradients)
{
    vreal sum[16][GROUP_VECTORS];
    ATTN_UNROLL
    for (int r = 0; r < rows; r++)
        ATTN_UNROLL
        for (int i = 0; i < nv; i++)
            sum[r][i] = start[i];
    for (int r = 0; r < rows; r++)
        for (int64_t d = 0; d < value_dim; d += 64 / (int64_t)sizeof(REAL))
            __builtin_prefetch(value + (rows + r) * value_row + d, 0, 3);
    tile_product(sum, rows, nv, value, value_row, 1, grad, width, value_dim);
    ATTN_UNROLL
    for (int r = 0; r < rows; r++)
        ATTN_UNROLL
        for (int i = 0; i < nv; i++)
            v_store(gradients + r * width + i * LANES, sum[r][i] * v_load(weights + r * width + i * LANES));
}

ATTN_INLINE void
gradients_of(int nv, const REAL *grad, int64_t width, const REAL *value, int64_t value_row, int64_t value_dim, int64_t keys, const vreal *start,
             const REAL *weights, REAL *gradients)
{
    const int rows = TILE_ROWS(nv);
    int64_t t = 0, whole = rows == 6 && keys % 6 == 2 && keys > 6 ? keys - 8 : keys;
    for (; t + rows <= whole; t += rows)
        tile_gradients(rows, nv, grad, width, value + t * value_row, value_row, value_dim, start, weights + t * width, gradients + t * width);
    for (; t + 4 <= keys; t += 4)
        tile_gradients(4, nv, grad, width, value + t * value_row, value_row, value_dim, start, weights + t * width, gradients + t * width);
    for (; t < keys; t++)
        tile_gradients(1, nv, grad, width, value + t * value_row, value_row, value_dim, start, weights + t * width, gradients + t * width);
}

ATTN_NOINLINE void
group_gradients(int nv, const REAL *grad, int64_t width, const REAL *value, int64_t value_row, int64_t value_dim, int64_t keys, const vreal *start,
                const REAL *weights, REAL *gradients)
{
    if (nv == GROUP_VECTORS)
        gradients_of(GROUP_VECTORS, grad, width, value, value_row, value_dim, keys, start, weights, gradients);
    else if (nv == 2)
        gradients_of(2, grad, width, value, value_row, value_dim, keys, start, weights, gradients);
    else
        gradients_of(1, grad, width, value, value_row, value_dim, keys, start, weights, gradients);
}

/* sums[t][c] += sum over the lanes of a row block of tile[t][lane] y[lane][c], c = 0 ... n - 1. y and sums have whole vectors, `pitch` apart, 0 past n. */
struct lane_sum {
    const REAL *tile;
    int count, keys;      /* lanes, keys of the tile */
    const uint64_t *seen; /* word = key, bit = lane; NULL: all */
    const REAL *y;
    int64_t n, pitch;
    REAL *sums;
};

/* One tile of keys t ... t + rows - 1 and `nv` vectors of columns from c on; lanes first ... end - 1. The sum starts at 0 and is added once. */
ATTN_INLINE void
tile_lanes(int rows, int nv, const struct lane_sum *p, int t, int64_t c, int first, int end)
{
    vreal sum[16][GROUP_VECTORS];
    ATTN_UNROLL
    for (int r = 0; r < rows; r++)
        ATTN_UNROLL
        for (int i = 0; i < nv; i++)
            sum[r][i] = (vreal){0};
    for (int lane = 0; lane < end;) {
        int width = group_vectors(p->count, lane) * LANES, from = first > lane ? first : lane, to = end < lane + width ? end : lane + width;
        if (from < to)
            tile_product(sum, rows, nv, p->tile + lane * ATTN_BLOCK + t * width + (from - lane), width, 1, p->y + from * p->pitch + c, p->pitch,
                         to - from);
        lane += width;
    }
    REAL *sums = p->sums + t * p->pitch + c;
    ATTN_UNROLL
    for (int r = 0; r < rows; r++)
        ATTN_UNROLL
        for (int i = 0; i < nv; i++) {
            REAL *s = sums + r * p->pitch + i * LANES;
            v_store(s, v_load(s) + sum[r][i]);
        }
}

/* The lanes that see one of the keys t ... t + rows - 1 lie in first ... end - 1; false: there are none. */
ATTN_INLINE bool
lanes_seen(const struct lane_sum *p, int t, int rows, int *first, int *end)
{
    uint64_t any = 0;
    *first = 0;
    *end = p->count;
    if (!p->seen)
        return true;
    for (int r = 0; r < rows; r++)
        any |= p->seen[t + r];
    any &= attn_bit_range(0, p->count);
    if (!any)
        return false;
    *first = __builtin_ctzll(any);
    *end = 64 - __builtin_clzll(any);
    return true;
}

/* All keys, `nv` vectors of columns. */
ATTN_INLINE void
lanes_of(int nv, const struct lane_sum *p, int64_t c)
{
    const int rows = TILE_ROWS(nv);
    int t = 0, first, end;
    for (; t + rows <= p->keys; t += rows)
        if (lanes_seen(p, t, rows, &first, &end))
            tile_lanes(rows, nv, p, t, c, first, end);
    for (; t + 4 <= p->keys; t += 4)
        if (lanes_seen(p, t, 4, &first, &end))
            tile_lanes(4, nv, p, t, c, first, end);
    for (; t < p->keys; t++)
        if (lanes_seen(p, t, 1, &first, &end))
            tile_lanes(1, nv, p, t, c, first, end);
}

#ifdef ATTN_ISA_AVX512
ATTN_NOINLINE void
lanes_by_4(const struct lane_sum *p, int64_t c)
{
    lanes_of(4, p, c);
}
#endif

ATTN_NOINLINE void
lanes_by_2(const struct lane_sum *p, int64_t c)
{
    lanes_of(2, p, c);
}

ATTN_NOINLINE void
lanes_by_1(const struct lane_sum *p, int64_t c)
{
    lanes_of(1, p, c);
}

/* The same sums where y holds NaN or inf: what a lane does not see is left out, not multiplied by 0. */
static void
lanes_selected(const struct lane_sum *p)
{
    for (int t = 0; t < p->keys; t++)
        for (int64_t c = 0; c < p->n; c += LANES) {
            vreal sum = {0};
            for (int lane = 0; lane < p->count;) {
                int width = group_vectors(p->count, lane) * LANES, end = (int)attn_min(p->count, lane + width);
                for (int i = lane; i < end; i++)
                    if (p->seen[t] >> i & 1)
                        sum += v_splat(p->tile[lane * ATTN_BLOCK + t * width + (i - lane)]) * v_load(p->y + i * p->pitch + c);
                lane += width;
            }
            REAL *s = p->sums + t * p->pitch + c;
            v_store(s, v_load(s) + sum);
        }
}

/* finite: no element of y is NaN or inf. */
static void
sum_over_lanes(const struct lane_sum *p, bool finite)
{
    int64_t c = 0;
    if (p->seen && !finite) {
        lanes_selected(p);
        return;
    }
#ifdef ATTN_ISA_AVX512
    for (; c + 3 * LANES < p->n; c += 4 * LANES)
        lanes_by_4(p, c);
#endif
    for (; c + LANES < p->n; c += 2 * LANES)
        lanes_by_2(p, c);
    for (; c < p->n; c += LANES)
        lanes_by_1(p, c);
}
