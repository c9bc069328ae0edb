/* softmax_backward.c: the gradients of softmax, log_softmax and logsumexp. */
#include "families.h"

#include "softmax_axes.h"

#define ROW(NAME, SIGNATURE, ARGUMENTS)                                                                                                              \
    {                                                                                                                                                \
        .name = NAME, .signature = SIGNATURE, .arguments = ARGUMENTS, .instead = "where", .kernel = offsetof(struct attn_kernels, softmax_backward), \
        .outputs = {                                                                                                                                 \
            {"the result", "...", false, 0}                                                                                                          \
        }                                                                                                                                            \
    }

static const struct engine_function softmax = ROW("softmax_backward", "(n),(n)->(n)", 5),
                                    log_softmax = ROW("log_softmax_backward", "(n),(n)->(n)", 5),
                                    logsumexp = ROW("logsumexp_backward", "(),(n),()->(n)", 7);

/* The arrays of a call: the incoming gradient, what the forward kept (its result; logsumexp: its operand), and logsumexp's result. */
enum { GRAD, SAVED, LSE, ARRAYS };

static const char *const backward_names[] = {"grad_output", "output"}, *const logsumexp_names[] = {"grad_output", "x", "output"};

/* Whether an array has the saved one's shape, or, where it has one number for each row, that without the named axes. */
static bool
check_shape(const char *name, PyArrayObject *array, const char *saved_name, PyArrayObject *saved, const struct axes *axes, bool per_row,
            bool keepdims)
{
    int64_t shape[NPY_MAXDIMS];
    int ndim = 0;
    for (int i = 0; i < axes->ndim; i++)
        if (!per_row || !axes->named[i])
            shape[ndim++] = PyArray_DIM(saved, i);
        else if (keepdims)
            shape[ndim++] = 1;
    bool same = PyArray_NDIM(array) == ndim;
    for (int i = 0; same && i < ndim; i++)
        same = PyArray_DIM(array, i) == shape[i];
    if (same)
        return true;
    PyObject *wanted = engine_tuple(ndim, shape);
    if (wanted)
        engine_shape_error(name, array, per_row ? "it must have that of %s reduced over axis, %S" : "it must have that of %s, %S", saved_name,
                           wanted);
    Py_XDECREF(wanted);
    return false;
}

/* The result has the shape and the type of the saved array. */
static bool
bind_result(struct engine *e, PyObject *out, PyArrayObject *const *arrays, int count, const struct axes *axes, struct attn_softmax *a)
{
    int64_t shape[NPY_MAXDIMS];
    enum attn_type type = e->stored;
    if (PyTuple_Check(out) && PyTuple_Size(out) == 1)
        out = PyTuple_GetItem(out, 0);
    for (int i = 0; i < axes->ndim; i++)
        shape[i] = PyArray_DIM(arrays[SAVED], i);
    for (int i = 0; i < count; i++)
        if (!engine_same_place(out, arrays[i]))
            e->input[e->inputs++] = arrays[i];
    if (!engine_stored_type(arrays[SAVED], &type) || !engine_result(e, 0, "out", out, type, axes->ndim, shape, false))
        return false;
    softmax_walk(axes, e->result[0].target, true, &a->y);
    return true;
}

/* The tensors of the arrays, all checked. */
static bool
bind_arrays(const char *const *names, PyArrayObject *const *arrays, int count, const struct axes *axes, bool keepdims, struct attn_softmax *a)
{
    bool sums = count == ARRAYS;
    a->ndim = axes->ndim;
    a->reduced = axes->reduced;
    a->lse.data = NULL;
    for (int i = 0; i < axes->ndim; i++)
        a->shape[i] = PyArray_DIM(arrays[SAVED], axes->order[i]);
    if (!check_shape(names[GRAD], arrays[GRAD], names[SAVED], arrays[SAVED], axes, sums, keepdims) ||
        (sums && !check_shape(names[LSE], arrays[LSE], names[SAVED], arrays[SAVED], axes, sums, keepdims)))
        return false;
    softmax_walk(axes, arrays[SAVED], true, &a->x);
    softmax_walk(axes, arrays[GRAD], !sums || keepdims, &a->grad);
    if (sums)
        softmax_walk(axes, arrays[LSE], keepdims, &a->lse);
    return a->reduced > 0 || softmax_sum_over_one(a);
}

static PyObject *
call(const struct engine_function *function, enum attn_softmax_what what, PyObject *const *arguments, Py_ssize_t n)
{
    const bool sums = what == ATTN_LOGSUMEXP_BACKWARD;
    const int count = sums ? ARRAYS : LSE;
    const char *const *names = sums ? logsumexp_names : backward_names;
    struct attn_softmax a;
    struct engine e;
    struct axes axes;
    PyArrayObject *arrays[ARRAYS];
    bool keepdims = false, right;
    engine_start(&e, function, arguments, n);
    a.what = what;
    right = engine_argument_count(function->name, function->arguments, n);
    for (int i = 0; right && i < count; i++)
        right = (arrays[i] = engine_array(&e, names[i], arguments[i])) != NULL;
    right = right && engine_common_type(&e, names, arrays, count) && softmax_name_axes(&axes, arguments[count], PyArray_NDIM(arrays[SAVED])) &&
            (!sums || engine_flag("keepdims", arguments[count + 2], &keepdims)) && bind_arrays(names, arrays, count, &axes, keepdims, &a) &&
            softmax_bind_where(&e, arguments[count + 1], names[SAVED], arrays[SAVED], &axes, &a.keep) &&
            bind_result(&e, arguments[n - 1], arrays, count, &axes, &a);
    return engine_close(&e, right && engine_run(&e, &a));
}

static PyObject *
call_softmax(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return call(&softmax, ATTN_SOFTMAX_BACKWARD, arguments, n);
}

static PyObject *
call_log_softmax(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return call(&log_softmax, ATTN_LOG_SOFTMAX_BACKWARD, arguments, n);
}

static PyObject *
call_logsumexp(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return call(&logsumexp, ATTN_LOGSUMEXP_BACKWARD, arguments, n);
}

static PyMethodDef methods[] = {FAST_METHOD("softmax_backward", call_softmax),
                                FAST_METHOD("log_softmax_backward", call_log_softmax),
                                FAST_METHOD("logsumexp_backward", call_logsumexp),
                                {0}};

static const struct engine_function *const functions[] = {&softmax, &log_softmax, &logsumexp, NULL};

const struct family attn_softmax_backward_family = {methods, functions};
