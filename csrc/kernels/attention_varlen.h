/* attention_varlen: attention, and its gradients, over sequences that are packed one behind the other along one axis.
 *
 * Computes   for sequence n, whose queries are rows query_starts[n] ... query_starts[n + 1] - 1 of (T, H, E) and whose keys are rows key_starts[n] ...
 *            key_starts[n + 1] - 1 of (T', G, E), what attention.h and attention_backward.h say, with its own L and S
 * Given      backward: the operands of attention_backward.h without batch axes: `row` strides run along T or T', `head` strides along H or G;
 *            attn_mask, bias, lengths, rows, their gradients, and what accumulates in grad_query are absent; query_length and key_length are the
 *            longest of the sequences. causal_offset (N), alibi_slopes and sinks (N, H), the gradients of the latter two, and relative_bias
 *            (N, H, T or 1, 2K + 1): batch[0] is their stride along the sequences, 0 where all share one. varlen_attention reads `forward` alone.
 *            query_starts, key_starts (N + 1): begin at 0, do not decrease, end at most at query_rows and key_rows, which are T and T'
 *            table: with room for N + 2 items and workspaces; plan fills it
 * Returns    output (T, H, D), lse (H, T); gradients as in attention_backward.h. Rows past the last sequence: output and gradients 0, lse -inf.
 * Special    A sequence of no queries or no keys is one whose arrays are empty: its rows see nothing, its keys get gradients of 0.
 *            Dropout's batch number is that of the sequence.
 * Accuracy   as in attention.h and attention_backward.h: the kernels are theirs, and every sequence has the bits of a call of its own.
 *            Gradients of sinks and slopes are sums over the sequences, in ascending order.
 * Source     Dao et al. 2022 (arXiv 2205.14135), whose software takes packed sequences by their cumulative lengths. */
#ifndef ATTN_ATTENTION_VARLEN_H
#define ATTN_ATTENTION_VARLEN_H

#include "attention_backward.h"

/* Sequences first ... end - 1: one with tasks of its own, or several that are one task. */
struct attn_varlen_item {
    int64_t first, end;
    bool together;
    double work;
    int64_t task[ATTN_MAX_PHASES]; /* the first of each phase */
};

/* What plan lays down for run. */
struct attn_varlen_table {
    double work; /* of all sequences */
    int64_t items;
    struct attn_varlen_item *item; /* heaviest first */
    int64_t *workspace;            /* where the workspace of each sequence begins, in bytes */
};

struct attn_varlen {
    struct attn_attention_backward backward;
    int64_t sequences, query_rows, key_rows;
    const int64_t *query_starts, *key_starts;
    struct attn_varlen_table *table;
};

#endif
