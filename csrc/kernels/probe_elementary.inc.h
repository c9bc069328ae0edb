/* probe_elementary.inc.h: one elementary function over an array, so that tests can ask for every argument. */
#ifndef ATTN_PROBE_ELEMENTARY_NAMES
#define ATTN_PROBE_ELEMENTARY_NAMES
#define elementary_vector SUFFIX(elementary_vector)
#define probe_elementary SUFFIX(attn_elementary)
#endif

ATTN_INLINE vreal
elementary_vector(enum attn_elementary what, vreal x)
{
    vreal other;
    switch (what) {
    case ATTN_EXP2:
        return v_exp2(x);
    case ATTN_EXP2_WEIGHT:
        return v_exp2_weight(x);
    case ATTN_EXP:
        return v_exp(x);
    case ATTN_LOG:
        return v_log(x);
    case ATTN_UPPER_TAIL:
        return v_upper_tail(v_min(v_splat(NORMAL_FAR), x), &other);
    case ATTN_LOGISTIC:
        return v_logistic(x, &other);
    default:
        return v_tanh(x);
    }
}

/* y = what(x) for n REALs side by side; the last vector is filled up with 1. The half types: rounded to them and back. */
static void
probe_elementary(enum attn_elementary what, const void *x, void *y, int64_t n)
{
    const REAL *from = x;
    REAL *to = y;
    for (int64_t i = 0; i < n; i += LANES) {
        REAL part[VECTOR_BYTES / sizeof(REAL)];
        int64_t count = attn_min(n - i, LANES);
        if (what == ATTN_TO_FLOAT16 || what == ATTN_TO_BFLOAT16) {
            enum attn_type type = what == ATTN_TO_FLOAT16 ? ATTN_FLOAT16 : ATTN_BFLOAT16;
            char half[2 * VECTOR_BYTES / sizeof(REAL)];
            store_row(half, 2, from + i, count, type, false);
            load_row(to + i, half, 2, count, type, false);
            continue;
        }
        for (int lane = 0; lane < LANES; lane++)
            part[lane] = lane < count ? from[i + lane] : 1;
        v_storeu(part, elementary_vector(what, v_loadu(part)));
        memcpy(to + i, part, (size_t)count * sizeof(REAL));
    }
}
