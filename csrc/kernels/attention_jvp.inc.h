/* attention_jvp.inc.h: attention and its derivative along a direction, in one pass over the keys.
 *
 * Beside the output O = sum e v of attention_forward.inc.h run T = sum e (dv + (ds - c) v) and m = sum e (ds - c); all decay alike as the maximum moves.
 * At the end mu = c + m / sum e and dO = (T - (mu - c) O) / sum e. The centre c of a row, its mean ds over the first key block that it sees, changes no
 * sum but its rounding: what all ds of a row have in common is taken off before it is rounded with the products.
 * Tasks are row blocks that share each pass over a key block, as there; no result depends on how work was cut. */
#ifndef ATTN_JVP_NAMES
#define ATTN_JVP_NAMES
#define tangent_step SUFFIX(tangent_step)
#define tangent_segment SUFFIX(tangent_segment)
#define tangent_attend SUFFIX(tangent_attend)
#define tangent_range SUFFIX(tangent_range)
#define tangent_sinks SUFFIX(tangent_sinks)
#define tangent_finish SUFFIX(tangent_finish)
#define attention_jvp_plan SUFFIX(attention_jvp_plan)
#define attention_jvp_run SUFFIX(attention_jvp_run)
#define attn_attention_jvp_kernel SUFFIX(attn_attention_jvp)

static inline struct attn_forward_cut
attn_jvp_cut(const struct attn_attention *a)
{
    struct attn_forward_cut cut = {.layout = attn_row_layout(a, a->query_length), .kv_heads = a->batch * (a->heads / a->group), .parts = 1};
    cut.rows = a->query_length * a->group;
    cut.shared = attn_blocks_per_task(a, cut.layout.blocks);
    cut.tasks = (cut.layout.blocks + cut.shared - 1) / cut.shared;
    return cut;
}
#endif

/* The maximum of a segment's lanes moves to `top`: sums so far decay, scores become weights. */
static void
tangent_step(struct tangent_rows *r, const struct segment *s, const vreal *top, vreal *decay, vreal *own)
{
    vreal base[GROUP_VECTORS], sum[GROUP_VECTORS];
    for (int i = 0; i < s->nv; i++) {
        int lane = s->lane + i * LANES;
        softmax_step(v_load(r->rows.top + lane), top[i], &base[i], &decay[i]);
        sum[i] = v_load(r->rows.sum + lane) * decay[i];
        v_store(r->rows.top + lane, top[i]);
        v_store(r->mean + lane, v_load(r->mean + lane) * decay[i]);
    }
    weights_of(s->nv, s->scores, s->width, s->keys, base, sum, own);
    for (int i = 0; i < s->nv; i++)
        v_store(r->rows.sum + s->lane + i * LANES, sum[i]);
}

static void
tangent_segment(const struct attn_attention_jvp *j, int64_t batch, struct tangent_rows *r, struct tangent_block *b, const struct tangent_place *p,
                const struct segment *s)
{
    const struct attn_attention *a = &j->forward;
    const struct workplace *w = p->w;
    const bool move = attn_scores_move(j);
    vreal top[GROUP_VECTORS], decay[GROUP_VECTORS], own[GROUP_VECTORS], one[GROUP_VECTORS];
    REAL *tangents = p->first + (s->scores - w->scores);
    for (int i = 0; i < s->nv; i++) {
        top[i] = v_load(r->rows.top + s->lane + i * LANES);
        one[i] = v_splat(1);
    }
    bool changed = segment_products(a, batch, &r->rows, &b->block, w, s, top);
    if (move)
        tangent_products(j, batch, r, b, p, s);
    if (changed)
        segment_terms(a, &r->rows, &b->block, w, s, top);
    tangent_step(r, s, top, decay, own);
    if (move)
        weigh_tangents(s, w->sight == ATTN_PARTIAL ? w->seen : NULL, tangents, r->center + s->lane, r->mean + s->lane);
    if (a->dropout_p > 0) {
        drop_weights(a, batch, &r->rows, s->lane, s->nv, s->width, s->scores, b->block.first + w->from + s->from, s->keys);
        if (move)
            drop_tangents(s, tangents);
    }
    value_output(w, s, own, b->block.value, b->block.value_row, b->block.keys, a->value_dim, &b->block.value_state, decay, r->rows.output);
    if (b->value)
        segment_output(w, s, s->scores, b->value, b->value_row, b->block.keys, a->value_dim, &b->value_state, decay, r->output);
    if (move)
        segment_output(w, s, tangents, b->block.value, b->block.value_row, b->block.keys, a->value_dim, &b->block.value_state, b->value ? one : decay,
                       r->output);
}

/* One row block attends to one key block. */
static void
tangent_attend(const struct attn_attention_jvp *j, int64_t batch, struct tangent_rows *r, struct tangent_block *b, struct tangent_place *p)
{
    const struct attn_attention *a = &j->forward;
    if (tile_sight(a, batch, &r->rows, &b->block, true, p->w) == ATTN_HIDDEN)
        return;
    for (int lane = 0; j->bias_tangent.data && lane < r->rows.count; lane++) {
        REAL *row = p->additive[0] + lane * ATTN_BLOCK;
        const char *data = lane_operand(&j->bias_tangent, scalar_at(a, &j->bias_tangent, batch, 0), &r->rows, lane, b->block.first + p->w->from);
        const REAL *from = additive_row(&j->bias_tangent, data, p->w->keys, row);
        if (from != row)
            memcpy(row, from, ATTN_BLOCK * sizeof(REAL));
    }
    if (j->relative_bias_tangent.data)
        relative_rows(a, &j->relative_bias_tangent, batch, &r->rows, b->block.first + p->w->from, p->w->keys, p->additive[1]);
    for (struct segment s = {0}; next_segment(&r->rows, p->w, a->head_dim, &s);)
        tangent_segment(j, batch, r, b, p, &s);
}

/* n row blocks, laid out `bytes` apart, attend to all keys. False: told to stop. */
static bool
tangent_range(const struct attn_attention_jvp *j, int64_t batch, int64_t kv_head, char *blocks, size_t bytes, int64_t n, struct tangent_place *p)
{
    const struct attn_attention *a = &j->forward;
    int64_t step = attn_block_keys(a), first = a->key_length, end = 0;
    for (int64_t i = 0; i < n; i++) {
        const struct tangent_rows *r = (struct tangent_rows *)(blocks + (size_t)i * bytes);
        first = attn_min(first, r->rows.any_first);
        end = attn_max(end, r->rows.any_end);
    }
    for (int64_t key = first / step * step; key < end; key += step) {
        struct tangent_block block;
        if (attn_stopped(a->call.stop))
            return false;
        key = next_visible(a, blocks, bytes, n, key, end) / step * step;
        if (key >= end)
            break;
        tangent_block_load(j, batch, kv_head, key, (int)attn_min(step, end - key), n > 1, p, &block);
        for (int64_t i = 0; i < n; i++) {
            p->w->first_use = i == 0;
            tangent_attend(j, batch, (struct tangent_rows *)(blocks + (size_t)i * bytes), &block, p);
        }
    }
    return true;
}

/* The sinks' part of m, at the last maximum. A sink that stands still moves against the centre. */
static void
tangent_sinks(const struct attn_attention_jvp *j, int64_t batch, struct tangent_rows *r)
{
    const struct attn_attention *a = &j->forward;
    for (int lane = 0; lane < r->rows.count; lane++) {
        REAL sink = 0, counts = 0;
        row_sink(a, batch, &r->rows, lane, &sink, &counts);
        if (counts == 0)
            continue;
        vreal weight = v_exp2_weight(v_splat(sink - r->rows.top[lane]));
        REAL moves = j->sinks_tangent.data ? *(const REAL *)scalar_at(a, &j->sinks_tangent, batch, r->rows.head[lane]) : 0;
        r->mean[lane] += weight[0] * (moves - r->center[lane]);
    }
}

/* mu, T - (mu - c) O, and all results of a row block stored. */
static void
tangent_finish(const struct attn_attention_jvp *j, int64_t batch, struct tangent_rows *r, struct workplace *w)
{
    const struct attn_attention *a = &j->forward;
    REAL factor[ATTN_BLOCK];
    for (int lane = 0; lane < r->rows.count; lane++)
        if (r->center[lane] != r->center[lane])
            r->center[lane] = 0;
    if (a->sinks.data)
        tangent_sinks(j, batch, r);
    row_factors(&r->rows, 1, factor);
    for (int lane = 0; lane < ATTN_BLOCK; lane += LANES)
        v_store(r->mean + lane, v_load(r->mean + lane) * v_loadu(factor + lane));
    for (int lane = 0; lane < r->rows.count;) {
        int width = group_vectors(r->rows.count, lane) * LANES;
        for (int64_t c = 0; c < a->value_dim; c++)
            for (int i = 0; i < width; i += LANES) {
                int64_t at = lane * a->value_dim + c * width + i;
                v_store(r->output + at, v_load(r->output + at) - v_load(r->mean + lane + i) * v_load(r->rows.output + at));
            }
        lane += width;
    }
    rows_finish(a, batch, &r->rows, w);
    row_factors(&r->rows, (REAL)(1 / (1 - a->dropout_p)), factor);
    rows_store(a, &j->output_tangent, batch, &r->rows, r->output, a->value_dim, factor, w->staging);
    if (!j->lse_tangent.data)
        return;
    char *data = output_batch(a, &j->lse_tangent, batch);
    for (int lane = 0; lane < r->rows.count; lane++)
        from_real(output_row(&j->lse_tangent, data, r->rows.head[lane], r->rows.out_row[lane]), r->center[lane] + r->mean[lane], j->lse_tangent.type,
                  j->lse_tangent.swapped);
}

static void
attention_jvp_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_attention_jvp *j = arguments;
    const struct attn_attention *a = &j->forward;
    struct attn_forward_cut cut = attn_jvp_cut(a);
    plan->phases = 1;
    plan->tasks[0] = cut.kv_heads * cut.tasks;
    plan->workspace = 0;
    plan->scratch = tangent_place_bytes(a->head_dim, a->value_dim) + (size_t)cut.shared * tangent_rows_bytes(a->head_dim, a->value_dim);
    plan->cost = 6.0 * (double)(a->batch * a->heads) * (double)a->query_length * (double)a->key_length * (double)(a->head_dim + a->value_dim + 8);
}

static void
attention_jvp_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_attention_jvp *j = arguments;
    const struct attn_attention *a = &j->forward;
    struct attn_forward_cut cut = attn_jvp_cut(a);
    int64_t kv_heads = a->heads / a->group, kv, chunk;
    (void)phase;
    place_task(a, &cut, task, &kv, &chunk);
    int64_t batch = kv / kv_heads, kv_head = kv % kv_heads, from = chunk * cut.shared, n = attn_min(cut.shared, cut.layout.blocks - from);
    struct tangent_place *p = tangent_place_open(scratch, a->head_dim, a->value_dim);
    char *blocks = (char *)scratch + tangent_place_bytes(a->head_dim, a->value_dim);
    size_t bytes = tangent_rows_bytes(a->head_dim, a->value_dim);
    for (int64_t i = 0; i < n; i++)
        tangent_rows_load(j, cut.layout, batch, kv_head, from + i, p->w->staging, blocks + (size_t)i * bytes);
    if (!tangent_range(j, batch, kv_head, blocks, bytes, n, p))
        return;
    for (int64_t i = 0; i < n; i++)
        tangent_finish(j, batch, (struct tangent_rows *)(blocks + (size_t)i * bytes), p->w);
}

static const struct attn_kernel attn_attention_jvp_kernel = {attention_jvp_plan, attention_jvp_run};
