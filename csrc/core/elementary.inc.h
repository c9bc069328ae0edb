/* elementary.inc.h: exp2, exp, log, tanh, the logistic function and the tail of the normal distribution, of vectors. Included once per REAL, after vector.h.
 *
 * Coefficients are those that tools/minimax.py prints; beside each table stands the error of the polynomial alone, u = 2^-24 or 2^-53. The largest
 * errors, over every float and every level, in ULP with fused multiply-add (without): exp2 0.96 (1.23), exp 1.02 (0.99), log 0.84 (0.84), tanh 0.94
 * (1.10); double stayed within these wherever it was tested. tests/test_elementary.py holds the functions to them. */
#ifndef ATTN_ELEMENTARY_NAMES
#define ATTN_ELEMENTARY_NAMES
#define vbits SUFFIX(vbits)
#define v_fused SUFFIX(v_fused)
#define v_polynomial SUFFIX(v_polynomial)
#define v_power2 SUFFIX(v_power2)
#define v_times_power2 SUFFIX(v_times_power2)
#define v_exp2_fraction SUFFIX(v_exp2_fraction)
#define v_split SUFFIX(v_split)
#define v_exp2 SUFFIX(v_exp2)
#define v_exp2_weight SUFFIX(v_exp2_weight)
#define v_exp_tail SUFFIX(v_exp_tail)
#define v_exp_reduce SUFFIX(v_exp_reduce)
#define v_exp SUFFIX(v_exp)
#define v_exp_lifted SUFFIX(v_exp_lifted)
#define v_log SUFFIX(v_log)
#define v_tanh SUFFIX(v_tanh)
#define v_upper_tail SUFFIX(v_upper_tail)
#define v_logistic SUFFIX(v_logistic)
#endif

#undef LN2_HIGH
#undef LN2_LOW
#undef REAL_MIN
#undef REAL_LOG_FIRST
#undef REAL_ONE_BITS
#undef REAL_FRACTION_BITS
#if REAL_BITS == 32
#define REAL_MIN __FLT_MIN__
#define LN2_HIGH 0x1.62e4p-1f /* 16 bits of ln 2, so that a whole number of 8 bits times it is exact; the rest is LN2_LOW */
#define LN2_LOW 0x1.7f7d1cp-20f
#define REAL_LOG_FIRST 0x3f3504f3u /* the bits of sqrt(1/2) */
#define REAL_ONE_BITS 0x3f800000u
#define REAL_FRACTION_BITS 0x7fffffu
typedef uint32_t vbits __attribute__((vector_size(VECTOR_BYTES), may_alias));
#else
#define REAL_MIN __DBL_MIN__
#define LN2_HIGH 0x1.62e42feep-1 /* 32 bits of ln 2: times a whole number of 21 bits */
#define LN2_LOW 0x1.a39ef35793c76p-33
#define REAL_LOG_FIRST 0x3fe6a09e667f3bcdu
#define REAL_ONE_BITS 0x3ff0000000000000u
#define REAL_FRACTION_BITS 0xfffffffffffffu
typedef uint64_t vbits __attribute__((vector_size(VECTOR_BYTES), may_alias));
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
        a[i] = REAL_BITS == 32 ? (REAL)__builtin_fmaf((float)a[i], (float)b[i], (float)c[i]) : (REAL)__builtin_fma(a[i], b[i], c[i]);
    return a;
#else
    return a * b + c;
#endif
}

/* c[0] x^(n - 1) + ... + c[n - 1] */
ATTN_INLINE vreal
v_polynomial(vreal x, const REAL *c, int n)
{
    vreal p = v_splat(c[0]);
    ATTN_UNROLL
    for (int i = 1; i < n; i++)
        p = p * x + v_splat(c[i]);
    return p;
}

/* 2^n for whole n within the normal exponents; where n is NaN or beyond, anything. */
ATTN_INLINE vreal
v_power2(vreal n)
{
    /* The last bits of the sum hold n + bias in two's complement; what stands above them is shifted out. */
    vreal magic = v_splat((REAL)1.5 * (REAL)((int64_t)1 << REAL_MANTISSA) + REAL_EXPONENT_BIAS);
    return (vreal)((vbits)(n + magic) << REAL_MANTISSA);
}

/* p 2^n, rounded once, for whole n from twice the least to twice the largest exponent and p near 1; NaN in p stays. */
ATTN_INLINE vreal
v_times_power2(vreal p, vreal n)
{
#if defined ATTN_ISA_AVX512 && REAL_BITS == 32
    return (vreal)_mm512_scalef_ps((__m512)p, (__m512)n);
#elif defined ATTN_ISA_AVX512
    return (vreal)_mm512_scalef_pd((__m512d)p, (__m512d)n);
#else
    vreal half = v_round(n * v_splat((REAL)0.5));
    return p * v_power2(half) * v_power2(n - half); /* the first product is exact */
#endif
}

/* 2^r for r in [-1/2, 1/2]. */
ATTN_INLINE vreal
v_exp2_fraction(vreal r)
{
#if REAL_BITS == 32
    static const REAL c[] = {0x1.41fbb6p-13f, 0x1.5f3e52p-10f, 0x1.3b2d4cp-7f, 0x1.c6aee8p-5f, 0x1.ebfbdcp-3f, 0x1.62e430p-1f, 1}; /* 0.27 u */
#else
    static const REAL c[] = {0x1.e79ba999d5513p-32, 0x1.e61b4ea0e817fp-28, 0x1.b5267ce784afcp-24, 0x1.62bfc79de714bp-20, 0x1.ffcbfba97e035p-17,
                             0x1.4309130ed88afp-13, 0x1.5d87fe78cd6d5p-10, 0x1.3b2ab6fba011bp-7,  0x1.c6b08d7049fe8p-5,  0x1.ebfbdff82c5a4p-3,
                             0x1.62e42fefa39efp-1,  1}; /* 0.25 u */
#endif
    return v_polynomial(r, c, sizeof c / sizeof *c);
}

#if defined ATTN_ISA_AVX512
/* x = n + r: n whole, |r| <= 1/2. Infinities: r = 0. */
ATTN_INLINE vreal
v_split(vreal x, vreal *n)
{
#if REAL_BITS == 32
    vreal r = (vreal)_mm512_reduce_ps((__m512)x, 8); /* 8: what is left of the nearest whole number */
#else
    vreal r = (vreal)_mm512_reduce_pd((__m512d)x, 8);
#endif
    *n = x - r;
    return r;
}
#endif

/* 2^x, subnormal results included; exact where x is whole. */
ATTN_INLINE vreal
v_exp2(vreal x)
{
    vreal n;
#if defined ATTN_ISA_AVX512
    vreal r = v_split(x, &n);
#else
    /* Beyond these limits the result is 0 or infinity already; in this order of operands NaN stays. */
    x = v_max(v_splat(-(REAL_EXPONENT_BIAS + REAL_MANTISSA + 1)), v_min(v_splat(REAL_EXPONENT_BIAS + 2), x));
    n = v_round(x);
    vreal r = x - n;
#endif
    return v_times_power2(v_exp2_fraction(r), n);
}

/* 2^x for x <= 0, but exactly 0 where that is below the normal numbers: attention's weights. */
ATTN_INLINE vreal
v_exp2_weight(vreal x)
{
    const REAL least = 1 - REAL_EXPONENT_BIAS;
#if defined ATTN_ISA_AVX512
    vreal n, p = v_exp2_fraction(v_split(x, &n));
#if REAL_BITS == 32
    __mmask16 counts = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(least), _CMP_NLT_UQ); /* not less: NaN counts */
    return (vreal)_mm512_maskz_scalef_ps(counts, (__m512)p, (__m512)n);
#else
    __mmask8 counts = _mm512_cmp_pd_mask((__m512d)x, _mm512_set1_pd(least), _CMP_NLT_UQ);
    return (vreal)_mm512_maskz_scalef_pd(counts, (__m512d)p, (__m512d)n);
#endif
#else
    /* Rounding by hand leaves the exponent's bits in the sum: see v_power2. Where x < least everything here may be garbage. */
    vreal magic = v_splat((REAL)1.5 * (REAL)((int64_t)1 << REAL_MANTISSA) + REAL_EXPONENT_BIAS);
    vreal sum = x + magic, weight = v_exp2_fraction(x - (sum - magic)) * (vreal)((vbits)sum << REAL_MANTISSA);
    return (vreal)(~(x < v_splat(least)) & (vint)weight);
#endif
}

/* x = n ln 2 + r: n whole, |r| <= ln 2 / 2 and a bit; r is accurate to u |r| and a little, for n that has the bits LN2_HIGH leaves room for. */
ATTN_INLINE vreal
v_exp_reduce(vreal x, vreal *n)
{
    *n = v_round(x * v_splat((REAL)LOG2E));
    return (x - *n * v_splat(LN2_HIGH)) - *n * v_splat(LN2_LOW);
}

/* Of (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2: 0.06 and 0.10 u of e^r. */
#undef EXP_COEFFICIENTS
#if REAL_BITS == 32
#define EXP_COEFFICIENTS 0x1.6a2438p-10f, 0x1.1239d4p-7f, 0x1.5558f2p-5f, 0x1.555492p-3f, 0x1.fffffcp-2f
#else
#define EXP_COEFFICIENTS \
    0x1.ad7f8222473fdp-26, 0x1.28ad6857764a9p-22, 0x1.71df25358108cp-19, 0x1.a0199a1736579p-16, \
    0x1.a01a012a6bce3p-13, 0x1.6c16c184264cdp-10, 0x1.1111111127b95p-7, 0x1.555555555088cp-5, \
    0x1.55555555554fap-3, 0x1.000000000000ap-1
#endif

/* e^r - 1 for |r| <= ln 2 / 2. */
ATTN_INLINE vreal
v_exp_tail(vreal r)
{
    static const REAL c[] = {EXP_COEFFICIENTS};
    return r + r * r * v_polynomial(r, c, sizeof c / sizeof *c);
}

/* e^x, subnormal results included. */
ATTN_INLINE vreal
v_exp(vreal x)
{
    const REAL least = REAL_BITS == 32 ? -104 : -746, most = REAL_BITS == 32 ? 89 : 710; /* 0 and infinity already; NaN stays */
    vreal n, r = v_exp_reduce(v_max(v_splat(least), v_min(v_splat(most), x)), &n);
    return v_times_power2(v_splat(1) + v_exp_tail(r), n);
}

/* 2^64 e^x for x <= 0, in the fewest operations: softmax's terms. Times 2^64 none is subnormal, where numbers cost a hundred cycles and lose bits.
 * Exactly 0 where e^x is less than half the least subnormal. */
ATTN_INLINE vreal
v_exp_lifted(vreal x)
{
    static const REAL c[] = {EXP_COEFFICIENTS, 1, 1};
    const REAL magic = (REAL)1.5 * (REAL)((int64_t)1 << REAL_MANTISSA) + (REAL_EXPONENT_BIAS + 64); /* see v_power2 */
    const REAL least = REAL_BITS == 32 ? -104 : -746; /* below, everything here may be garbage */
    vreal sum = x * v_splat((REAL)LOG2E) + v_splat(magic), n = sum - v_splat(magic);
    vreal p = v_polynomial((x - n * v_splat(LN2_HIGH)) - n * v_splat(LN2_LOW), c, sizeof c / sizeof *c);
    vreal power = (vreal)((vbits)sum << REAL_MANTISSA);
#if defined ATTN_ISA_AVX512 && REAL_BITS == 32
    return (vreal)_mm512_maskz_mul_ps(_mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(least), _CMP_NLT_UQ), (__m512)p, (__m512)power);
#elif defined ATTN_ISA_AVX512
    return (vreal)_mm512_maskz_mul_pd(_mm512_cmp_pd_mask((__m512d)x, _mm512_set1_pd(least), _CMP_NLT_UQ), (__m512d)p, (__m512d)power);
#else
    return (vreal)(~(x < v_splat(least)) & (vint)(p * power));
#endif
}

/* ln x; -inf at 0, NaN below.
 * x = 2^k (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2); ln(1 + f) = f - f^2/2 + s (f^2/2 + R(s^2)), s = f / (2 + f): fdlibm's e_log.c, whose order of
 * additions keeps the error below 1 ULP; the coefficients of R are our own. */
ATTN_INLINE vreal
v_log(vreal x)
{
#if REAL_BITS == 32
    static const REAL c[] = {0x1.31e080p-2f, 0x1.995ed6p-2f, 0x1.55557ap-1f, 0}; /* 0.014 u */
#else
    static const REAL c[] = {0x1.2f03afb760921p-3, 0x1.39a1e9d3b5af1p-3, 0x1.74663ce31d5fap-3, 0x1.c71c5214822b6p-3,
                             0x1.24924941e11dcp-2, 0x1.999999997ff1cp-2, 0x1.5555555555592p-1, 0}; /* 0.011 u */
#endif
    const REAL up = (REAL)((int64_t)1 << (REAL_MANTISSA + 1)), whole = (REAL)((int64_t)1 << REAL_MANTISSA);
    vint tiny = x < v_splat(REAL_MIN);
    vbits shifted = (vbits)v_select(tiny, x * v_splat(up), x) + (REAL_ONE_BITS - REAL_LOG_FIRST);
    vreal f = (vreal)((shifted & REAL_FRACTION_BITS) + REAL_LOG_FIRST) - v_splat(1);
    vreal k = (vreal)((shifted >> REAL_MANTISSA) | (vbits)v_splat(whole)) - v_splat(whole + REAL_EXPONENT_BIAS); /* the integer as a REAL */
    k -= v_select(tiny, v_splat(REAL_MANTISSA + 1), (vreal){0});
    vreal s = f / (f + v_splat(2)), square = f * f * v_splat((REAL)0.5), rest = v_polynomial(s * s, c, sizeof c / sizeof *c);
    vreal y = k * v_splat(LN2_HIGH) - ((square - (s * (square + rest) + k * v_splat(LN2_LOW))) - f);
    vreal special = v_select(x == (vreal){0}, v_splat(-REAL_INFINITY), v_select(x < (vreal){0}, v_splat((REAL)__builtin_nan("")), x));
    return v_select((x > (vreal){0}) & (x < v_splat(REAL_INFINITY)), y, special);
}

/* tanh x. Below 1 a polynomial: x + x^3 P(x^2), so that small x and subnormals come out as they are; above, 1 - 2 / (e^2x + 1). */
ATTN_INLINE vreal
v_tanh(vreal x)
{
#if REAL_BITS == 32
    static const REAL c[] = {-0x1.77caacp-12f, 0x1.2d9f56p-9f, -0x1.045fd0p-7f, 0x1.6009a2p-6f, -0x1.b9623ap-5f, 0x1.110be4p-3f, -0x1.55553cp-2f};
    /* 0.08 u */
#else
    static const REAL c[] = {0x1.6ddc7b274d7b0p-26, -0x1.f43441cff973fp-23, 0x1.552c3f0991223p-20, -0x1.3f400f202935bp-18,
                             0x1.df1d8efb478b1p-17, -0x1.3f4b86fa8127fp-15, 0x1.939b631431f60p-14, -0x1.f4de952b31875p-13,
                             0x1.354b499c06683p-11, -0x1.7da1da3dae487p-10, 0x1.d6d3aed4649d7p-9,  -0x1.226e3458c96e7p-7,
                             0x1.664f487873e13p-6,  -0x1.ba1ba1b9dd855p-5,  0x1.1111111110b21p-3,  -0x1.555555555554fp-2}; /* 0.01 u */
#endif
    vreal size = v_abs(x), square = x * x, n;
    vreal small = size + size * square * v_polynomial(square, c, sizeof c / sizeof *c);
    vreal bounded = v_min(v_splat(REAL_BITS == 32 ? 10 : 20), size); /* 1 already; NaN stays */
    vreal tail = v_exp_tail(v_exp_reduce(bounded + bounded, &n)), power = v_power2(n);
    vreal large = v_splat(1) - v_splat(2) / ((power + v_splat(1)) + power * tail);
    vreal y = v_select(size < v_splat(1), small, large);
    return (vreal)((vint)y | ((vint)x ^ (vint)size));
}

#undef NORMAL_FAR
#undef INVERSE_ROOT_2PI
#define NORMAL_FAR (REAL_BITS == 32 ? 15 : 39)
#define INVERSE_ROOT_2PI 0.39894228040143267794 /* 1 / sqrt(2 pi) */

/* P(N > x) of the standard normal distribution, (1 - erf(x / sqrt 2)) / 2, for 0 <= x <= NORMAL_FAR, where it is 0 already; NaN stays. Beside it
 * e^(-x^2 / 2). Both are accurate as a share of themselves, however small.
 * P = e^(-x^2 / 2) t R(1 - 2 t), t = 4 / (x + 4): t R is smooth and falls from 1/2 to 0.4 / x. x^2 is made of two parts. */
ATTN_INLINE vreal
v_upper_tail(vreal x, vreal *power)
{
#if REAL_BITS == 32
    static const REAL c[] = {-0x1.196c54p-15f, 0x1.6e4c3ep-15f, 0x1.9b2600p-12f, -0x1.cc174ap-11f, -0x1.ed17dap-10f,
                             0x1.eed34ep-7f,   -0x1.7e001ep-5f, 0x1.8c6d9ep-4f,  -0x1.373e38p-3f,  0x1.82b4bcp-3f}; /* 0.54 u */
#else
    static const REAL c[] = {-0x1.48e14b1615bcbp-32, -0x1.74a7079cacc3dp-34, 0x1.f64bb1c4aa60ep-29,  0x1.140f3eef548f5p-28, -0x1.4b9d427617652p-26,
                             -0x1.5046f9f57af3cp-25, 0x1.1ba22582d42a7p-24,  0x1.124d7053fa05cp-22,  -0x1.4faab71333aaep-23, -0x1.8d4902d58e8cep-20,
                             0x1.7fd97aa763065p-23,  0x1.26d06367c776ep-17,  -0x1.001104f49d4bep-21, -0x1.e4a421b6aca9ap-15, 0x1.17a4a5f7ea58bp-15,
                             0x1.ab825fb0a9fc6p-12,  -0x1.c81719c95701ep-11, -0x1.ee2761043923bp-10, 0x1.eec4cc3e4435bp-7,   -0x1.7dff2bff6848fp-5,
                             0x1.8c6dbf2cfc308p-4,   -0x1.373e3a893c28ap-3,  0x1.82b4bb8c94dcep-3}; /* 0.62 u */
#endif
#ifdef ATTN_ISA_BASELINE
    const int half_of_the_bits = (REAL_MANTISSA + 2) / 2;
    vreal high = (vreal)((vbits)x >> half_of_the_bits << half_of_the_bits), half = v_splat((REAL)-0.5);
    vreal first = high * high * half, rest = (x - high) * (x + high) * half;
#else
    vreal half = x * v_splat((REAL)-0.5), first = half * x, rest = v_fused(half, x, -first); /* what the product was rounded by */
#endif
    vreal n = v_round(first * v_splat((REAL)LOG2E));
    vreal e = v_exp_tail(((first - n * v_splat(LN2_HIGH)) - n * v_splat(LN2_LOW)) + rest);
    vreal sum = x + v_splat(4), t = v_splat(4) / sum, ratio = t * v_polynomial(v_splat(1) - (t + t), c, sizeof c / sizeof *c);
    vreal lost = x - (sum - v_splat(4)); /* exactly what the sum was rounded by */
#ifndef ATTN_ISA_BASELINE
    lost -= v_fused(-t, sum, v_splat(4)) * (sum * v_splat((REAL)0.25)); /* and what t was: as a change of x */
#endif
    ratio += lost * (x * ratio - v_splat((REAL)INVERSE_ROOT_2PI)); /* times the slope */
    *power = v_times_power2(v_splat(1) + e, n);
    return v_times_power2(ratio + ratio * e, n);
}

/* 1 / (1 + e^-x), and in *other 1 / (1 + e^x); each accurate as a share of itself down to the normal numbers. */
ATTN_INLINE vreal
v_logistic(vreal x, vreal *other)
{
    vreal e = v_exp(-v_abs(x)), most = v_splat(1) / (v_splat(1) + e), least = e * most;
    vint negative = x < (vreal){0};
    *other = v_select(negative, most, least);
    return v_select(negative, least, most);
}
