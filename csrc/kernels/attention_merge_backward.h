/* attention_merge_backward: the gradients of merge_attention.
 *
 * Computes   share_t = exp(lse_t - lse),  grad_output_t = share_t dO,  grad_lse_t = share_t (dO . (O_t - O) + dlse)
 * Given      outputs: parts tensors (B.., rows, D), lses: parts tensors (B.., rows); output O (B.., rows, D) and lse (B.., rows): what merge_attention
 *            gave; grad_output dO (B.., rows, D), grad_lse dlse (B.., rows) or NULL. Strides row and column; head is unused. Log-sum-exps and
 *            grad_lse are in REAL, native.
 * Returns    grad_outputs, grad_lses: parts tensors like outputs and lses, of any floating type. Batch strides are 0 along what a part broadcasts: the
 *            gradient is the sum there. They overlap nothing.
 * Special    lse_t = -inf: both gradients of the part are 0, whatever dO, O, O_t, dlse and lse hold.
 * Accuracy   grad_output_t: u (6 + |lse_t - lse|) |grad_output_t|; grad_lse_t: the same, and u (73 + D / (64 LANES)) share_t sum_d |dO_d (O_td - O_d)|;
 *            sums of n broadcast elements: each term's bound, and u (64 + n / 64) times the sum of their magnitudes. The worst ratios seen are in
 *            tests/accuracy.json.
 * Source     the derivative of Milakov, Gimelshein 2018 (arXiv 1805.02867), equation 4. */
#ifndef ATTN_ATTENTION_MERGE_BACKWARD_H
#define ATTN_ATTENTION_MERGE_BACKWARD_H

#include "../core/attn.h"

struct attn_merge_backward {
    struct attn_call call;
    int batch_ndim;
    int64_t batch_shape[ATTN_MAX_BATCH];
    int64_t batch, rows, value_dim, parts;
    const struct attn_tensor *outputs, *lses;
    struct attn_tensor output, lse, grad_output, grad_lse;
    const struct attn_tensor *grad_outputs, *grad_lses;
};

#endif
