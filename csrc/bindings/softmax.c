/* softmax.c: softmax, log_softmax and logsumexp. */
#include "families.h"

#include "../kernels/softmax.h"

#define ROW(NAME, SIGNATURE, ARGUMENTS)                                                                                                     \
    {                                                                                                                                       \
        .name = NAME, .signature = SIGNATURE, .arguments = ARGUMENTS, .instead = "where", .kernel = offsetof(struct attn_kernels, softmax), \
        .outputs = {                                                                                                                        \
            {"the result", "...", false, 0}                                                                                                 \
        }                                                                                                                                   \
    }

static const struct engine_function softmax = ROW("softmax", "(n)->(n)", 4), log_softmax = ROW("log_softmax", "(n)->(n)", 4),
                                    logsumexp = ROW("logsumexp", "(n)->()", 5);

/* Which axes are summed over, and the order in which the kernel walks all of them: the others first. */
struct axes {
    int ndim, reduced;
    bool named[NPY_MAXDIMS];
    int order[NPY_MAXDIMS];
};

static bool
axis_error(PyObject *axis, int ndim)
{
    PyObject *exceptions = PyImport_ImportModule("numpy.exceptions");
    PyObject *type = exceptions ? PyObject_GetAttrString(exceptions, "AxisError") : NULL;
    PyObject *error = type ? PyObject_CallFunction(type, "Ois", axis, ndim, "axis") : NULL;
    if (error)
        PyErr_SetObject(type, error);
    Py_XDECREF(error);
    Py_XDECREF(type);
    Py_XDECREF(exceptions);
    return false;
}

static bool
name_axis(struct axes *axes, PyObject *object)
{
    int64_t axis;
    if (!engine_integer("axis", object, &axis))
        return false;
    if (axis < -axes->ndim || axis >= axes->ndim)
        return axis_error(object, axes->ndim);
    axis += axis < 0 ? axes->ndim : 0;
    if (axes->named[axis]) {
        PyErr_Format(PyExc_ValueError, "axis names axis %lld twice", (long long)axis);
        return false;
    }
    axes->named[axis] = true;
    return true;
}

/* None: all of them. */
static bool
name_axes(struct axes *axes, PyObject *object, int ndim)
{
    axes->ndim = ndim;
    axes->reduced = 0;
    for (int i = 0; i < ndim; i++)
        axes->named[i] = object == Py_None;
    bool several = PyTuple_Check(object) || PyList_Check(object), right = true;
    for (Py_ssize_t i = 0; several && right && i < PySequence_Size(object); i++) {
        PyObject *item = PySequence_GetItem(object, i);
        right = item && name_axis(axes, item);
        Py_XDECREF(item);
    }
    if (!several && object != Py_None)
        right = name_axis(axes, object);
    int place = 0;
    for (int last = 0; last < 2; last++)
        for (int i = 0; i < ndim; i++)
            if (axes->named[i] == (last == 1)) {
                axes->order[place++] = i;
                axes->reduced += last;
            }
    return right;
}

/* A tensor over x's axes in walking order; axes that the array lacks or has once are broadcast. keeps_reduced: else only the outer ones. */
static void
walk(const struct axes *axes, PyArrayObject *array, bool keeps_reduced, struct attn_tensor *tensor)
{
    struct engine flat = {.batch_ndim = PyArray_NDIM(array)};
    struct attn_tensor plain;
    int lacking = keeps_reduced ? axes->ndim - PyArray_NDIM(array) : 0, outer = axes->ndim - axes->reduced;
    engine_tensor(&flat, "...", array, &plain);
    tensor->data = plain.data;
    tensor->type = plain.type;
    tensor->swapped = plain.swapped;
    tensor->aligned = plain.aligned;
    for (int i = 0; i < (keeps_reduced ? axes->ndim : outer); i++) {
        int own = keeps_reduced ? axes->order[i] - lacking : i;
        tensor->batch[i] = own < 0 ? 0 : plain.batch[own];
    }
}

static bool
bind_where(struct engine *e, PyObject *object, PyArrayObject *x, const struct axes *axes, struct attn_tensor *keep)
{
    keep->data = NULL;
    if (object == Py_None)
        return true;
    PyArrayObject *where = engine_array(e, "where", object);
    if (!where)
        return false;
    if (PyArray_DESCR(where)->type_num != NPY_BOOL) {
        PyErr_Format(PyExc_TypeError, "where has dtype %S; it must be bool (True = keep)", PyArray_DESCR(where));
        return false;
    }
    int lacking = axes->ndim - PyArray_NDIM(where);
    bool fits = lacking >= 0;
    for (int i = 0; fits && i < PyArray_NDIM(where); i++)
        fits = PyArray_DIM(where, i) == 1 || PyArray_DIM(where, i) == PyArray_DIM(x, i + lacking);
    if (!fits) {
        int64_t shape[NPY_MAXDIMS];
        for (int i = 0; i < axes->ndim; i++)
            shape[i] = PyArray_DIM(x, i);
        PyObject *wanted = engine_tuple(axes->ndim, shape);
        if (wanted)
            engine_shape_error("where", where, "it must broadcast to that of x, %S", wanted);
        Py_XDECREF(wanted);
        return false;
    }
    walk(axes, where, true, keep);
    e->input[e->inputs++] = where;
    return true;
}

/* The result has x's axes, those summed over gone or of length 1 for logsumexp. */
static bool
bind_result(struct engine *e, PyObject *out, PyArrayObject *x, const struct axes *axes, bool keepdims, struct attn_softmax *a)
{
    bool sums = a->what == ATTN_LOGSUMEXP;
    int64_t shape[NPY_MAXDIMS];
    int ndim = 0;
    if (PyTuple_Check(out) && PyTuple_Size(out) == 1)
        out = PyTuple_GetItem(out, 0);
    for (int i = 0; i < axes->ndim; i++)
        if (!sums || !axes->named[i])
            shape[ndim++] = PyArray_DIM(x, i);
        else if (keepdims)
            shape[ndim++] = 1;
    bool in_place = !sums && !a->keep.data && PyArray_Check(out) && PyArray_BYTES((PyArrayObject *)out) == PyArray_BYTES(x) &&
                    PyArray_NDIM((PyArrayObject *)out) == axes->ndim;
    for (int i = 0; in_place && i < axes->ndim; i++)
        in_place = PyArray_STRIDE((PyArrayObject *)out, i) == PyArray_STRIDE(x, i);
    if (!engine_result(e, 0, "out", out, e->stored, ndim, shape, in_place))
        return false;
    walk(axes, e->result[0].target, !sums || keepdims, &a->y);
    return true;
}

/* No axis named: every element by itself, as if along an axis of length 1. */
static bool
sum_over_one(struct attn_softmax *a)
{
    if (a->ndim == ATTN_MAX_BATCH) {
        PyErr_Format(PyExc_ValueError, "axis is empty; an array of %d axes needs at least one", ATTN_MAX_BATCH);
        return false;
    }
    a->shape[a->ndim] = a->reduced = 1;
    a->x.batch[a->ndim] = a->keep.batch[a->ndim] = a->y.batch[a->ndim] = 0;
    a->ndim++;
    return true;
}

static PyObject *
call(const struct engine_function *function, enum attn_softmax_what what, PyObject *const *arguments, Py_ssize_t n)
{
    static const char *const names[] = {"x"};
    struct attn_softmax a;
    struct engine e;
    struct axes axes;
    PyArrayObject *x = NULL;
    bool keepdims = false, right;
    engine_start(&e, function, arguments, n);
    a.what = what;
    right = engine_argument_count(function->name, function->arguments, n) && (x = engine_array(&e, "x", arguments[0])) &&
            engine_common_type(&e, names, &x, 1) && name_axes(&axes, arguments[1], PyArray_NDIM(x)) &&
            bind_where(&e, arguments[2], x, &axes, &a.keep) && (n == 4 || engine_flag("keepdims", arguments[3], &keepdims));
    if (right) {
        e.input[e.inputs++] = x;
        a.ndim = axes.ndim;
        a.reduced = axes.reduced;
        for (int i = 0; i < axes.ndim; i++)
            a.shape[i] = PyArray_DIM(x, axes.order[i]);
        walk(&axes, x, true, &a.x);
        right = (a.reduced > 0 || sum_over_one(&a)) && bind_result(&e, arguments[n - 1], x, &axes, keepdims, &a);
    }
    return engine_close(&e, right && engine_run(&e, &a));
}

static PyObject *
call_softmax(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return call(&softmax, ATTN_SOFTMAX, arguments, n);
}

static PyObject *
call_log_softmax(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return call(&log_softmax, ATTN_LOG_SOFTMAX, arguments, n);
}

static PyObject *
call_logsumexp(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return call(&logsumexp, ATTN_LOGSUMEXP, arguments, n);
}

static PyMethodDef methods[] = {
    FAST_METHOD("softmax", call_softmax), FAST_METHOD("log_softmax", call_log_softmax), FAST_METHOD("logsumexp", call_logsumexp), {0}};

static const struct engine_function *const functions[] = {&softmax, &log_softmax, &logsumexp, NULL};

const struct family attn_softmax_family = {methods, functions};
