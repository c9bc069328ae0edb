/* layers_loss: the cross entropy of class scores, and its gradient.
 *
 * Computes   loss_i = logsumexp_j x_ij - (1 - s) x_it - s / V sum_j x_ij, t = targets_i; 0 where t = ignored
 *            none: y_i = loss_i; sum: y = sum_i loss_i; mean: y = sum_i loss_i / N, N = how many targets are not ignored
 *            backward: y_ij = g_i (exp(x_ij) / sum_j exp(x_ij) - (1 - s) [j = t] - s / V), g_i = grad_i (none), grad (sum), grad / N (mean)
 * Given      x        shape[0] ... shape[ndim - 1] in batch[], of which the last axis is the V classes
 *            targets  one for each row, side by side in C order; 0 ... V - 1 or `ignored`, checked by the caller
 *            grad     the axes but the last (none), or one element; backward
 * Returns    y        forward: the axes but the last, or one element; of the type computed in. backward: all axes; may be x itself
 * Special    A row that is ignored has loss 0 and gradient 0 whatever is stored there. No row counts: mean is NaN. A NaN makes its row NaN.
 * Accuracy   u (76 + V / (64 LANES)) + 3 u (|m| + |x_t| + s mean |x|) + u |y|, m the largest of the row; sums over rows: (64 + rows / 64) u of their sizes.
 *            backward: u |g| ((80 + V / (64 LANES) + |x_j - m|) p_j + 3)
 * Source     Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2015 (arXiv 1512.00567), section 7. */
#ifndef ATTN_LAYERS_LOSS_H
#define ATTN_LAYERS_LOSS_H

#include "../core/attn.h"

enum attn_reduction { ATTN_REDUCE_NONE, ATTN_REDUCE_SUM, ATTN_REDUCE_MEAN };

struct attn_cross_entropy {
    struct attn_call call;
    int ndim;
    int64_t shape[ATTN_MAX_BATCH];
    const int64_t *targets;
    int64_t ignored;
    double smoothing; /* s */
    enum attn_reduction reduction;
    struct attn_tensor x, grad, y; /* of y and grad in the forward and backward functions only the batch[] of their own axes counts */
};

#endif
