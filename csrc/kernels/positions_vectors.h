/* positions_vectors: attention whose scores, and perhaps values, know distances by a vector each.
 *
 * Computes   with n_ij = centre + j - (i + offset), clipped to 0 ... vectors - 1 where `clips`:
 *            relative_attention_shaw:  s_ij = scale q_i . (k_j + r_n) + bias_ij + attn_mask_ij,  O_i = sum_j P_ij (v_j + w_n)
 *            relative_attention_xl:    s_ij = scale ((q_i + c_h) . k_j + (q_i + p_h) . r_n) + bias_ij + attn_mask_ij,  O_i = sum_j P_ij v_j
 *            with P as in attention.h, and the gradients of both as in attention_backward.h, where T = dS and beside them
 *            grad_r_n = scale sum_ij T_ij (q_i + p_h),  grad_w_n = sum_ij P_ij dO_i  (over the pairs that meet n),
 *            grad_c_h = scale sum_ij T_ij k_j,  grad_p_h = scale sum_ij T_ij r_n,  grad_query_i = scale sum_j T_ij (k_j + r_n)
 * Given      struct attn_relative in the forward's arguments, and the operands of attention.h; no softcap, slopes, sinks, dropout or rows.
 *            r, w (B.., H, vectors, E or D), strides 0 where broadcast; c, p (B.., H, E).
 *            Where nothing clips, every pair that ranges leave visible has its vector: the caller has checked.
 * Returns    output, lse; grad_relative_key ... of attention_backward.h in REAL, C order, holding zeros, 0 strides where they are summed.
 * Special    As in attention.h. Vectors that no visible pair meets are never used.
 * Accuracy   As in attention.h with sum_d (|q| + |c|) |k| + (|q| + |p|) |r| in S_i, |v| + |w| in A_i, one product and two sums more.
 * Source     Shaw, Uszkoreit, Vaswani 2018 (arXiv 1803.02155), equations 3 and 4; Dai et al. 2019 (arXiv 1901.02860), section 3.3. */
#ifndef ATTN_POSITIONS_VECTORS_H
#define ATTN_POSITIONS_VECTORS_H

#include "attention_backward.h"

#endif
