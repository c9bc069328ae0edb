/* positions_interpolate.inc.h: tables of positions on grids of other sizes, and the gradients (positions_learned.h).
 *
 * Both are a sparse matrix for each axis, in rows: forward a row holds the points that one new point is made of, transposed the new points that one point is
 * in. The first phase makes the matrices, the second applies them. */
#ifndef ATTN_POSITIONS_INTERPOLATE_NAMES
#define ATTN_POSITIONS_INTERPOLATE_NAMES
#define interpolate_sum SUFFIX(interpolate_sum)
#define interpolate_line SUFFIX(interpolate_line)
#define interpolate_point SUFFIX(interpolate_point)
#define interpolate_plan SUFFIX(interpolate_plan)
#define interpolate_run SUFFIX(interpolate_run)

enum { INTERPOLATE_TAPS = 4, INTERPOLATE_TERMS = 64, INTERPOLATE_ROWS = 32 };

/* Of an axis: row r has entries start[r] ... start[r + 1] - 1; all in the workspace. */
struct interpolate_axis {
    int64_t rows;
    int64_t *start, *column;
    double *weight;
};

/* Keys' kernel, a = -3/4, at distances 1 + t, t, 1 - t, 2 - t. */
static inline void
cubic_weights(double t, double *w)
{
    const double a = -0.75;
    double far = t + 1, near = 1 - t, beyond = 2 - t;
    w[0] = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a;
    w[1] = ((a + 2) * t - (a + 3)) * t * t + 1;
    w[2] = ((a + 2) * near - (a + 3)) * near * near + 1;
    w[3] = ((a * beyond - 5 * a) * beyond + 8 * a) * beyond - 4 * a;
}

/* The points that new point o is made of, ascending, and their weights, none of them 0. Returns how many. */
static inline int
interpolate_taps(int64_t from, int64_t to, bool cubic, int64_t o, int64_t *column, double *weight)
{
    int64_t at = (2 * o + 1) * from - to, below = at / (2 * to) - (at < 0); /* at / (2 to) is where it lies, and more than -1 */
    double t = (double)(at - below * 2 * to) / (double)(2 * to), w[INTERPOLATE_TAPS];
    int taps = cubic ? 4 : 2, n = 0;
    if (cubic)
        cubic_weights(t, w);
    else {
        w[0] = 1 - t;
        w[1] = t;
    }
    for (int k = 0; k < taps; k++) {
        int64_t point = attn_max(0, attn_min(from - 1, below + k - cubic));
        if (n > 0 && column[n - 1] == point)
            weight[n - 1] += w[k];
        else if (w[k] != 0) {
            column[n] = point;
            weight[n++] = w[k];
        }
    }
    return n;
}

static void
interpolate_axis_fill(const struct attn_interpolate_positions *a, int which, struct interpolate_axis *axis)
{
    int64_t column[INTERPOLATE_TAPS], from = a->from[which], to = from > 0 ? a->to[which] : 0;
    double weight[INTERPOLATE_TAPS];
    memset(axis->start, 0, (size_t)(axis->rows + 1) * sizeof *axis->start);
    for (int64_t o = 0; o < to; o++) {
        int taps = interpolate_taps(from, to, a->cubic, o, column, weight);
        for (int k = 0; k < taps; k++)
            axis->start[(a->transposed ? column[k] : o) + 1]++;
    }
    for (int64_t r = 0; r < axis->rows; r++)
        axis->start[r + 1] += axis->start[r];
    for (int64_t o = 0; o < to; o++) { /* start[r] runs through row r, and ends where row r + 1 began */
        int taps = interpolate_taps(from, to, a->cubic, o, column, weight);
        for (int k = 0; k < taps; k++) {
            int64_t entry = axis->start[a->transposed ? column[k] : o]++;
            axis->column[entry] = a->transposed ? o : column[k];
            axis->weight[entry] = weight[k];
        }
    }
    for (int64_t r = axis->rows; r > 0; r--)
        axis->start[r] = axis->start[r - 1];
    axis->start[0] = 0;
}

static inline int64_t
interpolate_axis_rows(const struct attn_interpolate_positions *a, int which)
{
    return a->transposed ? a->from[which] : a->to[which];
}

/* Bytes of an axis in the workspace. */
static inline size_t
interpolate_axis_bytes(const struct attn_interpolate_positions *a, int which)
{
    return ((size_t)interpolate_axis_rows(a, which) + 1 + 2 * INTERPOLATE_TAPS * (size_t)a->to[which]) * 8;
}

static inline void
interpolate_axes(const struct attn_interpolate_positions *a, struct interpolate_axis *axes)
{
    char *memory = a->call.workspace;
    for (int which = 0; which < 2; which++) {
        struct interpolate_axis *axis = &axes[which];
        axis->rows = interpolate_axis_rows(a, which);
        axis->start = (int64_t *)memory;
        axis->column = axis->start + axis->rows + 1;
        axis->weight = (double *)(axis->column + INTERPOLATE_TAPS * a->to[which]);
        memory += interpolate_axis_bytes(a, which);
    }
}
#endif

/* sum = x weight, or sum + x weight. */
ATTN_INLINE void
interpolate_sum(REAL *sum, const REAL *x, REAL weight, int64_t n, bool first)
{
    const vreal factor = v_splat(weight), nothing = v_splat((REAL)-0.0); /* -0 + x is x, also where x is -0 */
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        v_storeu(sum + i, (first ? nothing : v_loadu(sum + i)) + v_loadu(x + i) * factor);
    if (i < n)
        v_store_part(sum + i, n - i, (first ? nothing : v_load_part(sum + i, n - i, nothing)) + v_load_part(x + i, n - i, nothing) * factor);
}

/* total = the sum over a row of the second axis, of points of x from `line` on; `part` holds up to INTERPOLATE_TERMS of its terms. */
static void
interpolate_line(const struct attn_interpolate_positions *a, const struct interpolate_axis *axis, int64_t row, const char *line, REAL *total,
                 REAL *part, REAL *scratch)
{
    int64_t first = axis->start[row], end = axis->start[row + 1];
    for (int64_t k = first; k < end; k++) {
        const REAL *x = row_is_read(&a->x, line + axis->column[k] * a->x.row, a->dim, scratch);
        bool short_sum = end - first <= INTERPOLATE_TERMS, begins = (k - first) % INTERPOLATE_TERMS == 0;
        interpolate_sum(short_sum ? total : part, x, (REAL)axis->weight[k], a->dim, begins);
        if (!short_sum && (k + 1 == end || (k + 1 - first) % INTERPOLATE_TERMS == 0))
            interpolate_sum(total, part, 1, a->dim, k - first < INTERPOLATE_TERMS);
    }
}

/* One row of y. */
static void
interpolate_point(const struct attn_interpolate_positions *a, const struct interpolate_axis *axes, const char *x, char *y, int64_t row, REAL *scratch)
{
    int64_t pitch = (a->dim + LANES - 1) / LANES * LANES, width = a->transposed ? a->to[1] : a->from[1];
    REAL *total = scratch + pitch, *part = scratch + 2 * pitch, *line = scratch + 3 * pitch, *within = scratch + 4 * pitch;
    if (row < a->prefix) {
        const REAL *same = row_is_read(&a->x, x + row * a->x.row, a->dim, scratch);
        store_row(y + row * a->y.row, a->y.column, same, a->dim, a->y.type, false);
        return;
    }
    int64_t v = (row - a->prefix) / axes[1].rows, u = (row - a->prefix) % axes[1].rows, first = axes[0].start[v], end = axes[0].start[v + 1];
    if (first == end || axes[1].start[u] == axes[1].start[u + 1])
        memset(total, 0, (size_t)a->dim * sizeof(REAL));
    else
        for (int64_t k = first; k < end; k++) {
            bool short_sum = end - first <= INTERPOLATE_TERMS, begins = (k - first) % INTERPOLATE_TERMS == 0;
            interpolate_line(a, &axes[1], u, x + (a->prefix + axes[0].column[k] * width) * a->x.row, line, within, scratch);
            interpolate_sum(short_sum ? total : part, line, (REAL)axes[0].weight[k], a->dim, begins);
            if (!short_sum && (k + 1 == end || (k + 1 - first) % INTERPOLATE_TERMS == 0))
                interpolate_sum(total, part, 1, a->dim, k - first < INTERPOLATE_TERMS);
        }
    store_row(y + row * a->y.row, a->y.column, total, a->dim, a->y.type, false);
}

static void
interpolate_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_interpolate_positions *a = arguments;
    size_t bytes = interpolate_axis_bytes(a, 0) + interpolate_axis_bytes(a, 1);
    int64_t rows = a->prefix + interpolate_axis_rows(a, 0) * interpolate_axis_rows(a, 1), taps = a->cubic ? 16 : 2,
            pitch = (a->dim + LANES - 1) / LANES * LANES;
    *plan = (struct attn_plan){.phases = 2, .workspace = bytes, .scratch = (size_t)(5 * pitch) * sizeof(REAL)};
    plan->tasks[0] = 1;
    plan->tasks[1] = a->batch * ((rows + INTERPOLATE_ROWS - 1) / INTERPOLATE_ROWS);
    plan->cost = 2.0 * (double)taps * (double)a->batch * (double)a->dim * (double)attn_max(a->to[0] * a->to[1], rows);
}

static void
interpolate_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_interpolate_positions *a = arguments;
    struct interpolate_axis axes[2];
    interpolate_axes(a, axes);
    if (phase == 0) {
        for (int which = 0; which < 2; which++)
            interpolate_axis_fill(a, which, &axes[which]);
        return;
    }
    int64_t rows = a->prefix + axes[0].rows * axes[1].rows, blocks = (rows + INTERPOLATE_ROWS - 1) / INTERPOLATE_ROWS, b = task / blocks;
    const char *x = a->x.data + attn_batch_offset(b, a->batch_ndim, a->batch_shape, a->x.batch);
    char *y = a->y.data + attn_batch_offset(b, a->batch_ndim, a->batch_shape, a->y.batch);
    for (int64_t row = task % blocks * INTERPOLATE_ROWS; row < attn_min((task % blocks + 1) * INTERPOLATE_ROWS, rows); row++)
        if (!attn_stopped(a->call.stop))
            interpolate_point(a, axes, x, y, row, scratch);
}

static const struct attn_kernel SUFFIX(attn_interpolate_positions) = {interpolate_plan, interpolate_run};
