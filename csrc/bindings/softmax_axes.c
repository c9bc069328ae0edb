/* softmax_axes.c: axis= and where= of the softmax family. */
#include "softmax_axes.h"

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
bool
softmax_name_axes(struct axes *axes, PyObject *object, int ndim)
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
void
softmax_walk(const struct axes *axes, PyArrayObject *array, bool keeps_reduced, struct attn_tensor *tensor)
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

bool
softmax_bind_where(struct engine *e, PyObject *object, const char *name, PyArrayObject *x, const struct axes *axes, struct attn_tensor *keep)
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
            engine_shape_error("where", where, "it must broadcast to that of %s, %S", name, wanted);
        Py_XDECREF(wanted);
        return false;
    }
    softmax_walk(axes, where, true, keep);
    e->input[e->inputs++] = where;
    return true;
}

/* No axis named: every element by itself, as if along an axis of length 1. */
bool
softmax_sum_over_one(struct attn_softmax *a)
{
    if (a->ndim == ATTN_MAX_BATCH) {
        PyErr_Format(PyExc_ValueError, "axis is empty; an array of %d axes needs at least one", ATTN_MAX_BATCH);
        return false;
    }
    a->shape[a->ndim] = a->reduced = 1;
    a->x.batch[a->ndim] = a->keep.batch[a->ndim] = a->y.batch[a->ndim] = a->grad.batch[a->ndim] = 0;
    a->ndim++;
    return true;
}
