/* layers_norm.inc.h: layer_norm and rms_norm: a row's mean, the mean of its squared differences, its results, while it is in the caches. */
#ifndef ATTN_LAYERS_NORM_NAMES
#define ATTN_LAYERS_NORM_NAMES
#define norm_row SUFFIX(norm_row)
#define norm_moments SUFFIX(norm_moments)
#define row_total SUFFIX(row_total)
#define row_added SUFFIX(row_added)
#define norm_span SUFFIX(norm_span)
#define norm_span_of SUFFIX(norm_span_of)
#define norm_statistics SUFFIX(norm_statistics)
#define norm_results SUFFIX(norm_results)
#define norm_rows SUFFIX(norm_rows)
#define norm_describe SUFFIX(norm_describe)
#define norm_task_rows SUFFIX(norm_task_rows)
#define norm_plan SUFFIX(norm_plan)
#define norm_run SUFFIX(norm_run)

enum { NORM_X, NORM_RESIDUAL, NORM_Y, NORM_SUM, NORM_GRAD, NORM_GRAD_SUM, NORM_GRAD_WEIGHT, NORM_GRAD_BIAS, NORM_OPERANDS };
enum row_total_what { ROW_SUM, ROW_DIFFERENCES, ROW_SQUARES }; /* of x; of x - m and of their squares; of the squares of x */
#endif

/* What a row is subtracted by, and multiplied with: h = ((x - mean) - rest) scale. `rest` makes good what the mean was rounded by. */
struct norm_row {
    REAL mean, rest, scale;
};

/* Sums over a row, lane by lane; in *second that of the squares. As in softmax_rows.inc.h: blocks of 64 vectors, four accumulators. Meanwhile half as
 * many numbers are asked for at `ahead`, to be read. */
ATTN_INLINE vreal
row_total(enum row_total_what what, const REAL *x, int64_t n, vreal mean, vreal *second, const REAL *ahead)
{
    vreal sum = {0}, squares = {0};
    int64_t i = 0;
    while (i + 4 * LANES <= n) {
        int64_t end = attn_min(i + 64 * LANES, n - n % (4 * LANES));
        vreal part[4] = {{0}, {0}, {0}, {0}}, square[4] = {{0}, {0}, {0}, {0}};
        for (; i < end; i += 4 * LANES)
    ATTN_UNROLL
            for (int k = 0; k < 4; k++) {
                vreal d = v_loadu(x + i + k * LANES);
                if (what == ROW_DIFFERENCES)
                    d -= mean;
                if (ahead && k < 2 && k * VECTOR_BYTES % 64 == 0)
                    __builtin_prefetch(ahead + i / 2 + k * LANES, 0, 3);
                if (what != ROW_SQUARES)
                    part[k] += d;
                if (what != ROW_SUM)
                    square[k] = v_fused(d, d, square[k]);
            }
        sum += (part[0] + part[1]) + (part[2] + part[3]);
        squares += (square[0] + square[1]) + (square[2] + square[3]);
    }
    for (; i < n; i += LANES) {
        vreal d = n - i < LANES ? v_load_part(x + i, n - i, mean) : v_loadu(x + i);
        if (what == ROW_DIFFERENCES)
            d -= mean;
        if (what != ROW_SQUARES)
            sum += d;
        if (what != ROW_SUM)
            squares = v_fused(d, d, squares);
    }
    *second = squares;
    return sum;
}

/* sum = x + residual. */
ATTN_INLINE void
row_added(const REAL *x, const REAL *residual, int64_t n, REAL *sum)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        v_storeu(sum + i, v_loadu(x + i) + v_loadu(residual + i));
    if (i < n)
        v_store_part(sum + i, n - i, v_load_part(x + i, n - i, (vreal){0}) + v_load_part(residual + i, n - i, (vreal){0}));
}

/* A row from its sums. */
ATTN_INLINE struct norm_row
norm_moments(bool centred, REAL mean, REAL differences, REAL squares, int64_t n, double eps)
{
    REAL count = (REAL)n, rest = centred ? differences / count : 0, variance = squares / count;
    if (centred)
        variance -= rest * rest;
    variance = (variance < 0 ? 0 : variance) + (REAL)eps;
    REAL spread = REAL_BITS == 32 ? (REAL)sqrtf((float)variance) : (REAL)sqrt((double)variance);
    return (struct norm_row){mean, rest, 1 / spread};
}

/* y = the results of a row; y may be x. */
ATTN_INLINE void
norm_results(const REAL *x, int64_t n, const struct norm_row *row, const REAL *weight, const REAL *bias, REAL *y, bool stream)
{
    const vreal mean = v_splat(row->mean), rest = v_splat(row->rest), scale = v_splat(row->scale), zero = {0}, one = v_splat(1);
/* Fused by name: what the compiler contracts depends on the branches that it leaves in a loop, and a head, a body and a tail must have the same bits. */
#define NORM_RESULT(load, i) \
    v_fused(((load(x, i) - mean) - rest) * scale, weight ? load(weight, i) : one, bias ? load(bias, i) : zero)
#define WHOLE(p, i) v_loadu((p) + (i))
#define PART(p, i) v_load_part((p) + (i), n - (i), zero)
    int64_t i = n < 4 * LANES ? 0 : -(int64_t)((uintptr_t)y / sizeof(REAL)) & (LANES - 1); /* stores that straddle cache lines are slow */
    if (i > 0)
        v_store_part(y, i, NORM_RESULT(WHOLE, 0));
    if (stream && n >= 4 * LANES)
        for (; i + LANES <= n; i += LANES)
            v_stream(y + i, NORM_RESULT(WHOLE, i));
    else
        for (; i + LANES <= n; i += LANES)
            v_storeu(y + i, NORM_RESULT(WHOLE, i));
    if (i < n)
        v_store_part(y + i, n - i, NORM_RESULT(PART, i));
#undef NORM_RESULT
#undef WHOLE
#undef PART
}

/* A block of neighbouring rows: where the numbers that are normalised lie. */
struct norm_span {
    const REAL *x;
    int64_t pitch;
};

/* Brings elements first ... first + n - 1 of the rows: x itself, or x + residual in scratch. */
static struct norm_span
norm_span_of(const struct layers_walk *w, const struct layers_tile *tile, int64_t first, int64_t n, REAL *scratch)
{
    struct norm_span span;
    int64_t residual_pitch;
    span.x = layers_read(w, tile, NORM_X, first, n, scratch, &span.pitch);
    if (!w->tensor[NORM_RESIDUAL]->data)
        return span;
    const REAL *residual = layers_read(w, tile, NORM_RESIDUAL, first, n, scratch + w->tile_rows * w->pitch, &residual_pitch);
    for (int64_t r = 0; r < tile->rows; r++)
        row_added(span.x + r * span.pitch, residual + r * residual_pitch, n, scratch + r * w->pitch);
    return (struct norm_span){scratch, w->pitch};
}

/* The rows' numbers. Where a row is more than one block, these are brought anew for each pass; else *span is left with all of it. */
static void
norm_statistics(const struct attn_norm *a, const struct layers_walk *w, const struct layers_tile *tile, REAL *scratch, struct norm_span *span,
                struct norm_row *row)
{
    const bool centred = a->centred;
    REAL sum[LAYERS_MOST_ROWS] = {0}, square[LAYERS_MOST_ROWS] = {0}, mean[LAYERS_MOST_ROWS] = {0};
    bool whole = w->block >= w->n;
    vreal second;
    if (whole)
        *span = norm_span_of(w, tile, 0, w->n, scratch);
    int64_t ahead = whole && w->direct[NORM_X] && span->x != scratch ? span->pitch * tile->rows : 0;
    for (int pass = centred ? 0 : 1; pass < 2; pass++) {
        for (int64_t first = 0; first < w->n && !attn_stopped(a->call.stop); first += w->block) {
            int64_t n = attn_min(w->block, w->n - first);
            if (!whole)
                *span = norm_span_of(w, tile, first, n, scratch);
            for (int64_t r = 0; r < tile->rows; r++) {
                const REAL *x = span->x + r * span->pitch;
                if (pass == 0)
                    sum[r] += v_sum(row_total(ROW_SUM, x, n, (vreal){0}, &second, ahead ? x + ahead : NULL));
                else if (centred) {
                    sum[r] += v_sum(row_total(ROW_DIFFERENCES, x, n, v_splat(mean[r]), &second, NULL));
                    square[r] += v_sum(second);
                } else {
                    row_total(ROW_SQUARES, x, n, (vreal){0}, &second, ahead ? x + ahead : NULL);
                    square[r] += v_sum(second);
                }
            }
        }
        for (int64_t r = 0; pass == 0 && r < tile->rows; r++) {
            mean[r] = sum[r] / (REAL)w->n;
            sum[r] = 0;
        }
    }
    for (int64_t r = 0; r < tile->rows; r++)
        row[r] = norm_moments(centred, mean[r], sum[r], square[r], w->n, a->eps);
}

/* A tile of rows from beginning to end. */
static void
norm_rows(const struct attn_norm *a, const struct layers_walk *w, const struct layers_tile *tile, REAL *scratch)
{
    struct norm_row row[LAYERS_MOST_ROWS];
    struct norm_span span;
    bool whole = w->block >= w->n;
    norm_statistics(a, w, tile, scratch, &span, row);
    for (int64_t first = 0; first < w->n && !attn_stopped(a->call.stop); first += w->block) {
        int64_t n = attn_min(w->block, w->n - first), y_pitch, sum_pitch;
        if (!whole)
            span = norm_span_of(w, tile, first, n, scratch);
        if (a->sum.data) {
            REAL *sum = layers_target(w, tile, NORM_SUM, first, scratch, &sum_pitch);
            for (int64_t r = 0; r < tile->rows; r++)
                if (sum + r * sum_pitch != span.x + r * span.pitch)
                    memcpy(sum + r * sum_pitch, span.x + r * span.pitch, (size_t)n * sizeof(REAL));
            layers_written(w, tile, NORM_SUM, first, n, scratch);
        }
        REAL *y = layers_target(w, tile, NORM_Y, first, scratch, &y_pitch);
        const REAL *weight = a->weight, *bias = a->bias;
        for (int64_t r = 0; r < tile->rows; r++)
            norm_results(span.x + r * span.pitch, n, &row[r], weight ? weight + first : NULL, bias ? bias + first : NULL, y + r * y_pitch, w->stream);
        layers_written(w, tile, NORM_Y, first, n, scratch);
    }
}

/* Of the forward functions and the backward ones. */
static void
norm_describe(const struct attn_norm *a, struct layers_walk *w, bool in_order)
{
    const struct attn_tensor *const tensor[NORM_OPERANDS] = {&a->x, &a->residual, &a->y, &a->sum, &a->grad, &a->grad_sum, &a->grad_weight, &a->grad_bias};
    w->operands = NORM_OPERANDS;
    memcpy(w->tensor, tensor, sizeof tensor);
    layers_walk_axes(w, a->ndim, a->reduced, a->shape, in_order);
    layers_walk_cut(w, ATTN_NORM_RESIDENT, NORM_Y);
}

static int64_t
norm_task_rows(const struct layers_walk *w)
{
    return attn_max(1, LAYERS_TASK / attn_max(w->n, 1) / w->tile_rows) * w->tile_rows;
}

static void
norm_plan(const void *arguments, struct attn_plan *plan)
{
    struct layers_walk w;
    norm_describe(arguments, &w, false);
    int64_t task_rows = norm_task_rows(&w);
    *plan = (struct attn_plan){.phases = 1, .cost = 8.0 * (double)w.rows * (double)w.n};
    plan->tasks[0] = (w.rows + task_rows - 1) / task_rows;
    plan->scratch = (size_t)(2 * w.tile_rows * w.pitch) * sizeof(REAL);
}

static void
norm_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_norm *a = arguments;
    struct layers_walk w;
    struct layers_tile tile;
    (void)phase;
    norm_describe(a, &w, false);
    int64_t task_rows = norm_task_rows(&w), end = attn_min((task + 1) * task_rows, w.rows);
    for (int64_t row = task * task_rows; row < end && !attn_stopped(a->call.stop); row += tile.rows) {
        layers_tile_at(&w, row, end - row, &tile);
        norm_rows(a, &w, &tile, scratch);
    }
    if (w.stream)
        attn_stores_done();
}

static const struct attn_kernel SUFFIX(attn_norm) = {norm_plan, norm_run};
