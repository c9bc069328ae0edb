/* isa.h: the table of kernels that each instruction-set level exports. Index: ATTN_FLOAT32 or ATTN_FLOAT64, the type computed in. */
#ifndef ATTN_ISA_H
#define ATTN_ISA_H

#include "../core/attn.h"
#include "../kernels/probe.h"

struct attn_kernels {
    const struct attn_kernel *softmax[2];            /* softmax.h: struct attn_softmax, the three functions */
    const struct attn_kernel *softmax_backward[2];   /* their gradients */
    const struct attn_kernel *rotary_embedding[2];   /* positions_rotary.h: struct attn_rotary */
    const struct attn_kernel *attention[2];          /* attention.h: struct attn_attention */
    const struct attn_kernel *attention_jvp[2];      /* attention_jvp.h: struct attn_attention_jvp */
    const struct attn_kernel *attention_weights[2];
    const struct attn_kernel *attention_received[2];
    const struct attn_kernel *attention_backward[2]; /* attention_backward.h: struct attn_attention_backward, both functions */
    const struct attn_kernel *varlen[2];             /* attention_varlen.h: struct attn_varlen */
    const struct attn_kernel *varlen_backward[2];
    const struct attn_kernel *merge_attention[2];    /* struct attn_merge */
    const struct attn_kernel *merge_attention_backward[2]; /* attention_merge_backward.h: struct attn_merge_backward */
    const struct attn_kernel *dropout_mask[2];       /* struct attn_dropout */
    const struct attn_kernel *alibi_bias[2];         /* positions_relative.h: struct attn_alibi */
    const struct attn_kernel *buckets[2];            /* struct attn_buckets, both directions */
    const struct attn_kernel *linear[2];             /* layers_linear.h: struct attn_linear */
    const struct attn_kernel *linear_backward[2];
    const struct attn_kernel *elementwise[2];        /* layers.h: struct attn_elementwise */
    const struct attn_kernel *norm[2];               /* layers_norm.h: struct attn_norm */
    const struct attn_kernel *norm_backward[2];
    const struct attn_kernel *sinusoidal[2];         /* positions_sinusoidal.h: struct attn_sinusoidal; in double for both */
    const struct attn_kernel *add_positions[2];      /* positions_learned.h: struct attn_add_positions, and its gradient */
    const struct attn_kernel *interpolate_positions[2]; /* struct attn_interpolate_positions */
    const struct attn_kernel *embedding[2];          /* layers_embedding.h: struct attn_embedding */
    const struct attn_kernel *embedding_backward[2];
    const struct attn_kernel *cross_entropy[2];      /* layers_loss.h: struct attn_cross_entropy */
    const struct attn_kernel *cross_entropy_backward[2];
    double (*fma_peak[2])(int64_t rounds);                       /* probe.h */
    double (*tile_ceiling[2])(int64_t head_dim, int64_t rounds); /* probe.h */
    double (*read)(const void *data, int64_t bytes);             /* probe.h */
    void (*elementary[2])(enum attn_elementary what, const void *x, void *y, int64_t n);
};

extern const struct attn_kernels attn_kernels_avx512, attn_kernels_avx2, attn_kernels_baseline;

#endif
