/* attn.h: the vocabulary that every floor shares: how an operand lies in memory, and how a kernel is called.
 *
 * Letters, here and in every contract: B batch, H query heads, G key/value heads, L query length, S key length, E head size of query and key
 * (head_dim), D head size of value and output (value_dim), u unit roundoff of the compute type. */
#ifndef ATTN_H
#define ATTN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    ATTN_MAX_BATCH = 64, /* batch axes: NumPy's own limit on dimensions */
    ATTN_MAX_PHASES = 4,
    ATTN_BLOCK = 64      /* queries in a row block and keys in a key block, on every level and for every type: the tiles of a block mask */
};

/* How an element is stored. Kernels compute in float or double; the others are storage. */
enum attn_type { ATTN_FLOAT32, ATTN_FLOAT64, ATTN_FLOAT16, ATTN_BFLOAT16, ATTN_BOOL, ATTN_INT64, ATTN_INT8 };

/* One operand. Strides are in bytes, may be negative, and are 0 along broadcast axes. */
struct attn_tensor {
    char *data;          /* element (0, ..., 0); NULL: an optional operand that is absent */
    enum attn_type type;
    bool swapped;        /* stored in the other byte order */
    bool aligned;        /* data and every stride are multiples of the element's size */
    int64_t head, row, column;
    int64_t batch[ATTN_MAX_BATCH]; /* only the first batch_ndim entries are set */
};

/* What every argument struct begins with: facts of the call, set by the engine. */
struct attn_call {
    const atomic_int *stop; /* for attn_stopped */
    void *workspace;        /* plan.workspace bytes shared by all tasks, 64-byte aligned; NULL if 0 */
    int threads;            /* threads that may take part: it may change how work is cut into tasks, never a result */
    int debug_blocks;       /* ATTNPY_DEBUG_BLOCKS: 0, or the number of keys in a key block (4 ... 64) */
};

/* Whether to leave. A kernel asks for every block of keys, so that a task may take long; where the calling thread runs the task, it looks for
 * signals meanwhile (pool.c). */
bool attn_stopped(const atomic_int *stop);

/* Waits until *turn is `mine`: tasks that add to the same numbers do so in one order. Tasks of a phase are handed out in ascending order, so a task
 * may wait for those before it, and for no others. False: told to stop. */
bool attn_wait_turn(const atomic_int *turn, int mine, const atomic_int *stop);

/* What a kernel needs before it starts. Phases run one after the other. */
struct attn_plan {
    int phases;
    int64_t tasks[ATTN_MAX_PHASES]; /* of each phase; a phase may have none */
    size_t scratch;   /* bytes for each thread that takes part */
    size_t workspace; /* bytes for all together */
    double cost;      /* floating-point operations, roughly: below a few hundred thousand one thread does them */
};

/* A kernel cannot fail: whatever it needs is reserved between plan and run. */
struct attn_kernel {
    void (*plan)(const void *arguments, struct attn_plan *plan);
    void (*run)(const void *arguments, int phase, int64_t task, void *scratch);
};

static inline int64_t
attn_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t
attn_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* The byte offset of batch element `index`, counted in C order. */
static inline int64_t
attn_batch_offset(int64_t index, int ndim, const int64_t *shape, const int64_t *stride)
{
    int64_t offset = 0;
    for (int axis = ndim - 1; axis >= 0 && index > 0; axis--) {
        offset += index % shape[axis] * stride[axis];
        index /= shape[axis];
    }
    return offset;
}

#endif
