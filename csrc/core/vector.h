/* vector.h: a vector of REAL and the few operations that differ between instruction sets. Included once per REAL, without a guard.
 *
 * Given      REAL (float or double), SUFFIX(name), REAL_BITS (32 or 64), VECTOR_BYTES (64, 32 or 16),
 *            one of ATTN_ISA_AVX512, ATTN_ISA_AVX2, ATTN_ISA_BASELINE
 * Defines    vreal, vint (lane masks: 0 or -1), LANES and the v_ functions below, all always inlined into the level's own code.
 * + - * / and comparisons are those of GNU vectors. A scalar operand is widened with v_splat: a bare scalar would be converted first. */

#define LANES ((int)(VECTOR_BYTES / sizeof(REAL)))
#ifndef ATTN_VECTOR_NAMES
#define ATTN_VECTOR_NAMES
#define ATTN_INLINE static inline __attribute__((always_inline, unused))
#define ATTN_NOINLINE static __attribute__((noinline, unused))
#define ATTN_PRAGMA(x) _Pragma(#x)
#ifdef __clang__
#define ATTN_UNROLL ATTN_PRAGMA(clang loop unroll(full))
#define ATTN_UNROLL_4 ATTN_PRAGMA(clang loop unroll_count(4))
#else
#define ATTN_UNROLL ATTN_PRAGMA(GCC unroll 32)
#define ATTN_UNROLL_4 ATTN_PRAGMA(GCC unroll 4)
#endif
#define vreal SUFFIX(vreal)
#define vreal_unaligned SUFFIX(vreal_unaligned)
#define vint SUFFIX(vint)
#define lane_int SUFFIX(lane_int)
#define v_splat SUFFIX(v_splat)
#define v_isplat SUFFIX(v_isplat)
#define v_load SUFFIX(v_load)
#define v_store SUFFIX(v_store)
#define v_loadu SUFFIX(v_loadu)
#define v_storeu SUFFIX(v_storeu)
#define v_max SUFFIX(v_max)
#define v_min SUFFIX(v_min)
#define v_round SUFFIX(v_round)
#define v_select SUFFIX(v_select)
#define v_lane_bits SUFFIX(v_lane_bits)
#define v_abs SUFFIX(v_abs)
#define v_mask_to_bits SUFFIX(v_mask_to_bits)
#define v_any SUFFIX(v_any)
#define v_transpose SUFFIX(v_transpose)
#define v_sums SUFFIX(v_sums)
#define v_interleave_low SUFFIX(v_interleave_low)
#define v_interleave_high SUFFIX(v_interleave_high)
#define v_fold SUFFIX(v_fold)
#define v_behind SUFFIX(v_behind)
#define v_sum SUFFIX(v_sum)
#define v_highest SUFFIX(v_highest)
#endif

#undef REAL_MAX
#undef REAL_MANTISSA
#undef REAL_EXPONENT_BIAS
#undef REAL_INFINITY
#undef LOG2E
#undef LOG2E_LONG
#undef LN2
#if REAL_BITS == 32
#define REAL_MAX __FLT_MAX__
#define REAL_MANTISSA 23
#define REAL_EXPONENT_BIAS 127
typedef int32_t lane_int;
#else
#define REAL_MAX __DBL_MAX__
#define REAL_MANTISSA 52
#define REAL_EXPONENT_BIAS 1023
typedef int64_t lane_int;
#endif
#define REAL_INFINITY ((REAL)__builtin_inf())
#define LOG2E 1.4426950408889634074 /* log2(e) */
#define LOG2E_LONG 1.44269504088896340735992468100189214L
#define LN2 0.69314718055994530942  /* ln 2 */

typedef REAL vreal __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef REAL vreal_unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef lane_int vint __attribute__((vector_size(VECTOR_BYTES), may_alias));

ATTN_INLINE vreal
v_splat(REAL x)
{
    return x - (vreal){0};
}

ATTN_INLINE vint
v_isplat(lane_int x)
{
    return x - (vint){0};
}

ATTN_INLINE vreal
v_load(const REAL *p)
{
    return *(const vreal *)p;
}

ATTN_INLINE void
v_store(REAL *p, vreal x)
{
    *(vreal *)p = x;
}

ATTN_INLINE vreal
v_loadu(const REAL *p)
{
    return *(const vreal_unaligned *)p;
}

ATTN_INLINE void
v_storeu(REAL *p, vreal x)
{
    *(vreal_unaligned *)p = x;
}

/* mask ? a : b, lane by lane; what is not chosen is not used in any way, so NaN there is harmless. */
ATTN_INLINE vreal
v_select(vint mask, vreal a, vreal b)
{
    return (vreal)((mask & (vint)a) | (~mask & (vint)b));
}

ATTN_INLINE vreal
v_abs(vreal x)
{
    return (vreal)((vint)x & ~(vint)v_splat((REAL)-0.0));
}

/* The larger; b where either is NaN. */
ATTN_INLINE vreal
v_max(vreal a, vreal b)
{
#if defined ATTN_ISA_AVX512 && REAL_BITS == 32
    return (vreal)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined ATTN_ISA_AVX512
    return (vreal)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined ATTN_ISA_AVX2 && REAL_BITS == 32
    return (vreal)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined ATTN_ISA_AVX2
    return (vreal)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined __SSE2__ && REAL_BITS == 32
    return (vreal)_mm_max_ps((__m128)a, (__m128)b);
#elif defined __SSE2__
    return (vreal)_mm_max_pd((__m128d)a, (__m128d)b);
#else
    return v_select(a > b, a, b);
#endif
}

/* The smaller; b where either is NaN. */
ATTN_INLINE vreal
v_min(vreal a, vreal b)
{
#if defined ATTN_ISA_AVX512 && REAL_BITS == 32
    return (vreal)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined ATTN_ISA_AVX512
    return (vreal)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined ATTN_ISA_AVX2 && REAL_BITS == 32
    return (vreal)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined ATTN_ISA_AVX2
    return (vreal)_mm256_min_pd((__m256d)a, (__m256d)b);
#elif defined __SSE2__ && REAL_BITS == 32
    return (vreal)_mm_min_ps((__m128)a, (__m128)b);
#elif defined __SSE2__
    return (vreal)_mm_min_pd((__m128d)a, (__m128d)b);
#else
    return v_select(a < b, a, b);
#endif
}

/* The nearest whole number, ties to even, for |x| < 2^(REAL_MANTISSA - 1); elsewhere on the lower levels anything that is finite or NaN. */
ATTN_INLINE vreal
v_round(vreal x)
{
#if defined ATTN_ISA_AVX512 && REAL_BITS == 32
    return (vreal)_mm512_roundscale_ps((__m512)x, 8);
#elif defined ATTN_ISA_AVX512
    return (vreal)_mm512_roundscale_pd((__m512d)x, 8);
#elif defined ATTN_ISA_AVX2 && REAL_BITS == 32
    return (vreal)_mm256_round_ps((__m256)x, 8);
#elif defined ATTN_ISA_AVX2
    return (vreal)_mm256_round_pd((__m256d)x, 8);
#else
    /* 1.5 2^mantissa pushes the fraction out of the significand; no fast-math here, so the compiler keeps both operations. */
    vreal magic = v_splat((REAL)1.5 * (REAL)((int64_t)1 << REAL_MANTISSA));
    return (x + magic) - magic;
#endif
}

/* The bits of `bits`, from bit 0, as a lane mask. */
ATTN_INLINE vint
v_lane_bits(uint64_t bits)
{
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    const vint bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
#elif VECTOR_BYTES * 8 / REAL_BITS == 8
    const vint bit = {1, 2, 4, 8, 16, 32, 64, 128};
#elif VECTOR_BYTES * 8 / REAL_BITS == 4
    const vint bit = {1, 2, 4, 8};
#else
    const vint bit = {1, 2};
#endif
    return (v_isplat((lane_int)bits) & bit) != 0;
}

/* The lanes of a mask as bits, from bit 0. */
ATTN_INLINE unsigned
v_mask_to_bits(vint mask)
{
#if defined ATTN_ISA_AVX512 && REAL_BITS == 32
    return (unsigned)_mm512_movepi32_mask((__m512i)mask);
#elif defined ATTN_ISA_AVX512
    return (unsigned)_mm512_movepi64_mask((__m512i)mask);
#elif defined ATTN_ISA_AVX2 && REAL_BITS == 32
    return (unsigned)_mm256_movemask_ps((__m256)mask);
#elif defined ATTN_ISA_AVX2
    return (unsigned)_mm256_movemask_pd((__m256d)mask);
#elif defined __SSE2__ && REAL_BITS == 32
    return (unsigned)_mm_movemask_ps((__m128)mask);
#elif defined __SSE2__
    return (unsigned)_mm_movemask_pd((__m128d)mask);
#else
    unsigned bits = 0;
    for (int i = 0; i < LANES; i++)
        bits |= (unsigned)(mask[i] != 0) << i;
    return bits;
#endif
}

/* Whether any lane of a mask is set. */
ATTN_INLINE int
v_any(vint mask)
{
    return v_mask_to_bits(mask) != 0;
}

/* Lane i gets lane i + n, for n = LANES / 2 ... 1 and i < n; what the other lanes get does not matter. */
ATTN_INLINE vreal
v_fold(vreal x, int n)
{
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return n == 8   ? __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15)
           : n == 4 ? __builtin_shufflevector(x, x, 4, 5, 6, 7, 4, 5, 6, 7, 12, 13, 14, 15, 12, 13, 14, 15)
           : n == 2 ? __builtin_shufflevector(x, x, 2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15)
                    : __builtin_shufflevector(x, x, 1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15);
#elif VECTOR_BYTES * 8 / REAL_BITS == 8
    return n == 4   ? __builtin_shufflevector(x, x, 4, 5, 6, 7, 4, 5, 6, 7)
           : n == 2 ? __builtin_shufflevector(x, x, 2, 3, 2, 3, 6, 7, 6, 7)
                    : __builtin_shufflevector(x, x, 1, 1, 3, 3, 5, 5, 7, 7);
#elif VECTOR_BYTES * 8 / REAL_BITS == 4
    return n == 2 ? __builtin_shufflevector(x, x, 2, 3, 2, 3) : __builtin_shufflevector(x, x, 1, 1, 3, 3);
#else
    (void)n;
    return __builtin_shufflevector(x, x, 1, 1);
#endif
}

/* Lane i gets lane i - 1, the first 0. */
ATTN_INLINE vreal
v_behind(vreal x)
{
    const vreal zero = {0};
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return __builtin_shufflevector(zero, x, 0, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30);
#elif VECTOR_BYTES * 8 / REAL_BITS == 8
    return __builtin_shufflevector(zero, x, 0, 8, 9, 10, 11, 12, 13, 14);
#elif VECTOR_BYTES * 8 / REAL_BITS == 4
    return __builtin_shufflevector(zero, x, 0, 4, 5, 6);
#else
    return __builtin_shufflevector(zero, x, 0, 2);
#endif
}

ATTN_INLINE REAL
v_sum(vreal x)
{
    if (LANES > 8)
        x += v_fold(x, 8);
    if (LANES > 4)
        x += v_fold(x, 4);
    if (LANES > 2)
        x += v_fold(x, 2);
    return (x + v_fold(x, 1))[0];
}

/* The largest lane; where some lane is NaN, any lane: callers test for NaN themselves. */
ATTN_INLINE REAL
v_highest(vreal x)
{
    if (LANES > 8)
        x = v_max(x, v_fold(x, 8));
    if (LANES > 4)
        x = v_max(x, v_fold(x, 4));
    if (LANES > 2)
        x = v_max(x, v_fold(x, 2));
    return v_max(x, v_fold(x, 1))[0];
}

/* x0 y0 x1 y1 ... of the first halves. */
ATTN_INLINE vreal
v_interleave_low(vreal x, vreal y)
{
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return __builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif VECTOR_BYTES * 8 / REAL_BITS == 8
    return __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11);
#elif VECTOR_BYTES * 8 / REAL_BITS == 4
    return __builtin_shufflevector(x, y, 0, 4, 1, 5);
#else
    return __builtin_shufflevector(x, y, 0, 2);
#endif
}

/* The same of the second halves. */
ATTN_INLINE vreal
v_interleave_high(vreal x, vreal y)
{
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return __builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif VECTOR_BYTES * 8 / REAL_BITS == 8
    return __builtin_shufflevector(x, y, 4, 12, 5, 13, 6, 14, 7, 15);
#elif VECTOR_BYTES * 8 / REAL_BITS == 4
    return __builtin_shufflevector(x, y, 2, 6, 3, 7);
#else
    return __builtin_shufflevector(x, y, 1, 3);
#endif
}

/* LANES x LANES, in place: log2(LANES) rounds, each of which interleaves the first half of the rows with the second. */
ATTN_INLINE void
v_transpose(vreal *a)
{
    vreal t[VECTOR_BYTES / sizeof(REAL)];
    ATTN_UNROLL
    for (int round = 1; round < LANES; round *= 2) {
        ATTN_UNROLL
        for (int i = 0; i < LANES / 2; i++) {
            t[2 * i] = v_interleave_low(a[i], a[i + LANES / 2]);
            t[2 * i + 1] = v_interleave_high(a[i], a[i + LANES / 2]);
        }
        ATTN_UNROLL
        for (int i = 0; i < LANES; i++)
            a[i] = t[i];
    }
}

/* The sums of LANES vectors as one vector, in order; a is used up. The same rounds, each followed by an addition. */
ATTN_INLINE vreal
v_sums(vreal *a)
{
    ATTN_UNROLL
    for (int n = LANES / 2; n > 0; n /= 2)
        ATTN_UNROLL
        for (int i = 0; i < n; i++)
            a[i] = v_interleave_low(a[i], a[i + n]) + v_interleave_high(a[i], a[i + n]);
    return a[0];
}
