/* layers_loss.inc.h: cross entropy: a row's maximum and sum of exponentials as softmax has them, block by block; then its loss, or its gradients. */
#ifndef ATTN_LAYERS_LOSS_NAMES
#define ATTN_LAYERS_LOSS_NAMES
#define loss_row SUFFIX(loss_row)
#define loss_describe SUFFIX(loss_describe)
#define loss_task_rows SUFFIX(loss_task_rows)
#define loss_of_rows SUFFIX(loss_of_rows)
#define loss_statistics SUFFIX(loss_statistics)
#define loss_total SUFFIX(loss_total)
#define loss_put SUFFIX(loss_put)
#define loss_plan SUFFIX(loss_plan)
#define loss_run SUFFIX(loss_run)
#define loss_gradient SUFFIX(loss_gradient)
#define loss_gradients SUFFIX(loss_gradients)
#define loss_share SUFFIX(loss_share)
#define loss_backward_rows SUFFIX(loss_backward_rows)
#define loss_backward_plan SUFFIX(loss_backward_plan)
#define loss_backward_run SUFFIX(loss_backward_run)

enum { LOSS_X, LOSS_Y, LOSS_OPERANDS };
enum { LOSS_BLOCK = 16384 }; /* elements of a row looked at together */

static inline int64_t
loss_counted(const struct attn_cross_entropy *a, int64_t rows)
{
    int64_t counted = 0;
    for (int64_t i = 0; i < rows; i++)
        counted += a->targets[i] != a->ignored;
    return counted;
}
#endif

/* Of a row: its maximum and sum, the score of its target, the sum of its scores. */
struct loss_row {
    struct softmax_total total;
    REAL target, sum;
};

static void
loss_describe(const struct attn_cross_entropy *a, bool backward, struct layers_walk *w)
{
    w->operands = backward ? LOSS_OPERANDS : LOSS_Y;
    w->tensor[LOSS_X] = &a->x;
    w->tensor[LOSS_Y] = &a->y;
    layers_walk_axes(w, a->ndim, 1, a->shape, true);
    layers_walk_cut(w, LOSS_BLOCK, backward ? LOSS_Y : LOSS_X);
}

static int64_t
loss_task_rows(const struct layers_walk *w)
{
    return attn_max(1, LAYERS_TASK / attn_max(w->n, 1) / w->tile_rows) * w->tile_rows;
}

/* Rows that are ignored are not looked at, but may be brought to scratch. `first`: the number of the tile's first row. */
static void
loss_statistics(const struct attn_cross_entropy *a, const struct layers_walk *w, const struct layers_tile *tile, int64_t first, REAL *scratch,
                struct loss_row *row)
{
    for (int64_t r = 0; r < tile->rows; r++) {
        int64_t target = a->targets[first + r];
        row[r] = (struct loss_row){{-REAL_INFINITY, 0}, 0, 0};
        if (target != a->ignored)
            row[r].target =
                to_real(a->x.data + tile->offset[LOSS_X] + r * w->row_stride[LOSS_X] + target * a->x.batch[a->ndim - 1], a->x.type, a->x.swapped);
    }
    for (int64_t at = 0; at < w->n && !attn_stopped(a->call.stop); at += w->block) {
        int64_t n = attn_min(w->block, w->n - at), pitch;
        const REAL *block = layers_read(w, tile, LOSS_X, at, n, scratch, &pitch);
        for (int64_t r = 0; r < tile->rows; r++) {
            const REAL *x = block + r * pitch;
            if (a->targets[first + r] == a->ignored)
                continue;
            REAL highest = v_highest(row_highest(x, n));
            vreal base = softmax_base(v_splat(highest)), second;
            REAL sum = v_sum(row_terms(x, n, base, NULL, false, x, NULL));
            struct softmax_total part = softmax_total_of(highest, sum, x, n);
            row[r].total = at == 0 ? part : softmax_merge(row[r].total, part);
            if (a->smoothing != 0)
                row[r].sum += v_sum(row_total(ROW_SUM, x, n, (vreal){0}, &second, NULL));
        }
    }
}

/* loss[r] of a tile's rows. */
static void
loss_of_rows(const struct attn_cross_entropy *a, const struct layers_walk *w, const struct layers_tile *tile, int64_t first, REAL *scratch,
             REAL *loss)
{
    struct loss_row row[LAYERS_MOST_ROWS];
    REAL smoothing = (REAL)a->smoothing;
    loss_statistics(a, w, tile, first, scratch, row);
    for (int64_t r = 0; r < tile->rows; r++) {
        if (a->targets[first + r] == a->ignored) {
            loss[r] = 0;
            continue;
        }
        REAL log_sum = v_log(v_splat(row[r].total.sum * (REAL)0x1p-64))[0], right = row[r].target;
        if (smoothing != 0)
            right = (1 - smoothing) * right + smoothing * (row[r].sum / (REAL)w->n);
        loss[r] = (row[r].total.highest - right) + log_sum;
    }
}

static void
loss_put(const struct attn_tensor *y, int64_t offset, REAL value)
{
    from_real(y->data + offset, value, y->type, false);
}

/* The sum or the mean: 64 rows at a time, in order. */
static void
loss_total(const struct attn_cross_entropy *a, int64_t rows)
{
    const REAL *loss = a->call.workspace;
    REAL total = 0;
    for (int64_t first = 0; first < rows; first += 64) {
        REAL part = 0;
        for (int64_t i = first; i < attn_min(first + 64, rows); i++)
            part += loss[i];
        total += part;
    }
    if (a->reduction == ATTN_REDUCE_MEAN)
        total /= (REAL)loss_counted(a, rows);
    loss_put(&a->y, 0, total);
}

static void
loss_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_cross_entropy *a = arguments;
    struct layers_walk w;
    loss_describe(a, false, &w);
    int64_t rows = loss_task_rows(&w);
    bool reduced = a->reduction != ATTN_REDUCE_NONE;
    *plan = (struct attn_plan){.phases = reduced ? 2 : 1, .cost = 8.0 * (double)w.rows * (double)w.n};
    plan->tasks[0] = (w.rows + rows - 1) / rows;
    plan->tasks[1] = reduced;
    plan->scratch = (size_t)(w.tile_rows * w.pitch) * sizeof(REAL);
    plan->workspace = reduced ? (size_t)attn_max(w.rows, 1) * sizeof(REAL) : 0;
}

static void
loss_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_cross_entropy *a = arguments;
    struct layers_walk w;
    struct layers_tile tile;
    REAL loss[LAYERS_MOST_ROWS], *all = a->call.workspace;
    loss_describe(a, false, &w);
    int64_t rows = loss_task_rows(&w), end = attn_min((task + 1) * rows, w.rows);
    if (phase == 1) {
        loss_total(a, w.rows);
        return;
    }
    for (int64_t row = task * rows; row < end && !attn_stopped(a->call.stop); row += tile.rows) {
        layers_tile_at(&w, row, end - row, &tile);
        loss_of_rows(a, &w, &tile, row, scratch, loss);
        for (int64_t r = 0; r < tile.rows; r++)
            if (a->reduction == ATTN_REDUCE_NONE)
                loss_put(&a->y, attn_batch_offset(row + r, a->ndim - 1, a->shape, a->y.batch), loss[r]);
            else
                all[row + r] = loss[r];
    }
}

static const struct attn_kernel SUFFIX(attn_cross_entropy) = {loss_plan, loss_run};

ATTN_INLINE vreal
loss_gradient(vreal x, vreal base, vreal factor, vreal less, vreal share)
{
    return v_fused(v_exp_lifted(x - base), factor, -less) * share;
}

/* y = share (p - less), but share ((p - less) - right) at `target`, which may lie elsewhere; y may be x. */
static void
loss_gradients(const REAL *x, int64_t n, const struct loss_row *row, REAL less, REAL right, REAL share, int64_t target, REAL *y)
{
    const vreal base = softmax_base(v_splat(row->total.highest)), factor = v_splat(1) / v_splat(row->total.sum);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        v_storeu(y + i, loss_gradient(v_loadu(x + i), base, factor, v_splat(less), v_splat(share)));
    if (i < n)
        v_store_part(y + i, n - i, loss_gradient(v_load_part(x + i, n - i, (vreal){0}), base, factor, v_splat(less), v_splat(share)));
    if (target >= 0 && target < n) {
        vreal p = v_exp_lifted(v_splat(row->target) - base) * factor;
        y[target] = ((p[0] - less) - right) * share;
    }
}

/* g of a row. */
static REAL
loss_share(const struct attn_cross_entropy *a, int64_t row, int64_t rows)
{
    int64_t offset = a->reduction == ATTN_REDUCE_NONE ? attn_batch_offset(row, a->ndim - 1, a->shape, a->grad.batch) : 0;
    REAL share = to_real(a->grad.data + offset, a->grad.type, a->grad.swapped);
    return a->reduction == ATTN_REDUCE_MEAN ? share / (REAL)loss_counted(a, rows) : share;
}

static void
loss_backward_rows(const struct attn_cross_entropy *a, const struct layers_walk *w, const struct layers_tile *tile, int64_t first, REAL shared,
                   REAL *scratch)
{
    struct loss_row row[LAYERS_MOST_ROWS];
    REAL less = (REAL)a->smoothing / (REAL)w->n, right = 1 - (REAL)a->smoothing;
    loss_statistics(a, w, tile, first, scratch, row);
    for (int64_t at = 0; at < w->n && !attn_stopped(a->call.stop); at += w->block) {
        int64_t n = attn_min(w->block, w->n - at), pitch, y_pitch;
        const REAL *x = layers_read(w, tile, LOSS_X, at, n, scratch, &pitch);
        REAL *y = layers_target(w, tile, LOSS_Y, at, scratch, &y_pitch);
        for (int64_t r = 0; r < tile->rows; r++) {
            int64_t target = a->targets[first + r];
            REAL share = a->reduction == ATTN_REDUCE_NONE ? loss_share(a, first + r, w->rows) : shared;
            if (target == a->ignored)
                memset(y + r * y_pitch, 0, (size_t)n * sizeof(REAL));
            else
                loss_gradients(x + r * pitch, n, &row[r], less, right, share, target - at, y + r * y_pitch);
        }
        layers_written(w, tile, LOSS_Y, at, n, scratch);
    }
}

static void
loss_backward_plan(const void *arguments, struct attn_plan *plan)
{
    struct layers_walk w;
    loss_describe(arguments, true, &w);
    int64_t rows = loss_task_rows(&w);
    *plan = (struct attn_plan){.phases = 1, .cost = 16.0 * (double)w.rows * (double)w.n};
    plan->tasks[0] = (w.rows + rows - 1) / rows;
    plan->scratch = (size_t)(w.tile_rows * w.pitch) * sizeof(REAL);
}

static void
loss_backward_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_cross_entropy *a = arguments;
    struct layers_walk w;
    struct layers_tile tile;
    (void)phase;
    loss_describe(a, true, &w);
    int64_t rows = loss_task_rows(&w), end = attn_min((task + 1) * rows, w.rows);
    REAL shared = a->reduction == ATTN_REDUCE_NONE ? 0 : loss_share(a, 0, w.rows);
    for (int64_t row = task * rows; row < end && !attn_stopped(a->call.stop); row += tile.rows) {
        layers_tile_at(&w, row, end - row, &tile);
        loss_backward_rows(a, &w, &tile, row, shared, scratch);
    }
}

static const struct attn_kernel SUFFIX(attn_cross_entropy_backward) = {loss_backward_plan, loss_backward_run};
