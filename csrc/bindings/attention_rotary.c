/* attention_rotary.c: the tables by which attention turns queries and keys, and the rows of them that it needs. */
#include "attention.h"
#include "positions_rotary.h"

/* As rotary_embedding has it: tables of E columns hold each number twice, others have one column for each pair of features that turns. */
static bool
bind_columns(PyArrayObject *table, bool interleaved, int64_t head_dim, struct attn_rotary_tables *rotary)
{
    int64_t columns = PyArray_DIM(table, 1);
    bool wide = columns == head_dim;
    rotary->pairs = wide ? columns / 2 : columns;
    rotary->how = !interleaved ? ATTN_ROTATE_HALVES : wide ? ATTN_ROTATE_NEIGHBOURS_WIDE : ATTN_ROTATE_NEIGHBOURS;
    if (wide ? columns % 2 != 0 : columns > head_dim / 2)
        return engine_shape_error("rotary", table, "for heads of size %lld its tables must have at most %lld columns, or, each number twice, %lld",
                                  (long long)head_dim, (long long)head_dim / 2, (long long)head_dim / 2 * 2);
    return true;
}

static PyArrayObject *
take_table(struct engine *e, PyObject *object)
{
    PyArrayObject *table = engine_array(e, "rotary", object);
    if (!table)
        return NULL;
    int type = PyArray_DESCR(table)->type_num;
    if (type != NPY_FLOAT && type != NPY_DOUBLE) {
        PyErr_Format(PyExc_TypeError, "rotary has a table of dtype %S; it must be float32 or float64", PyArray_DESCR(table));
        return NULL;
    }
    if (PyArray_NDIM(table) != 2) {
        engine_shape_error("rotary", table, "its tables must have two axes, (positions, pairs of features)");
        return NULL;
    }
    return table;
}

/* Which row of the tables each query row or key has. */
static bool
take_positions(struct engine *e, const struct engine_operand *operand, PyObject *object, struct attn_tensor *positions)
{
    positions->data = NULL;
    if (object == Py_None)
        return true;
    PyArrayObject *array = engine_integers(e, operand->name, object);
    if (!array || !engine_broadcast(e, operand, array, positions))
        return false;
    positions->type = ATTN_INT64;
    return true;
}

/* Rows first ... end - 1 of the queries or keys of a batch element, whose positions are given or `shift` further: all in 0 ... rows - 1. *needed grows to
 * hold them. */
static bool
check_rows(const char *what, const char *name, const char *positions, int64_t stride, int64_t first, int64_t end, int64_t shift, int64_t rows,
           int64_t *needed)
{
    for (int64_t i = first; i < end; i = positions || i == end - 1 ? i + 1 : end - 1) { /* consecutive ones: the first and the last */
        int64_t at = positions ? *(const int64_t *)(positions + i * stride) : i + shift;
        if (at < 0 || at >= rows) {
            if (positions)
                PyErr_Format(PyExc_ValueError, "%s holds %lld for %s %lld; rotary has rows 0 ... %lld", name, (long long)at, what, (long long)i,
                             (long long)rows - 1);
            else
                PyErr_Format(PyExc_ValueError, "%s %lld stands at position %lld; rotary has rows 0 ... %lld: pass longer tables, causal_offset or %s",
                             what, (long long)i, (long long)at, (long long)rows - 1, name);
            return false;
        }
        *needed = attn_max(*needed, at + 1);
    }
    return true;
}

/* The number of a batch element; `otherwise` where there is none. */
static int64_t
number_of(const struct attn_attention *a, const struct attn_tensor *t, int64_t batch, int64_t otherwise)
{
    return t->data ? *(const int64_t *)(t->data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, t->batch)) : otherwise;
}

static const char *
positions_of(const struct attn_attention *a, const struct attn_tensor *t, int64_t batch)
{
    return t->data ? t->data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, t->batch) : NULL;
}

bool
attention_check_angles(const struct attn_attention *a, int64_t batch, int64_t rows, int64_t *needed)
{
    const struct attn_tensor *of_queries = &a->rotary.query_positions, *of_keys = &a->rotary.key_positions;
    int64_t queries = number_of(a, &a->query_lengths, batch, a->query_length), keys = number_of(a, &a->kv_lengths, batch, a->key_length);
    int64_t offset = number_of(a, &a->causal_offset, batch, keys - queries), start = number_of(a, &a->rotary.start, batch, 0);
    const struct attn_seen seen = attn_seen(a, queries, keys, offset);
    return check_rows("query row", "query_positions", positions_of(a, of_queries, batch), of_queries->row, seen.first_query, seen.end_query,
                      offset + start, rows, needed) &&
           check_rows("key", "key_positions", positions_of(a, of_keys, batch), of_keys->row, seen.first_key, seen.end_key, start, rows, needed);
}

/* The first rows of a table in the type computed in. */
static bool
table_tensor(struct engine *e, PyArrayObject *table, int64_t rows, const struct attn_rotary_tables *rotary, struct attn_tensor *tensor)
{
    struct engine plain = {.batch_ndim = 0};
    PyObject *some = PySequence_GetSlice((PyObject *)table, 0, (Py_ssize_t)rows);
    if (!engine_hold(e, some) || !(table = engine_to_compute(e, (PyArrayObject *)some)))
        return false;
    if (PyArray_DIM(table, 1) > 1 && PyArray_STRIDE(table, 1) != PyArray_ITEMSIZE(table) &&
        !(table = engine_cast(e, table, PyArray_DESCR(table)->type_num)))
        return false;
    engine_tensor(&plain, ".gd", table, tensor);
    e->input[e->inputs++] = table;
    return PyArray_DIM(table, 1) == rotary->pairs || positions_check_twice("rotary", table, rotary->how != ATTN_ROTATE_HALVES);
}

bool
attention_bind_rotary(struct engine *e, PyObject *const *argument, bool (*check)(const void *, int64_t, int64_t *), const void *of,
                      struct attn_attention *a)
{
    static const struct engine_operand query_positions = {.name = "query_positions", .kind = ENGINE_OFFSETS, .core = ".l."};
    static const struct engine_operand key_positions = {.name = "key_positions", .kind = ENGINE_OFFSETS, .core = ".s."};
    struct attn_rotary_tables *rotary = &a->rotary;
    PyArrayObject *cosine, *sine;
    bool interleaved;
    int64_t needed = 0;
    if (!engine_flag("rotary_interleaved", argument[2], &interleaved))
        return false;
    if (argument[0] == Py_None) {
        for (int i = 3; i < 5; i++)
            if (argument[i] != Py_None) {
                PyErr_Format(PyExc_ValueError, "%s needs rotary", i == 3 ? query_positions.name : key_positions.name);
                return false;
            }
        return true;
    }
    if (!(cosine = take_table(e, argument[0])) || !(sine = take_table(e, argument[1])))
        return false;
    if (PyArray_DIM(cosine, 0) != PyArray_DIM(sine, 0) || PyArray_DIM(cosine, 1) != PyArray_DIM(sine, 1))
        return engine_shape_error("rotary", sine, "its tables must be of one shape, (%lld, %lld) as the cosines", (long long)PyArray_DIM(cosine, 0),
                                  (long long)PyArray_DIM(cosine, 1));
    if (!bind_columns(cosine, interleaved, a->head_dim, rotary) || !take_positions(e, &query_positions, argument[3], &rotary->query_positions) ||
        !take_positions(e, &key_positions, argument[4], &rotary->key_positions))
        return false;
    rotary->cosine.data = PyArray_BYTES(cosine); /* there is one: for the checks */
    if (!attention_check_positions(e, a) || !check(of, PyArray_DIM(cosine, 0), &needed))
        return false;
    return table_tensor(e, cosine, needed, rotary, &rotary->cosine) && table_tensor(e, sine, needed, rotary, &rotary->sine);
}

/* ... of all batch elements. */
bool
attention_check_batch(const void *of, int64_t rows, int64_t *needed)
{
    const struct attn_attention *a = of;
    bool right = true;
    for (int64_t i = 0; right && i < a->batch; i++)
        right = attention_check_angles(a, i, rows, needed);
    return right;
}
