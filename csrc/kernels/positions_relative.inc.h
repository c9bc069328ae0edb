/* positions_relative.inc.h: ALiBi's bias as a dense array, and T5's table taken apart by distance and summed up again. */
#ifndef ATTN_POSITIONS_RELATIVE_NAMES
#define ATTN_POSITIONS_RELATIVE_NAMES
#define alibi_row SUFFIX(alibi_row)
#define alibi_bias_plan SUFFIX(alibi_bias_plan)
#define alibi_bias_run SUFFIX(alibi_bias_run)
#define attn_alibi_bias SUFFIX(attn_alibi_bias)
#define bucket_values SUFFIX(bucket_values)
#define bucket_sums SUFFIX(bucket_sums)
#define buckets_plan SUFFIX(buckets_plan)
#define buckets_run SUFFIX(buckets_run)
#define attn_buckets_kernel SUFFIX(attn_buckets_kernel)

enum { ATTN_ALIBI_ROWS = 32 }; /* rows a task */
#endif

/* The row of a query at `position`. As in attention, the distance of a block's first key is exact in 64 bits before it is rounded once. */
static void
alibi_row(const struct attn_alibi *a, REAL slope, int64_t position, char *to)
{
    const struct attn_tensor *t = &a->output;
    bool in_place = is_direct(t) && t->column == sizeof(REAL);
    for (int64_t first = 0; first < a->key_length; first += ATTN_BLOCK) {
        REAL block[ATTN_BLOCK] __attribute__((aligned(64)));
        int64_t keys = attn_min(ATTN_BLOCK, a->key_length - first);
        const vreal ahead = v_splat((REAL)(position - first)), factor = v_splat(slope);
        REAL *row = in_place && keys == ATTN_BLOCK ? (REAL *)(to + first * t->column) : block;
        vreal key;
        for (int n = 0; n < LANES; n++)
            key[n] = (REAL)n;
        for (int n = 0; n < ATTN_BLOCK; n += LANES, key += v_splat((REAL)LANES))
            v_storeu(row + n, (vreal){0} + alibi_term(factor, ahead - key)); /* 0, not -0, at the query itself */
        if (row == block)
            store_row(to + first * t->column, t->column, block, keys, t->type, t->swapped);
    }
}

static void
alibi_bias_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_alibi *a = arguments;
    plan->phases = 1;
    plan->tasks[0] = a->batch * a->heads * ((a->query_length + ATTN_ALIBI_ROWS - 1) / ATTN_ALIBI_ROWS);
    plan->scratch = plan->workspace = 0;
    plan->cost = 4.0 * (double)(a->batch * a->heads) * (double)a->query_length * (double)a->key_length;
}

static void
alibi_bias_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_alibi *a = arguments;
    int64_t blocks = (a->query_length + ATTN_ALIBI_ROWS - 1) / ATTN_ALIBI_ROWS, batch = task / blocks / a->heads, head = task / blocks % a->heads;
    const char *slope = a->slopes.data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, a->slopes.batch) + head * a->slopes.head;
    char *output = a->output.data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, a->output.batch) + head * a->output.head;
    int64_t offset = a->key_length - a->query_length, first = task % blocks * ATTN_ALIBI_ROWS;
    (void)phase;
    (void)scratch;
    if (a->offset.data)
        offset = *(const int64_t *)(a->offset.data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, a->offset.batch));
    for (int64_t i = first; i < attn_min(first + ATTN_ALIBI_ROWS, a->query_length) && !attn_stopped(a->call.stop); i++)
        alibi_row(a, to_real(slope, a->slopes.type, a->slopes.swapped), i + offset, output + i * a->output.row);
}

static const struct attn_kernel attn_alibi_bias = {alibi_bias_plan, alibi_bias_run};

static void
bucket_values(const struct attn_buckets *a, int64_t head)
{
    const struct attn_tensor *from = &a->table, *to = &a->values;
    for (int64_t c = 0; c < a->columns; c++) {
        REAL value = to_real(from->data + a->bucket[c] * from->row + head * from->column, from->type, from->swapped);
        from_real(to->data + head * to->head + c * to->column, value, to->type, to->swapped);
    }
}

/* A sum begins at 0 with each block of columns, and is added once. sums, part: one number for each bucket. */
static void
bucket_sums(const struct attn_buckets *a, int64_t head, REAL *sums, REAL *part)
{
    const struct attn_tensor *from = &a->values, *to = &a->table;
    memset(sums, 0, (size_t)a->number * sizeof(REAL));
    memset(part, 0, (size_t)a->number * sizeof(REAL));
    for (int64_t first = 0; first < a->columns; first += ATTN_BLOCK) {
        int64_t end = attn_min(first + ATTN_BLOCK, a->columns);
        for (int64_t c = first; c < end; c++)
            part[a->bucket[c]] += to_real(from->data + head * from->head + c * from->column, from->type, from->swapped);
        for (int64_t c = first; c < end; c++) {
            sums[a->bucket[c]] += part[a->bucket[c]];
            part[a->bucket[c]] = 0;
        }
    }
    for (int64_t b = 0; b < a->number; b++)
        from_real(to->data + b * to->row + head * to->column, sums[b], to->type, to->swapped);
}

/* A task is one head. */
static void
buckets_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_buckets *a = arguments;
    plan->phases = 1;
    plan->tasks[0] = a->heads;
    plan->scratch = a->sums ? attn_round_up(2 * (size_t)a->number * sizeof(REAL)) : 0;
    plan->workspace = 0;
    plan->cost = 8.0 * (double)a->heads * (double)a->columns;
}

static void
buckets_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_buckets *a = arguments;
    (void)phase;
    if (attn_stopped(a->call.stop))
        return;
    if (a->sums)
        bucket_sums(a, task, scratch, (REAL *)scratch + a->number);
    else
        bucket_values(a, task);
}

static const struct attn_kernel attn_buckets_kernel = {buckets_plan, buckets_run};
