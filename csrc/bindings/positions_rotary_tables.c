/* positions_rotary_tables.c: the tables cos and sin, and positions that choose rows of them. */
#include "positions_rotary.h"

#include <string.h>

static struct attn_tensor *
tensor_of(const struct engine_operand *operand, void *structure)
{
    return (struct attn_tensor *)((char *)structure + operand->tensor);
}

/* A table in the type computed in, its last axis side by side: kernels read whole rows of it. */
static PyArrayObject *
take_table(struct engine *e, const char *name, PyObject *object)
{
    PyArrayObject *array = engine_array(e, name, object);
    if (!array || !(array = engine_numbers(e, name, array)))
        return NULL;
    if (PyArray_NDIM(array) < 2) {
        engine_shape_error(name, array, "it must have at least 2 axes: one row for each position");
        return NULL;
    }
    if (!(array = engine_to_compute(e, array)))
        return NULL;
    int last = PyArray_NDIM(array) - 1;
    if (PyArray_DIM(array, last) > 1 && PyArray_STRIDE(array, last) != PyArray_ITEMSIZE(array)) {
        PyObject *copy = PyArray_NewCopy(array, NPY_CORDER);
        if (!engine_hold(e, copy))
            return NULL;
        array = (PyArrayObject *)copy;
    }
    e->input[e->inputs++] = array;
    return array;
}

/* rotary_dim, and whether tables of `columns` columns hold each number twice. */
static bool
choose_columns(PyArrayObject *cosine, PyObject *given, int64_t head_dim, int64_t *rotary_dim, bool *wide)
{
    int64_t columns = PyArray_DIM(cosine, PyArray_NDIM(cosine) - 1);
    if (given == Py_None) {
        *wide = columns == head_dim;
        *rotary_dim = *wide ? columns : 2 * columns;
        if (*rotary_dim % 2 == 0 && columns <= head_dim && *rotary_dim <= head_dim)
            return true;
        return engine_shape_error("cos", cosine, "for %lld features its last axis must be %lld, or at most half of that", (long long)head_dim,
                                  (long long)head_dim);
    }
    if (!engine_integer("rotary_dim", given, rotary_dim))
        return false;
    if (*rotary_dim < 0 || *rotary_dim > head_dim || *rotary_dim % 2 != 0) {
        PyErr_Format(PyExc_ValueError, "rotary_dim is %lld; it must be an even number in 0 ... %lld", (long long)*rotary_dim, (long long)head_dim);
        return false;
    }
    *wide = columns == *rotary_dim;
    if (!*wide && columns != *rotary_dim / 2)
        return engine_shape_error("cos", cosine, "for rotary_dim %lld its last axis must be %lld or %lld", (long long)*rotary_dim,
                                  (long long)*rotary_dim / 2, (long long)*rotary_dim);
    return true;
}

/* Tables that hold each number twice in the order of the other pairing would turn wrongly without a word: the last row is looked at. */
static bool
check_twice(const char *name, PyArrayObject *table, bool interleaved)
{
    int ndim = PyArray_NDIM(table);
    int64_t columns = PyArray_DIM(table, ndim - 1), rows = PyArray_DIM(table, ndim - 2);
    npy_intp size = PyArray_ITEMSIZE(table), step = interleaved ? 2 : 1, apart = interleaved ? 1 : columns / 2;
    if (PyArray_SIZE(table) == 0)
        return true;
    const char *row = PyArray_BYTES(table) + (rows - 1) * PyArray_STRIDE(table, ndim - 2);
    for (int64_t pair = 0; pair < columns / 2; pair++)
        if (memcmp(row + pair * step * size, row + (pair * step + apart) * size, (size_t)size) != 0)
            return engine_shape_error(name, table,
                                      "with one column for each feature both of a pair must hold the same number, and columns %lld and "
                                      "%lld do not; pass one for each pair, or see `interleaved`",
                                      (long long)(pair * step), (long long)(pair * step + apart));
    return true;
}

/* cos and sin, (B.., P, rotary_dim / 2 or rotary_dim), as operands[0] and [1] of core ".pc" place them; their leading axes broadcast to the batch. */
bool
rotary_bind_tables(struct engine *e, const struct engine_operand operands[2], PyObject *cosine, PyObject *sine, PyObject *rotary_dim,
                   int64_t head_dim, bool interleaved, struct rotary_tables *tables, void *structure)
{
    PyArrayObject *array[2];
    PyObject *object[2] = {cosine, sine};
    bool wide;
    for (int i = 0; i < 2; i++)
        if (!(array[i] = take_table(e, operands[i].name, object[i])))
            return false;
    int ndim = PyArray_NDIM(array[0]);
    bool same = ndim == PyArray_NDIM(array[1]);
    for (int i = 0; same && i < ndim; i++)
        same = PyArray_DIM(array[0], i) == PyArray_DIM(array[1], i);
    if (!same)
        return engine_shape_error(operands[1].name, array[1], "it must have that of %s", operands[0].name);
    if (!choose_columns(array[0], rotary_dim, head_dim, &tables->rotary_dim, &wide))
        return false;
    *engine_size(e, 'p') = tables->rows = PyArray_DIM(array[0], ndim - 2);
    *engine_size(e, 'c') = PyArray_DIM(array[0], ndim - 1);
    for (int i = 0; i < 2; i++)
        if ((wide && !check_twice(operands[i].name, array[i], interleaved)) ||
            !engine_broadcast(e, &operands[i], array[i], tensor_of(&operands[i], structure)))
            return false;
    tables->how = !interleaved ? ATTN_ROTATE_HALVES : wide ? ATTN_ROTATE_NEIGHBOURS_WIDE : ATTN_ROTATE_NEIGHBOURS;
    return true;
}

/* Positions of `length` tokens, integers that broadcast to (B.., length): each must be a row of the tables. None: token i is at position i. */
bool
rotary_bind_positions(struct engine *e, const struct engine_operand *operand, PyObject *object, int64_t length, int64_t rows, void *structure)
{
    struct attn_tensor *tensor = tensor_of(operand, structure);
    tensor->data = NULL;
    if (object == Py_None) {
        if (length <= rows)
            return true;
        PyErr_Format(PyExc_ValueError, "cos has %lld rows, too few for %lld positions", (long long)rows, (long long)length);
        return false;
    }
    PyArrayObject *array = engine_integers(e, operand->name, object);
    if (!array || !engine_broadcast(e, operand, array, tensor))
        return false;
    const int64_t *position = PyArray_DATA(array);
    for (npy_intp i = 0; i < PyArray_SIZE(array); i++)
        if (position[i] < 0 || position[i] >= rows) {
            PyErr_Format(PyExc_ValueError, "%s holds %lld; each must be in 0 ... %lld, the rows of cos", operand->name, (long long)position[i],
                         (long long)rows - 1);
            return false;
        }
    tensor->type = ATTN_INT64;
    return true;
}
