/* engine.c: a call from its positional arguments to filled tensors, and from results to what Python gets. */
#include "engine.h"

#include <fenv.h>
#include <string.h>

bool
engine_argument_count(const char *name, Py_ssize_t wanted, Py_ssize_t n)
{
    if (n != wanted)
        PyErr_Format(PyExc_TypeError, "_core.%s takes %zd arguments, all by position; %zd came", name, wanted, n);
    return n == wanted;
}

/* Owns a reference until the call is closed. */
bool
engine_hold(struct engine *e, void *reference)
{
    if (reference && e->held == ENGINE_HELD) {
        Py_DECREF((PyObject *)reference);
        PyErr_SetString(PyExc_RuntimeError, "attnpy: too many references in one call");
        return false;
    }
    if (reference)
        e->hold[e->held++] = reference;
    return reference != NULL;
}

/* An empty call: what engine_close needs, and no sizes. */
void
engine_start(struct engine *e, const struct engine_function *function, PyObject *const *arguments, Py_ssize_t n)
{
    e->function = function;
    e->arguments = arguments;
    e->given = n;
    e->foreign = NULL;
    e->result = e->own_result;
    e->headless = true;
    e->batch_ndim = 0;
    e->batch = 1;
    e->inputs = e->held = e->results = 0;
    e->more = NULL;
    e->more_inputs = 0;
    for (int i = 0; i < ENGINE_NAMES; i++)
        e->size[i] = -1;
    memset(e->operand, 0, sizeof e->operand);
    memset(e->own_result, 0, sizeof e->own_result);
}

static struct attn_tensor *
tensor_of(const struct engine_operand *operand, void *structure)
{
    return (struct attn_tensor *)((char *)structure + operand->tensor);
}

/* The operands that decide: dtype first, then sizes, then strides. They come first among a function's operands. Returns how many. */
static int
open_data(struct engine *e, PyObject *const *arguments, void *structure)
{
    const struct engine_operand *operand = e->function->operands;
    const char *names[ENGINE_OPERANDS];
    int n = 0;
    for (; n < ENGINE_OPERANDS && operand[n].kind == ENGINE_DATA; n++) {
        names[n] = operand[n].name;
        if (!(e->operand[n] = engine_array(e, names[n], arguments[operand[n].argument])))
            return -1;
    }
    if (!engine_common_type(e, names, e->operand, n))
        return -1;
    for (int i = 0; i < n; i++)
        if (!engine_core_sizes(e, names[i], operand[i].core, e->operand[i]))
            return -1;
    if (!engine_finish_batch(e))
        return -1;
    for (int i = 0; i < n; i++) {
        engine_tensor(e, operand[i].core, e->operand[i], tensor_of(&operand[i], structure));
        e->input[e->inputs++] = e->operand[i];
    }
    return n;
}

/* Everything about the operands of a function, in its order. engine_close must follow, whatever this returns. */
bool
engine_open(struct engine *e, const struct engine_function *function, PyObject *const *arguments, Py_ssize_t n, void *structure)
{
    engine_start(e, function, arguments, n);
    if (!engine_argument_count(function->name, function->arguments, n))
        return false;
    int i = open_data(e, arguments, structure);
    if (i < 0)
        return false;
    for (; i < ENGINE_OPERANDS && function->operands[i].kind != ENGINE_NONE; i++) {
        const struct engine_operand *operand = &function->operands[i];
        struct attn_tensor *tensor = tensor_of(operand, structure);
        tensor->data = NULL;
        if (operand->blocks)
            ((struct attn_block_mask *)((char *)structure + operand->blocks))->indptr = NULL;
        if (!operand->later && arguments[operand->argument] != Py_None && !engine_take(e, operand, arguments[operand->argument], tensor))
            return false;
    }
    return true;
}

/* Copies temporaries to where they belong. NumPy's casts clear the floating-point flags, or raise some: they are the caller's. */
static bool
write_back(struct engine *e)
{
    for (int i = 0; i < e->results; i++)
        if (e->result[i].target != e->result[i].array) {
            fenv_t environment;
            fegetenv(&environment);
            int copied = PyArray_CopyInto(e->result[i].array, e->result[i].target);
            fesetenv(&environment);
            if (copied < 0)
                return false;
        }
    return true;
}

/* A given array as it is; a new one as NumPy returns it, a scalar if it has no axes; None for no array. The reference moves to the caller. */
static PyObject *
returned(struct engine_result *result)
{
    PyArrayObject *array = result->array;
    if (!array) {
        Py_INCREF(Py_None);
        return Py_None;
    }
    result->array = NULL;
    return result->given ? (PyObject *)array : PyArray_Return(array);
}

/* Releases the call. One result, or a tuple of them; NULL if `succeeded` is false. */
PyObject *
engine_close(struct engine *e, bool succeeded)
{
    PyObject *answer = NULL;
    if (succeeded && write_back(e)) {
        for (int i = 0; i < e->results; i++)
            if (e->result[i].target != e->result[i].array)
                Py_CLEAR(e->result[i].target);
        answer = e->results == 1 ? returned(&e->result[0]) : PyTuple_New(e->results);
        for (int i = 0; answer && e->results > 1 && i < e->results; i++) {
            PyObject *item = returned(&e->result[i]);
            if (!item || PyTuple_SetItem(answer, i, item) < 0)
                Py_CLEAR(answer);
        }
    } else
        for (int i = 0; i < e->results; i++)
            if (e->result[i].target != e->result[i].array)
                Py_XDECREF((PyObject *)e->result[i].target);
    for (int i = 0; i < e->results; i++)
        Py_XDECREF((PyObject *)e->result[i].array);
    while (e->held > 0)
        Py_DECREF(e->hold[--e->held]);
    return e->foreign && !PyErr_Occurred() ? engine_hand_over(e) : answer;
}
