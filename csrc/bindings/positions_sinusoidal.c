/* positions_sinusoidal.c: sinusoidal_encoding and sinusoidal_encoding_2d. */
#include "families.h"

#include "../kernels/positions_sinusoidal.h"

#define ROW(NAME, SIGNATURE, ARGUMENTS)                                                                                                           \
    {                                                                                                                                             \
        .name = NAME, .signature = SIGNATURE, .arguments = ARGUMENTS, .instead = "its data", .kernel = offsetof(struct attn_kernels, sinusoidal), \
        .outputs = {                                                                                                                              \
            {"the encoding", "..d", false, offsetof(struct attn_sinusoidal, y)}                                                                   \
        }                                                                                                                                         \
    }

static const struct engine_function encoding = ROW("sinusoidal_encoding", "()->(d)", 7),
                                    encoding_2d = ROW("sinusoidal_encoding_2d", "(h),(w)->(h,w,d)", 9);

/* An integer n stands for the positions 0 ... n - 1, which need no array; else *array holds them. */
static bool
take_positions(struct engine *e, const char *name, PyObject *object, PyArrayObject **array, int64_t *length)
{
    *array = NULL;
    if (PyLong_Check(object) || PyArray_IsScalar(object, Integer)) {
        if (!engine_integer(name, object, length))
            return false;
        if (*length < 0)
            PyErr_Format(PyExc_ValueError, "%s is %lld; a number of positions must not be negative", name, (long long)*length);
        return *length >= 0;
    }
    return (*array = engine_array(e, name, object)) && (*array = engine_numbers(e, name, *array));
}

/* The stored type: as asked for, else that of out, else float32. */
static bool
take_type(struct engine *e, PyObject *object, PyObject *out)
{
    PyArray_Descr *descr = NULL;
    e->compute = ATTN_FLOAT64;
    e->stored = ATTN_FLOAT32;
    if (object == Py_None) {
        enum attn_type own;
        if (PyArray_Check(out) && engine_stored_type((PyArrayObject *)out, &own) && own != ATTN_BOOL)
            e->stored = own;
        return true;
    }
    if (!PyArray_DescrConverter(object, &descr))
        return false;
    PyArrayObject *empty = (PyArrayObject *)PyArray_Zeros(1, (npy_intp[]){0}, descr, 0);
    bool known = empty && engine_stored_type(empty, &e->stored) && e->stored != ATTN_BOOL && !PyArray_ISBYTESWAPPED(empty);
    if (empty && !known)
        PyErr_Format(PyExc_TypeError, "dtype is %S; it must be float16, bfloat16, float32 or float64", PyArray_DESCR(empty));
    Py_XDECREF((PyObject *)empty);
    return known;
}

/* The last arguments of both functions: dim, base, concatenated, half_minus_one. */
static bool
take_formula(struct attn_sinusoidal *a, PyObject *const *arguments)
{
    if (!engine_integer("dim", arguments[0], &a->dim) || !engine_finite("base", arguments[1], &a->base) ||
        !engine_flag("layout", arguments[2], &a->concatenated) || !engine_flag("denominator", arguments[3], &a->half_minus_one))
        return false;
    bool even = a->parts == 1 || a->dim % 2 == 0;
    if (a->dim < 1 || !even)
        PyErr_Format(PyExc_ValueError, even ? "dim is %lld; it must be at least 1" : "dim is %lld; it must be even, half of it for each axis",
                     (long long)a->dim);
    else if (!(a->base >= 1e-100 && a->base <= 1e100))
        PyErr_Format(PyExc_ValueError, "base is %S; it must be positive, within 1e-100 ... 1e100", arguments[1]);
    else
        return true;
    return false;
}

/* A part's positions lie along axes first ... first + their number - 1 of the rows. */
static void
bind_positions(struct engine *e, PyArrayObject *array, int first, int axes, struct attn_sinusoidal *a, int part)
{
    struct attn_tensor *t = &a->positions[part];
    struct engine flat = {.batch_ndim = axes};
    struct attn_tensor own = {.batch = {1}};
    if (array) {
        engine_tensor(&flat, "...", array, &own);
        e->input[e->inputs++] = array;
    }
    *t = own;
    for (int i = 0; i < a->ndim; i++)
        t->batch[i] = i >= first && i < first + axes ? own.batch[i - first] : 0;
}

static bool
run(struct engine *e, PyObject *out, int64_t features, struct attn_sinusoidal *a)
{
    int64_t shape[NPY_MAXDIMS + 1];
    if (a->ndim == NPY_MAXDIMS) {
        PyErr_Format(PyExc_ValueError, "positions has %d axes; the encoding would have one more than NumPy can", NPY_MAXDIMS);
        return false;
    }
    for (int i = 0; i < a->ndim; i++)
        shape[i] = a->shape[i];
    shape[a->ndim] = features;
    if (PyTuple_Check(out) && PyTuple_Size(out) == 1)
        out = PyTuple_GetItem(out, 0);
    e->batch_ndim = a->ndim;
    if (!engine_result(e, 0, "out", out, e->stored, a->ndim + 1, shape, false))
        return false;
    engine_tensor(e, "..d", e->result[0].target, &a->y);
    if (a->ndim == 0) { /* one position: a line of one row */
        a->ndim = 1;
        a->shape[0] = 1;
        a->y.batch[0] = a->positions[0].batch[0] = 0;
    }
    return engine_run(e, a);
}

static PyObject *
call_encoding(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_sinusoidal a = {.parts = 1};
    struct engine e;
    PyArrayObject *positions;
    (void)module;
    engine_start(&e, &encoding, arguments, n);
    bool done = engine_argument_count(encoding.name, encoding.arguments, n) && take_positions(&e, "positions", arguments[0], &positions, a.shape) &&
                take_formula(&a, arguments + 1) && take_type(&e, arguments[5], arguments[6]);
    if (done) {
        a.ndim = positions ? PyArray_NDIM(positions) : 1;
        for (int i = 0; positions && i < a.ndim; i++)
            a.shape[i] = PyArray_DIM(positions, i);
        bind_positions(&e, positions, 0, a.ndim, &a, 0);
        done = run(&e, arguments[6], a.dim, &a);
    }
    return engine_close(&e, done);
}

static bool
take_axis(struct engine *e, const char *name, PyObject *object, PyArrayObject **array, int64_t *length)
{
    if (!take_positions(e, name, object, array, length))
        return false;
    if (*array && PyArray_NDIM(*array) != 1)
        return engine_shape_error(name, *array, "it must have one axis, or be an integer");
    if (*array)
        *length = PyArray_DIM(*array, 0);
    return true;
}

static PyObject *
call_encoding_2d(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_sinusoidal a = {.parts = 2, .ndim = 2};
    struct engine e;
    PyArrayObject *rows = NULL, *columns = NULL;
    bool columns_first = false;
    (void)module;
    engine_start(&e, &encoding_2d, arguments, n);
    bool done = engine_argument_count(encoding_2d.name, encoding_2d.arguments, n) && take_axis(&e, "rows", arguments[0], &rows, &a.shape[0]) &&
                take_axis(&e, "columns", arguments[1], &columns, &a.shape[1]) && take_formula(&a, arguments + 2) &&
                engine_flag("order", arguments[6], &columns_first) && take_type(&e, arguments[7], arguments[8]);
    if (done) {
        bind_positions(&e, rows, 0, 1, &a, columns_first);
        bind_positions(&e, columns, 1, 1, &a, !columns_first);
        a.dim /= 2;
        done = run(&e, arguments[8], 2 * a.dim, &a);
    }
    return engine_close(&e, done);
}

static PyMethodDef methods[] = {FAST_METHOD("sinusoidal_encoding", call_encoding), FAST_METHOD("sinusoidal_encoding_2d", call_encoding_2d), {0}};

static const struct engine_function *const functions[] = {&encoding, &encoding_2d, NULL};

const struct family attn_sinusoidal_family = {methods, functions};
