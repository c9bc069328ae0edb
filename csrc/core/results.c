/* results.c: memory for results that a caller keeps, and that comes back when he drops them.
 *
 * A training loop drops a step's gradients and asks for the same again. The C library gives large blocks back to the system in between, and the
 * pages then cost more than the arithmetic of a small attention: 8 x 12 heads of 128 took 6.0 ms with fresh pages, 4.5 with kept ones. */
#include "pool.h"
#include "shelf.h"

#include <stdbool.h>
#include <stdlib.h>

/* What stays when nobody uses it: the gradients of a step of a small model, and no more than a notebook's user would overlook. */
enum { BLOCKS_KEPT = 32 };
static const size_t bytes_kept = (size_t)64 << 20;

static struct attn_shelf shelf;

void
attn_results_after_fork(void)
{
    atomic_store(&shelf.list, NULL);
}

/* Under AddressSanitizer each block has its own bounds. */
#ifdef __SANITIZE_ADDRESS__
static const bool kept = false;
#else
static const bool kept = true;
#endif

/* A size follows from the bytes asked for, so it need not be stored with the block. */
static bool
is_large(size_t bytes)
{
    return kept && bytes >= ATTN_RESULT_LARGE && bytes <= PTRDIFF_MAX / 2;
}

void *
attn_result_take(size_t bytes)
{
    return is_large(bytes) ? attn_shelf_take(&shelf, attn_shelf_size(bytes)) : malloc(bytes);
}

void
attn_result_give(void *block, size_t bytes)
{
    if (block != NULL && is_large(bytes))
        attn_shelf_give(&shelf, block, attn_shelf_size(bytes), BLOCKS_KEPT, bytes_kept);
    else
        free(block);
}

void *
attn_result_resize(void *block, size_t bytes)
{
    return realloc(block, is_large(bytes) ? attn_shelf_size(bytes) : bytes);
}
