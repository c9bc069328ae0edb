/* layers_norm_backward.inc.h: the gradients of layer_norm and rms_norm. A row's numbers are found anew, while it is in the caches.
 *
 * A task is a chunk of rows; the sums over its rows that weight and bias need go to the workspace, [chunk][2][n], where a second phase adds them up
 * in ascending order: the same order for any number of threads. */
#ifndef ATTN_LAYERS_NORM_BACKWARD_NAMES
#define ATTN_LAYERS_NORM_BACKWARD_NAMES
#define row_moments_of SUFFIX(row_moments_of)
#define norm_gradient_vector SUFFIX(norm_gradient_vector)
#define norm_gradients SUFFIX(norm_gradients)
#define norm_gradients_of SUFFIX(norm_gradients_of)
#define norm_slope SUFFIX(norm_slope)
#define norm_backward_sums SUFFIX(norm_backward_sums)
#define norm_backward_rows SUFFIX(norm_backward_rows)
#define norm_backward_total SUFFIX(norm_backward_total)
#define norm_backward_plan SUFFIX(norm_backward_plan)
#define norm_backward_run SUFFIX(norm_backward_run)

enum { NORM_CHUNK = 64, NORM_FEW = 16, NORM_COLUMNS = 1024 }; /* rows of a chunk at the most; chunks of few rows; columns added up together */

/* The rows of a chunk: an accumulator takes no more terms than that. */
static inline int64_t
norm_chunk_rows(int64_t rows)
{
    return attn_max(4, attn_min(NORM_CHUNK, (rows + NORM_FEW - 1) / NORM_FEW));
}
#endif

/* What the gradients of a row share: the means of p and of p h. */
struct norm_slope {
    REAL mean, product;
};

/* The sums of p = grad weight, and in *second of p ((x - mean) - rest), lane by lane. */
ATTN_INLINE vreal
row_moments_of(const REAL *x, const REAL *grad, const REAL *weight, int64_t n, const struct norm_row *row, vreal *second)
{
    const vreal mean = v_splat(row->mean), rest = v_splat(row->rest), one = v_splat(1), zero = {0};
    vreal sum = {0}, product = {0};
    int64_t i = 0;
    while (i + 4 * LANES <= n) {
        int64_t end = attn_min(i + 64 * LANES, n - n % (4 * LANES));
        vreal part[4] = {{0}, {0}, {0}, {0}}, more[4] = {{0}, {0}, {0}, {0}};
        for (; i < end; i += 4 * LANES)
    ATTN_UNROLL
            for (int k = 0; k < 4; k++) {
                int64_t at = i + k * LANES;
                vreal p = v_loadu(grad + at) * (weight ? v_loadu(weight + at) : one);
                part[k] += p;
                more[k] = v_fused(p, (v_loadu(x + at) - mean) - rest, more[k]);
            }
        sum += (part[0] + part[1]) + (part[2] + part[3]);
        product += (more[0] + more[1]) + (more[2] + more[3]);
    }
    for (; i < n; i += LANES) {
        bool whole = n - i >= LANES;
        vreal p = (whole ? v_loadu(grad + i) : v_load_part(grad + i, n - i, zero)) *
                  (!weight ? one : whole ? v_loadu(weight + i) : v_load_part(weight + i, n - i, zero));
        sum += p;
        product = v_fused(p, ((whole ? v_loadu(x + i) : v_load_part(x + i, n - i, mean)) - mean) - rest, product);
    }
    *second = product;
    return sum;
}

/* Pointers to n elements of a row; weight and grad_sum may be NULL. */
struct norm_gradients {
    const REAL *x, *grad, *weight, *grad_sum;
    REAL *y, *grad_weight, *grad_bias;
};

/* One vector, whole or `count` < LANES elements of it. The sums over rows get theirs too. */
ATTN_INLINE vreal
norm_gradient_vector(const struct norm_gradients *p, int64_t i, int64_t count, const struct norm_row *row, const struct norm_slope *slope)
{
    const vreal zero = {0}, one = v_splat(1);
    const bool whole = count >= LANES;
    vreal grad = whole ? v_loadu(p->grad + i) : v_load_part(p->grad + i, count, zero);
    vreal x = whole ? v_loadu(p->x + i) : v_load_part(p->x + i, count, zero);
    vreal weight = !p->weight ? one : whole ? v_loadu(p->weight + i) : v_load_part(p->weight + i, count, zero);
    vreal more = !p->grad_sum ? zero : whole ? v_loadu(p->grad_sum + i) : v_load_part(p->grad_sum + i, count, zero);
    vreal h = ((x - v_splat(row->mean)) - v_splat(row->rest)) * v_splat(row->scale);
    if (whole) {
        v_storeu(p->grad_weight + i, v_fused(grad, h, v_loadu(p->grad_weight + i)));
        v_storeu(p->grad_bias + i, v_loadu(p->grad_bias + i) + grad);
    } else {
        v_store_part(p->grad_weight + i, count, v_fused(grad, h, v_load_part(p->grad_weight + i, count, zero)));
        v_store_part(p->grad_bias + i, count, v_load_part(p->grad_bias + i, count, zero) + grad);
    }
    vreal inner = v_fused(-h, v_splat(slope->product), v_fused(grad, weight, v_splat(-slope->mean)));
    return v_fused(inner, v_splat(row->scale), more); /* by name, as in norm_results */
}

/* y = the gradients of a row; y may be any of the operands. */
ATTN_INLINE void
norm_gradients_of(const struct norm_gradients *p, int64_t n, const struct norm_row *row, const struct norm_slope *slope, bool stream)
{
    int64_t i = n < 4 * LANES ? 0 : -(int64_t)((uintptr_t)p->y / sizeof(REAL)) & (LANES - 1); /* stores that straddle cache lines are slow */
    if (i > 0)
        v_store_part(p->y, i, norm_gradient_vector(p, 0, i, row, slope));
    if (stream && n >= 4 * LANES)
        for (; i + LANES <= n; i += LANES)
            v_stream(p->y + i, norm_gradient_vector(p, i, LANES, row, slope));
    else
        for (; i + LANES <= n; i += LANES)
            v_storeu(p->y + i, norm_gradient_vector(p, i, LANES, row, slope));
    if (i < n)
        v_store_part(p->y + i, n - i, norm_gradient_vector(p, i, n - i, row, slope));
}

/* The sums that the rows of a tile share. Rows of several blocks are brought anew. */
static void
norm_backward_sums(const struct attn_norm *a, const struct layers_walk *w, const struct layers_tile *tile, const struct norm_span *whole_span,
                   const struct norm_row *row, REAL *scratch, struct norm_slope *slope)
{
    REAL sum[LAYERS_MOST_ROWS] = {0}, product[LAYERS_MOST_ROWS] = {0};
    const REAL *weight = a->weight;
    for (int64_t first = 0; first < w->n && !attn_stopped(a->call.stop); first += w->block) {
        int64_t n = attn_min(w->block, w->n - first), pitch;
        struct norm_span span = w->block >= w->n ? *whole_span : norm_span_of(w, tile, first, n, scratch);
        const REAL *grad = layers_read(w, tile, NORM_GRAD, first, n, scratch + w->tile_rows * w->pitch, &pitch);
        for (int64_t r = 0; r < tile->rows; r++) {
            vreal second;
            sum[r] += v_sum(row_moments_of(span.x + r * span.pitch, grad + r * pitch, weight ? weight + first : NULL, n, &row[r], &second));
            product[r] += v_sum(second);
        }
    }
    for (int64_t r = 0; r < tile->rows; r++)
        slope[r] = (struct norm_slope){a->centred ? sum[r] / (REAL)w->n : 0, product[r] * row[r].scale / (REAL)w->n};
}

/* A tile of rows from beginning to end; what it adds to the sums over rows goes to totals[2][n]. */
static void
norm_backward_rows(const struct attn_norm *a, const struct layers_walk *w, const struct layers_tile *tile, REAL *scratch, REAL *totals)
{
    struct norm_row row[LAYERS_MOST_ROWS];
    struct norm_slope slope[LAYERS_MOST_ROWS];
    struct norm_span span;
    const REAL *weight = a->weight;
    int64_t each = w->tile_rows * w->pitch;
    norm_statistics(a, w, tile, scratch, &span, row);
    norm_backward_sums(a, w, tile, &span, row, scratch, slope);
    for (int64_t first = 0; first < w->n && !attn_stopped(a->call.stop); first += w->block) {
        int64_t n = attn_min(w->block, w->n - first), grad_pitch = 0, more_pitch = 0, y_pitch;
        if (w->block < w->n)
            span = norm_span_of(w, tile, first, n, scratch);
        const REAL *grad = w->block < w->n || w->direct[NORM_GRAD] ? layers_read(w, tile, NORM_GRAD, first, n, scratch + each, &grad_pitch) : NULL;
        if (!grad) { /* it is still there */
            grad = scratch + each;
            grad_pitch = w->pitch;
        }
        const REAL *more = a->grad_sum.data ? layers_read(w, tile, NORM_GRAD_SUM, first, n, scratch + 2 * each, &more_pitch) : NULL;
        REAL *y = layers_target(w, tile, NORM_Y, first, scratch, &y_pitch);
        for (int64_t r = 0; r < tile->rows; r++) {
            struct norm_gradients p = {span.x + r * span.pitch,
                                       grad + r * grad_pitch,
                                       weight ? weight + first : NULL,
                                       more ? more + r * more_pitch : NULL,
                                       y + r * y_pitch,
                                       totals + first,
                                       totals + w->n + first};
            norm_gradients_of(&p, n, &row[r], &slope[r], w->stream);
        }
        layers_written(w, tile, NORM_Y, first, n, scratch);
    }
}

/* Columns first ... first + n - 1 of the gradient of weight (which = 0) or bias: the chunks in ascending order, 64 at a time. */
static void
norm_backward_total(const struct attn_norm *a, const struct layers_walk *w, int64_t chunks, int which, int64_t first, int64_t n, REAL *scratch)
{
    const int operand = which == 0 ? NORM_GRAD_WEIGHT : NORM_GRAD_BIAS;
    const struct layers_tile tile = {.rows = 1};
    const REAL *totals = a->call.workspace;
    int64_t pitch;
    if (!w->tensor[operand]->data)
        return;
    REAL *y = layers_target(w, &tile, operand, first, scratch, &pitch), *part = scratch + NORM_COLUMNS;
    memset(y, 0, (size_t)n * sizeof(REAL));
    for (int64_t chunk = 0; chunk < chunks && !attn_stopped(a->call.stop); chunk += NORM_CHUNK) {
        memset(part, 0, (size_t)n * sizeof(REAL));
        for (int64_t c = chunk; c < attn_min(chunk + NORM_CHUNK, chunks); c++) {
            const REAL *from = totals + (2 * c + which) * w->n + first;
            for (int64_t i = 0; i < n; i++)
                part[i] += from[i];
        }
        for (int64_t i = 0; i < n; i++)
            y[i] += part[i];
    }
    layers_written(w, &tile, operand, first, n, scratch);
}

static void
norm_backward_plan(const void *arguments, struct attn_plan *plan)
{
    struct layers_walk w;
    norm_describe(arguments, &w, true);
    int64_t chunk = norm_chunk_rows(w.rows), chunks = (w.rows + chunk - 1) / chunk;
    *plan = (struct attn_plan){.phases = 2, .cost = 16.0 * (double)w.rows * (double)w.n};
    plan->tasks[0] = chunks;
    plan->tasks[1] = (w.n + NORM_COLUMNS - 1) / NORM_COLUMNS;
    plan->scratch = (size_t)attn_max(3 * w.tile_rows * w.pitch, 2 * NORM_COLUMNS) * sizeof(REAL);
    plan->workspace = (size_t)(2 * chunks * w.n) * sizeof(REAL);
}

static void
norm_backward_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_norm *a = arguments;
    struct layers_walk w;
    struct layers_tile tile;
    norm_describe(a, &w, true);
    int64_t chunk = norm_chunk_rows(w.rows), end = attn_min((task + 1) * chunk, w.rows);
    if (phase == 1) {
        for (int which = 0; which < 2; which++)
            norm_backward_total(a, &w, (w.rows + chunk - 1) / chunk, which, task * NORM_COLUMNS, attn_min(NORM_COLUMNS, w.n - task * NORM_COLUMNS),
                                scratch);
        return;
    }
    REAL *totals = (REAL *)a->call.workspace + 2 * task * w.n;
    memset(totals, 0, (size_t)(2 * w.n) * sizeof(REAL));
    for (int64_t row = task * chunk; row < end && !attn_stopped(a->call.stop); row += tile.rows) {
        layers_tile_at(&w, row, end - row, &tile);
        norm_backward_rows(a, &w, &tile, scratch, totals);
    }
    if (w.stream)
        attn_stores_done();
}

static const struct attn_kernel SUFFIX(attn_norm_backward) = {norm_backward_plan, norm_backward_run};
