/* engine_operands.c: operands that do not decide the dtype: masks, biases, numbers per head, lengths and offsets. */
#include "engine.h"

#include <fenv.h>
#include <string.h>

/* Beyond every position that can occur; a position this far away less the widest window still fits in 64 bits. */
static const int64_t farthest = (int64_t)1 << 62;

/* A run of n elements, `stride` bytes apart, whose bits are 0, -0 or 1: how far it goes; *ones is set where a 1 was seen. */
#define ZEROS_AND_ONES(name, uint)                                                                                        \
    static npy_intp name(const char *data, npy_intp stride, npy_intp n, uint zero, uint minus_zero, uint one, bool *ones) \
    {                                                                                                                     \
        for (npy_intp i = 0; i < n;) {                                                                                    \
            npy_intp end = i + 256 < n ? i + 256 : n, others = 0, found = 0;                                              \
            for (; i < end; i++) {                                                                                        \
                uint bits;                                                                                                \
                memcpy(&bits, data + i * stride, sizeof bits);                                                            \
                found += bits == one;                                                                                     \
                others += (bits != one) & (bits != zero) & (bits != minus_zero);                                          \
            }                                                                                                             \
            *ones |= found > 0;                                                                                           \
            if (others > 0)                                                                                               \
                return -1;                                                                                                \
        }                                                                                                                 \
        return n;                                                                                                         \
    }
ZEROS_AND_ONES(zeros_and_ones_16, uint16_t)
ZEROS_AND_ONES(zeros_and_ones_32, uint32_t)
ZEROS_AND_ONES(zeros_and_ones_64, uint64_t)
#undef ZEROS_AND_ONES

/* The same over the axes from `axis` on; false at the first other value. Axes of stride 0 are walked once. */
static bool
scan(PyArrayObject *array, enum attn_type type, int axis, const char *data, bool *ones)
{
    static const uint16_t one_16[] = {[ATTN_FLOAT16] = 0x3c00, [ATTN_BFLOAT16] = 0x3f80};
    int ndim = PyArray_NDIM(array);
    bool swapped = PyArray_ISBYTESWAPPED(array);
    npy_intp n = ndim == 0 ? 1 : PyArray_DIM(array, axis), stride = ndim == 0 ? 0 : PyArray_STRIDE(array, axis);
    if (stride == 0 && n > 1)
        n = 1;
    if (axis + 1 < ndim) {
        for (npy_intp i = 0; i < n; i++)
            if (!scan(array, type, axis + 1, data + i * stride, ones))
                return false;
        return true;
    }
    if (type == ATTN_FLOAT32)
        return zeros_and_ones_32(data, stride, n, 0, swapped ? 0x80 : 0x80000000, swapped ? 0x803f : 0x3f800000, ones) == n;
    if (type == ATTN_FLOAT64) {
        uint64_t minus_zero = (uint64_t)1 << 63, one = 0x3ff0000000000000;
        return zeros_and_ones_64(data, stride, n, 0, swapped ? __builtin_bswap64(minus_zero) : minus_zero, swapped ? __builtin_bswap64(one) : one,
                                 ones) == n;
    }
    return zeros_and_ones_16(data, stride, n, 0, swapped ? 0x80 : 0x8000, swapped ? __builtin_bswap16(one_16[type]) : one_16[type], ones) == n;
}

/* Whether a frame belongs to a call on its way here: of this package, or of a library whose arrays it handles. */
static bool
passes_on(PyObject *frame)
{
    static const char *const packages[] = {"attnpy.", "autograd.", "torch."};
    PyObject *globals = PyObject_GetAttrString(frame, "f_globals");
    PyObject *name = globals ? PyDict_GetItemString(globals, "__name__") : NULL, *bytes = name ? PyUnicode_AsUTF8String(name) : NULL;
    const char *text = bytes ? PyBytes_AsString(bytes) : NULL;
    bool passes = false;
    for (int i = 0; text && i < 3; i++)
        passes |= strncmp(text, packages[i], strlen(packages[i])) == 0;
    Py_XDECREF(bytes);
    Py_XDECREF(globals);
    PyErr_Clear();
    return passes;
}

/* How many levels up the line is that called the face, perhaps through a library. */
static Py_ssize_t
level_of_caller(void)
{
    Py_ssize_t level = 1;
    PyObject *frame = (PyObject *)PyEval_GetFrame();
    Py_XINCREF(frame);
    while (frame && frame != Py_None && passes_on(frame)) {
        PyObject *back = PyObject_GetAttrString(frame, "f_back");
        Py_DECREF(frame);
        frame = back;
        level++;
    }
    Py_XDECREF(frame);
    PyErr_Clear();
    return level;
}

/* A floating mask of zeros and ones is nearly always a bool mask that lost its dtype. */
bool
engine_warn_of_zeros_and_ones(const char *name, PyArrayObject *array)
{
    enum attn_type type;
    bool ones = false;
    if (PyArray_SIZE(array) == 0 || !engine_stored_type(array, &type) || type == ATTN_BOOL || !scan(array, type, 0, PyArray_BYTES(array), &ones) ||
        !ones)
        return true;
    char text[160];
    PyOS_snprintf(text, sizeof text, "%s is floating and holds only 0 and 1: it is added to the scores; to hide keys use .astype(bool)", name);
    return PyErr_WarnEx(PyExc_UserWarning, text, level_of_caller()) == 0;
}

static bool
take_mask(struct engine *e, const struct engine_operand *operand, PyObject *object, struct attn_tensor *tensor)
{
    enum attn_type type;
    int blocks = operand->blocks ? engine_is_block_mask(object) : 0;
    if (blocks)
        return blocks > 0 && engine_block_mask(e, operand, object, (struct attn_block_mask *)((char *)tensor - operand->tensor + operand->blocks));
    PyArrayObject *array = engine_array(e, operand->name, object);
    if (!array)
        return false;
    if (operand->kind != ENGINE_MASK) {
        if (!(array = engine_numbers(e, operand->name, array)))
            return false;
    } else if (!engine_stored_type(array, &type)) {
        const char *advice = engine_is_integer(array) ? ": use .astype(bool)" : "";
        PyErr_Format(PyExc_TypeError, "%s has dtype %S; it must be bool (True = attend) or floating (added)%s", operand->name, PyArray_DESCR(array),
                     advice);
        return false;
    }
    if (operand->kind == ENGINE_BY_DISTANCE) {
        if (PyArray_NDIM(array) == 0 || PyArray_DIM(array, PyArray_NDIM(array) - 1) % 2 == 0)
            return engine_shape_error(operand->name, array, "its last axis must be 2K + 1, one number for each distance from -K to K");
        *engine_size(e, operand->core[2]) = PyArray_DIM(array, PyArray_NDIM(array) - 1);
    }
    if (!engine_broadcast(e, operand, array, tensor))
        return false;
    e->operand[operand - e->function->operands] = e->input[e->inputs++] = array;
    return operand->kind != ENGINE_MASK || e->function->follows || engine_warn_of_zeros_and_ones(operand->name, array);
}

static bool
take_per_head(struct engine *e, const struct engine_operand *operand, PyObject *object, struct attn_tensor *tensor)
{
    PyArrayObject *array = engine_array(e, operand->name, object);
    if (!array || !(array = engine_numbers(e, operand->name, array)))
        return false;
    e->operand[operand - e->function->operands] = array;
    if (!(array = engine_to_compute(e, array)))
        return false;
    e->input[e->inputs++] = array;
    return engine_broadcast(e, operand, array, tensor);
}

/* One Python integer; beyond 64 bits the nearest that they hold. */
static bool
saturated(const char *name, PyObject *object, int64_t *value)
{
    int overflow = 0;
    PyObject *number = PyBool_Check(object) ? NULL : PyNumber_Index(object);
    if (!number) {
        PyErr_Format(PyExc_TypeError, "%s must hold integers, not %R", name, object);
        return false;
    }
    *value = PyLong_AsLongLongAndOverflow(number, &overflow);
    Py_DECREF(number);
    if (overflow)
        *value = overflow > 0 ? INT64_MAX : INT64_MIN;
    return *value != -1 || !PyErr_Occurred();
}

/* Python integers beyond 64 bits come as objects. */
static bool
integers_from_objects(const char *name, PyArrayObject *objects, int64_t *to)
{
    PyObject *flat = PyArray_Ravel(objects, NPY_CORDER), *list = flat ? PyArray_ToList((PyArrayObject *)flat) : NULL;
    bool right = list != NULL;
    for (npy_intp i = 0; right && i < PyArray_SIZE(objects); i++)
        right = saturated(name, PyList_GetItem(list, i), &to[i]);
    Py_XDECREF(flat);
    Py_XDECREF(list);
    return right;
}

/* A private, C-contiguous, native int64 array. Numbers beyond 64 bits saturate; bools and floats are refused. */
PyArrayObject *
engine_integers(struct engine *e, const char *name, PyObject *object)
{
    PyArrayObject *array = engine_array(e, name, object);
    if (!array)
        return NULL;
    if (PyArray_DESCR(array)->type_num == NPY_DOUBLE && !PyArray_Check(object)) {
        /* An empty list, or integers of which some are beyond 63 bits: NumPy makes floats of both. */
        array = (PyArrayObject *)PyArray_FromAny(object, PyArray_DescrFromType(NPY_OBJECT), 0, 0, 0, NULL);
        if (!engine_hold(e, array))
            return NULL;
    }
    int type = PyArray_DESCR(array)->type_num;
    if (!PyTypeNum_ISINTEGER(type) && type != NPY_OBJECT) {
        PyErr_Format(PyExc_TypeError, "%s has dtype %S; it must hold integers", name, PyArray_DESCR(array));
        return NULL;
    }
    PyArrayObject *copy = (PyArrayObject *)PyArray_SimpleNew(PyArray_NDIM(array), PyArray_DIMS(array), NPY_INT64);
    if (!engine_hold(e, copy))
        return NULL;
    int64_t *to = PyArray_DATA(copy);
    if (type == NPY_OBJECT)
        return integers_from_objects(name, array, to) ? copy : NULL;
    fexcept_t flags; /* the caller's: NumPy clears them */
    fegetexceptflag(&flags, FE_ALL_EXCEPT);
    int failed = PyArray_CopyInto(copy, array);
    fesetexceptflag(&flags, FE_ALL_EXCEPT);
    if (failed)
        return NULL;
    if (PyTypeNum_ISUNSIGNED(type) && PyArray_ITEMSIZE(array) == 8)
        for (npy_intp i = 0; i < PyArray_SIZE(copy); i++)
            if (to[i] < 0)
                to[i] = INT64_MAX;
    return copy;
}

/* Lengths must lie within their axis; offsets are cut where they are far beyond every position. */
static bool
take_integers(struct engine *e, const struct engine_operand *operand, PyObject *object, struct attn_tensor *tensor)
{
    PyArrayObject *array = engine_integers(e, operand->name, object);
    if (!array || !engine_broadcast(e, operand, array, tensor))
        return false;
    int64_t *number = PyArray_DATA(array), highest = operand->kind == ENGINE_LENGTHS ? *engine_size(e, operand->bound) : 0;
    for (npy_intp i = 0; i < PyArray_SIZE(array); i++)
        if (operand->kind == ENGINE_OFFSETS)
            number[i] = attn_max(-farthest, attn_min(number[i], farthest));
        else if (number[i] < 0 || number[i] > highest) {
            PyErr_Format(PyExc_ValueError, "%s holds %lld; each must be in 0 ... %lld", operand->name, (long long)number[i], (long long)highest);
            return false;
        }
    tensor->type = ATTN_INT64;
    return true;
}

/* Converts and checks an operand that was given. */
bool
engine_take(struct engine *e, const struct engine_operand *operand, PyObject *object, struct attn_tensor *tensor)
{
    switch (operand->kind) {
    case ENGINE_MASK:
    case ENGINE_ADDED:
    case ENGINE_BY_DISTANCE:
        return take_mask(e, operand, object, tensor);
    case ENGINE_PER_HEAD:
        return take_per_head(e, operand, object, tensor);
    default:
        return take_integers(e, operand, object, tensor);
    }
}
