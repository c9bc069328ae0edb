/* probe: what this machine can do, measured beside the kernels.
 *
 * Computes   fma_peak: independent fused multiply-adds in registers. tile_ceiling: the inner loops of attention (scores, weights, output) on one
 *            group of queries and one block of keys that stay in L1. read: loads of whole vectors.
 * Given      rounds; head_dim; data and its bytes
 * Returns    the floating-point operations done, for the caller to divide by its clock. tile_ceiling counts 4 L S D, not the exponentials.
 *            read: the bytes read.
 * Special    none
 * Accuracy   none: the numbers are thrown away
 * Source     Williams, Waterman, Patterson 2009, "Roofline". */
#ifndef ATTN_PROBE_H
#define ATTN_PROBE_H

#include <stdint.h>

/* The elementary functions of core/elementary.inc.h, and rounding to the half types and back. */
enum attn_elementary {
    ATTN_EXP2,
    ATTN_EXP2_WEIGHT,
    ATTN_EXP,
    ATTN_LOG,
    ATTN_TANH,
    ATTN_UPPER_TAIL,
    ATTN_LOGISTIC,
    ATTN_TO_FLOAT16,
    ATTN_TO_BFLOAT16
};

#endif
