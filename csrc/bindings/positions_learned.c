/* positions_learned.c: add_positions, interpolate_positions, interpolate_positions_2d and their gradients. */
#include "families.h"

#include "../kernels/positions_learned.h"

enum { X, TABLE, OFFSET, OUT }; /* places in a call of add_positions and its gradient */

#define OPERANDS(NAME)                                                                                          \
    .operands = {{NAME, ENGINE_DATA, X, ".ld", 0, offsetof(struct attn_add_positions, x), 0, false},            \
                 {"table", ENGINE_ADDED, TABLE, ".nd", 0, offsetof(struct attn_add_positions, table), 0, true}, \
                 {"offset", ENGINE_OFFSETS, OFFSET, "...", 0, offsetof(struct attn_add_positions, offset), 0, true}}

static const struct engine_function add = {
    .name = "add_positions",
    .signature = "(l,d),(n,d)->(l,d)",
    .arguments = 4,
    .instead = "its data",
    .kernel = offsetof(struct attn_kernels, add_positions),
    OPERANDS("x"),
    .outputs = {{"the sum", ".ld", false, offsetof(struct attn_add_positions, y)}},
};

static const struct engine_function add_backward = {
    .name = "add_positions_backward",
    .signature = "(l,d),(n,d)->(n,d)",
    .arguments = 4,
    .instead = "its data",
    .kernel = offsetof(struct attn_kernels, add_positions),
    OPERANDS("grad_output"),
    .outputs = {{"table", ".nd", false, offsetof(struct attn_add_positions, y)}},
};

/* Tables: their rows, as many features as the tokens have, and every offset within them. */
static bool
take_table(struct engine *e, PyObject *const *arguments, struct attn_add_positions *a)
{
    const struct engine_operand *operands = e->function->operands;
    PyArrayObject *table = engine_array(e, "table", arguments[TABLE]);
    if (!table || !(table = engine_numbers(e, "table", table)))
        return false;
    int64_t dim = *engine_size(e, 'd'), length = *engine_size(e, 'l');
    if (PyArray_NDIM(table) < 2 || PyArray_DIM(table, PyArray_NDIM(table) - 1) != dim)
        return engine_shape_error("table", table, "it must have at least 2 axes, and the last must be %lld, as in %s", (long long)dim,
                                  operands[X].name);
    a->table_rows = *engine_size(e, 'n') = PyArray_DIM(table, PyArray_NDIM(table) - 2);
    if (!engine_take(e, &operands[TABLE], (PyObject *)table, &a->table) || !engine_take(e, &operands[OFFSET], arguments[OFFSET], &a->offset))
        return false;
    const int64_t *offset = (const int64_t *)a->offset.data;
    PyArrayObject *offsets = (PyArrayObject *)e->hold[e->held - 1]; /* what engine_take made of it */
    for (npy_intp i = 0; i < PyArray_SIZE(offsets); i++)
        if (offset[i] < 0 || offset[i] > a->table_rows - length) {
            PyErr_Format(PyExc_ValueError, "offset holds %lld; with %lld tokens a table of %lld rows needs each in 0 ... %lld", (long long)offset[i],
                         (long long)length, (long long)a->table_rows, (long long)(a->table_rows - length));
            return false;
        }
    return true;
}

static bool
open_add(struct engine *e, const struct engine_function *function, PyObject *const *arguments, Py_ssize_t n, struct attn_add_positions *a)
{
    if (!engine_open(e, function, arguments, n, a) || !take_table(e, arguments, a))
        return false;
    a->batch_ndim = e->batch_ndim;
    a->batch = e->batch;
    for (int i = 0; i < e->batch_ndim; i++)
        a->batch_shape[i] = e->batch_shape[i];
    a->length = *engine_size(e, 'l');
    a->dim = *engine_size(e, 'd');
    return true;
}

static PyObject *
only_entry(PyObject *out)
{
    return PyTuple_Check(out) && PyTuple_Size(out) == 1 ? PyTuple_GetItem(out, 0) : out;
}

/* Whether the result may be written over x as the kernel goes: the same elements, and no other operand there. */
static bool
lies_on_x(const struct engine *e, PyObject *out)
{
    PyArrayObject *x = e->operand[X], *array = (PyArrayObject *)out;
    bool same = PyArray_Check(out) && PyArray_BYTES(array) == PyArray_BYTES(x) && PyArray_NDIM(array) == PyArray_NDIM(x);
    for (int i = 0; same && i < PyArray_NDIM(x); i++)
        same = PyArray_STRIDE(array, i) == PyArray_STRIDE(x, i);
    return same;
}

static PyObject *
call_add(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_add_positions a = {.backward = false};
    struct engine e;
    (void)module;
    bool done = open_add(&e, &add, arguments, n, &a);
    if (done) {
        PyObject *out = only_entry(arguments[OUT]);
        bool over_x = lies_on_x(&e, out), apart = true;
        if (over_x) { /* then only the table is in the way */
            PyArrayObject *x = e.input[0];
            e.input[0] = e.input[--e.inputs];
            apart = engine_result(&e, 0, "out", out, e.stored, PyArray_NDIM(x), PyArray_DIMS(x), false);
        } else
            apart = engine_outputs(&e, out, 1, &a);
        if ((done = apart) && over_x)
            engine_tensor(&e, ".ld", e.result[0].target, &a.y);
    }
    return engine_close(&e, done && engine_run(&e, &a));
}

static PyObject *
call_add_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_add_positions a = {.backward = true};
    struct engine e;
    (void)module;
    bool done = open_add(&e, &add_backward, arguments, n, &a) && engine_gradient(&e, 0, TABLE, only_entry(arguments[OUT]), false, &a);
    return engine_close(&e, done && engine_run(&e, &a));
}

#define INTERPOLATION(NAME, OPERAND, ARGUMENTS)                                                                                   \
    {                                                                                                                             \
        .name = NAME, .signature = "(n,d)->(m,d)", .arguments = ARGUMENTS, .instead = "its data",                                 \
        .kernel = offsetof(struct attn_kernels, interpolate_positions),                                                           \
        .operands = {{OPERAND, ENGINE_DATA, 0, ".nd", 0, offsetof(struct attn_interpolate_positions, x), 0, false}}, .outputs = { \
            {"the table", ".md", false, offsetof(struct attn_interpolate_positions, y)}                                           \
        }                                                                                                                         \
    }

static const struct engine_function line = INTERPOLATION("interpolate_positions", "table", 3),
                                    line_backward = INTERPOLATION("interpolate_positions_backward", "grad_output", 3),
                                    grid = INTERPOLATION("interpolate_positions_2d", "table", 5),
                                    grid_backward = INTERPOLATION("interpolate_positions_2d_backward", "grad_output", 5);

static const int64_t most_points = (int64_t)1 << 30; /* of an axis: products of two fit in 64 bits */

static bool
take_count(const char *name, PyObject *object, int64_t *count)
{
    if (!engine_integer(name, object, count))
        return false;
    if (*count < 0 || *count > most_points)
        PyErr_Format(PyExc_ValueError, "%s is %lld; it must be in 0 ... 2**30", name, (long long)*count);
    return *count >= 0 && *count <= most_points;
}

/* (rows, columns) */
static bool
take_grid(const char *name, PyObject *object, int64_t *size)
{
    if (!PyTuple_Check(object) && !PyList_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s must be a pair of integers (rows, columns), not %R", name, object);
        return false;
    }
    if (PySequence_Size(object) != 2) {
        PyErr_Format(PyExc_ValueError, "%s is %R; it must be a pair of integers (rows, columns)", name, object);
        return false;
    }
    for (int i = 0; i < 2; i++) {
        PyObject *item = PySequence_GetItem(object, i);
        bool right = item && take_count(name, item, &size[i]);
        Py_XDECREF(item);
        if (!right)
            return false;
    }
    return true;
}

/* The sizes of both grids; that of the operand is checked, that of the result becomes its axis. */
static bool
fit_grids(struct engine *e, struct attn_interpolate_positions *a)
{
    const int64_t *own = a->transposed ? a->to : a->from, *others = a->transposed ? a->from : a->to;
    const char *name = e->function->operands[0].name;
    int64_t rows = own[0] * own[1], result;
    if (own[0] > 0 && (rows / own[0] != own[1] || rows + a->prefix < 0))
        rows = -1;
    if (*engine_size(e, 'n') != rows + a->prefix || rows < 0)
        return engine_shape_error(name, e->operand[0], "its axis -2 must be %lld x %lld grid points after %lld prefix tokens", (long long)own[0],
                                  (long long)own[1], (long long)a->prefix);
    if (a->from[0] * a->from[1] == 0 && a->to[0] * a->to[1] > 0)
        return engine_shape_error(name, e->operand[0], "nothing can be interpolated from no position");
    if (!engine_product("the table", 2, others, 1, &result))
        return false;
    *engine_size(e, 'm') = result + a->prefix;
    return true;
}

static PyObject *
finish_interpolation(struct engine *e, bool opened, PyObject *out, struct attn_interpolate_positions *a)
{
    bool done = opened && fit_grids(e, a);
    if (done) {
        a->batch_ndim = e->batch_ndim;
        a->batch = e->batch;
        for (int i = 0; i < e->batch_ndim; i++)
            a->batch_shape[i] = e->batch_shape[i];
        a->dim = *engine_size(e, 'd');
        done = engine_outputs(e, out, 1, a) && engine_run(e, a);
    }
    return engine_close(e, done);
}

static PyObject *
interpolate_line(const struct engine_function *function, bool transposed, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_interpolate_positions a = {.from = {1, 0}, .to = {1, 0}, .transposed = transposed};
    struct engine e;
    bool opened = engine_open(&e, function, arguments, n, &a) && take_count("length", arguments[1], transposed ? &a.from[1] : &a.to[1]);
    if (opened)
        *(transposed ? &a.to[1] : &a.from[1]) = *engine_size(&e, 'n');
    return finish_interpolation(&e, opened, n > 2 ? arguments[2] : Py_None, &a);
}

static PyObject *
interpolate_grid(const struct engine_function *function, bool transposed, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_interpolate_positions a = {.cubic = true, .transposed = transposed};
    struct engine e;
    bool opened = engine_open(&e, function, arguments, n, &a) && take_grid("from_grid", arguments[1], a.from) &&
                  take_grid("to_grid", arguments[2], a.to) && take_count("num_prefix_tokens", arguments[3], &a.prefix);
    return finish_interpolation(&e, opened, n > 4 ? arguments[4] : Py_None, &a);
}

static PyObject *
call_line(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return interpolate_line(&line, false, arguments, n);
}

static PyObject *
call_line_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return interpolate_line(&line_backward, true, arguments, n);
}

static PyObject *
call_grid(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return interpolate_grid(&grid, false, arguments, n);
}

static PyObject *
call_grid_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return interpolate_grid(&grid_backward, true, arguments, n);
}

static PyMethodDef methods[] = {FAST_METHOD("add_positions", call_add),
                                FAST_METHOD("add_positions_backward", call_add_backward),
                                FAST_METHOD("interpolate_positions", call_line),
                                FAST_METHOD("interpolate_positions_backward", call_line_backward),
                                FAST_METHOD("interpolate_positions_2d", call_grid),
                                FAST_METHOD("interpolate_positions_2d_backward", call_grid_backward),
                                {0}};

static const struct engine_function *const functions[] = {&add, &add_backward, &line, &line_backward, &grid, &grid_backward, NULL};

const struct family attn_learned_family = {methods, functions};
