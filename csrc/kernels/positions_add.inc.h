/* positions_add.inc.h: rows of a table added to tokens, and the table's gradient (positions_learned.h). */
#ifndef ATTN_POSITIONS_ADD_NAMES
#define ATTN_POSITIONS_ADD_NAMES
#define add_position_row SUFFIX(add_position_row)
#define add_positions_task SUFFIX(add_positions_task)
#define add_positions_gradient SUFFIX(add_positions_gradient)
#define add_positions_plan SUFFIX(add_positions_plan)
#define add_positions_run SUFFIX(add_positions_run)
#define row_is_read SUFFIX(row_is_read)

#define ADD_STREAM ((int64_t)8 << 20) /* bytes of y from which stores go past the caches */
enum { ADD_GRADIENT_ROWS = 16, ADD_GRADIENT_TERMS = 64 };

static inline int64_t
add_rows_of_task(const struct attn_add_positions *a)
{
    return attn_max(1, ((int64_t)64 << 10) / attn_max(a->dim, 1));
}

static inline int64_t
add_offset(const struct attn_add_positions *a, int64_t batch)
{
    return a->offset.data ? *(const int64_t *)(a->offset.data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, a->offset.batch)) : 0;
}

/* Batch axes along which the table is shared, and those along which it is not; the others count once in each. */
static inline void
add_shared_axes(const struct attn_add_positions *a, int64_t *own, int64_t *shared)
{
    for (int axis = 0; axis < a->batch_ndim; axis++) {
        bool is_shared = a->y.batch[axis] == 0;
        own[axis] = is_shared ? 1 : a->batch_shape[axis];
        shared[axis] = is_shared ? a->batch_shape[axis] : 1;
    }
}

static inline int64_t
add_product(int n, const int64_t *factors)
{
    int64_t product = 1;
    for (int i = 0; i < n; i++)
        product *= factors[i];
    return product;
}
#endif

/* n REALs of a row: where they lie, or brought into `scratch`. */
ATTN_INLINE const REAL *
row_is_read(const struct attn_tensor *t, const char *data, int64_t n, REAL *scratch)
{
    if (is_direct(t))
        return (const REAL *)data;
    load_row(scratch, data, t->column, n, t->type, t->swapped);
    return scratch;
}

/* y = x + table; y may be x. */
ATTN_INLINE void
add_position_row(const REAL *x, const REAL *table, REAL *y, int64_t n, bool stream)
{
    int64_t i = n < 4 * LANES ? 0 : -(int64_t)((uintptr_t)y / sizeof(REAL)) & (LANES - 1);
    if (i > 0)
        v_store_part(y, i, v_loadu(x) + v_loadu(table));
    if (stream && n >= 4 * LANES)
        for (; i + LANES <= n; i += LANES)
            v_stream(y + i, v_loadu(x + i) + v_loadu(table + i));
    else
        for (; i + LANES <= n; i += LANES)
            v_storeu(y + i, v_loadu(x + i) + v_loadu(table + i));
    if (i < n)
        v_store_part(y + i, n - i, v_load_part(x + i, n - i, (vreal){0}) + v_load_part(table + i, n - i, (vreal){0}));
}

static void
add_positions_task(const struct attn_add_positions *a, int64_t task, REAL *scratch)
{
    int64_t first = task * add_rows_of_task(a), end = attn_min(first + add_rows_of_task(a), a->batch * a->length);
    int64_t pitch = (a->dim + LANES - 1) / LANES * LANES;
    bool direct = is_direct(&a->y), stream = direct && a->y.data != a->x.data && a->batch * a->length * a->dim * (int64_t)sizeof(REAL) >= ADD_STREAM;
    REAL *sums = scratch + 2 * pitch;
    while (first < end && !attn_stopped(a->call.stop)) {
        int64_t b = first / a->length, i = first % a->length, last = attn_min(a->length, i + end - first);
        const char *x = a->x.data + attn_batch_offset(b, a->batch_ndim, a->batch_shape, a->x.batch);
        const char *table = a->table.data + attn_batch_offset(b, a->batch_ndim, a->batch_shape, a->table.batch) + add_offset(a, b) * a->table.row;
        char *y = a->y.data + attn_batch_offset(b, a->batch_ndim, a->batch_shape, a->y.batch);
        first += last - i;
        for (; i < last; i++) {
            const REAL *token = row_is_read(&a->x, x + i * a->x.row, a->dim, scratch);
            const REAL *position = row_is_read(&a->table, table + i * a->table.row, a->dim, scratch + pitch);
            char *to = y + i * a->y.row;
            add_position_row(token, position, direct ? (REAL *)to : sums, a->dim, stream);
            if (!direct)
                store_row(to, a->y.column, sums, a->dim, a->y.type, false);
        }
    }
    if (stream)
        attn_stores_done();
}

/* Some rows of a table's gradient: batch elements in C order, so many at a time. */
static void
add_positions_gradient(const struct attn_add_positions *a, int64_t task, REAL *scratch)
{
    int64_t own_shape[ATTN_MAX_BATCH], shared_shape[ATTN_MAX_BATCH], blocks = (a->table_rows + ADD_GRADIENT_ROWS - 1) / ADD_GRADIENT_ROWS;
    int64_t own = task / blocks, pitch = (a->dim + LANES - 1) / LANES * LANES;
    REAL *part = scratch + pitch, *total = scratch + 2 * pitch;
    add_shared_axes(a, own_shape, shared_shape);
    int64_t shared = add_product(a->batch_ndim, shared_shape);
    const char *x = a->x.data + attn_batch_offset(own, a->batch_ndim, own_shape, a->x.batch);
    const char *offset = a->offset.data ? a->offset.data + attn_batch_offset(own, a->batch_ndim, own_shape, a->offset.batch) : NULL;
    char *y = a->y.data + attn_batch_offset(own, a->batch_ndim, own_shape, a->y.batch);
    for (int64_t n = task % blocks * ADD_GRADIENT_ROWS; n < attn_min((task % blocks + 1) * ADD_GRADIENT_ROWS, a->table_rows); n++) {
        int64_t terms = 0;
        memset(part, 0, (size_t)(2 * pitch) * sizeof(REAL));
        for (int64_t s = 0; s < shared && !attn_stopped(a->call.stop); s++) {
            int64_t i = n - (offset ? *(const int64_t *)(offset + attn_batch_offset(s, a->batch_ndim, shared_shape, a->offset.batch)) : 0);
            if (i < 0 || i >= a->length)
                continue;
            const char *row = x + attn_batch_offset(s, a->batch_ndim, shared_shape, a->x.batch) + i * a->x.row;
            add_position_row(row_is_read(&a->x, row, a->dim, scratch), part, part, a->dim, false);
            if (++terms % ADD_GRADIENT_TERMS == 0) {
                add_position_row(total, part, total, a->dim, false);
                memset(part, 0, (size_t)pitch * sizeof(REAL));
            }
        }
        add_position_row(total, part, total, a->dim, false);
        store_row(y + n * a->y.row, a->y.column, total, a->dim, a->y.type, false);
    }
}

static void
add_positions_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_add_positions *a = arguments;
    int64_t own[ATTN_MAX_BATCH], shared[ATTN_MAX_BATCH], pitch = (a->dim + LANES - 1) / LANES * LANES;
    *plan = (struct attn_plan){
        .phases = 1, .scratch = (size_t)(3 * pitch) * sizeof(REAL), .cost = 4.0 * (double)a->batch * (double)a->length * (double)a->dim};
    if (a->backward) {
        add_shared_axes(a, own, shared);
        plan->tasks[0] = add_product(a->batch_ndim, own) * ((a->table_rows + ADD_GRADIENT_ROWS - 1) / ADD_GRADIENT_ROWS);
        plan->cost += (double)a->batch * (double)a->table_rows;
    } else
        plan->tasks[0] = (a->batch * a->length + add_rows_of_task(a) - 1) / add_rows_of_task(a);
}

static void
add_positions_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_add_positions *a = arguments;
    (void)phase;
    if (a->backward)
        add_positions_gradient(a, task, scratch);
    else
        add_positions_task(a, task, scratch);
}

static const struct attn_kernel SUFFIX(attn_add_positions) = {add_positions_plan, add_positions_run};
