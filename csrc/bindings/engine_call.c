/* engine_call.c: from a filled argument struct to its results: plan, memory, GIL, threads, signals, floating-point state. */
#include "engine.h"

#include "../core/pool.h"

#include <fenv.h>
#include <pthread.h>
#include <unistd.h>

#if defined __linux__
#include <sys/syscall.h>
#endif
#if defined __SSE2__
#include <emmintrin.h>
#endif

const struct attn_kernels *engine_kernels;
int engine_debug_blocks;

/* Operations, as kernels count them: letting go of the GIL costs less than 1 us; a worker that sleeps begins after 35 us or more, in which the
 * caller has done 5e6 by itself. */
static const double worth_releasing = 5e5, worth_threads = 8e6;

struct running {
    const struct attn_kernel *kernel;
    const void *arguments;
    int phase;
    PyThreadState *released; /* NULL while the GIL is held */
};

static void
run_task(void *context, int64_t task, void *scratch)
{
    const struct running *running = context;
    running->kernel->run(running->arguments, running->phase, task, scratch);
}

/* Python runs signal handlers in the process's first thread only; after fork that is the thread that forked. */
static bool
in_main_thread(void)
{
#if defined __linux__
    return syscall(SYS_gettid) == getpid();
#elif defined __APPLE__
    return pthread_main_np() != 0;
#else
    return true;
#endif
}

/* Runs what signals have asked for. A handler's exception stays set; the job is then stopped. */
static int
look_for_signals(void *context)
{
    struct running *running = context;
    PyEval_RestoreThread(running->released);
    int interrupted = PyErr_CheckSignals();
    running->released = PyEval_SaveThread();
    return interrupted;
}

static enum attn_status
run_phases(struct running *running, const struct attn_plan *plan, int threads, atomic_int *stop)
{
    bool polls = running->released && in_main_thread();
    enum attn_status status = ATTN_DONE;
    for (int phase = 0; phase < plan->phases && status == ATTN_DONE; phase++) {
        running->phase = phase;
        struct attn_job job = {.run = run_task,
                               .context = running,
                               .tasks = plan->tasks[phase],
                               .scratch = plan->scratch,
                               .threads = threads,
                               .stop = stop,
                               .poll = polls ? look_for_signals : NULL,
                               .poll_context = running};
        if (job.tasks > 0)
            status = attn_pool_run(&job);
    }
    return status;
}

/* Flags and traps are the caller's: none is left behind, none goes off. On x86-64 float kernels only touch MXCSR; doubles may use x87 as well. */
struct floating_state {
    fenv_t environment;
    unsigned control;
};

static void
hold_floating_state(struct floating_state *state, enum attn_type compute)
{
#if defined __SSE2__
    const unsigned quiet = 0x1f80; /* the processor's state at reset: all exceptions masked, no flags, round to nearest, subnormals kept */
    state->control = _mm_getcsr();
    if (compute == ATTN_FLOAT64) {
        fegetenv(&state->environment);
        fesetenv(FE_DFL_ENV); /* the rounding of long double too */
    }
    _mm_setcsr(quiet);
#else
    (void)compute;
    fegetenv(&state->environment);
    fesetenv(FE_DFL_ENV);
#endif
}

static void
restore_floating_state(const struct floating_state *state, enum attn_type compute)
{
#if defined __SSE2__
    if (compute == ATTN_FLOAT64)
        fesetenv(&state->environment);
    _mm_setcsr(state->control);
#else
    (void)compute;
    fesetenv(&state->environment);
#endif
}

/* arguments begins with a struct attn_call, which is filled in here. */
bool
engine_run_kernel(const struct attn_kernel *kernel, enum attn_type compute, void *arguments)
{
    struct attn_call *call = arguments;
    struct attn_plan plan = {0};
    struct floating_state state;
    struct running running = {.kernel = kernel, .arguments = arguments};
    atomic_int stop;
    atomic_init(&stop, 0);
    *call = (struct attn_call){.stop = &stop, .threads = attn_get_num_threads(), .debug_blocks = engine_debug_blocks};
    hold_floating_state(&state, compute);
    kernel->plan(arguments, &plan);
    if (plan.workspace > 0)
        call->workspace = attn_scratch_take(plan.workspace);
    enum attn_status status = ATTN_NO_MEMORY;
    if (plan.workspace == 0 || call->workspace) {
        running.released = plan.cost > worth_releasing ? PyEval_SaveThread() : NULL;
        status = run_phases(&running, &plan, plan.cost > worth_threads ? call->threads : 1, &stop);
        if (running.released)
            PyEval_RestoreThread(running.released);
        if (call->workspace)
            attn_scratch_give(call->workspace, plan.workspace);
    }
    restore_floating_state(&state, compute);
    if (status == ATTN_NO_MEMORY)
        PyErr_SetString(PyExc_MemoryError, "no memory for the call's scratch");
    else if (status == ATTN_STOPPED && !PyErr_Occurred())
        PyErr_SetString(PyExc_RuntimeError, "a signal handler forked this process in the middle of the call: the child cannot finish it");
    return status == ATTN_DONE;
}

/* Does nothing where every output is empty. */
bool
engine_run(const struct engine *e, void *arguments)
{
    bool empty = true;
    for (int i = 0; i < e->results; i++)
        empty &= !e->result[i].array || PyArray_SIZE(e->result[i].array) == 0;
    const struct attn_kernel *const *kernels = (const struct attn_kernel *const *)((const char *)engine_kernels + e->function->kernel);
    return empty || engine_run_kernel(kernels[e->compute], e->compute, arguments);
}
