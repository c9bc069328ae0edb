/* layers_walk.inc.h: rows of several operands, which are read and written where they lie or by way of scratch. Changes no operation, so the bits stay. */
#ifndef ATTN_LAYERS_WALK_NAMES
#define ATTN_LAYERS_WALK_NAMES
#define layers_walk SUFFIX(layers_walk)
#define layers_tile SUFFIX(layers_tile)
#define layers_walk_axes SUFFIX(layers_walk_axes)
#define layers_walk_cut SUFFIX(layers_walk_cut)
#define layers_tile_at SUFFIX(layers_tile_at)
#define layers_rows_of SUFFIX(layers_rows_of)
#define layers_read SUFFIX(layers_read)
#define layers_target SUFFIX(layers_target)
#define layers_written SUFFIX(layers_written)

enum {
    LAYERS_TILE = 2048, /* elements of rows that are worked on together */
    LAYERS_ACROSS = 1 << 18, /* the same where neighbouring rows share cache lines */
    LAYERS_MOST_ROWS = 64, /* rows of a tile */
    LAYERS_TASK = 1 << 16 /* elements of a task */
};
#define LAYERS_STREAM ((int64_t)8 << 20) /* bytes of a result from which stores go past the caches */

/* Appends axis `axis` of all operands. */
static inline void
layers_push(struct attn_axes *axes, int operands, const struct attn_tensor *const *tensor, int axis, int64_t count)
{
    int64_t stride[ATTN_WALKED] = {0};
    for (int o = 0; o < operands; o++)
        stride[o] = tensor[o]->data ? tensor[o]->batch[axis] : 0;
    attn_axis_push(axes, count, stride);
}
#endif

/* rows x n elements of each operand; an operand without data is absent. */
struct layers_walk {
    struct attn_axes outer, inner;
    int operands;
    const struct attn_tensor *tensor[ATTN_WALKED];
    bool direct[ATTN_WALKED]; /* read or written where it lies */
    int64_t rows, n;
    int64_t line, run; /* lengths of the innermost outer and inner axes: rows, elements, that are one stride apart */
    int64_t row_stride[ATTN_WALKED], stride[ATTN_WALKED];
    int64_t tile_rows, block, pitch; /* of rows worked on together: how many at the most, elements of each, REALs between them in scratch */
    bool stream;
};

/* Neighbouring rows. */
struct layers_tile {
    int64_t rows;
    int64_t offset[ATTN_WALKED];
};

/* Fills in everything but how it is cut, from axes of which the last `inner` are those of a row. in_order: the rows are counted in C order; else as
 * they lie in the first operand. A row has at least one axis. */
static void
layers_walk_axes(struct layers_walk *w, int ndim, int inner, const int64_t *shape, bool in_order)
{
    int order[ATTN_MAX_BATCH], outer = ndim - inner;
    for (int axis = 0; axis < outer; axis++) {
        int at = axis;
        for (; !in_order && at > 0 && llabs(w->tensor[0]->batch[order[at - 1]]) < llabs(w->tensor[0]->batch[axis]); at--)
            order[at] = order[at - 1];
        order[at] = axis;
    }
    w->outer.ndim = w->inner.ndim = 0;
    for (int axis = 0; axis < outer; axis++)
        layers_push(&w->outer, w->operands, w->tensor, order[axis], shape[order[axis]]);
    for (int axis = outer; axis < ndim; axis++)
        layers_push(&w->inner, w->operands, w->tensor, axis, shape[axis]);
    if (inner == 0 && w->outer.ndim > 0) { /* element by element: the innermost axis is the row */
        int last = --w->outer.ndim;
        w->inner.ndim = 1;
        w->inner.shape[0] = w->outer.shape[last];
        memcpy(w->inner.stride[0], w->outer.stride[last], sizeof *w->inner.stride);
    }
    if (w->inner.ndim == 0) {
        w->inner.ndim = 1;
        w->inner.shape[0] = 1;
        for (int o = 0; o < ATTN_WALKED; o++)
            w->inner.stride[0][o] = o < w->operands && w->tensor[o]->data ? attn_type_size(w->tensor[o]->type) : 0;
    }
}

/* How rows are cut into blocks of at most `longest` elements, and how many go together. */
static void
layers_walk_cut(struct layers_walk *w, int64_t longest, int output)
{
    int last = w->outer.ndim - 1, in = w->inner.ndim - 1;
    bool across = false;
    w->rows = attn_axes_size(&w->outer);
    w->n = attn_axes_size(&w->inner);
    w->line = last >= 0 ? w->outer.shape[last] : 1;
    w->run = w->inner.shape[in];
    for (int o = 0; o < w->operands; o++) {
        const struct attn_tensor *t = w->tensor[o];
        int64_t size = attn_type_size(t->type);
        w->row_stride[o] = last >= 0 ? w->outer.stride[last][o] : 0;
        w->stride[o] = w->inner.stride[in][o];
        w->direct[o] = t->data && w->inner.ndim == 1 && run_is_direct(t) && w->stride[o] == size;
        across |= t->data && w->line > 1 && w->run > 1 && w->row_stride[o] == size && w->stride[o] != size;
    }
    w->block = attn_min(attn_max(w->n, 1), longest);
    w->tile_rows = attn_max(1, attn_min(LAYERS_MOST_ROWS, (across ? LAYERS_ACROSS : LAYERS_TILE) / w->block));
    w->pitch = (w->block + 2 * LANES - 1) / LANES * LANES; /* not a power of two, or rows would meet in the same cache sets */
    w->stream = w->rows * w->n * (int64_t)sizeof(REAL) >= LAYERS_STREAM && w->direct[output];
}

/* Rows from `row` on, at most `most` of them, that lie one stride apart. */
static void
layers_tile_at(const struct layers_walk *w, int64_t row, int64_t most, struct layers_tile *tile)
{
    tile->rows = attn_min(attn_min(most, w->tile_rows), w->line - row % w->line);
    attn_offsets(&w->outer, row, tile->offset);
}

/* Elements first ... first + n - 1 of the rows of an operand to scratch, or from there. */
static void
layers_rows_of(const struct layers_walk *w, const struct layers_tile *tile, int o, int64_t first, int64_t n, REAL *buffer, bool write)
{
    const struct attn_tensor *t = w->tensor[o];
    for (int64_t i = 0, count; i < n; i += count) {
        int64_t offset[ATTN_WALKED];
        attn_offsets(&w->inner, first + i, offset);
        count = attn_min(n - i, w->run - (first + i) % w->run);
        char *p = t->data + tile->offset[o] + offset[o];
        if (write)
            store_runs(t, p, tile->rows, w->row_stride[o], count, w->stride[o], buffer + i, w->pitch, false);
        else
            load_runs(buffer + i, w->pitch, t, p, tile->rows, w->row_stride[o], count, w->stride[o]);
    }
}

/* Where those elements are to be read: in place, or in `buffer`, to which they are brought. *pitch: REALs between rows. */
static REAL *
layers_read(const struct layers_walk *w, const struct layers_tile *tile, int o, int64_t first, int64_t n, REAL *buffer, int64_t *pitch)
{
    if (w->direct[o]) {
        *pitch = w->row_stride[o] / (int64_t)sizeof(REAL);
        return (REAL *)(w->tensor[o]->data + tile->offset[o]) + first;
    }
    *pitch = w->pitch;
    layers_rows_of(w, tile, o, first, n, buffer, false);
    return buffer;
}

/* Where they are to be written: in place, or in `buffer`; layers_written takes them from there. */
static REAL *
layers_target(const struct layers_walk *w, const struct layers_tile *tile, int o, int64_t first, REAL *buffer, int64_t *pitch)
{
    *pitch = w->direct[o] ? w->row_stride[o] / (int64_t)sizeof(REAL) : w->pitch;
    return w->direct[o] ? (REAL *)(w->tensor[o]->data + tile->offset[o]) + first : buffer;
}

static void
layers_written(const struct layers_walk *w, const struct layers_tile *tile, int o, int64_t first, int64_t n, REAL *buffer)
{
    if (!w->direct[o])
        layers_rows_of(w, tile, o, first, n, buffer, true);
}
