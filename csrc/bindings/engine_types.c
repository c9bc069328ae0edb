/* engine_types.c: from any object to an array, and what its elements are. */
#include "engine.h"

#include <fenv.h>
#include <string.h>

/* ml_dtypes' bfloat16 has no fixed number: it is recognised by name once, and by its number from then on. */
static atomic_int bfloat16_number = -1;

static bool
is_bfloat16(const PyArray_Descr *descr)
{
    int known = atomic_load_explicit(&bfloat16_number, memory_order_relaxed);
    if (descr->type_num < NPY_USERDEF || known >= 0)
        return descr->type_num == known;
    PyObject *name = PyDataType_ELSIZE(descr) == 2 ? PyType_GetName(descr->typeobj) : NULL;
    bool same = name && PyUnicode_CompareWithASCIIString(name, "bfloat16") == 0;
    Py_XDECREF(name);
    PyErr_Clear();
    if (same)
        atomic_store_explicit(&bfloat16_number, descr->type_num, memory_order_relaxed);
    return same;
}

/* Whether kernels can read the elements as they are. */
bool
engine_stored_type(PyArrayObject *array, enum attn_type *type)
{
    const PyArray_Descr *descr = PyArray_DESCR(array);
    switch (descr->type_num) {
    case NPY_FLOAT:
        *type = ATTN_FLOAT32;
        return true;
    case NPY_DOUBLE:
        *type = ATTN_FLOAT64;
        return true;
    case NPY_HALF:
        *type = ATTN_FLOAT16;
        return true;
    case NPY_BOOL:
        *type = ATTN_BOOL;
        return true;
    default:
        *type = ATTN_BFLOAT16;
        return is_bfloat16(descr);
    }
}

bool
engine_is_integer(PyArrayObject *array)
{
    return PyTypeNum_ISINTEGER(PyArray_DESCR(array)->type_num);
}

PyArray_Descr *
engine_descr(enum attn_type type)
{
    static const int number[] = {[ATTN_FLOAT32] = NPY_FLOAT, [ATTN_FLOAT64] = NPY_DOUBLE, [ATTN_FLOAT16] = NPY_HALF,
                                 [ATTN_BFLOAT16] = 0,        [ATTN_BOOL] = NPY_BOOL,      [ATTN_INT64] = NPY_INT64};
    return PyArray_DescrFromType(type == ATTN_BFLOAT16 ? atomic_load_explicit(&bfloat16_number, memory_order_relaxed) : number[type]);
}

/* A masked array's mask would be ignored: refused. Whoever has one has imported numpy.ma. Returns -1 on error. */
int
engine_is_masked(PyObject *object)
{
    PyObject *name = PyUnicode_FromString("numpy.ma");
    PyObject *module = name ? PyImport_GetModule(name) : NULL;
    Py_XDECREF(name);
    if (!module)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *type = PyObject_GetAttrString(module, "MaskedArray");
    int masked = type ? PyObject_IsInstance(object, type) : -1;
    Py_XDECREF(type);
    Py_DECREF(module);
    return masked;
}

/* What went wrong, with the argument's name in front; only where NumPy's own message would not say. */
static void
name_the_argument(const char *name)
{
    if (!PyErr_ExceptionMatches(PyExc_ValueError) && !PyErr_ExceptionMatches(PyExc_TypeError))
        return;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *kind = PyErr_GivenExceptionMatches(type, PyExc_TypeError) ? PyExc_TypeError : PyExc_ValueError;
    PyErr_Format(kind, "%s cannot be made an array: %S", name, value ? value : Py_None);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
}

/* np.asarray; a subclass stays itself, since only its memory is read. Borrowed: the call or the caller owns it. NULL also for an operand of another
 * library. */
PyArrayObject *
engine_array(struct engine *e, const char *name, PyObject *object)
{
    if (PyArray_CheckExact(object))
        return (PyArrayObject *)object;
    if (!PyArray_Check(object)) {
        if (!engine_native(e, object))
            return NULL;
        object = PyArray_FromAny(object, NULL, 0, 0, 0, NULL);
        if (!object)
            name_the_argument(name);
        if (!engine_hold(e, object))
            return NULL;
        if (PyArray_CheckExact(object))
            return (PyArrayObject *)object;
    }
    int masked = engine_is_masked(object);
    if (masked > 0)
        PyErr_Format(PyExc_TypeError, "%s is a MaskedArray, whose mask would be ignored: pass %s", name, e->function->instead);
    return masked == 0 ? (PyArrayObject *)object : NULL;
}

/* A C-contiguous native copy of another type. */
PyArrayObject *
engine_cast(struct engine *e, PyArrayObject *array, int type_num)
{
    fenv_t environment; /* the caller's flags, which NumPy clears, and rounding mode */
    feholdexcept(&environment);
    fesetround(FE_TONEAREST);
    PyObject *cast = PyArray_FromArray(array, PyArray_DescrFromType(type_num), NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST | NPY_ARRAY_ENSUREARRAY);
    fesetenv(&environment);
    return engine_hold(e, cast) ? (PyArrayObject *)cast : NULL;
}

/* An array of numbers in a type that kernels can read: integers become float64. NULL with a TypeError for what is not a real number. */
PyArrayObject *
engine_numbers(struct engine *e, const char *name, PyArrayObject *array)
{
    enum attn_type type;
    if (engine_stored_type(array, &type) && type != ATTN_BOOL)
        return array;
    if (engine_is_integer(array) || PyArray_DESCR(array)->type_num == NPY_BOOL)
        return engine_cast(e, array, NPY_DOUBLE);
    PyErr_Format(PyExc_TypeError, "%s has dtype %S; it must be float16, bfloat16, float32, float64, integer or bool", name, PyArray_DESCR(array));
    return NULL;
}

/* Numbers in the type computed in, native and aligned. What is finite stays finite, and no warning is raised. */
PyArrayObject *
engine_to_compute(struct engine *e, PyArrayObject *array)
{
    int wanted = e->compute == ATTN_FLOAT32 ? NPY_FLOAT : NPY_DOUBLE;
    if (PyArray_DESCR(array)->type_num == wanted && PyArray_ISBEHAVED_RO(array))
        return array;
    if (wanted == NPY_DOUBLE || PyArray_DESCR(array)->type_num != NPY_DOUBLE)
        return engine_cast(e, array, wanted);
    PyArrayObject *wide = engine_cast(e, array, NPY_DOUBLE);
    PyObject *narrow = wide ? PyArray_SimpleNew(PyArray_NDIM(wide), PyArray_DIMS(wide), NPY_FLOAT) : NULL;
    if (!engine_hold(e, narrow))
        return NULL;
    const double *from = PyArray_DATA(wide);
    float *to = PyArray_DATA((PyArrayObject *)narrow);
    fenv_t environment;
    feholdexcept(&environment);
    fesetround(FE_TONEAREST);
    for (npy_intp i = 0; i < PyArray_SIZE(wide); i++) {
        double x = from[i], most = __FLT_MAX__;
        to[i] = (float)(x - x != 0 ? x : x > most ? most : x < -most ? -most : x);
    }
    fesetenv(&environment);
    return (PyArrayObject *)narrow;
}

/* The type computed in and that of the results, from the operands that decide; arrays[i] is replaced where it must be converted. */
bool
engine_common_type(struct engine *e, const char *const *names, PyArrayObject **arrays, Py_ssize_t n)
{
    bool seen[ATTN_INT64 + 1] = {false};
    Py_ssize_t half = -1;
    for (Py_ssize_t i = 0; i < n; i++) {
        enum attn_type type = ATTN_FLOAT64;
        if (!(arrays[i] = engine_numbers(e, names[i], arrays[i])) || !engine_stored_type(arrays[i], &type))
            return false;
        seen[type] = true;
        if (seen[ATTN_FLOAT16] && seen[ATTN_BFLOAT16]) {
            PyErr_Format(PyExc_TypeError, "%s has dtype %S and %s %S; float16 and bfloat16 do not mix", names[i], PyArray_DESCR(arrays[i]),
                         names[half], PyArray_DESCR(arrays[half]));
            return false;
        }
        if (half < 0 && (type == ATTN_FLOAT16 || type == ATTN_BFLOAT16))
            half = i;
    }
    e->compute = seen[ATTN_FLOAT64] ? ATTN_FLOAT64 : ATTN_FLOAT32;
    e->stored = seen[ATTN_FLOAT64] || seen[ATTN_FLOAT32] ? e->compute : seen[ATTN_FLOAT16] ? ATTN_FLOAT16 : ATTN_BFLOAT16;
    return true;
}
