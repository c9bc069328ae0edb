/* layers.c: gelu, silu, relu, their gated forms, and the gradients of all. */
#include "families.h"

#include "../kernels/layers.h"

#define ROW(NAME, SIGNATURE, ARGUMENTS)                                                                                                            \
    {                                                                                                                                              \
        .name = NAME, .signature = SIGNATURE, .arguments = ARGUMENTS, .instead = "its data", .kernel = offsetof(struct attn_kernels, elementwise), \
        .outputs = {                                                                                                                               \
            {"the result", "...", false, 0}                                                                                                        \
        }                                                                                                                                          \
    }

static const struct engine_function gelu = ROW("gelu", "()->()", 3), silu = ROW("silu", "()->()", 2), relu = ROW("relu", "()->()", 2),
                                    swiglu = ROW("swiglu", "(n)->(m)", 3), geglu = ROW("geglu", "(n)->(m)", 4),
                                    gelu_backward = ROW("gelu_backward", "(),()->()", 4), silu_backward = ROW("silu_backward", "(),()->()", 3),
                                    relu_backward = ROW("relu_backward", "(),()->()", 3), swiglu_backward = ROW("swiglu_backward", "(m),(n)->(n)", 4),
                                    geglu_backward = ROW("geglu_backward", "(m),(n)->(n)", 5);

/* The arrays of a call, in the order of _core's arguments; those before `first` are not there. */
enum { GRAD, X, GATE, ARRAYS };
static const char *const array_names[ARRAYS] = {"grad_output", "x", "gate"};

static bool
approximation(PyObject *object, enum attn_activation_kind *kind)
{
    if (PyUnicode_Check(object) && PyUnicode_CompareWithASCIIString(object, "none") == 0)
        *kind = ATTN_GELU;
    else if (PyUnicode_Check(object) && PyUnicode_CompareWithASCIIString(object, "tanh") == 0)
        *kind = ATTN_GELU_TANH;
    else {
        PyErr_Format(PyUnicode_Check(object) ? PyExc_ValueError : PyExc_TypeError, "approximate is %R; it must be 'none' or 'tanh'", object);
        return false;
    }
    return true;
}

/* x's last axis is cut in two halves: the gate, and what it opens. */
static bool
halve(struct engine *e, PyArrayObject *x, int64_t *half)
{
    int ndim = PyArray_NDIM(x);
    if (ndim == 0 || PyArray_DIM(x, ndim - 1) % 2 != 0)
        return engine_shape_error("x", x, "without a gate its last axis must be even");
    *half = PyArray_DIM(x, ndim - 1) / 2;
    e->batch_ndim = ndim;
    for (int i = 0; i < ndim; i++)
        e->batch_shape[i] = PyArray_DIM(x, i);
    e->batch_shape[ndim - 1] = *half;
    return true;
}

/* The tensors of both halves of an array. */
static void
bind_halves(const struct engine *e, PyArrayObject *array, struct attn_tensor *first, struct attn_tensor *second)
{
    int last = e->batch_ndim - 1;
    engine_tensor(e, "...", array, first);
    *second = *first;
    second->data += e->batch_shape[last] * PyArray_STRIDE(array, last);
}

static bool
check_grad(const struct engine *e, const char *name, PyArrayObject *array)
{
    bool same = PyArray_NDIM(array) == e->batch_ndim;
    for (int i = 0; same && i < e->batch_ndim; i++)
        same = PyArray_DIM(array, i) == e->batch_shape[i];
    if (same)
        return true;
    PyObject *wanted = engine_tuple(e->batch_ndim, e->batch_shape);
    if (wanted)
        engine_shape_error(name, array, "it must have the result's, %S", wanted);
    Py_XDECREF(wanted);
    return false;
}

/* The shape of the result, which the operands broadcast to; those of a backward function have it. */
static bool
bind_operands(struct engine *e, PyArrayObject *const *arrays, struct attn_elementwise *a)
{
    int64_t half;
    bool halves = a->gated && !arrays[GATE];
    e->headless = false;
    if (halves ? !halve(e, arrays[X], &half)
               : !engine_join_batch(e, "x", PyArray_NDIM(arrays[X]), PyArray_DIMS(arrays[X])) ||
                     (arrays[GATE] && !engine_join_batch(e, "gate", PyArray_NDIM(arrays[GATE]), PyArray_DIMS(arrays[GATE]))))
        return false;
    if (arrays[GRAD] && (!check_grad(e, "grad_output", arrays[GRAD]) || (!halves && !check_grad(e, "x", arrays[X])) ||
                         (arrays[GATE] && !check_grad(e, "gate", arrays[GATE]))))
        return false;
    a->ndim = e->batch_ndim;
    for (int i = 0; i < a->ndim; i++)
        a->shape[i] = e->batch_shape[i];
    if (arrays[GRAD])
        engine_tensor(e, "...", arrays[GRAD], &a->grad);
    if (halves)
        bind_halves(e, arrays[X], &a->x, &a->value);
    else if (a->gated) {
        engine_tensor(e, "...", arrays[X], &a->value);
        engine_tensor(e, "...", arrays[GATE], &a->x);
    } else
        engine_tensor(e, "...", arrays[X], &a->x);
    return true;
}

/* One result; where there are two, the gradients of x and of the gate, out is a tuple. */
static bool
bind_result(struct engine *e, int index, bool several, PyObject *out, PyArrayObject *const *arrays, PyArrayObject *like, bool whole)
{
    enum attn_type type = e->stored;
    int64_t shape[NPY_MAXDIMS];
    int ndim = whole ? PyArray_NDIM(like) : e->batch_ndim;
    for (int i = 0; i < ndim; i++)
        shape[i] = whole ? PyArray_DIM(like, i) : e->batch_shape[i];
    if (like && !engine_stored_type(like, &type))
        return false;
    e->inputs = 0;
    for (int i = 0; i < ARRAYS; i++)
        if (arrays[i] && !engine_same_place(out, arrays[i]))
            e->input[e->inputs++] = arrays[i];
    const char *names[] = {"out[0]", "out[1]"};
    return engine_result(e, index, several ? names[index] : "out", out, type, ndim, shape, false);
}

static bool
bind_results(struct engine *e, PyObject *out, PyArrayObject *const *arrays, struct attn_elementwise *a)
{
    bool several = a->gated && a->backward && arrays[GATE];
    PyObject *entry[2] = {out, Py_None};
    if (several && out != Py_None) {
        if (!PyTuple_Check(out)) {
            PyErr_SetString(PyExc_TypeError, "out must be a tuple, one array or None for each of x and gate");
            return false;
        }
        if (PyTuple_Size(out) != 2) {
            PyErr_Format(PyExc_ValueError, "out has %zd entries; it must have 2", PyTuple_Size(out));
            return false;
        }
        entry[0] = PyTuple_GetItem(out, 0);
        entry[1] = PyTuple_GetItem(out, 1);
    } else if (PyTuple_Check(out) && PyTuple_Size(out) == 1)
        entry[0] = PyTuple_GetItem(out, 0);
    bool halves = a->gated && a->backward && !several;
    if (!bind_result(e, 0, several, entry[0], arrays, a->backward ? arrays[X] : NULL, halves) ||
        (several && !bind_result(e, 1, true, entry[1], arrays, arrays[GATE], false)))
        return false;
    if (halves)
        bind_halves(e, e->result[0].target, &a->y, &a->grad_value);
    else if (several) {
        engine_tensor(e, "...", e->result[0].target, &a->grad_value);
        engine_tensor(e, "...", e->result[1].target, &a->y);
    } else
        engine_tensor(e, "...", e->result[0].target, &a->y);
    return true;
}

/* arguments: (grad_output,) x, (gate,) (approximate,) out. */
static PyObject *
call(const struct engine_function *function, enum attn_activation_kind kind, bool gated, bool backward, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_elementwise a = {.kind = kind, .gated = gated, .backward = backward};
    struct engine e;
    PyArrayObject *arrays[ARRAYS] = {NULL}, *given[ARRAYS];
    const char *names[ARRAYS];
    int first = backward ? GRAD : X, count = 0, place[ARRAYS];
    engine_start(&e, function, arguments, n);
    bool right = engine_argument_count(function->name, function->arguments, n);
    for (int i = first; right && i <= (gated ? GATE : X); i++) {
        if (i == GATE && arguments[i - first] == Py_None)
            continue;
        right = (given[count] = engine_array(&e, array_names[i], arguments[i - first])) != NULL;
        names[count] = array_names[i];
        place[count++] = i;
    }
    right = right && engine_common_type(&e, names, given, count);
    for (int i = 0; right && i < count; i++)
        arrays[place[i]] = given[i];
    if (kind == ATTN_GELU)
        right = right && approximation(arguments[n - 2], &a.kind);
    return engine_close(&e, right && bind_operands(&e, arrays, &a) && bind_results(&e, arguments[n - 1], arrays, &a) && engine_run(&e, &a));
}

#define CALL(function, kind, gated, backward)                                                    \
    static PyObject *call_##function(PyObject *module, PyObject *const *arguments, Py_ssize_t n) \
    {                                                                                            \
        (void)module;                                                                            \
        return call(&function, kind, gated, backward, arguments, n);                             \
    }
CALL(gelu, ATTN_GELU, false, false)
CALL(silu, ATTN_SILU, false, false)
CALL(relu, ATTN_RELU, false, false)
CALL(swiglu, ATTN_SILU, true, false)
CALL(geglu, ATTN_GELU, true, false)
CALL(gelu_backward, ATTN_GELU, false, true)
CALL(silu_backward, ATTN_SILU, false, true)
CALL(relu_backward, ATTN_RELU, false, true)
CALL(swiglu_backward, ATTN_SILU, true, true)
CALL(geglu_backward, ATTN_GELU, true, true)
#undef CALL

static PyMethodDef methods[] = {
    FAST_METHOD("gelu", call_gelu),
    FAST_METHOD("silu", call_silu),
    FAST_METHOD("relu", call_relu),
    FAST_METHOD("swiglu", call_swiglu),
    FAST_METHOD("geglu", call_geglu),
    FAST_METHOD("gelu_backward", call_gelu_backward),
    FAST_METHOD("silu_backward", call_silu_backward),
    FAST_METHOD("relu_backward", call_relu_backward),
    FAST_METHOD("swiglu_backward", call_swiglu_backward),
    FAST_METHOD("geglu_backward", call_geglu_backward),
    {0},
};

static const struct engine_function *const functions[] = {
    &gelu, &silu, &relu, &swiglu, &geglu, &gelu_backward, &silu_backward, &relu_backward, &swiglu_backward, &geglu_backward, NULL};

const struct family attn_layers_family = {methods, functions};
