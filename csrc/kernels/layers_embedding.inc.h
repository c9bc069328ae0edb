/* layers_embedding.inc.h: rows of a table, copied; and their gradients, gathered for each row of the table in the order of the indices. */
#ifndef ATTN_LAYERS_EMBEDDING_NAMES
#define ATTN_LAYERS_EMBEDDING_NAMES
#define embedding_plan SUFFIX(embedding_plan)
#define embedding_run SUFFIX(embedding_run)
#define embedding_entry SUFFIX(embedding_entry)
#define embedding_backward_plan SUFFIX(embedding_backward_plan)
#define embedding_backward_run SUFFIX(embedding_backward_run)

enum { EMBEDDING_BLOCK = 64 }; /* terms that an accumulator takes at the most */

static inline int64_t
embedding_task_rows(const struct attn_embedding *a)
{
    return attn_max(1, LAYERS_TASK / attn_max(a->columns, 1));
}

/* Phase 0 of the gradient: where each row of the table was named: order[start[v]] ... order[start[v + 1] - 1], ascending. */
static void
embedding_sort(const struct attn_embedding *a, int64_t *start, int64_t *order)
{
    memset(start, 0, (size_t)(a->entries + 2) * sizeof *start);
    for (int64_t i = 0; i < a->count; i++)
        start[a->indices[i] + 2]++;
    for (int64_t v = 2; v < a->entries + 2; v++)
        start[v] += start[v - 1];
    for (int64_t i = 0; i < a->count; i++)
        order[start[a->indices[i] + 1]++] = i;
}
#endif

static void
embedding_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_embedding *a = arguments;
    int64_t rows = embedding_task_rows(a);
    *plan = (struct attn_plan){.phases = 1, .cost = 4.0 * (double)a->count * (double)a->columns};
    plan->tasks[0] = (a->count + rows - 1) / rows;
}

static void
embedding_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_embedding *a = arguments;
    int64_t size = attn_type_size(a->table.type), rows = embedding_task_rows(a), end = attn_min((task + 1) * rows, a->count);
    bool whole = !a->table.swapped && a->table.column == size && a->y.column == size;
    (void)phase;
    (void)scratch;
    for (int64_t i = task * rows; i < end && !attn_stopped(a->call.stop); i++) {
        const char *from = a->table.data + a->indices[i] * a->table.row;
        char *to = a->y.data + attn_batch_offset(i, a->ndim, a->shape, a->y.batch);
        if (whole)
            memcpy(to, from, (size_t)(a->columns * size));
        else
            for (int64_t c = 0; c < a->columns; c++)
                attn_copy_element(to + c * a->y.column, from + c * a->table.column, size, a->table.swapped);
    }
}

static const struct attn_kernel SUFFIX(attn_embedding) = {embedding_plan, embedding_run};

/* total = the sum of the gradients `order[0]` ... `order[n - 1]`. part and row: as much room again. */
static void
embedding_entry(const struct attn_embedding *a, const int64_t *order, int64_t n, REAL *total, REAL *part, REAL *row)
{
    memset(total, 0, (size_t)a->columns * sizeof(REAL));
    for (int64_t first = 0; first < n && !attn_stopped(a->call.stop); first += EMBEDDING_BLOCK) {
        memset(part, 0, (size_t)a->columns * sizeof(REAL));
        for (int64_t i = first; i < attn_min(first + EMBEDDING_BLOCK, n); i++) {
            const char *p = a->grad.data + attn_batch_offset(order[i], a->ndim, a->shape, a->grad.batch);
            const REAL *grad = row;
            if (is_direct(&a->grad))
                grad = (const REAL *)p;
            else
                load_row(row, p, a->grad.column, a->columns, a->grad.type, a->grad.swapped);
            for (int64_t c = 0; c < a->columns; c++)
                part[c] += grad[c];
        }
        for (int64_t c = 0; c < a->columns; c++)
            total[c] += part[c];
    }
}

static void
embedding_backward_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_embedding *a = arguments;
    int64_t rows = embedding_task_rows(a);
    *plan = (struct attn_plan){.phases = 2, .cost = 4.0 * (double)(a->count + a->entries) * (double)a->columns};
    plan->tasks[0] = 1;
    plan->tasks[1] = (a->entries + rows - 1) / rows;
    plan->scratch = (size_t)(3 * attn_max(a->columns, 1)) * sizeof(REAL);
    plan->workspace = (size_t)(a->entries + 2 + a->count) * sizeof(int64_t);
}

static void
embedding_backward_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_embedding *a = arguments;
    int64_t *start = a->call.workspace, *order = start + a->entries + 2, rows = embedding_task_rows(a);
    REAL *total = scratch, *part = total + a->columns, *row = part + a->columns;
    if (phase == 0) {
        embedding_sort(a, start, order);
        return;
    }
    for (int64_t v = task * rows; v < attn_min((task + 1) * rows, a->entries) && !attn_stopped(a->call.stop); v++) {
        embedding_entry(a, order + start[v], start[v + 1] - start[v], total, part, row);
        store_row(a->y.data + v * a->y.row, a->y.column, total, a->columns, a->y.type, false);
    }
}

static const struct attn_kernel SUFFIX(attn_embedding_backward) = {embedding_backward_plan, embedding_backward_run};
