/* attention_merge_backward.c: the gradients of merge_attention, in the dtype and shape of every part. */
#include "families.h"

#include "../kernels/attention_merge_backward.h"

#include "attention_merge.h"

#include <string.h>

static const struct engine_function backward = {
    .name = "merge_attention_backward",
    .signature = "(l,d),(l,d),(l),(l,d),(l)->(l,d),(l)",
    .arguments = 7,
    .instead = "its data",
    .kernel = offsetof(struct attn_kernels, merge_attention_backward),
    .outputs = {{"grad_outputs", ".ld", false, 0}, {"grad_lses", ".l.", false, 0}},
};

enum { GRAD_OUTPUT, OUTPUTS, LSES, OUTPUT, LSE, GRAD_LSE, OUT }; /* places in the call */
enum { OF_OUTPUTS, OF_LSES, KINDS };                             /* what a gradient is of */
enum { WHOLE = 2 };                                              /* arrays of the whole, of either kind */

/* A whole array has the shape of the merged result. */
static bool
check_whole(const struct engine *e, const struct parts *parts, Py_ssize_t index, int core)
{
    PyArrayObject *array = parts->array[index];
    if (!array)
        return true;
    int64_t shape[ATTN_MAX_BATCH + 2];
    memcpy(shape, e->batch_shape, (size_t)e->batch_ndim * sizeof *shape);
    shape[e->batch_ndim] = e->size['l' - 'a'];
    shape[e->batch_ndim + 1] = e->size['d' - 'a'];
    bool same = PyArray_NDIM(array) == e->batch_ndim + core;
    for (int i = 0; same && i < PyArray_NDIM(array); i++)
        same = PyArray_DIM(array, i) == shape[i];
    if (same)
        return true;
    PyObject *wanted = engine_tuple(e->batch_ndim + core, shape);
    if (wanted)
        engine_shape_error(parts->name[index], array, "it must have that of the merged result, %S", wanted);
    Py_XDECREF(wanted);
    return false;
}

static bool
open_all(struct engine *e, struct parts *parts, PyObject *const *arguments)
{
    if (!merge_open(e, parts, arguments[OUTPUTS], arguments[LSES], WHOLE))
        return false;
    Py_ssize_t output = parts->n, lse = parts->each + parts->n;
    return merge_open_whole(e, parts, output, "output", arguments[OUTPUT]) &&
           merge_open_whole(e, parts, output + 1, "grad_output", arguments[GRAD_OUTPUT]) && merge_open_whole(e, parts, lse, "lse", arguments[LSE]) &&
           (arguments[GRAD_LSE] == Py_None || merge_open_whole(e, parts, lse + 1, "grad_lse", arguments[GRAD_LSE])) && merge_bind(e, parts) &&
           check_whole(e, parts, output, 2) && check_whole(e, parts, output + 1, 2) && check_whole(e, parts, lse, 1) &&
           check_whole(e, parts, lse + 1, 1);
}

/* Entry `index` of an out=; borrowed, NULL with an exception. */
static PyObject *
entry(const char *name, PyObject *out, Py_ssize_t entries, Py_ssize_t index)
{
    if (out == Py_None)
        return out;
    if (!PyTuple_Check(out)) {
        PyErr_Format(PyExc_TypeError, "%s must be a tuple, not %R", name, Py_TYPE(out));
        return NULL;
    }
    if (PyTuple_Size(out) != entries) {
        PyErr_Format(PyExc_ValueError, "%s has %zd entries; it must have %zd", name, PyTuple_Size(out), entries);
        return NULL;
    }
    return PyTuple_GetItem(out, index);
}

static bool
new_result(struct engine *e, const char *name, PyObject *out, PyArrayObject *like, enum attn_type type)
{
    int64_t shape[NPY_MAXDIMS];
    for (int i = 0; i < PyArray_NDIM(like); i++)
        shape[i] = PyArray_DIM(like, i);
    return out && engine_result(e, e->results, name, out, type, PyArray_NDIM(like), shape, false);
}

static enum attn_type
type_of(const struct parts *parts, int kind, Py_ssize_t t)
{
    enum attn_type type = ATTN_FLOAT64;
    if (kind == OF_OUTPUTS)
        engine_stored_type(parts->array[t], &type);
    else
        type = parts->type[parts->each + t];
    return type;
}

/* The gradients of one kind: one array where the parts came stacked, else one for each part. */
static bool
bind_gradients(struct engine *e, const struct parts *parts, int kind, PyObject *given, PyObject *out, struct attn_tensor *tensor)
{
    const char *core = backward.outputs[kind].core;
    char name[48];
    PyOS_snprintf(name, sizeof name, "out[%d]", kind);
    if (!out)
        return false;
    if (PyArray_Check(given)) {
        if (!new_result(e, name, out, (PyArrayObject *)given, type_of(parts, kind, 0)))
            return false;
        for (Py_ssize_t t = 0; t < parts->n; t++) {
            PyObject *part = PySequence_GetItem((PyObject *)e->result[e->results - 1].target, t);
            if (!part)
                return false;
            engine_tensor(e, core, (PyArrayObject *)part, &tensor[t]);
            Py_DECREF(part);
        }
        return true;
    }
    for (Py_ssize_t t = 0; t < parts->n; t++) {
        PyObject *one = entry(name, out, parts->n, t);
        char long_name[48];
        PyOS_snprintf(long_name, sizeof long_name, "out[%d][%zd]", kind, t);
        if (!new_result(e, long_name, one, parts->array[kind * parts->each + t], type_of(parts, kind, t)))
            return false;
        engine_tensor(e, core, e->result[e->results - 1].target, &tensor[t]);
    }
    return true;
}

static bool
run(struct engine *e, const struct parts *parts, PyObject *const *arguments, struct attn_tensor *grads)
{
    struct attn_merge_backward a = {
        .batch_ndim = e->batch_ndim, .batch = e->batch, .parts = parts->n, .rows = *engine_size(e, 'l'), .value_dim = *engine_size(e, 'd')};
    memcpy(a.batch_shape, e->batch_shape, (size_t)e->batch_ndim * sizeof *a.batch_shape);
    const struct attn_tensor *lses = parts->tensor + parts->each;
    a.outputs = parts->tensor;
    a.output = parts->tensor[parts->n];
    a.grad_output = parts->tensor[parts->n + 1];
    a.lses = lses;
    a.lse = lses[parts->n];
    a.grad_lse = lses[parts->n + 1];
    a.grad_outputs = grads;
    a.grad_lses = grads + parts->n;
    e->more = parts->array;
    e->more_inputs = 2 * parts->each - (a.grad_lse.data ? 0 : 1); /* it is the last */
    for (int kind = 0; kind < KINDS; kind++)
        if (!bind_gradients(e, parts, kind, arguments[OUTPUTS + kind], entry("out", arguments[OUT], KINDS, kind), grads + kind * parts->n))
            return false;
    return engine_run(e, &a);
}

/* What engine_close gave, of both kinds: (grad_outputs, grad_lses), each an array or a tuple of arrays. */
static PyObject *
by_kind(PyObject *flat, PyObject *const *arguments, Py_ssize_t n)
{
    PyObject *answer = flat ? PyTuple_New(KINDS) : NULL;
    Py_ssize_t first = 0;
    for (int kind = 0; answer && kind < KINDS; kind++) {
        bool stacked = PyArray_Check(arguments[OUTPUTS + kind]);
        PyObject *item = stacked ? PySequence_GetItem(flat, first) : PyTuple_GetSlice(flat, first, first + n);
        first += stacked ? 1 : n;
        if (!item || PyTuple_SetItem(answer, kind, item) < 0)
            Py_CLEAR(answer);
    }
    Py_XDECREF(flat);
    return answer;
}

static PyObject *
call(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct engine e;
    struct parts parts = {0};
    struct attn_tensor *grads = NULL;
    (void)module;
    engine_start(&e, &backward, arguments, n);
    e.headless = false;
    bool right = engine_argument_count(backward.name, backward.arguments, n) && open_all(&e, &parts, arguments);
    if (right) {
        grads = PyMem_Calloc((size_t)(KINDS * parts.n), sizeof *grads + sizeof *e.result);
        if (grads)
            e.result = (struct engine_result *)(grads + KINDS * parts.n);
        else
            PyErr_NoMemory();
        right = grads && run(&e, &parts, arguments, grads);
    }
    PyObject *answer = engine_close(&e, right);
    if (!e.foreign)
        answer = by_kind(answer, arguments, parts.n);
    PyMem_Free(grads);
    merge_close(&parts);
    return answer;
}

static PyMethodDef methods[] = {FAST_METHOD("merge_attention_backward", call), {0}};

static const struct engine_function *const functions[] = {&backward, NULL};

const struct family attn_merge_backward_family = {methods, functions};
