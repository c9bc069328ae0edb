/* layers_linear_activation.inc.h: activations and their derivatives, row by row where they lie. */
#ifndef ATTN_ACTIVATION_NAMES
#define ATTN_ACTIVATION_NAMES
#define layers_activate_by SUFFIX(layers_activate_by)
#define layers_activate SUFFIX(layers_activate)
#endif

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
