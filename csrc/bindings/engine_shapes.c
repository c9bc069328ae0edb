/* engine_shapes.c: sizes of named axes, batch axes, strides. */
#include "engine.h"

#include <stdarg.h>
#include <stdio.h>

PyObject *
engine_tuple(int n, const int64_t *numbers)
{
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; tuple && i < n; i++) {
        PyObject *number = PyLong_FromLongLong(numbers[i]);
        if (!number || PyTuple_SetItem(tuple, i, number) < 0) {
            Py_DECREF(tuple);
            return NULL;
        }
    }
    return tuple;
}

static PyObject *
shape_of(PyArrayObject *array)
{
    int64_t shape[NPY_MAXDIMS];
    for (int i = 0; i < PyArray_NDIM(array); i++)
        shape[i] = PyArray_DIM(array, i);
    return engine_tuple(PyArray_NDIM(array), shape);
}

/* ValueError "NAME has shape (…); …". Always false. */
bool
engine_shape_error(const char *name, PyArrayObject *array, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    PyObject *rest = PyUnicode_FromFormatV(format, arguments);
    va_end(arguments);
    PyObject *shape = shape_of(array);
    if (rest && shape)
        PyErr_Format(PyExc_ValueError, "%s has shape %S; %U", name, shape, rest);
    Py_XDECREF(rest);
    Py_XDECREF(shape);
    return false;
}

/* *product = each times all factors; MemoryError where 64 bits do not hold it. A factor of 0 counts as 1, as it does when NumPy allocates. */
bool
engine_product(const char *name, int n, const int64_t *factors, int64_t each, int64_t *product)
{
    int64_t all = each;
    bool empty = false;
    for (int i = 0; i < n; i++) {
        empty |= factors[i] == 0;
        if (__builtin_mul_overflow(all, factors[i] == 0 ? 1 : factors[i], &all)) {
            PyObject *shape = engine_tuple(n, factors);
            if (shape)
                PyErr_Format(PyExc_MemoryError, "%s of shape %S is too large", name, shape);
            Py_XDECREF(shape);
            return false;
        }
    }
    *product = empty ? 0 : all;
    return true;
}

static int
core_axes(const char *core)
{
    return (core[0] != '.') + (core[1] != '.') + (core[2] != '.');
}

/* An operand of two axes has no head axis: one head, and no batch. */
static bool
lacks_head(const char *core, int ndim)
{
    return core[0] != '.' && core[1] != '.' && core[2] != '.' && ndim == 2;
}

/* How error texts call an axis counted from the end. */
static const char *
axis_name(int from_end, char *memory, size_t bytes)
{
    if (from_end == 1)
        return "last axis";
    snprintf(memory, bytes, "axis -%d", from_end);
    return memory;
}

/* Which data operand gave a letter its size first. */
static const char *
first_with(const struct engine *e, char letter)
{
    const struct engine_operand *operand = e->function->operands;
    while (operand->kind != ENGINE_NONE && operand->core[0] != letter && operand->core[1] != letter && operand->core[2] != letter)
        operand++;
    return operand->name ? operand->name : "outputs[0]";
}

/* Takes the sizes of a data operand's core axes, which must agree with those of the operands before it. */
bool
engine_core_sizes(struct engine *e, const char *name, const char *core, PyArrayObject *array)
{
    int ndim = PyArray_NDIM(array), axes = core_axes(core);
    if (e->function->packed && ndim != axes)
        return engine_shape_error(name, array, "it must have %d axes", axes);
    if (lacks_head(core, ndim))
        axes = 2;
    else {
        e->headless = false;
        if (ndim < axes)
            return engine_shape_error(name, array, "it must have at least %d axes", axes == 3 ? 2 : axes);
    }
    for (int i = 2, from_end = 1; i >= 0; i--) {
        if (core[i] == '.')
            continue;
        int64_t size = from_end <= axes ? PyArray_DIM(array, ndim - from_end) : 1, *known = engine_size(e, core[i]);
        char memory[16];
        if (*known >= 0 && *known != size) {
            if (from_end > axes)
                return engine_shape_error(name, array, "it must have %lld heads on axis -3, as %s has", (long long)*known, first_with(e, core[i]));
            return engine_shape_error(name, array, "its %s must be %lld, as in %s", axis_name(from_end, memory, sizeof memory), (long long)*known,
                                      first_with(e, core[i]));
        }
        *known = size;
        from_end++;
    }
    int batch = lacks_head(core, ndim) ? 0 : ndim - axes;
    return engine_join_batch(e, name, batch, PyArray_DIMS(array));
}

/* Broadcasts the batch shape so far with another. */
bool
engine_join_batch(struct engine *e, const char *name, int ndim, const npy_intp *shape)
{
    if (ndim > e->batch_ndim) {
        int more = ndim - e->batch_ndim;
        for (int i = e->batch_ndim - 1; i >= 0; i--)
            e->batch_shape[i + more] = e->batch_shape[i];
        for (int i = 0; i < more; i++)
            e->batch_shape[i] = 1;
        e->batch_ndim = ndim;
    }
    for (int i = 0; i < ndim; i++) {
        int64_t *joined = &e->batch_shape[e->batch_ndim - ndim + i];
        if (*joined == 1)
            *joined = shape[i];
        else if (shape[i] != 1 && shape[i] != *joined) {
            int64_t own[NPY_MAXDIMS];
            for (int j = 0; j < ndim; j++)
                own[j] = shape[j];
            PyObject *mine = engine_tuple(ndim, own), *others = engine_tuple(e->batch_ndim, e->batch_shape);
            if (mine && others)
                PyErr_Format(PyExc_ValueError, "%s has batch axes %S, which do not broadcast with %S, those of the operands before it", name, mine,
                             others);
            Py_XDECREF(mine);
            Py_XDECREF(others);
            return false;
        }
    }
    return true;
}

bool
engine_finish_batch(struct engine *e)
{
    return engine_product("the batch", e->batch_ndim, e->batch_shape, 1, &e->batch);
}

/* The stride of an axis; 0 along those of length 1, whatever NumPy holds there. */
static int64_t
stride_of(PyArrayObject *array, int axis)
{
    return PyArray_DIM(array, axis) == 1 ? 0 : PyArray_STRIDE(array, axis);
}

/* Fills in how an array lies in memory. Axes before the core are the batch; what it lacks there is broadcast. */
void
engine_tensor(const struct engine *e, const char *core, PyArrayObject *array, struct attn_tensor *tensor)
{
    int64_t itemsize = PyArray_ITEMSIZE(array), odd = (int64_t)(uintptr_t)PyArray_BYTES(array);
    int axis = PyArray_NDIM(array) - 1;
    engine_stored_type(array, &tensor->type);
    tensor->data = PyArray_BYTES(array);
    tensor->swapped = PyArray_ISBYTESWAPPED(array);
    tensor->head = tensor->row = tensor->column = 0;
    if (core[2] != '.' && axis >= 0) {
        tensor->column = PyArray_DIM(array, axis) == 1 ? itemsize : PyArray_STRIDE(array, axis);
        odd |= tensor->column;
        axis--;
    }
    if (core[1] != '.' && axis >= 0)
        odd |= tensor->row = stride_of(array, axis--);
    if (core[0] != '.' && axis >= 0)
        odd |= tensor->head = stride_of(array, axis--);
    for (int i = e->batch_ndim - 1; i >= 0; i--, axis--)
        odd |= tensor->batch[i] = axis >= 0 ? stride_of(array, axis) : 0;
    tensor->aligned = (odd & (itemsize - 1)) == 0; /* sizes are powers of two */
}

/* An extra hint where a mask looks like one for each batch element, which NumPy's rule would take for one for each head. */
static const char *
mask_hint(const struct engine *e, PyArrayObject *array)
{
    int64_t keys = e->size['s' - 'a'], queries = e->size['l' - 'a'];
    if (e->batch_ndim == 0 || PyArray_NDIM(array) < 2 || PyArray_DIM(array, 0) != e->batch_shape[e->batch_ndim - 1])
        return "";
    if (PyArray_NDIM(array) == 2 && PyArray_DIM(array, 1) == keys)
        return "; for one row per batch element pass mask[:, None, None, :], or kv_lengths";
    if (PyArray_NDIM(array) == 3 && PyArray_DIM(array, 2) == keys && (PyArray_DIM(array, 1) == queries || PyArray_DIM(array, 1) == 1))
        return "; for one mask per batch element pass mask[:, None]";
    return "";
}

static bool
broadcast_error(const struct engine *e, const struct engine_operand *operand, PyArrayObject *array, int from_end, int n, const int64_t *target)
{
    PyObject *wanted = engine_tuple(n, target);
    char memory[16];
    const char *hint = operand->core[2] == 's' ? mask_hint(e, array) : "";
    if (!wanted)
        return false;
    if (from_end == 0)
        engine_shape_error(operand->name, array, "it must broadcast to %S, which has fewer axes%s", wanted, hint);
    else {
        long long size = target[n - from_end];
        bool exact = size == 1 || (operand->kind == ENGINE_PER_HEAD && from_end == 1);
        engine_shape_error(operand->name, array,
                           exact ? "it must broadcast to %S: its %s must be %lld%s" : "it must broadcast to %S: its %s must be 1 or %lld%s", wanted,
                           axis_name(from_end, memory, sizeof memory), size, hint);
    }
    Py_DECREF(wanted);
    return false;
}

/* The strides with which an array is walked when it is broadcast to the batch axes and its core axes. */
bool
engine_broadcast(struct engine *e, const struct engine_operand *operand, PyArrayObject *array, struct attn_tensor *tensor)
{
    int64_t target[ATTN_MAX_BATCH + 3];
    int n = 0, ndim = PyArray_NDIM(array);
    for (; n < e->batch_ndim; n++)
        target[n] = e->batch_shape[n];
    for (int i = 0; i < 3; i++)
        if (operand->core[i] != '.')
            target[n++] = *engine_size(e, operand->core[i]);
    if (ndim > n)
        return broadcast_error(e, operand, array, 0, n, target);
    for (int from_end = 1; from_end <= ndim; from_end++) {
        int64_t size = PyArray_DIM(array, ndim - from_end);
        bool exact = operand->kind == ENGINE_PER_HEAD && from_end == 1;
        if (size != target[n - from_end] && (size != 1 || exact))
            return broadcast_error(e, operand, array, from_end, n, target);
    }
    if (operand->kind == ENGINE_PER_HEAD && ndim == 0)
        return engine_shape_error(operand->name, array, "it must have a last axis of %lld, one number per query head", (long long)target[n - 1]);
    engine_tensor(e, operand->core, array, tensor);
    if (operand->core[2] != '.' && (ndim == 0 || PyArray_DIM(array, ndim - 1) == 1))
        tensor->column = 0;
    return true;
}
