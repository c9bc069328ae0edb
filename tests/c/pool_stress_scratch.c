/* pool_stress_scratch.c: alignment, reuse, guards, and lack of memory. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pool_stress.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void
scratch_is_aligned_and_distinct(void)
{
    static const size_t sizes[] = {0, 1, 64, 4000, 256 << 10, (256 << 10) + 1, 1000000, (2 << 20) - 1, 2 << 20, 5000001};
    enum { EACH = 7 };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        unsigned char *block[EACH];
        for (int j = 0; j < EACH; j++) {
            block[j] = attn_scratch_take(sizes[i]);
            CHECK(block[j] != NULL && (uintptr_t)block[j] % 64 == 0);
            memset(block[j], j + 1, sizes[i]);
        }
        bool distinct = true;
        for (int j = 0; j < EACH; j++)
            for (size_t k = 0; k < sizes[i]; k++)
                distinct &= block[j][k] == j + 1;
        CHECK(distinct);
        for (int j = 0; j < EACH; j++)
            attn_scratch_give(block[j], sizes[i]);
    }
    CHECK(attn_scratch_take(SIZE_MAX) == NULL && attn_scratch_take(SIZE_MAX - 63) == NULL);
    CHECK(attn_scratch_take(PTRDIFF_MAX) == NULL);
    attn_scratch_give(NULL, 100);
}

static void
scratch_is_used_again(void)
{
    static const size_t sizes[] = {1000, 300000, 3000000};
    for (int i = 0; i < 3; i++) {
        void *first = attn_scratch_take(sizes[i]);
        attn_scratch_give(first, sizes[i]);
        void *again = attn_scratch_take(sizes[i] - sizes[i] / 100);
        CHECK(first == again);
        attn_scratch_give(again, sizes[i] - sizes[i] / 100);
    }
}

/* Reads the byte after the block. */
static void
overstep(size_t bytes)
{
    const volatile unsigned char *block = attn_scratch_take(bytes);
    signal(SIGSEGV, SIG_DFL);
    if (block != NULL)
        (void)block[(bytes + 63) / 64 * 64];
    _exit(0);
}

static void
debug_scratch_is_guarded(void)
{
    static const size_t sizes[] = {1, 64, 4096, 100000};
    for (int i = 0; i < 4; i++) {
        double *block = attn_scratch_take((sizes[i] + 63) / 64 * 64);
        float single;
        memcpy(&single, block, sizeof single);
        CHECK(block[0] != block[0] && block[7] != block[7] && single != single);
        block[0] = 1;
        attn_scratch_give(block, (sizes[i] + 63) / 64 * 64);
        fflush(NULL);
        const pid_t child = fork();
        if (child == 0)
            overstep(sizes[i]);
        int status = 0;
        waitpid(child, &status, 0);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    }
}

static void
lack_of_memory_is_told(void)
{
    attn_set_num_threads(4);
    struct count count = {.scratch = 1000};
    for (int threads = 1; threads <= 4; threads += 3) {
        struct attn_job job = counting_job(&count, 50, threads);
        attn_scratch_fail_after(0);
        CHECK(attn_pool_run(&job) == ATTN_NO_MEMORY && atomic_load(&count.times[0]) == 0);
    }
    for (int n = 1; n <= 3; n++) { /* n participants, the others find no memory */
        struct count some = {.scratch = 1000, .nanoseconds = 20000};
        struct attn_job job = counting_job(&some, 50, 4);
        attn_scratch_fail_after(n);
        CHECK(attn_pool_run(&job) == ATTN_DONE && atomic_load(&some.times[49]) == 1);
        CHECK(atomic_load(&some.most) <= n);
        CHECK(attn_scratch_take(1) == NULL);
    }
    attn_scratch_fail_after(-1);
    CHECK(counts_right(50, 4, 1000, 1000));
}

void
test_scratch(void)
{
    const char *debug = getenv("ATTNPY_DEBUG_SCRATCH");
    scratch_is_aligned_and_distinct();
    if (debug != NULL && strcmp(debug, "1") == 0)
        debug_scratch_is_guarded();
    else
        scratch_is_used_again();
    lack_of_memory_is_told();
}
