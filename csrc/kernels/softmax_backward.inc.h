/* softmax_backward.inc.h: the gradients of softmax, log_softmax and logsumexp, on the tiles of softmax_tile.inc.h.
 *
 * A row is read twice, the second time from the caches where it fits: its sum, then its gradients. Sums are made in the order of row_terms. A row too
 * long for that is cut into parts, whose sums are added in ascending order, whoever made them. */
#ifndef ATTN_SOFTMAX_BACKWARD_NAMES
#define ATTN_SOFTMAX_BACKWARD_NAMES
#define softmax_span SUFFIX(softmax_span)
#define row_product SUFFIX(row_product)
#define softmax_gradient SUFFIX(softmax_gradient)
#define row_gradients SUFFIX(row_gradients)
#define softmax_backward_span SUFFIX(softmax_backward_span)
#define softmax_backward_sums SUFFIX(softmax_backward_sums)
#define softmax_backward_results SUFFIX(softmax_backward_results)
#define softmax_row_number SUFFIX(softmax_row_number)
#define softmax_backward_lse SUFFIX(softmax_backward_lse)
#define softmax_backward_resident SUFFIX(softmax_backward_resident)
#define softmax_backward_part SUFFIX(softmax_backward_part)
#define softmax_backward_phase SUFFIX(softmax_backward_phase)
#define softmax_backward_task SUFFIX(softmax_backward_task)
#define softmax_backward_plan SUFFIX(softmax_backward_plan)
#define softmax_backward_run SUFFIX(softmax_backward_run)
#endif

/* Elements first ... first + n - 1 of a tile's rows, where they are read and written; pitches are in REALs. */
struct softmax_span {
    int64_t first, n;
    const REAL *x, *grad;
    REAL *y;
    int64_t x_pitch, grad_pitch, y_pitch;
};

/* The sum that a row's gradients share, lane by lane: of g x for softmax, of g for log_softmax. Meanwhile as many numbers are asked for at y, to be
 * written. */
ATTN_INLINE vreal
row_product(enum attn_softmax_what what, const REAL *x, const REAL *grad, int64_t n, const REAL *y)
{
    const bool plain = what == ATTN_LOG_SOFTMAX_BACKWARD;
    const vreal one = v_splat(1);
    vreal sum = {0};
    int64_t i = 0;
    while (i + 4 * LANES <= n) {
        int64_t end = attn_min(i + 64 * LANES, n - n % (4 * LANES));
        vreal part[4] = {{0}, {0}, {0}, {0}};
        for (; i < end; i += 4 * LANES)
    ATTN_UNROLL
            for (int u = 0; u < 4; u++) {
                if (y && u * VECTOR_BYTES % 64 == 0)
                    __builtin_prefetch(y + i + u * LANES, 1, 3);
                part[u] += v_loadu(grad + i + u * LANES) * (plain ? one : v_loadu(x + i + u * LANES));
            }
        sum += (part[0] + part[1]) + (part[2] + part[3]);
    }
    for (; i + LANES <= n; i += LANES)
        sum += v_loadu(grad + i) * (plain ? one : v_loadu(x + i));
    if (i < n)
        sum += v_load_part(grad + i, n - i, (vreal){0}) * (plain ? one : v_load_part(x + i, n - i, (vreal){0}));
    return sum;
}

/* One vector of gradients. total: the row's sum; logsumexp: its log-sum-exp. */
ATTN_INLINE vreal
softmax_gradient(enum attn_softmax_what what, vreal x, vreal grad, vreal total)
{
    return what == ATTN_SOFTMAX_BACKWARD       ? x * (grad - total)
           : what == ATTN_LOG_SOFTMAX_BACKWARD ? grad - v_exp(x) * total
                                               : grad * v_exp(x - total);
}

/* y = the gradients of a row; y may be x or grad. Where grad is NULL it is `shared` everywhere. Meanwhile as many numbers are asked for, x_ahead and
 * grad_ahead further on. */
ATTN_INLINE void
row_gradients(enum attn_softmax_what what, const REAL *x, const REAL *grad, vreal shared, int64_t n, vreal total, REAL *y, bool stream,
              int64_t x_ahead, int64_t grad_ahead)
{
    const bool has_grad = what != ATTN_LOGSUMEXP_BACKWARD;
    int64_t i = n < 4 * LANES ? 0 : -(int64_t)((uintptr_t)y / sizeof(REAL)) & (LANES - 1); /* stores that straddle cache lines are slow */
    if (i > 0)
        v_store_part(y, i, softmax_gradient(what, v_loadu(x), has_grad ? v_loadu(grad) : shared, total));
    for (; i + LANES <= n; i += LANES) {
        vreal result = softmax_gradient(what, v_loadu(x + i), has_grad ? v_loadu(grad + i) : shared, total);
        if (VECTOR_BYTES == 64 || i % (64 / (int64_t)sizeof(REAL)) < LANES) {
            __builtin_prefetch(x + i + x_ahead, 0, 3);
            if (has_grad)
                __builtin_prefetch(grad + i + grad_ahead, 0, 3);
        }
        if (stream && n >= 4 * LANES)
            v_stream(y + i, result);
        else
            v_storeu(y + i, result);
    }
    if (i < n) {
        vreal rest = has_grad ? v_load_part(grad + i, n - i, (vreal){0}) : shared;
        v_store_part(y + i, n - i, softmax_gradient(what, v_load_part(x + i, n - i, (vreal){0}), rest, total));
    }
}

/* Brings to scratch what is not read where it lies. */
ATTN_INLINE struct softmax_span
softmax_backward_span(const struct softmax_work *w, enum attn_softmax_what what, const struct softmax_tile *tile, int64_t first, int64_t n,
                      bool needs_x, REAL *scratch)
{
    const struct attn_softmax *a = w->a;
    const int64_t size = sizeof(REAL);
    REAL *other = scratch + (w->buffers - 1) * w->tile_rows * w->pitch;
    struct softmax_span span = {first, n, scratch, other, scratch, w->pitch, w->pitch, w->pitch};
    if (w->direct_x) {
        span.x = (const REAL *)(a->x.data + tile->offset[SOFTMAX_X]) + first;
        span.x_pitch = w->row_stride[SOFTMAX_X] / size;
    } else if (needs_x)
        softmax_load(w, tile, SOFTMAX_X, what == ATTN_SOFTMAX_BACKWARD ? 0 : -REAL_INFINITY, first, n, scratch);
    if (w->direct_grad) {
        span.grad = (const REAL *)(a->grad.data + tile->offset[SOFTMAX_GRAD]) + first;
        span.grad_pitch = w->row_stride[SOFTMAX_GRAD] / size;
    } else if (what != ATTN_LOGSUMEXP_BACKWARD)
        softmax_load(w, tile, SOFTMAX_GRAD, 0, first, n, other);
    if (w->direct_y) {
        span.y = (REAL *)(a->y.data + tile->offset[SOFTMAX_Y]) + first;
        span.y_pitch = w->row_stride[SOFTMAX_Y] / size;
    }
    return span;
}

/* total[r] += the sum of row r, for rows from ... from + rows - 1. */
ATTN_INLINE void
softmax_backward_sums(const struct softmax_work *w, enum attn_softmax_what what, const struct softmax_span *span, int64_t from, int64_t rows,
                      REAL *total)
{
    bool written = w->direct_y && !w->stream && !w->is_long;
    for (int64_t r = from; r < from + rows; r++)
        total[r] += v_sum(
            row_product(what, span->x + r * span->x_pitch, span->grad + r * span->grad_pitch, span->n, written ? span->y + r * span->y_pitch : NULL));
}

/* shared: logsumexp's incoming gradient of each row. */
ATTN_INLINE void
softmax_backward_results(const struct softmax_work *w, enum attn_softmax_what what, const struct softmax_span *span, int64_t from, int64_t rows,
                         const REAL *total, const REAL *shared)
{
    int64_t x_ahead = !w->direct_x ? 0 : w->is_long ? span->n : w->tile_rows * span->x_pitch;
    int64_t grad_ahead = !w->direct_grad ? 0 : w->is_long ? span->n : w->tile_rows * span->grad_pitch;
    for (int64_t r = from; r < from + rows; r++)
        row_gradients(what, span->x + r * span->x_pitch, span->grad + r * span->grad_pitch, v_splat(shared ? shared[r] : 0), span->n,
                      v_splat(total[r]), span->y + r * span->y_pitch, w->stream && w->direct_y, x_ahead, grad_ahead);
}

/* A number that a row has one of. */
ATTN_INLINE REAL
softmax_row_number(const struct softmax_work *w, const struct softmax_tile *tile, int operand, const struct attn_tensor *t, int64_t row)
{
    const char *p = t->data + tile->offset[operand] + row * w->row_stride[operand];
    return run_is_direct(t) ? *(const REAL *)p : to_real(p, t->type, t->swapped);
}

/* logsumexp's totals and gradients of rows. Where the log-sum-exp is -inf, x is -inf everywhere: the gradient becomes 0 exp(-inf - 0). */
static void
softmax_backward_lse(const struct softmax_work *w, const struct softmax_tile *tile, REAL *total, REAL *shared)
{
    for (int64_t r = 0; r < tile->rows; r++) {
        REAL lse = softmax_row_number(w, tile, SOFTMAX_LSE, &w->a->lse, r);
        bool nothing = lse == -REAL_INFINITY;
        total[r] = nothing ? 0 : lse;
        shared[r] = nothing ? 0 : softmax_row_number(w, tile, SOFTMAX_GRAD, &w->a->grad, r);
    }
}

/* A tile of rows that fit into the caches. */
ATTN_INLINE void
softmax_backward_resident(const struct softmax_work *w, enum attn_softmax_what what, const struct softmax_tile *tile, REAL *scratch)
{
    REAL total[SOFTMAX_MOST_ROWS] = {0}, shared[SOFTMAX_MOST_ROWS];
    struct softmax_span span = softmax_backward_span(w, what, tile, 0, w->n, true, scratch);
    if (what == ATTN_LOGSUMEXP_BACKWARD)
        softmax_backward_lse(w, tile, total, shared);
    for (int64_t r = 0; r < tile->rows; r += LANES) {
        int64_t rows = attn_min(LANES, tile->rows - r);
        if (what != ATTN_LOGSUMEXP_BACKWARD)
            softmax_backward_sums(w, what, &span, r, rows, total);
        softmax_backward_results(w, what, &span, r, rows, total, what == ATTN_LOGSUMEXP_BACKWARD ? shared : NULL);
    }
    if (!w->direct_y)
        softmax_store(w, tile, 0, w->n, scratch, true);
}

/* One part of long rows: total[r] = its sum, or, if `gradients`, its results. */
ATTN_INLINE void
softmax_backward_part(const struct softmax_work *w, enum attn_softmax_what what, const struct softmax_tile *tile, int64_t part, bool gradients,
                      REAL *scratch, REAL *total, const REAL *shared)
{
    int64_t end = attn_min((part + 1) * w->part, w->n);
    if (!gradients)
        memset(total, 0, (size_t)tile->rows * sizeof *total);
    for (int64_t i = part * w->part; i < end && !attn_stopped(w->a->call.stop); i += w->block) {
        int64_t n = attn_min(w->block, end - i);
        struct softmax_span span = softmax_backward_span(w, what, tile, i, n, gradients || what == ATTN_SOFTMAX_BACKWARD, scratch);
        if (!gradients) {
            softmax_backward_sums(w, what, &span, 0, tile->rows, total);
            continue;
        }
        softmax_backward_results(w, what, &span, 0, tile->rows, total, shared);
        if (!w->direct_y)
            softmax_store(w, tile, i, n, scratch, true);
    }
}

/* Long rows. Where they are few (`split`), a task is a part of a tile: its sums go to the workspace, [row][part], in phase 0; phase 1 adds them and
 * goes on. logsumexp has its totals already: one phase. */
ATTN_INLINE void
softmax_backward_phase(const struct softmax_work *w, enum attn_softmax_what what, bool split, int phase, int64_t task, REAL *scratch)
{
    REAL total[SOFTMAX_MOST_ROWS] = {0}, more[SOFTMAX_MOST_ROWS], shared[SOFTMAX_MOST_ROWS], *all = w->a->call.workspace;
    const bool sums = what != ATTN_LOGSUMEXP_BACKWARD;
    struct softmax_tile tile;
    int64_t part = split ? task % w->parts : 0, last = split ? part + 1 : w->parts;
    softmax_tile_at(w, split ? task / w->parts : task, &tile);
    if (sums && split && phase == 0) {
        softmax_backward_part(w, what, &tile, part, false, scratch, more, NULL);
        for (int64_t r = 0; r < tile.rows; r++)
            all[(tile.first + r) * w->parts + part] = more[r];
        return;
    }
    if (!sums)
        softmax_backward_lse(w, &tile, total, shared);
    for (int64_t p = 0; sums && p < w->parts; p++) {
        if (!split)
            softmax_backward_part(w, what, &tile, p, false, scratch, more, NULL);
        for (int64_t r = 0; r < tile.rows; r++)
            total[r] += split ? all[(tile.first + r) * w->parts + p] : more[r];
    }
    for (; part < last; part++)
        softmax_backward_part(w, what, &tile, part, true, scratch, total, sums ? NULL : shared);
}

ATTN_INLINE void
softmax_backward_task(const struct softmax_work *w, enum attn_softmax_what what, int phase, int64_t task, REAL *scratch)
{
    if (w->is_long) {
        softmax_backward_phase(w, what, softmax_split(w), phase, task, scratch);
        return;
    }
    for (int64_t t = task * w->task_tiles; t < attn_min((task + 1) * w->task_tiles, w->tiles); t++) {
        struct softmax_tile tile;
        if (attn_stopped(w->a->call.stop))
            break;
        softmax_tile_at(w, t, &tile);
        softmax_backward_resident(w, what, &tile, scratch);
    }
}

static void
softmax_backward_plan(const void *arguments, struct attn_plan *plan)
{
    struct softmax_work w;
    softmax_describe(arguments, &w);
    bool split = softmax_split(&w), twice = split && w.a->what != ATTN_LOGSUMEXP_BACKWARD;
    *plan = (struct attn_plan){.phases = twice ? 2 : 1, .cost = 8.0 * (double)w.rows * (double)w.n};
    plan->tasks[0] = split ? w.tiles * w.parts : (w.tiles + w.task_tiles - 1) / w.task_tiles;
    plan->tasks[1] = twice ? w.tiles * w.parts : 0;
    plan->scratch = (size_t)(w.buffers * attn_max(w.tile_rows, 1) * w.pitch) * sizeof(REAL);
    plan->workspace = twice ? (size_t)(w.rows * w.parts) * sizeof(REAL) : 0;
}

static void
softmax_backward_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    struct softmax_work w;
    softmax_describe(arguments, &w);
    if (w.a->what == ATTN_SOFTMAX_BACKWARD)
        softmax_backward_task(&w, ATTN_SOFTMAX_BACKWARD, phase, task, scratch);
    else if (w.a->what == ATTN_LOG_SOFTMAX_BACKWARD)
        softmax_backward_task(&w, ATTN_LOG_SOFTMAX_BACKWARD, phase, task, scratch);
    else
        softmax_backward_task(&w, ATTN_LOGSUMEXP_BACKWARD, phase, task, scratch);
    if (w.stream)
        attn_stores_done();
}

static const struct attn_kernel SUFFIX(attn_softmax_backward) = {softmax_backward_plan, softmax_backward_run};
