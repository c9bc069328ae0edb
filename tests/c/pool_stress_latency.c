/* pool_stress_latency.c: what a job costs beside its tasks. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pool_stress.h"

#include <stdio.h>
#include <unistd.h>

static void
measure(const char *what, int tasks, int threads, int64_t nanoseconds, size_t scratch, int rest)
{
    enum { ROUNDS = 400 };
    static double taken[ROUNDS];
    struct count count = {.nanoseconds = nanoseconds};
    for (int i = 0; i < ROUNDS; i++) {
        struct attn_job job = counting_job(&count, tasks, threads);
        job.scratch = scratch;
        count.scratch = 0;
        if (rest)
            usleep((useconds_t)rest);
        const int64_t begin = attn_nanoseconds();
        attn_pool_run(&job);
        taken[i] = (double)(attn_nanoseconds() - begin) / 1000;
    }
    for (int i = 1; i < ROUNDS; i++)
        for (int j = i; j > 0 && taken[j] < taken[j - 1]; j--) {
            const double swap = taken[j];
            taken[j] = taken[j - 1], taken[j - 1] = swap;
        }
    printf("%-44s median %7.2f us, lower quartile %7.2f, upper %7.2f\n", what, taken[ROUNDS / 2], taken[ROUNDS / 4], taken[ROUNDS * 3 / 4]);
}

int
latency(void)
{
    attn_set_num_threads(2);
    measure("2 tasks of 50 us, 2 threads, back to back", 2, 2, 50000, 0, 0);
    measure("2 tasks of 50 us, 2 threads, 1 ms apart", 2, 2, 50000, 0, 1000);
    measure("2 tasks of 50 us, 1 thread", 2, 1, 50000, 0, 0);
    measure("1 empty task", 1, 1, 0, 0, 0);
    const int rounds = 1000000;
    const int64_t begin = attn_nanoseconds();
    for (int i = 0; i < rounds; i++)
        attn_scratch_give(attn_scratch_take(4096), 4096);
    printf("small scratch, taken and given                %.1f ns\n", (double)(attn_nanoseconds() - begin) / rounds);
    return 0;
}
