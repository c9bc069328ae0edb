/* families.h: what each file of this floor offers to module.c. */
#ifndef ATTN_FAMILIES_H
#define ATTN_FAMILIES_H

#include "engine.h"

/* Python methods, ended by an empty one, and the functions among them that have operands, ended by NULL. */
struct family {
    PyMethodDef *methods;
    const struct engine_function *const *functions;
};

extern const struct family attn_softmax_family, attn_softmax_backward_family, attn_attention_family, attn_backward_family, attn_jvp_family;
extern const struct family attn_layers_family, attn_linear_family, attn_norm_family, attn_embedding_family, attn_loss_family, attn_multi_head_family;
extern const struct family attn_varlen_family, attn_cache_family, attn_merge_family, attn_merge_backward_family, attn_thread_family,
    attn_probe_family, attn_positions_relative_family, attn_positions_rotary_family, attn_learned_family, attn_sinusoidal_family, attn_vectors_family;

/* Functions that another one is made of, as Python calls them. */
PyObject *attention_call(PyObject *module, PyObject *const *arguments, Py_ssize_t n);         /* scaled_dot_product_attention */
PyObject *attention_weights_call(PyObject *module, PyObject *const *arguments, Py_ssize_t n); /* attention_weights */
PyObject *linear_call(PyObject *module, PyObject *const *arguments, Py_ssize_t n);            /* linear */

/* level.c: the instruction-set level and the environment, read at import */
bool level_choose(void);
const char *level_in_use(void);
PyObject *level_config(void);

#define FAST_METHOD(name, function) {name, (PyCFunction)(void (*)(void))(function), METH_FASTCALL, NULL}

#endif
