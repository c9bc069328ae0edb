/* positions_rotary.c: rotary_embedding. */
#include "positions_rotary.h"
#include "families.h"

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

/* A result that lies exactly where x does is turned in place: then x is no input that it must not touch. */
static bool
bind_result(struct engine *e, PyObject *out, struct attn_rotary *a)
{
    PyArrayObject *x = e->operand[0], *given = (PyArrayObject *)out;
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
    struct rotary_tables tables;
    struct engine e;
    bool interleaved = false;
    (void)module;
    bool right = engine_open(&e, &rotary, arguments, n, &a) && engine_flag("interleaved", arguments[4], &interleaved) &&
                 engine_flag("inverse", arguments[6], &a.inverse);
    if (right) {
        bind_sizes(&e, &a);
        right = rotary_bind_tables(&e, &rotary.operands[1], arguments[1], arguments[2], arguments[5], a.head_dim, interleaved, &tables, &a) &&
                rotary_bind_positions(&e, &rotary.operands[3], arguments[3], a.length, tables.rows, &a) && bind_result(&e, arguments[7], &a);
        a.rotary_dim = tables.rotary_dim;
        a.how = tables.how;
    }
    return engine_close(&e, right && engine_run(&e, &a));
}

static PyMethodDef methods[] = {FAST_METHOD("rotary_embedding", call_rotary), {0}};

static const struct engine_function *const functions[] = {&rotary, NULL};

const struct family attn_positions_rotary_family = {methods, functions};
