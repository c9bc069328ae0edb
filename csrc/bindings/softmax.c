/* softmax.c: softmax, log_softmax and logsumexp. */
#include "families.h"

#include "softmax_axes.h"

#define ROW(NAME, SIGNATURE, ARGUMENTS)                                                                                                     \
    {                                                                                                                                       \
        .name = NAME, .signature = SIGNATURE, .arguments = ARGUMENTS, .instead = "where", .kernel = offsetof(struct attn_kernels, softmax), \
        .outputs = {                                                                                                                        \
            {"the result", "...", false, 0}                                                                                                 \
        }                                                                                                                                   \
    }

static const struct engine_function softmax = ROW("softmax", "(n)->(n)", 4), log_softmax = ROW("log_softmax", "(n)->(n)", 4),
                                    logsumexp = ROW("logsumexp", "(n)->()", 5);

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
    softmax_walk(axes, e->result[0].target, !sums || keepdims, &a->y);
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
    a.grad.data = a.lse.data = NULL;
    right = engine_argument_count(function->name, function->arguments, n) && (x = engine_array(&e, "x", arguments[0])) &&
            engine_common_type(&e, names, &x, 1) && softmax_name_axes(&axes, arguments[1], PyArray_NDIM(x)) &&
            softmax_bind_where(&e, arguments[2], "x", x, &axes, &a.keep) && (n == 4 || engine_flag("keepdims", arguments[3], &keepdims));
    if (right) {
        e.input[e.inputs++] = x;
        a.ndim = axes.ndim;
        a.reduced = axes.reduced;
        for (int i = 0; i < axes.ndim; i++)
            a.shape[i] = PyArray_DIM(x, axes.order[i]);
        softmax_walk(&axes, x, true, &a.x);
        right = (a.reduced > 0 || softmax_sum_over_one(&a)) && bind_result(&e, arguments[n - 1], x, &axes, keepdims, &a);
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
