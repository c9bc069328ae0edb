/* layers_linear.h: the linear layer and its gradients.
 *
 * Computes   linear:           z_mn = sum_k x_mk w_nk + b_n,   y_mn = f(z_mn) + r_mn,   f the activation: none, relu, gelu, gelu_tanh, silu
 *            linear_backward:  dz_mn = g_mn f'(z_mn),  dx_mk = sum_n dz_mn w_nk,  dw_nk = sum_m dz_mn x_mk,  db_n = sum_m dz_mn
 * Given      x           (..., K); the axes before the last are walked in C order as M rows
 *            weight      (N, K), any strides; or in panels, see struct attn_panels
 *            bias        (N), in the type computed in, or NULL
 *            residual    (..., N), r, strides 0 where it broadcasts; or NULL. Backward: none
 *            grad        (..., N), g; backward only
 *            z           (..., N), backward with an activation; NULL: it is computed anew
 * Returns    y           (..., N); backward: grad_x (..., K), grad_weight (N, K), grad_bias (N), each NULL where it is not wanted; overlaps no input
 * Special    K = 0: y = f(b) + r. NaN and infinities stay in the row of x, or the column of y, that they are in.
 * Accuracy   |error of z| <= u (c + C / c + 3) (sum_k |x_mk w_nk| + |b_n|) for sums of C terms, c = min(C, 384): each is a chain of at most 384 fused
 *            multiply-adds, started at 0, and these are added in order. dx, dw and db likewise. Chains are cut by C alone: a row of y has the same
 *            bits among any number of rows, from packed weights or from others of the same values.
 * Source     K. Goto, R. van de Geijn 2008 (doi 10.1145/1356052.1356053): panels of one operand stay in L2 while the other's rows pass by. */
#ifndef ATTN_LAYERS_LINEAR_H
#define ATTN_LAYERS_LINEAR_H

#include "../core/attn.h"
#include "layers.h"

/* A weight cut into panels of so many outputs, each (K, columns) in C order, those past the last output 0: 64 outputs, float64: 32. */
struct attn_panels {
    const char *data; /* NULL: there are none */
    enum attn_type type;
    int64_t columns;
    const float *scale; /* (N), by which the elements of an output's weights are multiplied; or NULL */
};

struct attn_linear {
    struct attn_call call;
    int batch_ndim;
    int64_t batch_shape[ATTN_MAX_BATCH];
    int64_t rows, inputs, outputs; /* M, K, N */
    bool activated;
    enum attn_activation_kind activation; /* if activated */
    struct attn_tensor x, weight, bias, residual, y;
    struct attn_panels panels;
    struct attn_tensor grad, z, grad_x, grad_weight, grad_bias; /* backward only */
};

#endif
