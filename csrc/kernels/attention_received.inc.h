/* attention_received.inc.h: column sums of the weights, in O(L + S) memory a head.
 *
 * First every row block learns its maxima and sums; then each block of keys goes over all rows again. Lanes are queries: a key's sum is one vector,
 * to which each row block adds once, folded at the end. */
#ifndef ATTN_RECEIVED_NAMES
#define ATTN_RECEIVED_NAMES
#define received_plan SUFFIX(received_plan)
#define received_sums SUFFIX(received_sums)
#define received_keys SUFFIX(received_keys)
#define received_run SUFFIX(received_run)
#define tile_received SUFFIX(tile_received)
#define attn_received_kernel SUFFIX(attn_attention_received)

enum { ATTN_RECEIVED_BLOCKS = 4 }; /* key blocks a task: a row block is loaded once for them */

/* Row blocks of one head each: a lane's weight belongs to that head's sum. */
static inline struct attn_row_layout
attn_received_layout(const struct attn_attention *a)
{
    struct attn_row_layout layout = {.positions = a->query_length, .paired = false};
    layout.blocks = (a->query_length + ATTN_BLOCK - 1) / ATTN_BLOCK * a->group;
    return layout;
}

static inline int64_t
attn_received_chunks(const struct attn_attention *a)
{
    return (attn_key_blocks(a) + ATTN_RECEIVED_BLOCKS - 1) / ATTN_RECEIVED_BLOCKS;
}
#endif

static void
received_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_attention *a = arguments;
    int64_t kv_heads = a->batch * (a->heads / a->group), blocks = attn_received_layout(a).blocks;
    plan->phases = 2;
    plan->tasks[0] = kv_heads * blocks;
    plan->tasks[1] = kv_heads * a->group * attn_received_chunks(a);
    plan->scratch = weights_bytes(a, false) + ATTN_RECEIVED_BLOCKS * ATTN_BLOCK * (LANES + 1) * sizeof(REAL);
    plan->workspace = (size_t)(kv_heads * blocks) * 2 * ATTN_BLOCK * sizeof(REAL);
    plan->cost = 4.0 * (double)(a->batch * a->heads) * (double)a->query_length * (double)a->key_length * (double)(a->head_dim + 16);
}

/* Adds the weights of a tile to its keys' vectors. Lanes past the last row hold a query of 0, which has weights too: they are left out. */
static void
tile_received(const struct row_block *rows, const REAL *tile, int keys, REAL *received)
{
    uint64_t live = attn_bit_range(0, rows->count);
    for (int t = 0; t < keys; t++) {
        vreal sum = {0};
        for (int lane = 0; lane < rows->count;) {
            int nv = group_vectors(rows->count, lane);
            for (int i = 0; i < nv; i++) {
                vreal weight = v_load(tile + lane * ATTN_BLOCK + t * nv * LANES + i * LANES);
                sum += v_select(v_lane_bits(live >> (lane + i * LANES)), weight, (vreal){0});
            }
            lane += nv * LANES;
        }
        v_store(received + t * LANES, v_load(received + t * LANES) + sum);
    }
}

/* Maxima and sums of a row block, to the workspace. */
static void
received_sums(const struct attn_attention *a, int64_t task, void *scratch)
{
    struct attn_row_layout layout = attn_received_layout(a);
    int64_t kv = task / layout.blocks, kv_heads = a->heads / a->group;
    struct weights_place p = weights_open(a, scratch, false);
    REAL *kept = (REAL *)a->call.workspace + task * 2 * ATTN_BLOCK;
    rows_load(a, layout, kv / kv_heads, kv % kv_heads, task % layout.blocks, p.w->staging, p.rows);
    rows_start(a, kv / kv_heads, p.rows, true);
    sums_online(a, kv / kv_heads, kv % kv_heads, &p);
    memcpy(kept, p.rows->top, sizeof p.rows->top);
    memcpy(kept + ATTN_BLOCK, p.rows->sum, sizeof p.rows->sum);
}

/* What a few blocks of keys receive from all rows of one head. */
static void
received_keys(const struct attn_attention *a, int64_t batch, int64_t head, int64_t chunk, void *scratch)
{
    struct attn_row_layout layout = attn_received_layout(a);
    struct weights_place p = weights_open(a, scratch, false);
    int64_t kv_heads = a->heads / a->group, kv_head = head / a->group, from = chunk * ATTN_RECEIVED_BLOCKS;
    int64_t end = attn_min(attn_key_blocks(a), from + ATTN_RECEIVED_BLOCKS), step = attn_block_keys(a);
    REAL factor[ATTN_BLOCK], *received = p.tile + ATTN_BLOCK * ATTN_BLOCK, *row = received + ATTN_RECEIVED_BLOCKS * ATTN_BLOCK * LANES;
    memset(received, 0, ATTN_RECEIVED_BLOCKS * ATTN_BLOCK * LANES * sizeof(REAL));
    for (int64_t number = head % a->group; number < layout.blocks; number += a->group) {
        if (block_is_hidden(a, layout, batch, kv_head, number, from * step, end * step))
            continue;
        const REAL *kept = (REAL *)a->call.workspace + ((batch * kv_heads + kv_head) * layout.blocks + number) * 2 * ATTN_BLOCK;
        rows_load(a, layout, batch, kv_head, number, p.w->staging, p.rows);
        memcpy(p.rows->top, kept, sizeof p.rows->top);
        memcpy(p.rows->sum, kept + ATTN_BLOCK, sizeof p.rows->sum);
        row_factors(p.rows, 1, factor);
        for (int64_t n = from; n < end; n++) {
            struct key_block block;
            if (attn_stopped(a->call.stop))
                return;
            if (!weights_load(a, batch, kv_head, n, &p, &block))
                continue;
            weights_again(a, batch, &p, &block, factor);
            tile_received(p.rows, p.tile, block.keys, received + (n - from) * step * LANES);
        }
    }
    int64_t keys = attn_min(a->key_length, end * step) - from * step;
    for (int64_t t = 0; t < keys; t++)
        row[t] = v_sum(v_load(received + t * LANES));
    char *out = a->output.data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, a->output.batch) + head * a->output.head;
    store_row(out + from * step * a->output.column, a->output.column, row, keys, a->output.type, a->output.swapped);
}

static void
received_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_attention *a = arguments;
    int64_t chunks = attn_received_chunks(a);
    if (phase == 0)
        received_sums(a, task, scratch);
    else
        received_keys(a, task / chunks / a->heads, task / chunks % a->heads, task % chunks, scratch);
}

static const struct attn_kernel attn_received_kernel = {received_plan, received_run};
