/* attention_backward_distance.inc.h: the gradient of relative_bias, sums of dS over equal distances.
 *
 * Where all rows of a head share a row of the table, a task sums each key block over its row blocks, and then adds these sums, in ascending order of
 * keys, to those of its (batch element, key/value head): chunks wait for their turn there. The last phase adds up what batch elements and heads
 * share. Where each row has its own, a distance within -K ... K is one score, which is added where it belongs as to a dense bias; what lies beyond are
 * two sums a row, kept as those of slopes are. */
#ifndef ATTN_BACKWARD_DISTANCE_NAMES
#define ATTN_BACKWARD_DISTANCE_NAMES
#define distance_sums SUFFIX(distance_sums)
#define distance_entries SUFFIX(distance_entries)
#define distance_bytes SUFFIX(distance_bytes)
#define distance_sums_open SUFFIX(distance_sums_open)
#define add_entries SUFFIX(add_entries)
#define tile_rows_of SUFFIX(tile_rows_of)
#define diagonal_sums SUFFIX(diagonal_sums)
#define add_by_distance SUFFIX(add_by_distance)
#define add_by_row SUFFIX(add_by_row)
#define add_relative SUFFIX(add_relative)
#define hand_over_distances SUFFIX(hand_over_distances)
#define reduce_distances SUFFIX(reduce_distances)

/* The distance nearest to d that has an entry. */
static inline int64_t
attn_clipped_distance(const struct attn_attention *a, int64_t d)
{
    int64_t K = a->relative_span / 2;
    return attn_max(-K, attn_min(d, K));
}

/* The distance of the first entry that some row may have with the keys from `key` on. */
static inline int64_t
attn_first_distance(const struct attn_attention *a, int64_t key, int64_t offset)
{
    return attn_clipped_distance(a, key - offset - (a->query_length - 1));
}
#endif

/* What tasks share of one (batch element, key/value head). */
struct distance_sums {
    atomic_int *turn; /* chunks that have added theirs */
    REAL *sums;       /* [group][entries], from the first distance that some row has with some key */
};

/* Entries that the distances of `keys` keys from all rows have. */
ATTN_INLINE int64_t
distance_entries(const struct attn_attention *a, int64_t keys)
{
    return attn_min(a->relative_span, a->query_length + keys);
}

/* Of each thread, and of all together. */
ATTN_INLINE size_t
distance_bytes(const struct attn_attention *a, const struct attn_backward_cut *cut, bool shared)
{
    if (cut->one_by_one && shared)
        return (size_t)cut->pairs * ATTN_TURN * sizeof(atomic_int);
    if (!cut->by_distance)
        return 0;
    size_t entries = (size_t)(a->group * distance_entries(a, shared ? a->key_length : ATTN_BLOCK)) * sizeof(REAL);
    return shared ? (size_t)cut->pairs * (attn_round_up(entries) + ATTN_TURN * sizeof(atomic_int)) : attn_round_up((size_t)cut->blocks * entries);
}

/* memory: behind what backward_shared has. */
ATTN_INLINE struct distance_sums
distance_sums_open(const struct attn_attention *a, const struct attn_backward_cut *cut, int64_t batch, int64_t head, char *memory)
{
    size_t pair = (size_t)(batch * cut->heads + head), turns = ATTN_TURN * sizeof(atomic_int);
    size_t each = attn_round_up((size_t)(a->group * distance_entries(a, a->key_length)) * sizeof(REAL));
    return (struct distance_sums){(atomic_int *)(memory + pair * turns), (REAL *)(memory + (size_t)cut->pairs * turns + pair * each)};
}

/* Adds the dS of `keys` distances from `distance` on: those within -K ... K to their entries, of which entry[0] is that of the distance `first`; the
 * sums of those before and behind are returned in *before and *behind. */
static void
add_entries(const struct attn_attention *a, const REAL *ds, int keys, int64_t distance, int64_t first, REAL *entry, REAL *before, REAL *behind)
{
    const int64_t K = a->relative_span / 2;
    const int from = (int)attn_max(0, attn_min(-K - distance, keys)), end = (int)attn_max(from, attn_min(K + 1 - distance, keys));
    REAL low = 0, high = 0;
    for (int t = 0; t < from; t++)
        low += ds[t];
    entry += distance - first;
    for (int t = from; t < end; t++)
        entry[t] += ds[t];
    for (int t = end; t < keys; t++)
        high += ds[t];
    *before = low;
    *behind = high;
}

/* The tile as rows: [lane][64]. */
static void
tile_rows_of(const struct row_block *rows, const REAL *tile, int keys, REAL *to)
{
    for (int lane = 0; lane < rows->count;) {
        int width = group_vectors(rows->count, lane) * LANES;
        for (int i = 0; i < width; i += LANES)
            for (int c = 0; c < keys; c += LANES) {
                vreal block[VECTOR_BYTES / sizeof(REAL)];
                for (int n = 0; n < LANES; n++)
                    block[n] = c + n < keys ? v_load(tile + lane * ATTN_BLOCK + (c + n) * width + i) : (vreal){0};
                v_transpose(block);
                for (int n = 0; n < LANES; n++)
                    v_store(to + (lane + i + n) * ATTN_BLOCK + c, block[n]);
            }
        lane += width;
    }
}

/* sums[63 + key - lane] of a tile: a vector of running sums moves on by one lane with each key, and what leaves its last lane is done with. */
static void
diagonal_sums(const struct row_block *rows, const REAL *tile, int keys, REAL *sums)
{
    const uint64_t live = attn_bit_range(0, rows->count);
    memset(sums, 0, 2 * ATTN_BLOCK * sizeof(REAL));
    for (int lane = 0; lane < rows->count;) {
        int width = group_vectors(rows->count, lane) * LANES;
        for (int i = 0; i < width && lane + i < rows->count; i += LANES) {
            const REAL *ds = tile + lane * ATTN_BLOCK + i;
            REAL *last = sums + (ATTN_BLOCK - 1) - (lane + i + LANES - 1);
            const vint here = v_lane_bits(live >> (lane + i));
            vreal sum = {0};
            for (int t = 0; t < keys; t++) {
                sum = v_behind(sum) + v_select(here, v_load(ds + t * width), (vreal){0});
                last[t] += sum[LANES - 1];
            }
            for (int n = 0; n < LANES - 1; n++)
                last[keys - 1 + (LANES - 1 - n)] += sum[n];
        }
        lane += width;
    }
}

/* A tile of dS, from key `key` on, to the sums of its key block: [group][entries], from the distance `first` on. */
static void
add_by_distance(const struct attn_attention *a, const struct row_block *rows, const REAL *tile, int64_t key, int keys, int64_t first, REAL *sums,
                REAL *staging)
{
    const int64_t entries = distance_entries(a, ATTN_BLOCK), low = attn_max(0, -(a->relative_span / 2) - first);
    REAL before, behind;
    if (rows->consecutive) {
        REAL diagonal[2 * ATTN_BLOCK] __attribute__((aligned(64))), *entry = sums + rows->head[0] % a->group * entries;
        diagonal_sums(rows, tile, keys, diagonal);
        const int from = ATTN_BLOCK - rows->count, n = rows->count + keys - 1;
        add_entries(a, diagonal + from, n, key - rows->position[0] - (rows->count - 1), first, entry, &before, &behind);
        entry[low] += before;
        entry[attn_min(entries - 1, a->relative_span / 2 - first)] += behind;
        return;
    }
    tile_rows_of(rows, tile, keys, staging);
    for (int lane = 0; lane < rows->count; lane++) {
        REAL *entry = sums + rows->head[lane] % a->group * entries;
        add_entries(a, staging + lane * ATTN_BLOCK, keys, key - rows->position[lane], first, entry, &before, &behind);
        entry[low] += before;
        entry[attn_min(entries - 1, a->relative_span / 2 - first)] += behind;
    }
}

/* A tile of dS to the rows of the gradient; what lies beyond -K and K to beyond[lane] and beyond[64 + lane]. */
static void
add_by_row(const struct attn_attention *a, int64_t batch, const struct row_block *rows, const REAL *tile, int64_t key, int keys,
           const struct attn_tensor *t, REAL *beyond, REAL *staging)
{
    char *data = output_batch(a, t, batch);
    tile_rows_of(rows, tile, keys, staging);
    for (int lane = 0; lane < rows->count; lane++)
        add_entries(a, staging + lane * ATTN_BLOCK, keys, key - rows->position[lane], -(a->relative_span / 2),
                    (REAL *)output_row(t, data, rows->head[lane], rows->index[lane]), &beyond[lane], &beyond[ATTN_BLOCK + lane]);
}

/* The gradient of relative_bias gets its part of a tile of dS, which begins with key `key`. */
static void
add_relative(const struct attn_attention_backward *b, int64_t batch, struct backward_place *p, const struct key_block *block)
{
    const struct attn_attention *a = &b->forward;
    const struct row_block *rows = p->rows;
    int64_t key = block->first + p->w->from, first = attn_first_distance(a, block->first, rows->position[0] - rows->index[0]);
    REAL *staging = p->w->additive[2]; /* its tile is done with */
    if (b->grad_relative.row != 0)
        add_by_row(a, batch, rows, p->gradients, key, p->w->keys, &b->grad_relative, p->sums + 2 * ATTN_BLOCK, staging);
    else
        add_by_distance(a, rows, p->gradients, key, p->w->keys, first, p->distances + (block - p->block) * a->group * distance_entries(a, ATTN_BLOCK),
                        staging);
}

/* A chunk has its sums for a (batch element, key/value head): they are added block by block. False: told to stop. */
static bool
hand_over_distances(const struct attn_attention *a, const struct attn_backward_cut *cut, int64_t batch, const struct distance_sums *shared,
                    int64_t chunk, int64_t keys, const REAL *sums)
{
    const int64_t offset = place_of(a, batch).offset, first = attn_first_distance(a, 0, offset), step = attn_block_keys(a);
    const int64_t all = distance_entries(a, a->key_length), each = distance_entries(a, ATTN_BLOCK);
    if (cut->chunks > 1 && !attn_wait_turn(shared->turn, (int)chunk, a->call.stop))
        return false;
    if (chunk == 0)
        memset(shared->sums, 0, (size_t)(a->group * all) * sizeof(REAL));
    for (int64_t n = 0; n * step < keys; n++) {
        int64_t from = attn_first_distance(a, chunk * cut->keys + n * step, offset) - first;
        for (int64_t h = 0; h < a->group; h++)
            for (int64_t c = 0; c < attn_min(each, all - from); c++)
                shared->sums[h * all + from + c] += sums[(n * a->group + h) * each + c];
    }
    if (cut->chunks > 1)
        atomic_store_explicit(shared->turn, (int)chunk + 1, memory_order_release);
    return true;
}

/* The gradient of a table without rows, from all heads, in order. memory: of all distance_sums. */
static void
reduce_distances(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, char *memory)
{
    const struct attn_attention *a = &b->forward;
    const int64_t all = distance_entries(a, a->key_length), K = a->relative_span / 2;
    for (int64_t batch = 0; batch < a->batch && !attn_stopped(a->call.stop); batch++)
        for (int64_t head = 0; head < a->heads; head++) {
            const struct distance_sums shared = distance_sums_open(a, cut, batch, head / a->group, memory);
            const REAL *sums = shared.sums + head % a->group * all;
            int64_t first = attn_first_distance(a, 0, place_of(a, batch).offset) + K;
            REAL *to = (REAL *)output_row(&b->grad_relative, output_batch(a, &b->grad_relative, batch), head, 0) + first;
            for (int64_t c = 0; c < attn_min(all, a->relative_span - first); c++)
                to[c] += sums[c];
        }
}
