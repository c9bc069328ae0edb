/* engine_memory.c: arrays for results. Large ones lie in memory that core/results.c keeps for the next, through NumPy's own hook for allocators (NEP 49),
 * unless the user has put an allocator of his own there. */
#include "engine.h"

#include "../core/pool.h"

#include <string.h>

static void *
take(void *context, size_t bytes)
{
    (void)context;
    return attn_result_take(bytes);
}

static void *
take_zeros(void *context, size_t number, size_t each)
{
    size_t bytes;
    (void)context;
    if (__builtin_mul_overflow(number, each, &bytes))
        return NULL;
    void *block = attn_result_take(bytes);
    return block ? memset(block, 0, bytes) : NULL;
}

static void *
resize(void *context, void *block, size_t bytes)
{
    (void)context;
    return attn_result_resize(block, bytes);
}

static void
give(void *context, void *block, size_t bytes)
{
    (void)context;
    attn_result_give(block, bytes);
}

static PyDataMem_Handler handler = {"attnpy", 1, {NULL, take, take_zeros, resize, give}};
static PyObject *capsule; /* NumPy asks for one of this name; arrays hold references to it */

bool
engine_memory_start(void)
{
    if (!capsule)
        capsule = PyCapsule_New(&handler, "mem_handler", NULL);
    return capsule != NULL;
}

/* Makes `wanted` the allocator of new arrays; returns what was, or NULL with an error. An error that is set already stays. */
static PyObject *
set_allocator(PyObject *wanted)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *before = PyDataMem_SetHandler(wanted);
    if (type)
        PyErr_Restore(type, value, trace);
    return before;
}

/* Takes over the reference to descr, as PyArray_Empty does. */
PyArrayObject *
engine_empty(int ndim, npy_intp *shape, PyArray_Descr *descr, int64_t bytes)
{
    PyArrayObject *array = NULL;
    PyObject *usual = bytes >= ATTN_RESULT_LARGE ? PyDataMem_GetHandler() : NULL;
    bool ours = usual && usual == PyDataMem_DefaultHandler;
    PyObject *before = ours ? set_allocator(capsule) : NULL;
    if ((bytes >= ATTN_RESULT_LARGE && !usual) || (ours && !before)) {
        Py_DECREF((PyObject *)descr);
        goto done;
    }
    array = (PyArrayObject *)PyArray_Empty(ndim, shape, descr, 0);
    if (ours) {
        PyObject *was = set_allocator(usual);
        if (!was)
            Py_CLEAR(array);
        Py_XDECREF(was);
    }
done:
    Py_XDECREF(before);
    Py_XDECREF(usual);
    return array;
}
