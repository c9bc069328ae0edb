/* positions_learned: learned tables, one row a position: added to tokens, and made longer or shorter by interpolation; and their gradients.
 *
 * Computes   add_positions:            y[b, i] = x[b, i] + table[b, offset_b + i]
 *            its gradient:             y[t, n] = sum of x[b, n - offset_b] over the batch elements b that share table t, where 0 <= n - offset_b < L;
 *                                      here x is the gradient that reached the sum
 *            interpolate_positions:    y[n] = x[n], n < prefix;  y[prefix + (v, u)] = sum_a wv_a sum_b wu_b x[prefix + (a, b)], (v, u) in row-major order
 *                                      of a grid of `to`, (a, b) of `from`. Along an axis of m points that become n, point o lies at
 *                                      (o + 1/2) m / n - 1/2; linear: two neighbours, cubic: four, Keys' kernel with a = -3/4; beyond the ends the end itself
 *            its gradient (transposed): the same weights the other way, x over `to`, y over `from`
 * Given      x (B.., L, D), table (B.., N, D), offset int64 over the batch with 0 <= offset <= N - L;  x (B.., prefix + points, D): strides free
 * Returns    y as x, or as the table; of add_positions it may be x itself (same strides); else it overlaps no input
 * Special    Rows of the table that no token takes are not read. Points of weight 0 are not read: a grid that stays as it is gives x itself.
 *            Rows of the gradient that nothing reached: 0
 * Accuracy   add: u |y|; its gradient: u (64 + n / 64) sum |x|, n summands; interpolation: u (4 + n) sum |w x|, n the summands, at most 64, and
 *            for more 64 + n / 64; weights are made in double and rounded
 * Source     Gehring et al. 2017 (arXiv 1705.03122); Dosovitskiy et al. 2021 (arXiv 2010.11929), section 3.2; Keys 1981 (doi 10.1109/TASSP.1981.1163711). */
#ifndef ATTN_POSITIONS_LEARNED_H
#define ATTN_POSITIONS_LEARNED_H

#include "../core/attn.h"

struct attn_add_positions {
    struct attn_call call;
    int batch_ndim;
    int64_t batch_shape[ATTN_MAX_BATCH];
    int64_t batch, length, dim, table_rows;
    bool backward;
    struct attn_tensor x, table, y, offset; /* backward: y is the table's gradient, over the same axes, strides 0 where they share it */
};

struct attn_interpolate_positions {
    struct attn_call call;
    int batch_ndim;
    int64_t batch_shape[ATTN_MAX_BATCH];
    int64_t batch, dim, prefix;
    int64_t from[2], to[2]; /* of a line: 1 and its points */
    bool cubic, transposed;
    struct attn_tensor x, y;
};

#endif
