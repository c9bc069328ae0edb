/* engine_blocks.c: block masks. What they hold is checked in every call, and is memory that cannot change afterwards. */
#include "engine.h"

/* A BlockMask says so by what it holds for this module: (shape, indptr, indices, pattern, bits). */
static const char arrays_name[] = "_core_arrays";

/* -1: error. */
int
engine_is_block_mask(PyObject *object)
{
    if (PyArray_Check(object))
        return 0;
    PyObject *name = PyUnicode_FromString(arrays_name);
    int has = name ? PyObject_HasAttr((PyObject *)Py_TYPE(object), name) : -1;
    Py_XDECREF(name);
    return has;
}

static bool
broken(const struct engine_operand *operand, const char *what)
{
    PyErr_Format(PyExc_ValueError, "%s is a BlockMask whose %s", operand->name, what);
    return false;
}

/* One of the arrays. What is not made of bytes, which nobody can write to, is copied. */
static const void *
take_array(struct engine *e, const struct engine_operand *operand, PyObject *arrays, int index, int type, int ndim, PyArrayObject **array)
{
    PyObject *object = PyTuple_GetItem(arrays, index);
    *array = (PyArrayObject *)object;
    if (!object || !PyArray_CheckExact(object) || PyArray_DESCR(*array)->type_num != type || PyArray_NDIM(*array) != ndim ||
        !PyArray_ISCARRAY_RO(*array)) {
        broken(operand, "arrays are not as BlockMask makes them");
        return NULL;
    }
    PyObject *base = PyArray_BASE(*array);
    while (base && PyArray_CheckExact(base))
        base = PyArray_BASE((PyArrayObject *)base);
    if (base && PyBytes_CheckExact(base) && !PyArray_ISWRITEABLE(*array))
        return PyArray_DATA(*array);
    *array = (PyArrayObject *)PyArray_NewCopy(*array, NPY_CORDER);
    return engine_hold(e, *array) ? PyArray_DATA(*array) : NULL;
}

/* The shape: leading axes broadcast to the batch and head axes, L and S are those of the call. Returns the number of leading indices, -1: error. */
static int64_t
take_shape(struct engine *e, const struct engine_operand *operand, PyObject *shape, struct attn_block_mask *mask)
{
    Py_ssize_t n = PyTuple_Check(shape) ? PyTuple_Size(shape) : 0;
    int64_t size[NPY_MAXDIMS], stride = 1, *known[2] = {engine_size(e, 'l'), engine_size(e, 's')};
    if (n < 2 || n > NPY_MAXDIMS) {
        broken(operand, "shape is not a tuple of two or more sizes");
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        if (!engine_integer("attn_mask", PyTuple_GetItem(shape, i), &size[i]) || size[i] < 0)
            return PyErr_Occurred() ? -1 : (broken(operand, "shape has negative sizes"), -1);
    for (int i = 0; i < 2; i++)
        if (size[n - 2 + i] != *known[i]) {
            PyErr_Format(PyExc_ValueError, "%s is a BlockMask of shape %S; its last axes must be %lld and %lld, the numbers of queries and keys",
                         operand->name, shape, (long long)*known[0], (long long)*known[1]);
            return -1;
        }
    mask->head = 0;
    for (int i = 0; i < e->batch_ndim; i++)
        mask->batch[i] = 0;
    for (Py_ssize_t i = n - 3; i >= 0; i--) {
        int axis = e->batch_ndim - (int)(n - 3 - i); /* batch_ndim: the heads */
        int64_t wanted = axis == e->batch_ndim ? *engine_size(e, 'h') : axis >= 0 ? e->batch_shape[axis] : 1;
        if (size[i] != 1 && size[i] != wanted) {
            PyErr_Format(PyExc_ValueError, "%s is a BlockMask of shape %S; its axis %lld must be 1 or %lld", operand->name, shape, (long long)(i - n),
                         (long long)wanted);
            return -1;
        }
        if (axis >= 0)
            *(axis == e->batch_ndim ? &mask->head : &mask->batch[axis]) = size[i] == 1 ? 0 : stride;
        if (__builtin_mul_overflow(stride, size[i], &stride))
            return broken(operand, "shape is too large"), -1;
    }
    return stride;
}

/* Every place within its array, tiles ascending in their rows. */
static bool
check_tiles(const struct engine_operand *operand, const struct attn_block_mask *mask, int64_t rows, int64_t tiles, int64_t key_tiles,
            int64_t patterns)
{
    if (mask->indptr[0] != 0 || mask->indptr[rows] != tiles)
        return broken(operand, "indptr does not begin at 0 or does not end at the number of tiles");
    for (int64_t r = 0; r < rows; r++) {
        if (mask->indptr[r] > mask->indptr[r + 1] || mask->indptr[r + 1] > tiles)
            return broken(operand, "indptr decreases");
        for (int64_t n = mask->indptr[r]; n < mask->indptr[r + 1]; n++) {
            if (mask->indices[n] < 0 || mask->indices[n] >= key_tiles || (n > mask->indptr[r] && mask->indices[n] <= mask->indices[n - 1]))
                return broken(operand, "indices do not ascend within the tiles of the keys");
            if (mask->pattern[n] < -1 || mask->pattern[n] >= patterns)
                return broken(operand, "pattern names bits that are not there");
        }
    }
    return true;
}

bool
engine_block_mask(struct engine *e, const struct engine_operand *operand, PyObject *object, struct attn_block_mask *mask)
{
    PyObject *arrays = PyObject_GetAttrString(object, arrays_name);
    PyArrayObject *indptr, *indices, *pattern, *bits;
    if (!engine_hold(e, arrays))
        return false;
    if (!PyTuple_CheckExact(arrays) || PyTuple_Size(arrays) != 5)
        return broken(operand, "arrays are not as BlockMask makes them");
    int64_t leading = take_shape(e, operand, PyTuple_GetItem(arrays, 0), mask), key_tiles = (*engine_size(e, 's') + ATTN_BLOCK - 1) / ATTN_BLOCK;
    if (leading < 0)
        return false;
    const int64_t *places = take_array(e, operand, arrays, 1, NPY_INT64, 2, &indptr);
    mask->indices = places ? take_array(e, operand, arrays, 2, NPY_INT32, 1, &indices) : NULL;
    mask->pattern = mask->indices ? take_array(e, operand, arrays, 3, NPY_INT32, 1, &pattern) : NULL;
    mask->bits = mask->pattern ? take_array(e, operand, arrays, 4, NPY_UINT64, 2, &bits) : NULL;
    if (!mask->bits)
        return false;
    mask->rows = (*engine_size(e, 'l') + ATTN_BLOCK - 1) / ATTN_BLOCK;
    if (PyArray_DIM(indptr, 0) != leading || PyArray_DIM(indptr, 1) != mask->rows + 1 || PyArray_DIM(indices, 0) != PyArray_DIM(pattern, 0) ||
        PyArray_DIM(bits, 1) != ATTN_BLOCK)
        return broken(operand, "arrays do not fit its shape");
    mask->indptr = places;
    return leading == 0 || check_tiles(operand, mask, leading * (mask->rows + 1) - 1, PyArray_DIM(indices, 0), key_tiles, PyArray_DIM(bits, 0));
}
