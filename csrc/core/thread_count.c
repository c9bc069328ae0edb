/* thread_count.c: how many threads a job may use. */
#include "pool.h"
#include "system.h"

#include <errno.h>
#include <stdlib.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static atomic_int threads;
static int cpus;

/* The first number of a list such as "4,2" (OpenMP 5.2, section 21.1.2); 0 where there is none above 0. */
static int
count_in(const char *variable)
{
    const char *text = getenv(variable);
    if (text == NULL)
        return 0;
    char *end;
    errno = 0;
    const long count = strtol(text, &end, 10);
    while (*end == ' ')
        end++;
    if (end == text || (*end != 0 && *end != ',') || count < 1)
        return 0;
    return count < ATTN_MAX_THREADS ? (int)count : ATTN_MAX_THREADS;
}

static void
find_counts(void)
{
    cpus = attn_usable_cpus();
    int wanted = count_in("ATTNPY_NUM_THREADS");
    if (wanted == 0)
        wanted = count_in("OMP_NUM_THREADS");
    const int most = cpus < ATTN_MAX_THREADS ? cpus : ATTN_MAX_THREADS;
    atomic_store(&threads, wanted > 0 && wanted < most ? wanted : most);
}

int
attn_usable_cpu_count(void)
{
    pthread_once(&once, find_counts);
    return cpus;
}

int
attn_get_num_threads(void)
{
    pthread_once(&once, find_counts);
    return atomic_load_explicit(&threads, memory_order_relaxed);
}

void
attn_set_num_threads(int count)
{
    pthread_once(&once, find_counts); /* else the first get would undo this set */
    atomic_store(&threads, count < 1 ? 1 : count > ATTN_MAX_THREADS ? ATTN_MAX_THREADS : count);
}
