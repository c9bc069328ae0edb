/* layers.inc.h: gelu, silu, relu, their gated forms and gradients, element by element in one pass. */
#ifndef ATTN_LAYERS_NAMES
#define ATTN_LAYERS_NAMES
#define elementwise_rows SUFFIX(elementwise_rows)
#define elementwise_vector SUFFIX(elementwise_vector)
#define elementwise_row SUFFIX(elementwise_row)
#define elementwise_row_of SUFFIX(elementwise_row_of)
#define elementwise_tile SUFFIX(elementwise_tile)
#define elementwise_describe SUFFIX(elementwise_describe)
#define elementwise_cut SUFFIX(elementwise_cut)
#define elementwise_cut_of SUFFIX(elementwise_cut_of)
#define elementwise_plan SUFFIX(elementwise_plan)
#define elementwise_run SUFFIX(elementwise_run)

enum { ELEMENTWISE_X, ELEMENTWISE_VALUE, ELEMENTWISE_GRAD, ELEMENTWISE_Y, ELEMENTWISE_GRAD_VALUE, ELEMENTWISE_OPERANDS };
enum {
    ELEMENTWISE_BLOCK = 2048,
    ELEMENTWISE_LONG = 16384
}; /* elements of a block, so that the buffers of all operands stay in L2; of one without buffers */
#endif

/* Pointers to n elements of each operand; NULL where it is absent. */
struct elementwise_rows {
    REAL *at[ELEMENTWISE_OPERANDS];
};

/* One vector: loaded whole, or `part` < LANES elements of it; stored likewise. */
ATTN_INLINE void
elementwise_vector(enum attn_activation_kind kind, bool gated, bool backward, const struct elementwise_rows *p, int64_t i, int64_t loaded,
                   int64_t stored, bool stream)
{
    const vreal zero = {0};
    const bool whole = loaded >= LANES;
    REAL *const *at = p->at;
    vreal x = whole ? v_loadu(at[ELEMENTWISE_X] + i) : v_load_part(at[ELEMENTWISE_X] + i, loaded, zero), second = zero, y;
    vreal value = !gated ? zero : whole ? v_loadu(at[ELEMENTWISE_VALUE] + i) : v_load_part(at[ELEMENTWISE_VALUE] + i, loaded, zero);
    vreal grad = !backward ? zero : whole ? v_loadu(at[ELEMENTWISE_GRAD] + i) : v_load_part(at[ELEMENTWISE_GRAD] + i, loaded, zero);
    if (!backward)
        y = gated ? (vreal)(v_activation(kind, x) * value) : v_activation(kind, x);
    else if (!gated)
        y = grad * v_activation_slope(kind, x);
    else {
        y = grad * value * v_activation_slope(kind, x);
        second = grad * v_activation(kind, x);
    }
    if (stored < LANES) {
        v_store_part(at[ELEMENTWISE_Y] + i, stored, y);
        if (gated && backward)
            v_store_part(at[ELEMENTWISE_GRAD_VALUE] + i, stored, second);
        return;
    }
    if (stream)
        v_stream(at[ELEMENTWISE_Y] + i, y);
    else
        v_storeu(at[ELEMENTWISE_Y] + i, y);
    if (gated && backward)
        v_storeu(at[ELEMENTWISE_GRAD_VALUE] + i, second);
}

/* n elements. The results may be written over the operands: no element is read after its own result is written, but for the few before the first whole
 * cache line of y, which are read together with what follows them, before anything is written. */
ATTN_INLINE void
elementwise_row(enum attn_activation_kind kind, bool gated, bool backward, const struct elementwise_rows *p, int64_t n, bool stream)
{
    int64_t i =
        n < 4 * LANES ? 0 : -(int64_t)((uintptr_t)p->at[ELEMENTWISE_Y] / sizeof(REAL)) & (LANES - 1); /* stores that straddle cache lines are slow */
    if (i > 0)
        elementwise_vector(kind, gated, backward, p, 0, LANES, i, false);
    if (stream && n >= 4 * LANES)
        for (; i + LANES <= n; i += LANES)
            elementwise_vector(kind, gated, backward, p, i, LANES, LANES, true);
    else
        for (; i + LANES <= n; i += LANES)
            elementwise_vector(kind, gated, backward, p, i, LANES, LANES, false);
    if (i < n)
        elementwise_vector(kind, gated, backward, p, i, n - i, n - i, false);
}

#define ELEMENTWISE_CASES(kind)                            \
    if (gated && backward)                                 \
        elementwise_row(kind, true, true, p, n, stream);   \
    else if (gated)                                        \
        elementwise_row(kind, true, false, p, n, stream);  \
    else if (backward)                                     \
        elementwise_row(kind, false, true, p, n, stream);  \
    else                                                   \
        elementwise_row(kind, false, false, p, n, stream); \
    break

ATTN_NOINLINE void
elementwise_row_of(const struct attn_elementwise *a, const struct elementwise_rows *p, int64_t n, bool stream)
{
    const bool gated = a->gated, backward = a->backward;
    switch (a->kind) {
    case ATTN_GELU:
        ELEMENTWISE_CASES(ATTN_GELU);
    case ATTN_GELU_TANH:
        ELEMENTWISE_CASES(ATTN_GELU_TANH);
    case ATTN_SILU:
        ELEMENTWISE_CASES(ATTN_SILU);
    default:
        ELEMENTWISE_CASES(ATTN_RELU);
    }
}
#undef ELEMENTWISE_CASES

static void
elementwise_describe(const struct attn_elementwise *a, struct layers_walk *w)
{
    w->operands = ELEMENTWISE_OPERANDS;
    w->tensor[ELEMENTWISE_X] = &a->x;
    w->tensor[ELEMENTWISE_VALUE] = &a->value;
    w->tensor[ELEMENTWISE_GRAD] = &a->grad;
    w->tensor[ELEMENTWISE_Y] = &a->y;
    w->tensor[ELEMENTWISE_GRAD_VALUE] = &a->grad_value;
    layers_walk_axes(w, a->ndim, 0, a->shape, false);
    layers_walk_cut(w, ELEMENTWISE_BLOCK, ELEMENTWISE_Y);
    bool in_place = true;
    for (int o = 0; o < ELEMENTWISE_OPERANDS; o++)
        in_place &= !w->tensor[o]->data || w->direct[o];
    if (in_place)
        w->block = attn_min(attn_max(w->n, 1), ELEMENTWISE_LONG);
}

/* A block of neighbouring rows. */
static void
elementwise_tile(const struct attn_elementwise *a, const struct layers_walk *w, const struct layers_tile *tile, int64_t first, int64_t n,
                 REAL *scratch)
{
    REAL *data[ELEMENTWISE_OPERANDS] = {NULL};
    int64_t pitch[ELEMENTWISE_OPERANDS] = {0}, each = w->tile_rows * w->pitch;
    for (int o = 0; o < ELEMENTWISE_OPERANDS; o++)
        if (w->tensor[o]->data)
            data[o] = o < ELEMENTWISE_Y ? layers_read(w, tile, o, first, n, scratch + o * each, &pitch[o])
                                        : layers_target(w, tile, o, first, scratch + o * each, &pitch[o]);
    for (int64_t r = 0; r < tile->rows; r++) {
        struct elementwise_rows p;
        for (int o = 0; o < ELEMENTWISE_OPERANDS; o++)
            p.at[o] = data[o] ? data[o] + r * pitch[o] : NULL;
        elementwise_row_of(a, &p, n, w->stream);
    }
    for (int o = ELEMENTWISE_Y; o < ELEMENTWISE_OPERANDS; o++)
        if (data[o])
            layers_written(w, tile, o, first, n, data[o]);
}

/* Tiles of the rows, blocks of a row, and how many of these (tile, block) a task does. */
struct elementwise_cut {
    int64_t line_tiles, blocks, units, task_units;
};

static struct elementwise_cut
elementwise_cut_of(const struct layers_walk *w)
{
    struct elementwise_cut cut = {.line_tiles = (w->line + w->tile_rows - 1) / w->tile_rows, .blocks = (w->n + w->block - 1) / w->block};
    cut.units = w->rows > 0 && w->n > 0 ? w->rows / w->line * cut.line_tiles * cut.blocks : 0;
    cut.task_units = attn_max(1, LAYERS_TASK / (w->tile_rows * w->block));
    return cut;
}

static void
elementwise_plan(const void *arguments, struct attn_plan *plan)
{
    struct layers_walk w;
    elementwise_describe(arguments, &w);
    struct elementwise_cut cut = elementwise_cut_of(&w);
    *plan = (struct attn_plan){.phases = 1, .cost = 20.0 * (double)w.rows * (double)w.n};
    plan->tasks[0] = (cut.units + cut.task_units - 1) / cut.task_units;
    plan->scratch = (size_t)(ELEMENTWISE_OPERANDS * w.tile_rows * w.pitch) * sizeof(REAL);
}

static void
elementwise_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_elementwise *a = arguments;
    struct layers_walk w;
    (void)phase;
    elementwise_describe(a, &w);
    struct elementwise_cut cut = elementwise_cut_of(&w);
    for (int64_t u = task * cut.task_units; u < attn_min((task + 1) * cut.task_units, cut.units) && !attn_stopped(a->call.stop); u++) {
        struct layers_tile tile;
        int64_t t = u / cut.blocks, first = u % cut.blocks * w.block;
        layers_tile_at(&w, t / cut.line_tiles * w.line + t % cut.line_tiles * w.tile_rows, w.tile_rows, &tile);
        elementwise_tile(a, &w, &tile, first, attn_min(w.block, w.n - first), scratch);
    }
    if (w.stream)
        attn_stores_done();
}

static const struct attn_kernel SUFFIX(attn_elementwise) = {elementwise_plan, elementwise_run};
