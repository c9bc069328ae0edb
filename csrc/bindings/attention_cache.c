/* attention_cache.c: paged_attention and attention_with_cache: keys and values in pages, one after another, or as int8. */
#include "attention.h"
#include "families.h"

/* Arguments is_causal, scale, causal_offset, window_size, softcap, alibi_slopes, sinks, query_lengths lie in a row from `first` on. */
#define CACHE_OPERANDS(first, kv, relative)                                                                                                     \
    {"alibi_slopes", ENGINE_PER_HEAD, first + 5, "h..", 0, PLACE(alibi_slopes)}, {"sinks", ENGINE_PER_HEAD, first + 6, "h..", 0, PLACE(sinks)}, \
        {"causal_offset", ENGINE_OFFSETS, first + 2, "...", 0, PLACE(causal_offset)},                                                           \
        {"query_lengths", ENGINE_LENGTHS, first + 7, "...", 'l', PLACE(query_lengths)},                                                         \
        {"kv_lengths", ENGINE_LENGTHS, kv, "...", 's', PLACE(kv_lengths)}, RELATIVE_OPERAND(relative)
#define RESULTS                                  \
    {                                            \
        {"output", "hle", false, PLACE(output)}, \
        {                                        \
            "lse", "hl.", true, PLACE(lse)       \
        }                                        \
    }

static const struct engine_function paged = {
    .name = "paged_attention",
    .signature = "(h,l,d),(n,p,g,d),(n,p,g,e),(m),()->(h,l,e)",
    .arguments = 19,
    .instead = "kv_lengths",
    .kernel = offsetof(struct attn_kernels, attention),
    .operands = {{"query", ENGINE_DATA, 0, "hld", 0, PLACE(query)}, CACHE_OPERANDS(5, 4, 13)},
    .outputs = RESULTS,
};

static const struct engine_function cached = {
    .name = "attention_with_cache",
    .signature = "(h,l,d),(g,s,d),(g,s,e)->(h,l,e)",
    .arguments = 22,
    .instead = "query_lengths",
    .kernel = offsetof(struct attn_kernels, attention),
    .operands = {{"query", ENGINE_DATA, 0, "hld", 0, PLACE(query)}, CACHE_OPERANDS(7, 15, 16)},
    .outputs = RESULTS,
};

/* The scalars from is_causal on; what neither function has is absent. */
static bool
bind_scores(struct engine *e, PyObject *const *argument, struct attn_attention *a)
{
    PyObject *const scores[] = {argument[0], argument[1], Py_None, argument[2], argument[3], argument[4]};
    a->attn_mask.data = a->bias.data = NULL;
    a->block_mask.indptr = NULL;
    return attention_bind_scores(e, scores, a);
}

/* rotary_cos, rotary_sin, rotary_interleaved; keys stand in order. */
static bool
bind_rotary(struct engine *e, PyObject *const *argument, struct attn_attention *a)
{
    PyObject *const rotary[] = {argument[0], argument[1], argument[2], Py_None, Py_None};
    return attention_bind_rotary(e, rotary, attention_check_batch, a, a);
}

/* The optional operands; sizes are known. */
static bool
take_options(struct engine *e, struct attn_attention *a)
{
    const struct engine_operand *operand = e->function->operands + 1;
    for (; operand->kind != ENGINE_NONE; operand++) {
        struct attn_tensor *tensor = (struct attn_tensor *)((char *)a + operand->tensor);
        PyObject *object = e->arguments[operand->argument];
        tensor->data = NULL;
        if (object != Py_None && !engine_take(e, operand, object, tensor))
            return false;
    }
    return true;
}

/* key_pages (pages, page_size, G, D) and value_pages (the same, E). */
static bool
bind_pages(struct engine *e, PyArrayObject *key, PyArrayObject *value, struct attn_attention *a)
{
    if (PyArray_NDIM(key) != 4)
        return engine_shape_error("key_pages", key, "it must have four axes (pages, page_size, G, head_dim)");
    if (PyArray_DIM(key, 3) != *engine_size(e, 'd'))
        return engine_shape_error("key_pages", key, "its last axis must be %lld, as in query", (long long)*engine_size(e, 'd'));
    if (PyArray_DIM(key, 1) < 1)
        return engine_shape_error("key_pages", key, "its pages must hold at least one key");
    bool same = PyArray_NDIM(value) == 4;
    for (int i = 0; same && i < 3; i++)
        same = PyArray_DIM(value, i) == PyArray_DIM(key, i);
    if (!same)
        return engine_shape_error("value_pages", value, "it must be (%lld, %lld, %lld, D), as key_pages", (long long)PyArray_DIM(key, 0),
                                  (long long)PyArray_DIM(key, 1), (long long)PyArray_DIM(key, 2));
    a->page_size = PyArray_DIM(key, 1);
    *engine_size(e, 'g') = PyArray_DIM(key, 2);
    *engine_size(e, 'e') = PyArray_DIM(value, 3);
    return true;
}

/* The pages become the batch axis of an operand (pages, G, page_size, D). */
static bool
pages_tensor(struct engine *e, PyArrayObject *array, struct attn_tensor *tensor)
{
    struct engine pages = {.batch_ndim = 1};
    npy_intp axis[] = {0, 2, 1, 3};
    PyArray_Dims order = {axis, 4};
    PyObject *turned = PyArray_Transpose(array, &order);
    if (!engine_hold(e, turned))
        return false;
    engine_tensor(&pages, "gsd", (PyArrayObject *)turned, tensor);
    e->input[e->inputs++] = array;
    return true;
}

/* The table and how many keys it has room for. */
static bool
bind_table(struct engine *e, PyObject *object, struct attn_tensor *table, int64_t page_size)
{
    static const struct engine_operand operand = {.name = "block_table", .kind = ENGINE_OFFSETS, .core = "..m"};
    const int64_t most = (int64_t)1 << 62;
    PyArrayObject *array = engine_integers(e, operand.name, object);
    if (!array)
        return false;
    if (PyArray_NDIM(array) == 0)
        return engine_shape_error(operand.name, array, "it must have a last axis, the pages of a sequence");
    int64_t pages = *engine_size(e, 'm') = PyArray_DIM(array, PyArray_NDIM(array) - 1);
    if (__builtin_mul_overflow(pages, page_size, engine_size(e, 's')) || *engine_size(e, 's') > most)
        *engine_size(e, 's') = most;
    if (!engine_broadcast(e, &operand, array, table))
        return false;
    table->type = ATTN_INT64;
    return true;
}

/* Every entry that belongs to a key within its sequence's length is a page. The keys there are: those of the longest sequence. */
static bool
check_table(struct engine *e, const struct attn_attention *a, const struct attn_tensor *table, int64_t pages)
{
    int64_t longest = 0;
    for (int64_t i = 0; i < e->batch; i++) {
        int64_t length = *(const int64_t *)(a->kv_lengths.data + attn_batch_offset(i, e->batch_ndim, e->batch_shape, a->kv_lengths.batch));
        const char *entry = table->data + attn_batch_offset(i, e->batch_ndim, e->batch_shape, table->batch);
        longest = attn_max(longest, length);
        for (int64_t j = 0; j * a->page_size < length; j++) {
            int64_t page = *(const int64_t *)(entry + j * table->column);
            if (page < 0 || page >= pages) {
                PyErr_Format(PyExc_ValueError, "block_table holds %lld at entry %lld of sequence %lld, within its length; each must be in 0 ... %lld",
                             (long long)page, (long long)j, (long long)i, (long long)pages - 1);
                return false;
            }
        }
    }
    *engine_size(e, 's') = longest;
    return true;
}

/* Query, pages, table and the options after `names`; arguments from `scores` on are those of bind_scores. */
static bool
open_pages(struct engine *e, const char *const *names, PyObject *block_table, PyObject *const *scores, struct attn_attention *a)
{
    PyArrayObject *array[3];
    struct attn_tensor table;
    for (int i = 0; i < 3; i++)
        if (!(array[i] = engine_array(e, names[i], e->arguments[i])))
            return false;
    if (!engine_common_type(e, names, array, 3) || !engine_core_sizes(e, "query", "hld", array[0]) || !engine_finish_batch(e) ||
        !bind_pages(e, array[1], array[2], a))
        return false;
    engine_tensor(e, "hld", array[0], &a->query);
    e->input[e->inputs++] = array[0];
    if (!pages_tensor(e, array[1], &a->key) || !pages_tensor(e, array[2], &a->value) || !bind_table(e, block_table, &table, a->page_size) ||
        !take_options(e, a))
        return false;
    if (!a->kv_lengths.data) {
        PyErr_SetString(PyExc_TypeError, "kv_lengths must hold integers, not None");
        return false;
    }
    if (!check_table(e, a, &table, PyArray_DIM(array[1], 0)) || !bind_scores(e, scores, a))
        return false;
    a->block_table = table;
    return true;
}

static PyObject *
call_paged(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    static const char *const names[] = {"query", "key_pages", "value_pages"};
    struct attn_attention a;
    struct engine e;
    bool with_lse = false;
    (void)module;
    engine_start(&e, &paged, arguments, n);
    bool done = engine_argument_count(paged.name, paged.arguments, n) && open_pages(&e, names, arguments[3], arguments + 5, &a) &&
                bind_rotary(&e, arguments + 14, &a) && engine_flag("return_lse", arguments[17], &with_lse) &&
                engine_outputs(&e, arguments[18], with_lse ? 2 : 1, &a) && engine_run(&e, &a);
    return engine_close(&e, done);
}

/* Positions of a ring count from the last multiple of this at or before the oldest key: kernels cut keys there, so that the bits are those of a cache
 * that has kept all. */
enum { RING_UNIT = 1024 };

/* kv_first (B..): the position of the oldest key that is still stored. The first query of a sequence must not look back beyond. Rotary tables begin at the
 * sequence's beginning. */
static bool
check_reach(struct engine *e, PyObject *object, struct attn_attention *a)
{
    static const struct engine_operand operand = {.name = "kv_first", .kind = ENGINE_OFFSETS, .core = "..."};
    struct attn_tensor first;
    if (!engine_take(e, &operand, object, &first))
        return false;
    for (int64_t i = 0; i < e->batch; i++) {
        const struct attn_tensor *t[] = {&a->query_lengths, &a->kv_lengths, &a->causal_offset, &first};
        int64_t number[] = {a->query_length, a->key_length, 0, 0};
        for (int n = 0; n < 4; n++)
            if (t[n]->data)
                number[n] = *(const int64_t *)(t[n]->data + attn_batch_offset(i, e->batch_ndim, e->batch_shape, t[n]->batch));
        int64_t offset = a->causal_offset.data ? number[2] : number[1] - number[0], inside = number[3] % RING_UNIT;
        int64_t needed = a->window_left < 0 ? inside - number[3] : attn_max(offset - a->window_left, inside - number[3]);
        int64_t lost = attn_min(inside, number[1]) - needed;
        if (number[0] > 0 && lost > 0) {
            PyErr_Format(PyExc_ValueError,
                         "query looks back %lld positions further than the cache holds keys of sequence %lld: pass fewer rows at a time, or make "
                         "max_length larger",
                         (long long)lost, (long long)i);
            return false;
        }
    }
    for (int64_t i = 0; i < e->batch; i++) { /* a second time changes nothing */
        int64_t *start = (int64_t *)(first.data + attn_batch_offset(i, e->batch_ndim, e->batch_shape, first.batch));
        *start -= *start % RING_UNIT;
    }
    a->rotary.start = first;
    return true;
}

/* The scale of each row of int8, in the type computed in. */
static PyArrayObject *
take_scale(struct engine *e, const char *name, const char *core, PyObject *object)
{
    PyArrayObject *scale = engine_array(e, name, object);
    if (!scale || !(scale = engine_numbers(e, name, scale)) || !(scale = engine_to_compute(e, scale)) || !engine_core_sizes(e, name, core, scale))
        return NULL;
    e->input[e->inputs++] = scale;
    return scale;
}

/* Keys and values one after another; scales where they are int8. */
static bool
open_rows(struct engine *e, PyObject *const *arguments, struct attn_attention *a)
{
    const char *const names[] = {"query", "key", "value"};
    static const char *const cores[] = {"hld", "gsd", "gse"};
    struct attn_tensor *tensors[] = {&a->query, &a->key, &a->value}, scales[2];
    PyArrayObject *array[3], *scale[2] = {NULL, NULL};
    bool scaled = arguments[3] != Py_None;
    for (int i = 0; i < 3; i++)
        if (!(array[i] = engine_array(e, names[i], arguments[i])))
            return false;
    if (scaled && (PyArray_DESCR(array[1])->type_num != NPY_BYTE || PyArray_DESCR(array[2])->type_num != NPY_BYTE)) {
        PyErr_SetString(PyExc_TypeError, "key and value must be int8 where key_scale is given");
        return false;
    }
    if (!engine_common_type(e, names, array, scaled ? 1 : 3))
        return false;
    for (int i = 0; i < 3; i++)
        if (!engine_core_sizes(e, names[i], cores[i], array[i]))
            return false;
    if (scaled && (!(scale[0] = take_scale(e, "key_scale", "gs.", arguments[3])) || !(scale[1] = take_scale(e, "value_scale", "gs.", arguments[4]))))
        return false;
    if (!engine_finish_batch(e))
        return false;
    for (int i = 0; i < 3; i++) {
        engine_tensor(e, cores[i], array[i], tensors[i]);
        e->input[e->inputs++] = array[i];
    }
    if (!take_options(e, a) || !bind_scores(e, arguments + 7, a))
        return false;
    if (scaled) {
        engine_tensor(e, "gs.", scale[0], &scales[0]);
        engine_tensor(e, "gs.", scale[1], &scales[1]);
        a->key.type = a->value.type = ATTN_INT8;
        a->key_scale = scales[0];
        a->value_scale = scales[1];
    }
    return true;
}

/* With a block table key and value are the pages of a ring, of which kv_first tells the oldest key. */
static PyObject *
call_cached(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    static const char *const names[] = {"query", "key", "value"};
    struct attn_attention a;
    struct engine e;
    bool with_lse = false;
    (void)module;
    engine_start(&e, &cached, arguments, n);
    bool done = engine_argument_count(cached.name, cached.arguments, n);
    if (done && arguments[5] != Py_None)
        done = open_pages(&e, names, arguments[5], arguments + 7, &a) && check_reach(&e, arguments[6], &a);
    else
        done = done && open_rows(&e, arguments, &a);
    done = done && bind_rotary(&e, arguments + 17, &a) && engine_flag("return_lse", arguments[20], &with_lse) &&
           engine_outputs(&e, arguments[21], with_lse ? 2 : 1, &a) && engine_run(&e, &a);
    return engine_close(&e, done);
}

static PyMethodDef methods[] = {
    FAST_METHOD("paged_attention", call_paged),
    FAST_METHOD("attention_with_cache", call_cached),
    {0},
};

static const struct engine_function *const functions[] = {&paged, &cached, NULL};

const struct family attn_cache_family = {methods, functions};
