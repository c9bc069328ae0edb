/* attention_merge.inc.h: merge_attention: results over parts of the keys become one. */
#ifndef ATTN_MERGE_NAMES
#define ATTN_MERGE_NAMES
#define merge_factors SUFFIX(merge_factors)
#define merge_output_row SUFFIX(merge_output_row)
#define merge_plan SUFFIX(merge_plan)
#define merge_run SUFFIX(merge_run)
#define attn_merge_kernel SUFFIX(attn_merge_attention)

enum { ATTN_MERGE_ROWS = 256 }; /* rows a task */

static inline const char *
attn_merge_at(const struct attn_merge *a, const struct attn_tensor *t, int64_t batch, int64_t row)
{
    return t->data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, t->batch) + row * t->row;
}
#endif

/* factor[t] = exp(lse_t - lse) in double, 0 where lse_t = -inf; returns lse. A NaN, or two +inf, make all that count NaN. */
static double
merge_factors(const struct attn_merge *a, int64_t batch, int64_t row, double *factor)
{
    double top = -__builtin_inf(), sum = 0;
    for (int64_t t = 0; t < a->parts; t++) {
        const struct attn_tensor *lse = &a->lses[t];
        factor[t] = (double)to_real(attn_merge_at(a, lse, batch, row), lse->type, lse->swapped);
        top = factor[t] > top || factor[t] != factor[t] ? factor[t] : top;
    }
    if (top == -__builtin_inf()) {
        memset(factor, 0, (size_t)a->parts * sizeof *factor);
        return top;
    }
    for (int64_t t = 0; t < a->parts; t++) {
        factor[t] = factor[t] == -__builtin_inf() ? 0 : exp(factor[t] - top);
        sum += factor[t];
    }
    for (int64_t t = 0; t < a->parts; t++)
        factor[t] = factor[t] == 0 ? 0 : factor[t] / sum;
    return top + log(sum);
}

/* sum_t factor[t] O_t; a part that counts nothing is not read. */
static void
merge_output_row(const struct attn_merge *a, int64_t batch, int64_t row, const double *factor, REAL *part, REAL *sum)
{
    int64_t pitch = (a->value_dim + LANES - 1) / LANES * LANES;
    memset(sum, 0, (size_t)pitch * sizeof(REAL));
    for (int64_t t = 0; t < a->parts; t++) {
        const struct attn_tensor *output = &a->outputs[t];
        if (factor[t] == 0)
            continue;
        load_row(part, attn_merge_at(a, output, batch, row), output->column, a->value_dim, output->type, output->swapped);
        for (int64_t c = 0; c < pitch; c += LANES)
            v_store(sum + c, v_load(sum + c) + v_load(part + c) * v_splat((REAL)factor[t]));
    }
    char *out = (char *)(uintptr_t)attn_merge_at(a, &a->output, batch, row);
    store_row(out, a->output.column, sum, a->value_dim, a->output.type, a->output.swapped);
}

static void
merge_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_merge *a = arguments;
    plan->phases = 1;
    plan->tasks[0] = a->batch * ((a->rows + ATTN_MERGE_ROWS - 1) / ATTN_MERGE_ROWS);
    plan->scratch = attn_round_up((size_t)a->parts * sizeof(double)) + 2 * ((size_t)a->value_dim + VECTOR_BYTES / sizeof(REAL)) * sizeof(REAL);
    plan->workspace = 0;
    plan->cost = 4.0 * (double)(a->batch * a->rows) * (double)a->parts * (double)(a->value_dim + 32);
}

/* A task is some rows of one batch element. */
static void
merge_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_merge *a = arguments;
    int64_t chunks = (a->rows + ATTN_MERGE_ROWS - 1) / ATTN_MERGE_ROWS, batch = task / chunks, first = task % chunks * ATTN_MERGE_ROWS;
    double *factor = scratch;
    REAL *part = (REAL *)((char *)scratch + attn_round_up((size_t)a->parts * sizeof(double)));
    REAL *sum = part + (a->value_dim + LANES - 1) / LANES * LANES;
    (void)phase;
    if (attn_stopped(a->call.stop))
        return;
    memset(part, 0, (size_t)(a->value_dim + LANES - 1) / LANES * LANES * sizeof(REAL));
    for (int64_t row = first; row < attn_min(a->rows, first + ATTN_MERGE_ROWS); row++) {
        double lse = merge_factors(a, batch, row, factor);
        merge_output_row(a, batch, row, factor, part, sum);
        from_real((char *)(uintptr_t)attn_merge_at(a, &a->lse, batch, row), narrowed(lse), a->lse.type, a->lse.swapped);
    }
}

static const struct attn_kernel attn_merge_kernel = {merge_plan, merge_run};
