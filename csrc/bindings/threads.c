/* threads.c: the number of threads, for Python and, by exported symbols, for threadpoolctl; what build this is. */
#include "families.h"

#include "../core/pool.h"

#ifndef ATTNPY_VERSION
#define ATTNPY_VERSION "unknown"
#endif

#define EXPORTED __attribute__((visibility("default")))

EXPORTED int attnpy_get_num_threads(void);
EXPORTED void attnpy_set_num_threads(int threads);
EXPORTED const char *attnpy_get_version(void);

int
attnpy_get_num_threads(void)
{
    return attn_get_num_threads();
}

void
attnpy_set_num_threads(int threads)
{
    attn_set_num_threads(threads);
}

const char *
attnpy_get_version(void)
{
    return ATTNPY_VERSION;
}

static PyObject *
get_num_threads(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyLong_FromLong(attn_get_num_threads());
}

static PyObject *
set_num_threads(PyObject *module, PyObject *number)
{
    const int most = 1024;
    int64_t threads;
    (void)module;
    if (!engine_integer("num_threads", number, &threads))
        return NULL;
    if (threads < 1 || threads > most) {
        PyErr_Format(PyExc_ValueError, "num_threads is %S; it must be in 1 ... %d", number, most);
        return NULL;
    }
    attn_set_num_threads((int)threads);
    Py_RETURN_NONE;
}

static PyObject *
config(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    PyObject *all = level_config(), *threads = all ? PyLong_FromLong(attn_get_num_threads()) : NULL;
    if (!threads || PyDict_SetItemString(all, "threads", threads) < 0)
        Py_CLEAR(all);
    Py_XDECREF(threads);
    return all;
}

/* For tests: scratch can be had n times more, then never again; n < 0: always. */
static PyObject *
debug_fail_scratch(PyObject *module, PyObject *number)
{
    int64_t takes;
    (void)module;
    if (!engine_integer("n", number, &takes))
        return NULL;
    attn_scratch_fail_after((long)takes);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"get_num_threads", get_num_threads, METH_NOARGS, NULL},
    {"set_num_threads", set_num_threads, METH_O, NULL},
    {"config", config, METH_NOARGS, NULL},
    {"debug_fail_scratch", debug_fail_scratch, METH_O, NULL},
    {0},
};

static const struct engine_function *const functions[] = {NULL};

const struct family attn_thread_family = {methods, functions};
