/* pool.h: the threads. A job is a number of independent tasks; the calling thread works on it too.
 *
 * Several jobs may be open at once (one per calling Python thread, up to 16): idle workers take tasks from any, oldest first. Workers
 * running <= max(0, threads - callers). Nothing here depends on Python. */
#ifndef ATTN_POOL_H
#define ATTN_POOL_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { ATTN_MAX_THREADS = 1024 };

enum attn_status { ATTN_DONE, ATTN_NO_MEMORY, ATTN_STOPPED };

struct attn_job {
    void (*run)(void *context, int64_t task, void *scratch); /* tasks are handed out in ascending order */
    void *context;
    int64_t tasks;
    size_t scratch;          /* bytes for each participant: 64-byte aligned, reserved before the first task; 0: NULL is passed */
    int threads;             /* most participants, the caller included; 1: run in the caller, no pool is touched */
    atomic_int *stop;        /* set by the pool when poll says so; the tasks read it and return early */
    int (*poll)(void *poll_context); /* NULL, or called by the calling thread about every 50 ms: nonzero stops the job */
    void *poll_context;
};

/* Runs the job; returns when every participant has left it. */
enum attn_status attn_pool_run(struct attn_job *job);

/* 64-byte aligned memory that outlives a call: scratch blocks are kept in a free list capped at threads + 4. NULL: no memory. */
void *attn_scratch_take(size_t bytes);
void attn_scratch_give(void *block, size_t bytes);
void attn_scratch_after_fork(void);  /* the child begins with no blocks */
void attn_scratch_fail_after(long n); /* for tests: n more can be had, then none; negative: any number */

/* Memory for results: bytes of ATTN_RESULT_LARGE and more are kept for the next result when they are given back. `bytes` is what was asked for last. */
enum { ATTN_RESULT_LARGE = 256 << 10 };
void *attn_result_take(size_t bytes);
void *attn_result_resize(void *block, size_t bytes);
void attn_result_give(void *block, size_t bytes);
void attn_results_after_fork(void);

int attn_get_num_threads(void); /* min(affinity, cgroup quota, ATTNPY_NUM_THREADS, else OMP_NUM_THREADS) until set */
void attn_set_num_threads(int threads); /* 1 ... 1024; clipped */

/* Called once at import: registers the fork handlers. No thread is started before the first job that wants one. */
int attn_pool_init(void);

#endif
