/* shelf.h: blocks of memory that are kept for the next taker, so that he does not pay for fresh pages: 0.12 ms/MB in huge pages, 0.59 in pages of
 * 4 KB (median of 9 times 256 MB, Linux 6.18 in a virtual machine). */
#ifndef ATTN_SHELF_H
#define ATTN_SHELF_H

#include <stdatomic.h>
#include <stddef.h>

struct attn_shelf_list;

/* Zero: nothing on it. The child of a fork sets it to zero and leaks what it inherits: another thread may have held the lock. */
struct attn_shelf {
    _Atomic(struct attn_shelf_list *) list;
};

/* The bytes that a block for `bytes` has: 1, 1.25, 1.5 and 1.75 times a power of two. At most a quarter is wasted, and calls of similar shapes share
 * blocks. */
size_t attn_shelf_size(size_t bytes);

/* A block of `size` bytes as attn_shelf_size gives them, 64-byte aligned, from the shelf or fresh; free() and realloc() take it. NULL: no memory. */
void *attn_shelf_take(struct attn_shelf *shelf, size_t size);

/* Puts a block on the shelf; as many as `blocks` and `bytes` allow stay there, those given last. */
void attn_shelf_give(struct attn_shelf *shelf, void *block, size_t size, int blocks, size_t bytes);

#endif
