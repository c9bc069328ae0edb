/* layers_embedding: rows of a table by their numbers, and the gradient of the table.
 *
 * Computes   y_i = table_v, v = indices_i;  backward: y_v = sum over i with indices_i = v of grad_i
 * Given      indices  `count` numbers side by side, 0 ... entries - 1, checked by the caller
 *            table    (entries, columns); forward
 *            grad     axes shape[0] ... shape[ndim - 1] in batch[], and columns; backward
 * Returns    y        forward: as grad, of the table's type; backward: (entries, columns)
 * Special    a row of the table that no index names: gradient 0. Elements are copied bit by bit in the forward function.
 * Accuracy   backward: u (64 + n / 64) sum_i |grad_i| for a row named n times: added in ascending order of i, at most 64 terms at a time
 * Source     Mikolov, Chen, Corrado, Dean 2013 (arXiv 1301.3781), whose first layer this is. */
#ifndef ATTN_LAYERS_EMBEDDING_H
#define ATTN_LAYERS_EMBEDDING_H

#include "../core/attn.h"

struct attn_embedding {
    struct attn_call call;
    int ndim; /* axes of the indices */
    int64_t shape[ATTN_MAX_BATCH];
    int64_t count, entries, columns;
    const int64_t *indices;
    struct attn_tensor table, grad, y; /* the table's rows are `row` bytes apart; of the others the axes of the indices are in batch[] */
};

#endif
