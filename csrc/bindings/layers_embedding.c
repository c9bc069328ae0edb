/* layers_embedding.c: embedding and the gradient of its table. */
#include "families.h"

#include "../kernels/layers_embedding.h"

static const struct engine_function embedding = {.name = "embedding",
                                                 .signature = "(),(v,d)->(d)",
                                                 .arguments = 3,
                                                 .instead = "its data",
                                                 .kernel = offsetof(struct attn_kernels, embedding),
                                                 .outputs = {{"the result", "...", false, 0}}};
static const struct engine_function embedding_backward = {.name = "embedding_backward",
                                                          .signature = "(d),()->(v,d)",
                                                          .arguments = 4,
                                                          .instead = "its data",
                                                          .kernel = offsetof(struct attn_kernels, embedding_backward),
                                                          .outputs = {{"the gradient", "...", false, 0}}};

/* The numbers of rows, each in 0 ... entries - 1. */
static bool
take_indices(struct engine *e, PyObject *object, int64_t entries, struct attn_embedding *a)
{
    PyArrayObject *array = engine_integers(e, "indices", object);
    if (!array)
        return false;
    a->indices = PyArray_DATA(array);
    a->count = PyArray_SIZE(array);
    a->ndim = PyArray_NDIM(array);
    for (int i = 0; i < a->ndim; i++)
        a->shape[i] = PyArray_DIM(array, i);
    for (int64_t i = 0; i < a->count; i++)
        if (a->indices[i] < 0 || a->indices[i] >= entries) {
            PyErr_Format(PyExc_ValueError, "indices holds %lld; each must be in 0 ... %lld", (long long)a->indices[i], (long long)entries - 1);
            return false;
        }
    return true;
}

/* The tensor of an array with the axes of the indices, and columns. */
static void
bind_rows(PyArrayObject *array, int ndim, struct attn_tensor *tensor)
{
    struct engine flat = {.batch_ndim = ndim};
    engine_tensor(&flat, "..d", array, tensor);
}

static PyObject *
call_embedding(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    static const char *const names[] = {"table"};
    struct attn_embedding a;
    struct engine e, flat = {.batch_ndim = 0};
    PyArrayObject *table = NULL;
    int64_t shape[NPY_MAXDIMS + 1];
    (void)module;
    engine_start(&e, &embedding, arguments, n);
    bool right = engine_argument_count(embedding.name, embedding.arguments, n) && (table = engine_array(&e, names[0], arguments[1])) &&
                 engine_common_type(&e, names, &table, 1);
    if (right && PyArray_NDIM(table) != 2)
        right = engine_shape_error("table", table, "it must have two axes, entries and columns");
    right = right && take_indices(&e, arguments[0], PyArray_DIM(table, 0), &a);
    if (right) {
        engine_tensor(&flat, ".vd", table, &a.table);
        a.columns = PyArray_DIM(table, 1);
        for (int i = 0; i < a.ndim; i++)
            shape[i] = a.shape[i];
        shape[a.ndim] = a.columns;
        e.input[e.inputs++] = table;
        right = engine_result(&e, 0, "out", arguments[2], e.stored, a.ndim + 1, shape, false);
        if (right)
            bind_rows(e.result[0].target, a.ndim, &a.y);
    }
    return engine_close(&e, right && engine_run(&e, &a));
}

static PyObject *
call_embedding_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    static const char *const names[] = {"grad_output"};
    struct attn_embedding a;
    struct engine e, flat = {.batch_ndim = 0};
    PyArrayObject *grad = NULL;
    enum attn_type type = ATTN_FLOAT64;
    (void)module;
    engine_start(&e, &embedding_backward, arguments, n);
    bool right = engine_argument_count(embedding_backward.name, embedding_backward.arguments, n) &&
                 (grad = engine_array(&e, names[0], arguments[0])) && engine_common_type(&e, names, &grad, 1) &&
                 engine_integer("num_embeddings", arguments[2], &a.entries);
    if (right && a.entries < 0) {
        PyErr_Format(PyExc_ValueError, "num_embeddings is %lld; it must not be negative", (long long)a.entries);
        right = false;
    }
    right = right && take_indices(&e, arguments[1], a.entries, &a);
    if (right) {
        bool fits = PyArray_NDIM(grad) == a.ndim + 1;
        for (int i = 0; fits && i < a.ndim; i++)
            fits = PyArray_DIM(grad, i) == a.shape[i];
        if (!fits) {
            PyObject *wanted = engine_tuple(a.ndim, a.shape);
            right = wanted && engine_shape_error("grad_output", grad, "it must have that of indices, %S, and one axis more", wanted);
            Py_XDECREF(wanted);
        }
    }
    if (right) {
        a.columns = PyArray_DIM(grad, a.ndim);
        int64_t shape[] = {a.entries, a.columns};
        bind_rows(grad, a.ndim, &a.grad);
        engine_stored_type(grad, &type);
        e.input[e.inputs++] = grad;
        right = engine_result(&e, 0, "out", arguments[3], type, 2, shape, false);
        if (right)
            engine_tensor(&flat, ".vd", e.result[0].target, &a.y);
    }
    return engine_close(&e, right && engine_run(&e, &a));
}

static PyMethodDef methods[] = {FAST_METHOD("embedding", call_embedding), FAST_METHOD("embedding_backward", call_embedding_backward), {0}};

static const struct engine_function *const functions[] = {&embedding, &embedding_backward, NULL};

const struct family attn_embedding_family = {methods, functions};
