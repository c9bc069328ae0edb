/* system_other.c: the same with POSIX alone (macOS, BSD). */
#include "system.h"

#if !ATTN_LINUX

#include <time.h>
#include <unistd.h>

void
attn_gate_init(struct attn_gate *gate)
{
    atomic_init(&gate->word, 0);
    pthread_mutex_init(&gate->lock, NULL);
    pthread_cond_init(&gate->changed, NULL);
}

/* The word changes outside the lock, but its waker takes the lock afterwards: either the change is seen here, or the wake-up comes after the wait. */
void
attn_gate_wait(struct attn_gate *gate, unsigned seen, int64_t nanoseconds)
{
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end); /* macOS offers no other clock here */
    const int64_t sum = end.tv_nsec + (nanoseconds < 0 ? 0 : nanoseconds);
    end.tv_sec += (time_t)(sum / 1000000000);
    end.tv_nsec = (long)(sum % 1000000000);
    pthread_mutex_lock(&gate->lock);
    if (atomic_load(&gate->word) == seen) {
        if (nanoseconds < 0)
            pthread_cond_wait(&gate->changed, &gate->lock);
        else
            pthread_cond_timedwait(&gate->changed, &gate->lock, &end);
    }
    pthread_mutex_unlock(&gate->lock);
}

void
attn_gate_wake(struct attn_gate *gate, int count)
{
    pthread_mutex_lock(&gate->lock);
    if (count == 1)
        pthread_cond_signal(&gate->changed);
    else
        pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->lock);
}

void
attn_lock_init(pthread_mutex_t *lock)
{
    pthread_mutex_init(lock, NULL);
}

int64_t
attn_nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t
attn_coarse_nanoseconds(void)
{
    return attn_nanoseconds();
}

void
attn_name_this_thread(const char *name)
{
#ifdef __APPLE__
    pthread_setname_np(name);
#else
    (void)name;
#endif
}

void
attn_thread_here(struct attn_thread *thread)
{
    thread->none = 0;
}

void
attn_thread_keep_off(struct attn_thread *thread)
{
    (void)thread;
}

int
attn_usable_cpus(void)
{
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

#else
typedef int attn_system_is_linux; /* a translation unit must not be empty */
#endif
