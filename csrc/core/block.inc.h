/* block.inc.h: rows of an operand, however they are stored, to and from contiguous REALs. Changes no operation, so the bits stay.
 * Included once per REAL, after vector.h and half.inc.h. */
#ifndef ATTN_BLOCK_NAMES
#define ATTN_BLOCK_NAMES
#define load_row SUFFIX(load_row)
#define store_row SUFFIX(store_row)
#define is_direct SUFFIX(is_direct)
#define element_to_real SUFFIX(element_to_real)
#define load_elements SUFFIX(load_elements)
#define to_real SUFFIX(to_real)
#define from_real SUFFIX(from_real)
#define narrowed SUFFIX(narrowed)

static inline int64_t
attn_type_size(enum attn_type type)
{
    static const int8_t size[] = {
        [ATTN_FLOAT32] = 4, [ATTN_FLOAT64] = 8, [ATTN_FLOAT16] = 2, [ATTN_BFLOAT16] = 2, [ATTN_BOOL] = 1, [ATTN_INT64] = 8, [ATTN_INT8] = 1};
    return size[type];
}

/* One element, whose bytes are turned round where it is swapped. */
static inline void
attn_copy_element(void *to, const void *from, int64_t size, bool swapped)
{
    uint64_t eight;
    uint32_t four;
    uint16_t two;
    switch (size) {
    case 8:
        memcpy(&eight, from, 8);
        eight = swapped ? __builtin_bswap64(eight) : eight;
        memcpy(to, &eight, 8);
        break;
    case 4:
        memcpy(&four, from, 4);
        four = swapped ? __builtin_bswap32(four) : four;
        memcpy(to, &four, 4);
        break;
    case 2:
        memcpy(&two, from, 2);
        two = swapped ? __builtin_bswap16(two) : two;
        memcpy(to, &two, 2);
        break;
    default:
        memcpy(to, from, 1);
    }
}
#endif

/* Whether the bodies may read the operand in place: REALs of this machine, side by side along the last axis. */
ATTN_INLINE bool
is_direct(const struct attn_tensor *t)
{
    return t->type == (REAL_BITS == 32 ? ATTN_FLOAT32 : ATTN_FLOAT64) && !t->swapped && t->aligned && t->column == (int64_t)sizeof(REAL);
}

/* float64 data in a float32 call (a mask): what is finite stays finite. */
ATTN_INLINE REAL
narrowed(double x)
{
#if REAL_BITS == 32
    if (x > (double)REAL_MAX && x < __builtin_inf())
        return REAL_MAX;
    if (x < -(double)REAL_MAX && x > -__builtin_inf())
        return -REAL_MAX;
#endif
    return (REAL)x;
}

ATTN_INLINE REAL
element_to_real(const char *element, enum attn_type type, bool swapped)
{
    union {
        float f;
        double d;
        uint16_t h;
        uint8_t b;
        int8_t c;
        int64_t i;
    } x;
    attn_copy_element(&x, element, attn_type_size(type), swapped);
    switch (type) {
    case ATTN_FLOAT32:
        return (REAL)x.f;
    case ATTN_FLOAT64:
        return narrowed(x.d);
    case ATTN_FLOAT16:
        return (REAL)half_to_float(x.h);
    case ATTN_BFLOAT16:
        return (REAL)bfloat16_to_float(x.h);
    case ATTN_BOOL:
        return (REAL)(x.b != 0);
    case ATTN_INT8:
        return (REAL)x.c;
    default:
        return (REAL)x.i;
    }
}

ATTN_NOINLINE REAL
to_real(const char *element, enum attn_type type, bool swapped)
{
    return element_to_real(element, type, swapped);
}

ATTN_NOINLINE void
from_real(char *element, REAL value, enum attn_type type, bool swapped)
{
    union {
        float f;
        double d;
        uint16_t h;
        uint8_t b;
    } x;
    switch (type) {
    case ATTN_FLOAT32:
        x.f = (float)value;
        break;
    case ATTN_FLOAT64:
        x.d = (double)value;
        break;
    case ATTN_FLOAT16:
        x.h = float_to_half((float)value);
        break;
    case ATTN_BFLOAT16:
        x.h = float_to_bfloat16((float)value);
        break;
    default:
        x.b = value != 0;
        break;
    }
    attn_copy_element(element, &x, attn_type_size(type), swapped);
}

/* One loop for each type: `type` and `swapped` are constants where this is inlined. */
ATTN_INLINE void
load_elements(REAL *row, const char *data, int64_t stride, int64_t from, int64_t n, enum attn_type type, bool swapped)
{
    for (int64_t i = from; i < n; i++)
        row[i] = element_to_real(data + i * stride, type, swapped);
}

/* row[i] = element i of n, which lie `stride` bytes apart. */
ATTN_NOINLINE void
load_row(REAL *row, const char *data, int64_t stride, int64_t n, enum attn_type type, bool swapped)
{
    int64_t i = 0;
    if (!swapped && stride == attn_type_size(type)) {
        if (type == (REAL_BITS == 32 ? ATTN_FLOAT32 : ATTN_FLOAT64)) {
            memcpy(row, data, (size_t)n * sizeof(REAL));
            return;
        }
#if REAL_BITS == 32
        if (type == ATTN_FLOAT16)
            for (; i + LANES <= n; i += LANES)
                v_storeu(row + i, v_load_f16(data + i * stride));
        if (type == ATTN_BFLOAT16)
            for (; i + LANES <= n; i += LANES)
                v_storeu(row + i, v_load_bf16(data + i * stride));
#endif
        if (type == ATTN_INT8)
            for (; i + LANES <= n; i += LANES)
                v_storeu(row + i, v_load_i8(data + i * stride));
    }
    switch (type) {
    case ATTN_FLOAT32:
        if (swapped)
            load_elements(row, data, stride, i, n, ATTN_FLOAT32, true);
        else
            load_elements(row, data, stride, i, n, ATTN_FLOAT32, false);
        break;
    case ATTN_FLOAT64:
        if (swapped)
            load_elements(row, data, stride, i, n, ATTN_FLOAT64, true);
        else
            load_elements(row, data, stride, i, n, ATTN_FLOAT64, false);
        break;
    case ATTN_FLOAT16:
        load_elements(row, data, stride, i, n, ATTN_FLOAT16, swapped);
        break;
    case ATTN_BFLOAT16:
        load_elements(row, data, stride, i, n, ATTN_BFLOAT16, swapped);
        break;
    default:
        load_elements(row, data, stride, i, n, type, swapped);
    }
}

/* Element i of n, `stride` bytes apart, = row[i], rounded once. */
ATTN_NOINLINE void
store_row(char *data, int64_t stride, const REAL *row, int64_t n, enum attn_type type, bool swapped)
{
    int64_t i = 0;
    if (!swapped && stride == attn_type_size(type)) {
        if (type == (REAL_BITS == 32 ? ATTN_FLOAT32 : ATTN_FLOAT64)) {
            memcpy(data, row, (size_t)n * sizeof(REAL));
            return;
        }
#if REAL_BITS == 32
        if (type == ATTN_FLOAT16)
            for (; i + LANES <= n; i += LANES)
                v_store_f16(data + i * stride, v_loadu(row + i));
        if (type == ATTN_BFLOAT16)
            for (; i + LANES <= n; i += LANES)
                v_store_bf16(data + i * stride, v_loadu(row + i));
#endif
    }
    for (; i < n; i++)
        from_real(data + i * stride, row[i], type, swapped);
}
