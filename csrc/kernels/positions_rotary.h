/* positions_rotary: rotary position embedding: the features of each token, in pairs, turned by angles that grow with its position.
 *
 * Computes   y_first = x_first cos - x_second sin,  y_second = x_second cos + x_first sin   for each of rotary_dim / 2 pairs;  inverse: with -sin
 *            A pair is (i, rotary_dim / 2 + i) or (2 i, 2 i + 1), i = 0 ... rotary_dim / 2 - 1; cos and sin are those of row `position` of the tables,
 *            columns i, or of tables that hold each number twice the first of the two
 * Given      x (B.., H, L, E);  cosine, sine (B.., 1, P, rotary_dim / 2 or rotary_dim), REAL, native, side by side along the last axis, other strides free
 *            (0 where broadcast);  positions (B.., 1, L), int64, native, each 0 ... P - 1, or NULL: token i is at position i
 * Returns    y (B.., H, L, E), features from rotary_dim on copied; may be x itself (same strides), else overlaps no input
 * Special    NaN and infinities reach the other feature of their pair as well, and no other. cos = 1, sin = 0 changes no finite number but the sign of zeros
 * Accuracy   2 u (|x_first cos| + |x_second sin|), likewise the second of a pair; half a unit more where y is a half type
 * Source     Su et al. 2021 (arXiv 2104.09864), equation 34. */
#ifndef ATTN_POSITIONS_ROTARY_H
#define ATTN_POSITIONS_ROTARY_H

#include "../core/attn.h"

/* Which features are a pair, and how the tables lie: feature i with rotary_dim / 2 + i; 2 i with 2 i + 1, tables of rotary_dim / 2 columns; the same, tables
 * of rotary_dim columns. Halves read the first rotary_dim / 2 columns of either. */
enum attn_rotation { ATTN_ROTATE_HALVES, ATTN_ROTATE_NEIGHBOURS, ATTN_ROTATE_NEIGHBOURS_WIDE };

struct attn_rotary {
    struct attn_call call;
    int batch_ndim;
    int64_t batch_shape[ATTN_MAX_BATCH];
    int64_t batch, heads, length, head_dim, rotary_dim;
    enum attn_rotation how;
    bool inverse;
    struct attn_tensor x, y, cosine, sine, positions; /* positions: its row axis is L */
};

#endif
