/* attention_merge_backward.inc.h: the gradients of merge_attention, part by part.
 *
 * Phase 0: every gradient that has all batch axes; a task is some rows of one batch element, of all parts. Phase 1: gradients that are summed over
 * batch axes, one by one; a task is some rows of one of its elements, which it owns, so that the sum is made in C order by one task. */
#ifndef ATTN_MERGE_BACKWARD_NAMES
#define ATTN_MERGE_BACKWARD_NAMES
#define merge_row SUFFIX(merge_row)
#define merge_rows SUFFIX(merge_rows)
#define merge_number SUFFIX(merge_number)
#define merge_row_at SUFFIX(merge_row_at)
#define merge_scaled SUFFIX(merge_scaled)
#define merge_apart SUFFIX(merge_apart)
#define merge_rows_of SUFFIX(merge_rows_of)
#define merge_shares SUFFIX(merge_shares)
#define merge_lse_gradient SUFFIX(merge_lse_gradient)
#define merge_part_rows SUFFIX(merge_part_rows)
#define merge_add SUFFIX(merge_add)
#define merge_summed_row SUFFIX(merge_summed_row)
#define merge_summed_task SUFFIX(merge_summed_task)
#define merge_backward_plan SUFFIX(merge_backward_plan)
#define merge_backward_run SUFFIX(merge_backward_run)

enum { MERGE_BACKWARD_ROWS = 64 }; /* rows a task: with those of a part, all in L2 */

/* Whether a gradient is summed over batch axes. */
static inline bool
attn_merge_sums(const struct attn_merge_backward *a, const struct attn_tensor *grad)
{
    for (int axis = 0; axis < a->batch_ndim; axis++)
        if (a->batch_shape[axis] > 1 && grad->batch[axis] == 0)
            return true;
    return false;
}

/* The batch elements that have the same gradient; own: elements of the gradient. */
static inline int64_t
attn_merge_shared(const struct attn_merge_backward *a, const struct attn_tensor *grad, int64_t *own)
{
    int64_t shared = 1;
    *own = 1;
    for (int axis = 0; axis < a->batch_ndim; axis++)
        *(grad->batch[axis] == 0 ? &shared : own) *= a->batch_shape[axis];
    return shared;
}

/* The batch element that is number `shared` among those of the gradient's element `own`, in C order. */
static inline int64_t
attn_merge_element(const struct attn_merge_backward *a, const struct attn_tensor *grad, int64_t own, int64_t shared)
{
    int64_t element = 0, step = 1;
    for (int axis = a->batch_ndim - 1; axis >= 0; axis--) {
        int64_t *index = grad->batch[axis] == 0 ? &shared : &own;
        element += *index % a->batch_shape[axis] * step;
        *index /= a->batch_shape[axis];
        step *= a->batch_shape[axis];
    }
    return element;
}

static inline int64_t
attn_merge_chunks(const struct attn_merge_backward *a)
{
    return (a->rows + MERGE_BACKWARD_ROWS - 1) / MERGE_BACKWARD_ROWS;
}
#endif

/* Where the rows of one batch element and part begin. */
struct merge_rows {
    const char *output, *lse, *grad_output, *grad_lse, *part, *part_lse;
};

static struct merge_rows
merge_rows_of(const struct attn_merge_backward *a, int64_t t, int64_t batch)
{
    const struct attn_tensor *tensor[] = {&a->output, &a->lse, &a->grad_output, &a->grad_lse, &a->outputs[t], &a->lses[t]};
    const char *at[6];
    for (int i = 0; i < 6; i++)
        at[i] = tensor[i]->data ? tensor[i]->data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, tensor[i]->batch) : NULL;
    return (struct merge_rows){at[0], at[1], at[2], at[3], at[4], at[5]};
}

ATTN_INLINE REAL
merge_number(const struct attn_tensor *t, const char *rows, int64_t row)
{
    return *(const REAL *)(rows + row * t->row);
}

/* A row where it lies, or brought to `buffer`. */
ATTN_INLINE const REAL *
merge_row_at(const struct attn_tensor *t, const char *rows, int64_t row, int64_t n, REAL *buffer)
{
    const char *data = rows + row * t->row;
    if (is_direct(t))
        return (const REAL *)data;
    load_row(buffer, data, t->column, n, t->type, t->swapped);
    return buffer;
}

/* y = factor x */
ATTN_INLINE void
merge_scaled(const REAL *x, REAL factor, int64_t n, REAL *y)
{
    int64_t c = 0;
    for (; c + LANES <= n; c += LANES)
        v_storeu(y + c, v_loadu(x + c) * v_splat(factor));
    if (c < n)
        v_store_part(y + c, n - c, v_load_part(x + c, n - c, (vreal){0}) * v_splat(factor));
}

/* g . (x - y), at most 64 terms to an accumulator at a time. */
ATTN_INLINE REAL
merge_apart(const REAL *g, const REAL *x, const REAL *y, int64_t n)
{
    vreal sum = {0};
    for (int64_t c = 0; c < n;) {
        int64_t end = attn_min(n, c + 64 * LANES);
        vreal part = {0};
        for (; c + LANES <= end; c += LANES)
            part += v_loadu(g + c) * (v_loadu(x + c) - v_loadu(y + c));
        if (c < end)
            part += v_load_part(g + c, end - c, (vreal){0}) * (v_load_part(x + c, end - c, (vreal){0}) - v_load_part(y + c, end - c, (vreal){0}));
        sum += part;
        c = end;
    }
    return v_sum(sum);
}

/* share[i] = exp(lse_t - lse) of row first + i, -1 where the part counts nothing. By vectors: libm's exp stalls where AVX registers are in use. */
ATTN_INLINE void
merge_shares(const struct attn_merge_backward *a, const struct merge_rows *at, int64_t t, int64_t first, int64_t rows, REAL *share)
{
    REAL part[MERGE_BACKWARD_ROWS], apart[MERGE_BACKWARD_ROWS];
    for (int64_t i = 0; i < rows; i++) {
        part[i] = merge_number(&a->lses[t], at->part_lse, first + i);
        apart[i] = part[i] - merge_number(&a->lse, at->lse, first + i);
    }
    for (int64_t i = rows; i % LANES != 0; i++)
        part[i] = apart[i] = 0;
    for (int64_t i = 0; i < rows; i += LANES)
        v_storeu(share + i, v_select(v_loadu(part + i) == v_splat(-REAL_INFINITY), v_splat(-1), v_exp(v_loadu(apart + i))));
}

/* share (dO . (O_t - O) + dlse) */
ATTN_INLINE REAL
merge_lse_gradient(const struct attn_merge_backward *a, const struct merge_rows *at, int64_t t, int64_t row, REAL share, const REAL *grad,
                   REAL *scratch)
{
    int64_t n = a->value_dim, pitch = (n + LANES - 1) / LANES * LANES;
    const REAL *part = merge_row_at(&a->outputs[t], at->part, row, n, scratch);
    const REAL *whole = merge_row_at(&a->output, at->output, row, n, scratch + pitch);
    REAL sum = merge_apart(grad, part, whole, n);
    return share * (at->grad_lse ? sum + merge_number(&a->grad_lse, at->grad_lse, row) : sum);
}

/* Rows first ... first + rows - 1 of part t of one batch element, for those of its gradients that are not summed. scratch: four rows. */
static void
merge_part_rows(const struct attn_merge_backward *a, int64_t t, int64_t batch, int64_t first, int64_t rows, REAL *scratch)
{
    const struct attn_tensor *to = &a->grad_outputs[t], *to_lse = &a->grad_lses[t];
    bool gives_output = !attn_merge_sums(a, to), gives_lse = !attn_merge_sums(a, to_lse);
    if (!gives_output && !gives_lse)
        return;
    int64_t n = a->value_dim, pitch = (n + LANES - 1) / LANES * LANES;
    struct merge_rows at = merge_rows_of(a, t, batch);
    char *y = gives_output ? to->data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, to->batch) : NULL;
    char *y_lse = gives_lse ? to_lse->data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, to_lse->batch) : NULL;
    REAL shares[MERGE_BACKWARD_ROWS];
    merge_shares(a, &at, t, first, rows, shares);
    for (int64_t row = first; row < first + rows; row++) {
        REAL share = shares[row - first];
        const REAL *grad = share == -1 ? NULL : merge_row_at(&a->grad_output, at.grad_output, row, n, scratch + 2 * pitch);
        if (gives_lse)
            from_real(y_lse + row * to_lse->row, grad ? merge_lse_gradient(a, &at, t, row, share, grad, scratch) : 0, to_lse->type, to_lse->swapped);
        if (!gives_output)
            continue;
        REAL *target = is_direct(to) ? (REAL *)(y + row * to->row) : scratch + 3 * pitch;
        if (grad)
            merge_scaled(grad, share, n, target);
        else
            memset(target, 0, (size_t)n * sizeof(REAL));
        if (!is_direct(to))
            store_row(y + row * to->row, to->column, target, n, to->type, to->swapped);
    }
}

/* sum += more, which becomes 0. */
ATTN_INLINE void
merge_add(REAL *sum, REAL *more, int64_t n)
{
    for (int64_t c = 0; c < n; c += LANES) {
        v_store(sum + c, v_load(sum + c) + v_load(more + c));
        v_store(more + c, (vreal){0});
    }
}

/* One row of a gradient that is summed over `shared` batch elements, 64 at a time. scratch: six rows, and a vector. */
static void
merge_summed_row(const struct attn_merge_backward *a, int64_t t, bool of_lse, int64_t own, int64_t shared, int64_t row, REAL *scratch)
{
    const struct attn_tensor *to = of_lse ? &a->grad_lses[t] : &a->grad_outputs[t];
    int64_t n = a->value_dim, pitch = (n + LANES - 1) / LANES * LANES, width = of_lse ? LANES : pitch;
    REAL *sum = scratch + 4 * pitch, *more = sum + width;
    memset(sum, 0, (size_t)(2 * width) * sizeof(REAL));
    for (int64_t s = 0; s < shared; s++) {
        struct merge_rows at = merge_rows_of(a, t, attn_merge_element(a, to, own, s));
        REAL share[MERGE_BACKWARD_ROWS];
        merge_shares(a, &at, t, row, 1, share);
        if (share[0] != -1) {
            const REAL *grad = merge_row_at(&a->grad_output, at.grad_output, row, n, scratch + 2 * pitch);
            if (of_lse)
                more[0] += merge_lse_gradient(a, &at, t, row, share[0], grad, scratch);
            else
                for (int64_t c = 0; c < n; c++)
                    more[c] += grad[c] * share[0];
        }
        if (s % 64 == 63 || s == shared - 1)
            merge_add(sum, more, width);
    }
    char *y = to->data + attn_batch_offset(attn_merge_element(a, to, own, 0), a->batch_ndim, a->batch_shape, to->batch) + row * to->row;
    if (of_lse)
        from_real(y, sum[0], to->type, to->swapped);
    else
        store_row(y, to->column, sum, n, to->type, to->swapped);
}

/* Task `task` of phase 1: the gradients of outputs, then of log-sum-exps, each with as many tasks as it has elements and chunks of rows. */
static void
merge_summed_task(const struct attn_merge_backward *a, int64_t task, REAL *scratch)
{
    for (int64_t g = 0; g < 2 * a->parts; g++) {
        bool of_lse = g >= a->parts;
        int64_t t = of_lse ? g - a->parts : g, own, chunks = attn_merge_chunks(a);
        const struct attn_tensor *grad = of_lse ? &a->grad_lses[t] : &a->grad_outputs[t];
        if (!attn_merge_sums(a, grad))
            continue;
        int64_t shared = attn_merge_shared(a, grad, &own);
        if (task < own * chunks) {
            int64_t first = task % chunks * MERGE_BACKWARD_ROWS, end = attn_min(a->rows, first + MERGE_BACKWARD_ROWS);
            for (int64_t row = first; row < end && !attn_stopped(a->call.stop); row++)
                merge_summed_row(a, t, of_lse, task / chunks, shared, row, scratch);
            return;
        }
        task -= own * chunks;
    }
}

static void
merge_backward_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_merge_backward *a = arguments;
    int64_t pitch = a->value_dim + LANES, own;
    bool plain = false;
    *plan = (struct attn_plan){.phases = 2};
    for (int64_t t = 0; t < a->parts; t++)
        for (int lse = 0; lse < 2; lse++) {
            const struct attn_tensor *grad = lse ? &a->grad_lses[t] : &a->grad_outputs[t];
            if (attn_merge_sums(a, grad)) {
                attn_merge_shared(a, grad, &own);
                plan->tasks[1] += own * attn_merge_chunks(a);
            } else
                plain = true;
        }
    plan->tasks[0] = plain ? a->batch * attn_merge_chunks(a) : 0;
    plan->scratch = (size_t)(6 * pitch) * sizeof(REAL);
    plan->cost = 6.0 * (double)(a->batch * a->rows) * (double)a->parts * (double)(a->value_dim + 32);
}

static void
merge_backward_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_merge_backward *a = arguments;
    int64_t chunks = attn_merge_chunks(a), first = task % chunks * MERGE_BACKWARD_ROWS;
    if (phase == 1)
        merge_summed_task(a, task, scratch);
    else
        for (int64_t t = 0; t < a->parts && !attn_stopped(a->call.stop); t++)
            merge_part_rows(a, t, task / chunks, first, attn_min(MERGE_BACKWARD_ROWS, a->rows - first), scratch);
}

static const struct attn_kernel SUFFIX(attn_merge_backward) = {merge_backward_plan, merge_backward_run};
