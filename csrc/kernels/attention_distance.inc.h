/* attention_distance.inc.h: what is added to a score for the distance from its query to its key: ALiBi and relative_bias.
 *
 * Where the lanes of a row block are consecutive rows of one head, and the head has one row of relative_bias, a tile has 127 such terms: a diagonal,
 * in ascending order of lane - key, from which each key's terms are read side by side. Else they are computed or looked up one by one. */
#ifndef ATTN_DISTANCE_NAMES
#define ATTN_DISTANCE_NAMES
#define relative_entries SUFFIX(relative_entries)
#define relative_rows SUFFIX(relative_rows)
#define relative_tile SUFFIX(relative_tile)
#define distance_terms SUFFIX(distance_terms)
#define alibi_diagonal SUFFIX(alibi_diagonal)
#define relative_diagonal SUFFIX(relative_diagonal)
#define tile_diagonals SUFFIX(tile_diagonals)
#define fused_diagonal SUFFIX(fused_diagonal)
#define diagonal_at SUFFIX(diagonal_at)
#define add_diagonal SUFFIX(add_diagonal)

enum { ATTN_ALIBI, ATTN_RELATIVE }; /* in the order in which they are added */
#endif

/* Of a row block and a key block. */
struct distance_terms {
    bool on_diagonal[2];
    REAL most; /* the sum of the largest absolute values of the diagonals; inf where one holds NaN or inf */
    REAL diagonal[2][2 * ATTN_BLOCK] __attribute__((aligned(64))); /* entry 63 + lane - key */
};

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

/* The terms of ALiBi; they are exact where distances are, as in add_alibi: else false. */
static bool
alibi_diagonal(REAL slope, int64_t position, int64_t key, struct distance_terms *terms)
{
    const int64_t exact = (int64_t)1 << REAL_MANTISSA, first = position - key - (ATTN_BLOCK - 1);
    if (first < -exact || first > exact - 2 * ATTN_BLOCK)
        return false;
    vreal distance = v_splat((REAL)first);
    for (int n = 0; n < LANES; n++)
        distance[n] += (REAL)n;
    for (int x = 0; x < 2 * ATTN_BLOCK; x += LANES)
        v_store(terms->diagonal[ATTN_ALIBI] + x, alibi_term(v_splat(slope), distance + v_splat((REAL)x)));
    REAL most = (slope < 0 ? -slope : slope) * (REAL)attn_max(-first, first + 2 * ATTN_BLOCK);
    terms->most += most <= REAL_MAX ? most : REAL_INFINITY;
    return true;
}

/* Those of relative_bias, whose row is `table`, in log2 units. False where one of them hides. */
static bool
relative_diagonal(const struct attn_attention *a, const char *table, int64_t position, int64_t key, struct distance_terms *terms)
{
    REAL entry[2 * ATTN_BLOCK] __attribute__((aligned(64))), *diagonal = terms->diagonal[ATTN_RELATIVE];
    const int last = 2 * ATTN_BLOCK - 1;
    vint hides = {0}, other = {0};
    vreal most = {0};
    relative_entries(&a->relative_bias, table, a->relative_span, key - position - (ATTN_BLOCK - 1), last, entry);
    entry[last] = entry[last - 1];
    for (int x = 0; x < 2 * ATTN_BLOCK; x += LANES) {
        vreal size = v_abs(v_load(entry + x));
        hides |= v_load(entry + x) == v_splat(-REAL_INFINITY);
        other |= ~(size <= v_splat(REAL_MAX));
        most = v_max(size, most);
    }
    if (v_any(hides))
        return false;
    scale_additive(entry, entry);
    scale_additive(entry + ATTN_BLOCK, entry + ATTN_BLOCK);
    for (int x = 0; x < last; x++)
        diagonal[x] = entry[last - 1 - x];
    diagonal[last] = 0;
    terms->most += v_any(other) ? REAL_INFINITY : v_highest(most) * (REAL)LOG2E;
    return true;
}

/* What depends on distances alone, as diagonals where they can be: then nothing else of it hides or is to be added. */
static void
tile_diagonals(const struct attn_attention *a, int64_t batch, const struct row_block *rows, int64_t key, bool by_key, struct distance_terms *terms)
{
    const struct attn_tensor *table = &a->relative_bias;
    bool can = by_key && rows->consecutive;
    terms->most = 0;
    terms->on_diagonal[ATTN_ALIBI] = can && a->alibi_slopes.data && alibi_diagonal(rows->slope[0], rows->position[0], key, terms);
    terms->on_diagonal[ATTN_RELATIVE] =
        can && table->data && table->row == 0 && relative_diagonal(a, scalar_at(a, table, batch, rows->head[0]), rows->position[0], key, terms);
}

/* Which diagonal is added to the products as they are stored, or -1: what is before it in the order of terms is absent, and in this range a sum
 * is a saturating sum. */
ATTN_INLINE int
fused_diagonal(const struct attn_attention *a, const struct row_block *rows, const struct key_block *block, const struct distance_terms *terms)
{
    if (!(a->alibi_slopes.data || a->relative_bias.data) || a->softcap != 0 || scales_scores(a) || is_added(&a->bias) || is_added(&a->attn_mask))
        return -1;
    if (!(rows->query_abs * block->key_abs + terms->most < REAL_MAX / 2))
        return -1;
    if (a->alibi_slopes.data)
        return terms->on_diagonal[ATTN_ALIBI] ? ATTN_ALIBI : -1;
    return terms->on_diagonal[ATTN_RELATIVE] ? ATTN_RELATIVE : -1;
}

/* The terms of a segment's first key and lane. */
ATTN_INLINE const REAL *
diagonal_at(const REAL *diagonal, const struct segment *s)
{
    return diagonal + (ATTN_BLOCK - 1) + s->lane - s->from;
}

static void
add_diagonal(const struct segment *s, const REAL *diagonal)
{
    const REAL *first = diagonal_at(diagonal, s);
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv; i++) {
            REAL *score = s->scores + t * s->width + i * LANES;
            v_store(score, saturating_sum(v_load(score), v_loadu(first + i * LANES - t)));
        }
}
