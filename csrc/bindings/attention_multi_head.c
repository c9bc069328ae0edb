/* attention_multi_head.c: multi_head_attention. Linear, attention and linear are called one after the other on arrays that share memory: a projection
 * (..., L, H D) is read as (..., H, L, D), and attention writes what the last product reads. */
#include "attention.h"
#include "families.h"

enum {
    INPUT, /* query, key, value */
    WEIGHT = INPUT + 3, /* of query, key, value, output */
    QKV_WEIGHT = WEIGHT + 4,
    BIAS, /* likewise */
    QKV_BIAS = BIAS + 4,
    NUM_HEADS,
    NUM_KV_HEADS,
    OPTIONS, /* of scaled_dot_product_attention, from attn_mask on */
    DROPOUT_KEY = OPTIONS + 18,
    NEED_WEIGHTS,
    OUT,
    ARGUMENTS,
    ATTENTION_OPTIONS = 3, /* their place there */
    DROPOUT_P = 1 /* its place among them */
};

static const char *const names[] = {"query", "key", "value", "output"};

static const struct engine_function function = {.name = "multi_head_attention", .arguments = ARGUMENTS, .instead = "attn_mask"};

/* What a call owns. */
struct multi_head {
    int64_t heads, kv_heads;
    PyObject *const *arguments;
    PyObject *input[3]; /* arrays */
    PyObject *part[3]; /* projections, (..., H, L, D) */
    PyObject *joined; /* what heads give, (..., L, H D) */
};

static void
release(struct multi_head *m)
{
    for (int i = 0; i < 3; i++) {
        Py_CLEAR(m->input[i]);
        Py_CLEAR(m->part[i]);
    }
    Py_CLEAR(m->joined);
}

/* Whether all arguments are NumPy's business; if not, e->foreign or an exception says why. */
static bool
all_native(struct engine *e)
{
    for (int i = 0; i < OUT; i++)
        if (e->arguments[i] != Py_None && !engine_native(e, e->arguments[i]))
            return false;
    return true;
}

static bool
read_heads(struct multi_head *m)
{
    PyObject *const *argument = m->arguments;
    if (!engine_integer("num_heads", argument[NUM_HEADS], &m->heads))
        return false;
    m->kv_heads = m->heads;
    if (argument[NUM_KV_HEADS] != Py_None && !engine_integer("num_kv_heads", argument[NUM_KV_HEADS], &m->kv_heads))
        return false;
    if (m->heads < 1 || m->kv_heads < 1 || m->heads % m->kv_heads) {
        PyErr_Format(PyExc_ValueError, "num_heads is %lld and num_kv_heads %lld; both must be positive, and the second divide the first",
                     (long long)m->heads, (long long)m->kv_heads);
        return false;
    }
    return true;
}

/* Either the three weights, or all in one. */
static bool
check_given(const struct multi_head *m)
{
    bool packed = m->arguments[QKV_WEIGHT] != Py_None;
    if (!packed && m->arguments[QKV_BIAS] != Py_None) {
        PyErr_SetString(PyExc_ValueError, "qkv_bias is given without qkv_weight");
        return false;
    }
    for (int i = 0; i < 4; i++) {
        bool needed = i == 3 || !packed;
        if ((m->arguments[WEIGHT + i] != Py_None) != needed) {
            PyErr_Format(PyExc_ValueError, needed ? "%s_weight is missing" : "%s_weight and qkv_weight are both given", names[i]);
            return false;
        }
        if (!needed && m->arguments[BIAS + i] != Py_None) {
            PyErr_Format(PyExc_ValueError, "%s_bias is given with qkv_weight; pass qkv_bias", names[i]);
            return false;
        }
    }
    return true;
}

/* x Wᵀ + b. */
static PyObject *
product(PyObject *x, PyObject *weight, PyObject *bias, PyObject *out)
{
    PyObject *const arguments[] = {x, weight, bias, Py_None, Py_None, out};
    return linear_call(NULL, arguments, 6);
}

/* Columns first ... first + heads size - 1 of a projection as (..., heads, L, size). */
static PyObject *
as_heads(PyObject *projection, int64_t first, int64_t heads, int64_t size)
{
    PyArrayObject *from = (PyArrayObject *)projection;
    int ndim = PyArray_NDIM(from);
    npy_intp shape[NPY_MAXDIMS], strides[NPY_MAXDIMS];
    for (int i = 0; i < ndim - 2; i++) {
        shape[i] = PyArray_DIM(from, i);
        strides[i] = PyArray_STRIDE(from, i);
    }
    npy_intp each = PyArray_STRIDE(from, ndim - 1);
    shape[ndim - 2] = heads, strides[ndim - 2] = size * each;
    shape[ndim - 1] = PyArray_DIM(from, ndim - 2), strides[ndim - 1] = PyArray_STRIDE(from, ndim - 2);
    shape[ndim] = size, strides[ndim] = each;
    PyArray_Descr *descr = PyArray_DESCR(from);
    Py_INCREF((PyObject *)descr);
    PyObject *view =
        PyArray_NewFromDescr(&PyArray_Type, descr, ndim + 1, shape, strides, PyArray_BYTES(from) + first * each, NPY_ARRAY_WRITEABLE, NULL);
    Py_INCREF(projection);
    if (view && PyArray_SetBaseObject((PyArrayObject *)view, projection) < 0)
        Py_CLEAR(view);
    else if (!view)
        Py_DECREF(projection);
    return view;
}

static int64_t
columns(PyObject *projection)
{
    PyArrayObject *array = (PyArrayObject *)projection;
    return PyArray_DIM(array, PyArray_NDIM(array) - 1);
}

/* One projection, which its heads must share evenly. */
static bool
project(struct multi_head *m, int i, PyObject *weight, PyObject *bias)
{
    int64_t heads = i == 0 ? m->heads : m->kv_heads;
    PyObject *projection = product(m->input[i], weight, bias, Py_None);
    if (!projection)
        return false;
    if (columns(projection) % heads == 0)
        m->part[i] = as_heads(projection, 0, heads, columns(projection) / heads);
    else
        PyErr_Format(PyExc_ValueError, "%s_weight has %lld rows; %lld heads must share them evenly", names[i], (long long)columns(projection),
                     (long long)heads);
    Py_DECREF(projection);
    return m->part[i] != NULL;
}

static bool
project_each(struct multi_head *m)
{
    for (int i = 0; i < 3; i++)
        if (!project(m, i, m->arguments[WEIGHT + i], m->arguments[BIAS + i]))
            return false;
    return true;
}

/* Rows first ... end - 1 of qkv_weight or qkv_bias. */
static PyObject *
rows_of(PyObject *packed, int64_t first, int64_t end)
{
    if (packed == Py_None)
        return Py_NewRef(packed);
    return PySequence_GetSlice(packed, (Py_ssize_t)first, (Py_ssize_t)end);
}

/* All three of one product, where they are of the same array; else each of its rows. */
static bool
project_packed(struct multi_head *m)
{
    PyObject *weight = m->arguments[QKV_WEIGHT], *bias = m->arguments[QKV_BIAS];
    bool same = m->arguments[INPUT] == m->arguments[INPUT + 1] && m->arguments[INPUT] == m->arguments[INPUT + 2];
    int64_t shares = m->heads + 2 * m->kv_heads, first = 0, size;
    PyObject *whole = same ? product(m->input[0], weight, bias, Py_None) : NULL;
    if (same && !whole)
        return false;
    if (!same && (!PyArray_Check(weight) || PyArray_NDIM((PyArrayObject *)weight) != 2)) {
        PyErr_SetString(PyExc_TypeError, "qkv_weight must be an ndarray with two axes where query, key and value are not one array");
        return false;
    }
    int64_t rows = same ? columns(whole) : PyArray_DIM((PyArrayObject *)weight, 0);
    size = rows / shares;
    bool done = rows % shares == 0;
    if (!done)
        PyErr_Format(PyExc_ValueError, "qkv_weight has %lld rows; %lld heads of query and %lld each of key and value must share them evenly",
                     (long long)rows, (long long)m->heads, (long long)m->kv_heads);
    for (int i = 0; i < 3 && done; i++) {
        int64_t heads = i == 0 ? m->heads : m->kv_heads;
        if (same)
            m->part[i] = as_heads(whole, first, heads, size);
        else {
            PyObject *part = rows_of(weight, first, first + heads * size), *added = part ? rows_of(bias, first, first + heads * size) : NULL;
            if (added)
                project(m, i, part, added);
            Py_XDECREF(part);
            Py_XDECREF(added);
        }
        first += heads * size;
        done = m->part[i] != NULL;
    }
    Py_XDECREF(whole);
    return done;
}

/* The inputs as arrays of at least two axes. */
static bool
read_inputs(struct multi_head *m)
{
    for (int i = 0; i < 3; i++) {
        if (engine_is_masked(m->arguments[INPUT + i]) != 0) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_TypeError, "%s is a masked array: pass its data, and attn_mask", names[i]);
            return false;
        }
        m->input[i] = PyArray_FROM_O(m->arguments[INPUT + i]);
        if (!m->input[i])
            return false;
        if (PyArray_NDIM((PyArrayObject *)m->input[i]) < 2)
            return engine_shape_error(names[i], (PyArrayObject *)m->input[i], "it must be (..., L, N)");
    }
    return true;
}

/* (..., L, H D) for what the heads give, where all three projections have one dtype; else NULL without an exception: attention makes its own array. */
static bool
make_joined(struct multi_head *m)
{
    PyArrayObject *part[3];
    npy_intp shape[NPY_MAXDIMS];
    int ndim = 0;
    for (int i = 0; i < 3; i++) {
        part[i] = (PyArrayObject *)m->part[i];
        if (!PyArray_EquivTypes(PyArray_DESCR(part[i]), PyArray_DESCR(part[0])))
            return true;
        ndim = PyArray_NDIM(part[i]) > ndim ? PyArray_NDIM(part[i]) : ndim;
    }
    for (int axis = 0; axis < ndim - 3; axis++) {
        shape[axis] = 1;
        for (int i = 0; i < 3; i++) {
            int own = axis - (ndim - PyArray_NDIM(part[i]));
            if (own >= 0 && PyArray_DIM(part[i], own) != 1)
                shape[axis] = PyArray_DIM(part[i], own); /* if they do not broadcast, attention says so before it writes */
        }
    }
    shape[ndim - 3] = PyArray_DIM(part[0], PyArray_NDIM(part[0]) - 2);
    shape[ndim - 2] = m->heads * PyArray_DIM(part[2], PyArray_NDIM(part[2]) - 1);
    PyArray_Descr *descr = PyArray_DESCR(part[0]);
    Py_INCREF((PyObject *)descr);
    int64_t bytes = PyDataType_ELSIZE(descr);
    for (int i = 0; i < ndim - 1; i++)
        bytes *= shape[i];
    m->joined = (PyObject *)engine_empty(ndim - 1, shape, descr, bytes);
    return m->joined != NULL;
}

/* Heads attend; m->joined holds what they give, side by side. */
static bool
attend(struct multi_head *m)
{
    if (!make_joined(m))
        return false;
    PyObject *arguments[ATTENTION_OPTIONS + (DROPOUT_KEY - OPTIONS) + 3], *out = Py_None;
    for (int i = 0; i < 3; i++)
        arguments[i] = m->part[i];
    for (int i = OPTIONS; i < DROPOUT_KEY; i++)
        arguments[ATTENTION_OPTIONS + i - OPTIONS] = m->arguments[i];
    if (m->joined) {
        int64_t size = columns(m->joined) / m->heads;
        out = as_heads(m->joined, 0, m->heads, size);
        if (!out)
            return false;
    }
    int n = ATTENTION_OPTIONS + DROPOUT_KEY - OPTIONS;
    arguments[n] = m->arguments[DROPOUT_KEY];
    arguments[n + 1] = Py_False;
    arguments[n + 2] = out;
    PyObject *output = attention_call(NULL, arguments, n + 3);
    if (m->joined)
        Py_DECREF(out);
    bool done = output != NULL;
    if (output && !m->joined) {
        PyArrayObject *array = (PyArrayObject *)output;
        int ndim = PyArray_NDIM(array);
        npy_intp shape[NPY_MAXDIMS];
        PyArray_Dims dims = {shape, ndim - 1};
        PyObject *swapped = PyArray_SwapAxes(array, ndim - 2, ndim - 3);
        for (int i = 0; i < ndim - 1; i++)
            shape[i] = PyArray_DIM(array, i);
        shape[ndim - 3] = PyArray_DIM(array, ndim - 2);
        shape[ndim - 2] = PyArray_DIM(array, ndim - 3) * PyArray_DIM(array, ndim - 1);
        m->joined = swapped ? PyArray_Newshape((PyArrayObject *)swapped, &dims, NPY_CORDER) : NULL;
        Py_XDECREF(swapped);
        done = m->joined != NULL;
    }
    Py_XDECREF(output);
    return done;
}

/* out's entries for the output and the weights; borrowed. */
static bool
read_out(PyObject *out, bool need_weights, PyObject **entry)
{
    entry[0] = out;
    entry[1] = Py_None;
    if (!need_weights || out == Py_None)
        return true;
    if (!PyTuple_Check(out)) {
        PyErr_SetString(PyExc_TypeError, "out must be a tuple, one array or None for each result");
        return false;
    }
    if (PyTuple_Size(out) != 2) {
        PyErr_Format(PyExc_ValueError, "out has %zd entries; it must have 2", PyTuple_Size(out));
        return false;
    }
    entry[0] = PyTuple_GetItem(out, 0);
    entry[1] = PyTuple_GetItem(out, 1);
    return true;
}

/* The weights of all heads, without dropout. Where they go to an array that was given, they are copied there at the end: it may overlap what the last
 * product reads. */
static bool
weigh(struct engine *e, struct multi_head *m, PyObject *const *out)
{
    PyObject *arguments[2 + (DROPOUT_KEY - OPTIONS) - 1 + 2];
    struct engine_result *result = &e->result[1];
    enum attn_type type;
    int64_t shape[NPY_MAXDIMS];
    int n = 0;
    arguments[n++] = m->part[0];
    arguments[n++] = m->part[1];
    for (int i = OPTIONS; i < DROPOUT_KEY; i++)
        if (i != OPTIONS + DROPOUT_P)
            arguments[n++] = m->arguments[i];
    arguments[n++] = Py_None;
    arguments[n++] = Py_None;
    PyArrayObject *weights = (PyArrayObject *)attention_weights_call(NULL, arguments, n);
    if (!weights)
        return false;
    for (int i = 0; i < PyArray_NDIM(weights); i++)
        shape[i] = PyArray_DIM(weights, i);
    engine_stored_type(weights, &type);
    if (PyArray_Check(out[0]))
        e->result[0].array = e->result[0].target = (PyArrayObject *)Py_NewRef(out[0]); /* for out[1] to be compared with */
    e->results = 2;
    if (out[1] != Py_None && !engine_result(e, 1, "out[1]", out[1], type, PyArray_NDIM(weights), shape, true)) {
        Py_DECREF((PyObject *)weights);
        return false;
    }
    if (out[1] == Py_None)
        result->array = weights;
    result->given = true;
    result->target = weights;
    return true;
}

/* What is returned is made; e->result holds it. */
static bool
finish(struct engine *e, struct multi_head *m, bool need_weights, PyObject *const *out)
{
    if (!attend(m) || (need_weights && !weigh(e, m, out)))
        return false;
    PyArrayObject *output = (PyArrayObject *)product(m->joined, m->arguments[WEIGHT + 3], m->arguments[BIAS + 3], out[0]);
    Py_XDECREF((PyObject *)e->result[0].array);
    e->result[0] = (struct engine_result){.array = output, .target = output, .given = true};
    e->results = need_weights ? 2 : 1;
    return output != NULL;
}

static PyObject *
call_multi_head(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct multi_head m = {.arguments = arguments};
    struct engine e;
    PyObject *out[2];
    bool need_weights;
    (void)module;
    engine_start(&e, &function, arguments, n);
    bool done = engine_argument_count(function.name, ARGUMENTS, n) && all_native(&e) && read_heads(&m) && check_given(&m) &&
                engine_flag("need_weights", arguments[NEED_WEIGHTS], &need_weights) && read_out(arguments[OUT], need_weights, out) &&
                read_inputs(&m) && (arguments[QKV_WEIGHT] != Py_None ? project_packed(&m) : project_each(&m)) && finish(&e, &m, need_weights, out);
    release(&m);
    return engine_close(&e, done);
}

static PyMethodDef methods[] = {FAST_METHOD("multi_head_attention", call_multi_head), {0}};

const struct family attn_multi_head_family = {methods, (const struct engine_function *const[]){NULL}};
