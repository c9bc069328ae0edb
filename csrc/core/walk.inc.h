/* walk.inc.h: the axes of several operands that are walked together, merged where that is possible. */
#ifndef ATTN_WALK_NAMES
#define ATTN_WALK_NAMES

enum { ATTN_WALKED = 8 }; /* operands at most; the strides of those that a family does not have are 0 */

/* Axes that were merged where all operands allow it; strides in bytes, [axis][operand]. The last one is the innermost. */
struct attn_axes {
    int ndim;
    int64_t shape[ATTN_MAX_BATCH];
    int64_t stride[ATTN_MAX_BATCH][ATTN_WALKED];
};

/* Appends an axis, merged with the one before it where the two are walked as one. */
static inline void
attn_axis_push(struct attn_axes *axes, int64_t count, const int64_t *stride)
{
    if (count == 1)
        return;
    int last = axes->ndim - 1;
    bool joins = last >= 0;
    for (int o = 0; o < ATTN_WALKED && joins; o++)
        joins = axes->stride[last][o] == count * stride[o];
    if (!joins)
        axes->shape[last = axes->ndim++] = 1;
    axes->shape[last] *= count;
    for (int o = 0; o < ATTN_WALKED; o++)
        axes->stride[last][o] = stride[o];
}

/* The byte offsets of element `index`, counted in C order of the axes. */
static inline void
attn_offsets(const struct attn_axes *axes, int64_t index, int64_t *offset)
{
    for (int o = 0; o < ATTN_WALKED; o++)
        offset[o] = 0;
    for (int axis = axes->ndim - 1; axis >= 0; axis--) {
        int64_t i = axis > 0 ? index % axes->shape[axis] : index;
        for (int o = 0; o < ATTN_WALKED; o++)
            offset[o] += i * axes->stride[axis][o];
        index = axis > 0 ? index / axes->shape[axis] : 0;
    }
}

static inline int64_t
attn_axes_size(const struct attn_axes *axes)
{
    int64_t size = 1;
    for (int axis = 0; axis < axes->ndim; axis++)
        size *= axes->shape[axis];
    return size;
}
#endif
