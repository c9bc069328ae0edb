/* numpy_api.h: Python and NumPy for every file of this floor, in the order in which they must be included. */
#ifndef ATTN_NUMPY_API_H
#define ATTN_NUMPY_API_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifndef NPY_TARGET_VERSION
#define NPY_TARGET_VERSION NPY_2_1_API_VERSION
#endif
#ifndef NPY_NO_DEPRECATED_API
#define NPY_NO_DEPRECATED_API NPY_2_1_API_VERSION
#endif
#define PY_ARRAY_UNIQUE_SYMBOL attn_numpy_api
#ifndef ATTN_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#endif
