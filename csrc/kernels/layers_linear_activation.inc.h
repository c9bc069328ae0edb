/* layers_linear_activation.inc.h: activations and their derivatives of a row where it lies. */
#ifndef ATTN_LINEAR_ACTIVATION_NAMES
#define ATTN_LINEAR_ACTIVATION_NAMES
#define linear_activate_by SUFFIX(linear_activate_by)
#define linear_activate SUFFIX(linear_activate)
#endif

ATTN_INLINE void
linear_activate_by(enum attn_activation_kind what, bool slope, REAL *row, int64_t n)
{
    for (int64_t i = 0; i < n; i += LANES)
        v_store(row + i, slope ? v_activation_slope(what, v_load(row + i)) : v_activation(what, v_load(row + i)));
}

/* row[i] = f(row[i]), or f'(row[i]), whole vectors at a time. */
ATTN_NOINLINE void
linear_activate(enum attn_activation_kind what, bool slope, REAL *row, int64_t n)
{
    switch (what) {
#define ACTIVATION(kind)                             \
    case kind:                                       \
        if (slope)                                   \
            linear_activate_by(kind, true, row, n);  \
        else                                         \
            linear_activate_by(kind, false, row, n); \
        break;
        ACTIVATION(ATTN_RELU)
        ACTIVATION(ATTN_GELU)
        ACTIVATION(ATTN_GELU_TANH)
        ACTIVATION(ATTN_SILU)
#undef ACTIVATION
    }
}
