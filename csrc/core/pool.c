/* pool.c: jobs, and the workers that help with them.
 *
 * Who runs what is decided under one lock; tasks are handed out by an atomic counter without it. A worker joins the oldest job that has tasks left
 * and room for one more, and leaves it when there are none. A job lies on its caller's stack: the caller takes it off the list and then waits until
 * all who joined have left, and whoever leaves does not touch it after giving back the lock. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pool.h"
#include "system.h"

#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_JOBS = 16, SPIN_NANOSECONDS = 20000, POLL_NANOSECONDS = 50000000 };

struct open_job {
    struct attn_job *job;
    atomic_llong next;        /* task */
    atomic_int participants;  /* now; changed under the lock */
    int joined, limit;        /* so far, at most; the caller is one of them */
    bool caller_sleeps;       /* on pool->left, when a participant should wake it */
    void **scratch;           /* for each who joins */
};

/* Fork leaves the child with the forking thread alone: it starts a pool of its own and never looks at the old one. */
struct pool {
    pthread_mutex_t lock;
    struct open_job *jobs[MOST_JOBS]; /* oldest first */
    int open, callers, workers, running, sleeping;
    struct attn_gate work; /* changes when a worker may find something to do */
    struct attn_gate left; /* changes when a job that its caller waits for has no participants any more */
};

static _Atomic(struct pool *) the_pool;
static _Thread_local int depth; /* of jobs that this thread is running: a job begun inside another is run serially */

static void
pause_processor(void)
{
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

static bool
may_spin(void)
{
    return attn_get_num_threads() <= attn_usable_cpu_count();
}

/* Looks at the gate for a short while, then sleeps; the gate may be woken for nothing. */
static void
spin_then_wait(struct attn_gate *gate, unsigned seen, int64_t limit)
{
    if (may_spin())
        for (const int64_t end = attn_nanoseconds() + SPIN_NANOSECONDS; attn_nanoseconds() < end;)
            for (int i = 0; i < 16; i++) {
                if (atomic_load_explicit(&gate->word, memory_order_acquire) != seen)
                    return;
                pause_processor();
            }
    attn_gate_wait(gate, seen, limit);
}

static struct pool *
current_pool(void)
{
    struct pool *now = atomic_load(&the_pool);
    if (now)
        return now;
    struct pool *fresh = calloc(1, sizeof *fresh);
    if (!fresh)
        return NULL;
    attn_lock_init(&fresh->lock);
    attn_gate_init(&fresh->work);
    attn_gate_init(&fresh->left);
    if (atomic_compare_exchange_strong(&the_pool, &now, fresh))
        return fresh;
    pthread_mutex_destroy(&fresh->lock);
    free(fresh);
    return now;
}

/* The oldest job with tasks left and room, while more workers may run; lock held. */
static struct open_job *
joinable(struct pool *pool)
{
    if (pool->running >= attn_get_num_threads() - pool->callers)
        return NULL;
    for (int i = 0; i < pool->open; i++) {
        struct open_job *open = pool->jobs[i];
        if (open->joined < open->limit && atomic_load_explicit(&open->next, memory_order_relaxed) < open->job->tasks)
            return open;
    }
    return NULL;
}

static void
work_on(struct open_job *open, void *scratch)
{
    const struct attn_job *job = open->job;
    for (;;) {
        const int64_t task = atomic_fetch_add_explicit(&open->next, 1, memory_order_relaxed);
        if (task >= job->tasks || atomic_load_explicit(job->stop, memory_order_relaxed))
            return;
        job->run(job->context, task, scratch);
    }
}

static void *
worker(void *argument)
{
    struct pool *pool = argument;
    attn_name_this_thread("attnpy");
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        struct open_job *open = joinable(pool);
        if (open) {
            void *scratch = open->scratch[open->joined++];
            atomic_fetch_add(&open->participants, 1);
            pool->running++;
            pthread_mutex_unlock(&pool->lock);
            work_on(open, scratch);
            pthread_mutex_lock(&pool->lock);
            pool->running--;
            if (atomic_fetch_sub(&open->participants, 1) == 1 && open->caller_sleeps) {
                atomic_fetch_add(&pool->left.word, 1);
                attn_gate_wake(&pool->left, MOST_JOBS);
            }
            continue;
        }
        const unsigned seen = atomic_load(&pool->work.word);
        pool->sleeping++;
        pthread_mutex_unlock(&pool->lock);
        spin_then_wait(&pool->work, seen, -1);
        pthread_mutex_lock(&pool->lock);
        pool->sleeping--;
    }
    return NULL;
}

/* Starts workers until there are `wanted`, or the system has no more; lock held. Signals are for the threads that Python knows. */
static void
start_workers(struct pool *pool, int wanted)
{
    sigset_t all, before;
    if (pool->workers >= wanted)
        return;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool->workers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, pool) != 0)
            break;
        pthread_detach(thread);
        pool->workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Tells up to `count` workers that there may be something to do; lock held. */
static void
call_workers(struct pool *pool, int count)
{
    atomic_fetch_add(&pool->work.word, 1);
    if (pool->sleeping > 0 && count > 0)
        attn_gate_wake(&pool->work, count);
}

/* Whether the job is to stop: about every 50 ms its owner is asked. */
static bool
told_to_stop(const struct attn_job *job, int64_t *next_poll)
{
    if (!job->poll)
        return false;
    const int64_t now = attn_coarse_nanoseconds();
    if (now < *next_poll)
        return false;
    *next_poll = now + POLL_NANOSECONDS;
    if (!job->poll(job->poll_context))
        return false;
    atomic_store(job->stop, 1);
    return true;
}

/* The caller's share of the tasks, in order; false if the job was told to stop. */
static bool
take_tasks(struct open_job *open, void *scratch, int64_t *next_poll)
{
    const struct attn_job *job = open->job;
    for (;;) {
        if (told_to_stop(job, next_poll))
            return false;
        const int64_t task = atomic_fetch_add_explicit(&open->next, 1, memory_order_relaxed);
        if (task >= job->tasks)
            return true;
        job->run(job->context, task, scratch);
    }
}

static int64_t
first_poll(const struct attn_job *job)
{
    return job->poll ? attn_coarse_nanoseconds() + POLL_NANOSECONDS : 0;
}

static enum attn_status
run_serially(struct attn_job *job)
{
    struct open_job open = {.job = job};
    int64_t next_poll = first_poll(job);
    void *scratch = job->scratch ? attn_scratch_take(job->scratch) : NULL;
    if (job->scratch && !scratch)
        return ATTN_NO_MEMORY;
    const bool finished = take_tasks(&open, scratch, &next_poll);
    attn_scratch_give(scratch, job->scratch);
    return finished ? ATTN_DONE : ATTN_STOPPED;
}

/* False where too many jobs are open. */
static bool
open_to_workers(struct pool *pool, struct open_job *open)
{
    pthread_mutex_lock(&pool->lock);
    const bool room = pool->open < MOST_JOBS;
    if (room) {
        pool->jobs[pool->open++] = open;
        pool->callers++;
        start_workers(pool, attn_get_num_threads() - 1);
        call_workers(pool, open->limit - 1);
    }
    pthread_mutex_unlock(&pool->lock);
    return room;
}

/* Nobody joins any more; the others may take over the caller's place. */
static void
close_to_workers(struct pool *pool, struct open_job *open)
{
    pthread_mutex_lock(&pool->lock);
    int i = 0;
    while (pool->jobs[i] != open)
        i++;
    memmove(&pool->jobs[i], &pool->jobs[i + 1], (size_t)(pool->open - i - 1) * sizeof *pool->jobs);
    pool->open--;
    pool->callers--;
    if (pool->open > 0)
        call_workers(pool, 1);
    pthread_mutex_unlock(&pool->lock);
}

/* Until all who joined have left. False: this is the child of a fork that poll made, and they will never leave. */
static bool
wait_for_participants(struct pool *pool, struct open_job *open, int64_t *next_poll, bool *finished)
{
    const int64_t spin_end = may_spin() ? attn_nanoseconds() + SPIN_NANOSECONDS : 0;
    while (atomic_load_explicit(&open->participants, memory_order_acquire) > 0 && spin_end && attn_nanoseconds() < spin_end)
        pause_processor();
    pthread_mutex_lock(&pool->lock);
    open->caller_sleeps = true;
    while (atomic_load(&open->participants) > 0) {
        const unsigned seen = atomic_load(&pool->left.word);
        pthread_mutex_unlock(&pool->lock);
        attn_gate_wait(&pool->left, seen, POLL_NANOSECONDS);
        if (*finished && told_to_stop(open->job, next_poll))
            *finished = false;
        if (atomic_load(&the_pool) != pool)
            return false;
        pthread_mutex_lock(&pool->lock);
    }
    pthread_mutex_unlock(&pool->lock);
    return true;
}

static enum attn_status
run_with_workers(struct pool *pool, struct attn_job *job, int limit)
{
    void *scratch[ATTN_MAX_THREADS];
    struct open_job open = {.job = job, .joined = 1, .scratch = scratch};
    int64_t next_poll = first_poll(job);
    for (; open.limit < limit; open.limit++) {
        scratch[open.limit] = job->scratch ? attn_scratch_take(job->scratch) : NULL;
        if (job->scratch && !scratch[open.limit])
            break;
    }
    if (open.limit == 0)
        return ATTN_NO_MEMORY;
    const bool opened = open.limit > 1 && open_to_workers(pool, &open);
    bool finished = take_tasks(&open, scratch[0], &next_poll);
    if (opened && atomic_load(&the_pool) == pool) {
        close_to_workers(pool, &open);
        finished &= wait_for_participants(pool, &open, &next_poll, &finished);
    } else if (opened)
        finished = false;
    for (int i = 0; i < open.limit && atomic_load(&the_pool) == pool; i++)
        attn_scratch_give(scratch[i], job->scratch);
    return finished ? ATTN_DONE : ATTN_STOPPED;
}

enum attn_status
attn_pool_run(struct attn_job *job)
{
    int limit = job->threads < ATTN_MAX_THREADS ? job->threads : ATTN_MAX_THREADS;
    limit = job->tasks < limit ? (int)job->tasks : limit;
    struct pool *pool = limit > 1 && depth == 0 ? current_pool() : NULL;
    depth++;
    const enum attn_status status = pool ? run_with_workers(pool, job, limit) : run_serially(job);
    depth--;
    return status;
}

/* What the parent's threads held is out of reach for ever; it is leaked. */
static void
after_fork_in_child(void)
{
    atomic_store(&the_pool, NULL);
    attn_scratch_after_fork();
}

int
attn_pool_init(void)
{
    static atomic_flag registered = ATOMIC_FLAG_INIT;
    return atomic_flag_test_and_set(&registered) ? 0 : pthread_atfork(NULL, NULL, after_fork_in_child);
}
