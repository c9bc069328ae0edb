/* system.h: what the pool needs from the operating system. system_linux.c answers on Linux, system_other.c elsewhere. */
#ifndef ATTN_SYSTEM_H
#define ATTN_SYSTEM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#if defined(__linux__)
#include <sched.h>
#endif

/* ATTN_PORTABLE builds the other systems' code on Linux, for tests. */
#if defined(__linux__) && !defined(ATTN_PORTABLE)
#define ATTN_LINUX 1
#else
#define ATTN_LINUX 0
#endif

/* A word to wait on. Whoever changes it calls attn_gate_wake afterwards; a waiter that saw the old value cannot miss the change. */
struct attn_gate {
    atomic_uint word;
#if !ATTN_LINUX
    pthread_mutex_t lock;
    pthread_cond_t changed;
#endif
};

void attn_gate_init(struct attn_gate *gate);

/* Sleeps while the word is `seen`, at most `nanoseconds` (negative: no limit). May return early. */
void attn_gate_wait(struct attn_gate *gate, unsigned seen, int64_t nanoseconds);
void attn_gate_wake(struct attn_gate *gate, int count); /* wakes at least min(count, sleepers) */

/* A thread that others wake. attn_thread_here is called by the thread itself, once. attn_thread_keep_off is called by whoever is about to wake it, and
 * keeps it off the processor that the waker runs on. Linux does not take a halted virtual processor for an idle one (vcpu_is_preempted in
 * select_idle_sibling): a thread that has slept for long is put behind its waker, and stays there until the next load balancing, some
 * milliseconds later. Twelve heads of 128 after a pause of 10 ms ran at 0.57 of the speed that they have with this. Only one processor is forbidden, and none
 * where it would be the only one; an affinity that somebody else has set is kept to. Elsewhere both do nothing. */
struct attn_thread {
#if ATTN_LINUX
    pid_t id;
    atomic_int avoided;     /* processor; -1: none */
    atomic_flag changing;   /* held by whoever reads and writes the masks */
    cpu_set_t allowed, given;
#else
    char none; /* a struct must not be empty */
#endif
};

void attn_thread_here(struct attn_thread *thread);
void attn_thread_keep_off(struct attn_thread *thread);

/* Short critical sections: waiters spin a little before they sleep, where the system can. */
void attn_lock_init(pthread_mutex_t *lock);

/* Processors this process may keep busy: min(affinity, cgroup quota rounded up), at least 1. */
int attn_usable_cpus(void);      /* asks the system */
int attn_usable_cpu_count(void); /* what it answered at first */

int64_t attn_nanoseconds(void);        /* monotonic */
int64_t attn_coarse_nanoseconds(void); /* the same clock, some milliseconds behind, and cheap */
void attn_name_this_thread(const char *name);

/* In a loop that waits for another processor. */
static inline void
attn_pause(void)
{
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

#endif
