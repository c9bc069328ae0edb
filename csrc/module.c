/* module.c: attnpy._core: the families, the level, the signatures. */
#define ATTN_IMPORTS_NUMPY
#include "bindings/families.h"

#include "core/pool.h"

static const struct family *const families[] = {
    &attn_attention_family, &attn_cache_family,          &attn_backward_family,           &attn_jvp_family,
    &attn_linear_family,    &attn_layers_family,         &attn_embedding_family,          &attn_loss_family,
    &attn_merge_family,     &attn_merge_backward_family, &attn_multi_head_family,         &attn_norm_family,
    &attn_learned_family,   &attn_sinusoidal_family,     &attn_positions_relative_family, &attn_positions_rotary_family,
    &attn_probe_family,     &attn_softmax_family,        &attn_softmax_backward_family,   &attn_thread_family,
    &attn_varlen_family,    &attn_vectors_family,
};

enum { FAMILIES = sizeof families / sizeof *families };

static bool
add_signatures(PyObject *module)
{
    PyObject *signatures = PyDict_New();
    bool added = signatures != NULL;
    for (int i = 0; added && i < FAMILIES; i++)
        for (const struct engine_function *const *function = families[i]->functions; added && *function; function++) {
            PyObject *text = PyUnicode_FromString((*function)->signature);
            added = text && PyDict_SetItemString(signatures, (*function)->name, text) == 0;
            Py_XDECREF(text);
        }
    added = added && PyModule_AddObjectRef(module, "signatures", signatures) == 0;
    Py_XDECREF(signatures);
    return added;
}

static int
execute(PyObject *module)
{
    if (PyArray_ImportNumPyAPI() < 0 || !level_choose() || !engine_foreign_start() || !engine_memory_start())
        return -1;
    if (attn_pool_init() != 0) {
        PyErr_SetString(PyExc_ImportError, "attnpy: the thread pool cannot be set up");
        return -1;
    }
    for (int i = 0; i < FAMILIES; i++)
        if (PyModule_AddFunctions(module, families[i]->methods) < 0)
            return -1;
    if (PyModule_AddStringConstant(module, "isa", level_in_use()) < 0 || !add_signatures(module))
        return -1;
    return 0;
}

/* Slots that Python 3.11's headers lack, by their numbers: Py_mod_multiple_interpreters (3.12) with the value "not supported", as NumPy's. */
enum { MULTIPLE_INTERPRETERS_SLOT = 3, FIRST_WITH_THAT_SLOT = 0x030c0000 };

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL}, /* room for MULTIPLE_INTERPRETERS_SLOT */
    {0, NULL},
};

static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "attnpy._core",
    .m_doc = "Attention on ndarrays: what the public functions of attnpy call. Arguments are positional.",
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    PyModuleDef_Slot *room = slots;
    while (room->slot)
        room++;
    if (Py_Version >= FIRST_WITH_THAT_SLOT && room[-1].slot != MULTIPLE_INTERPRETERS_SLOT)
        *room = (PyModuleDef_Slot){MULTIPLE_INTERPRETERS_SLOT, NULL};
    return PyModuleDef_Init(&definition);
}
