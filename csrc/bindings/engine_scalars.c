/* engine_scalars.c: numbers and flags among the arguments. */
#include "engine.h"

#include <math.h>

/* A real number; bools, arrays with axes and complex numbers are none. */
bool
engine_real(const char *name, PyObject *object, double *value)
{
    if (PyFloat_CheckExact(object)) {
        *value = PyFloat_AsDouble(object);
        return true;
    }
    bool array = PyArray_Check(object) && (PyArray_NDIM((PyArrayObject *)object) > 0 || PyArray_ISCOMPLEX((PyArrayObject *)object));
    if (array || PyBool_Check(object) || PyComplex_Check(object) || PyArray_IsScalar(object, ComplexFloating)) {
        PyErr_Format(PyExc_TypeError, "%s must be a real number, not %R", name, object);
        return false;
    }
    *value = PyFloat_AsDouble(object);
    if (*value != -1 || !PyErr_Occurred())
        return true;
    if (PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_Format(PyExc_ValueError, "%s is too large for a float", name);
    else if (PyErr_ExceptionMatches(PyExc_TypeError))
        PyErr_Format(PyExc_TypeError, "%s must be a real number, not %R", name, object);
    return false;
}

bool
engine_finite(const char *name, PyObject *object, double *value)
{
    if (!engine_real(name, object, value))
        return false;
    if (!isfinite(*value))
        PyErr_Format(PyExc_ValueError, "%s is %S; it must be finite", name, object);
    return isfinite(*value);
}

/* True, False, NumPy's bools, 0 or 1. */
bool
engine_flag(const char *name, PyObject *object, bool *value)
{
    *value = object == Py_True;
    if (PyBool_Check(object))
        return true;
    if (PyArray_IsScalar(object, Bool) || PyLong_Check(object)) {
        int truth = PyObject_IsTrue(object);
        *value = truth > 0;
        return truth >= 0;
    }
    PyErr_Format(PyExc_TypeError, "%s must be True or False, not %R", name, object);
    return false;
}

/* One integer; beyond 64 bits the nearest that they hold. */
bool
engine_integer(const char *name, PyObject *object, int64_t *value)
{
    int overflow = 0;
    PyObject *number = PyBool_Check(object) ? NULL : PyNumber_Index(object);
    if (!number) {
        PyErr_Format(PyExc_TypeError, "%s must be an integer, not %R", name, object);
        return false;
    }
    *value = PyLong_AsLongLongAndOverflow(number, &overflow);
    Py_DECREF(number);
    if (overflow)
        *value = overflow > 0 ? INT64_MAX : INT64_MIN;
    return *value != -1 || !PyErr_Occurred();
}

/* None, w for (w, w), or (left, right). Keys farther away than 2^62 do not exist. */
bool
engine_window(PyObject *object, int64_t *left, int64_t *right)
{
    static const char name[] = "window_size";
    const int64_t widest = (int64_t)1 << 62;
    *left = *right = -1;
    if (object == Py_None)
        return true;
    bool pair = PyTuple_Check(object) || PyList_Check(object) || (PyArray_Check(object) && PyArray_NDIM((PyArrayObject *)object) == 1);
    if (!pair) {
        if (!engine_integer(name, object, left))
            return false;
        *right = *left;
    } else {
        Py_ssize_t n = PySequence_Size(object);
        if (n != 2) {
            PyErr_Format(PyExc_ValueError, "window_size has %zd entries; it must be an integer or a pair (left, right)", n);
            return false;
        }
        for (int i = 0; i < 2; i++) {
            PyObject *item = PySequence_GetItem(object, i);
            bool right_type = item && engine_integer(name, item, i == 0 ? left : right);
            Py_XDECREF(item);
            if (!right_type)
                return false;
        }
    }
    if (*left < -1 || *right < -1) {
        PyErr_Format(PyExc_ValueError, "window_size is %R; it must be at least -1, which is open", object);
        return false;
    }
    *left = attn_min(*left, widest);
    *right = attn_min(*right, widest);
    return true;
}

/* None and 0 are none. */
bool
engine_softcap(PyObject *object, double *value)
{
    *value = 0;
    if (object == Py_None)
        return true;
    if (!engine_finite("softcap", object, value))
        return false;
    if (*value < 0)
        PyErr_Format(PyExc_ValueError, "softcap is %S; it must be positive, or None or 0 for none", object);
    return *value >= 0;
}

/* dropout_p in [0, 1), and the key's four words, which must be there if dropout_p > 0. */
bool
engine_dropout(PyObject *dropout_p, PyObject *dropout_key, double *p, uint32_t *key)
{
    if (!engine_real("dropout_p", dropout_p, p))
        return false;
    if (!(*p >= 0 && *p < 1)) {
        PyErr_Format(PyExc_ValueError, "dropout_p is %S; it must be in [0, 1)", dropout_p);
        return false;
    }
    key[0] = key[1] = key[2] = key[3] = 0;
    if (dropout_key == Py_None && *p == 0)
        return true;
    if (!PyTuple_Check(dropout_key) || PyTuple_Size(dropout_key) != 4) {
        PyErr_SetString(PyExc_TypeError, "dropout_key must be a tuple of four integers below 2**32");
        return false;
    }
    for (int i = 0; i < 4; i++) {
        int64_t word;
        if (!engine_integer("dropout_key", PyTuple_GetItem(dropout_key, i), &word))
            return false;
        if (word < 0 || word > UINT32_MAX) {
            PyErr_Format(PyExc_ValueError, "dropout_key holds %lld; each must be in 0 ... 2**32 - 1", (long long)word);
            return false;
        }
        key[i] = (uint32_t)word;
    }
    return true;
}
