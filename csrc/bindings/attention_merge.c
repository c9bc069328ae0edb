/* attention_merge.c: merge_attention and dropout_mask: what goes with attention and takes no query. */
#include "families.h"

#include "../kernels/attention.h"

#include "attention_merge.h"

#include <string.h>

static const struct engine_function merge = {
    .name = "merge_attention",
    .signature = "(l,d),(l)->(l,d),(l)",
    .arguments = 3,
    .instead = "its data",
    .kernel = offsetof(struct attn_kernels, merge_attention),
    .outputs = {{"output", ".ld", false, offsetof(struct attn_merge, output)}, {"lse", ".l.", true, offsetof(struct attn_merge, lse)}},
};

static bool
run_merge(struct engine *e, const struct parts *parts, PyObject *out)
{
    struct attn_merge a = {
        .batch_ndim = e->batch_ndim, .batch = e->batch, .parts = parts->n, .rows = *engine_size(e, 'l'), .value_dim = *engine_size(e, 'd')};
    memcpy(a.batch_shape, e->batch_shape, (size_t)e->batch_ndim * sizeof *a.batch_shape);
    a.outputs = parts->tensor;
    a.lses = parts->tensor + parts->each;
    e->more = parts->array;
    e->more_inputs = 2 * parts->each;
    return engine_outputs(e, out, 2, &a) && engine_run(e, &a);
}

static PyObject *
call_merge(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct engine e;
    struct parts parts = {0};
    (void)module;
    engine_start(&e, &merge, arguments, n);
    e.headless = false;
    bool done = engine_argument_count(merge.name, merge.arguments, n) && merge_open(&e, &parts, arguments[0], arguments[1], 0) &&
                merge_bind(&e, &parts) && run_merge(&e, &parts, arguments[2]);
    PyObject *answer = engine_close(&e, done);
    merge_close(&parts);
    return answer;
}

static const struct engine_function dropout = {
    .name = "dropout_mask",
    .arguments = 4,
    .kernel = offsetof(struct attn_kernels, dropout_mask),
    .outputs = {{"the mask", "hls", false, offsetof(struct attn_dropout, output)}},
};

/* shape: (…, H, L, S), or (L, S) of one head. */
static bool
bind_mask_shape(struct engine *e, PyObject *shape, struct attn_dropout *a)
{
    int64_t size[NPY_MAXDIMS];
    Py_ssize_t n = PyTuple_Check(shape) || PyList_Check(shape) ? PySequence_Size(shape) : -1;
    if (n < 2 || n > NPY_MAXDIMS) {
        PyErr_Format(PyExc_ValueError, "shape is %R; it must be a tuple of 2 ... %d sizes (..., H, L, S)", shape, NPY_MAXDIMS);
        return false;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PySequence_GetItem(shape, i);
        bool right = item && engine_integer("shape", item, &size[i]);
        Py_XDECREF(item);
        if (!right)
            return false;
        if (size[i] < 0) {
            PyErr_Format(PyExc_ValueError, "shape is %R; sizes must not be negative", shape);
            return false;
        }
    }
    e->headless = n == 2;
    e->batch_ndim = a->batch_ndim = n == 2 ? 0 : (int)n - 3;
    for (int i = 0; i < a->batch_ndim; i++)
        e->batch_shape[i] = a->batch_shape[i] = size[i];
    *engine_size(e, 'h') = a->heads = n == 2 ? 1 : size[n - 3];
    *engine_size(e, 'l') = a->query_length = size[n - 2];
    *engine_size(e, 's') = a->key_length = size[n - 1];
    if (!engine_finish_batch(e))
        return false;
    a->batch = e->batch;
    return true;
}

static bool
bind_mask_type(struct engine *e, PyObject *object)
{
    PyArray_Descr *descr = NULL;
    if (!PyArray_DescrConverter(object, &descr))
        return false;
    PyArrayObject *empty = (PyArrayObject *)PyArray_Zeros(1, (npy_intp[]){0}, descr, 0);
    bool known = empty && engine_stored_type(empty, &e->stored) && !PyArray_ISBYTESWAPPED(empty);
    if (empty && !known)
        PyErr_Format(PyExc_TypeError, "dtype is %S; it must be bool, float16, bfloat16, float32 or float64", PyArray_DESCR(empty));
    Py_XDECREF((PyObject *)empty);
    e->compute = e->stored == ATTN_FLOAT64 ? ATTN_FLOAT64 : ATTN_FLOAT32;
    return known;
}

static PyObject *
call_dropout(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_dropout a;
    struct engine e;
    (void)module;
    engine_start(&e, &dropout, arguments, n);
    bool done = engine_argument_count(dropout.name, dropout.arguments, n) && bind_mask_shape(&e, arguments[0], &a) &&
                engine_dropout(arguments[1], arguments[2], &a.dropout_p, a.dropout_key) && bind_mask_type(&e, arguments[3]) &&
                engine_outputs(&e, Py_None, 1, &a) && engine_run(&e, &a);
    return engine_close(&e, done);
}

static PyMethodDef methods[] = {FAST_METHOD("merge_attention", call_merge), FAST_METHOD("dropout_mask", call_dropout), {0}};

static const struct engine_function *const functions[] = {&merge, NULL};

const struct family attn_merge_family = {methods, functions};
