/* attention_scores.inc.h: the scores of a tile, one row block and one key block: what is seen of it, products, what is added to them, hiding.
 *
 * The tile is cut into segments, groups of lanes or their vectors, which leave out the keys that they do not see. */
#ifndef ATTN_SCORES_NAMES
#define ATTN_SCORES_NAMES
#define workplace SUFFIX(workplace)
#define workplace_bytes SUFFIX(workplace_bytes)
#define workplace_open SUFFIX(workplace_open)
#define tile_sight SUFFIX(tile_sight)
#define segment_products SUFFIX(segment_products)
#define segment_terms SUFFIX(segment_terms)
#define segment_scores SUFFIX(segment_scores)
#define next_segment SUFFIX(next_segment)
#define trim_keys SUFFIX(trim_keys)
#define segment_step SUFFIX(segment_step)
#define has_terms SUFFIX(has_terms)
#define scores_may_overflow SUFFIX(scores_may_overflow)
#define fused_tile SUFFIX(fused_tile)
#define segment_place SUFFIX(segment_place)
#define load_additive SUFFIX(load_additive)
#endif

/* What a thread needs beside its row blocks. */
struct workplace {
    REAL *staging;      /* 64 rows of max(E, D), whole vectors */
    REAL *block;        /* key_block_load */
    REAL *scores;       /* [64 keys][64 lanes] */
    REAL *additive[3];  /* bias and float attn_mask as additive_scores, relative_bias [64 lanes][64 keys]; without by_key all so */
    REAL most;          /* the sum of the largest absolute values of bias and float attn_mask; inf or NaN where one holds inf */
    uint64_t seen[ATTN_BLOCK];
    int from, keys;     /* of the key block: what `seen` and `additive` are about */
    enum attn_sight sight;
    struct distance_terms terms;
    bool first_use;     /* of the key block: its values are asked for while it is scored */
};

ATTN_INLINE size_t
workplace_bytes(int64_t head_dim, int64_t value_dim)
{
    size_t pitch = (size_t)attn_max(head_dim, value_dim) + VECTOR_BYTES / sizeof(REAL);
    return attn_round_up(sizeof(struct workplace)) + attn_round_up(pitch * ATTN_BLOCK * sizeof(REAL)) + key_block_bytes(head_dim, value_dim) +
           4 * ATTN_BLOCK * ATTN_BLOCK * sizeof(REAL);
}

/* Lays a workplace out at the front of a thread's scratch; what follows it is left to the row blocks. */
ATTN_INLINE struct workplace *
workplace_open(char *memory, int64_t head_dim, int64_t value_dim)
{
    struct workplace *w = (struct workplace *)memory;
    size_t pitch = (size_t)attn_max(head_dim, value_dim) + VECTOR_BYTES / sizeof(REAL);
    w->staging = (REAL *)(memory + attn_round_up(sizeof *w));
    w->block = (REAL *)((char *)w->staging + attn_round_up(pitch * ATTN_BLOCK * sizeof(REAL)));
    w->scores = (REAL *)((char *)w->block + key_block_bytes(head_dim, value_dim));
    w->additive[0] = w->scores + ATTN_BLOCK * ATTN_BLOCK;
    w->additive[1] = w->additive[0] + ATTN_BLOCK * ATTN_BLOCK;
    w->additive[2] = w->additive[1] + ATTN_BLOCK * ATTN_BLOCK;
    return w;
}

ATTN_INLINE bool
has_terms(const struct attn_attention *a)
{
    return a->softcap != 0 || is_added(&a->bias) || is_added(&a->attn_mask) || a->alibi_slopes.data || a->relative_bias.data || a->relative.key.data;
}

/* Additive operands over a row block and keys from ... from + w->keys - 1; what -inf hides is cleared in w->seen. */
static void
load_additive(const struct attn_attention *a, int64_t batch, const struct row_block *rows, int64_t from, bool by_key, struct workplace *w)
{
    const struct attn_tensor *additive[2] = {&a->bias, &a->attn_mask};
    w->most = 0;
    for (int n = 0; n < 2; n++) {
        if (!is_added(additive[n]))
            continue;
        const char *data = scalar_at(a, additive[n], batch, 0);
        if (by_key)
            w->most += additive_scores(additive[n], data, rows, from, w->keys, w->additive[n], w->seen);
        else
            additive_tile(additive[n], data, rows, from, w->keys, w->additive[n], w->seen);
    }
}

/* What the row block sees of the key block; additive operands are loaded. Afterwards seen[] is word = key where the tile is partial, or word = lane. */
static enum attn_sight
tile_sight(const struct attn_attention *a, int64_t batch, const struct row_block *rows, const struct key_block *block, bool by_key,
           struct workplace *w)
{
    int64_t from = attn_max(block->first, rows->any_first), end = attn_min(block->first + block->keys, rows->any_end);
    w->from = (int)(from - block->first);
    w->keys = (int)(end - from);
    if (from >= end)
        return w->sight = ATTN_HIDDEN;
    enum attn_sight tiles = a->block_mask.indptr ? tiles_sight(rows, from, end) : ATTN_FULL;
    if (tiles == ATTN_HIDDEN)
        return w->sight = ATTN_HIDDEN;
    if (a->alibi_slopes.data || a->relative_bias.data)
        tile_diagonals(a, batch, rows, from, by_key, &w->terms);
    bool by_row = a->relative_bias.data && !w->terms.on_diagonal[ATTN_RELATIVE], added = is_added(&a->bias) || is_added(&a->attn_mask);
    bool hides = a->attn_mask.data || by_row || tiles == ATTN_PARTIAL || from < rows->all_first || end > rows->all_end;
    w->sight = ATTN_FULL;
    if (!hides && !added)
        return w->sight;
    memset(w->seen, 0xff, sizeof w->seen);
    if (by_row)
        relative_tile(a, batch, rows, from, w->keys, w->additive[2], w->seen);
    if (!by_key)
        load_additive(a, batch, rows, from, false, w);
    if (hides || !by_key)
        w->sight = visible_lanes(a, batch, rows, from, w->keys, w->seen);
    if (!by_key || w->sight == ATTN_HIDDEN)
        return w->sight;
    if (w->sight == ATTN_PARTIAL) {
        for (int lane = rows->count; lane < ATTN_BLOCK; lane++)
            w->seen[lane] = ~(uint64_t)0;
        attn_transpose_bits(w->seen);
    } else
        memset(w->seen, 0xff, sizeof w->seen);
    if (added) {
        load_additive(a, batch, rows, from, true, w);
        w->sight = words_sight(w->seen, w->keys, attn_bit_range(0, rows->count));
    }
    return w->sight;
}

/* Whether a score of finite operands may overflow on the way. sum |q| sum |k| bounds every partial
 * sum of every score; NaN and inf fail the comparison too. */
ATTN_INLINE bool
scores_may_overflow(const struct row_block *rows, const struct key_block *block)
{
    return !(rows->query_abs * block->key_abs < REAL_MAX);
}

/* The tile that is added to the products as they are stored, or NULL: the only term there is, where a sum is a saturating sum. */
ATTN_INLINE const REAL *
fused_tile(const struct attn_attention *a, const struct row_block *rows, const struct key_block *block, const struct workplace *w)
{
    bool bias = is_added(&a->bias), mask = is_added(&a->attn_mask);
    if (bias == mask || a->softcap != 0 || scales_scores(a) || a->alibi_slopes.data || a->relative_bias.data || a->relative.key.data)
        return NULL;
    return rows->query_abs * block->key_abs + w->most < REAL_MAX / 2 ? w->additive[mask] : NULL;
}

/* Where the first key and lane of a segment lie in a tile [group][key][width]. */
ATTN_INLINE int64_t
segment_place(const struct segment *s)
{
    int base = s->lane / (GROUP_VECTORS * LANES) * (GROUP_VECTORS * LANES);
    return base * ATTN_BLOCK + (s->lane - base) + s->from * s->width;
}

/* The softcapped products of a segment, and with them the only term, and hiding, where these can be fused. False: they are its scores, and top follows
 * their maximum. */
ATTN_INLINE bool
segment_products(const struct attn_attention *a, int64_t batch, const struct row_block *rows, const struct key_block *block,
                 const struct workplace *w, const struct segment *s, vreal *top)
{
    int first = w->from + s->from; /* within the key block */
    bool risky = scores_may_overflow(rows, block);
    int diagonal = fused_diagonal(a, rows, block, &w->terms);
    const REAL *added = fused_tile(a, rows, block, w);
    bool more = diagonal == ATTN_ALIBI ? a->relative_bias.data != NULL : diagonal < 0 && !added && has_terms(a);
    bool changed = risky || scales_scores(a) || more;
    struct score_ends ends = {.diagonal = diagonal < 0 ? NULL : diagonal_at(w->terms.diagonal[diagonal], s),
                              .added = row_at(added, segment_place(s)),
                              .seen = changed || w->sight != ATTN_PARTIAL ? NULL : w->seen + s->from,
                              .shift = s->lane};
    vreal ignored[GROUP_VECTORS];
    for (int i = 0; i < s->nv; i++)
        ignored[i] = top[i];
    const REAL *soon = w->first_use && block->value ? block->value + first * block->value_row : NULL;
    group_scores(s->nv, s->query, s->width, block->key + first * block->key_row, block->key_row, a->head_dim, s->keys, soon, block->value_row, &ends,
                 s->scores, changed ? ignored : top);
    if (scales_scores(a))
        scale_scores(score_factor(a), s);
    if (risky)
        repair_scores(a, batch, rows, s, &a->query, block->key + first * block->key_row, block->key_row, w->staging);
    if (a->softcap != 0)
        cap_scores(a->softcap, s);
    return changed;
}

/* What is added to the products; hidden scores become -inf, top follows the maximum. */
ATTN_INLINE void
segment_terms(const struct attn_attention *a, const struct row_block *rows, const struct key_block *block, const struct workplace *w,
              const struct segment *s, vreal *top)
{
    const struct attn_tensor *additive[2] = {&a->bias, &a->attn_mask};
    int fused = fused_diagonal(a, rows, block, &w->terms);
    if (a->relative.key.data)
        ring_add(&rows->vectors->key, rows, s, block->first + w->from + s->from, NULL, s->scores);
    for (int n = 0; n < 2; n++)
        if (is_added(additive[n]))
            add_terms(s, w->additive[n] + segment_place(s));
    if (a->alibi_slopes.data && fused != ATTN_ALIBI) {
        if (w->terms.on_diagonal[ATTN_ALIBI])
            add_diagonal(s, w->terms.diagonal[ATTN_ALIBI]);
        else
            add_alibi(rows, s, block->first + w->from + s->from);
    }
    if (a->relative_bias.data && fused != ATTN_RELATIVE) {
        if (w->terms.on_diagonal[ATTN_RELATIVE])
            add_diagonal(s, w->terms.diagonal[ATTN_RELATIVE]);
        else
            add_tile(s, w->additive[2]);
    }
    hide_scores(s, w->sight == ATTN_PARTIAL ? w->seen : NULL, top);
}

/* The scores of a segment, all terms in and hidden ones at -inf; top follows their maximum. */
static void
segment_scores(const struct attn_attention *a, int64_t batch, const struct row_block *rows, const struct key_block *block, const struct workplace *w,
               const struct segment *s, vreal *top)
{
    if (segment_products(a, batch, rows, block, w, s, top))
        segment_terms(a, rows, block, w, s, top);
}

/* Keys from ... from + keys - 1 are all that the lanes of nv vectors see. */
ATTN_INLINE void
trim_keys(const struct row_block *rows, const struct workplace *w, int lane, int nv, int *from, int *keys)
{
    uint64_t lanes = attn_bit_range(lane, attn_min(lane + nv * LANES, rows->count));
    int first = 0, end = w->keys;
    while (first < end && !(w->seen[first] & lanes))
        first++;
    while (first < end && !(w->seen[end - 1] & lanes))
        end--;
    *from = first;
    *keys = end - first;
}

/* Vectors a segment of a partial tile: single ones where that saves a tenth of the scores of the group (a diagonal: three eighths). */
static int
segment_step(const struct row_block *rows, const struct workplace *w, int lane, int nv)
{
    int from, keys, single = 0;
    if (w->sight != ATTN_PARTIAL || nv < 4)
        return nv;
    for (int i = 0; i < nv; i++) {
        trim_keys(rows, w, lane + i * LANES, 1, &from, &keys);
        single += keys;
    }
    trim_keys(rows, w, lane, nv, &from, &keys);
    return 10 * single < 9 * nv * keys ? 1 : nv;
}

/* Cuts a tile into segments: groups of lanes, or their vectors. Call with s->nv = 0 to begin; false: no more. What sees nothing is left out. */
static bool
next_segment(const struct row_block *rows, const struct workplace *w, int64_t head_dim, struct segment *s)
{
    for (;;) {
        s->lane += s->nv * LANES;
        if (s->lane >= rows->count)
            return false;
        int base = s->lane / (GROUP_VECTORS * LANES) * (GROUP_VECTORS * LANES), nv = group_vectors(rows->count, base);
        if (s->lane == base)
            s->step = segment_step(rows, w, base, nv);
        s->nv = s->step;
        s->width = nv * LANES;
        s->from = 0;
        s->keys = w->keys;
        if (w->sight == ATTN_PARTIAL)
            trim_keys(rows, w, s->lane, s->nv, &s->from, &s->keys);
        if (s->keys == 0)
            continue;
        s->scores = w->scores + segment_place(s);
        s->query = rows->query + base * head_dim + (s->lane - base);
        return true;
    }
}
