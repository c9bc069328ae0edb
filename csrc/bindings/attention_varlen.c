/* attention_varlen.c: varlen_attention and varlen_attention_backward. */
#include "attention.h"
#include "families.h"

#include "../kernels/attention_varlen.h"

#define VARLEN(member) offsetof(struct attn_varlen, backward.member)

/* Operands shaped (T, H, D): the engine calls the first of three axes the heads', so that `head` and `row` change places afterwards. */
#define PACKED_OPERANDS(first)                                                                                                      \
    {"query", ENGINE_DATA, first, "lhd", 0, VARLEN(forward.query)}, {"key", ENGINE_DATA, first + 1, "sgd", 0, VARLEN(forward.key)}, \
    {                                                                                                                               \
        "value", ENGINE_DATA, first + 2, "sge", 0, VARLEN(forward.value)                                                            \
    }

/* Operands that may differ from sequence to sequence; arguments causal_offset, window_size, softcap, alibi_slopes, sinks in a row. */
#define SEQUENCE_OPERANDS(offset)                                                                             \
    {"causal_offset", ENGINE_OFFSETS, offset, "...", 0, VARLEN(forward.causal_offset), .later = true},        \
        {"alibi_slopes", ENGINE_PER_HEAD, offset + 3, "h..", 0, VARLEN(forward.alibi_slopes), .later = true}, \
    {                                                                                                         \
        "sinks", ENGINE_PER_HEAD, offset + 4, "h..", 0, VARLEN(forward.sinks), .later = true                  \
    }

static const struct engine_function varlen = {
    .name = "varlen_attention",
    .signature = "(l,h,d),(s,g,d),(s,g,e),(n),(n)->(l,h,e)",
    .arguments = 22,
    .instead = "its data",
    .packed = true,
    .kernel = offsetof(struct attn_kernels, varlen),
    .operands = {PACKED_OPERANDS(0),
                 SEQUENCE_OPERANDS(8),
                 {"relative_bias", ENGINE_BY_DISTANCE, 13, "hlt", 0, VARLEN(forward.relative_bias), .later = true}},
    .outputs = {{"output", "lhe", false, VARLEN(forward.output)}, {"lse", "hl.", true, VARLEN(forward.lse)}},
};

static const struct engine_function varlen_backward = {
    .name = "varlen_attention_backward",
    .signature = "(l,h,e),(l,h,d),(s,g,d),(s,g,e),(l,h,e),(h,l),(n),(n)->(l,h,d),(s,g,d),(s,g,e)",
    .arguments = 26,
    .instead = "its data",
    .packed = true,
    .kernel = offsetof(struct attn_kernels, varlen_backward),
    .operands = {PACKED_OPERANDS(1),
                 SEQUENCE_OPERANDS(11),
                 {"relative_bias", ENGINE_BY_DISTANCE, 16, "hlt", 0, VARLEN(forward.relative_bias), .later = true},
                 {"grad_output", ENGINE_ADDED, 0, "lhe", 0, VARLEN(gradient)},
                 {"output", ENGINE_ADDED, 4, "lhe", 0, VARLEN(forward.output)},
                 {"lse", ENGINE_ADDED, 5, "hl.", 0, VARLEN(forward.lse)},
                 {"grad_lse", ENGINE_ADDED, 23, "hl.", 0, VARLEN(grad_lse)}},
    .outputs = {{"query", "lhd", false, VARLEN(grad_query)},
                {"key", "sgd", false, VARLEN(grad_key)},
                {"value", "sge", false, VARLEN(grad_value)},
                {"attn_mask", "...", false, VARLEN(grad_mask)},
                {"bias", "...", false, VARLEN(grad_bias)},
                {"sinks", "h..", false, VARLEN(grad_sinks)},
                {"alibi_slopes", "h..", false, VARLEN(grad_slopes)},
                {"relative_bias", "hlt", false, VARLEN(grad_relative)}},
};

static void
swap_axes(struct attn_tensor *t)
{
    int64_t row = t->head;
    t->head = t->row;
    t->row = row;
}

/* Cumulative lengths, (N + 1): a private copy that begins at 0, does not decrease and ends within `rows` rows. NULL: an exception is set. */
static const int64_t *
bind_starts(struct engine *e, const char *name, PyObject *object, int64_t rows, int64_t *sequences, int64_t *longest)
{
    PyArrayObject *array = engine_integers(e, name, object);
    if (!array)
        return NULL;
    if (PyArray_NDIM(array) != 1 || PyArray_DIM(array, 0) == 0) {
        engine_shape_error(name, array, "it must have one axis, of one number more than there are sequences");
        return NULL;
    }
    const int64_t *start = PyArray_DATA(array);
    *sequences = PyArray_DIM(array, 0) - 1;
    *longest = 0;
    if (start[0] != 0) {
        PyErr_Format(PyExc_ValueError, "%s begins with %lld; it must begin with 0", name, (long long)start[0]);
        return NULL;
    }
    for (int64_t n = 1; n <= *sequences; n++) {
        if (start[n] < start[n - 1] || start[n] > rows) {
            PyErr_Format(PyExc_ValueError, "%s holds %lld after %lld; it must not decrease, nor exceed the %lld rows there are", name,
                         (long long)start[n], (long long)start[n - 1], (long long)rows);
            return NULL;
        }
        *longest = attn_max(*longest, start[n] - start[n - 1]);
    }
    return start;
}

/* Memory of the call's own. */
static void *
reserve(struct engine *e, int64_t numbers)
{
    PyArrayObject *array = (PyArrayObject *)PyArray_SimpleNew(1, (npy_intp[]){numbers}, NPY_INT64);
    return engine_hold(e, array) ? PyArray_DATA(array) : NULL;
}

static bool
reserve_table(struct engine *e, struct attn_varlen *v)
{
    int64_t room = v->sequences + 2, each = sizeof(struct attn_varlen_item) / sizeof(int64_t), fixed = sizeof *v->table / sizeof(int64_t);
    int64_t *memory = reserve(e, fixed + room * (each + 1));
    if (!memory)
        return false;
    v->table = (struct attn_varlen_table *)memory;
    v->table->item = (struct attn_varlen_item *)(memory + fixed);
    v->table->workspace = memory + fixed + room * each;
    return true;
}

/* Where sequences begin, and memory for what the kernel plans. The sizes L and S are then those of the longest. */
static bool
bind_sequences(struct engine *e, PyObject *queries, PyObject *keys, struct attn_varlen *v)
{
    int64_t of_keys, longest_query, longest_key;
    v->query_rows = *engine_size(e, 'l');
    v->key_rows = *engine_size(e, 's');
    v->query_starts = bind_starts(e, "cu_seqlens_q", queries, v->query_rows, &v->sequences, &longest_query);
    v->key_starts = v->query_starts ? bind_starts(e, "cu_seqlens_k", keys, v->key_rows, &of_keys, &longest_key) : NULL;
    if (!v->key_starts)
        return false;
    if (v->sequences != of_keys) {
        PyErr_Format(PyExc_ValueError, "cu_seqlens_q holds %lld sequences and cu_seqlens_k %lld; they must be the same", (long long)v->sequences,
                     (long long)of_keys);
        return false;
    }
    *engine_size(e, 'l') = longest_query;
    *engine_size(e, 's') = longest_key;
    return reserve_table(e, v);
}

/* Operands of which each sequence may have its own: their one batch axis is that of the sequences. One with an axis of queries has all T. */
static bool
take_by_sequence(struct engine *e, PyObject *const *arguments, struct attn_varlen *v)
{
    const int64_t longest_query = *engine_size(e, 'l');
    bool taken = true;
    e->batch_ndim = 1;
    e->batch_shape[0] = v->sequences;
    *engine_size(e, 'l') = v->query_rows;
    for (const struct engine_operand *operand = e->function->operands; taken && operand->kind != ENGINE_NONE; operand++)
        if (operand->later && arguments[operand->argument] != Py_None)
            taken = engine_take(e, operand, arguments[operand->argument], (struct attn_tensor *)((char *)v + operand->tensor));
    e->batch_ndim = 0;
    *engine_size(e, 'l') = longest_query;
    return taken;
}

/* Whether the tables have a row for every query row and key of every sequence. */
static bool
check_angles(const void *of, int64_t rows, int64_t *needed)
{
    const struct attn_varlen *v = of;
    const struct attn_attention *a = &v->backward.forward;
    const struct attn_rotary_tables *rotary = &a->rotary;
    struct attn_attention one = *a;
    bool right = true;
    for (int64_t n = 0; right && n < v->sequences; n++) {
        one.query_length = v->query_starts[n + 1] - v->query_starts[n];
        one.key_length = v->key_starts[n + 1] - v->key_starts[n];
        if (a->causal_offset.data)
            one.causal_offset.data = a->causal_offset.data + n * a->causal_offset.batch[0];
        if (rotary->query_positions.data)
            one.rotary.query_positions.data = rotary->query_positions.data + v->query_starts[n] * rotary->query_positions.row;
        if (rotary->key_positions.data)
            one.rotary.key_positions.data = rotary->key_positions.data + v->key_starts[n] * rotary->key_positions.row;
        right = attention_check_angles(&one, 0, rows, needed);
    }
    return right;
}

/* All but dropout and results. cu: the arguments cu_seqlens_q and _k, which dropout_p, is_causal, scale, causal_offset, ... follow; rotary: rotary_cos, ... */
static bool
bind_varlen(struct engine *e, PyObject *const *arguments, PyObject *const *cu, PyObject *const *rotary, struct attn_varlen *v)
{
    struct attn_attention *a = &v->backward.forward;
    PyObject *const scores[] = {cu[3], cu[4], Py_None, cu[5], cu[6], cu[7]};
    a->attn_mask.data = a->bias.data = a->query_lengths.data = a->kv_lengths.data = NULL;
    a->block_mask.indptr = NULL;
    if (!bind_sequences(e, cu[0], cu[1], v) || !take_by_sequence(e, arguments, v) || !attention_bind_scores(e, scores, a))
        return false;
    *engine_size(e, 'l') = v->query_rows;
    *engine_size(e, 's') = v->key_rows;
    if (!attention_bind_rotary(e, rotary, check_angles, v, a))
        return false;
    swap_axes(&a->query);
    swap_axes(&a->key);
    swap_axes(&a->value);
    return true;
}

static PyObject *
call_varlen(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_varlen v;
    struct attn_attention *a = &v.backward.forward;
    struct engine e;
    bool with_lse = false;
    (void)module;
    bool done = engine_open(&e, &varlen, arguments, n, &v) && bind_varlen(&e, arguments, arguments + 3, arguments + 14, &v) &&
                engine_dropout(arguments[5], arguments[19], &a->dropout_p, a->dropout_key) && engine_flag("return_lse", arguments[20], &with_lse) &&
                engine_outputs(&e, arguments[21], with_lse ? 2 : 1, &v);
    if (done)
        swap_axes(&a->output);
    return engine_close(&e, done && engine_run(&e, &v));
}

/* The gradients; those of sinks and slopes may have an axis of sequences, as their operands. */
static bool
bind_varlen_gradients(struct engine *e, PyObject *needs, PyObject *out, struct attn_varlen *v)
{
    struct attn_attention_backward *b = &v->backward;
    e->batch_ndim = 1;
    bool bound = attention_bind_gradients(e, needs, out, b);
    e->batch_ndim = 0;
    if (bound) {
        swap_axes(&b->gradient);
        swap_axes(&b->forward.output);
        swap_axes(&b->grad_query);
        swap_axes(&b->grad_key);
        swap_axes(&b->grad_value);
    }
    return bound;
}

static PyObject *
call_varlen_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_varlen v;
    struct attn_attention *a = &v.backward.forward;
    struct engine e;
    (void)module;
    v.backward.of_weights = false;
    bool done = engine_open(&e, &varlen_backward, arguments, n, &v) && attention_check_present("grad_output", arguments[0]) &&
                attention_check_present("output", arguments[4]) && attention_check_present("lse", arguments[5]);
    struct attn_tensor lse = a->lse;
    done = done && bind_varlen(&e, arguments, arguments + 6, arguments + 17, &v) &&
           engine_dropout(arguments[8], arguments[22], &a->dropout_p, a->dropout_key);
    a->lse = lse;
    done = done && bind_varlen_gradients(&e, arguments[24], arguments[25], &v) && engine_run(&e, &v);
    return engine_close(&e, done);
}

static PyMethodDef methods[] = {FAST_METHOD("varlen_attention", call_varlen), FAST_METHOD("varlen_attention_backward", call_varlen_backward), {0}};

static const struct engine_function *const functions[] = {&varlen, &varlen_backward, NULL};

const struct family attn_varlen_family = {methods, functions};
