/* pool_stress.c: the thread pool and the scratch memory without Python. Prints "N passed, M failed"; exits with 1 if any failed.
 *
 *     cc -O1 -g -pthread $(ls tests/c/pool_stress*.c csrc/core/[a-z]*.c) -lm -o pool_stress && ./pool_stress
 *
 * -DATTN_PORTABLE tests what runs elsewhere than on Linux; ATTNPY_DEBUG_SCRATCH=1 the guarded blocks; the argument "latency" measures. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pool_stress.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CALLERS = 24 };

static atomic_int passed, failed;

void
check(bool good, const char *condition, const char *function, int line)
{
    atomic_fetch_add(good ? &passed : &failed, 1);
    if (!good)
        fprintf(stderr, "%s, line %d: %s\n", function, line, condition);
}

static void
spin(int64_t nanoseconds)
{
    for (const int64_t end = attn_nanoseconds() + nanoseconds; attn_nanoseconds() < end;)
        ;
}

static void
count_task(void *context, int64_t task, void *scratch)
{
    struct count *count = context;
    const int now = atomic_fetch_add(&count->now, 1) + 1;
    for (int most = atomic_load(&count->most); most < now && !atomic_compare_exchange_weak(&count->most, &most, now);)
        ;
    atomic_fetch_add(&count->times[task], 1);
    if (count->scratch > 0) {
        if (scratch == NULL || (uintptr_t)scratch % 64 != 0) {
            atomic_fetch_add(&count->wrong, 1);
            return;
        }
        unsigned char *bytes = scratch, mark = (unsigned char)(task * 37 + 1);
        memset(bytes, mark, count->scratch);
        spin(count->nanoseconds);
        for (size_t i = 0; i < count->scratch; i += 61)
            if (bytes[i] != mark)
                atomic_fetch_add(&count->wrong, 1);
    } else {
        spin(count->nanoseconds);
        atomic_fetch_add(&count->wrong, scratch != NULL);
    }
    atomic_fetch_sub(&count->now, 1);
}

struct attn_job
counting_job(struct count *count, int64_t tasks, int threads)
{
    return (struct attn_job){
        .run = count_task, .context = count, .tasks = tasks, .scratch = count->scratch, .threads = threads, .stop = &count->stop};
}

bool
counts_right(int64_t tasks, int threads, size_t scratch, int64_t nanoseconds)
{
    struct count count = {.scratch = scratch, .nanoseconds = nanoseconds};
    struct attn_job job = counting_job(&count, tasks, threads);
    bool good = attn_pool_run(&job) == ATTN_DONE && atomic_load(&count.now) == 0 && atomic_load(&count.wrong) == 0;
    for (int i = 0; i < MOST_TASKS; i++)
        good &= atomic_load(&count.times[i]) == (i < tasks);
    return good && atomic_load(&count.most) <= (threads > 1 ? threads : 1);
}

static void
sums_are_right(void)
{
    static const int tasks[] = {0, 1, 2, 7, 64, 1000};
    for (int threads = 1; threads <= 8; threads++) {
        attn_set_num_threads(threads);
        for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++) {
            CHECK(counts_right(tasks[i], threads, 0, 0));
            CHECK(counts_right(tasks[i], threads, 1000, 2000));
        }
        CHECK(counts_right(1000, 2, 0, 0));
        CHECK(counts_right(50, 8, 0, 0));
    }
}

static void
note_order(void *context, int64_t task, void *scratch)
{
    int64_t *next = context;
    (void)scratch;
    *next = *next == task ? task + 1 : -1;
}

static void
one_thread_goes_in_order(void)
{
    int64_t next = 0;
    atomic_int stop = 0;
    struct attn_job job = {.run = note_order, .context = &next, .tasks = 500, .threads = 1, .stop = &stop};
    CHECK(attn_pool_run(&job) == ATTN_DONE && next == 500);
}

static void *
call_often(void *argument)
{
    const int which = (int)(intptr_t)argument;
    for (int i = 0; i < 60; i++)
        CHECK(counts_right(1 + (which * 7 + i) % 40, 1 + (which + i) % 5, which % 2 ? 512 : 0, 1000));
    return NULL;
}

/* More callers than jobs that can be open. */
static void
many_may_call_at_once(void)
{
    pthread_t thread[CALLERS];
    attn_set_num_threads(4);
    for (intptr_t i = 0; i < CALLERS; i++)
        pthread_create(&thread[i], NULL, call_often, (void *)i);
    for (int i = 0; i < CALLERS; i++)
        pthread_join(thread[i], NULL);
}

/* Two jobs that count into one place, the second later: then both callers work, and no worker goes on. */
static struct count shared;
static atomic_int settled, too_many;

static void
count_shared(void *context, int64_t task, void *scratch)
{
    (void)context, (void)task, (void)scratch;
    const int now = atomic_fetch_add(&shared.now, 1) + 1;
    atomic_fetch_add(&too_many, atomic_load(&settled) && now > 2);
    usleep(1000);
    atomic_fetch_sub(&shared.now, 1);
}

static void *
run_late(void *argument)
{
    atomic_int stop = 0;
    struct attn_job job = {.run = count_shared, .tasks = 60, .threads = 2, .stop = &stop};
    (void)argument;
    usleep(20000);
    attn_pool_run(&job);
    return NULL;
}

static void *
settle(void *argument)
{
    (void)argument;
    usleep(50000); /* a task takes 1 ms: by now whoever is to leave has left */
    atomic_store(&settled, 1);
    return NULL;
}

static void
workers_make_way_for_callers(void)
{
    pthread_t late, timer;
    atomic_int stop = 0;
    struct attn_job job = {.run = count_shared, .tasks = 200, .threads = 2, .stop = &stop};
    attn_set_num_threads(2);
    pthread_create(&late, NULL, run_late, NULL);
    pthread_create(&timer, NULL, settle, NULL);
    CHECK(attn_pool_run(&job) == ATTN_DONE);
    pthread_join(late, NULL);
    pthread_join(timer, NULL);
    CHECK(atomic_load(&too_many) == 0);
}

static int
count_polls(void *context)
{
    ++*(int *)context;
    return 0;
}

static int
stop_at_second_poll(void *context)
{
    return ++*(int *)context == 2;
}

static void
poll_stops(void)
{
    attn_set_num_threads(4);
    for (int threads = 1; threads <= 4; threads += 3) {
        struct count count = {.nanoseconds = 1000000};
        struct attn_job job = counting_job(&count, MOST_TASKS, threads);
        int polls = 0, done = 0;
        job.poll = stop_at_second_poll, job.poll_context = &polls;
        const int64_t begin = attn_nanoseconds();
        CHECK(attn_pool_run(&job) == ATTN_STOPPED);
        const int64_t taken = attn_nanoseconds() - begin;
        for (int i = 0; i < MOST_TASKS; i++)
            done += atomic_load(&count.times[i]);
        CHECK(polls == 2 && atomic_load(&count.stop) == 1 && atomic_load(&count.now) == 0);
        CHECK(done > 0 && done < MOST_TASKS && taken > 80000000);
        CHECK(counts_right(100, threads, 0, 0));
    }
}

pthread_t main_thread;
atomic_int worker_began;

bool
wait_for_worker(void)
{
    for (int i = 0; i < PATIENCE_SECONDS * 1000 && !atomic_load(&worker_began); i++)
        usleep(1000);
    return atomic_load(&worker_began);
}

/* The caller's task ends when a worker has begun the other, which takes 300 ms. */
static void
let_worker_be_late(void *context, int64_t task, void *scratch)
{
    (void)context, (void)task, (void)scratch;
    if (pthread_equal(pthread_self(), main_thread)) {
        wait_for_worker();
        return;
    }
    atomic_store(&worker_began, 1);
    usleep(300000);
}

static void
caller_polls_while_waiting(void)
{
    int polls = 0;
    atomic_int stop = 0;
    struct attn_job job = {.run = let_worker_be_late, .tasks = 2, .threads = 2, .stop = &stop, .poll = count_polls, .poll_context = &polls};
    atomic_store(&worker_began, 0);
    attn_set_num_threads(2);
    CHECK(attn_pool_run(&job) == ATTN_DONE);
    CHECK(polls >= 2 && polls <= 8);
}

static int
stop_at_first_poll(void *context)
{
    ++*(int *)context;
    return 1;
}

static void
poll_stops_while_waiting(void)
{
    int polls = 0;
    atomic_int stop = 0;
    struct attn_job job = {.run = let_worker_be_late, .tasks = 2, .threads = 2, .stop = &stop, .poll = stop_at_first_poll, .poll_context = &polls};
    atomic_store(&worker_began, 0);
    attn_set_num_threads(2);
    CHECK(attn_pool_run(&job) == ATTN_STOPPED);
    CHECK(polls == 1 && atomic_load(&stop) == 1);
}

static int
nested_poll(void *context)
{
    *(int *)context += counts_right(20, 4, 256, 0) ? 1 : -1000;
    return 0;
}

static void
nested_task(void *context, int64_t task, void *scratch)
{
    (void)task, (void)scratch;
    atomic_fetch_add((atomic_int *)context, counts_right(5, 4, 64, 0) ? 1 : -1000);
}

static void
nested_calls_run(void)
{
    attn_set_num_threads(4);
    for (int threads = 1; threads <= 4; threads += 3) {
        struct count count = {.nanoseconds = 1000000};
        struct attn_job job = counting_job(&count, 300, threads);
        int polls = 0;
        job.poll = nested_poll, job.poll_context = &polls;
        CHECK(attn_pool_run(&job) == ATTN_DONE);
        CHECK(polls > 0);
    }
    atomic_int sum = 0, stop = 0;
    struct attn_job job = {.run = nested_task, .context = &sum, .tasks = 30, .threads = 4, .stop = &stop};
    CHECK(attn_pool_run(&job) == ATTN_DONE && atomic_load(&sum) == 30);
}

static void
counts_are_clipped(void)
{
    attn_set_num_threads(0);
    CHECK(attn_get_num_threads() == 1);
    attn_set_num_threads(INT_MAX);
    CHECK(attn_get_num_threads() == ATTN_MAX_THREADS);
    attn_set_num_threads(3);
    CHECK(attn_get_num_threads() == 3);
    CHECK(attn_usable_cpu_count() >= 1);
}

int
main(int argc, char **argv)
{
    main_thread = pthread_self();
    if (attn_pool_init() != 0)
        return 1;
    if (argc > 1 && strcmp(argv[1], "latency") == 0)
        return latency();
    test_children(); /* first: they look at workers that their own process starts */
    sums_are_right();
    one_thread_goes_in_order();
    many_may_call_at_once();
    workers_make_way_for_callers();
    poll_stops();
    caller_polls_while_waiting();
    poll_stops_while_waiting();
    nested_calls_run();
    test_scratch();
    counts_are_clipped();
    printf("%d passed, %d failed\n", atomic_load(&passed), atomic_load(&failed));
    return atomic_load(&failed) != 0;
}
