/* layers_norm.c: layer_norm, rms_norm and their gradients. */
#include "families.h"

#include "../kernels/layers_norm.h"

#include "softmax_axes.h"

#include <string.h>

static const struct engine_function layer_norm = {.name = "layer_norm",
                                                  .signature = "(n)->(n)",
                                                  .arguments = 8,
                                                  .instead = "its data",
                                                  .kernel = offsetof(struct attn_kernels, norm),
                                                  .outputs = {{"the result", "...", false, 0}, {"the sum", "...", false, 0}}};
static const struct engine_function rms_norm = {.name = "rms_norm",
                                                .signature = "(n)->(n)",
                                                .arguments = 7,
                                                .instead = "its data",
                                                .kernel = offsetof(struct attn_kernels, norm),
                                                .outputs = {{"the result", "...", false, 0}, {"the sum", "...", false, 0}}};
static const struct engine_function layer_norm_backward = {
    .name = "layer_norm_backward",
    .signature = "(n),(n)->(n),(n),(n)",
    .arguments = 7,
    .instead = "its data",
    .kernel = offsetof(struct attn_kernels, norm_backward),
    .outputs = {{"the gradient of x", "...", false, 0}, {"the gradient of weight", "...", false, 0}, {"the gradient of bias", "...", false, 0}}};
static const struct engine_function rms_norm_backward = {
    .name = "rms_norm_backward",
    .signature = "(n),(n)->(n),(n)",
    .arguments = 7,
    .instead = "its data",
    .kernel = offsetof(struct attn_kernels, norm_backward),
    .outputs = {{"the gradient of x", "...", false, 0}, {"the gradient of weight", "...", false, 0}}};

/* The arrays that decide the dtype; the others follow. */
enum { X, OTHER, MORE, ARRAYS };

/* One call. */
struct norm_call {
    struct engine e;
    struct axes axes;
    int64_t shape[NPY_MAXDIMS], row[NPY_MAXDIMS]; /* of x, and of its named axes */
    PyArrayObject *array[ARRAYS], *weight;        /* weight: as given */
    struct attn_norm a;
};

static bool
has_shape(const char *name, PyArrayObject *array, int ndim, const int64_t *shape, const char *what)
{
    bool same = PyArray_NDIM(array) == ndim;
    for (int i = 0; same && i < ndim; i++)
        same = PyArray_DIM(array, i) == shape[i];
    if (same)
        return true;
    PyObject *wanted = engine_tuple(ndim, shape);
    if (wanted)
        engine_shape_error(name, array, what, wanted);
    Py_XDECREF(wanted);
    return false;
}

/* The arrays of x's shape: x itself, and up to two others that may be None. */
static bool
take_arrays(struct norm_call *c, const char *const *names, PyObject *const *objects)
{
    PyArrayObject *given[ARRAYS];
    const char *given_names[ARRAYS];
    int count = 0, place[ARRAYS];
    for (int i = 0; i < ARRAYS; i++) {
        c->array[i] = NULL;
        if (!objects[i] || (objects[i] == Py_None && i == MORE))
            continue;
        if (!(given[count] = engine_array(&c->e, names[i], objects[i])))
            return false;
        given_names[count] = names[i];
        place[count++] = i;
    }
    if (!engine_common_type(&c->e, given_names, given, count))
        return false;
    for (int i = 0; i < count; i++)
        c->array[place[i]] = given[i];
    return true;
}

/* Names the axes, and fills the tensors of those arrays. */
static bool
bind_axes(struct norm_call *c, const char *const *names, PyObject *axis, struct attn_tensor *const *tensors)
{
    PyArrayObject *x = c->array[X];
    int named = 0;
    if (!softmax_name_axes(&c->axes, axis, PyArray_NDIM(x)))
        return false;
    if (c->axes.reduced == 0) {
        PyErr_SetString(PyExc_ValueError, "axis is empty; it must name at least one axis of x");
        return false;
    }
    c->a.ndim = c->axes.ndim;
    c->a.reduced = c->axes.reduced;
    for (int i = 0; i < c->axes.ndim; i++) {
        c->shape[i] = PyArray_DIM(x, i);
        c->a.shape[i] = PyArray_DIM(x, c->axes.order[i]);
        if (c->axes.named[i])
            c->row[named++] = c->shape[i];
    }
    for (int i = 0; i < ARRAYS; i++)
        if (c->array[i]) {
            if (!has_shape(names[i], c->array[i], c->axes.ndim, c->shape, "it must have that of x, %S"))
                return false;
            softmax_walk(&c->axes, c->array[i], true, tensors[i]);
        }
    return true;
}

/* weight or bias, in the type computed in, side by side in C order. */
static bool
take_row(struct norm_call *c, const char *name, PyObject *object, PyArrayObject **given, const void **data)
{
    *data = NULL;
    *given = NULL;
    if (object == Py_None)
        return true;
    PyArrayObject *array = engine_array(&c->e, name, object);
    if (!array || !(array = engine_numbers(&c->e, name, array)) ||
        !has_shape(name, array, c->axes.reduced, c->row, "it must have that of the normalised axes of x, %S"))
        return false;
    *given = array;
    if (!(array = engine_to_compute(&c->e, array)) || !(array = engine_cast(&c->e, array, c->e.compute == ATTN_FLOAT32 ? NPY_FLOAT : NPY_DOUBLE)))
        return false;
    *data = PyArray_DATA(array);
    return true;
}

static bool
take_eps(PyObject *object, double *eps)
{
    if (!engine_finite("eps", object, eps))
        return false;
    if (*eps < 0)
        PyErr_Format(PyExc_ValueError, "eps is %S; it must not be negative", object);
    return *eps >= 0;
}

/* Result `index` of `count`, of x's shape or (`row`) of that of its named axes. */
static bool
bind_result(struct norm_call *c, int index, int count, PyObject *out, enum attn_type type, bool row, bool in_place, struct attn_tensor *tensor)
{
    char name[16] = "out";
    PyObject *entry = out;
    if (count > 1)
        PyOS_snprintf(name, sizeof name, "out[%d]", index);
    if (out != Py_None && (PyTuple_Check(out) || count > 1)) {
        if (!PyTuple_Check(out)) {
            PyErr_Format(PyExc_TypeError, "out must be a tuple of %d, an array or None for each result", count);
            return false;
        }
        if (PyTuple_Size(out) != count) {
            PyErr_Format(PyExc_ValueError, "out has %zd entries; it must have %d", PyTuple_Size(out), count);
            return false;
        }
        entry = PyTuple_GetItem(out, index);
    }
    c->e.inputs = 0;
    for (int i = 0; i < ARRAYS; i++)
        if (c->array[i] && !(in_place && engine_same_place(entry, c->array[i])))
            c->e.input[c->e.inputs++] = c->array[i];
    for (int i = 0; i < 2; i++) {
        const void *data = i == 0 ? c->a.weight : c->a.bias;
        for (int h = 0; data && h < c->e.held; h++)
            if (PyArray_Check(c->e.hold[h]) && PyArray_DATA((PyArrayObject *)c->e.hold[h]) == data)
                c->e.input[c->e.inputs++] = (PyArrayObject *)c->e.hold[h];
    }
    if (!engine_result(&c->e, index, name, entry, type, row ? c->axes.reduced : c->axes.ndim, row ? c->row : c->shape, false))
        return false;
    if (!row)
        softmax_walk(&c->axes, c->e.result[index].target, true, tensor);
    else {
        struct engine flat = {.batch_ndim = c->axes.reduced};
        struct attn_tensor own;
        int outer = c->axes.ndim - c->axes.reduced;
        engine_tensor(&flat, "...", c->e.result[index].target, &own);
        *tensor = own;
        memset(tensor->batch, 0, sizeof tensor->batch);
        memcpy(tensor->batch + outer, own.batch, (size_t)c->axes.reduced * sizeof *own.batch);
    }
    return true;
}

static int64_t
row_elements(const struct norm_call *c)
{
    int64_t n = 1;
    for (int i = 0; i < c->axes.reduced; i++)
        n *= c->row[i];
    return n;
}

/* x, weight, (bias,) axis, eps, residual, return_sum, out. */
static PyObject *
forward(const struct engine_function *function, bool centred, PyObject *const *arguments, Py_ssize_t n)
{
    static const char *const names[ARRAYS] = {"x", NULL, "residual"};
    struct norm_call c;
    PyArrayObject *bias;
    bool return_sum = false;
    int after = centred ? 3 : 2; /* where axis stands */
    memset(&c.a, 0, sizeof c.a);
    c.a.centred = centred;
    engine_start(&c.e, function, arguments, n);
    bool right = engine_argument_count(function->name, function->arguments, n);
    if (right) {
        PyObject *const objects[ARRAYS] = {arguments[0], NULL, arguments[after + 2]};
        struct attn_tensor *const tensors[ARRAYS] = {&c.a.x, NULL, &c.a.residual};
        right = take_arrays(&c, names, objects) && bind_axes(&c, names, arguments[after], tensors) &&
                take_row(&c, "weight", arguments[1], &c.weight, &c.a.weight) && (!centred || take_row(&c, "bias", arguments[2], &bias, &c.a.bias)) &&
                take_eps(arguments[after + 1], &c.a.eps) && engine_flag("return_sum", arguments[after + 3], &return_sum);
    }
    if (right) {
        bool in_place = row_elements(&c) <= ATTN_NORM_RESIDENT;
        int count = return_sum ? 2 : 1;
        right = bind_result(&c, 0, count, arguments[n - 1], c.e.stored, false, in_place, &c.a.y) &&
                (!return_sum || bind_result(&c, 1, count, arguments[n - 1], c.e.stored, false, in_place, &c.a.sum));
    }
    return engine_close(&c.e, right && engine_run(&c.e, &c.a));
}

/* grad_output, x, weight, axis, eps, grad_sum, out. */
static PyObject *
backward(const struct engine_function *function, bool centred, PyObject *const *arguments, Py_ssize_t n)
{
    static const char *const names[ARRAYS] = {"x", "grad_output", "grad_sum"};
    struct norm_call c;
    memset(&c.a, 0, sizeof c.a);
    c.a.centred = centred;
    engine_start(&c.e, function, arguments, n);
    bool right = engine_argument_count(function->name, function->arguments, n);
    if (right) {
        PyObject *const objects[ARRAYS] = {arguments[1], arguments[0], arguments[5]};
        struct attn_tensor *const tensors[ARRAYS] = {&c.a.x, &c.a.grad, &c.a.grad_sum};
        right = take_arrays(&c, names, objects) && bind_axes(&c, names, arguments[3], tensors) &&
                take_row(&c, "weight", arguments[2], &c.weight, &c.a.weight) && take_eps(arguments[4], &c.a.eps);
    }
    if (right) {
        int count = centred ? 3 : 2;
        enum attn_type type = ATTN_FLOAT64, row_type = ATTN_FLOAT64;
        PyObject *out = arguments[n - 1];
        engine_stored_type(c.array[X], &type);
        engine_stored_type(c.weight ? c.weight : c.array[X], &row_type);
        right = bind_result(&c, 0, count, out, type, false, row_elements(&c) <= ATTN_NORM_RESIDENT, &c.a.y) &&
                bind_result(&c, 1, count, out, row_type, true, false, &c.a.grad_weight) &&
                (!centred || bind_result(&c, 2, count, out, row_type, true, false, &c.a.grad_bias));
    }
    return engine_close(&c.e, right && engine_run(&c.e, &c.a));
}

static PyObject *
call_layer_norm(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return forward(&layer_norm, true, arguments, n);
}

static PyObject *
call_rms_norm(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return forward(&rms_norm, false, arguments, n);
}

static PyObject *
call_layer_norm_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return backward(&layer_norm_backward, true, arguments, n);
}

static PyObject *
call_rms_norm_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return backward(&rms_norm_backward, false, arguments, n);
}

static PyMethodDef methods[] = {FAST_METHOD("layer_norm", call_layer_norm),
                                FAST_METHOD("rms_norm", call_rms_norm),
                                FAST_METHOD("layer_norm_backward", call_layer_norm_backward),
                                FAST_METHOD("rms_norm_backward", call_rms_norm_backward),
                                {0}};

static const struct engine_function *const functions[] = {&layer_norm, &rms_norm, &layer_norm_backward, &rms_norm_backward, NULL};

const struct family attn_norm_family = {methods, functions};
