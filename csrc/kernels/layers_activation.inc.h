/* layers_activation.inc.h: gelu, silu, relu and their derivatives, a vector at a time. See layers.h. */
#ifndef ATTN_LAYERS_ACTIVATION_NAMES
#define ATTN_LAYERS_ACTIVATION_NAMES
#define v_activation SUFFIX(v_activation)
#define v_activation_slope SUFFIX(v_activation_slope)

#define GELU_TANH_LINEAR 1.5957691216057307117 /* 2 sqrt(2 / pi) */
#define GELU_TANH_CUBIC 0.071354816272600248776 /* 0.044715 times that */
#endif

/* f(x). Far below 0 the results are 0 already, which the limits make out of -inf too. */
ATTN_INLINE vreal
v_activation(enum attn_activation_kind kind, vreal x)
{
    const vreal zero = {0};
    vreal other;
    if (kind == ATTN_RELU)
        return v_max(zero, x); /* in this order NaN stays */
    if (kind == ATTN_GELU) {
        vreal size = v_min(v_splat(NORMAL_FAR), v_abs(x));
        return v_max(zero, x) - size * v_upper_tail(size, &other);
    }
    x = v_max(v_splat(kind == ATTN_SILU ? (REAL_BITS == 32 ? -110 : -760) : (REAL_BITS == 32 ? -16 : -40)), x);
    if (kind == ATTN_SILU)
        return x * v_logistic(x, &other);
    return x * v_logistic(x * (v_splat((REAL)GELU_TANH_LINEAR) + v_splat((REAL)GELU_TANH_CUBIC) * (x * x)), &other);
}

/* f'(x). Between the limits it is neither 0 nor 1. */
ATTN_INLINE vreal
v_activation_slope(enum attn_activation_kind kind, vreal x)
{
    const vreal zero = {0}, one = v_splat(1);
    vreal other;
    if (kind == ATTN_RELU)
        return v_select(x <= zero, zero, v_select(x > zero, one, x));
    if (kind == ATTN_GELU) {
        vreal size = v_min(v_splat(NORMAL_FAR), v_abs(x)), power, tail = v_upper_tail(size, &power);
        vint negative = x < zero;
        vreal density = size * power * v_splat((REAL)INVERSE_ROOT_2PI);
        return v_select(negative, tail - density, (one - tail) + density);
    }
    const vreal far = v_splat(kind == ATTN_SILU ? (REAL_BITS == 32 ? 110 : 760) : (REAL_BITS == 32 ? 16 : 40));
    x = v_max(-far, v_min(far, x));
    if (kind == ATTN_SILU) {
        vreal s = v_logistic(x, &other);
        return s + x * (s * other);
    }
    vreal square = x * x;
    vreal s = v_logistic(x * (v_splat((REAL)GELU_TANH_LINEAR) + v_splat((REAL)GELU_TANH_CUBIC) * square), &other);
    return s + x * (s * other) * (v_splat((REAL)GELU_TANH_LINEAR) + v_splat((REAL)(3 * GELU_TANH_CUBIC)) * square);
}
