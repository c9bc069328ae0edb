/* system_linux.c: futex, affinity, cgroup quota. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "system.h"

#if ATTN_LINUX

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

void
attn_gate_init(struct attn_gate *gate)
{
    atomic_init(&gate->word, 0);
}

/* A spurious or interrupted return is allowed, so the result is not looked at. */
void
attn_gate_wait(struct attn_gate *gate, unsigned seen, int64_t nanoseconds)
{
    struct timespec limit = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
    syscall(SYS_futex, &gate->word, FUTEX_WAIT_PRIVATE, seen, nanoseconds < 0 ? NULL : &limit, NULL, 0);
}

void
attn_gate_wake(struct attn_gate *gate, int count)
{
    syscall(SYS_futex, &gate->word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

void
attn_lock_init(pthread_mutex_t *lock)
{
#ifdef PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP
    pthread_mutexattr_t attributes;
    if (pthread_mutexattr_init(&attributes) == 0) {
        pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
        pthread_mutex_init(lock, &attributes);
        pthread_mutexattr_destroy(&attributes);
        return;
    }
#endif
    pthread_mutex_init(lock, NULL);
}

static int64_t
nanoseconds_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t
attn_nanoseconds(void)
{
    return nanoseconds_of(CLOCK_MONOTONIC);
}

int64_t
attn_coarse_nanoseconds(void)
{
    return nanoseconds_of(CLOCK_MONOTONIC_COARSE);
}

void
attn_name_this_thread(const char *name)
{
    pthread_setname_np(pthread_self(), name);
}

/* Where masks do not fit a cpu_set_t (over 1024 processors), and where the call is forbidden, the thread stays as it is. */
void
attn_thread_here(struct attn_thread *thread)
{
    thread->id = (pid_t)syscall(SYS_gettid);
    CPU_ZERO(&thread->allowed);
    CPU_ZERO(&thread->given);
    atomic_flag_clear(&thread->changing);
    atomic_store(&thread->avoided, -1);
}

static void
forbid(struct attn_thread *thread, int here)
{
    cpu_set_t now;
    if (sched_getaffinity(thread->id, sizeof now, &now) != 0)
        return;
    if (!CPU_EQUAL(&now, &thread->given)) /* at first, and when somebody else has changed it */
        thread->allowed = now;
    thread->given = thread->allowed;
    CPU_CLR((size_t)here, &thread->given);
    if (CPU_COUNT(&thread->given) == 0)
        thread->given = thread->allowed;
    sched_setaffinity(thread->id, sizeof thread->given, &thread->given);
}

/* Of two wakers at once one writes its mask, and the other leaves it at that. */
void
attn_thread_keep_off(struct attn_thread *thread)
{
    const int here = sched_getcpu();
    if (here < 0 || here >= CPU_SETSIZE || atomic_load_explicit(&thread->avoided, memory_order_relaxed) == here)
        return;
    if (atomic_flag_test_and_set(&thread->changing))
        return;
    atomic_store_explicit(&thread->avoided, here, memory_order_relaxed);
    forbid(thread, here);
    atomic_flag_clear(&thread->changing);
}

/* The kernel's mask may be longer than the 1024 bits of a cpu_set_t: EINVAL asks for a longer one. */
static int
affinity_count(void)
{
    for (int cpus = CPU_SETSIZE; cpus <= 1 << 20; cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC(cpus);
        if (set == NULL)
            return 1;
        const int failed = sched_getaffinity(0, CPU_ALLOC_SIZE(cpus), set);
        const int error = errno, count = failed ? 0 : CPU_COUNT_S(CPU_ALLOC_SIZE(cpus), set);
        CPU_FREE(set);
        if (!failed)
            return count > 0 ? count : 1;
        if (error != EINVAL)
            return 1;
    }
    return 1;
}

/* One cgroup hierarchy that may limit CPU time: where it is mounted, which of its folders that is, and which one this process is in. */
struct cgroup {
    bool unified; /* version 2 */
    char mount[PATH_MAX], root[PATH_MAX], path[PATH_MAX];
};

static bool
listed(const char *list, const char *word) /* "cpu" in "rw,cpu,cpuacct" */
{
    const size_t length = strlen(word);
    for (const char *at = list; at != NULL; at = strchr(at, ','), at += at != NULL)
        if (strncmp(at, word, length) == 0 && (at[length] == 0 || at[length] == ','))
            return true;
    return false;
}

/* /proc/self/cgroup has lines "4:cpu,cpuacct:/path"; version 2 is "0::/path". */
static bool
find_path(struct cgroup *group)
{
    bool found = false;
    char *line = NULL;
    size_t room = 0;
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file != NULL && !found && getline(&line, &room, file) > 0) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (path == NULL)
            continue;
        *controllers++ = 0, *path++ = 0;
        found = group->unified ? strcmp(line, "0") == 0 && *controllers == 0 : listed(controllers, "cpu");
        if (found && (size_t)snprintf(group->path, PATH_MAX, "%s", path) >= PATH_MAX)
            found = false;
    }
    free(line);
    if (file != NULL)
        fclose(file);
    return found;
}

/* /proc/self/mountinfo: "id parent device root mount options fields… - type source super_options" (proc(5)). */
static bool
find_mount(struct cgroup *group)
{
    bool found = false;
    char *line = NULL;
    size_t room = 0;
    FILE *file = fopen("/proc/self/mountinfo", "re");
    while (file != NULL && !found && getline(&line, &room, file) > 0) {
        const char *tail = strstr(line, " - ");
        char type[16], super[1024];
        if (tail == NULL || strlen(line) >= PATH_MAX || sscanf(tail, " - %15s %*s %1023s", type, super) != 2)
            continue;
        if (group->unified ? strcmp(type, "cgroup2") != 0 : strcmp(type, "cgroup") != 0 || !listed(super, "cpu"))
            continue;
        found = sscanf(line, "%*s %*s %*s %s %s", group->root, group->mount) == 2; /* the line is shorter than either */
    }
    free(line);
    if (file != NULL)
        fclose(file);
    return found;
}

/* Reads "quota period" of one folder: processors' worth, or 0 where nothing limits. */
static double
folder_quota(const struct cgroup *group, const char *folder)
{
    const char *const files[2][2] = {{"cpu.cfs_quota_us", "cpu.cfs_period_us"}, {"cpu.max", NULL}};
    double value[2] = {0, 0};
    int count = 0;
    for (int i = 0; i < 2 && files[group->unified][i] != NULL; i++) {
        char name[PATH_MAX + 32];
        snprintf(name, sizeof name, "%s/%s", folder, files[group->unified][i]);
        FILE *file = fopen(name, "re");
        if (file == NULL)
            return 0;
        while (count < 2 && fscanf(file, "%lf", &value[count]) == 1)
            count++;
        fclose(file);
    }
    return count == 2 && value[0] > 0 && value[1] > 0 ? value[0] / value[1] : 0; /* "max" and -1: no limit */
}

/* The smallest quota of the process's folder and of those above it, as far as they are visible. */
static double
hierarchy_quota(struct cgroup *group)
{
    if (!find_path(group) || !find_mount(group))
        return 0;
    const char *path = group->path;
    const size_t root = strlen(group->root);
    if (strcmp(group->root, "/") != 0)
        path = strncmp(path, group->root, root) == 0 ? path + root : "";
    if (strstr(path, "..") != NULL) /* outside this cgroup namespace */
        path = "";
    char folder[PATH_MAX];
    const size_t mount = strlen(group->mount), length_of_path = strlen(path);
    if (mount + length_of_path >= sizeof folder)
        return 0;
    memcpy(folder, group->mount, mount);
    memcpy(folder + mount, path, length_of_path + 1);
    double least = 0;
    for (size_t length = strlen(folder); length >= mount; length--) {
        if (length > mount && folder[length] != 0 && folder[length] != '/')
            continue;
        folder[length] = 0;
        const double quota = folder_quota(group, folder);
        if (quota > 0 && (least == 0 || quota < least))
            least = quota;
    }
    return least;
}

int
attn_usable_cpus(void)
{
    int cpus = affinity_count();
    struct cgroup *group = malloc(sizeof *group);
    for (int version = 1; group != NULL && version <= 2; version++) {
        group->unified = version == 2;
        const double quota = hierarchy_quota(group);
        if (quota > 0 && quota < cpus)
            cpus = (int)quota + (quota > (int)quota);
    }
    free(group);
    return cpus;
}

#else
typedef int attn_system_is_not_linux; /* a translation unit must not be empty */
#endif
