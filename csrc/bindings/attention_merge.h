/* attention_merge.h: what the bindings of merge_attention and of its gradients share: any number of outputs and log-sum-exps. */
#ifndef ATTN_BINDINGS_ATTENTION_MERGE_H
#define ATTN_BINDINGS_ATTENTION_MERGE_H

#include "engine.h"

/* `each` arrays like outputs, then as many like log-sum-exps. The first n of either are the parts; what follows belongs to the whole. */
struct parts {
    Py_ssize_t n, each;
    char (*names)[32];
    const char **name;
    PyArrayObject **array;
    struct attn_tensor *tensor;
    enum attn_type *type; /* of a log-sum-exp's numbers before they take the type computed in */
    PyObject *converted;  /* a list that owns what was made of lists and of other types */
};

bool merge_open(struct engine *e, struct parts *parts, PyObject *outputs, PyObject *lses, int whole);
bool merge_open_whole(struct engine *e, struct parts *parts, Py_ssize_t index, const char *name, PyObject *object);
bool merge_bind(struct engine *e, struct parts *parts);
void merge_close(struct parts *parts);

#endif
