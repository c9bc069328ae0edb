/* shelf.c: lists of idle blocks under a lock, most recently given first. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE
#endif
#include "shelf.h"

#include "system.h"

#include <limits.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { ALIGNMENT = 64, HUGE = 2 << 20 };

/* The header of a block that nobody uses lies in the block itself. */
struct idle {
    struct idle *next;
    size_t size;
};

struct attn_shelf_list {
    pthread_mutex_t lock;
    struct idle *first;
};

size_t
attn_shelf_size(size_t bytes)
{
    if (bytes <= ALIGNMENT)
        return ALIGNMENT;
    const int top = (int)(sizeof(long) * CHAR_BIT) - 1 - __builtin_clzl(bytes - 1);
    const size_t step = (size_t)1 << (top - 2);
    return (bytes + step - 1) / step * step;
}

static struct attn_shelf_list *
list_of(struct attn_shelf *shelf)
{
    struct attn_shelf_list *now = atomic_load(&shelf->list);
    if (now != NULL)
        return now;
    struct attn_shelf_list *fresh = calloc(1, sizeof *fresh);
    if (fresh == NULL)
        return NULL;
    attn_lock_init(&fresh->lock);
    if (atomic_compare_exchange_strong(&shelf->list, &now, fresh))
        return fresh;
    pthread_mutex_destroy(&fresh->lock);
    free(fresh);
    return now;
}

static void *
fresh_block(size_t size)
{
    void *block;
    if (posix_memalign(&block, size >= HUGE ? HUGE : ALIGNMENT, size) != 0)
        return NULL;
#ifdef MADV_HUGEPAGE
    if (size >= HUGE)
        madvise(block, size / HUGE * HUGE, MADV_HUGEPAGE); /* advice only: the result does not matter */
#endif
    return block;
}

void *
attn_shelf_take(struct attn_shelf *shelf, size_t size)
{
    struct attn_shelf_list *list = atomic_load(&shelf->list);
    if (list == NULL)
        return fresh_block(size);
    pthread_mutex_lock(&list->lock);
    struct idle **link = &list->first;
    while (*link != NULL && (*link)->size != size)
        link = &(*link)->next;
    struct idle *found = *link;
    if (found != NULL)
        *link = found->next;
    pthread_mutex_unlock(&list->lock);
    return found != NULL ? found : fresh_block(size);
}

/* Those that are too many or too large together are freed without the lock. */
void
attn_shelf_give(struct attn_shelf *shelf, void *block, size_t size, int blocks, size_t bytes)
{
    struct attn_shelf_list *list = size <= bytes ? list_of(shelf) : NULL;
    if (list == NULL) {
        free(block);
        return;
    }
    struct idle *given = block;
    given->size = size;
    pthread_mutex_lock(&list->lock);
    given->next = list->first;
    list->first = given;
    struct idle **link = &list->first;
    while (*link != NULL && blocks-- > 0 && (*link)->size <= bytes) {
        bytes -= (*link)->size;
        link = &(*link)->next;
    }
    struct idle *surplus = *link;
    *link = NULL;
    pthread_mutex_unlock(&list->lock);
    while (surplus != NULL) {
        struct idle *next = surplus->next;
        free(surplus);
        surplus = next;
    }
}
