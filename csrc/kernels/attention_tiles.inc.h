/* attention_tiles.inc.h: a block mask: which tiles of 64 queries and 64 keys are visible, and the bits of those that are not whole. Nothing here depends on
 * REAL. */
#ifndef ATTN_TILES_NAMES
#define ATTN_TILES_NAMES

enum attn_sight { ATTN_HIDDEN, ATTN_PARTIAL, ATTN_FULL };

/* The tiles of one tile row of a block mask. */
struct attn_tile_row {
    const int32_t *index, *pattern; /* key tile, ascending; -1 or a pattern of bits */
    int64_t n;
};

static inline struct attn_tile_row
attn_tile_row(const struct attn_attention *a, int64_t batch, int64_t head, int64_t i)
{
    const struct attn_block_mask *mask = &a->block_mask;
    int64_t lead = attn_batch_offset(batch, a->batch_ndim, a->batch_shape, mask->batch) + head * mask->head;
    const int64_t *from = mask->indptr + lead * (mask->rows + 1) + i / ATTN_BLOCK;
    return (struct attn_tile_row){mask->indices + from[0], mask->pattern + from[0], from[1] - from[0]};
}

/* The first place whose key tile is `tile` or later. */
static inline int64_t
attn_tile_place(const struct attn_tile_row *row, int64_t tile)
{
    int64_t low = 0, high = row->n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (row->index[middle] < tile)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Whether a tile row sees some of the keys first ... end - 1. */
static inline bool
attn_tiles_meet(const struct attn_tile_row *row, int64_t first, int64_t end)
{
    int64_t place = attn_tile_place(row, first / ATTN_BLOCK);
    return place < row->n && row->index[place] * (int64_t)ATTN_BLOCK < end;
}

/* What row `line` of a tile row sees of key tile `tile`. */
static inline uint64_t
attn_tile_word(const struct attn_attention *a, const struct attn_tile_row *row, int line, int64_t tile)
{
    int64_t place = attn_tile_place(row, tile);
    if (place == row->n || row->index[place] != tile)
        return 0;
    return row->pattern[place] < 0 ? ~(uint64_t)0 : a->block_mask.bits[row->pattern[place] * (int64_t)ATTN_BLOCK + line];
}

/* The same for up to 64 keys from any key on: they lie in two tiles at the most. */
static inline uint64_t
attn_tile_bits(const struct attn_attention *a, const struct attn_tile_row *row, int line, int64_t key, int keys)
{
    int shift = (int)(key % ATTN_BLOCK);
    uint64_t bits = attn_tile_word(a, row, line, key / ATTN_BLOCK) >> shift;
    if (shift + keys > ATTN_BLOCK)
        bits |= attn_tile_word(a, row, line, key / ATTN_BLOCK + 1) << (ATTN_BLOCK - shift);
    return bits;
}
#endif
