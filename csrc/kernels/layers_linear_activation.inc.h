/* layers_linear_activation.inc.h: activations and their derivatives, row by row where they lie.
 *
 * silu(x) = x s(x) with s(x) = 1 / (1 + e^-x), and gelu_tanh(x) = x/2 (1 + tanh(p(x) / 2)) = x s(p(x)) with p(x) = sqrt(8 / pi) (x + 0.044715 x^3):
 * of e = e^-|y| both s(y) and s(-y) are made without cancellation, 1 / (1 + e) and e / (1 + e). */
#ifndef ATTN_ACTIVATION_NAMES
#define ATTN_ACTIVATION_NAMES
#define v_sigmoids SUFFIX(v_sigmoids)
#define v_activation SUFFIX(v_activation)
#define v_activation_slope SUFFIX(v_activation_slope)
#define layers_activate_by SUFFIX(layers_activate_by)
#define layers_activate SUFFIX(layers_activate)

#define GELU_INNER 1.5957691216057308 /* sqrt(8 / pi) */
#define GELU_CUBE 0.044715
#endif

/*TEMP*/ATTN_INLINE vreal SUFFIX(v_erf)(vreal x){ for(int i=0;i<LANES;i++) x[i]=(REAL)erf(x[i]); return x;}
#undef v_erf
#define v_erf SUFFIX(v_erf)
/* s(y), and s(-y) = 1 - s(y). */
ATTN_INLINE vreal
v_sigmoids(vreal y, vreal *other)
{
    vreal e = v_exp(-v_abs(y)), large = v_splat(1) / (v_splat(1) + e), small = e * large;
    vint negative = y < (vreal){0};
    *other = v_select(negative, large, small);
    return v_select(negative, small, large);
}

ATTN_INLINE vreal
v_activation(enum attn_activation_kind what, vreal x)
{
    vreal other;
    switch (what) {
    case ATTN_RELU:
        return v_max((vreal){0}, x); /* in this order NaN stays */
    case ATTN_GELU:
        return x * v_splat((REAL)0.5) * (v_splat(1) + v_erf(x * v_splat((REAL)0.70710678118654752440)));
    case ATTN_GELU_TANH:
        return x * v_sigmoids(v_splat((REAL)GELU_INNER) * (x + v_splat((REAL)GELU_CUBE) * (x * x) * x), &other);
    case ATTN_SILU:
        return x * v_sigmoids(x, &other);
    }
    return x;
}

ATTN_INLINE vreal
v_activation_slope(enum attn_activation_kind what, vreal x)
{
    vreal other, bounded = v_min(v_splat(100), v_max(v_splat(-100), x)), s; /* farther out the second terms are 0 */
    switch (what) {
    case ATTN_RELU:
        return v_select(x > (vreal){0}, v_splat(1), v_select(x == x, (vreal){0}, x));
    case ATTN_GELU:
        s = v_exp(bounded * bounded * v_splat((REAL)-0.5)) * v_splat((REAL)0.39894228040143267794); /* 1 / sqrt(2 pi) */
        return v_splat((REAL)0.5) * (v_splat(1) + v_erf(x * v_splat((REAL)0.70710678118654752440))) + bounded * s;
    case ATTN_GELU_TANH:
        s = v_sigmoids(v_splat((REAL)GELU_INNER) * (x + v_splat((REAL)GELU_CUBE) * (x * x) * x), &other);
        return s + s * other * bounded * v_splat((REAL)GELU_INNER) * (v_splat(1) + v_splat((REAL)(3 * GELU_CUBE)) * bounded * bounded);
    case ATTN_SILU:
        s = v_sigmoids(x, &other);
        return s + s * other * bounded;
    }
    return x;
}

ATTN_INLINE void
layers_activate_by(enum attn_activation_kind what, bool slope, REAL *row, int64_t n)
{
    for (int64_t i = 0; i < n; i += LANES)
        v_store(row + i, slope ? v_activation_slope(what, v_load(row + i)) : v_activation(what, v_load(row + i)));
}

/* row[i] = f(row[i]), or f'(row[i]), whole vectors at a time. */
ATTN_NOINLINE void
layers_activate(enum attn_activation_kind what, bool slope, REAL *row, int64_t n)
{
    switch (what) {
#define ACTIVATION(kind)                                 \
    case kind:                                           \
        if (slope)                                       \
            layers_activate_by(kind, true, row, n);      \
        else                                             \
            layers_activate_by(kind, false, row, n);     \
        break;
        ACTIVATION(ATTN_RELU)
        ACTIVATION(ATTN_GELU)
        ACTIVATION(ATTN_GELU_TANH)
        ACTIVATION(ATTN_SILU)
#undef ACTIVATION
    }
}
