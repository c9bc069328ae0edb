/* softmax: normalised exponentials over some axes, and their gradients.
 *
 * Computes   logsumexp:    y = m + ln sum_i exp(x_i - m),  m = max_i x_i            over the kept i
 *            softmax:      y_i = exp(x_i - m) / sum_j exp(x_j - m)
 *            log_softmax:  y_i = x_i - m - ln sum_j exp(x_j - m)
 *            softmax_backward:      y_i = x_i (g_i - sum_j g_j x_j), where x is softmax's result and g the gradient that reached it
 *            log_softmax_backward:  y_i = g_i - exp(x_i) sum_j g_j, where x is log_softmax's result
 *            logsumexp_backward:    y_i = g exp(x_i - lse), where x is logsumexp's operand and lse its result
 * Given      x       shape, strides in bytes; the last `reduced` axes are summed over, in C order of the named axes whatever the memory order
 *            keep    ATTN_BOOL or NULL; where it is false the element is not part of the sum and may hold anything
 *            grad    g, of the backward functions: all axes, of logsumexp_backward the outer ones; else NULL
 *            lse     of logsumexp_backward, the outer axes; else NULL
 * Returns    y       logsumexp: the outer axes, all others: all axes; may be x or grad itself, else overlaps no input
 * Special    nothing kept: -inf for logsumexp and log_softmax, 0 for softmax. Not kept: 0 (softmax), -inf (log_softmax). A kept NaN: NaN.
 *            A kept +inf: +inf for logsumexp, NaN for softmax. Exponentials keep their subnormals.
 *            Backward: not kept: 0, whatever x and g hold there; lse = -inf: 0. A kept NaN or inf goes where the formula takes it.
 * Accuracy   logsumexp: u (72 + n / (64 LANES)) + u |y|; softmax: u (72 + n / (64 LANES) + |x_i - m|) y_i and half the least subnormal, as x_i - m is
 *            rounded; log_softmax: u (72 + n / (64 LANES)) + 2 u |y_i|;
 *            softmax_backward: u |x_i| ((73 + n / (64 LANES)) sum_j |g_j x_j| + 2 |y_i / x_i|); log_softmax_backward:
 *            u exp(x_i) ((72 + n / (64 LANES)) sum_j |g_j| + 4 |sum_j g_j|) + u |y_i|; logsumexp_backward: u (4 + |x_i - lse|) |y_i|;
 *            the worst ratios seen are in tests/accuracy.json.
 * Source     Milakov, Gimelshein 2018 (arXiv 1805.02867), algorithm 3, by blocks. */
#ifndef ATTN_SOFTMAX_H
#define ATTN_SOFTMAX_H

#include "../core/attn.h"

enum attn_softmax_what { ATTN_SOFTMAX, ATTN_LOG_SOFTMAX, ATTN_LOGSUMEXP, ATTN_SOFTMAX_BACKWARD, ATTN_LOG_SOFTMAX_BACKWARD, ATTN_LOGSUMEXP_BACKWARD };

/* Here a tensor's axes are all in its batch[]: `ndim` entries, of which the last `reduced` are reduced; head, row, column are unused. */
struct attn_softmax {
    struct attn_call call;
    int ndim, reduced;
    int64_t shape[ATTN_MAX_BATCH];
    enum attn_softmax_what what;
    struct attn_tensor x, keep, y, grad, lse;
};

#endif
