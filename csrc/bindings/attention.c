/* attention.c: scaled_dot_product_attention, attention_weights and attention_received. */
#include "attention.h"
#include "families.h"

#include <fenv.h>
#include <math.h>

static const struct engine_function attention = {
    .name = "scaled_dot_product_attention",
    .signature = "(h,l,d),(g,s,d),(g,s,e)->(h,l,e)",
    .arguments = 24,
    .instead = "attn_mask",
    .kernel = offsetof(struct attn_kernels, attention),
    .operands = {QUERY_AND_KEY(0), {"value", ENGINE_DATA, 2, "gse", 0, PLACE(value)}, SCORE_OPERANDS(3, 7), RELATIVE_OPERAND(15)},
    .outputs = {{"output", "hle", false, PLACE(output)}, {"lse", "hl.", true, PLACE(lse)}},
};

static const struct engine_function weights = {
    .name = "attention_weights",
    .signature = "(h,l,d),(g,s,d)->(h,l,s)",
    .arguments = 21,
    .instead = "attn_mask",
    .kernel = offsetof(struct attn_kernels, attention_weights),
    .operands = {QUERY_AND_KEY(0), SCORE_OPERANDS(2, 5), RELATIVE_OPERAND(13)},
    .outputs = {{"the weights", "hls", false, PLACE(output)}},
};

static const struct engine_function received = {
    .name = "attention_received",
    .signature = "(h,l,d),(g,s,d)->(h,s)",
    .arguments = 20,
    .instead = "attn_mask",
    .kernel = offsetof(struct attn_kernels, attention_received),
    .operands = {QUERY_AND_KEY(0), SCORE_OPERANDS(2, 5), RELATIVE_OPERAND(13)},
    .outputs = {{"the sums", "h.s", false, PLACE(output)}},
};

/* Sizes, and that key/value heads divide query heads. */
static bool
bind_sizes(struct engine *e, struct attn_attention *a)
{
    const int64_t most_dim = (int64_t)1 << 48;
    int64_t kv_heads = *engine_size(e, 'g'), values = *engine_size(e, 'e'), total;
    a->heads = *engine_size(e, 'h');
    a->query_length = *engine_size(e, 'l');
    a->key_length = *engine_size(e, 's');
    a->head_dim = *engine_size(e, 'd');
    a->value_dim = values < 0 ? 0 : values;
    if (kv_heads == 0 ? a->heads > 0 : a->heads % kv_heads != 0) {
        PyErr_Format(PyExc_ValueError, "query has %lld heads and key %lld; those of key must divide those of query", (long long)a->heads,
                     (long long)kv_heads);
        return false;
    }
    a->group = kv_heads == 0 ? 1 : a->heads / kv_heads;
    a->row_count = a->query_length;
    a->batch_ndim = e->batch_ndim;
    for (int i = 0; i < e->batch_ndim; i++)
        a->batch_shape[i] = e->batch_shape[i];
    a->batch = e->batch;
    /* What kernels derive from the sizes stays within 64 bits if the whole work does: no machine would ever finish more. */
    const int64_t work[] = {a->batch, a->heads, a->query_length, attn_max(a->key_length, 1), a->head_dim + a->value_dim + 64};
    if (a->head_dim > most_dim || a->value_dim > most_dim) {
        PyErr_Format(PyExc_MemoryError, "heads of size %lld and %lld are too large", (long long)a->head_dim, (long long)a->value_dim);
        return false;
    }
    return engine_product("work", 5, work, ATTN_BLOCK, &total);
}

bool
attention_check_positions(const struct engine *e, const struct attn_attention *a)
{
    bool positional = a->is_causal || a->window_left >= 0 || a->window_right >= 0 || a->alibi_slopes.data || a->relative_bias.data ||
                      (a->rotary.cosine.data && !a->rotary.query_positions.data) || a->relative.key.data;
    if (!positional || !a->kv_lengths.data || a->query_lengths.data || a->causal_offset.data)
        return true;
    for (int64_t i = 0; i < e->batch; i++) {
        int64_t length = *(const int64_t *)(a->kv_lengths.data + attn_batch_offset(i, a->batch_ndim, a->batch_shape, a->kv_lengths.batch));
        if (length < a->query_length) {
            PyErr_Format(PyExc_ValueError,
                         "kv_lengths holds %lld, fewer than the %lld query rows, which leaves their positions open: "
                         "pass query_lengths for a padded batch, or causal_offset",
                         (long long)length, (long long)a->query_length);
            return false;
        }
    }
    return true;
}

/* 1 / sqrt(E) to nearest, whatever the caller rounds to: volatile keeps the compiler from moving it out from between the two calls. */
static double
default_scale(int64_t head_dim)
{
    int rounding = fegetround();
    if (rounding == FE_TONEAREST)
        return 1 / sqrt((double)head_dim);
    fesetround(FE_TONEAREST);
    volatile double size = (double)head_dim, scale = 1 / sqrt(size);
    fesetround(rounding);
    return scale;
}

bool
attention_bind_scores(struct engine *e, PyObject *const *argument, struct attn_attention *a)
{
    if (!bind_sizes(e, a) || !engine_flag("is_causal", argument[0], &a->is_causal))
        return false;
    if (argument[1] != Py_None) {
        if (!engine_finite("scale", argument[1], &a->scale))
            return false;
    } else if (a->head_dim == 0) {
        PyErr_SetString(PyExc_ValueError, "query has head size 0, for which there is no default: pass scale");
        return false;
    } else
        a->scale = default_scale(a->head_dim);
    if (!engine_window(argument[4], &a->window_left, &a->window_right) || !engine_softcap(argument[5], &a->softcap))
        return false;
    a->rotary.cosine.data = a->rotary.sine.data = a->rotary.query_positions.data = a->rotary.key_positions.data = a->rotary.start.data = NULL;
    a->dropout_p = 0;
    a->first_batch = 0;
    a->rows.data = a->lse.data = NULL;
    a->block_table.data = a->key_scale.data = a->value_scale.data = NULL;
    a->relative_span = *engine_size(e, 't');
    a->relative.key.data = a->relative.value.data = a->relative.content_bias.data = a->relative.position_bias.data = NULL;
    return attention_check_positions(e, a);
}

PyObject *
attention_call(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_attention a;
    struct engine e;
    bool with_lse = false;
    (void)module;
    bool done = engine_open(&e, &attention, arguments, n, &a) && attention_bind_scores(&e, arguments + 5, &a) &&
                attention_bind_rotary(&e, arguments + 16, attention_check_batch, &a, &a) &&
                engine_dropout(arguments[4], arguments[21], &a.dropout_p, a.dropout_key) && engine_flag("return_lse", arguments[22], &with_lse) &&
                engine_outputs(&e, arguments[23], with_lse ? 2 : 1, &a) && engine_run(&e, &a);
    return engine_close(&e, done);
}

bool
attention_bind_rows(struct engine *e, PyObject *object, struct attn_attention *a)
{
    if (object == Py_None)
        return true;
    PyArrayObject *rows = engine_integers(e, "rows", object);
    if (!rows)
        return false;
    if (PyArray_NDIM(rows) != 1)
        return engine_shape_error("rows", rows, "it must have one axis");
    int64_t *row = PyArray_DATA(rows), length = a->query_length;
    a->row_count = PyArray_DIM(rows, 0);
    for (int64_t i = 0; i < a->row_count; i++) {
        if (row[i] < -length || row[i] >= length) {
            PyErr_Format(PyExc_ValueError, "rows holds %lld; each must be in %lld ... %lld", (long long)row[i], (long long)-length,
                         (long long)length - 1);
            return false;
        }
        row[i] += row[i] < 0 ? length : 0;
    }
    a->rows.data = (char *)row;
    a->rows.type = ATTN_INT64;
    a->rows.row = sizeof *row;
    *engine_size(e, 'l') = a->row_count;
    return true;
}

PyObject *
attention_weights_call(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_attention a;
    struct engine e;
    (void)module;
    a.value.data = NULL;
    bool done = engine_open(&e, &weights, arguments, n, &a) && attention_bind_scores(&e, arguments + 3, &a) &&
                attention_bind_rotary(&e, arguments + 14, attention_check_batch, &a, &a) && attention_bind_rows(&e, arguments[19], &a) &&
                engine_outputs(&e, arguments[20], 1, &a) && engine_run(&e, &a);
    return engine_close(&e, done);
}

static PyObject *
call_received(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_attention a;
    struct engine e;
    (void)module;
    a.value.data = NULL;
    bool done = engine_open(&e, &received, arguments, n, &a) && attention_bind_scores(&e, arguments + 3, &a) &&
                attention_bind_rotary(&e, arguments + 14, attention_check_batch, &a, &a) && engine_outputs(&e, arguments[19], 1, &a) &&
                engine_run(&e, &a);
    return engine_close(&e, done);
}

static PyMethodDef methods[] = {
    FAST_METHOD("scaled_dot_product_attention", attention_call),
    FAST_METHOD("attention_weights", attention_weights_call),
    FAST_METHOD("attention_received", call_received),
    {0},
};

static const struct engine_function *const functions[] = {&attention, &weights, &received, NULL};

const struct family attn_attention_family = {methods, functions};
