/* positions_relative: biases that depend on the distance alone: ALiBi's as a dense array, T5's from its table of buckets.
 *
 * Computes   alibi_bias:                output_hij = - slope_h |i + offset - j|
 *            t5_relative_bias:          values_hc = table_bh with b = bucket_c
 *            t5_relative_bias_backward: table_bh = sum of values_hc over the c of bucket b
 * Given      slopes (B.., H) of any floating type; offset (B..) ATTN_INT64, native; or absent: S - L
 *            buckets (columns) ATTN_INT64 native, contiguous, each in 0 ... number - 1: checked by the caller; table (number, H), strides row and column;
 *            values (H, 1, columns), strides head and column
 * Returns    output (B.., H, L, S), values or table, of any floating type. They overlap no input.
 * Special    A term beyond the type computed in that comes of a finite slope saturates: -inf would hide. NaN goes where its slope or bucket does.
 * Accuracy   alibi_bias: u |output|, distances beyond 2^24 (2^53) rounded besides; t5_relative_bias: exact; its sums of n: u (64 + n / 64) times
 *            the sum of magnitudes
 * Source     Press et al. 2022 (arXiv 2108.12409), section 3; Raffel et al. 2020 (arXiv 1910.10683), section 2.1. */
#ifndef ATTN_POSITIONS_RELATIVE_H
#define ATTN_POSITIONS_RELATIVE_H

#include "../core/attn.h"

struct attn_alibi {
    struct attn_call call;
    int batch_ndim;
    int64_t batch_shape[ATTN_MAX_BATCH];
    int64_t batch, heads, query_length, key_length;
    struct attn_tensor slopes, offset, output;
};

struct attn_buckets {
    struct attn_call call;
    int64_t heads, number, columns;
    const int64_t *bucket;
    struct attn_tensor table, values;
    bool sums; /* values are given, and summed into the table */
};

#endif
