/* level.inc.h: everything of one instruction-set level. The including file has set the target, ATTN_ISA_X, VECTOR_BYTES and LEVEL(name). */
#ifdef __STRICT_ANSI__
#error "build with -std=gnu11: under -std=c11 gcc does not contract a * b + c, and the kernels run at half speed"
#endif

#define REAL float
#define REAL_BITS 32
#define SUFFIX(name) name##_f32
#include "../kernels/all.inc.h"
#undef REAL
#undef REAL_BITS
#undef SUFFIX
#undef LANES

#define REAL double
#define REAL_BITS 64
#define SUFFIX(name) name##_f64
#include "../kernels/all.inc.h"
#undef REAL
#undef REAL_BITS
#undef SUFFIX
#undef LANES

#define BOTH(name) {&name##_f32, &name##_f64}

const struct attn_kernels LEVEL(attn_kernels) = {
    .softmax = BOTH(attn_softmax),
    .softmax_backward = BOTH(attn_softmax_backward),
    .rotary_embedding = BOTH(attn_rotary_embedding),
    .attention = BOTH(attn_attention),
    .attention_jvp = BOTH(attn_attention_jvp),
    .attention_weights = BOTH(attn_attention_weights),
    .attention_received = BOTH(attn_attention_received),
    .attention_backward = BOTH(attn_attention_backward),
    .varlen = BOTH(attn_varlen),
    .varlen_backward = BOTH(attn_varlen_backward),
    .merge_attention = BOTH(attn_merge_attention),
    .merge_attention_backward = BOTH(attn_merge_backward),
    .dropout_mask = BOTH(attn_dropout_mask),
    .alibi_bias = BOTH(attn_alibi_bias),
    .buckets = BOTH(attn_buckets_kernel),
    .linear = BOTH(attn_linear),
    .linear_backward = BOTH(attn_linear_backward),
    .elementwise = BOTH(attn_elementwise),
    .norm = BOTH(attn_norm),
    .norm_backward = BOTH(attn_norm_backward),
    .sinusoidal = {&attn_sinusoidal_f64, &attn_sinusoidal_f64},
    .add_positions = BOTH(attn_add_positions),
    .interpolate_positions = BOTH(attn_interpolate_positions),
    .embedding = BOTH(attn_embedding),
    .embedding_backward = BOTH(attn_embedding_backward),
    .cross_entropy = BOTH(attn_cross_entropy),
    .cross_entropy_backward = BOTH(attn_cross_entropy_backward),
    .fma_peak = {attn_fma_peak_f32, attn_fma_peak_f64},
    .tile_ceiling = {attn_tile_ceiling_f32, attn_tile_ceiling_f64},
    .read = attn_read_f32,
    .elementary = {attn_elementary_f32, attn_elementary_f64},
};
