/* softmax_layout.inc.h: how rows lie in memory, and blocks of them to and from scratch. Changes no operation, so the bits stay. */
#ifndef ATTN_SOFTMAX_LAYOUT_NAMES
#define ATTN_SOFTMAX_LAYOUT_NAMES
#define run_is_direct SUFFIX(run_is_direct)
#define lines_load SUFFIX(lines_load)
#define lines_store SUFFIX(lines_store)
#define load_runs SUFFIX(load_runs)
#define store_runs SUFFIX(store_runs)
#define hide_runs SUFFIX(hide_runs)
#define v_load_kept SUFFIX(v_load_kept)

enum { SOFTMAX_X, SOFTMAX_KEEP, SOFTMAX_Y, SOFTMAX_GRAD, SOFTMAX_LSE };

/* Whether a gradient comes in with all axes. */
static inline bool
softmax_grad_is_full(const struct attn_softmax *a)
{
    return a->what == ATTN_SOFTMAX_BACKWARD || a->what == ATTN_LOG_SOFTMAX_BACKWARD;
}

/* The axes of the rows: any order gives the same results; the one with the smallest stride in x is the innermost, to read memory in its order. */
static inline void
softmax_outer_axes(const struct attn_softmax *a, struct attn_axes *axes)
{
    int order[ATTN_MAX_BATCH], count = a->ndim - a->reduced;
    for (int axis = 0; axis < count; axis++) {
        int at = axis;
        for (; at > 0 && llabs(a->x.batch[order[at - 1]]) < llabs(a->x.batch[axis]); at--)
            order[at] = order[at - 1];
        order[at] = axis;
    }
    axes->ndim = 0;
    for (int n = 0; n < count; n++) {
        int64_t stride[ATTN_WALKED] = {a->x.batch[order[n]], a->keep.data ? a->keep.batch[order[n]] : 0, a->y.batch[order[n]],
                                       a->grad.data ? a->grad.batch[order[n]] : 0, a->lse.data ? a->lse.batch[order[n]] : 0};
        attn_axis_push(axes, a->shape[order[n]], stride);
    }
}

/* The axes that are summed over, in their order; at least one, so that its strides can be asked for. */
static inline void
softmax_reduced_axes(const struct attn_softmax *a, struct attn_axes *axes)
{
    axes->ndim = 0;
    for (int axis = a->ndim - a->reduced; axis < a->ndim; axis++) {
        int64_t stride[ATTN_WALKED] = {a->x.batch[axis], a->keep.data ? a->keep.batch[axis] : 0, a->what == ATTN_LOGSUMEXP ? 0 : a->y.batch[axis],
                                       softmax_grad_is_full(a) ? a->grad.batch[axis] : 0, 0};
        attn_axis_push(axes, a->shape[axis], stride);
    }
    if (axes->ndim == 0) {
        axes->ndim = axes->shape[0] = 1;
        axes->stride[0][SOFTMAX_X] = attn_type_size(a->x.type);
        axes->stride[0][SOFTMAX_KEEP] = 1;
        axes->stride[0][SOFTMAX_Y] = attn_type_size(a->y.type);
        axes->stride[0][SOFTMAX_GRAD] = softmax_grad_is_full(a) ? attn_type_size(a->grad.type) : 0;
        axes->stride[0][SOFTMAX_LSE] = 0;
    }
}
#endif

/* REALs of this machine, `stride` bytes apart. */
ATTN_INLINE bool
run_is_direct(const struct attn_tensor *t)
{
    return t->type == (REAL_BITS == 32 ? ATTN_FLOAT32 : ATTN_FLOAT64) && !t->swapped && t->aligned;
}

/* buffer[r][i] = element i of row r, for rows that lie side by side: LANES x LANES at a time through v_transpose. Returns how many were done. */
ATTN_INLINE int64_t
lines_load(REAL *buffer, int64_t pitch, const char *x, int64_t rows, int64_t n, int64_t stride, enum attn_type type)
{
    int64_t size = attn_type_size(type), i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int64_t r = 0; r + LANES <= rows; r += LANES) {
            vreal a[VECTOR_BYTES / sizeof(REAL)];
            const char *p = x + i * stride + r * size;
    ATTN_UNROLL
            for (int j = 0; j < LANES; j++) {
#if REAL_BITS == 32
                if (type == ATTN_FLOAT16)
                    a[j] = v_load_f16(p + j * stride);
                else if (type == ATTN_BFLOAT16)
                    a[j] = v_load_bf16(p + j * stride);
                else
#endif
                    a[j] = v_loadu((const REAL *)(p + j * stride));
                __builtin_prefetch(p + (j + LANES) * stride, 0, 3);
            }
            v_transpose(a);
            ATTN_UNROLL
            for (int j = 0; j < LANES; j++)
                v_storeu(buffer + (r + j) * pitch + i, a[j]);
        }
    return i;
}

/* The way back. `stream`: past the caches; then y and the stride are multiples of a cache line. */
ATTN_INLINE int64_t
lines_store(char *y, const REAL *buffer, int64_t pitch, int64_t rows, int64_t n, int64_t stride, enum attn_type type, bool stream)
{
    int64_t size = attn_type_size(type), i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int64_t r = 0; r + LANES <= rows; r += LANES) {
            vreal a[VECTOR_BYTES / sizeof(REAL)];
            char *p = y + i * stride + r * size;
            ATTN_UNROLL
            for (int j = 0; j < LANES; j++)
                a[j] = v_loadu(buffer + (r + j) * pitch + i);
            v_transpose(a);
            ATTN_UNROLL
            for (int j = 0; j < LANES; j++) {
#if REAL_BITS == 32
                if (type == ATTN_FLOAT16)
                    v_store_f16(p + j * stride, a[j]);
                else if (type == ATTN_BFLOAT16)
                    v_store_bf16(p + j * stride, a[j]);
                else
#endif
                if (stream)
                    v_stream((REAL *)(p + j * stride), a[j]);
                else
                    v_storeu((REAL *)(p + j * stride), a[j]);
            }
        }
    return i;
}

/* buffer[r][i] = element i of n, `stride` bytes apart, of row r, `row` bytes apart. */
static void
load_runs(REAL *buffer, int64_t pitch, const struct attn_tensor *t, const char *x, int64_t rows, int64_t row, int64_t n, int64_t stride)
{
    int64_t size = attn_type_size(t->type), whole = rows - rows % LANES, done = 0;
    if (row == size && stride != size && !t->swapped) {
        if (run_is_direct(t))
            done = lines_load(buffer, pitch, x, whole, n, stride, REAL_BITS == 32 ? ATTN_FLOAT32 : ATTN_FLOAT64);
#if REAL_BITS == 32
        else if (t->type == ATTN_FLOAT16)
            done = lines_load(buffer, pitch, x, whole, n, stride, ATTN_FLOAT16);
        else if (t->type == ATTN_BFLOAT16)
            done = lines_load(buffer, pitch, x, whole, n, stride, ATTN_BFLOAT16);
#endif
    }
    for (int64_t r = 0; r < rows; r++) {
        int64_t from = r < whole ? done : 0;
        const char *p = x + r * row;
        REAL *target = buffer + r * pitch;
        if (run_is_direct(t) && stride != size)
            for (int64_t i = from; i < n; i++)
                target[i] = *(const REAL *)(p + i * stride);
        else if (from < n)
            load_row(target + from, p + from * stride, stride, n - from, t->type, t->swapped);
    }
}

/* The way back. */
static void
store_runs(const struct attn_tensor *t, char *y, int64_t rows, int64_t row, int64_t n, int64_t stride, const REAL *buffer, int64_t pitch, bool stream)
{
    int64_t size = attn_type_size(t->type), whole = rows - rows % LANES, done = 0;
    if (row == size && stride != size && !t->swapped) {
        if (run_is_direct(t) && stream && ((uintptr_t)y | (uintptr_t)stride) % 64 == 0)
            done = lines_store(y, buffer, pitch, whole, n, stride, REAL_BITS == 32 ? ATTN_FLOAT32 : ATTN_FLOAT64, true);
        else if (run_is_direct(t))
            done = lines_store(y, buffer, pitch, whole, n, stride, REAL_BITS == 32 ? ATTN_FLOAT32 : ATTN_FLOAT64, false);
#if REAL_BITS == 32
        else if (t->type == ATTN_FLOAT16)
            done = lines_store(y, buffer, pitch, whole, n, stride, ATTN_FLOAT16, false);
        else if (t->type == ATTN_BFLOAT16)
            done = lines_store(y, buffer, pitch, whole, n, stride, ATTN_BFLOAT16, false);
#endif
    }
    for (int64_t r = 0; r < rows; r++) {
        int64_t from = r < whole ? done : 0;
        char *p = y + r * row;
        const REAL *source = buffer + r * pitch;
        if (run_is_direct(t) && stride != size)
            for (int64_t i = from; i < n; i++)
                *(REAL *)(p + i * stride) = source[i];
        else if (from < n)
            store_row(p + from * stride, stride, source + from, n - from, t->type, t->swapped);
    }
}

/* LANES bools as a lane mask. */
ATTN_INLINE vint
v_load_kept(const char *p)
{
#if defined ATTN_ISA_AVX512 && REAL_BITS == 32
    __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    return (vint)_mm512_movm_epi32(_mm_test_epi8_mask(bytes, bytes));
#elif defined ATTN_ISA_AVX512
    __m128i bytes = _mm_loadl_epi64((const __m128i *)p);
    return (vint)_mm512_movm_epi64((__mmask8)_mm_test_epi8_mask(bytes, bytes));
#elif defined ATTN_ISA_AVX2 && REAL_BITS == 32
    return (vint)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)) != 0;
#else
    vint kept;
    for (int i = 0; i < LANES; i++)
        kept[i] = -(lane_int)(p[i] != 0);
    return kept;
#endif
}

/* buffer[r][i] = hidden where keep is false. */
static void
hide_runs(REAL *buffer, int64_t pitch, const char *keep, int64_t rows, int64_t row, int64_t n, int64_t stride, REAL hidden)
{
    for (int64_t r = 0; r < rows; r++) {
        const char *p = keep + r * row;
        REAL *target = buffer + r * pitch;
        int64_t i = 0;
        for (; stride == 1 && i + LANES <= n; i += LANES)
            v_storeu(target + i, v_select(v_load_kept(p + i), v_loadu(target + i), v_splat(hidden)));
        for (; i < n; i++)
            target[i] = p[i * stride] ? target[i] : hidden;
    }
}
