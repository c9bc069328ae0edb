/* positions_rotation.inc.h: a row's features turned in pairs (positions_rotary.h), for the kernel of that name and for attention, which turns queries and
 * keys as it loads them. Of the two products of each sum the second is rounded and the first fused, by name and not by contraction: so every kernel, every
 * tail and both compilers give the same bits. Levels without fused multiply-adds round both. */
#ifndef ATTN_ROTATION_NAMES
#define ATTN_ROTATION_NAMES
#define v_fused SUFFIX(v_fused)
#define r_fused SUFFIX(r_fused)
#define rotate_pair SUFFIX(rotate_pair)
#define v_rotate SUFFIX(v_rotate)
#define rotate_halves SUFFIX(rotate_halves)
#define v_neighbours SUFFIX(v_neighbours)
#define rotate_neighbours SUFFIX(rotate_neighbours)
#define rotate_row SUFFIX(rotate_row)
#endif

/* a b + c with one rounding, where the level has it. */
ATTN_INLINE vreal
v_fused(vreal a, vreal b, vreal c)
{
#if defined ATTN_ISA_AVX512 && REAL_BITS == 32
    return (vreal)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined ATTN_ISA_AVX512
    return (vreal)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined ATTN_ISA_AVX2 && REAL_BITS == 32
    return (vreal)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined ATTN_ISA_AVX2
    return (vreal)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined __FP_FAST_FMA && defined __FP_FAST_FMAF
    for (int i = 0; i < LANES; i++)
        a[i] = REAL_BITS == 32 ? __builtin_fmaf((float)a[i], (float)b[i], (float)c[i]) : (REAL)__builtin_fma(a[i], b[i], c[i]);
    return a;
#else
    return a * b + c;
#endif
}

ATTN_INLINE REAL
r_fused(REAL a, REAL b, REAL c)
{
#if defined ATTN_ISA_AVX512 || defined ATTN_ISA_AVX2 || (defined __FP_FAST_FMA && defined __FP_FAST_FMAF)
    return REAL_BITS == 32 ? (REAL)__builtin_fmaf((float)a, (float)b, (float)c) : (REAL)__builtin_fma((double)a, (double)b, (double)c);
#else
    return a * b + c;
#endif
}

/* first' = first cos - second sin, second' = second cos + first sin. Turning back is the same with -sin: signs are exact. */
ATTN_INLINE void
rotate_pair(REAL *first, REAL *second, REAL cosine, REAL sine)
{
    REAL a = *first, b = *second;
    *first = r_fused(a, cosine, -(b * sine));
    *second = r_fused(b, cosine, a * sine);
}

ATTN_INLINE void
v_rotate(vreal *first, vreal *second, vreal cosine, vreal sine)
{
    vreal a = *first, b = *second;
    *first = v_fused(a, cosine, -(b * sine));
    *second = v_fused(b, cosine, a * sine);
}

/* Feature i with feature pairs + i. */
ATTN_INLINE void
rotate_halves(REAL *to, const REAL *from, int64_t pairs, const REAL *cosine, const REAL *sine, bool inverse)
{
    int64_t i = 0;
    for (; i + LANES <= pairs; i += LANES) {
        vreal first = v_loadu(from + i), second = v_loadu(from + pairs + i), s = v_loadu(sine + i);
        v_rotate(&first, &second, v_loadu(cosine + i), inverse ? -s : s);
        v_storeu(to + i, first);
        v_storeu(to + pairs + i, second);
    }
    for (; i < pairs; i++) {
        REAL first = from[i], second = from[pairs + i];
        rotate_pair(&first, &second, cosine[i], inverse ? -sine[i] : sine[i]);
        to[i] = first;
        to[pairs + i] = second;
    }
}

/* Each even lane with the lane behind it: x cos + (neighbour) (-sin, sin). Both tables hold each number twice. */
ATTN_INLINE vreal
v_neighbours(vreal x, vreal cosine, vreal sine, bool inverse)
{
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    vreal other = __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif VECTOR_BYTES * 8 / REAL_BITS == 8
    vreal other = __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
#elif VECTOR_BYTES * 8 / REAL_BITS == 4
    vreal other = __builtin_shufflevector(x, x, 1, 0, 3, 2);
#else
    vreal other = __builtin_shufflevector(x, x, 1, 0);
#endif
    vint negative = v_lane_bits(inverse ? 0xaaaaaaaa : 0x55555555);
    vreal product = other * sine;
    return v_fused(x, cosine, v_select(negative, -product, product));
}

/* Feature 2 i with feature 2 i + 1. wide: the tables hold each number twice, one behind the other. */
ATTN_INLINE void
rotate_neighbours(REAL *to, const REAL *from, int64_t pairs, const REAL *cosine, const REAL *sine, bool wide, bool inverse)
{
    int64_t i = 0;
    for (; i + LANES <= pairs; i += LANES) {
        vreal x = v_loadu(from + 2 * i), y = v_loadu(from + 2 * i + LANES), c, d, s, t;
        if (wide) {
            c = v_loadu(cosine + 2 * i);
            d = v_loadu(cosine + 2 * i + LANES);
            s = v_loadu(sine + 2 * i);
            t = v_loadu(sine + 2 * i + LANES);
        } else {
            vreal each = v_loadu(cosine + i), other = v_loadu(sine + i);
            c = v_interleave_low(each, each);
            d = v_interleave_high(each, each);
            s = v_interleave_low(other, other);
            t = v_interleave_high(other, other);
        }
        v_storeu(to + 2 * i, v_neighbours(x, c, s, inverse));
        v_storeu(to + 2 * i + LANES, v_neighbours(y, d, t, inverse));
    }
    for (; i < pairs; i++) {
        int64_t column = wide ? 2 * i : i;
        REAL first = from[2 * i], second = from[2 * i + 1];
        rotate_pair(&first, &second, cosine[column], inverse ? -sine[column] : sine[column]);
        to[2 * i] = first;
        to[2 * i + 1] = second;
    }
}

/* The first 2 `pairs` features of a row, turned by its row of the tables; what lies behind them in `to` stays as it is. `to` may be `from`, and overlaps
 * nothing else. inverse: turned back, which is also what gradients need (the transposed rotation). */
ATTN_NOINLINE void
rotate_row(REAL *to, const REAL *from, int64_t pairs, const REAL *cosine, const REAL *sine, enum attn_rotation how, bool inverse)
{
    if (how == ATTN_ROTATE_HALVES)
        rotate_halves(to, from, pairs, cosine, sine, inverse);
    else
        rotate_neighbours(to, from, pairs, cosine, sine, how == ATTN_ROTATE_NEIGHBOURS_WIDE, inverse);
}
