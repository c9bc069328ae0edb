/* layers_loss.c: cross_entropy and its gradient. */
#include "families.h"

#include "../kernels/layers_loss.h"

static const struct engine_function cross_entropy = {.name = "cross_entropy",
                                                     .signature = "(v),()->()",
                                                     .arguments = 6,
                                                     .instead = "ignore_index",
                                                     .kernel = offsetof(struct attn_kernels, cross_entropy),
                                                     .outputs = {{"the loss", "...", true, 0}}};
static const struct engine_function cross_entropy_backward = {.name = "cross_entropy_backward",
                                                              .signature = "(),(v),()->(v)",
                                                              .arguments = 7,
                                                              .instead = "ignore_index",
                                                              .kernel = offsetof(struct attn_kernels, cross_entropy_backward),
                                                              .outputs = {{"the gradient", "...", false, 0}}};

static bool
read_reduction(PyObject *object, enum attn_reduction *reduction)
{
    static const char *const names[] = {[ATTN_REDUCE_NONE] = "none", [ATTN_REDUCE_SUM] = "sum", [ATTN_REDUCE_MEAN] = "mean"};
    for (int i = 0; PyUnicode_Check(object) && i < 3; i++)
        if (PyUnicode_CompareWithASCIIString(object, names[i]) == 0) {
            *reduction = (enum attn_reduction)i;
            return true;
        }
    PyErr_Format(PyUnicode_Check(object) ? PyExc_ValueError : PyExc_TypeError, "reduction is %R; it must be 'mean', 'sum' or 'none'", object);
    return false;
}

/* logits, targets, ignore_index, label_smoothing, reduction: *logits is the array. */
static bool
open_call(struct engine *e, PyObject *const *arguments, PyArrayObject **logits, struct attn_cross_entropy *a)
{
    static const char *const names[] = {"logits"};
    if (!(*logits = engine_array(e, names[0], arguments[0])) || !engine_common_type(e, names, logits, 1))
        return false;
    int ndim = PyArray_NDIM(*logits);
    if (ndim == 0)
        return engine_shape_error("logits", *logits, "it must have at least one axis, the classes");
    e->batch_ndim = a->ndim = ndim;
    for (int i = 0; i < ndim; i++)
        e->batch_shape[i] = a->shape[i] = PyArray_DIM(*logits, i);
    engine_tensor(e, "...", *logits, &a->x);
    PyArrayObject *targets = engine_integers(e, "targets", arguments[1]);
    if (!targets)
        return false;
    bool same = PyArray_NDIM(targets) == ndim - 1;
    for (int i = 0; same && i < ndim - 1; i++)
        same = PyArray_DIM(targets, i) == a->shape[i];
    if (!same) {
        PyObject *wanted = engine_tuple(ndim - 1, a->shape);
        if (wanted)
            engine_shape_error("targets", targets, "it must have that of logits without its last axis, %S", wanted);
        Py_XDECREF(wanted);
        return false;
    }
    if (!engine_integer("ignore_index", arguments[2], &a->ignored) || !engine_real("label_smoothing", arguments[3], &a->smoothing) ||
        !read_reduction(arguments[4], &a->reduction))
        return false;
    if (!(a->smoothing >= 0 && a->smoothing <= 1)) {
        PyErr_Format(PyExc_ValueError, "label_smoothing is %S; it must be in [0, 1]", arguments[3]);
        return false;
    }
    a->targets = PyArray_DATA(targets);
    for (npy_intp i = 0; i < PyArray_SIZE(targets); i++)
        if (a->targets[i] != a->ignored && (a->targets[i] < 0 || a->targets[i] >= a->shape[ndim - 1])) {
            PyErr_Format(PyExc_ValueError, "targets holds %lld; each must be in 0 ... %lld, or ignore_index, %lld", (long long)a->targets[i],
                         (long long)a->shape[ndim - 1] - 1, (long long)a->ignored);
            return false;
        }
    return true;
}

/* The shape of the loss: that of the targets, or none. */
static int
loss_axes(const struct attn_cross_entropy *a)
{
    return a->reduction == ATTN_REDUCE_NONE ? a->ndim - 1 : 0;
}

static PyObject *
call_cross_entropy(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_cross_entropy a = {.grad = {.data = NULL}};
    struct engine e;
    PyArrayObject *logits = NULL;
    (void)module;
    engine_start(&e, &cross_entropy, arguments, n);
    bool right = engine_argument_count(cross_entropy.name, cross_entropy.arguments, n) && open_call(&e, arguments, &logits, &a);
    if (right) {
        e.input[e.inputs++] = logits;
        right = engine_result(&e, 0, "out", arguments[n - 1], e.compute, loss_axes(&a), a.shape, false);
        e.batch_ndim = loss_axes(&a);
        if (right)
            engine_tensor(&e, "...", e.result[0].target, &a.y);
    }
    return engine_close(&e, right && engine_run(&e, &a));
}

static PyObject *
call_cross_entropy_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_cross_entropy a = {.grad = {.data = NULL}};
    struct engine e;
    PyArrayObject *logits = NULL, *grad = NULL;
    enum attn_type type = ATTN_FLOAT64;
    (void)module;
    engine_start(&e, &cross_entropy_backward, arguments, n);
    bool right = engine_argument_count(cross_entropy_backward.name, cross_entropy_backward.arguments, n) &&
                 open_call(&e, arguments + 1, &logits, &a) && (grad = engine_array(&e, "grad_output", arguments[0])) &&
                 (grad = engine_numbers(&e, "grad_output", grad)) && (grad = engine_to_compute(&e, grad));
    if (right) {
        int axes = loss_axes(&a);
        bool same = PyArray_NDIM(grad) == axes;
        for (int i = 0; same && i < axes; i++)
            same = PyArray_DIM(grad, i) == a.shape[i];
        if (!same) {
            PyObject *wanted = engine_tuple(axes, a.shape);
            right = wanted && engine_shape_error("grad_output", grad, "it must have that of the loss, %S", wanted);
            Py_XDECREF(wanted);
        }
    }
    if (right) {
        e.input[e.inputs++] = grad;
        if (!engine_same_place(arguments[n - 1], logits))
            e.input[e.inputs++] = logits;
        engine_stored_type(logits, &type);
        right = engine_result(&e, 0, "out", arguments[n - 1], type, a.ndim, a.shape, false);
    }
    if (right) {
        engine_tensor(&e, "...", e.result[0].target, &a.y);
        e.batch_ndim = loss_axes(&a);
        engine_tensor(&e, "...", grad, &a.grad);
    }
    return engine_close(&e, right && engine_run(&e, &a));
}

static PyMethodDef methods[] = {
    FAST_METHOD("cross_entropy", call_cross_entropy), FAST_METHOD("cross_entropy_backward", call_cross_entropy_backward), {0}};

static const struct engine_function *const functions[] = {&cross_entropy, &cross_entropy_backward, NULL};

const struct family attn_loss_family = {methods, functions};
