/* pool.c: jobs, and the workers that help with them.
 *
 * Who runs what is decided under one lock; tasks are handed out by an atomic counter without it. A worker joins the oldest job that has tasks left
 * and room for one more, and leaves it when there are none, or when new callers need its processor. A job lies on its caller's stack: the caller takes it off the list and then waits until
 * all who joined have left, and whoever leaves does not touch it after giving back the lock. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pool.h"
#include "attn.h"
#include "system.h"

#include <fenv.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_JOBS = 16, SPIN_NANOSECONDS = 20000, POLL_NANOSECONDS = 50000000 };

struct open_job {
    struct attn_job *job;
    atomic_llong next;        /* task */
    atomic_int participants;  /* now; changed under the lock */
    int seats;                /* how many more may join */
    void **scratch;           /* a stack, for each who may join */
    bool caller_sleeps;       /* on pool->left, when a participant should wake it */
};

/* On its thread's stack: workers never end. */
struct worker {
    struct attn_thread thread;
    atomic_bool asleep;
    struct worker *next;
};

/* Fork leaves the child with the forking thread alone: it starts a pool of its own and never looks at the old one. */
struct pool {
    pthread_mutex_t lock;
    struct open_job *jobs[MOST_JOBS]; /* oldest first */
    int open, workers, spinning;
    atomic_int callers, running; /* changed under the lock, looked at between tasks */
    atomic_int sleeping;
    _Atomic(struct worker *) first; /* of the list; grows under the lock, read without it */
    struct attn_gate work; /* changes when a worker may find something to do */
    struct attn_gate left; /* changes when a job that its caller waits for has no participants any more */
};

static _Atomic(struct pool *) the_pool;
static _Thread_local int depth; /* of jobs that this thread is running: a job begun inside another is run serially */

/* The job that this thread has begun and is running tasks of: they look for signals while they work. */
static _Thread_local struct own_job {
    const struct attn_job *job;
    int64_t *next_poll;
} own;

static bool
may_spin(void)
{
    return attn_get_num_threads() <= attn_usable_cpu_count();
}

/* Looks at the gate for a short while; true when it has changed. */
static bool
spin_on(struct attn_gate *gate, unsigned seen)
{
    for (const int64_t end = attn_nanoseconds() + SPIN_NANOSECONDS; attn_nanoseconds() < end;)
        for (int i = 0; i < 16; i++) {
            if (atomic_load_explicit(&gate->word, memory_order_acquire) != seen)
                return true;
            attn_pause();
        }
    return false;
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

/* Workers that may run beside the callers. */
static int
allowance(const struct pool *pool)
{
    const int rest = attn_get_num_threads() - atomic_load_explicit(&pool->callers, memory_order_relaxed);
    return rest > 0 ? rest : 0;
}

static bool
has_room(const struct open_job *open)
{
    return open->seats > 0 && atomic_load_explicit(&open->next, memory_order_relaxed) < open->job->tasks;
}

/* The oldest job with tasks left and room, while more workers may run; lock held. */
static struct open_job *
joinable(struct pool *pool)
{
    if (atomic_load_explicit(&pool->running, memory_order_relaxed) >= allowance(pool))
        return NULL;
    for (int i = 0; i < pool->open; i++)
        if (has_room(pool->jobs[i]))
            return pool->jobs[i];
    return NULL;
}

/* A task is short (about 1 ms): between two of them a worker sees that a new caller has taken its place. */
static void
work_on(const struct pool *pool, struct open_job *open, void *scratch)
{
    const struct attn_job *job = open->job;
    while (atomic_load_explicit(&pool->running, memory_order_relaxed) <= allowance(pool)) {
        const int64_t task = atomic_fetch_add_explicit(&open->next, 1, memory_order_relaxed);
        if (task >= job->tasks || atomic_load_explicit(job->stop, memory_order_relaxed))
            return;
        job->run(job->context, task, scratch);
    }
}

/* Lock held before and after, not while working. */
static void
join(struct pool *pool, struct open_job *open)
{
    void *scratch = open->scratch[--open->seats];
    atomic_fetch_add(&open->participants, 1);
    atomic_fetch_add(&pool->running, 1);
    pthread_mutex_unlock(&pool->lock);
    work_on(pool, open, scratch);
    pthread_mutex_lock(&pool->lock);
    open->scratch[open->seats++] = scratch;
    atomic_fetch_sub(&pool->running, 1);
    const bool wake = open->caller_sleeps;
    if (atomic_fetch_sub(&open->participants, 1) == 1 && wake) {
        atomic_fetch_add(&pool->left.word, 1);
        attn_gate_wake(&pool->left, MOST_JOBS);
    }
}

/* Spins only where that takes no processor from those who work. Lock held before and after. */
static void
wait_for_work(struct pool *pool, struct worker *self)
{
    const unsigned seen = atomic_load(&pool->work.word);
    const int busy = atomic_load(&pool->running) + atomic_load(&pool->callers) + pool->spinning;
    const bool spin = may_spin() && busy < attn_usable_cpu_count();
    if (spin) {
        pool->spinning++;
        pthread_mutex_unlock(&pool->lock);
        const bool changed = spin_on(&pool->work, seen);
        pthread_mutex_lock(&pool->lock);
        if (changed || atomic_load(&pool->work.word) != seen)
            return; /* call_workers has counted the spinning ones as called */
        pool->spinning--;
    }
    atomic_fetch_add(&pool->sleeping, 1);
    atomic_store(&self->asleep, true);
    pthread_mutex_unlock(&pool->lock);
    attn_gate_wait(&pool->work, seen, -1);
    atomic_store(&self->asleep, false);
    atomic_fetch_sub(&pool->sleeping, 1);
    pthread_mutex_lock(&pool->lock);
}

static void *
worker(void *argument)
{
    struct pool *pool = argument;
    struct worker self = {.next = NULL};
    attn_thread_here(&self.thread);
    depth = 1; /* a task that begins a job runs it serially */
    attn_name_this_thread("attnpy");
    fesetenv(FE_DFL_ENV); /* a new thread has the rounding of the one that started it, which happened to be first */
    pthread_mutex_lock(&pool->lock);
    self.next = atomic_load(&pool->first);
    atomic_store(&pool->first, &self);
    for (;;) {
        struct open_job *open = joinable(pool);
        if (open)
            join(pool, open);
        else
            wait_for_work(pool, &self);
    }
    return NULL;
}

/* Starts workers until there are `wanted`, or the system has no more; lock held. Signals are for the threads that Python knows, but for the
 * faults of the worker itself: faulthandler reports them. */
static void
start_workers(struct pool *pool, int wanted)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
    sigset_t blocked, before;
    if (pool->workers >= wanted)
        return;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&blocked, faults[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    while (pool->workers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, pool) != 0)
            break;
        pthread_detach(thread);
        pool->workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Tells up to `count` workers that there may be something to do; lock held. Returns how many to wake once the lock is free, where they would wait. */
static int
call_workers(struct pool *pool, int count)
{
    const int free_places = allowance(pool) - atomic_load(&pool->running);
    count = count < free_places ? count : free_places;
    if (count <= 0)
        return 0;
    atomic_fetch_add(&pool->work.word, 1);
    count -= pool->spinning;
    pool->spinning = 0; /* they have seen the change: the next call must not count on them */
    const int sleeping = atomic_load(&pool->sleeping);
    return count < sleeping ? count : sleeping;
}

/* Lock not held. Which of those who sleep will wake is up to the system, so all are kept off the waker's processor: for most it is already forbidden. */
static void
wake_workers(struct pool *pool, int count)
{
    if (count <= 0)
        return;
    for (struct worker *each = atomic_load(&pool->first); each; each = each->next)
        if (atomic_load(&each->asleep))
            attn_thread_keep_off(&each->thread);
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

bool
attn_stopped(const atomic_int *stop)
{
    if (own.job && own.job->stop == stop)
        told_to_stop(own.job, own.next_poll);
    return atomic_load_explicit(stop, memory_order_relaxed) != 0;
}

/* The caller's share of the tasks, in order; false if the job was told to stop. */
static bool
take_tasks(struct open_job *open, void *scratch, int64_t *next_poll)
{
    const struct attn_job *job = open->job;
    const struct own_job outer = own;
    bool finished = false;
    own = (struct own_job){job, next_poll};
    while (!told_to_stop(job, next_poll) && !atomic_load_explicit(job->stop, memory_order_relaxed)) {
        const int64_t task = atomic_fetch_add_explicit(&open->next, 1, memory_order_relaxed);
        finished = task >= job->tasks;
        if (finished)
            break;
        job->run(job->context, task, scratch);
    }
    own = outer;
    return finished;
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
    int wake = 0;
    if (room) {
        pool->jobs[pool->open++] = open;
        atomic_fetch_add(&pool->callers, 1);
        start_workers(pool, attn_get_num_threads() - 1);
        wake = call_workers(pool, open->seats);
    }
    pthread_mutex_unlock(&pool->lock);
    wake_workers(pool, wake);
    return room;
}

/* Nobody joins any more; in another job one more worker may take the caller's place. */
static void
close_to_workers(struct pool *pool, struct open_job *open)
{
    pthread_mutex_lock(&pool->lock);
    int i = 0;
    while (pool->jobs[i] != open)
        i++;
    memmove(&pool->jobs[i], &pool->jobs[i + 1], (size_t)(pool->open - i - 1) * sizeof *pool->jobs);
    pool->open--;
    atomic_fetch_sub(&pool->callers, 1);
    const int wake = joinable(pool) ? call_workers(pool, 1) : 0;
    pthread_mutex_unlock(&pool->lock);
    wake_workers(pool, wake);
}

/* Until all who joined have left. False: this is the child of a fork that poll made, and they will never leave. */
static bool
wait_for_participants(struct pool *pool, struct open_job *open, int64_t *next_poll, bool *finished)
{
    const int64_t spin_end = may_spin() ? attn_nanoseconds() + SPIN_NANOSECONDS : 0;
    while (atomic_load_explicit(&open->participants, memory_order_acquire) > 0 && spin_end && attn_nanoseconds() < spin_end)
        attn_pause();
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
    int reserved = 0;
    for (; reserved < limit; reserved++) {
        scratch[reserved] = job->scratch ? attn_scratch_take(job->scratch) : NULL;
        if (job->scratch && !scratch[reserved])
            break;
    }
    if (reserved == 0)
        return ATTN_NO_MEMORY;
    struct open_job open = {.job = job, .seats = reserved - 1, .scratch = scratch + 1};
    int64_t next_poll = first_poll(job);
    const bool opened = reserved > 1 && open_to_workers(pool, &open);
    bool finished = take_tasks(&open, scratch[0], &next_poll);
    if (opened && atomic_load(&the_pool) == pool) {
        close_to_workers(pool, &open);
        const bool left = wait_for_participants(pool, &open, &next_poll, &finished);
        finished = finished && left;
    } else if (opened)
        finished = false;
    for (int i = 0; i < reserved && atomic_load(&the_pool) == pool; i++)
        attn_scratch_give(scratch[i], job->scratch);
    return finished ? ATTN_DONE : ATTN_STOPPED;
}

enum attn_status
attn_pool_run(struct attn_job *job)
{
    const int threads = attn_get_num_threads();
    int limit = job->threads < threads ? job->threads : threads;
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
    attn_results_after_fork();
}

int
attn_pool_init(void)
{
    static atomic_flag registered = ATOMIC_FLAG_INIT;
    return atomic_flag_test_and_set(&registered) ? 0 : pthread_atfork(NULL, NULL, after_fork_in_child);
}
