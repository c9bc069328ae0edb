/* attention_distance.inc.h: relative_bias: what is added to a score for the distance from its query to its key. */
#ifndef ATTN_DISTANCE_NAMES
#define ATTN_DISTANCE_NAMES
#define relative_entries SUFFIX(relative_entries)
#define relative_rows SUFFIX(relative_rows)
#define relative_tile SUFFIX(relative_tile)
#endif

/* n entries of a row of relative_bias, for the distances from `distance` on: those beyond -K or K are the first or the last. */
static void
relative_entries(const struct attn_tensor *t, const char *table, int64_t span, int64_t distance, int n, REAL *to)
{
    int64_t column = distance + span / 2;
    int before = (int)attn_max(0, attn_min(n, -column)), within = (int)attn_max(0, attn_min(n, span - column) - before);
    if (before > 0) {
        REAL first = to_real(table, t->type, t->swapped);
        for (int j = 0; j < before; j++)
            to[j] = first;
    }
    if (within > 0)
        load_row(to + before, table + (column + before) * t->column, t->column, within, t->type, t->swapped);
    if (before + within < n) {
        REAL last = to_real(table + (span - 1) * t->column, t->type, t->swapped);
        for (int j = before + within; j < n; j++)
            to[j] = last;
    }
}

/* The table as it stands over a row block and keys key ... key + keys - 1: [lane][64], 0 behind the last key. */
static void
relative_rows(const struct attn_attention *a, const struct attn_tensor *t, int64_t batch, const struct row_block *rows, int64_t key, int keys,
              REAL *tile)
{
    for (int lane = 0; lane < rows->count; lane++) {
        REAL *row = tile + lane * ATTN_BLOCK;
        relative_entries(t, row_in(a, t, batch, rows->head[lane], rows->index[lane]), a->relative_span, key - rows->position[lane], keys, row);
        for (int j = keys; j < ATTN_BLOCK; j++)
            row[j] = 0;
    }
}

/* relative_bias in log2 units, as additive_tile. */
static void
relative_tile(const struct attn_attention *a, int64_t batch, const struct row_block *rows, int64_t key, int keys, REAL *tile, uint64_t *seen)
{
    relative_rows(a, &a->relative_bias, batch, rows, key, keys, tile);
    for (int lane = 0; lane < rows->count; lane++) {
        REAL *row = tile + lane * ATTN_BLOCK;
        uint64_t bits = 0;
        for (int j = 0; j < ATTN_BLOCK; j += LANES)
            bits |= (uint64_t)v_mask_to_bits(v_load(row + j) != v_splat(-REAL_INFINITY)) << j;
        seen[lane] &= bits;
        scale_additive(row, row);
    }
}
