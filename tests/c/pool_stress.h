/* pool_stress.h: what the parts of the stress test share. */
#ifndef POOL_STRESS_H
#define POOL_STRESS_H

#include "../../csrc/core/pool.h"
#include "../../csrc/core/system.h"

#include <stdbool.h>

enum { MOST_TASKS = 1000, PATIENCE_SECONDS = 20 };

#define CHECK(condition) check((condition), #condition, __func__, __LINE__)
void check(bool good, const char *condition, const char *function, int line);

/* Counts how often each task ran, how many ran at once, and whether two participants had the same scratch. */
struct count {
    atomic_int times[MOST_TASKS];
    atomic_int now, most, wrong;
    int64_t nanoseconds; /* that a task takes */
    size_t scratch;
    atomic_int stop;
};

struct attn_job counting_job(struct count *count, int64_t tasks, int threads);

/* Runs it: was every task done exactly once, with scratch of its own, and has every participant left? */
bool counts_right(int64_t tasks, int threads, size_t scratch, int64_t nanoseconds);

extern pthread_t main_thread;
extern atomic_int worker_began; /* set by a task that the main thread then waits for */
bool wait_for_worker(void);

void test_children(void); /* pool_stress_fork.c */
void test_scratch(void);  /* pool_stress_scratch.c */
int latency(void);        /* pool_stress_latency.c */

#endif
