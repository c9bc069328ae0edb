/* attention_run.inc.h: plan and run of scaled_dot_product_attention: which kernel, which tasks, in which order. */

static void
attention_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_attention *a = arguments;
    struct attn_forward_cut cut = attn_forward_cut(a);
    int64_t rows = attn_min(ATTN_BLOCK, cut.layout.positions * a->group);
    bool parted = cut.decode_rows || cut.parts > 1;
    plan->phases = cut.parts > 1 ? 2 : 1;
    plan->tasks[0] = cut.kv_heads * cut.tasks;
    plan->tasks[1] = cut.kv_heads;
    plan->workspace = parted ? (size_t)(cut.kv_heads * cut.parts * rows * part_pitch(a)) * sizeof(REAL) : 0;
    plan->scratch = workplace_bytes(a->head_dim, a->value_dim) + (cut.decode_rows ? decode_bytes(a) : (size_t)cut.shared * rows_bytes(a->head_dim, a->value_dim));
    plan->cost = 2.0 * (double)(a->batch * a->heads) * (double)a->query_length * (double)a->key_length * (double)(a->head_dim + a->value_dim + 8);
}

/* Rows of one key/value head of batch element `batch`, as the merge sees them. */
static void
attention_merge_task(const struct attn_attention *a, const struct attn_forward_cut *cut, int64_t kv)
{
    int64_t kv_heads = a->heads / a->group, rows = cut->layout.positions * a->group;
    for (int64_t row = 0; row < rows; row++) {
        int64_t head = kv % kv_heads * a->group + (cut->layout.paired ? row % a->group : 0);
        merge_parts(a, kv / kv_heads, head, cut->layout.paired ? row / a->group : row, rows, cut->parts, kv, row);
    }
}

/* Task number to (key/value head, chunk of row blocks): where later rows see more keys the last chunks come first, the heads next to one another. */
static void
attention_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_attention *a = arguments;
    struct attn_forward_cut cut = attn_forward_cut(a);
    if (phase == 1) {
        attention_merge_task(a, &cut, task);
        return;
    }
    int64_t kv_heads = a->heads / a->group, chunk = a->is_causal ? cut.tasks - 1 - task / cut.kv_heads : task % cut.tasks;
    int64_t kv = a->is_causal ? task % cut.kv_heads : task / cut.tasks, batch = kv / kv_heads;
    struct workplace *w = workplace_open(scratch, a->head_dim, a->value_dim);
    char *blocks = (char *)scratch + workplace_bytes(a->head_dim, a->value_dim);
    int64_t first = cut.parts > 1 ? chunk * ATTN_SPLIT : 0, end = cut.parts > 1 ? attn_min(a->key_length, first + ATTN_SPLIT) : a->key_length;
    if (cut.decode_rows) {
        decode(a, &cut, kv, chunk, first, end, w, blocks);
        if (cut.parts == 1)
            attention_merge_task(a, &cut, kv);
        return;
    }
    size_t bytes = rows_bytes(a->head_dim, a->value_dim);
    int64_t from = cut.parts > 1 ? 0 : chunk * cut.shared, n = cut.parts > 1 ? 1 : attn_min(cut.shared, cut.layout.blocks - from);
    for (int64_t i = 0; i < n; i++) {
        struct row_block *rows = rows_place(blocks + (size_t)i * bytes, a->head_dim);
        rows_load(a, cut.layout, batch, kv % kv_heads, from + i, w->staging, rows);
        rows_start(a, batch, rows, a->value_dim, first == 0);
    }
    if (!attend_range(a, batch, kv % kv_heads, blocks, bytes, n, first, end, w))
        return;
    for (int64_t i = 0; i < n; i++) {
        const struct row_block *rows = (struct row_block *)(blocks + (size_t)i * bytes);
        if (cut.parts > 1)
            rows_part(a, rows, cut.parts, kv, chunk, w);
        else
            rows_finish(a, batch, rows, w);
    }
}

static const struct attn_kernel attn_attention_kernel = {attention_plan, attention_run};
