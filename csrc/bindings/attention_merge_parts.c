/* attention_merge_parts.c: the parts of merge_attention and of its gradients. */
#include "attention_merge.h"

/* A sequence of arrays, or an array stacked on axis 0, as a list that the call owns. */
static PyObject *
list_of(struct engine *e, const char *name, PyObject *object)
{
    if (PyArray_Check(object) && PyArray_NDIM((PyArrayObject *)object) == 0) {
        PyErr_Format(PyExc_TypeError, "%s must be a sequence of arrays, or arrays stacked on axis 0", name);
        return NULL;
    }
    if (!engine_native(e, object))
        return NULL;
    PyObject *list = PySequence_List(object);
    if (!list && PyErr_ExceptionMatches(PyExc_TypeError))
        PyErr_Format(PyExc_TypeError, "%s must be a sequence of arrays, or arrays stacked on axis 0, not %R", name, Py_TYPE(object));
    return engine_hold(e, list) ? list : NULL;
}

/* Keeps what engine functions have put into `hold`, of which there is a fixed number, in the list instead. */
static bool
keep_converted(struct engine *e, struct parts *parts, int held)
{
    while (e->held > held) {
        PyObject *reference = e->hold[--e->held];
        int failed = PyList_Append(parts->converted, reference);
        Py_DECREF(reference);
        if (failed)
            return false;
    }
    return true;
}

static bool
allocate(struct engine *e, struct parts *parts)
{
    size_t one = sizeof *parts->names + sizeof *parts->name + sizeof *parts->array + sizeof *parts->tensor + sizeof *parts->type;
    Py_ssize_t all = 2 * parts->each;
    parts->converted = PyList_New(0);
    if (!engine_hold(e, parts->converted))
        return false;
    parts->tensor = PyMem_Calloc((size_t)all, one);
    if (!parts->tensor) {
        PyErr_NoMemory();
        return false;
    }
    parts->array = (PyArrayObject **)(parts->tensor + all);
    parts->name = (const char **)(parts->array + all);
    parts->type = (enum attn_type *)(parts->name + all);
    parts->names = (char (*)[32])(parts->type + all);
    return true;
}

static bool
open_one(struct engine *e, struct parts *parts, Py_ssize_t index, PyObject *object)
{
    int held = e->held;
    parts->name[index] = parts->names[index];
    parts->array[index] = engine_array(e, parts->name[index], object);
    return keep_converted(e, parts, held) && parts->array[index];
}

/* Arrays of the parts, with room for `whole` more of each kind. merge_close must follow. */
bool
merge_open(struct engine *e, struct parts *parts, PyObject *outputs, PyObject *lses, int whole)
{
    outputs = list_of(e, "outputs", outputs);
    lses = outputs ? list_of(e, "lses", lses) : NULL;
    if (!lses)
        return false;
    if (PyList_Size(outputs) != PyList_Size(lses) || PyList_Size(outputs) == 0) {
        PyErr_Format(PyExc_ValueError, "outputs has %zd parts and lses %zd; both must have the same number, at least 1", PyList_Size(outputs),
                     PyList_Size(lses));
        return false;
    }
    parts->n = PyList_Size(outputs);
    parts->each = parts->n + whole;
    if (!allocate(e, parts))
        return false;
    for (int kind = 0; kind < 2; kind++)
        for (Py_ssize_t t = 0; t < parts->n; t++) {
            Py_ssize_t index = kind * parts->each + t;
            PyOS_snprintf(parts->names[index], sizeof *parts->names, "%s[%zd]", kind ? "lses" : "outputs", t);
            if (!open_one(e, parts, index, PyList_GetItem(kind ? lses : outputs, t)))
                return false;
        }
    return true;
}

/* An array of the whole, in place `index`. */
bool
merge_open_whole(struct engine *e, struct parts *parts, Py_ssize_t index, const char *name, PyObject *object)
{
    PyOS_snprintf(parts->names[index], sizeof *parts->names, "%s", name);
    return open_one(e, parts, index, object);
}

/* Types, then shapes: of the outputs, and of the log-sum-exps, which take the type computed in. */
bool
merge_bind(struct engine *e, struct parts *parts)
{
    int held = e->held;
    for (Py_ssize_t i = 0; i < parts->each; i++) {
        parts->array[i] = engine_numbers(e, parts->name[i], parts->array[i]);
        if (!keep_converted(e, parts, held) || !parts->array[i])
            return false;
    }
    if (!engine_common_type(e, parts->name, parts->array, parts->each))
        return false;
    for (Py_ssize_t i = 0; i < 2 * parts->each; i++) {
        bool lse = i >= parts->each;
        if (!parts->array[i])
            continue;
        if (lse) {
            PyArrayObject *array = engine_numbers(e, parts->name[i], parts->array[i]);
            parts->array[i] = array && engine_stored_type(array, &parts->type[i]) ? engine_to_compute(e, array) : NULL;
        }
        if (!keep_converted(e, parts, held) || !parts->array[i] || !engine_core_sizes(e, parts->name[i], lse ? ".l." : ".ld", parts->array[i]))
            return false;
    }
    if (!engine_finish_batch(e))
        return false;
    for (Py_ssize_t i = 0; i < 2 * parts->each; i++)
        if (parts->array[i])
            engine_tensor(e, i < parts->each ? ".ld" : ".l.", parts->array[i], &parts->tensor[i]);
    return true;
}

void
merge_close(struct parts *parts)
{
    PyMem_Free(parts->tensor);
}
