/* positions_vectors.c: relative_attention_shaw and relative_attention_xl, and their gradients. */
#include "attention.h"
#include "families.h"

#define GRADIENT(member) offsetof(struct attn_attention_backward, member)

/* Operands of all four functions; query is argument `q`, what follows the vectors of distances begins with argument `m`. */
#define OPERANDS(q, m)                                                                                                                  \
    QUERY_AND_KEY(q), {"value", ENGINE_DATA, q + 2, "gse", 0, PLACE(value)},                                                            \
        {"attn_mask", ENGINE_MASK, m, "hls", 0, PLACE(attn_mask), .blocks = PLACE(block_mask)},                                         \
        {"bias", ENGINE_ADDED, m + 3, "hls", 0, PLACE(bias)}, {"causal_offset", ENGINE_OFFSETS, m + 4, "...", 0, PLACE(causal_offset)}, \
        {"query_lengths", ENGINE_LENGTHS, m + 6, "...", 'l', PLACE(query_lengths)},                                                     \
    {                                                                                                                                   \
        "kv_lengths", ENGINE_LENGTHS, m + 7, "...", 's', PLACE(kv_lengths)                                                              \
    }

/* The vectors: their number is known when the first has been seen. */
#define SHAW(v)                                                                            \
    {"key_table", ENGINE_ADDED, v, "htd", 0, PLACE(relative.key), .later = true},          \
    {                                                                                      \
        "value_table", ENGINE_ADDED, v + 1, "hte", 0, PLACE(relative.value), .later = true \
    }
#define XL(v)                                                                                            \
    {"position_keys", ENGINE_ADDED, v, "htd", 0, PLACE(relative.key), .later = true},                    \
        {"content_bias", ENGINE_PER_HEAD, v + 1, "h.d", 0, PLACE(relative.content_bias), .later = true}, \
    {                                                                                                    \
        "position_bias", ENGINE_PER_HEAD, v + 2, "h.d", 0, PLACE(relative.position_bias), .later = true  \
    }

/* What the gradients are made of; n: the argument that is grad_lse. */
#define RESULTS(o, n)                                                                                                     \
    {"grad_output", ENGINE_ADDED, 0, "hle", 0, GRADIENT(gradient)}, {"output", ENGINE_ADDED, o, "hle", 0, PLACE(output)}, \
        {"lse", ENGINE_ADDED, o + 1, "hl.", 0, PLACE(lse)},                                                               \
    {                                                                                                                     \
        "grad_lse", ENGINE_ADDED, n, "hl.", 0, GRADIENT(grad_lse)                                                         \
    }
#define OUTPUTS                                  \
    {                                            \
        {"output", "hle", false, PLACE(output)}, \
        {                                        \
            "lse", "hl.", true, PLACE(lse)       \
        }                                        \
    }
#define GRADIENTS                                                                                                                            \
    {"query", "hld", false, GRADIENT(grad_query)}, {"key", "gsd", false, GRADIENT(grad_key)}, {"value", "gse", false, GRADIENT(grad_value)}, \
        {"attn_mask", "hls", false, GRADIENT(grad_mask)},                                                                                    \
    {                                                                                                                                        \
        "bias", "hls", false, GRADIENT(grad_bias)                                                                                            \
    }

enum { FIRST_VECTORS = 8 }; /* the place of key_table or position_keys among the operands */

static const struct engine_function shaw = {
    .name = "relative_attention_shaw",
    .signature = "(h,l,d),(g,s,d),(g,s,e),(h,t,d)->(h,l,e)",
    .arguments = 15,
    .instead = "attn_mask",
    .kernel = offsetof(struct attn_kernels, attention),
    .operands = {OPERANDS(0, 5), SHAW(3)},
    .outputs = OUTPUTS,
};

static const struct engine_function xl = {
    .name = "relative_attention_xl",
    .signature = "(h,l,d),(g,s,d),(g,s,e),(h,t,d),(h,d),(h,d)->(h,l,e)",
    .arguments = 16,
    .instead = "attn_mask",
    .kernel = offsetof(struct attn_kernels, attention),
    .operands = {OPERANDS(0, 6), XL(3)},
    .outputs = OUTPUTS,
};

static const struct engine_function shaw_backward = {
    .name = "relative_attention_shaw_backward",
    .signature = "(h,l,e),(h,l,d),(g,s,d),(g,s,e),(h,t,d),(h,t,e),(h,l,e),(h,l)->(h,l,d),(g,s,d),(g,s,e)",
    .arguments = 19,
    .instead = "attn_mask",
    .follows = true,
    .kernel = offsetof(struct attn_kernels, attention_backward),
    .operands = {OPERANDS(1, 8), SHAW(4), RESULTS(6, 16)},
    .outputs = {GRADIENTS, {"key_table", "htd", false, GRADIENT(grad_relative_key)}, {"value_table", "hte", false, GRADIENT(grad_relative_value)}},
};

static const struct engine_function xl_backward = {
    .name = "relative_attention_xl_backward",
    .signature = "(h,l,e),(h,l,d),(g,s,d),(g,s,e),(h,t,d),(h,d),(h,d),(h,l,e),(h,l)->(h,l,d),(g,s,d),(g,s,e)",
    .arguments = 20,
    .instead = "attn_mask",
    .follows = true,
    .kernel = offsetof(struct attn_kernels, attention_backward),
    .operands = {OPERANDS(1, 9), XL(4), RESULTS(7, 17)},
    .outputs = {GRADIENTS,
                {"position_keys", "htd", false, GRADIENT(grad_relative_key)},
                {"content_bias", "h.d", false, GRADIENT(grad_content_bias)},
                {"position_bias", "h.d", false, GRADIENT(grad_position_bias)}},
};

/* An operand of the vectors; absent: nothing is done. `vectors` is known from the first on. */
static bool
take_vectors(struct engine *e, int place, struct attn_attention *a)
{
    const struct engine_operand *operand = &e->function->operands[place];
    struct attn_tensor *tensor = (struct attn_tensor *)((char *)a + operand->tensor);
    int64_t n = *engine_size(e, operand->core[2]);
    tensor->data = NULL;
    if (e->arguments[operand->argument] == Py_None)
        return true;
    PyArrayObject *array = engine_array(e, operand->name, e->arguments[operand->argument]);
    if (!array || !(array = engine_numbers(e, operand->name, array)))
        return false;
    int ndim = PyArray_NDIM(array);
    if (operand->core[1] == 't') {
        if (ndim < 2 || PyArray_DIM(array, ndim - 1) != n)
            return engine_shape_error(operand->name, array, "it must be (..., H, rows, %lld) or (rows, %lld)", (long long)n, (long long)n);
        if (*engine_size(e, 't') < 0)
            *engine_size(e, 't') = PyArray_DIM(array, ndim - 2);
        else if (PyArray_DIM(array, ndim - 2) != *engine_size(e, 't'))
            return engine_shape_error(operand->name, array, "it must have %lld rows, as key_table has", (long long)*engine_size(e, 't'));
    } else if (ndim < 1 || PyArray_DIM(array, ndim - 1) != n)
        return engine_shape_error(operand->name, array, "it must be (..., H, %lld) or (%lld,)", (long long)n, (long long)n);
    return engine_take(e, operand, (PyObject *)array, tensor);
}

/* Which distances i + offset - j visible pairs have, as far as ranges tell, in one batch element. False: there are none. */
static bool
distances_of(const struct attn_attention *a, int64_t batch, int64_t *least, int64_t *most)
{
    int64_t queries = a->query_length, keys = a->key_length;
    if (a->query_lengths.data)
        queries = *(const int64_t *)(a->query_lengths.data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, a->query_lengths.batch));
    if (a->kv_lengths.data)
        keys = *(const int64_t *)(a->kv_lengths.data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, a->kv_lengths.batch));
    int64_t offset = keys - queries;
    if (a->causal_offset.data)
        offset = *(const int64_t *)(a->causal_offset.data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, a->causal_offset.batch));
    if (queries == 0 || keys == 0)
        return false;
    *least = offset - (keys - 1);
    *most = offset + queries - 1;
    if (a->is_causal)
        *least = attn_max(*least, 0);
    if (a->window_right >= 0)
        *least = attn_max(*least, -a->window_right);
    if (a->window_left >= 0)
        *most = attn_min(*most, a->window_left);
    return *least <= *most;
}

/* Row t of position_keys is distance S - 1 - t: there must be one for each visible pair. */
static bool
check_distances(const struct engine *e, const struct attn_attention *a)
{
    for (int64_t batch = 0; batch < e->batch && a->heads > 0; batch++) {
        int64_t least, most, last = a->key_length - 1;
        if (!distances_of(a, batch, &least, &most) || (most <= last && last - least < a->relative.vectors))
            continue;
        PyErr_Format(PyExc_ValueError,
                     "position_keys has %lld rows, for distances %lld ... %lld (row t is distance S - 1 - t); visible pairs are %lld ... %lld apart",
                     (long long)a->relative.vectors, (long long)(last - a->relative.vectors + 1), (long long)last, (long long)least, (long long)most);
        return false;
    }
    return true;
}

/* Vectors, scores and positions; `m` points to the argument attn_mask. */
static bool
bind(struct engine *e, PyObject *const *m, struct attn_attention *a)
{
    PyObject *const scores[] = {m[1], m[2], m[3], m[4], m[5], Py_None};
    bool clips = e->function == &shaw || e->function == &shaw_backward;
    struct attn_tensor lse = a->lse;
    a->alibi_slopes.data = a->sinks.data = a->relative_bias.data = a->rotary.cosine.data = NULL;
    if (!attention_bind_scores(e, scores, a) ||
        !attention_check_present(clips ? "key_table" : "position_keys", e->arguments[e->function->operands[FIRST_VECTORS].argument]))
        return false;
    a->lse = lse;
    for (int i = FIRST_VECTORS; i < FIRST_VECTORS + (clips ? 2 : 3); i++)
        if (!take_vectors(e, i, a))
            return false;
    a->relative.vectors = *engine_size(e, 't');
    a->relative.clips = clips;
    a->relative.centre = clips ? a->relative.vectors / 2 : a->key_length - 1;
    if (clips && a->relative.vectors % 2 == 0) {
        PyErr_Format(PyExc_ValueError, "key_table has %lld rows; it must have 2 K + 1, for distances -K ... K", (long long)a->relative.vectors);
        return false;
    }
    return attention_check_positions(e, a) && (clips || check_distances(e, a));
}

static PyObject *
forward(const struct engine_function *function, int m, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_attention a;
    struct engine e;
    bool with_lse = false;
    bool done = engine_open(&e, function, arguments, n, &a) && bind(&e, arguments + m, &a) && engine_flag("return_lse", arguments[n - 2], &with_lse);
    a.lse.data = NULL;
    done = done && engine_outputs(&e, arguments[n - 1], with_lse ? 2 : 1, &a) && engine_run(&e, &a);
    return engine_close(&e, done);
}

static PyObject *
backward(const struct engine_function *function, int m, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_attention_backward b;
    struct engine e;
    b.of_weights = false;
    bool done = engine_open(&e, function, arguments, n, &b) && attention_check_present("grad_output", arguments[0]) &&
                attention_check_present("output", arguments[m - 2]) && attention_check_present("lse", arguments[m - 1]) &&
                bind(&e, arguments + m, &b.forward) && attention_bind_gradients(&e, arguments[n - 2], arguments[n - 1], &b) &&
                attention_run_gradients(&e, &b);
    return engine_close(&e, done);
}

static PyObject *
call_shaw(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return forward(&shaw, 5, arguments, n);
}

static PyObject *
call_xl(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return forward(&xl, 6, arguments, n);
}

static PyObject *
call_shaw_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return backward(&shaw_backward, 8, arguments, n);
}

static PyObject *
call_xl_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    return backward(&xl_backward, 9, arguments, n);
}

static PyMethodDef methods[] = {
    FAST_METHOD("relative_attention_shaw", call_shaw),
    FAST_METHOD("relative_attention_xl", call_xl),
    FAST_METHOD("relative_attention_shaw_backward", call_shaw_backward),
    FAST_METHOD("relative_attention_xl_backward", call_xl_backward),
    {0},
};

static const struct engine_function *const functions[] = {&shaw, &xl, &shaw_backward, &xl_backward, NULL};

const struct family attn_vectors_family = {methods, functions};
