/* positions_angles.inc.h: sines and cosines of positions times frequencies, in double; there is one of it, for both types.
 *
 * Angles are kept in turns: the frequencies over 2 pi as sums of two doubles, so that the product with a position loses nothing that counts and whole turns
 * are cut off exactly. */
#if REAL_BITS == 64

#define ONE_OVER_TWO_PI_HIGH 0x1.45f306dc9c883p-3
#define ONE_OVER_TWO_PI_LOW (-0x1.6b01ec5417056p-57)

/* high + low, |low| at most half a unit of high. */
struct twofold {
    double high, low;
};

static inline struct twofold
twofold_sum(double high, double low)
{
    double sum = high + low;
    return (struct twofold){sum, low - (sum - high)};
}

/* Relative error about 2^-104. */
static inline struct twofold
twofold_product(struct twofold a, struct twofold b)
{
    double high = a.high * b.high;
    return twofold_sum(high, __builtin_fma(a.high, b.high, -high) + (a.high * b.low + a.low * b.high));
}

static inline struct twofold
twofold_power(struct twofold x, int64_t n)
{
    struct twofold power = {1, 0};
    for (; n > 0; n /= 2) {
        if (n % 2)
            power = twofold_product(power, x);
        x = twofold_product(x, x);
    }
    return power;
}

/* base^(-numerator / denominator): pow's answer q, corrected by how far q^denominator base^numerator is from 1. */
static inline struct twofold
sinusoidal_ratio(double base, int numerator, int64_t denominator)
{
    double q = __builtin_pow(base, -(double)numerator / (double)denominator);
    struct twofold one = twofold_product(twofold_power((struct twofold){q, 0}, denominator), twofold_power((struct twofold){base, 0}, numerator));
    return twofold_sum(q, -q * (((one.high - 1) + one.low) / (double)denominator));
}

/* a b - product, exactly, where product = a b rounded. */
ATTN_INLINE vreal
v_product_error(vreal a, vreal b, vreal product)
{
#if defined ATTN_ISA_AVX512 || defined ATTN_ISA_AVX2 || (defined __FP_FAST_FMA && defined __FP_FAST_FMAF)
    return v_fused(a, b, -product);
#else
    /* Dekker 1971: halves of 26 bits, whose products are exact. */
    const vreal factor = v_splat(0x1p27 + 1);
    vreal a_wide = a * factor, a_high = a_wide - (a_wide - a), a_low = a - a_high;
    vreal b_wide = b * factor, b_high = b_wide - (b_wide - b), b_low = b - b_high;
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
#endif
}

/* What is left of the nearest whole number; numbers that have no fraction to speak of: 0; NaN and infinities: NaN. */
ATTN_INLINE vreal
v_part_of_turn(vreal x)
{
    return v_select(v_abs(x) < v_splat(0x1p51), x - v_round(x), x - x);
}

/* Sine and cosine of a number of turns, turns + rest: |turns| at most 1, rest a correction. */
ATTN_INLINE void
v_sine_of_turns(vreal turns, vreal rest, vreal *sine, vreal *cosine)
{
    static const REAL s[] = {0x1.5d8b556a41da8p-33,  -0x1.ae5e4b837d3a8p-26, 0x1.71de35552b064p-19,
                             -0x1.a01a019be9215p-13, 0x1.111111110f730p-7,   -0x1.5555555555548p-3}; /* 0.03 u */
    static const REAL c[] = {-0x1.8fa671a390353p-37, 0x1.1ee9dbaeb9abap-29,  -0x1.27e4f7f1694fep-22,
                             0x1.a01a019c8efafp-16,  -0x1.6c16c16c15014p-10, 0x1.555555555554bp-5}; /* 0.001 u */
    const vreal magic = v_splat(0x1.8p52);
    vreal shifted = v_splat(4) * turns + magic, quarters = shifted - magic; /* the last bits of the sum hold the quarter turns */
    vint n = (vint)shifted, odd = (n & 1) != 0;
    vreal x = ((turns - v_splat(0.25) * quarters) + rest) * v_splat(0x1.921fb54442d18p2); /* 2 pi; the difference is exact */
    vreal square = x * x, half = square * v_splat(0.5), whole = v_splat(1) - half;
    vreal sine_of_rest = x + x * square * v_polynomial(square, s, sizeof s / sizeof *s);
    vreal cosine_of_rest = whole + (((v_splat(1) - whole) - half) + square * square * v_polynomial(square, c, sizeof c / sizeof *c));
    *sine = (vreal)((vint)v_select(odd, cosine_of_rest, sine_of_rest) ^ ((n & 2) << 62));
    *cosine = (vreal)((vint)v_select(odd, sine_of_rest, cosine_of_rest) ^ (((n + 1) & 2) << 62));
}

/* Of a position at LANES frequencies. */
ATTN_INLINE void
v_sinusoid(vreal position, const double *high, const double *low, vreal *sine, vreal *cosine)
{
    vreal product = position * v_loadu(high), error = v_product_error(position, v_loadu(high), product);
    vreal part = v_part_of_turn(product), more = v_part_of_turn(error + position * v_loadu(low)), turns = part + more;
    v_sine_of_turns(turns, more - (turns - part), sine, cosine);
}
#endif
