/* pool_stress_fork.c: children of fork, and what needs a process of its own. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pool_stress.h"

#include <fenv.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs `body` in a child: 0 means good. A child that hangs is ended by its alarm. */
static bool
good_in_child(int (*body)(void))
{
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        alarm(PATIENCE_SECONDS);
        _exit(body());
    }
    int status = -1;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static int
compute(void)
{
    bool good = true;
    for (int i = 0; i < 5; i++)
        good &= counts_right(50, 4, 4096, 10000) && counts_right(20, 4, 1 << 20, 10000);
    return !good;
}

static atomic_int hammering;

static void *
hammer(void *argument)
{
    (void)argument;
    while (atomic_load(&hammering))
        CHECK(counts_right(30, 4, 300000, 5000));
    return NULL;
}

static void
fork_leaves_a_child_that_computes(void)
{
    pthread_t thread[3];
    attn_set_num_threads(4);
    atomic_store(&hammering, 1);
    for (int i = 0; i < 3; i++)
        pthread_create(&thread[i], NULL, hammer, NULL);
    for (int i = 0; i < 20; i++)
        CHECK(good_in_child(compute));
    atomic_store(&hammering, 0);
    for (int i = 0; i < 3; i++)
        pthread_join(thread[i], NULL);
}

static int
fork_in_poll(void *context)
{
    pid_t *child = context;
    if (*child == -1 && (*child = fork()) == 0)
        alarm(PATIENCE_SECONDS);
    return 0;
}

/* The child comes back from poll into a job whose workers it does not have. */
static void
fork_inside_poll_ends(void)
{
    struct count *count = calloc(1, sizeof *count);
    count->nanoseconds = 1000000, count->scratch = 128;
    struct attn_job job = counting_job(count, 400, 4);
    pid_t child = -1;
    job.poll = fork_in_poll, job.poll_context = &child;
    fflush(NULL);
    const enum attn_status status = attn_pool_run(&job);
    if (child == 0)
        _exit(status != ATTN_STOPPED || compute() != 0);
    int result = -1;
    waitpid(child, &result, 0);
    CHECK(status == ATTN_DONE && child > 0);
    CHECK(WIFEXITED(result) && WEXITSTATUS(result) == 0);
    free(count);
}

static atomic_int worker_fault;

/* Has the worker signals that it must not take, or the rounding of the thread that started it? */
static void
look_at_worker(void *context, int64_t task, void *scratch)
{
    (void)context, (void)task, (void)scratch;
    if (pthread_equal(pthread_self(), main_thread)) {
        wait_for_worker();
        return;
    }
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    const bool outside = sigismember(&blocked, SIGINT) && sigismember(&blocked, SIGALRM) && sigismember(&blocked, SIGUSR1);
    const bool own = sigismember(&blocked, SIGSEGV) || sigismember(&blocked, SIGFPE) || sigismember(&blocked, SIGBUS);
    atomic_fetch_or(&worker_fault, (!outside ? 1 : 0) | (own ? 2 : 0) | (fegetround() != FE_TONEAREST ? 4 : 0));
    atomic_store(&worker_began, 1);
}

static int
worker_state(void)
{
    atomic_int stop = 0;
    struct attn_job job = {.run = look_at_worker, .tasks = 2, .threads = 2, .stop = &stop};
    atomic_store(&worker_began, 0);
    attn_set_num_threads(2);
    fesetround(FE_UPWARD);
    const bool done = attn_pool_run(&job) == ATTN_DONE;
    fesetround(FE_TONEAREST);
    if (atomic_load(&worker_fault))
        fprintf(stderr, "worker: faults %d (1 takes signals, 2 hides its own, 4 rounding)\n", atomic_load(&worker_fault));
    return !done || !atomic_load(&worker_began) || atomic_load(&worker_fault);
}

/* No address space for the stack of a thread. */
static int
threads_cannot_start(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%ld", &pages) != 1)
        return 1;
    fclose(file);
    const rlim_t room = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + (64 << 10);
    if (setrlimit(RLIMIT_AS, &(struct rlimit){room, room}) != 0)
        return 1;
    attn_set_num_threads(8);
    return !counts_right(40, 8, 0, 1000);
}

void
test_children(void)
{
    CHECK(good_in_child(worker_state));
#ifndef ATTN_SANITIZED /* it needs address space of its own, and knows no threads in the child of a process that has several */
    CHECK(good_in_child(threads_cannot_start));
    fork_leaves_a_child_that_computes();
#endif
    fork_inside_poll_ends();
}
