/* softmax: normalised exponentials over some axes.
 *
 * Computes   logsumexp:    y = m + ln sum_i exp(x_i - m),  m = max_i x_i            over the kept i
 *            softmax:      y_i = exp(x_i - m) / sum_j exp(x_j - m)
 *            log_softmax:  y_i = x_i - m - ln sum_j exp(x_j - m)
 * Given      x       shape, strides in bytes; the last `reduced` axes are summed over, in C order of the named axes whatever the memory order
 *            keep    ATTN_BOOL or NULL; where it is false the element is not part of the sum and may hold anything
 * Returns    y       logsumexp: the outer axes, softmax and log_softmax: all axes; may be x itself, else overlaps no input
 * Special    nothing kept: -inf for logsumexp and log_softmax, 0 for softmax. Not kept: 0 (softmax), -inf (log_softmax). A kept NaN: NaN.
 *            A kept +inf: +inf for logsumexp, NaN for softmax. Exponentials keep their subnormals.
 * Accuracy   logsumexp: u (72 + n / (64 LANES)) + u |y|; softmax: u (72 + n / (64 LANES) + |x_i - m|) y_i and half the least subnormal, as x_i - m is
 *            rounded; log_softmax: u (72 + n / (64 LANES)) + 2 u |y_i|; the worst ratios seen are in tests/accuracy.json.
 * Source     Milakov, Gimelshein 2018 (arXiv 1805.02867), algorithm 3, by blocks. */
#ifndef ATTN_SOFTMAX_H
#define ATTN_SOFTMAX_H

#include "../core/attn.h"

enum attn_softmax_what { ATTN_SOFTMAX, ATTN_LOG_SOFTMAX, ATTN_LOGSUMEXP };

/* Here a tensor's axes are all in its batch[]: `ndim` entries, of which the last `reduced` are reduced; head, row, column are unused. */
struct attn_softmax {
    struct attn_call call;
    int ndim, reduced;
    int64_t shape[ATTN_MAX_BATCH];
    enum attn_softmax_what what;
    struct attn_tensor x, keep, y;
};

#endif
