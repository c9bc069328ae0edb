/* probe: what this machine can do, measured beside the kernels.
 *
 * Computes   fma_peak: independent fused multiply-adds in registers. tile_ceiling: the inner loops of attention (scores, weights, output) on one
 *            group of queries and one block of keys that stay in L1.
 * Given      rounds; head_dim
 * Returns    the floating-point operations done, for the caller to divide by its clock. tile_ceiling counts 4 L S D, not the exponentials.
 * Special    none
 * Accuracy   none: the numbers are thrown away
 * Source     Williams, Waterman, Patterson 2009, "Roofline". */
#ifndef ATTN_PROBE_H
#define ATTN_PROBE_H

#include <stdint.h>

#endif
