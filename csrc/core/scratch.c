/* scratch.c: memory that outlives a call, so that a call does not pay for fresh pages.
 *
 * Small blocks (a call on tiny arrays takes one) lie in a few slots that are swapped in and out by one atomic exchange. Larger ones, and small
 * ones that find no slot, lie in a list under a lock: most recently given first, as many as there are threads. A block's size follows from the
 * bytes asked for, so it is not stored while the block is in use. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE
#endif
#include "pool.h"
#include "shelf.h"

#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGNMENT = 64, SMALL = 256 << 10, SLOTS = 4 };

/* A larger block goes straight back, so that one huge call does not keep its memory for ever. */
static const size_t largest_kept = (size_t)256 << 20;

static _Atomic(void *) slots[SLOTS];
static struct attn_shelf shelf;
static atomic_long takes_left = -1;
static pthread_once_t read_environment = PTHREAD_ONCE_INIT;
static bool debug; /* ATTNPY_DEBUG_SCRATCH */

static void
look_at_environment(void)
{
    const char *text = getenv("ATTNPY_DEBUG_SCRATCH");
    debug = text != NULL && strcmp(text, "1") == 0;
}

/* The child of a fork leaks what it inherits: another thread may have held the lock, or have been about to write to a block. */
void
attn_scratch_after_fork(void)
{
    for (int i = 0; i < SLOTS; i++)
        atomic_store(&slots[i], NULL);
    atomic_store(&shelf.list, NULL);
}

static size_t
block_size(size_t bytes)
{
    return attn_shelf_size(bytes > SMALL ? bytes : SMALL);
}

/* Debug blocks are never reused. The block ends at a page that cannot be touched; a read of what was not written finds NaN in every type. */
static size_t
debug_pages(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

static size_t
debug_length(size_t bytes)
{
    return bytes == 0 ? ALIGNMENT : (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static void *
debug_take(size_t bytes)
{
    /* signalling as float64, and every other float32 and bfloat16; NaN as float16 */
    static const uint64_t nan = UINT64_C(0x7ff47fa07fa07fa0);
    const size_t length = debug_length(bytes), pages = debug_pages(length), page = (size_t)sysconf(_SC_PAGESIZE);
    char *start = mmap(NULL, pages + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    if (mprotect(start + pages, page, PROT_NONE) != 0) {
        munmap(start, pages + page);
        return NULL;
    }
    char *block = start + (pages - length);
    for (size_t i = 0; i < length; i += sizeof nan)
        memcpy(block + i, &nan, sizeof nan);
    return block;
}

static void
debug_give(void *block, size_t bytes)
{
    const size_t length = debug_length(bytes), pages = debug_pages(length);
    munmap((char *)block - (pages - length), pages + (size_t)sysconf(_SC_PAGESIZE));
}

/* After attn_scratch_fail_after(n): true from the (n + 1)th take on. */
static bool
made_to_fail(void)
{
    long left = atomic_load_explicit(&takes_left, memory_order_relaxed);
    while (left > 0)
        if (atomic_compare_exchange_weak(&takes_left, &left, left - 1))
            return false;
    return left == 0;
}

void
attn_scratch_fail_after(long n)
{
    atomic_store(&takes_left, n < 0 ? -1 : n);
}

void *
attn_scratch_take(size_t bytes)
{
    pthread_once(&read_environment, look_at_environment);
    if (bytes > PTRDIFF_MAX / 2 || made_to_fail())
        return NULL;
    if (debug)
        return debug_take(bytes);
    const size_t size = block_size(bytes);
    if (size == SMALL) {
        for (int i = 0; i < SLOTS; i++) {
            void *block = atomic_load_explicit(&slots[i], memory_order_relaxed);
            if (block != NULL && (block = atomic_exchange(&slots[i], NULL)) != NULL)
                return block;
        }
    }
    return attn_shelf_take(&shelf, size);
}

void
attn_scratch_give(void *block, size_t bytes)
{
    if (block == NULL)
        return;
    if (debug) {
        debug_give(block, bytes);
        return;
    }
    const size_t size = block_size(bytes);
    if (size == SMALL) {
        for (int i = 0; i < SLOTS; i++) {
            void *none = NULL;
            if (atomic_load_explicit(&slots[i], memory_order_relaxed) == NULL && atomic_compare_exchange_strong(&slots[i], &none, block))
                return;
        }
    }
    if (size <= largest_kept)
        attn_shelf_give(&shelf, block, size, attn_get_num_threads(), SIZE_MAX);
    else
        free(block);
}
