/* attention_backward.inc.h: plan and run of the backward pass. In a phase after the chunks, row blocks that no chunk visits get their zeros and sinks
 * their share; in the last, what is summed over rows. attention_weights_backward has a phase before them: its sums and deltas are not given. */
#ifndef ATTN_BACKWARD_NAMES
#define ATTN_BACKWARD_NAMES
#define begin_query SUFFIX(begin_query)
#define add_rows SUFFIX(add_rows)
#define end_query SUFFIX(end_query)
#define backward_row_block SUFFIX(backward_row_block)
#define backward_chunk SUFFIX(backward_chunk)
#define backward_plan SUFFIX(backward_plan)
#define backward_run SUFFIX(backward_run)
#define attn_attention_backward_kernel SUFFIX(attn_attention_backward)
#endif

/* The row block is this chunk's, number `rank` of those that it sees, until end_query. False: told to stop. */
static bool
begin_query(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, struct backward_place *p,
            const struct backward_shared *shared, int rank)
{
    if (cut->turns && !attn_wait_turn(shared->turn, rank, b->forward.call.stop))
        return false;
    if (attn_wants_query(b)) {
        int64_t block = b->forward.head_dim * ATTN_BLOCK, parts = attn_has_biases(&b->forward) ? 2 : 1;
        p->grad_query = cut->own_query ? p->own_query : shared->grad_query;
        if (rank == 0)
            memset(p->grad_query, 0, (size_t)(block * parts) * sizeof(REAL));
        p->grad_position = p->grad_query + block * (parts - 1);
    }
    if (cut->row_sums && rank == 0)
        memset(shared->sums, 0, ATTN_ROW_SUMS * ATTN_BLOCK * sizeof(REAL));
    return true;
}

/* What a row block has of one key block: its part of grad_query, and the sums over these keys. */
static void
add_rows(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, int64_t batch, struct backward_place *p,
         const struct backward_shared *shared, const struct key_block *block)
{
    if (attn_wants_query(b))
        add_query(&b->forward, p, block);
    if (b->forward.relative.key.data) {
        REAL *const sums[2] = {vectors_sums(b, cut, batch, p->rows->head[0], 0), vectors_sums(b, cut, batch, p->rows->head[0], 1)};
        add_distances(b, batch, p, block, sums);
    }
    for (int lane = 0; cut->row_sums && lane < ATTN_ROW_SUMS * ATTN_BLOCK; lane += LANES)
        v_store(shared->sums + lane, v_load(shared->sums + lane) + v_load(p->sums + lane));
}

/* Hands the row block over to the next chunk; the last stores its grad_query. */
static void
end_query(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, int64_t batch, struct backward_place *p,
          const struct backward_shared *shared, int rank, bool last)
{
    if (last && attn_has_biases(&b->forward) && attn_wants_query(b))
        end_distances(&b->forward, p->rows, p->grad_query, p->grad_position, shared->biases);
    if (last && b->grad_query.data && !b->query_accumulates)
        store_query(b, batch, p->rows, p->grad_query, p->w->staging);
    if (cut->turns)
        atomic_store_explicit(shared->turn, rank + 1, memory_order_release);
}

/* One row block and the key blocks of a chunk. False: told to stop. */
static bool
backward_row_block(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, int64_t batch, int64_t head, int64_t number,
                   int64_t chunk, struct backward_place *p)
{
    const struct attn_attention *a = &b->forward;
    const struct backward_shared shared = backward_shared_open(b, cut, batch, head, number);
    int64_t first = chunk * cut->keys, end = attn_min(a->key_length, first + cut->keys), step = attn_block_keys(a);
    if (!cut->in_order && block_is_hidden(a, cut->layout, batch, head, number, first, end))
        return true;
    rows_describe(a, cut->layout, batch, head, number, p->rows);
    const struct attn_tile_row *tiles = p->rows->one_tile_row ? &p->rows->tiles : NULL;
    struct attn_visit visit = attn_visit(p->rows->any_first, p->rows->any_end, cut->keys, tiles, chunk);
    bool mine = false, sees = visit.rank >= 0;
    if (cut->in_order)
        visit = (struct attn_visit){(int)chunk, chunk == cut->chunks - 1};
    if (!sees) {
        if (cut->in_order && (!begin_query(b, cut, p, &shared, visit.rank)))
            return false;
        if (cut->in_order)
            end_query(b, cut, batch, p, &shared, visit.rank, visit.last);
        return true;
    }
    uint64_t live = live_lanes(p->rows);
    load_query(a, batch, p, live);
    if (!b->of_weights)
        load_gradient(b, batch, p, live);
    if (a->relative.key.data)
        load_distances(a, batch, p, live);
    if (a->relative.value.data)
        start_value_ring(a, batch, p);
    if (cut->prepares)
        kept_statistics(p, shared.statistics);
    else
        row_statistics(b, batch, p, live, live);
    for (int n = 0; first + n * step < end; n++) {
        if (attn_stopped(a->call.stop))
            return false;
        memset(p->sums, 0, ATTN_ROW_SUMS * ATTN_BLOCK * sizeof(REAL));
        if (!backward_tile(b, batch, p, &p->block[n]))
            continue;
        add_keys(b, p, n);
        if (!mine && !(mine = begin_query(b, cut, p, &shared, visit.rank)))
            return false;
        add_rows(b, cut, batch, p, &shared, &p->block[n]);
    }
    if (!mine && !begin_query(b, cut, p, &shared, visit.rank))
        return false;
    end_query(b, cut, batch, p, &shared, visit.rank, visit.last);
    return true;
}

/* A chunk of the keys of all pairs of a unit. */
static void
backward_chunk(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, int64_t unit, int64_t chunk, void *scratch)
{
    const struct attn_attention *a = &b->forward;
    struct backward_place *p = backward_open(a, (int)cut->blocks, scratch);
    int64_t first = chunk * cut->keys, keys = attn_min(a->key_length - first, cut->keys), step = attn_block_keys(a), batch, head;
    atomic_int *turn = distance_sums_open(a, cut, 0, unit, distances_of_all(b, cut)).turn;
    if (cut->one_by_one && cut->chunks > 1 && !attn_wait_turn(turn, (int)chunk, a->call.stop))
        return;
    p->distances = (REAL *)((char *)scratch + backward_bytes(a, (int)cut->blocks));
    for (int64_t n = 0; n < cut->inner; n++) {
        int64_t from, end;
        attn_backward_pair(a, cut, unit, n, &batch, &head);
        if (n % cut->shared == 0 || cut->turns_apart)
            memset(p->grad_key, 0, (size_t)(keys * p->query_pitch) * sizeof(REAL));
        if (n % cut->shared == 0)
            memset(p->grad_value, 0, (size_t)(keys * p->value_pitch) * sizeof(REAL));
        for (int i = 0; i * step < keys; i++)
            key_block_load(a, batch, head, first + i * step, (int)attn_min(step, keys - i * step), true, p->loaded[i], &p->block[i]);
        memset(p->distances, 0, distance_bytes(a, cut, false));
        const struct attn_place place = place_of(a, batch);
        attn_blocks_of_keys(a, cut, &place, first, first + keys, &from, &end);
        if (cut->in_order) {
            from = 0;
            end = cut->layout.blocks;
        }
        for (int64_t number = from; number < end; number++)
            if (!backward_row_block(b, cut, batch, head, number, chunk, p))
                return;
        const struct distance_sums shared = distance_sums_open(a, cut, batch, head, distances_of_all(b, cut));
        if (cut->by_distance && !hand_over_distances(a, cut, batch, &shared, chunk, keys, p->distances))
            return;
        if (cut->turns_apart)
            add_turned_back(a, batch, first, keys, n % cut->shared == 0, p);
        if ((n + 1) % cut->shared == 0) {
            if (b->grad_key.data)
                store_sums(a, &b->grad_key, batch, head, first, keys, (REAL)a->scale, attn_turns(a) && !cut->turns_apart,
                           cut->turns_apart ? p->turned_back : p->grad_key, a->head_dim);
            if (b->grad_value.data)
                store_sums(a, &b->grad_value, batch, head, first, keys, (REAL)(1 / (1 - a->dropout_p)), false, p->grad_value, a->value_dim);
        }
    }
    if (cut->one_by_one && cut->chunks > 1)
        atomic_store_explicit(turn, (int)chunk + 1, memory_order_release);
}

static void
backward_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_attention_backward *b = arguments;
    const struct attn_attention *a = &b->forward;
    struct attn_backward_cut cut = attn_backward_cut(b);
    size_t part[ATTN_SHARED_PARTS];
    bool leftovers = b->grad_query.data && !b->query_accumulates && attn_rows_may_be_empty(a);
    plan->phases = ATTN_REDUCE + 1;
    plan->tasks[ATTN_PREPARE] = cut.prepares ? cut.pairs * cut.layout.blocks : 0;
    plan->tasks[ATTN_CHUNKS] = cut.units * cut.chunks;
    plan->tasks[ATTN_ROWS] = leftovers || b->grad_sinks.data || cut.row_sums ? cut.pairs * cut.layout.blocks : 0;
    plan->tasks[ATTN_REDUCE] = backward_reductions(b, &cut) + (cut.in_order ? 4 : 0);
    plan->scratch = backward_bytes(a, (int)cut.blocks) + distance_bytes(a, &cut, false);
    plan->workspace = backward_shared_bytes(b, &cut, part) + distance_bytes(a, &cut, true);
    plan->cost =
        2.0 * (double)(a->batch * a->heads) * (double)a->row_count * (double)a->key_length * (double)(3 * a->head_dim + 2 * a->value_dim + 32);
}

/* As many units are worked on at a time as there are threads, each thread on its own; they share one only when those run out. */
static void
backward_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_attention_backward *b = arguments;
    const struct attn_attention *a = &b->forward;
    struct attn_backward_cut cut = attn_backward_cut(b);
    int64_t blocks = cut.layout.blocks, batch = task / attn_max(blocks * cut.heads, 1), head = task / attn_max(blocks, 1) % attn_max(cut.heads, 1);
    if (phase == ATTN_CHUNKS) {
        int64_t first = task / (cut.chunks * a->call.threads) * a->call.threads, together = attn_min(a->call.threads, cut.units - first);
        int64_t rest = task - first * cut.chunks;
        backward_chunk(b, &cut, first + rest % together, rest / together, scratch);
    } else if (phase == ATTN_PREPARE) {
        if (cut.in_order)
            clear_distances(b, &cut, batch, head, task % blocks);
        prepare_rows(b, &cut, batch, head, task % blocks, scratch);
    } else if (phase == ATTN_ROWS)
        finish_rows(b, &cut, batch, head, task % blocks, scratch);
    else if (task < backward_reductions(b, &cut))
        backward_reduce(b, &cut, task, scratch);
    else
        reduce_relative(b, &cut, task - backward_reductions(b, &cut));
}

static const struct attn_kernel attn_attention_backward_kernel = {backward_plan, backward_run};
