/* layers_norm: rows brought to mean 0 and mean square 1, and the gradients of that.
 *
 * Computes   s = x + residual (s = x without one), over the n elements of a row
 *            centred (layer_norm):  m = sum_i s_i / n, v = sum_i (s_i - m)^2 / n;  else (rms_norm): m = 0, v = sum_i s_i^2 / n
 *            y_i = weight_i h_i + bias_i,  h_i = (s_i - m) / sqrt(v + eps)
 *            backward, of s: with p_i = grad_i weight_i
 *            y_i = (p_i - sum_j p_j / n (centred only) - h_i sum_j p_j h_j / n) / sqrt(v + eps) + grad_sum_i,
 *            grad_weight_i = sum over rows grad_i h_i,  grad_bias_i = sum over rows grad_i
 * Given      x, residual, grad, grad_sum   shape, strides in bytes; the last `reduced` axes are a row, in C order
 *            weight, bias                  n REALs each, side by side; NULL: 1 and 0
 *            eps                           >= 0
 * Returns    y, sum (s); all axes. grad_weight, grad_bias: the last `reduced` axes; those that are not wanted have data = NULL.
 *            y and sum may be x or residual themselves where n <= ATTN_NORM_RESIDENT, else overlap no input.
 * Special    v + eps = 0: NaN. A row with a NaN or an infinity is NaN. Where the squares overflow (differences beyond 1.8e19 in float) y = bias.
 * Accuracy   T = 80 + n / (64 LANES), r = 1 / sqrt(v + eps).
 *            layer_norm: u |weight_i| (T (1 + |h_i|) + 6 |h_i|) + u |y_i|: the mean's own rounding is made good by the mean of the differences, so that
 *            a mean far from 0 costs nothing. rms_norm: u |weight_i h_i| (T + 6) + u |y_i|. With a residual besides u |weight_i| r (|s_i| + mean |s|).
 *            backward: u r (T (mean |p| + |h_i| mean |p h|) + 8 |p_i|) (1 + |h|) likewise; tests/bounds_layers.py has the terms in full.
 *            Sums over rows: of at most 64 terms at a time.
 * Source     Ba, Kiros, Hinton 2016 (arXiv 1607.06450); Zhang, Sennrich 2019 (arXiv 1910.07467); Chan, Golub, LeVeque 1983 (the corrected mean). */
#ifndef ATTN_LAYERS_NORM_H
#define ATTN_LAYERS_NORM_H

#include "../core/attn.h"

enum { ATTN_NORM_RESIDENT = 16384 }; /* elements of the longest row that is kept while it is worked on */

/* Here a tensor's axes are all in its batch[]; head, row, column are unused. */
struct attn_norm {
    struct attn_call call;
    int ndim, reduced;
    int64_t shape[ATTN_MAX_BATCH];
    bool centred;
    double eps;
    struct attn_tensor x, residual, y, sum;                   /* y, in the backward function: the gradient of s */
    struct attn_tensor grad, grad_sum, grad_weight, grad_bias; /* of the backward function */
    const void *weight, *bias;
};

#endif
