/* positions_sinusoidal: sines and cosines of positions, at frequencies that fall geometrically.
 *
 * Computes   angle(p, i) = p base^(-i / m),  i = 0 ... F - 1:  m = dim / 2, or with half_minus_one m = max(F - 1, 1)
 *            interleaved:   y_2i = sin angle(p, i),  y_2i+1 = cos angle(p, i),   F = ceil(dim / 2)
 *            concatenated:  y_i = sin angle(p, i),  y_F+i = cos angle(p, i),     F = floor(dim / 2); the last of an odd dim is 0
 * Given      positions   one or two of them, each of any floating type over the axes of shape, strides free; without data the position is
 *                        sum_axis index strides[axis]. Features dim ... 2 dim - 1 are those of the second
 *            base        within 1e-100 ... 1e100
 * Returns    y           (shape.., parts dim), any type but bool; overlaps no input
 * Special    A position that is NaN or infinite: NaN
 * Accuracy   |p base^(-i / m)| < 2^50: 3 u |y| in float64; one unit in the last place of |y| in float32, half a one and a little for most; half types
 *            round that once more. Beyond, the angle errs by about |angle| 2^-95
 * Source     Vaswani et al. 2017 (arXiv 1706.03762), section 3.5. */
#ifndef ATTN_POSITIONS_SINUSOIDAL_H
#define ATTN_POSITIONS_SINUSOIDAL_H

#include "../core/attn.h"

enum { ATTN_SINUSOIDAL_PARTS = 2 };

/* Here a tensor's axes are in its batch[]; y's features in its column. */
struct attn_sinusoidal {
    struct attn_call call;
    int ndim; /* at least 1 */
    int64_t shape[ATTN_MAX_BATCH];
    int64_t dim; /* features of a part */
    int parts;
    double base;
    bool concatenated, half_minus_one;
    struct attn_tensor positions[ATTN_SINUSOIDAL_PARTS], y;
};

#endif
