/* attention_jvp.c: scaled_dot_product_attention_jvp. */
#include "attention.h"
#include "families.h"

#include "../kernels/attention_jvp.h"

#define JVP_PLACE(member) offsetof(struct attn_attention_jvp, member)

static const struct engine_function jvp = {
    .name = "scaled_dot_product_attention_jvp",
    .signature = "(h,l,d),(g,s,d),(g,s,e),(h,l,d),(g,s,d),(g,s,e)->(h,l,e),(h,l,e)",
    .arguments = 30,
    .instead = "attn_mask",
    .kernel = offsetof(struct attn_kernels, attention_jvp),
    .operands = {QUERY_AND_KEY(0),
                 {"value", ENGINE_DATA, 2, "gse", 0, PLACE(value)},
                 SCORE_OPERANDS(6, 10),
                 {"query_tangent", ENGINE_ADDED, 3, "hld", 0, JVP_PLACE(query_tangent)},
                 {"key_tangent", ENGINE_ADDED, 4, "gsd", 0, JVP_PLACE(key_tangent)},
                 {"value_tangent", ENGINE_ADDED, 5, "gse", 0, JVP_PLACE(value_tangent)},
                 RELATIVE_OPERAND(18),
                 {"bias_tangent", ENGINE_ADDED, 25, "hls", 0, JVP_PLACE(bias_tangent)},
                 {"sinks_tangent", ENGINE_PER_HEAD, 26, "h..", 0, JVP_PLACE(sinks_tangent)},
                 {"relative_bias_tangent", ENGINE_ADDED, 27, "hlt", 0, JVP_PLACE(relative_bias_tangent), .later = true}},
    .outputs = {{"output", "hle", false, PLACE(output)},
                {"output_tangent", "hle", false, JVP_PLACE(output_tangent)},
                {"lse", "hl.", true, PLACE(lse)},
                {"lse_tangent", "hl.", true, JVP_PLACE(lse_tangent)}},
};

/* A tangent moves an operand that is there. */
static bool
check_moved(const char *name, const struct attn_tensor *tangent, const struct attn_tensor *operand)
{
    if (!tangent->data || operand->data)
        return true;
    PyErr_Format(PyExc_ValueError, "%s_tangent needs %s", name, name);
    return false;
}

/* That of relative_bias has its axes. */
static bool
take_relative_tangent(struct engine *e, PyObject *object, struct attn_attention_jvp *j)
{
    const struct engine_operand *operand = jvp.operands;
    if (object == Py_None)
        return true;
    if (!j->forward.relative_bias.data) {
        PyErr_SetString(PyExc_ValueError, "relative_bias_tangent needs relative_bias");
        return false;
    }
    while (!operand->later)
        operand++;
    return engine_take(e, operand, object, &j->relative_bias_tangent);
}

static PyObject *
call_jvp(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    struct attn_attention_jvp j;
    struct engine e;
    bool with_lse = false;
    (void)module;
    j.lse_tangent.data = NULL;
    bool done = engine_open(&e, &jvp, arguments, n, &j) && attention_bind_scores(&e, arguments + 8, &j.forward) &&
                attention_bind_rotary(&e, arguments + 19, attention_check_batch, &j.forward, &j.forward) &&
                check_moved("bias", &j.bias_tangent, &j.forward.bias) && check_moved("sinks", &j.sinks_tangent, &j.forward.sinks) &&
                take_relative_tangent(&e, arguments[27], &j) &&
                engine_dropout(arguments[7], arguments[24], &j.forward.dropout_p, j.forward.dropout_key) &&
                engine_flag("return_lse", arguments[28], &with_lse) && engine_outputs(&e, arguments[29], with_lse ? 4 : 2, &j) && engine_run(&e, &j);
    return engine_close(&e, done);
}

static PyMethodDef methods[] = {
    FAST_METHOD("scaled_dot_product_attention_jvp", call_jvp),
    {0},
};

static const struct engine_function *const functions[] = {&jvp, NULL};

const struct family attn_jvp_family = {methods, functions};
