/* layers_linear.c: linear and its gradients, and weights in panels. */
#include "families.h"

#include "../kernels/layers_linear.h"

enum { X, WEIGHT, BIAS, OPERANDS_WITH_GRADIENT, RESIDUAL = OPERANDS_WITH_GRADIENT, GRAD = OPERANDS_WITH_GRADIENT, PREACTIVATION };

#define PLACE(field) offsetof(struct attn_linear, field)
#define OPERANDS                                                                         \
    {.name = "x", .kind = ENGINE_DATA, .core = "..k", .tensor = PLACE(x)},               \
        {.name = "weight", .kind = ENGINE_DATA, .core = ".nk", .tensor = PLACE(weight)}, \
    {                                                                                    \
        .name = "bias", .kind = ENGINE_DATA, .core = "..n", .tensor = PLACE(bias)        \
    }

static const struct engine_function linear = {
    .name = "linear",
    .signature = "(k),(n,k)->(n)",
    .arguments = 6,
    .instead = "its data",
    .kernel = offsetof(struct attn_kernels, linear),
    .operands = {OPERANDS, {.name = "residual", .kind = ENGINE_ADDED, .core = "..n", .tensor = PLACE(residual)}},
    .outputs = {{"the result", "..n", false, PLACE(y)}},
};

static const struct engine_function backward = {
    .name = "linear_backward",
    .signature = "(n),(k),(n,k)->(k)",
    .arguments = 8,
    .instead = "its data",
    .kernel = offsetof(struct attn_kernels, linear_backward),
    .operands = {OPERANDS,
                 {.name = "grad_output", .kind = ENGINE_DATA, .core = "..n", .tensor = PLACE(grad)},
                 {.name = "preactivation", .kind = ENGINE_DATA, .core = "..n", .tensor = PLACE(z)}},
    .outputs = {{"x", "..k", false, PLACE(grad_x)}, {"weight", ".nk", false, PLACE(grad_weight)}, {"bias", "..n", false, PLACE(grad_bias)}},
};

/* A PackedWeight says so by what it holds for this module: (shape, panels, scale). */
static const char packed_name[] = "_core_panels";

/* -1: error. */
static int
is_packed(PyObject *object)
{
    if (PyArray_Check(object))
        return 0;
    PyObject *name = PyUnicode_FromString(packed_name);
    int has = name ? PyObject_HasAttr((PyObject *)Py_TYPE(object), name) : -1;
    Py_XDECREF(name);
    return has;
}

static bool
broken(const char *what)
{
    PyErr_Format(PyExc_ValueError, "weight is a PackedWeight whose %s", what);
    return false;
}

/* The panels' sizes say nothing new: they are checked against the shape, so that nothing outside of them is read. *decides: the panels, where their type
 * takes part in the choice of the dtype. */
static bool
open_packed(struct engine *e, PyObject *object, struct attn_panels *panels, PyArrayObject **decides)
{
    PyObject *parts = PyObject_GetAttrString(object, packed_name);
    int64_t outputs, inputs;
    if (!engine_hold(e, parts))
        return false;
    if (!PyTuple_CheckExact(parts) || PyTuple_Size(parts) != 3 || !PyTuple_Check(PyTuple_GetItem(parts, 0)) ||
        PyTuple_Size(PyTuple_GetItem(parts, 0)) != 2)
        return broken("parts are not as PackedWeight makes them");
    PyObject *shape = PyTuple_GetItem(parts, 0), *data = PyTuple_GetItem(parts, 1), *scale = PyTuple_GetItem(parts, 2);
    if (!engine_integer("weight", PyTuple_GetItem(shape, 0), &outputs) || !engine_integer("weight", PyTuple_GetItem(shape, 1), &inputs))
        return false;
    PyArrayObject *array = (PyArrayObject *)data, *scales = (PyArrayObject *)scale;
    if (!PyArray_CheckExact(data) || PyArray_NDIM(array) != 3 || !PyArray_ISCARRAY_RO(array) || outputs < 0 || inputs < 0)
        return broken("panels are not as PackedWeight makes them");
    bool bytes = PyArray_DESCR(array)->type_num == NPY_BYTE;
    if (bytes)
        panels->type = ATTN_INT8;
    else if (!engine_stored_type(array, &panels->type) || panels->type == ATTN_BOOL)
        return broken("panels have a type that no PackedWeight has");
    panels->columns = panels->type == ATTN_FLOAT64 ? 32 : 64;
    if (PyArray_DIM(array, 0) != (outputs + panels->columns - 1) / panels->columns || PyArray_DIM(array, 1) != inputs ||
        PyArray_DIM(array, 2) != panels->columns)
        return broken("panels do not fit its shape");
    if (scale != Py_None && (!PyArray_CheckExact(scale) || PyArray_NDIM(scales) != 1 || PyArray_DIM(scales, 0) != outputs ||
                             PyArray_DESCR(scales)->type_num != NPY_FLOAT || !PyArray_ISCARRAY_RO(scales)))
        return broken("scale does not fit its shape");
    panels->data = PyArray_BYTES(array);
    panels->scale = scale == Py_None ? NULL : PyArray_DATA(scales);
    e->input[e->inputs++] = array;
    if (scale != Py_None)
        e->input[e->inputs++] = scales;
    *decides = bytes ? NULL : array;
    *engine_size(e, 'n') = outputs;
    *engine_size(e, 'k') = inputs;
    return true;
}

static bool
read_activation(PyObject *object, struct attn_linear *a)
{
    static const char *const names[] = {[ATTN_GELU] = "gelu", [ATTN_GELU_TANH] = "gelu_tanh", [ATTN_SILU] = "silu", [ATTN_RELU] = "relu"};
    a->activated = false;
    if (object == Py_None)
        return true;
    if (!PyUnicode_Check(object)) {
        PyErr_Format(PyExc_TypeError, "activation must be a string or None, not %R", object);
        return false;
    }
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++)
        if (PyUnicode_CompareWithASCIIString(object, names[i]) == 0) {
            a->activated = true;
            a->activation = (enum attn_activation_kind)i;
        }
    if (!a->activated)
        PyErr_Format(PyExc_ValueError, "activation is %R; it must be 'relu', 'gelu', 'gelu_tanh', 'silu' or None", object);
    return a->activated;
}

/* x, weight and, backward, what has the shape of the result: they decide the dtype; then sizes and tensors. */
static bool
open_data(struct engine *e, PyObject *x, PyObject *weight, PyObject *const *more, int count, struct attn_linear *a)
{
    const struct engine_operand *operand = e->function->operands;
    const char *names[5] = {"x"};
    PyArrayObject *arrays[5], *packed = NULL;
    int n = 1, place[5] = {X};
    a->panels.data = NULL;
    a->panels.scale = NULL;
    a->weight.data = NULL;
    if (!(arrays[0] = engine_array(e, names[0], x)))
        return false;
    int is = is_packed(weight);
    if (is < 0 || (is && !open_packed(e, weight, &a->panels, &packed)))
        return false;
    if (!is || packed) {
        place[n] = WEIGHT;
        names[n] = "weight";
        if (!(arrays[n++] = is ? packed : engine_array(e, "weight", weight)))
            return false;
    }
    for (int i = 0; i < count; i++)
        if (more[i] != Py_None) {
            place[n] = GRAD + i;
            names[n] = operand[GRAD + i].name;
            if (!(arrays[n++] = engine_array(e, operand[GRAD + i].name, more[i])))
                return false;
        }
    if (!engine_common_type(e, names, arrays, n))
        return false;
    for (int i = 0; i < n; i++) {
        if (place[i] == WEIGHT && is)
            continue;
        if (place[i] == WEIGHT && PyArray_NDIM(arrays[i]) != 2)
            return engine_shape_error("weight", arrays[i], "it must have 2 axes, (out_features, in_features)");
        if (!engine_core_sizes(e, names[i], operand[place[i]].core, arrays[i]))
            return false;
    }
    if (!engine_finish_batch(e))
        return false;
    for (int i = 0; i < n; i++)
        if (!(place[i] == WEIGHT && is)) {
            engine_tensor(e, operand[place[i]].core, arrays[i], (struct attn_tensor *)((char *)a + operand[place[i]].tensor));
            e->operand[place[i]] = e->input[e->inputs++] = arrays[i];
        }
    a->batch_ndim = e->batch_ndim;
    for (int i = 0; i < e->batch_ndim; i++)
        a->batch_shape[i] = e->batch_shape[i];
    a->rows = e->batch;
    a->inputs = *engine_size(e, 'k');
    a->outputs = *engine_size(e, 'n');
    return true;
}

static bool
open_bias(struct engine *e, PyObject *object, struct attn_linear *a)
{
    a->bias.data = NULL;
    if (object == Py_None)
        return true;
    PyArrayObject *array = engine_array(e, "bias", object);
    if (!array || !(array = engine_numbers(e, "bias", array)))
        return false;
    if (PyArray_NDIM(array) != 1 || PyArray_DIM(array, 0) != a->outputs)
        return engine_shape_error("bias", array, "it must be (%lld,), one number for each row of weight", (long long)a->outputs);
    e->operand[BIAS] = array;
    if (!(array = engine_to_compute(e, array)))
        return false;
    e->input[e->inputs++] = array;
    engine_tensor(e, "..n", array, &a->bias);
    return true;
}

PyObject *
linear_call(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_linear a;
    struct engine e;
    (void)module;
    engine_start(&e, &linear, arguments, n);
    a.residual.data = NULL;
    bool done = engine_argument_count(linear.name, linear.arguments, n) && read_activation(arguments[3], &a) &&
                open_data(&e, arguments[0], arguments[1], NULL, 0, &a) && open_bias(&e, arguments[2], &a) &&
                (arguments[4] == Py_None || engine_take(&e, &linear.operands[RESIDUAL], arguments[4], &a.residual)) &&
                engine_outputs(&e, arguments[5], 1, &a) && engine_run(&e, &a);
    return engine_close(&e, done);
}

/* What is not broadcast along the batch must have its axes: a gradient of x is no sum. */
static bool
check_whole(const struct engine *e, int operand)
{
    PyArrayObject *array = e->operand[operand];
    bool whole = !array || PyArray_NDIM(array) == e->batch_ndim + 1;
    for (int i = 0; array && whole && i < e->batch_ndim; i++)
        whole = PyArray_DIM(array, i) == e->batch_shape[i];
    return whole || engine_shape_error(e->function->operands[operand].name, array, "its axes before the last must be those of x and grad_output");
}

static bool
bind_gradients(struct engine *e, PyObject *needs, PyObject *out, struct attn_linear *a)
{
    if (!PyTuple_Check(needs) || PyTuple_Size(needs) != OPERANDS_WITH_GRADIENT ||
        (out != Py_None && (!PyTuple_Check(out) || PyTuple_Size(out) != OPERANDS_WITH_GRADIENT))) {
        PyErr_SetString(PyExc_TypeError, "needs must be a tuple of three bools, out None or a tuple of three arrays or None");
        return false;
    }
    e->results = OPERANDS_WITH_GRADIENT;
    for (int i = 0; i < OPERANDS_WITH_GRADIENT; i++) {
        struct attn_tensor *tensor = (struct attn_tensor *)((char *)a + e->function->outputs[i].tensor);
        bool wanted;
        tensor->data = NULL;
        if (!engine_flag("needs", PyTuple_GetItem(needs, i), &wanted))
            return false;
        if (wanted && !e->operand[i]) {
            PyErr_Format(PyExc_ValueError, "needs holds '%s', but there is none", e->function->outputs[i].name);
            return false;
        }
        if (wanted && !engine_gradient(e, i, i, out == Py_None ? out : PyTuple_GetItem(out, i), false, a))
            return false;
        e->results = OPERANDS_WITH_GRADIENT;
    }
    return true;
}

static PyObject *
call_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_linear a;
    struct engine e;
    (void)module;
    engine_start(&e, &backward, arguments, n);
    a.residual.data = a.y.data = a.z.data = NULL;
    bool done = engine_argument_count(backward.name, backward.arguments, n) && read_activation(arguments[4], &a);
    PyObject *more[2] = {done ? arguments[0] : NULL, done ? arguments[5] : NULL};
    if (done && arguments[0] == Py_None) {
        PyErr_SetString(PyExc_TypeError, "grad_output must be an array, not None");
        done = false;
    }
    done = done && open_data(&e, arguments[1], arguments[2], more, 2, &a) && check_whole(&e, X) && check_whole(&e, GRAD) &&
           check_whole(&e, PREACTIVATION) && open_bias(&e, arguments[3], &a) && bind_gradients(&e, arguments[6], arguments[7], &a) &&
           engine_run(&e, &a);
    return engine_close(&e, done);
}

static PyMethodDef methods[] = {FAST_METHOD("linear", linear_call), FAST_METHOD("linear_backward", call_backward), {0}};

static const struct engine_function *const functions[] = {&linear, &backward, NULL};

const struct family attn_linear_family = {methods, functions};
