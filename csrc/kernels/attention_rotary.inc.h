/* attention_rotary.inc.h: query rows as scores need them: loaded, and turned by their positions where the call has rotary tables.
 *
 * Queries are turned before they are scaled, keys as their block is loaded, gradients of both back before they are stored or added to others: all by
 * rotate_row, so that the bits are those of a rotation before the call. Rows and keys that nothing sees are left as they are: there may be no row of the
 * tables for them. */
#ifndef ATTN_ROTARY_NAMES
#define ATTN_ROTARY_NAMES
#define turn SUFFIX(turn)
#define query_angle SUFFIX(query_angle)
#define key_angle SUFFIX(key_angle)
#define turn_queries SUFFIX(turn_queries)
#define turn_keys SUFFIX(turn_keys)
#define turn_keys_back SUFFIX(turn_keys_back)
#define turned_query SUFFIX(turned_query)
#define rows_transposed SUFFIX(rows_transposed)
#define rows_load SUFFIX(rows_load)

static inline bool
attn_turns(const struct attn_attention *a)
{
    return a->rotary.cosine.data != NULL;
}
#endif

/* `to` becomes the row `from` of E elements, turned by a row of the tables, or back by it. */
ATTN_INLINE void
turn(const struct attn_attention *a, int64_t angle, REAL *to, const REAL *from, bool back)
{
    const struct attn_rotary_tables *r = &a->rotary;
    if (to != from && 2 * r->pairs < a->head_dim)
        memcpy(to + 2 * r->pairs, from + 2 * r->pairs, (size_t)(a->head_dim - 2 * r->pairs) * sizeof(REAL));
    rotate_row(to, from, r->pairs, (const REAL *)(r->cosine.data + angle * r->cosine.row), (const REAL *)(r->sine.data + angle * r->sine.row), r->how,
               back);
}

/* Which row of the tables belongs to a row of a block; -1 where it sees nothing, so far as ranges tell. */
static int64_t
query_angle(const struct attn_attention *a, int64_t batch, const struct row_block *rows, int lane)
{
    const struct attn_rotary_tables *r = &a->rotary;
    if (rows->first[lane] >= rows->end[lane])
        return -1;
    if (r->query_positions.data)
        return *(const int64_t *)(scalar_at(a, &r->query_positions, batch, 0) + rows->index[lane] * r->query_positions.row);
    return rows->position[lane] + (r->start.data ? *(const int64_t *)scalar_at(a, &r->start, batch, 0) : 0);
}

static int64_t
key_angle(const struct attn_attention *a, int64_t batch, int64_t j)
{
    const struct attn_rotary_tables *r = &a->rotary;
    if (r->key_positions.data)
        return *(const int64_t *)(scalar_at(a, &r->key_positions, batch, 0) + j * r->key_positions.row);
    return j + (r->start.data ? *(const int64_t *)scalar_at(a, &r->start, batch, 0) : 0);
}

/* The rows of a block, `pitch` REALs apart, in place; those that see nothing stay. */
static void
turn_queries(const struct attn_attention *a, int64_t batch, const struct row_block *rows, REAL *x, int64_t pitch, bool back)
{
    for (int lane = 0; lane < rows->count; lane++) {
        int64_t angle = query_angle(a, batch, rows, lane);
        if (angle >= 0)
            turn(a, angle, x + lane * pitch, x + lane * pitch, back);
    }
}

/* Keys first ... first + keys - 1, or their tangents, which lie `row` REALs apart at `from`, go to `to`, `pitch` apart; or they lie there already. What no
 * query sees stays there, and is not copied. */
static void
turn_keys(const struct attn_attention *a, int64_t batch, int64_t first, int64_t keys, const REAL *from, int64_t row, REAL *to, int64_t pitch)
{
    const struct attn_place place = place_of(a, batch);
    const struct attn_seen seen = attn_seen(a, place.queries, place.keys, place.offset);
    for (int64_t t = 0; t < keys; t++)
        if (first + t >= seen.first_key && first + t < seen.end_key)
            turn(a, key_angle(a, batch, first + t), to + t * pitch, from + t * row, false);
        else if (to != from)
            memset(to + t * pitch, 0, (size_t)a->head_dim * sizeof(REAL));
}

/* Gradients of keys, `pitch` REALs apart, turned back in place. A row of zeros stays: perhaps nothing sees the key. */
static void
turn_keys_back(const struct attn_attention *a, int64_t batch, int64_t first, int64_t keys, REAL *x, int64_t pitch)
{
    for (int64_t t = 0; t < keys; t++, x += pitch) {
        vint something = {0};
        for (int64_t c = 0; c < pitch; c += LANES)
            something |= v_load(x + c) != (vreal){0};
        if (v_any(something))
            turn(a, key_angle(a, batch, first + t), x, x, true);
    }
}

/* A row of queries, or of their tangents, as its products saw it: where it lies, or turned into `memory`. *t says how it is stored. */
static const char *
turned_query(const struct attn_attention *a, int64_t batch, const struct row_block *rows, int lane, const struct attn_tensor **t,
             struct attn_tensor *turned, REAL *memory)
{
    const char *query = row_in(a, *t, batch, rows->head[lane], rows->index[lane]);
    int64_t angle = attn_turns(a) ? query_angle(a, batch, rows, lane) : -1;
    if (angle < 0)
        return query;
    load_row(memory, query, (*t)->column, a->head_dim, (*t)->type, (*t)->swapped);
    turn(a, angle, memory, memory, false);
    turned->type = REAL_BITS == 32 ? ATTN_FLOAT32 : ATTN_FLOAT64;
    turned->swapped = false;
    turned->column = sizeof(REAL);
    *t = turned;
    return (const char *)memory;
}

/* The row block's rows of an operand (B.., H, L, n), as [group][n][width] and times `factor`; turned, where they are queries. staging: 64 rows of n REALs
 * rounded up to whole vectors, for what cannot be read in place. Returns the sum of the absolute values written. */
static REAL
rows_transposed(const struct attn_attention *a, const struct attn_tensor *t, int64_t batch, const struct row_block *rows, int64_t n,
                struct query_factor factor, REAL *staging, REAL *to)
{
    const char *data = scalar_at(a, t, batch, 0);
    int64_t pitch = (n + LANES - 1) / LANES * LANES;
    const REAL *row[ATTN_BLOCK];
    bool direct = is_direct(t);
    for (int lane = 0; lane < rows->count; lane++) {
        const char *p = data + rows->head[lane] * t->head + rows->index[lane] * t->row;
        int64_t angle = attn_turns(a) ? query_angle(a, batch, rows, lane) : -1;
        row[lane] = direct ? (const REAL *)p : staging + lane * pitch;
        if (!direct)
            load_row(staging + lane * pitch, p, t->column, n, t->type, t->swapped);
        if (angle >= 0) {
            turn(a, angle, staging + lane * pitch, row[lane], false);
            row[lane] = staging + lane * pitch;
        }
    }
    return rows_pack(rows, row, n, factor, to);
}

/* Describes and loads a row block; staging as above. */
static void
rows_load(const struct attn_attention *a, struct attn_row_layout layout, int64_t batch, int64_t kv_head, int64_t block, REAL *staging,
          struct row_block *rows)
{
    rows_describe(a, layout, batch, kv_head, block, rows);
    rows->query_abs = rows_transposed(a, &a->query, batch, rows, a->head_dim, query_factor_of(a), staging, rows->query);
}
