/* attention_jvp: the derivative of softmax attention along a direction (a Jacobian-vector product), row by row, without the L x S array.
 *
 * Computes   ds_ij = scale (dq_i . k_j + q_i . dk_j) (1 - tanh^2(scale q_i . k_j / softcap)) + dbias_ij
 *            mu_i = sum_j P_ij ds_ij + exp(sink_h - lse_i) dsink_h, with the weights P of attention.h
 *            O_i and lse_i of attention.h;  dO_i = sum_j dropout(P_ij) (dv_j + (ds_ij - mu_i) v_j);  dlse_i = mu_i
 * Given      forward: as in attention.h; rows absent
 *            query_tangent (B.., H, L, E), key_tangent (B.., G, S, E), value_tangent (B.., G, S, D), bias_tangent (B.., H, L, S): any floating type,
 *            strides 0 where broadcast, along columns too; sinks_tangent (B.., H) in REAL, native, strides free. Absent (NULL): 0.
 *            bias_tangent and sinks_tangent are there only if bias and sinks are
 * Returns    forward.output, output_tangent (B.., H, L, D);  forward.lse, lse_tangent (B.., H, L) in REAL, both or neither. Outputs overlap no input
 *            and no other output.
 * Special    A row that sees no key: tangents 0 (with a sink: dlse = dsink). Hidden elements of any operand and of any tangent are never used. A visible
 *            NaN makes NaN of what it enters. Products beyond +-FLT_MAX that come of finite operands saturate there.
 * Accuracy   With |ds|_i = sum_j P_ij |ds_ij|, where each |ds_ij| is made of absolute values: the errors of P as in attention.h times
 *            (|ds_ij| + |ds|_i) |v_j| + |dv_j|, and u (E + 8) times the same sum; tests/bounds.py
 * Source     The derivative of equation 1 of Vaswani et al. 2017 (arXiv 1706.03762), summed as in Dao 2023 (arXiv 2307.08691), algorithm 1; Baydin et
 *            al. 2018 (arXiv 1502.05767), section 3.1, for the forward mode. */
#ifndef ATTN_ATTENTION_JVP_H
#define ATTN_ATTENTION_JVP_H

#include "attention.h"

struct attn_attention_jvp {
    struct attn_attention forward;
    struct attn_tensor query_tangent, key_tangent, value_tangent;
    struct attn_tensor bias_tangent, sinks_tangent, relative_bias_tangent;
    struct attn_tensor output_tangent, lse_tangent;
};

#endif
