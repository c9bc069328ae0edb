/* positions_rotary.c: rotary_embedding: its tables, and positions that choose rows of them. */
#include "positions_rotary.h"

#include "families.h"

#include "../kernels/positions_rotary.h"

#include <string.h>

enum { X, COSINE, SINE, POSITIONS }; /* among the operands */

#define PLACE(member) offsetof(struct attn_rotary, member)

static const struct engine_function rotary = {
    .name = "rotary_embedding",
    .signature = "(h,l,d),(p,c),(p,c)->(h,l,d)",
    .arguments = 8,
    .instead = "its data",
    .kernel = offsetof(struct attn_kernels, rotary_embedding),
    .operands = {{"x", ENGINE_DATA, 0, "hld", 0, PLACE(x)},
                 {"cos", ENGINE_PER_HEAD, 1, ".pc", 0, PLACE(cosine), .later = true},
                 {"sin", ENGINE_PER_HEAD, 2, ".pc", 0, PLACE(sine), .later = true},
                 {"positions", ENGINE_OFFSETS, 3, ".l.", 0, PLACE(positions), .later = true}},
    .outputs = {{"the result", "hld", false, PLACE(y)}},
};

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

/* rotary_dim, and how tables lie whose last axis is as long as that of cos. */
static bool
bind_columns(PyArrayObject *cosine, PyObject *given, bool interleaved, struct attn_rotary *a, bool *wide)
{
    int64_t columns = PyArray_DIM(cosine, PyArray_NDIM(cosine) - 1);
    if (given == Py_None) {
        *wide = columns == a->head_dim;
        a->rotary_dim = *wide ? columns : 2 * columns;
        if (a->rotary_dim % 2 != 0 || columns > a->head_dim || a->rotary_dim > a->head_dim)
            return engine_shape_error("cos", cosine, "for %lld features its last axis must be %lld, or at most half of that", (long long)a->head_dim,
                                      (long long)a->head_dim);
    } else {
        if (!engine_integer("rotary_dim", given, &a->rotary_dim))
            return false;
        if (a->rotary_dim < 0 || a->rotary_dim > a->head_dim || a->rotary_dim % 2 != 0) {
            PyErr_Format(PyExc_ValueError, "rotary_dim is %lld; it must be an even number in 0 ... %lld", (long long)a->rotary_dim,
                         (long long)a->head_dim);
            return false;
        }
        *wide = columns == a->rotary_dim;
        if (!*wide && columns != a->rotary_dim / 2)
            return engine_shape_error("cos", cosine, "for rotary_dim %lld its last axis must be %lld or %lld", (long long)a->rotary_dim,
                                      (long long)a->rotary_dim / 2, (long long)a->rotary_dim);
    }
    a->how = !interleaved ? ATTN_ROTATE_HALVES : *wide ? ATTN_ROTATE_NEIGHBOURS_WIDE : ATTN_ROTATE_NEIGHBOURS;
    return true;
}

bool
positions_check_twice(const char *name, PyArrayObject *table, bool interleaved)
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

static void
bind_sizes(const struct engine *e, struct attn_rotary *a)
{
    a->batch_ndim = e->batch_ndim;
    for (int i = 0; i < e->batch_ndim; i++)
        a->batch_shape[i] = e->batch_shape[i];
    a->batch = e->batch;
    a->heads = e->size['h' - 'a'];
    a->length = e->size['l' - 'a'];
    a->head_dim = e->size['d' - 'a'];
}

/* cos and sin, (B.., P, rotary_dim / 2 or rotary_dim); their leading axes broadcast to the batch. */
static bool
bind_tables(struct engine *e, PyObject *const *arguments, bool interleaved, struct attn_rotary *a)
{
    const struct engine_operand *of = e->function->operands;
    PyArrayObject *cosine = take_table(e, "cos", arguments[1]), *sine = cosine ? take_table(e, "sin", arguments[2]) : NULL;
    bool wide;
    if (!sine)
        return false;
    int ndim = PyArray_NDIM(cosine);
    bool same = ndim == PyArray_NDIM(sine);
    for (int i = 0; same && i < ndim; i++)
        same = PyArray_DIM(cosine, i) == PyArray_DIM(sine, i);
    if (!same)
        return engine_shape_error("sin", sine, "it must have that of cos");
    if (!bind_columns(cosine, arguments[5], interleaved, a, &wide))
        return false;
    *engine_size(e, 'p') = PyArray_DIM(cosine, ndim - 2);
    *engine_size(e, 'c') = PyArray_DIM(cosine, ndim - 1);
    return (!wide || (positions_check_twice("cos", cosine, interleaved) && positions_check_twice("sin", sine, interleaved))) &&
           engine_broadcast(e, &of[COSINE], cosine, &a->cosine) && engine_broadcast(e, &of[SINE], sine, &a->sine);
}

/* Integers that broadcast to (B.., L): each must be a row of the tables. None: token i is at position i. */
static bool
bind_positions(struct engine *e, PyObject *object, struct attn_rotary *a)
{
    int64_t rows = *engine_size(e, 'p');
    if (object == Py_None) {
        if (a->length <= rows)
            return true;
        PyErr_Format(PyExc_ValueError, "cos has %lld rows, too few for %lld positions", (long long)rows, (long long)a->length);
        return false;
    }
    PyArrayObject *array = engine_integers(e, "positions", object);
    if (!array || !engine_broadcast(e, &e->function->operands[POSITIONS], array, &a->positions))
        return false;
    const int64_t *position = PyArray_DATA(array);
    for (npy_intp i = 0; i < PyArray_SIZE(array); i++)
        if (position[i] < 0 || position[i] >= rows) {
            PyErr_Format(PyExc_ValueError, "positions holds %lld; each must be in 0 ... %lld, the rows of cos", (long long)position[i],
                         (long long)rows - 1);
            return false;
        }
    a->positions.type = ATTN_INT64;
    return true;
}

/* A result that lies exactly where x does is turned in place: then x is no input that it must not touch. */
static bool
bind_result(struct engine *e, PyObject *out, struct attn_rotary *a)
{
    PyArrayObject *x = e->operand[X], *given = (PyArrayObject *)out;
    if (PyTuple_Check(out) && PyTuple_Size(out) == 1)
        given = (PyArrayObject *)PyTuple_GetItem(out, 0);
    bool same = PyArray_Check((PyObject *)given) && PyArray_BYTES(given) == PyArray_BYTES(x) && PyArray_NDIM(given) == PyArray_NDIM(x);
    for (int i = 0; same && i < PyArray_NDIM(x); i++)
        same = PyArray_STRIDE(given, i) == PyArray_STRIDE(x, i);
    if (same)
        e->input[0] = e->input[--e->inputs];
    return engine_outputs(e, out, 1, a);
}

static PyObject *
call_rotary(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_rotary a;
    struct engine e;
    bool interleaved = false;
    (void)module;
    bool done = engine_open(&e, &rotary, arguments, n, &a) && engine_flag("interleaved", arguments[4], &interleaved) &&
                engine_flag("inverse", arguments[6], &a.inverse);
    if (done)
        bind_sizes(&e, &a);
    done = done && bind_tables(&e, arguments, interleaved, &a) && bind_positions(&e, arguments[3], &a) && bind_result(&e, arguments[7], &a) &&
           engine_run(&e, &a);
    return engine_close(&e, done);
}

static PyMethodDef methods[] = {FAST_METHOD("rotary_embedding", call_rotary), {0}};

static const struct engine_function *const functions[] = {&rotary, NULL};

const struct family attn_positions_rotary_family = {methods, functions};
