/* positions_relative.c: alibi_bias, t5_relative_bias and t5_relative_bias_backward. */
#include "families.h"

#include "../kernels/positions_relative.h"

#include <string.h>

#define ALIBI(member) offsetof(struct attn_alibi, member)
#define BUCKETS(member) offsetof(struct attn_buckets, member)

static const struct engine_function alibi = {
    .name = "alibi_bias",
    .signature = "(h)->(h,l,s)",
    .arguments = 5,
    .instead = "its data",
    .kernel = offsetof(struct attn_kernels, alibi_bias),
    .operands = {{"slopes", ENGINE_DATA, 0, "h..", 0, ALIBI(slopes)}, {"offset", ENGINE_OFFSETS, 3, "...", 0, ALIBI(offset)}},
    .outputs = {{"the bias", "hls", false, ALIBI(output)}},
};

/* t is the one query row of a bias that all rows share. */
static const struct engine_function t5 = {
    .name = "t5_relative_bias",
    .signature = "(b,h)->(h,t,k)",
    .arguments = 3,
    .instead = "its data",
    .packed = true,
    .kernel = offsetof(struct attn_kernels, buckets),
    .operands = {{"table", ENGINE_DATA, 0, ".bh", 0, BUCKETS(table)}},
    .outputs = {{"the bias", "htk", false, BUCKETS(values)}},
};

static const struct engine_function t5_backward = {
    .name = "t5_relative_bias_backward",
    .signature = "(h,t,k),(b,h)->(b,h)",
    .arguments = 4,
    .instead = "its data",
    .packed = true,
    .kernel = offsetof(struct attn_kernels, buckets),
    .operands = {{"grad_output", ENGINE_DATA, 0, "htk", 0, BUCKETS(values)}, {"table", ENGINE_DATA, 1, ".bh", 0, BUCKETS(table)}},
    .outputs = {{"the gradient", ".bh", false, BUCKETS(table)}},
};

enum { TABLE = 1 }; /* its place among the operands of t5_backward */

static bool
read_length(struct engine *e, const char *name, PyObject *object, char letter, int64_t *length)
{
    if (!engine_integer(name, object, length))
        return false;
    if (*length < 0)
        PyErr_Format(PyExc_ValueError, "%s is %lld; it must not be negative", name, (long long)*length);
    *engine_size(e, letter) = *length;
    return *length >= 0;
}

static PyObject *
call_alibi(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_alibi a;
    struct engine e;
    (void)module;
    bool done = engine_open(&e, &alibi, arguments, n, &a) && read_length(&e, "query_length", arguments[1], 'l', &a.query_length) &&
                read_length(&e, "key_length", arguments[2], 's', &a.key_length) && engine_outputs(&e, arguments[4], 1, &a);
    if (done) {
        a.batch_ndim = e.batch_ndim;
        memcpy(a.batch_shape, e.batch_shape, (size_t)e.batch_ndim * sizeof *a.batch_shape);
        a.batch = e.batch;
        a.heads = *engine_size(&e, 'h');
    }
    return engine_close(&e, done && engine_run(&e, &a));
}

/* Which row of the table each column takes. */
static bool
bind_buckets(struct engine *e, PyObject *object, struct attn_buckets *a)
{
    PyArrayObject *buckets = engine_integers(e, "buckets", object);
    if (!buckets)
        return false;
    if (PyArray_NDIM(buckets) != 1)
        return engine_shape_error("buckets", buckets, "it must have one axis");
    a->bucket = PyArray_DATA(buckets);
    a->columns = PyArray_DIM(buckets, 0);
    a->number = *engine_size(e, 'b');
    a->heads = *engine_size(e, 'h');
    for (int64_t c = 0; c < a->columns; c++)
        if (a->bucket[c] < 0 || a->bucket[c] >= a->number) {
            PyErr_Format(PyExc_ValueError, "buckets holds %lld; each must be in 0 ... %lld", (long long)a->bucket[c], (long long)a->number - 1);
            return false;
        }
    return true;
}

static PyObject *
call_t5(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_buckets a = {.sums = false};
    struct engine e;
    (void)module;
    bool done = engine_open(&e, &t5, arguments, n, &a) && bind_buckets(&e, arguments[1], &a);
    *engine_size(&e, 't') = 1;
    *engine_size(&e, 'k') = a.columns;
    return engine_close(&e, done && engine_outputs(&e, arguments[2], 1, &a) && engine_run(&e, &a));
}

static PyObject *
call_t5_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_buckets a = {.sums = true};
    struct engine e;
    (void)module;
    bool done = engine_open(&e, &t5_backward, arguments, n, &a) && bind_buckets(&e, arguments[2], &a);
    if (done && (*engine_size(&e, 't') != 1 || *engine_size(&e, 'k') != a.columns))
        done = engine_shape_error("grad_output", e.operand[0], "it must be (%lld, 1, %lld)", (long long)a.heads, (long long)a.columns);
    return engine_close(&e, done && engine_gradient(&e, 0, TABLE, arguments[3], false, &a) && engine_run(&e, &a));
}

static PyMethodDef methods[] = {
    FAST_METHOD("alibi_bias", call_alibi), FAST_METHOD("t5_relative_bias", call_t5), FAST_METHOD("t5_relative_bias_backward", call_t5_backward), {0}};

static const struct engine_function *const functions[] = {&alibi, &t5, &t5_backward, NULL};

const struct family attn_positions_relative_family = {methods, functions};
