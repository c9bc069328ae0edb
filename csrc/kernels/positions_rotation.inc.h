/* positions_rotation.inc.h: a row's features turned in pairs (positions_rotary.h), for the kernel of that name and for attention, which turns queries and
 * keys as it loads them. Of the two products of each sum the second is rounded and the first fused, by name and not by contraction: so every kernel, every
 * tail and both compilers give the same bits. Levels without fused multiply-adds round both. */
#ifndef ATTN_ROTATION_NAMES
#define ATTN_ROTATION_NAMES
#define v_turned SUFFIX(v_turned)
#define v_load_stored SUFFIX(v_load_stored)
#define v_store_stored SUFFIX(v_store_stored)
#define v_load_table SUFFIX(v_load_table)
#define v_neighbours SUFFIX(v_neighbours)
#define rotate_halves SUFFIX(rotate_halves)
#define rotate_neighbours SUFFIX(rotate_neighbours)
#define rotate_as SUFFIX(rotate_as)
#define rotate_row SUFFIX(rotate_row)
#endif

/* x cos + (other sin), whose sign is turned where `negative` has the sign bit: exact, so that turning back is the same operation. */
ATTN_INLINE vreal
v_turned(vreal x, vreal other, vreal cosine, vreal sine, vint negative)
{
    return v_fused(x, cosine, (vreal)((vint)(other * sine) ^ negative));
}

/* `count` <= LANES elements from p, which are native and lie side by side; 0 in the other lanes. */
ATTN_INLINE vreal
v_load_stored(const char *p, int64_t count, enum attn_type type)
{
#if REAL_BITS == 32
    if (type == ATTN_FLOAT16 || type == ATTN_BFLOAT16) {
        vhalf part = {0};
        if (count < LANES) {
            memcpy(&part, p, (size_t)count * sizeof part[0]);
            p = (const char *)&part;
        }
        return type == ATTN_FLOAT16 ? v_load_f16(p) : v_load_bf16(p);
    }
#else
    (void)type;
#endif
    return count < LANES ? v_load_part((const REAL *)p, count, (vreal){0}) : v_loadu((const REAL *)p);
}

/* The way back, rounded once. */
ATTN_INLINE void
v_store_stored(char *p, int64_t count, vreal x, enum attn_type type)
{
#if REAL_BITS == 32
    if (type == ATTN_FLOAT16 || type == ATTN_BFLOAT16) {
        vhalf part;
        char *to = count < LANES ? (char *)&part : p;
        if (type == ATTN_FLOAT16)
            v_store_f16(to, x);
        else
            v_store_bf16(to, x);
        if (count < LANES)
            memcpy(p, &part, (size_t)count * sizeof part[0]);
        return;
    }
#else
    (void)type;
#endif
    if (count < LANES)
        v_store_part((REAL *)p, count, x);
    else
        v_storeu((REAL *)p, x);
}

/* `count` <= LANES numbers of a table from p; none are read where there are none. */
ATTN_INLINE vreal
v_load_table(const REAL *p, int64_t count)
{
    return count == LANES ? v_loadu(p) : count > 0 ? v_load_part(p, count, (vreal){0}) : (vreal){0};
}

/* Feature i with feature pairs + i, for `n` <= LANES pairs from `i` on. */
ATTN_INLINE void
rotate_halves(char *to, const char *from, int64_t pairs, const REAL *cosine, const REAL *sine, bool inverse, enum attn_type type, int64_t i,
              int64_t n)
{
    const vint sign = (vint)v_splat((REAL)-0.0), first_turns = inverse ? (vint){0} : sign, second_turns = inverse ? sign : (vint){0};
    const int64_t size = attn_type_size(type), apart = pairs * size;
    vreal a = v_load_stored(from + i * size, n, type), b = v_load_stored(from + apart + i * size, n, type);
    vreal c = v_load_table(cosine + i, n), s = v_load_table(sine + i, n);
    v_store_stored(to + i * size, n, v_turned(a, b, c, s, first_turns), type);
    v_store_stored(to + apart + i * size, n, v_turned(b, a, c, s, second_turns), type);
}

/* Each even lane changes place with the one behind it. */
ATTN_INLINE vreal
v_neighbours(vreal x)
{
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif VECTOR_BYTES * 8 / REAL_BITS == 8
    return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
#elif VECTOR_BYTES * 8 / REAL_BITS == 4
    return __builtin_shufflevector(x, x, 1, 0, 3, 2);
#else
    return __builtin_shufflevector(x, x, 1, 0);
#endif
}

/* Feature 2 i with feature 2 i + 1, likewise. wide: the tables hold each number twice, one behind the other. */
ATTN_INLINE void
rotate_neighbours(char *to, const char *from, const REAL *cosine, const REAL *sine, bool wide, bool inverse, enum attn_type type, int64_t i,
                  int64_t n)
{
    const vint turns = v_lane_bits(inverse ? 0xaaaaaaaa : 0x55555555) & (vint)v_splat((REAL)-0.0);
    const int64_t size = attn_type_size(type), low = attn_min(LANES, 2 * n), high = 2 * n - low;
    const char *p = from + 2 * i * size;
    char *q = to + 2 * i * size;
    vreal x = v_load_stored(p, low, type), y = {0}, c, d, s, t;
    if (high > 0)
        y = v_load_stored(p + LANES * size, high, type);
    if (wide) {
        c = v_load_table(cosine + 2 * i, low);
        s = v_load_table(sine + 2 * i, low);
        d = v_load_table(cosine + 2 * i + low, high);
        t = v_load_table(sine + 2 * i + low, high);
    } else {
        vreal each = v_load_table(cosine + i, n), other = v_load_table(sine + i, n);
        c = v_interleave_low(each, each);
        d = v_interleave_high(each, each);
        s = v_interleave_low(other, other);
        t = v_interleave_high(other, other);
    }
    v_store_stored(q, low, v_turned(x, v_neighbours(x), c, s, turns), type);
    if (high > 0)
        v_store_stored(q + LANES * size, high, v_turned(y, v_neighbours(y), d, t, turns), type);
}

ATTN_INLINE void
rotate_as(char *to, const char *from, int64_t pairs, const REAL *cosine, const REAL *sine, enum attn_rotation how, bool inverse, enum attn_type type)
{
    int64_t i = 0;
    if (how == ATTN_ROTATE_HALVES) {
        for (; i + LANES <= pairs; i += LANES)
            rotate_halves(to, from, pairs, cosine, sine, inverse, type, i, LANES);
        if (i < pairs)
            rotate_halves(to, from, pairs, cosine, sine, inverse, type, i, pairs - i);
        return;
    }
    bool wide = how == ATTN_ROTATE_NEIGHBOURS_WIDE;
    for (; i + LANES <= pairs; i += LANES)
        rotate_neighbours(to, from, cosine, sine, wide, inverse, type, i, LANES);
    if (i < pairs)
        rotate_neighbours(to, from, cosine, sine, wide, inverse, type, i, pairs - i);
}

/* The first 2 `pairs` features of a row, turned by its row of the tables; what lies behind them in `to` stays as it is. `to` may be `from`, and overlaps
 * nothing else. inverse: turned back, which is also what gradients need (the transposed rotation). */
ATTN_NOINLINE void
rotate_row(REAL *to, const REAL *from, int64_t pairs, const REAL *cosine, const REAL *sine, enum attn_rotation how, bool inverse)
{
    rotate_as((char *)to, (const char *)from, pairs, cosine, sine, how, inverse, REAL_BITS == 32 ? ATTN_FLOAT32 : ATTN_FLOAT64);
}
