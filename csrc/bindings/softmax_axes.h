/* softmax_axes.h: what softmax and its gradients share: axis= and where=. */
#ifndef ATTN_BINDINGS_SOFTMAX_AXES_H
#define ATTN_BINDINGS_SOFTMAX_AXES_H

#include "engine.h"

#include "../kernels/softmax.h"

/* Which axes are summed over, and the order in which the kernel walks all of them: the others first. */
struct axes {
    int ndim, reduced;
    bool named[NPY_MAXDIMS];
    int order[NPY_MAXDIMS];
};

bool softmax_name_axes(struct axes *axes, PyObject *object, int ndim);
void softmax_walk(const struct axes *axes, PyArrayObject *array, bool keeps_reduced, struct attn_tensor *tensor);
bool softmax_bind_where(struct engine *e, PyObject *object, const char *name, PyArrayObject *x, const struct axes *axes, struct attn_tensor *keep);
bool softmax_sum_over_one(struct attn_softmax *a);

#endif
