/* attention_backward.c: scaled_dot_product_attention_backward and attention_weights_backward. */
#include "attention.h"
#include "families.h"

#include <string.h>

#define GRADIENT(member) offsetof(struct attn_attention_backward, member)

/* The gradients in the order of their flags in `needs`, as places among the operands below. */
enum { QUERY, KEY, VALUE, MASK, BIAS, SINKS, SLOPES, RELATIVE, GRADIENTS };

#define GRADIENT_OUTPUTS                                                                                                 \
    {                                                                                                                    \
        {"query", "hld", false, GRADIENT(grad_query)},         {"key", "gsd", false, GRADIENT(grad_key)},                \
        {"value", "gse", false, GRADIENT(grad_value)},         {"attn_mask", "hls", false, GRADIENT(grad_mask)},         \
        {"bias", "hls", false, GRADIENT(grad_bias)},           {"sinks", "h..", false, GRADIENT(grad_sinks)},            \
        {"alibi_slopes", "h..", false, GRADIENT(grad_slopes)}, {"relative_bias", "hlt", false, GRADIENT(grad_relative)}, \
    }

static const struct engine_function backward = {
    .name = "scaled_dot_product_attention_backward",
    .signature = "(h,l,e),(h,l,d),(g,s,d),(g,s,e),(h,l,e),(h,l)->(h,l,d),(g,s,d),(g,s,e)",
    .arguments = 28,
    .instead = "attn_mask",
    .follows = true,
    .kernel = offsetof(struct attn_kernels, attention_backward),
    .operands = {QUERY_AND_KEY(1),
                 {"value", ENGINE_DATA, 3, "gse", 0, PLACE(value)},
                 SCORE_OPERANDS(6, 10),
                 RELATIVE_OPERAND(18),
                 {"grad_output", ENGINE_ADDED, 0, "hle", 0, GRADIENT(gradient)},
                 {"output", ENGINE_ADDED, 4, "hle", 0, PLACE(output)},
                 {"lse", ENGINE_ADDED, 5, "hl.", 0, PLACE(lse)},
                 {"grad_lse", ENGINE_ADDED, 25, "hl.", 0, GRADIENT(grad_lse)}},
    .outputs = GRADIENT_OUTPUTS,
};

static const struct engine_function weights_backward = {
    .name = "attention_weights_backward",
    .signature = "(h,l,s),(h,l,d),(g,s,d)->(h,l,d),(g,s,d)",
    .arguments = 23,
    .instead = "attn_mask",
    .follows = true,
    .kernel = offsetof(struct attn_kernels, attention_backward),
    .operands = {QUERY_AND_KEY(1),
                 SCORE_OPERANDS(3, 6),
                 RELATIVE_OPERAND(14),
                 {"grad_weights", ENGINE_ADDED, 0, "hls", 0, GRADIENT(gradient), .later = true}},
    .outputs = GRADIENT_OUTPUTS,
};

/* Which operand has a name. -1: the function has none such. */
static int
operand_named(const struct engine_function *function, const char *name)
{
    for (int i = 0; i < ENGINE_OPERANDS && function->operands[i].kind != ENGINE_NONE; i++)
        if (strcmp(function->operands[i].name, name) == 0)
            return i;
    return -1;
}

bool
attention_check_present(const char *name, PyObject *object)
{
    if (object != Py_None)
        return true;
    PyErr_Format(PyExc_TypeError, "%s is None; it must be an array", name);
    return false;
}

static void
clear_relative(struct attn_attention_backward *b)
{
    b->grad_relative_key.data = b->grad_relative_value.data = b->grad_content_bias.data = b->grad_position_bias.data = NULL;
}

/* Gradients that a function may return: all its outputs. */
static int
gradients_of(const struct engine_function *function)
{
    int n = 0;
    while (n < ENGINE_OUTPUTS && function->outputs[n].name)
        n++;
    return n;
}

static bool
read_needs(struct engine *e, PyObject *needs, bool *wanted)
{
    const int gradients = gradients_of(e->function);
    if (!PyTuple_Check(needs) || PyTuple_Size(needs) != gradients) {
        PyErr_Format(PyExc_TypeError, "needs must be a tuple of %d flags, not %R", gradients, needs);
        return false;
    }
    for (int i = 0; i < gradients; i++) {
        const char *name = e->function->outputs[i].name;
        int operand = operand_named(e->function, name);
        if (!engine_flag("needs", PyTuple_GetItem(needs, i), &wanted[i]))
            return false;
        if (wanted[i] && (operand < 0 || !e->operand[operand])) {
            PyErr_Format(PyExc_ValueError, "needs holds '%s', but there is no %s", name, name);
            return false;
        }
        if (wanted[i] && i == MASK && PyArray_DESCR(e->operand[operand])->type_num == NPY_BOOL) {
            PyErr_SetString(PyExc_ValueError, "needs holds 'attn_mask', but attn_mask is boolean, which has no gradient");
            return false;
        }
    }
    return true;
}

/* Whether the query has fewer elements than the gradients that are made for it: it broadcasts along some batch axis. */
static bool
query_broadcasts(const struct engine *e, const struct attn_attention_backward *b)
{
    for (int i = 0; i < e->batch_ndim && !e->function->packed; i++)
        if (e->batch_shape[i] > 1 && b->forward.query.batch[i] == 0) {
            int from_end = e->batch_ndim - i + 3, ndim = PyArray_NDIM(e->operand[QUERY]);
            if (ndim < from_end || PyArray_DIM(e->operand[QUERY], ndim - from_end) == 1)
                return true;
        }
    return false;
}

bool
attention_bind_gradients(struct engine *e, PyObject *needs, PyObject *out, struct attn_attention_backward *b)
{
    bool wanted[ENGINE_OUTPUTS];
    const int gradients = gradients_of(e->function);
    clear_relative(b);
    b->grad_sinks.data = b->grad_slopes.data = b->grad_relative.data = NULL; /* not every function has them */
    if (!read_needs(e, needs, wanted))
        return false;
    if (out != Py_None && (!PyTuple_Check(out) || PyTuple_Size(out) != gradients)) {
        PyErr_Format(PyExc_TypeError, "out must be None or a tuple of %d arrays or None, not %R", gradients, out);
        return false;
    }
    b->query_accumulates = b->forward.rows.data || query_broadcasts(e, b);
    e->results = gradients;
    bool nothing = b->forward.batch == 0 || b->forward.heads == 0; /* operands that have no such axis still get their zeros */
    for (int i = 0; i < gradients; i++) {
        struct attn_tensor *tensor = (struct attn_tensor *)((char *)b + e->function->outputs[i].tensor);
        bool accumulated = nothing || (i == QUERY ? b->query_accumulates : i >= MASK);
        tensor->data = NULL;
        if (wanted[i] && !engine_gradient(e, i, operand_named(e->function, e->function->outputs[i].name),
                                          out == Py_None ? out : PyTuple_GetItem(out, i), accumulated, b))
            return false;
    }
    e->results = gradients;
    engine_clear(e);
    return true;
}

/* Whether keys and values broadcast along different batch axes: a task owns the gradient of only one of them then. */
static bool
owners_differ(const struct attn_attention_backward *b)
{
    bool differ = false;
    if (!b->grad_key.data || !b->grad_value.data)
        return false;
    for (int i = 0; i < b->forward.batch_ndim; i++)
        differ |= b->forward.batch_shape[i] > 1 && (b->grad_key.batch[i] == 0) != (b->grad_value.batch[i] == 0);
    return differ;
}

bool
attention_run_gradients(const struct engine *e, struct attn_attention_backward *b)
{
    if (!owners_differ(b))
        return engine_run(e, b);
    struct attn_attention_backward of_value = *b;
    b->grad_value.data = NULL;
    of_value.grad_query.data = of_value.grad_key.data = of_value.grad_mask.data = of_value.grad_bias.data = NULL;
    of_value.grad_sinks.data = of_value.grad_slopes.data = of_value.grad_relative.data = NULL;
    clear_relative(&of_value);
    return engine_run(e, b) && engine_run(e, &of_value);
}

static PyObject *
call_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_attention_backward b;
    struct attn_attention *a = &b.forward;
    struct engine e;
    (void)module;
    b.of_weights = false;
    bool done = engine_open(&e, &backward, arguments, n, &b) && attention_check_present("grad_output", arguments[0]) &&
                attention_check_present("output", arguments[4]) && attention_check_present("lse", arguments[5]);
    struct attn_tensor lse = a->lse;
    done = done && attention_bind_scores(&e, arguments + 8, a) && attention_bind_rotary(&e, arguments + 19, attention_check_batch, a, a) &&
           engine_dropout(arguments[7], arguments[24], &a->dropout_p, a->dropout_key);
    a->lse = lse;
    done = done && attention_bind_gradients(&e, arguments[26], arguments[27], &b) && attention_run_gradients(&e, &b);
    return engine_close(&e, done);
}

static PyObject *
call_weights_backward(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_attention_backward b;
    struct engine e;
    (void)module;
    b.of_weights = true;
    b.forward.value.data = b.grad_lse.data = NULL;
    bool done = engine_open(&e, &weights_backward, arguments, n, &b) && attention_check_present("grad_weights", arguments[0]) &&
                attention_bind_scores(&e, arguments + 4, &b.forward) &&
                attention_bind_rotary(&e, arguments + 15, attention_check_batch, &b.forward, &b.forward) &&
                attention_bind_rows(&e, arguments[20], &b.forward) &&
                engine_take(&e, &weights_backward.operands[operand_named(&weights_backward, "grad_weights")], arguments[0], &b.gradient);
    if (done)
        *engine_size(&e, 'l') = b.forward.query_length; /* grad_weights has the rows asked for, the gradients of masks have all */
    done = done && attention_bind_gradients(&e, arguments[21], arguments[22], &b) && attention_run_gradients(&e, &b);
    return engine_close(&e, done);
}

static PyMethodDef methods[] = {
    FAST_METHOD("scaled_dot_product_attention_backward", call_backward), FAST_METHOD("attention_weights_backward", call_weights_backward), {0}};

static const struct engine_function *const functions[] = {&backward, &weights_backward, NULL};

const struct family attn_backward_family = {methods, functions};
