/* attention_visible.inc.h: what a row block sees of a key block, in one form: word = key, bit = lane.
 *
 * Ranges, lengths and dense masks are first written lane by lane (word = lane, bit = key), which is how they lie in memory, and then transposed. */
#ifndef ATTN_VISIBLE_NAMES
#define ATTN_VISIBLE_NAMES
#define tiles_sight SUFFIX(tiles_sight)
#define tiles_lanes SUFFIX(tiles_lanes)
#define next_visible SUFFIX(next_visible)
#define block_is_hidden SUFFIX(block_is_hidden)
#define visible_lanes SUFFIX(visible_lanes)
#define mask_bits SUFFIX(mask_bits)
#define mask_tile SUFFIX(mask_tile)
#define bytes_to_bits SUFFIX(bytes_to_bits)
#define is_added SUFFIX(is_added)
#define lane_operand SUFFIX(lane_operand)
#define scale_additive SUFFIX(scale_additive)
#define additive_row SUFFIX(additive_row)
#define additive_tile SUFFIX(additive_tile)
#define in_log2 SUFFIX(in_log2)
#define additive_block SUFFIX(additive_block)
#define additive_lanes SUFFIX(additive_lanes)
#define additive_scores SUFFIX(additive_scores)

typedef uint64_t attn_words __attribute__((vector_size(64), aligned(8), may_alias));

/* 64 x 64 bits in place: bit j of word i becomes bit i of word j. Blocks of 32, 16, ... 1 off the diagonal change places: between vectors while words are
 * 8 and more apart, then within each, where `keep` is what stays in its word. */
static void
attn_transpose_bits(uint64_t *word)
{
    const uint64_t low[6] = {0x00000000ffffffff, 0x0000ffff0000ffff, 0x00ff00ff00ff00ff, 0x0f0f0f0f0f0f0f0f, 0x3333333333333333, 0x5555555555555555};
    attn_words x[8], *words = (attn_words *)word;
    ATTN_UNROLL
    for (int i = 0; i < 8; i++)
        x[i] = words[i];
    ATTN_UNROLL
    for (int step = 0; step < 3; step++)
        ATTN_UNROLL
        for (int i = 0; i < 8; i++)
            if (!(i & 4 >> step)) {
                attn_words moved = ((x[i] >> (32 >> step)) ^ x[i + (4 >> step)]) & low[step];
                x[i] ^= moved << (32 >> step);
                x[i + (4 >> step)] ^= moved;
            }
    const attn_words left[3] = {{4, 4, 4, 4}, {2, 2, 0, 0, 2, 2}, {1, 0, 1, 0, 1, 0, 1}};
    const attn_words right[3] = {{0, 0, 0, 0, 4, 4, 4, 4}, {0, 0, 2, 2, 0, 0, 2, 2}, {0, 1, 0, 1, 0, 1, 0, 1}};
    ATTN_UNROLL
    for (int i = 0; i < 8; i++) {
        attn_words keep = (attn_words)(left[0] == 0) ^ low[3], y = __builtin_shufflevector(x[i], x[i], 4, 5, 6, 7, 0, 1, 2, 3);
        x[i] = (x[i] & keep) | (y << left[0] >> right[0] & ~keep);
        keep = (attn_words)(left[1] == 0) ^ low[4], y = __builtin_shufflevector(x[i], x[i], 2, 3, 0, 1, 6, 7, 4, 5);
        x[i] = (x[i] & keep) | (y << left[1] >> right[1] & ~keep);
        keep = (attn_words)(left[2] == 0) ^ low[5], y = __builtin_shufflevector(x[i], x[i], 1, 0, 3, 2, 5, 4, 7, 6);
        words[i] = (x[i] & keep) | (y << left[2] >> right[2] & ~keep);
    }
}

/* What n words of the bits `all` say of a tile. */
static inline enum attn_sight
words_sight(const uint64_t *seen, int n, uint64_t all)
{
    uint64_t any = 0, every = all;
    for (int i = 0; i < n; i++) {
        any |= seen[i];
        every &= seen[i];
    }
    return !(any & all) ? ATTN_HIDDEN : every == all ? ATTN_FULL : ATTN_PARTIAL;
}

/* Bits first ... end - 1 of 64, clipped. */
static inline uint64_t
attn_bit_range(int64_t first, int64_t end)
{
    first = attn_max(first, 0);
    end = attn_min(end, 64);
    if (first >= end)
        return 0;
    return (~(uint64_t)0 >> (64 - (end - first))) << first;
}
#endif

/* Whether an operand is there to be added to the scores; a boolean mask only hides. */
ATTN_INLINE bool
is_added(const struct attn_tensor *t)
{
    return t->data && t->type != ATTN_BOOL;
}

/* Row `lane` of an operand shaped (H, L, S), at key `key`. */
ATTN_INLINE const char *
lane_operand(const struct attn_tensor *t, const char *batch_data, const struct row_block *rows, int lane, int64_t key)
{
    return batch_data + rows->head[lane] * t->head + rows->index[lane] * t->row + key * t->column;
}

/* A bit for each of 64 bytes: set where it is not 0. */
ATTN_INLINE uint64_t
bytes_to_bits(const char *p)
{
#if defined ATTN_ISA_AVX512
    __m512i x = _mm512_loadu_si512(p);
    return _mm512_test_epi8_mask(x, x);
#elif defined ATTN_ISA_AVX2
    __m256i low = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)p), _mm256_setzero_si256());
    __m256i high = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)(p + 32)), _mm256_setzero_si256());
    return ~((uint64_t)(uint32_t)_mm256_movemask_epi8(low) | (uint64_t)(uint32_t)_mm256_movemask_epi8(high) << 32);
#elif defined __SSE2__
    uint64_t zeros = 0;
    for (int i = 0; i < 4; i++)
        zeros |= (uint64_t)(unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(p + 16 * i)), _mm_setzero_si128())) << 16 * i;
    return ~zeros;
#else
    uint64_t bits = 0;
    for (int j = 0; j < 64; j++)
        bits |= (uint64_t)(p[j] != 0) << j;
    return bits;
#endif
}

/* A bit for each of `keys` elements of a boolean mask. */
ATTN_INLINE uint64_t
mask_bits(const char *p, int64_t stride, int keys)
{
    char part[64] = {0};
    uint64_t bits = 0;
    if (stride == 0)
        return *p ? ~(uint64_t)0 : 0;
    if (stride == 1 && keys == 64)
        return bytes_to_bits(p);
    if (stride == 1) {
        memcpy(part, p, (size_t)keys);
        return bytes_to_bits(part);
    }
    for (int j = 0; j < keys; j++)
        bits |= (uint64_t)(p[j * stride] != 0) << j;
    return bits;
}

/* Clears the bits of hidden keys in a boolean mask. The next key block's part is asked for, up to its last byte: rows are
 * seldom aligned, and a mask is as cold as it is large. */
static void
mask_tile(const struct attn_tensor *t, const char *batch_data, const struct row_block *rows, int64_t key, int keys, uint64_t *seen)
{
    const char *p = lane_operand(t, batch_data, rows, 0, key), *last = NULL;
    uint64_t bits = 0;
    if (rows->consecutive && t->column == 1 && keys == ATTN_BLOCK && t->row != 0) {
        for (int lane = 0; lane < rows->count; lane++, p += t->row) {
            seen[lane] &= bytes_to_bits(p);
            __builtin_prefetch(p + 2 * ATTN_BLOCK - 1, 0, 2);
        }
        return;
    }
    for (int lane = 0; lane < rows->count; lane++) {
        p = lane_operand(t, batch_data, rows, lane, key);
        if (p != last) {
            bits = mask_bits(p, t->column, keys);
            __builtin_prefetch(p + 2 * ATTN_BLOCK - 1, 0, 2);
        }
        last = p;
        seen[lane] &= bits;
    }
}

/* What a row block sees of keys first ... end - 1, at most 64, as far as whole tiles tell. */
ATTN_INLINE enum attn_sight
tiles_sight(const struct row_block *rows, int64_t first, int64_t end)
{
    const struct attn_tile_row *tiles = &rows->tiles;
    if (!rows->one_tile_row)
        return ATTN_PARTIAL;
    int64_t tile = first / ATTN_BLOCK, last = (end - 1) / ATTN_BLOCK, place = attn_tile_place(tiles, tile);
    if (place == tiles->n || tiles->index[place] > last)
        return ATTN_HIDDEN;
    for (; tile <= last; tile++, place++)
        if (place == tiles->n || tiles->index[place] != tile || tiles->pattern[place] >= 0)
            return ATTN_PARTIAL;
    return ATTN_FULL;
}

/* Clears the bits of keys that the block mask hides: seen[lane]. */
static void
tiles_lanes(const struct attn_attention *a, int64_t batch, const struct row_block *rows, int64_t key, int keys, uint64_t *seen)
{
    for (int lane = 0; lane < rows->count; lane++) {
        int64_t i = rows->index[lane];
        struct attn_tile_row row = rows->one_tile_row ? rows->tiles : attn_tile_row(a, batch, rows->head[lane], i);
        seen[lane] &= attn_tile_bits(a, &row, (int)(i % ATTN_BLOCK), key, keys);
    }
}

/* The first key from `key` on that one of n row blocks, `bytes` apart, may see; or end. */
static int64_t
next_visible(const struct attn_attention *a, const char *blocks, size_t bytes, int64_t n, int64_t key, int64_t end)
{
    int64_t next = end;
    if (!a->block_mask.indptr)
        return key;
    for (int64_t i = 0; i < n; i++) {
        const struct row_block *rows = (const struct row_block *)(blocks + (size_t)i * bytes);
        if (!rows->one_tile_row)
            return key;
        int64_t place = attn_tile_place(&rows->tiles, key / ATTN_BLOCK);
        if (place < rows->tiles.n)
            next = attn_min(next, attn_max(key, rows->tiles.index[place] * (int64_t)ATTN_BLOCK));
    }
    return next;
}

/* Whether a block mask hides keys first ... end - 1 from a row block that has not been described, as far as one tile row can tell. */
ATTN_INLINE bool
block_is_hidden(const struct attn_attention *a, struct attn_row_layout layout, int64_t batch, int64_t kv_head, int64_t number, int64_t first,
                int64_t end)
{
    if (!a->block_mask.indptr || layout.paired || a->rows.data)
        return false;
    struct attn_tile_row row = attn_tile_row(a, batch, kv_head * a->group + number % a->group, number / a->group * ATTN_BLOCK);
    return !attn_tiles_meet(&row, first, end);
}

/* What the lanes see of keys key ... key + keys - 1 by ranges, a block mask and a boolean attn_mask: seen[lane], whose bits come in as additive operands left
 * them (all set where there are none). */
static enum attn_sight
visible_lanes(const struct attn_attention *a, int64_t batch, const struct row_block *rows, int64_t key, int keys, uint64_t *seen)
{
    uint64_t all = attn_bit_range(0, keys);
    bool cut = key < rows->all_first || key + keys > rows->all_end;
    for (int lane = 0; lane < rows->count; lane++)
        seen[lane] &= cut ? attn_bit_range(rows->first[lane] - key, rows->end[lane] - key) & all : all;
    if (a->block_mask.indptr)
        tiles_lanes(a, batch, rows, key, keys, seen);
    if (a->attn_mask.data && a->attn_mask.type == ATTN_BOOL)
        mask_tile(&a->attn_mask, scalar_at(a, &a->attn_mask, batch, 0), rows, key, keys, seen);
    return words_sight(seen, rows->count, all);
}

/* x log2(e); what is finite stays finite. */
ATTN_INLINE vreal
in_log2(vreal x)
{
    const vreal most = v_splat(REAL_MAX);
    vreal y = x * v_splat((REAL)LOG2E);
    return v_select(v_abs(x) <= most, v_max(v_min(y, most), -most), y);
}

/* One row of a tile, in log2 units. */
ATTN_INLINE void
scale_additive(const REAL *from, REAL *to)
{
    for (int j = 0; j < ATTN_BLOCK; j += LANES)
        v_store(to + j, in_log2(v_loadu(from + j)));
}

/* 64 numbers of an operand shaped (H, L, S) from p on: where they lie, or loaded into `row`, 0 behind the last key. */
ATTN_INLINE const REAL *
additive_row(const struct attn_tensor *t, const char *p, int keys, REAL *row)
{
    if (is_direct(t) && keys == ATTN_BLOCK)
        return (const REAL *)p;
    if (t->column == 0) {
        REAL x = to_real(p, t->type, t->swapped);
        for (int j = 0; j < ATTN_BLOCK; j++)
            row[j] = x;
    } else {
        load_row(row, p, t->column, keys, t->type, t->swapped);
        for (int j = keys; j < ATTN_BLOCK; j++)
            row[j] = 0;
    }
    return row;
}

/* A float mask or bias over a row block and a key block, [lane][64]; clears the bits of keys that -inf hides. A row that hides all is not written:
 * no visible score is added to it. */
static void
additive_tile(const struct attn_tensor *t, const char *batch_data, const struct row_block *rows, int64_t key, int keys, REAL *tile, uint64_t *seen)
{
    for (int lane = 0; lane < rows->count; lane++) {
        REAL *row = tile + lane * ATTN_BLOCK;
        uint64_t bits = 0;
        const REAL *from = additive_row(t, lane_operand(t, batch_data, rows, lane, key), keys, row);
        for (int j = 0; j < ATTN_BLOCK; j += LANES)
            bits |= (uint64_t)v_mask_to_bits(v_loadu(from + j) != v_splat(-REAL_INFINITY)) << j;
        seen[lane] &= bits;
        if (seen[lane])
            scale_additive(from, row);
    }
}

/* LANES keys of one vector of lanes of additive_scores, in log2 units; what is finite may overflow where it is not `careful`. Clears seen[key] from bit
 * `shift` on where -inf hides. Returns the largest absolute values of the rest. */
ATTN_INLINE vreal
additive_block(const vreal *x, bool careful, REAL *tile, int64_t width, uint64_t *seen, int shift)
{
    const vreal hidden = v_splat(-REAL_INFINITY);
    vreal low[2] = {{0}, {0}}, high[2] = {{0}, {0}}; /* of the even and the odd keys */
    ATTN_UNROLL
    for (int n = 0; n < LANES; n++) {
        vreal y = x[n] * v_splat((REAL)LOG2E);
        if (careful)
            y = in_log2(x[n]);
        v_store(tile + n * width, y);
        low[n % 2] = v_min(y, low[n % 2]);
        high[n % 2] = v_max(y, high[n % 2]);
    }
    vreal lowest = v_min(low[0], low[1]), highest = v_max(high[0], high[1]);
    if (!v_any(lowest == hidden))
        return v_max(-lowest, highest);
    lowest = (vreal){0};
    for (int n = 0; n < LANES; n++) {
        vint hides = x[n] == hidden;
        vreal y = v_load(tile + n * width);
        seen[n] &= ~((uint64_t)v_mask_to_bits(hides) << shift);
        lowest = v_min(v_select(hides, lowest, y), lowest);
    }
    return v_max(-lowest, highest);
}

/* One vector of lanes, from rows of 64 numbers that are transposed, or the same for all lanes. */
ATTN_INLINE vreal
additive_lanes(const REAL *const *row, bool same, bool careful, int keys, REAL *tile, int64_t width, uint64_t *seen, int shift)
{
    vreal most = {0};
    for (int c = 0; c < keys; c += LANES) {
        vreal x[VECTOR_BYTES / sizeof(REAL)];
        ATTN_UNROLL
        for (int n = 0; n < LANES; n++)
            x[n] = same ? v_splat(row[0][c + n]) : v_loadu(row[n] + c);
        if (!same)
            v_transpose(x);
        most = v_max(additive_block(x, careful, tile + c * width, width, seen + c, shift), most);
    }
    return most;
}

/* A float mask or bias over a row block and a key block, in log2 units, as scores lie: [group][key][width]. Clears the bits of what -inf hides, seen[key].
 * Returns the largest absolute value of the rest, NaN apart. The next key block's part of each row is asked for. */
static REAL
additive_scores(const struct attn_tensor *t, const char *batch_data, const struct row_block *rows, int64_t key, int keys, REAL *tile, uint64_t *seen)
{
    static const REAL zeros[ATTN_BLOCK];
    bool same = rows->consecutive && t->row == 0;
    vreal most = {0};
    for (int lane = 0; lane < rows->count;) {
        int width = group_vectors(rows->count, lane) * LANES;
        for (int i = 0; i < width; i += LANES) {
            REAL loaded[VECTOR_BYTES / sizeof(REAL)][ATTN_BLOCK];
            const REAL *row[VECTOR_BYTES / sizeof(REAL)];
            for (int n = 0; n < (same ? 1 : LANES); n++) {
                row[n] = zeros;
                if (lane + i + n >= rows->count)
                    continue;
                const char *p = lane_operand(t, batch_data, rows, lane + i + n, key);
                row[n] = additive_row(t, p, keys, loaded[n]);
                for (int line = 0; line < (int)(ATTN_BLOCK * sizeof(REAL)); line += 64)
                    __builtin_prefetch((const char *)(row[n] + ATTN_BLOCK) + line, 0, 2);
            }
            REAL *to = tile + lane * ATTN_BLOCK + i;
            vreal size;
            if (same)
                size = additive_lanes(row, true, false, keys, to, width, seen, lane + i);
            else
                size = additive_lanes(row, false, false, keys, to, width, seen, lane + i);
            if (!(v_highest(size) < REAL_MAX / 2))
                size = additive_lanes(row, same, true, keys, to, width, seen, lane + i);
            most = v_max(size, most);
        }
        lane += width;
    }
    return v_highest(most);
}
