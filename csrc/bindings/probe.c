/* probe.c: what the machine can do, for benchmarks, and the elementary functions, for tests. */
#include "families.h"

#include "../kernels/probe.h"

static bool
is_double(PyObject *name, int *real)
{
    *real = PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, "float64") == 0;
    if (*real || (PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, "float32") == 0))
        return true;
    PyErr_Format(PyExc_ValueError, "dtype is %R; it must be 'float32' or 'float64'", name);
    return false;
}

static PyObject *
fma_peak(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    int real;
    int64_t rounds;
    double done;
    (void)module;
    if (!engine_argument_count("fma_peak", 2, n) || !is_double(arguments[0], &real) || !engine_integer("rounds", arguments[1], &rounds))
        return NULL;
    Py_BEGIN_ALLOW_THREADS done = engine_kernels->fma_peak[real](rounds);
    Py_END_ALLOW_THREADS return PyFloat_FromDouble(done);
}

static PyObject *
tile_ceiling(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    int real;
    int64_t head_dim, rounds;
    double done;
    (void)module;
    if (!engine_argument_count("tile_ceiling", 3, n) || !is_double(arguments[0], &real) || !engine_integer("head_dim", arguments[1], &head_dim) ||
        !engine_integer("rounds", arguments[2], &rounds))
        return NULL;
    Py_BEGIN_ALLOW_THREADS done = engine_kernels->tile_ceiling[real](head_dim, rounds);
    Py_END_ALLOW_THREADS return PyFloat_FromDouble(done);
}

static PyObject *
read_bandwidth(PyObject *module, PyObject *object)
{
    (void)module;
    if (!PyArray_Check(object) || PyArray_DESCR((PyArrayObject *)object)->type_num != NPY_UINT8 ||
        !PyArray_IS_C_CONTIGUOUS((PyArrayObject *)object)) {
        PyErr_SetString(PyExc_TypeError, "read_bandwidth takes a contiguous array of uint8");
        return NULL;
    }
    PyArrayObject *array = (PyArrayObject *)object;
    double done;
    Py_BEGIN_ALLOW_THREADS done = engine_kernels->read(PyArray_BYTES(array), PyArray_SIZE(array));
    Py_END_ALLOW_THREADS return PyFloat_FromDouble(done);
}

static bool
is_vector(PyObject *object, int type_num)
{
    return PyArray_Check(object) && PyArray_DESCR((PyArrayObject *)object)->type_num == type_num && PyArray_NDIM((PyArrayObject *)object) == 1 &&
           PyArray_ISCARRAY_RO((PyArrayObject *)object);
}

static PyObject *
elementary(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    static const char *const names[] = {"exp2", "exp2_weight", "exp", "log", "tanh", "upper_tail", "logistic", "float16", "bfloat16"};
    const int known = sizeof names / sizeof *names;
    int what = 0;
    (void)module;
    if (!engine_argument_count("elementary", 3, n))
        return NULL;
    while (what < known && !(PyUnicode_Check(arguments[0]) && PyUnicode_CompareWithASCIIString(arguments[0], names[what]) == 0))
        what++;
    int real = is_vector(arguments[1], NPY_DOUBLE), type_num = real ? NPY_DOUBLE : NPY_FLOAT;
    if (what == known || !is_vector(arguments[1], type_num) || !is_vector(arguments[2], type_num) ||
        !PyArray_ISWRITEABLE((PyArrayObject *)arguments[2]) ||
        PyArray_SIZE((PyArrayObject *)arguments[1]) != PyArray_SIZE((PyArrayObject *)arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "elementary takes a function's name, x and out: contiguous vectors of float32 or float64, of one length");
        return NULL;
    }
    PyArrayObject *x = (PyArrayObject *)arguments[1], *out = (PyArrayObject *)arguments[2];
    Py_BEGIN_ALLOW_THREADS engine_kernels->elementary[real]((enum attn_elementary)what, PyArray_DATA(x), PyArray_DATA(out), PyArray_SIZE(x));
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    FAST_METHOD("fma_peak", fma_peak),
    FAST_METHOD("tile_ceiling", tile_ceiling),
    {"read_bandwidth", read_bandwidth, METH_O, NULL},
    FAST_METHOD("elementary", elementary),
    {0},
};

static const struct engine_function *const functions[] = {NULL};

const struct family attn_probe_family = {methods, functions};
