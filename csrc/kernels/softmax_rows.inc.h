/* softmax_rows.inc.h: rows of n numbers side by side in memory: maximum, sum of exponentials, result.
 *
 * Element i is added to lane i mod LANES of accumulator (i / LANES) mod 4, a block of 64 vectors at a time, the lanes of a row by halves: an order
 * that depends on n only, however the row came here. No accumulator takes more than 64 terms before it is added to another. */
#ifndef ATTN_SOFTMAX_ROWS_NAMES
#define ATTN_SOFTMAX_ROWS_NAMES
#define v_load_part SUFFIX(v_load_part)
#define v_store_part SUFFIX(v_store_part)
#define v_stream SUFFIX(v_stream)
#define softmax_total SUFFIX(softmax_total)
#define row_highest SUFFIX(row_highest)
#define row_terms SUFFIX(row_terms)
#define row_results SUFFIX(row_results)
#define row_holds_nan SUFFIX(row_holds_nan)
#define softmax_result SUFFIX(softmax_result)
#define softmax_total_of SUFFIX(softmax_total_of)
#define softmax_merge SUFFIX(softmax_merge)
#define softmax_base SUFFIX(softmax_base)
#define softmax_factors SUFFIX(softmax_factors)

static inline void
attn_stores_done(void)
{
#if defined __SSE2__
    _mm_sfence(); /* orders streaming stores before whatever tells others that the task is done */
#endif
}
#endif

/* The maximum m of a row, and the sum of exp(x - m), times 2^64 (see v_exp_lifted); -inf and 0 where nothing is kept. */
struct softmax_total {
    REAL highest, sum;
};

/* The first `count` < LANES elements from p, `fill` in the other lanes. */
ATTN_INLINE vreal
v_load_part(const REAL *p, int64_t count, vreal fill)
{
#if defined ATTN_ISA_AVX512 && REAL_BITS == 32
    return (vreal)_mm512_mask_loadu_ps((__m512)fill, (__mmask16)((1u << count) - 1), p);
#elif defined ATTN_ISA_AVX512
    return (vreal)_mm512_mask_loadu_pd((__m512d)fill, (__mmask8)((1u << count) - 1), p);
#elif defined ATTN_ISA_AVX2 && REAL_BITS == 32
    vint mask = v_lane_bits((1u << count) - 1);
    return v_select(mask, (vreal)_mm256_maskload_ps(p, (__m256i)mask), fill);
#elif defined ATTN_ISA_AVX2
    vint mask = v_lane_bits((1u << count) - 1);
    return v_select(mask, (vreal)_mm256_maskload_pd(p, (__m256i)mask), fill);
#else
    for (int64_t i = 0; i < count; i++)
        fill[i] = p[i];
    return fill;
#endif
}

/* The first `count` < LANES lanes to p. */
ATTN_INLINE void
v_store_part(REAL *p, int64_t count, vreal x)
{
#if defined ATTN_ISA_AVX512 && REAL_BITS == 32
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)x);
#elif defined ATTN_ISA_AVX512
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << count) - 1), (__m512d)x);
#elif defined ATTN_ISA_AVX2 && REAL_BITS == 32
    _mm256_maskstore_ps(p, (__m256i)v_lane_bits((1u << count) - 1), (__m256)x);
#elif defined ATTN_ISA_AVX2
    _mm256_maskstore_pd(p, (__m256i)v_lane_bits((1u << count) - 1), (__m256d)x);
#else
    for (int64_t i = 0; i < count; i++)
        p[i] = x[i];
#endif
}

/* A store past the caches, to an address that is a multiple of VECTOR_BYTES. */
ATTN_INLINE void
v_stream(REAL *p, vreal x)
{
#if defined ATTN_ISA_AVX512
    _mm512_stream_si512((__m512i *)p, (__m512i)x);
#elif defined ATTN_ISA_AVX2
    _mm256_stream_si256((__m256i *)p, (__m256i)x);
#elif defined __SSE2__
    _mm_stream_si128((__m128i *)p, (__m128i)x);
#else
    v_store(p, x);
#endif
}

/* The largest of a row, lane by lane; NaN does not count. */
ATTN_INLINE vreal
row_highest(const REAL *x, int64_t n)
{
    const vreal nothing = v_splat(-REAL_INFINITY);
    vreal top[8] = {nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing};
    int64_t i = 0;
    for (; i + 8 * LANES <= n; i += 8 * LANES)
    ATTN_UNROLL
        for (int u = 0; u < 8; u++)
            top[u] = v_max(v_loadu(x + i + u * LANES), top[u]);
    ATTN_UNROLL
    for (int u = 0; u < 4; u++)
        top[u] = v_max(top[u + 4], top[u]);
    for (; i + LANES <= n; i += LANES)
        top[0] = v_max(v_loadu(x + i), top[0]);
    if (i < n)
        top[1] = v_max(v_load_part(x + i, n - i, nothing), top[1]);
    return v_max(v_max(top[0], top[1]), v_max(top[2], top[3]));
}

/* The sum of exp(x - base) 2^64, lane by lane; the terms go to e if `stored`. Meanwhile as many numbers are asked for: at `ahead`, to be read, and
 * at y, to be written. */
ATTN_INLINE vreal
row_terms(const REAL *x, int64_t n, vreal base, REAL *e, bool stored, const REAL *ahead, const REAL *y)
{
    vreal sum = {0};
    int64_t i = 0;
    while (i + 4 * LANES <= n) {
        int64_t end = attn_min(i + 64 * LANES, n - n % (4 * LANES));
        vreal part[4] = {{0}, {0}, {0}, {0}};
        for (; i < end; i += 4 * LANES)
            ATTN_UNROLL
            for (int u = 0; u < 4; u++) {
                vreal p = v_exp_lifted(v_loadu(x + i + u * LANES) - base);
                if (u * VECTOR_BYTES % 64 == 0) {
                    __builtin_prefetch(ahead + i + u * LANES, 0, 3);
                    if (y)
                        __builtin_prefetch(y + i + u * LANES, 1, 3);
                }
                if (stored)
                    v_storeu(e + i + u * LANES, p);
                part[u] += p;
            }
        sum += (part[0] + part[1]) + (part[2] + part[3]);
    }
    for (; i < n; i += LANES) {
        vreal p = v_exp_lifted((n - i < LANES ? v_load_part(x + i, n - i, v_splat(-REAL_INFINITY)) : v_loadu(x + i)) - base);
        if (stored && n - i < LANES)
            v_store_part(e + i, n - i, p);
        else if (stored)
            v_storeu(e + i, p);
        sum += p;
    }
    return sum;
}

/* One vector of results. softmax: terms e times `factor`; log_softmax: x less the maximum (`base`), less the logarithm of the sum (`factor`). */
ATTN_INLINE vreal
softmax_result(enum attn_softmax_what what, vreal source, vreal base, vreal factor)
{
    return what == ATTN_SOFTMAX ? source * factor : (source - base) - factor;
}

/* y = the results of a row of terms (softmax) or of x (log_softmax); y may be the source. */
ATTN_INLINE void
row_results(enum attn_softmax_what what, const REAL *source, int64_t n, vreal base, vreal factor, REAL *y, bool stream)
{
    int64_t i = n < 4 * LANES ? 0 : -(int64_t)((uintptr_t)y / sizeof(REAL)) & (LANES - 1); /* stores that straddle cache lines are slow */
    if (i > 0)
        v_store_part(y, i, softmax_result(what, v_loadu(source), base, factor));
    if (stream && n >= 4 * LANES)
        for (; i + LANES <= n; i += LANES)
            v_stream(y + i, softmax_result(what, v_loadu(source + i), base, factor));
    else
        for (; i + LANES <= n; i += LANES)
            v_storeu(y + i, softmax_result(what, v_loadu(source + i), base, factor));
    if (i < n)
        v_store_part(y + i, n - i, softmax_result(what, v_load_part(source + i, n - i, base), base, factor));
}

/* Whether NaN is among n numbers: asked only where the maximum is +inf. */
ATTN_NOINLINE bool
row_holds_nan(const REAL *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (x[i] != x[i])
            return true;
    return false;
}

/* What a block's maximum and sum say together. A maximum of +inf makes the sum NaN; it becomes +inf again, unless a NaN was among the numbers. */
ATTN_INLINE struct softmax_total
softmax_total_of(REAL highest, REAL sum, const REAL *x, int64_t n)
{
    if (highest == REAL_INFINITY)
        sum = row_holds_nan(x, n) ? (REAL)__builtin_nan("") : REAL_INFINITY;
    return (struct softmax_total){highest, sum};
}

/* Of two blocks, as if they were one. A NaN in either sum stays; a block without anything kept has weight exp(-inf) = 0. */
ATTN_NOINLINE struct softmax_total
softmax_merge(struct softmax_total a, struct softmax_total b)
{
    REAL top = a.highest > b.highest ? a.highest : b.highest, base = top == -REAL_INFINITY ? 0 : top;
    if (top == REAL_INFINITY)
        return (struct softmax_total){top, a.sum + b.sum};
    vreal weight = {a.highest - base, b.highest - base};
    weight = v_exp(weight);
    return (struct softmax_total){top, a.sum * weight[0] + b.sum * weight[1]};
}

/* What is subtracted from the numbers: -inf - -inf would be NaN. */
ATTN_INLINE vreal
softmax_base(vreal highest)
{
    return v_select(highest == v_splat(-REAL_INFINITY), (vreal){0}, highest);
}

/* Lane by lane: what row_results needs (base and factor), or, for logsumexp, the result itself in `factor`.
 * Not inlined: gcc 12 fails on it (an internal error in gimple-isel) inside loops that it vectorises for SSE2. */
ATTN_NOINLINE void
softmax_factors(enum attn_softmax_what what, vreal highest, vreal sum, vreal *base, vreal *factor)
{
    vint endless = highest == v_splat(REAL_INFINITY);
    *base = softmax_base(highest);
    if (what == ATTN_SOFTMAX)
        *factor = v_splat(1) / sum;
    else
        *factor = v_log(sum * v_splat((REAL)0x1p-64));
    if (what == ATTN_LOGSUMEXP)
        *factor = v_select(endless, sum, highest + *factor);
    else
        *factor = v_select(endless, v_splat((REAL)__builtin_nan("")), v_select(sum == (vreal){0}, (vreal){0}, *factor));
}
