/* attention_backward: the gradients of softmax attention and of its weights, without the L x S array.
 *
 * Computes   with P, s, lse as in attention.h and M_ij = kept_ij / (1 - p), or 1 without dropout:
 *            dP_ij = M_ij dO_i . v_j,  delta_i = dO_i . O_i - dlse_i,  dS_ij = P_ij (dP_ij - delta_i)
 *            (attention_weights_backward: dP is given, delta_i = sum_j P_ij dP_ij; there is no value)
 *            grad_value_j = sum_i P_ij M_ij dO_i,  grad_bias = grad_mask = dS,
 *            grad_sinks_h = - sum_i exp(sink_h - lse_i) delta_i,  grad_slopes_h = - sum_ij dS_ij |i + offset - j|
 *            grad_relative_hic = sum of dS_ij over the j with clip(j - i - offset, -K, K) + K = c, and over i where the rows share a row
 *            T_ij = dS_ij (1 - tanh^2(scale q_i . k_j / softcap)), or dS_ij without softcap
 *            grad_query_i = scale sum_j T_ij k_j,  grad_key_j = scale sum_i T_ij q_i
 * Given      forward: the operands of attention.h; its output (B.., H, L, D) and lse (B.., H, L) are read here, of any floating type
 *            gradient (B.., H, L, D), or (B.., H, row_count, S) of the weights; grad_lse (B.., H, L) or NULL
 * Returns    grad_query ... grad_relative: NULL where not wanted. Strides are 0 along what an operand broadcasts: the gradient is the sum there.
 *            grad_query (only where it broadcasts or `rows` is given), grad_mask, grad_bias, grad_sinks, grad_slopes and grad_relative are in REAL, lie in C order, and
 *            hold zeros; the others are overwritten. grad_key and grad_value broadcast along the same batch axes, or only one of them is wanted.
 *            They overlap nothing.
 * Special    Rows that see no key: 0; their sink still gets its part. Hidden elements of any operand, of the gradients too, are never used.
 * Accuracy   as in attention.h with r_n = 64 + ceil(n / 64) for a sum of n, and r_d |lse| more in the exponent, since P is made from the rounded lse;
 *            tests/bounds.py has the bounds, tests/accuracy.json the worst ratios seen.
 * Source     Dao 2023 (arXiv 2307.08691), algorithm 2. */
#ifndef ATTN_ATTENTION_BACKWARD_H
#define ATTN_ATTENTION_BACKWARD_H

#include "attention.h"

struct attn_attention_backward {
    struct attn_attention forward;
    struct attn_tensor gradient, grad_lse;
    struct attn_tensor grad_query, grad_key, grad_value, grad_mask, grad_bias, grad_sinks, grad_slopes, grad_relative;
    struct attn_tensor grad_relative_key, grad_relative_value, grad_content_bias, grad_position_bias; /* positions_vectors.h */
    bool of_weights;         /* attention_weights_backward */
    bool query_accumulates;  /* grad_query is added to */
};

#endif
