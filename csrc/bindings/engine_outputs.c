/* engine_outputs.c: new arrays, or those given as out=, with a temporary where the kernel must not write into them directly. */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

/* The bytes first ... end - 1 that an array's elements lie in; first == end if it has none. */
static void
extent(PyArrayObject *array, char **first, char **end)
{
    *first = *end = PyArray_BYTES(array);
    if (PyArray_SIZE(array) == 0)
        return;
    for (int i = 0; i < PyArray_NDIM(array); i++) {
        npy_intp reach = (PyArray_DIM(array, i) - 1) * PyArray_STRIDE(array, i);
        *(reach < 0 ? first : end) += reach;
    }
    *end += PyArray_ITEMSIZE(array);
}

static bool
extents_meet(PyArrayObject *a, PyArrayObject *b)
{
    char *a_first, *a_end, *b_first, *b_end;
    extent(a, &a_first, &a_end);
    extent(b, &b_first, &b_end);
    return a_first < b_end && b_first < a_end;
}

static bool
meets_inputs(const struct engine *e, PyArrayObject *array)
{
    for (int i = 0; i < e->inputs; i++)
        if (extents_meet(array, e->input[i]))
            return true;
    for (Py_ssize_t i = 0; i < e->more_inputs; i++)
        if (extents_meet(array, e->more[i]))
            return true;
    return false;
}

/* NumPy's exact test, for layouts that extents cannot judge. -1: error. */
static int
share_memory(PyObject *a, PyObject *b)
{
    PyObject *numpy = PyImport_ImportModule("numpy");
    PyObject *answer = numpy && a && b ? PyObject_CallMethod(numpy, "shares_memory", "OO", a, b) : NULL;
    int share = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    Py_XDECREF(numpy);
    return share;
}

/* Part first ... end - 1 of an axis. */
static PyObject *
part_of(PyArrayObject *array, int axis, npy_intp first, npy_intp end)
{
    npy_intp shape[NPY_MAXDIMS];
    for (int i = 0; i < PyArray_NDIM(array); i++)
        shape[i] = PyArray_DIM(array, i);
    shape[axis] = end - first;
    PyArray_Descr *descr = PyArray_DESCR(array);
    Py_INCREF((PyObject *)descr);
    return PyArray_NewFromDescr(&PyArray_Type, descr, PyArray_NDIM(array), shape, PyArray_STRIDES(array),
                                PyArray_BYTES(array) + first * PyArray_STRIDE(array, axis), 0, NULL);
}

/* Whether two elements share a byte. Along the first axis on which their indices differ, one of them may be moved to index 0. */
static int
overlaps_itself_exactly(PyArrayObject *array)
{
    int overlaps = 0;
    for (int axis = 0; axis < PyArray_NDIM(array) && overlaps == 0; axis++) {
        if (PyArray_DIM(array, axis) == 1)
            continue;
        PyObject *one = part_of(array, axis, 0, 1), *others = part_of(array, axis, 1, PyArray_DIM(array, axis));
        overlaps = one && others ? share_memory(one, others) : -1;
        Py_XDECREF(one);
        Py_XDECREF(others);
    }
    return overlaps;
}

/* -1: error. In nearly every layout each stride steps over all that the smaller ones reach. */
static int
overlaps_itself(PyArrayObject *array)
{
    npy_intp stride[NPY_MAXDIMS], length[NPY_MAXDIMS], reach = PyArray_ITEMSIZE(array);
    int n = 0;
    if (PyArray_SIZE(array) < 2 || PyArray_ISCONTIGUOUS(array))
        return 0;
    for (int i = 0; i < PyArray_NDIM(array); i++) {
        npy_intp own = PyArray_STRIDE(array, i) < 0 ? -PyArray_STRIDE(array, i) : PyArray_STRIDE(array, i);
        if (PyArray_DIM(array, i) == 1)
            continue;
        if (own == 0)
            return 1;
        int place = n++;
        for (; place > 0 && stride[place - 1] > own; place--) {
            stride[place] = stride[place - 1];
            length[place] = length[place - 1];
        }
        stride[place] = own;
        length[place] = PyArray_DIM(array, i);
    }
    for (int i = 0; i < n; i++) {
        if (stride[i] < reach)
            return overlaps_itself_exactly(array);
        reach += (length[i] - 1) * stride[i];
    }
    return 0;
}

static bool
has_shape(PyArrayObject *array, int ndim, const int64_t *shape)
{
    bool same = PyArray_NDIM(array) == ndim;
    for (int i = 0; same && i < ndim; i++)
        same = PyArray_DIM(array, i) == shape[i];
    return same;
}

/* Exact shape and dtype, writable, no element twice. `name` is "out" or "out[i]". */
static bool
check_given(const char *name, PyObject *out, enum attn_type type, int ndim, const int64_t *shape)
{
    if (!PyArray_Check(out)) {
        PyErr_Format(PyExc_TypeError, "%s must be an ndarray, not %R", name, Py_TYPE(out));
        return false;
    }
    int masked = PyArray_CheckExact(out) ? 0 : engine_is_masked(out);
    if (masked > 0)
        PyErr_Format(PyExc_TypeError, "%s is a MaskedArray, whose mask would be ignored: pass its data", name);
    if (masked != 0)
        return false;
    PyArrayObject *array = (PyArrayObject *)out;
    enum attn_type own;
    if (!has_shape(array, ndim, shape)) {
        PyObject *wanted = engine_tuple(ndim, shape);
        if (wanted)
            engine_shape_error(name, array, "it must have the result's, %S", wanted);
        Py_XDECREF(wanted);
        return false;
    }
    if (!engine_stored_type(array, &own) || own != type || PyArray_ISBYTESWAPPED(array)) {
        PyArray_Descr *wanted = engine_descr(type);
        if (wanted)
            PyErr_Format(PyExc_TypeError, "%s has dtype %S; it must have the result's, %S", name, PyArray_DESCR(array), wanted);
        Py_XDECREF((PyObject *)wanted);
        return false;
    }
    if (!PyArray_ISWRITEABLE(array)) {
        PyErr_Format(PyExc_ValueError, "%s is read-only", name);
        return false;
    }
    int overlaps = overlaps_itself(array);
    if (overlaps > 0)
        engine_shape_error(name, array, "some of its elements share memory with one another");
    return overlaps == 0;
}

static PyArrayObject *
new_array(const char *name, enum attn_type type, int ndim, const int64_t *shape)
{
    int64_t bytes;
    npy_intp dims[NPY_MAXDIMS];
    if (ndim > NPY_MAXDIMS) {
        PyErr_Format(PyExc_ValueError, "%s would have %d axes; NumPy has at most %d", name, ndim, NPY_MAXDIMS);
        return NULL;
    }
    PyArray_Descr *descr = engine_descr(type);
    if (!descr || !engine_product(name, ndim, shape, PyDataType_ELSIZE(descr), &bytes)) {
        Py_XDECREF((PyObject *)descr);
        return NULL;
    }
    for (int i = 0; i < ndim; i++)
        dims[i] = shape[i];
    return engine_empty(ndim, dims, descr, bytes);
}

static const char *
result_name(const struct engine *e, int index)
{
    return index < ENGINE_OUTPUTS && e->function->outputs[index].name ? e->function->outputs[index].name : "a result";
}

/* What is given for two results must not share an element. */
static bool
check_apart(struct engine *e, int index, const char *name)
{
    PyArrayObject *array = e->result[index].array;
    for (int i = 0; i < index; i++)
        if (e->result[i].array && extents_meet(array, e->result[i].array)) {
            int share = share_memory((PyObject *)array, (PyObject *)e->result[i].array);
            if (share > 0)
                PyErr_Format(PyExc_ValueError, "%s shares memory with what is given for %s", name, result_name(e, i));
            if (share != 0)
                return false;
        }
    return true;
}

/* Element by element the same memory: a kernel that reads an element before it writes there may do both. */
bool
engine_same_place(PyObject *out, PyArrayObject *array)
{
    PyArrayObject *given = (PyArrayObject *)out;
    if (!PyArray_Check(out) || PyArray_BYTES(given) != PyArray_BYTES(array) || PyArray_NDIM(given) != PyArray_NDIM(array) ||
        PyArray_ITEMSIZE(given) != PyArray_ITEMSIZE(array))
        return false;
    for (int i = 0; i < PyArray_NDIM(array); i++)
        if (PyArray_DIM(given, i) != PyArray_DIM(array, i) || PyArray_STRIDE(given, i) != PyArray_STRIDE(array, i))
            return false;
    return true;
}

/* Result number `index`, called `name` where it is given. in_place: the kernel may write over inputs as it goes. */
bool
engine_result(struct engine *e, int index, const char *name, PyObject *out, enum attn_type type, int ndim, const int64_t *shape, bool in_place)
{
    struct engine_result *result = &e->result[index];
    result->target = NULL;
    result->given = out != Py_None;
    result->array = NULL;
    e->results = index + 1;
    if (!result->given) {
        result->array = result->target = new_array(result_name(e, index), type, ndim, shape);
        return result->array != NULL;
    }
    if (!engine_native(e, out) || !check_given(name, out, type, ndim, shape))
        return false;
    Py_INCREF(out);
    result->array = (PyArrayObject *)out;
    if (!check_apart(e, index, name))
        return false;
    bool direct = PyArray_ISALIGNED(result->array) && (in_place || !meets_inputs(e, result->array));
    result->target = direct ? result->array : new_array(name, type, ndim, shape);
    return result->target != NULL;
}

/* out's entry for a result: out itself where there is one result, or a tuple's entry. Borrowed. */
static PyObject *
out_entry(PyObject *out, int outputs, int index)
{
    if (out == Py_None)
        return out;
    if (PyTuple_Check(out)) {
        if (PyTuple_Size(out) == outputs)
            return PyTuple_GetItem(out, index);
        PyErr_Format(PyExc_ValueError, "out has %zd entries; it must have %d", PyTuple_Size(out), outputs);
        return NULL;
    }
    if (outputs == 1)
        return out;
    PyErr_SetString(PyExc_TypeError, "out must be a tuple, one array or None for each result");
    return NULL;
}

/* The first `outputs` results of the function, for the sizes known by now; their tensors are filled in. */
bool
engine_outputs(struct engine *e, PyObject *out, int outputs, void *structure)
{
    for (int index = 0; index < outputs; index++) {
        const struct engine_output *output = &e->function->outputs[index];
        int64_t shape[ATTN_MAX_BATCH + 3];
        int ndim = 0;
        for (; ndim < e->batch_ndim; ndim++)
            shape[ndim] = e->batch_shape[ndim];
        for (int i = e->headless ? 1 : 0; i < 3; i++)
            if (output->core[i] != '.')
                shape[ndim++] = *engine_size(e, output->core[i]);
        PyObject *entry = out_entry(out, outputs, index);
        char name[16] = "out";
        if (outputs > 1)
            PyOS_snprintf(name, sizeof name, "out[%d]", index);
        if (!entry || !engine_result(e, index, name, entry, output->computed ? e->compute : e->stored, ndim, shape, false))
            return false;
        engine_tensor(e, output->core, e->result[index].target, (struct attn_tensor *)((char *)structure + output->tensor));
    }
    return true;
}

/* The target of a result that kernels add to: of the type computed in and in C order. Zeros, or what is given, if it can be written directly: then
 * engine_clear must follow when nothing can fail any more. */
static bool
accumulate(struct engine *e, struct engine_result *result)
{
    enum attn_type type;
    engine_stored_type(result->array, &type);
    result->cleared = result->given && result->target == result->array && type == e->compute && PyArray_ISCARRAY(result->array);
    if (result->cleared)
        return true;
    PyArrayObject *zeros = (PyArrayObject *)PyArray_Zeros(PyArray_NDIM(result->array), PyArray_DIMS(result->array), engine_descr(e->compute), 0);
    if (!zeros)
        return false;
    if (result->target != result->array)
        Py_DECREF((PyObject *)result->target);
    result->target = zeros;
    if (!result->given && type == e->compute) {
        Py_DECREF((PyObject *)result->array);
        result->array = zeros;
    }
    return true;
}

/* Zeros in what was given for results that kernels add to. */
void
engine_clear(struct engine *e)
{
    for (int i = 0; i < e->results; i++)
        if (e->result[i].cleared)
            memset(PyArray_DATA(e->result[i].array), 0, (size_t)PyArray_NBYTES(e->result[i].array));
}

/* The gradient of an operand, in its dtype and shape: result number `index`. accumulated: the target is of the type computed in, and begins as zeros. */
bool
engine_gradient(struct engine *e, int index, int operand, PyObject *out, bool accumulated, void *structure)
{
    const struct engine_operand *of = &e->function->operands[operand];
    PyArrayObject *array = e->operand[operand];
    struct engine_result *result = &e->result[index];
    struct attn_tensor *tensor = (struct attn_tensor *)((char *)structure + e->function->outputs[index].tensor);
    int64_t shape[NPY_MAXDIMS];
    enum attn_type type;
    char name[32];
    PyOS_snprintf(name, sizeof name, "out['%s']", of->name);
    for (int i = 0; i < PyArray_NDIM(array); i++)
        shape[i] = PyArray_DIM(array, i);
    engine_stored_type(array, &type);
    if (!engine_result(e, index, name, out, type, PyArray_NDIM(array), shape, false) || (accumulated && !accumulate(e, result)))
        return false;
    bool right = true;
    if (of->kind != ENGINE_DATA)
        right = engine_broadcast(e, of, result->target, tensor);
    else
        engine_tensor(e, of->core, result->target, tensor);
    if (PyArray_SIZE(result->target) == 0)
        tensor->data = NULL; /* NumPy gives an array without elements strides of 0: it would look like one that broadcasts */
    return right;
}
