/* attention_run.inc.h: plan and run of scaled_dot_product_attention: which kernel, which tasks, in which order. */
#ifndef ATTN_RUN_NAMES
#define ATTN_RUN_NAMES
#define attention_plan SUFFIX(attention_plan)
#define attention_run SUFFIX(attention_run)
#define place_task SUFFIX(place_task)
#define attend_part SUFFIX(attend_part)
#define attend_blocks SUFFIX(attend_blocks)
#define attn_attention_kernel SUFFIX(attn_attention)
#endif

static void
attention_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_attention *a = arguments;
    struct attn_forward_cut cut = attn_forward_cut(a);
    plan->phases = cut.shares_head ? 2 : 1;
    plan->tasks[0] = cut.kv_heads * cut.tasks;
    plan->tasks[1] = cut.kv_heads;
    plan->workspace = cut.shares_head ? (size_t)cut.kv_heads * parts_bytes(a, &cut) : 0;
    plan->scratch = workplace_bytes(a->head_dim, a->value_dim) +
                    (cut.decodes ? decode_bytes(a) : (size_t)cut.shared * (rows_bytes(a->head_dim, a->value_dim) + vectors_bytes(a, 1))) +
                    (a->relative.value.data ? ATTN_BAND * ATTN_BLOCK * sizeof(REAL) : 0) +
                    (cut.keeps_parts && !cut.shares_head ? parts_bytes(a, &cut) : 0);
    plan->cost = 2.0 * (double)(a->batch * a->heads) * (double)a->query_length * (double)a->key_length * (double)(a->head_dim + a->value_dim + 8);
}

/* One part of the keys for all rows of a key/value head. */
static void
attend_part(const struct attn_attention *a, const struct attn_forward_cut *cut, int64_t batch, int64_t kv_head, int64_t part, REAL *parts,
            struct workplace *w, char *memory)
{
    int64_t first = part * ATTN_SPLIT, end = cut->parts > 1 ? attn_min(a->key_length, first + ATTN_SPLIT) : a->key_length;
    REAL *to = part_rows(a, cut, parts, part);
    if (cut->decodes) {
        decode(a, cut->layout, batch, kv_head, first, end, to, w, memory);
        return;
    }
    struct row_block *rows = rows_place(memory, a->head_dim);
    memory += rows_bytes(a->head_dim, a->value_dim);
    vectors_open(a, memory, (REAL *)(memory + vectors_bytes(a, 1)), 1, rows);
    rows_load(a, cut->layout, batch, kv_head, 0, w->staging, rows);
    if (a->relative.key.data)
        vectors_start(a, batch, rows, w->staging);
    rows_start(a, batch, rows, first == 0);
    if (attend_range(a, batch, kv_head, (char *)rows, 0, 1, first, end, w))
        rows_part(a, rows, to);
}

/* Row blocks from ... from + n - 1 over all keys. */
static void
attend_blocks(const struct attn_attention *a, const struct attn_forward_cut *cut, int64_t batch, int64_t kv_head, int64_t from, int64_t n,
              struct workplace *w, char *memory)
{
    size_t own = rows_bytes(a->head_dim, a->value_dim), bytes = own + vectors_bytes(a, 1);
    for (int64_t i = 0; i < n; i++) {
        struct row_block *rows = rows_place(memory + (size_t)i * bytes, a->head_dim);
        vectors_open(a, (char *)rows + own, (REAL *)(memory + (size_t)n * bytes), 1, rows);
        rows_load(a, cut->layout, batch, kv_head, from + i, w->staging, rows);
        if (a->relative.key.data)
            vectors_start(a, batch, rows, w->staging);
        rows_start(a, batch, rows, true);
    }
    if (!attend_range(a, batch, kv_head, memory, bytes, n, 0, a->key_length, w))
        return;
    for (int64_t i = 0; i < n; i++)
        rows_finish(a, batch, (struct row_block *)(memory + (size_t)i * bytes), w);
}

/* Task number to (key/value head, chunk of its row blocks or part of its keys). As many heads are worked on at a time as there are threads, so that each
 * thread finds the keys and values of its head in its cache. Where later rows see more keys, the longest chunks of a head come first. */
ATTN_INLINE void
place_task(const struct attn_attention *a, const struct attn_forward_cut *cut, int64_t task, int64_t *kv, int64_t *chunk)
{
    int64_t first = task / (cut->tasks * a->call.threads) * a->call.threads, together = attn_min(a->call.threads, cut->kv_heads - first);
    int64_t rest = task - first * cut->tasks;
    *kv = first + rest % together;
    *chunk = a->is_causal ? cut->tasks - 1 - rest / together : rest / together;
}

static void
attention_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_attention *a = arguments;
    struct attn_forward_cut cut = attn_forward_cut(a);
    int64_t kv_heads = a->heads / a->group, kv = task, chunk = 0;
    if (phase == 0)
        place_task(a, &cut, task, &kv, &chunk);
    int64_t batch = kv / kv_heads, kv_head = kv % kv_heads;
    struct workplace *w = workplace_open(scratch, a->head_dim, a->value_dim);
    char *memory = (char *)scratch + workplace_bytes(a->head_dim, a->value_dim);
    REAL *shared_parts = cut.shares_head ? (REAL *)((char *)a->call.workspace + (size_t)kv * parts_bytes(a, &cut)) : NULL;
    if (phase == 1)
        merge_parts(a, &cut, shared_parts, batch, kv_head);
    else if (cut.shares_head)
        attend_part(a, &cut, batch, kv_head, chunk, shared_parts, w, memory);
    else if (cut.keeps_parts) {
        REAL *parts = (REAL *)memory;
        for (int64_t part = 0; part < cut.parts; part++)
            attend_part(a, &cut, batch, kv_head, part, parts, w, memory + parts_bytes(a, &cut));
        if (!attn_stopped(a->call.stop))
            merge_parts(a, &cut, parts, batch, kv_head);
    } else
        attend_blocks(a, &cut, batch, kv_head, chunk * cut.shared, attn_min(cut.shared, cut.layout.blocks - chunk * cut.shared), w, memory);
}

static const struct attn_kernel attn_attention_kernel = {attention_plan, attention_run};
