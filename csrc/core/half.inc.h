/* half.inc.h: float16, bfloat16 and int8 as storage. Rounding is to nearest, ties to even; subnormals are exact; beyond the range is infinity; NaN stays a
 * quiet NaN of its sign. Every level, and the scalar functions, give the same bits. Included once per REAL; the vectors of half types exist where REAL is
 * float. */
#ifndef ATTN_HALF_NAMES
#define ATTN_HALF_NAMES
#define vhalf SUFFIX(vhalf)
#define vbits SUFFIX(vbits)
#define v_load_f16 SUFFIX(v_load_f16)
#define v_store_f16 SUFFIX(v_store_f16)
#define v_load_bf16 SUFFIX(v_load_bf16)
#define v_store_bf16 SUFFIX(v_store_bf16)
#define v_bytes SUFFIX(v_bytes)
#define v_load_i8 SUFFIX(v_load_i8)

/* The exponent of float16 is moved into that of float. Where it was 0 (zero and subnormals), the number read has an implicit bit that it should not
 * have: exponent 1 is written instead, and the bit's value 2^-14 subtracted, both exact. Where it was 31, it becomes 255. */
static inline float
half_to_float(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } x = {.u = (uint32_t)(h & 0x7fff) << 13};
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = x.u & (31u << 23);
    x.u += 112u << 23; /* 127 - 15 */
    if (exponent == 31u << 23)
        x.u = (x.u + (112u << 23)) | (x.u & 0x7fffff ? 0x400000 : 0);
    else if (exponent == 0) {
        x.u += 1u << 23;
        x.f -= 0x1p-14f;
    }
    x.u |= sign;
    return x.f;
}

/* Below 2^-14 the unit of float16 is 2^-24, which is that of a float in [1/2, 1): adding 1/2 rounds there. Above, half of the last place kept (less
 * 1, plus the last bit, for ties) is added to the bits; a carry runs on into the exponent, up to infinity, as it should. */
static inline uint16_t
float_to_half(float f)
{
    union {
        float f;
        uint32_t u;
    } x = {.f = f};
    uint32_t sign = x.u >> 16 & 0x8000;
    x.u &= 0x7fffffff;
    if (x.u > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (x.u >> 13 & 0x3ff));
    if (x.u >= 0x47800000) /* 2^16 */
        return (uint16_t)(sign | 0x7c00);
    if (x.u < 0x38800000) { /* 2^-14 */
        x.f += 0.5f;
        return (uint16_t)(sign | (x.u - 0x3f000000));
    }
    return (uint16_t)(sign | ((x.u - (112u << 23) + 0xfff + (x.u >> 13 & 1)) >> 13));
}

static inline float
bfloat16_to_float(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } x = {.u = (uint32_t)h << 16};
    return x.f;
}

static inline uint16_t
float_to_bfloat16(float f)
{
    union {
        float f;
        uint32_t u;
    } x = {.f = f};
    if ((x.u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(x.u >> 16 | 0x40);
    return (uint16_t)((x.u + 0x7fff + (x.u >> 16 & 1)) >> 16);
}
#endif

#if REAL_BITS == 32
typedef uint32_t vbits __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef uint16_t vhalf __attribute__((vector_size(VECTOR_BYTES / 2), may_alias));

/* LANES stored elements from p, at any address. */
ATTN_INLINE vreal
v_load_f16(const char *p)
{
    vhalf h;
    memcpy(&h, p, sizeof h);
#if defined ATTN_ISA_AVX512
    return (vreal)_mm512_cvtph_ps((__m256i)h);
#elif defined ATTN_ISA_AVX2
    return (vreal)_mm256_cvtph_ps((__m128i)h);
#else
    vbits wide = __builtin_convertvector(h, vbits), u = (wide & 0x7fff) << 13, sign = (wide & 0x8000) << 16;
    vbits exponent = u & 31u << 23, fraction = u & 0x7fffff;
    vbits special = (vbits)(exponent == 31u << 23), tiny = (vbits)(exponent == 0), nan = special & (vbits)(fraction != 0);
    u += 112u << 23;
    vbits subnormal = (vbits)((vreal)(u + (1u << 23)) - v_splat(0x1p-14f));
    u = (u + (special & 112u << 23)) | (nan & 0x400000);
    return (vreal)((tiny & subnormal) | (~tiny & u) | sign);
#endif
}

/* LANES elements to p, at any address, each rounded once. */
ATTN_INLINE void
v_store_f16(char *p, vreal x)
{
#if defined ATTN_ISA_AVX512
    vhalf h = (vhalf)_mm512_cvtps_ph((__m512)x, 8);
#elif defined ATTN_ISA_AVX2
    vhalf h = (vhalf)_mm256_cvtps_ph((__m256)x, 0);
#else
    vbits u = (vbits)x & 0x7fffffff, sign = (vbits)x >> 16 & 0x8000;
    vbits large = (vbits)(u >= 0x47800000), tiny = (vbits)(u < 0x38800000), nan = (vbits)(u > 0x7f800000);
    vbits normal = (u - (112u << 23) + 0xfff + (u >> 13 & 1)) >> 13;
    vbits subnormal = (vbits)((vreal)u + v_splat(0.5f)) - 0x3f000000;
    vbits special = 0x7c00 | (nan & (0x200 | (u >> 13 & 0x3ff)));
    vbits word = (large & special) | (tiny & subnormal) | (~(large | tiny) & normal);
    vhalf h = __builtin_convertvector(word | sign, vhalf);
#endif
    memcpy(p, &h, sizeof h);
}

ATTN_INLINE vreal
v_load_bf16(const char *p)
{
    vhalf h;
    memcpy(&h, p, sizeof h);
    return (vreal)(__builtin_convertvector(h, vbits) << 16);
}

ATTN_INLINE void
v_store_bf16(char *p, vreal x)
{
    vbits u = (vbits)x, nan = (vbits)(x != x), rounded = u + 0x7fff + (u >> 16 & 1);
    vhalf h = __builtin_convertvector(((nan & (u | 0x400000)) | (~nan & rounded)) >> 16, vhalf);
    memcpy(p, &h, sizeof h);
}
#endif

typedef int8_t v_bytes __attribute__((vector_size(VECTOR_BYTES / sizeof(REAL)), may_alias));

/* LANES integers of a byte each from p, at any address; all are exact. */
ATTN_INLINE vreal
v_load_i8(const char *p)
{
    v_bytes bytes;
    memcpy(&bytes, p, sizeof bytes);
#if defined ATTN_ISA_AVX512 && REAL_BITS == 32
    return (vreal)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)bytes));
#elif defined ATTN_ISA_AVX2 && REAL_BITS == 32
    return (vreal)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadu_si64(&bytes)));
#else
    return __builtin_convertvector(bytes, vreal);
#endif
}
