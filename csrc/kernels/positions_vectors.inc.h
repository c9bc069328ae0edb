/* positions_vectors.inc.h: vectors of distances (Shaw, Transformer-XL) beside keys and values, without an array of rows and keys and vectors.
 *
 * Lane l of a row block and key j meet the vector of number origin + (j - l): all that 64 queries and 64 keys need are 127 vectors. Their products with
 * the 64 queries are a tile product like that with keys. They lie [vector][lane] in a ring of chunks of 64 vectors; the next key block needs one new
 * chunk. Adding them to scores, [key][lane], slants them: lane l takes vector j - l, which in registers is one selection for each bit of l.
 * The other way round, weights [key][lane] slant to a band [vector][lane], whose product with the vectors is what values would be. */
#ifndef ATTN_VECTORS_NAMES
#define ATTN_VECTORS_NAMES
#define vector_ring SUFFIX(vector_ring)
#define vector_band SUFFIX(vector_band)
#define vectors_bytes SUFFIX(vectors_bytes)
#define vectors_open SUFFIX(vectors_open)
#define vectors_start SUFFIX(vectors_start)
#define vectors_query SUFFIX(vectors_query)
#define vectors_rows SUFFIX(vectors_rows)
#define repair_products SUFFIX(repair_products)
#define ring_products SUFFIX(ring_products)
#define ring_start SUFFIX(ring_start)
#define ring_fill SUFFIX(ring_fill)
#define ring_prepare SUFFIX(ring_prepare)
#define ring_edge SUFFIX(ring_edge)
#define ring_take SUFFIX(ring_take)
#define ring_add SUFFIX(ring_add)
#define last_lane SUFFIX(last_lane)
#define slant SUFFIX(slant)
#define band_make SUFFIX(band_make)
#define band_edge SUFFIX(band_edge)
#define band_fold SUFFIX(band_fold)
#define band_seen SUFFIX(band_seen)
#define band_output SUFFIX(band_output)

enum {
    ATTN_SLANT = 8,                                /* vectors that are slanted at a time */
    ATTN_BAND = 2 * ATTN_BLOCK + ATTN_SLANT,       /* rows of a band, and what is written past them */
    ATTN_RING_CHUNKS = 4                           /* at the most: short blocks of keys lie across three */
};

/* Chunks of a ring: key blocks at multiples of 64 need two at a time. */
static inline int64_t
attn_ring_chunks(const struct attn_attention *a)
{
    return a->call.debug_blocks ? ATTN_RING_CHUNKS : 2;
}
#endif

/* Products of the lanes of a row block with vectors of distances. */
struct vector_ring {
    const struct attn_tensor *table; /* (B.., H, vectors, n) */
    const struct attn_tensor *bias;  /* what is added to the query of the products, for the repair; or NULL: these are no scores */
    const REAL *query;               /* [group][n][width] */
    int64_t n, vectors, origin;      /* lane l and key j meet vector origin + j - l */
    int64_t chunks, chunk[ATTN_RING_CHUNKS]; /* which chunk a slot holds */
    bool clips;                      /* beyond the first and last vector these hold on; else there is nothing visible */
    REAL query_abs;                  /* sum |query| */
    REAL *products;                  /* [group][64 chunks][width] */
    REAL *edge;                      /* [2][64]: products with the first and the last vector */
};

/* What a row block needs beside itself where there are such vectors. */
struct vectors_place {
    struct vector_ring key, value;
    REAL *query;  /* [group][E][width]: what the vectors of keys are multiplied by */
    REAL *band;   /* of the thread */
};

/* Weights of a segment by vector. */
struct vector_band {
    REAL *tile;     /* [rows][width] */
    int64_t width;  /* what its rows lie apart */
    int lanes;
    int rows, low;  /* row 0 is the band's row `low` before it was cut */
    int whole;      /* rows before it was cut */
    int64_t vector; /* of row 0 */
};

/* For one row block. rings: 1, or 2 where gradients want those of values as well. */
ATTN_INLINE size_t
vectors_bytes(const struct attn_attention *a, int rings)
{
    size_t row = ATTN_BLOCK * sizeof(REAL);
    if (!a->relative.key.data)
        return 0;
    return attn_round_up(sizeof(struct vectors_place)) + row * (size_t)a->head_dim +
           (size_t)rings * row * (size_t)(ATTN_BLOCK * attn_ring_chunks(a) + 2);
}

static void
vectors_open(const struct attn_attention *a, char *memory, REAL *band, int rings, struct row_block *rows)
{
    struct vectors_place *d = (struct vectors_place *)memory;
    struct vector_ring *ring[2] = {&d->key, &d->value};
    if (!a->relative.key.data)
        return;
    rows->vectors = d;
    d->band = band;
    d->query = (REAL *)(memory + attn_round_up(sizeof *d));
    REAL *at = d->query + a->head_dim * ATTN_BLOCK;
    for (int i = 0; i < rings; i++) {
        ring[i]->products = at;
        ring[i]->edge = at + ATTN_BLOCK * ATTN_BLOCK * attn_ring_chunks(a);
        at = ring[i]->edge + 2 * ATTN_BLOCK;
    }
}

/* Vectors first ... first + count - 1, at most 64, of the row block's head, as REALs `row` apart. */
ATTN_INLINE const REAL *
vectors_rows(const struct attn_attention *a, const struct attn_tensor *t, int64_t batch, const struct row_block *rows, int64_t first, int count,
             int64_t n, REAL *staging, int64_t *row)
{
    return block_rows(t, scalar_at(a, t, batch, rows->head[0]) + first * t->row, count, n, true, staging, row);
}

/* As repair_scores does for keys. products: of `count` vectors, [count][width], from a lane on. */
static void
repair_products(const struct attn_attention *a, int64_t batch, const struct row_block *rows, const struct vector_ring *g, int lane, int lanes,
                int64_t width, const REAL *vector, int64_t row, int count, REAL *products)
{
    for (int t = 0; t < count; t++)
        for (int i = 0; i < lanes; i++) {
            REAL *x = products + t * width + i;
            if (*x - *x != 0)
                *x = biased_score(a, row_in(a, &a->query, batch, rows->head[lane + i], rows->index[lane + i]), &a->query,
                                  g->bias->data ? scalar_at(a, g->bias, batch, rows->head[lane + i]) : NULL, g->bias, vector + t * row, *x);
        }
}

/* Products of all lanes with vectors first ... first + count - 1. to: of the first lane's first product; rows of a group are `pitch` lanes' worth long. */
static void
ring_products(const struct attn_attention *a, int64_t batch, const struct row_block *rows, const struct vector_ring *g, int64_t first, int count,
              int64_t at, int64_t pitch, REAL *staging, REAL *to)
{
    int64_t row;
    vreal top[GROUP_VECTORS];
    const REAL *vector = vectors_rows(a, g->table, batch, rows, first, count, g->n, staging, &row);
    bool risky = g->bias && !(g->query_abs * sum_of_abs(vector, row, count, g->n) < REAL_MAX);
    for (int lane = 0; lane < rows->count;) {
        int nv = group_vectors(rows->count, lane);
        int64_t width = nv * LANES;
        REAL *products = to + lane * pitch + at * width;
        for (int i = 0; i < nv; i++)
            top[i] = (vreal){0};
        group_scores(nv, g->query + lane * g->n, width, vector, row, g->n, count, NULL, 0, &(const struct score_ends){0}, products, top);
        if (g->bias && scales_scores(a))
            for (int64_t i = 0; i < count * width; i += LANES)
                v_store(products + i, v_load(products + i) * v_splat(score_factor(a)));
        if (risky)
            repair_products(a, batch, rows, g, lane, (int)attn_min(width, rows->count - lane), width, vector, row, count, products);
        lane += (int)width;
    }
}

/* A ring for a row block whose query is there. */
static void
ring_start(const struct attn_attention *a, int64_t batch, const struct row_block *rows, struct vector_ring *g, REAL *staging)
{
    g->vectors = a->relative.vectors;
    g->clips = a->relative.clips;
    g->origin = a->relative.centre - rows->position[0];
    g->chunks = attn_ring_chunks(a);
    for (int i = 0; i < ATTN_RING_CHUNKS; i++)
        g->chunk[i] = INT64_MIN;
    if (!g->clips || g->vectors == 0)
        return;
    for (int64_t i = 0; i < 2; i++)
        ring_products(a, batch, rows, g, i * (g->vectors - 1), 1, 0, 1, staging, g->edge + i * ATTN_BLOCK);
}

/* Chunk n: the vectors that key j and lane l meet where 64 n <= j - l < 64 (n + 1). */
static void
ring_fill(const struct attn_attention *a, int64_t batch, const struct row_block *rows, struct vector_ring *g, int64_t n, REAL *staging)
{
    int64_t slot = n & (g->chunks - 1), first = n * ATTN_BLOCK + g->origin, pitch = g->chunks * ATTN_BLOCK;
    int low = (int)attn_min(attn_max(-first, 0), ATTN_BLOCK), high = (int)attn_max(low, attn_min(ATTN_BLOCK, g->vectors - first));
    g->chunk[slot] = n;
    if (low < high)
        ring_products(a, batch, rows, g, first + low, high - low, slot * ATTN_BLOCK + low, pitch, staging, g->products);
    for (int lane = 0; lane < rows->count;) {
        int64_t width = group_vectors(rows->count, lane) * LANES;
        REAL *to = g->products + lane * pitch + slot * ATTN_BLOCK * width;
        for (int64_t i = 0; i < width; i += LANES) {
            vreal before = g->clips ? v_load(g->edge + lane + i) : (vreal){0},
                  behind = g->clips ? v_load(g->edge + ATTN_BLOCK + lane + i) : (vreal){0};
            for (int t = 0; t < low; t++)
                v_store(to + t * width + i, before);
            for (int t = high; t < ATTN_BLOCK; t++)
                v_store(to + t * width + i, behind);
        }
        lane += (int)width;
    }
}

/* Whether lanes first_lane ... last_lane and `keys` keys from `key` on all meet the first vector (0) or the last (1); -1: neither. */
ATTN_INLINE int
ring_edge(const struct vector_ring *g, int first_lane, int last_lane, int64_t key, int keys)
{
    if (!g->clips)
        return -1;
    return g->origin + key + keys - 1 - first_lane <= 0 ? 0 : g->origin + key - last_lane >= g->vectors - 1 ? 1 : -1;
}

/* Fills what `keys` keys from `key` on need. */
static void
ring_prepare(const struct attn_attention *a, int64_t batch, const struct row_block *rows, struct vector_ring *g, int64_t key, int keys, REAL *staging)
{
    if (ring_edge(g, 0, rows->count - 1, key, keys) >= 0)
        return;
    int64_t first = (key - (rows->count - 1) + ATTN_BLOCK) / ATTN_BLOCK - 1, last = (key + keys - 1) / ATTN_BLOCK; /* rounded down: key >= 0 */
    for (int64_t n = first; n <= last; n++)
        if (g->chunk[n & (g->chunks - 1)] != n)
            ring_fill(a, batch, rows, g, n, staging);
}

/* x[k] lane l = x[k + l], or, `back`, x[k + LANES - 1 - l], for k = 0 ... ATTN_SLANT - 1 of ATTN_SLANT + LANES - 1 vectors: a bit of l at a time. */
ATTN_INLINE void
slant(vreal *x, bool back)
{
    static const uint64_t bit[4] = {0xaaaa, 0xcccc, 0xf0f0, 0xff00};
    ATTN_UNROLL
    for (int i = 3; i >= 0; i--) {
        if (1 << i >= LANES)
            continue;
        vint ahead = v_lane_bits(back ? ~bit[i] : bit[i]);
        ATTN_UNROLL
        for (int k = 0; k < ATTN_SLANT + (1 << i) - 1; k++)
            x[k] = v_select(ahead, x[k + (1 << i)], x[k]);
    }
}

/* Products of vector i of a segment with what keys c ... c + ATTN_SLANT - 1 of it meet; key: the segment's first. */
ATTN_INLINE void
ring_take(const struct vector_ring *g, const struct segment *s, int i, int64_t key, int c, vreal *x)
{
    int base = s->lane / (GROUP_VECTORS * LANES) * (GROUP_VECTORS * LANES);
    const REAL *from = g->products + base * g->chunks * ATTN_BLOCK + (s->lane - base) + i * LANES;
    int64_t first = key + c - (s->lane + i * LANES) - (LANES - 1);
    for (int k = 0; k < ATTN_SLANT + LANES - 1; k++)
        x[k] = v_load(from + ((first + k) & (g->chunks * ATTN_BLOCK - 1)) * s->width);
    slant(x, true);
}

/* The last lane of a segment that is a row. */
ATTN_INLINE int
last_lane(const struct row_block *rows, const struct segment *s)
{
    return (int)attn_min(rows->count, s->lane + s->nv * LANES) - 1;
}

/* Adds the products to the scores of a segment, [key][width], saturating; or, with weights, weight times product to their gradients. */
static void
ring_add(const struct vector_ring *g, const struct row_block *rows, const struct segment *s, int64_t key, const REAL *weights, REAL *to)
{
    int edge = ring_edge(g, s->lane, last_lane(rows, s), key, s->keys);
    for (int i = 0; i < s->nv; i++)
        for (int c = 0; c < s->keys; c += ATTN_SLANT) {
            vreal x[ATTN_SLANT + VECTOR_BYTES / sizeof(REAL)];
            if (edge < 0)
                ring_take(g, s, i, key, c, x);
            for (int k = 0; edge >= 0 && k < ATTN_SLANT; k++)
                x[k] = v_load(g->edge + edge * ATTN_BLOCK + s->lane + i * LANES);
            for (int k = 0; k < ATTN_SLANT && c + k < s->keys; k++) {
                int64_t at = (c + k) * s->width + i * LANES;
                if (weights)
                    v_store(to + at, v_load(to + at) + v_load(weights + at) * x[k]);
                else
                    v_store(to + at, saturating_sum(v_load(to + at), x[k]));
            }
        }
}

/* The rows of a block, with a bias for its head or without, as [group][E][width] and scaled. Returns the sum of the absolute values. */
static REAL
vectors_query(const struct attn_attention *a, const struct attn_tensor *bias, int64_t batch, const struct row_block *rows, REAL *staging, REAL *to)
{
    int64_t n = a->head_dim, pitch = (n + LANES - 1) / LANES * LANES;
    const char *data = scalar_at(a, &a->query, batch, 0);
    const REAL *row[ATTN_BLOCK];
    for (int lane = 0; lane < rows->count; lane++) {
        REAL *at = staging + lane * pitch;
        row[lane] = at;
        load_row(at, data + rows->head[lane] * a->query.head + rows->index[lane] * a->query.row, a->query.column, n, a->query.type, a->query.swapped);
        add_bias(a, bias, batch, rows->head[lane], n, at);
    }
    return rows_pack(rows, row, n, query_factor_of(a), to);
}

/* Called when a row block's query has been loaded: the other queries, and an empty ring. */
static void
vectors_start(const struct attn_attention *a, int64_t batch, struct row_block *rows, REAL *staging)
{
    struct vectors_place *d = rows->vectors;
    const struct attn_relative *relative = &a->relative;
    d->key.table = &relative->key;
    d->key.bias = &relative->position_bias;
    d->key.n = a->head_dim;
    d->key.query = rows->query;
    d->key.query_abs = rows->query_abs;
    if (relative->content_bias.data || relative->position_bias.data) {
        d->key.query_abs = vectors_query(a, &relative->position_bias, batch, rows, staging, d->query);
        rows->query_abs = vectors_query(a, &relative->content_bias, batch, rows, staging, rows->query);
        d->key.query = d->query;
    }
    ring_start(a, batch, rows, &d->key, staging);
}

/* All keys of a segment meet one edge: one row, the sums of its columns. */
static void
band_edge(const struct segment *s, const REAL *weights, struct vector_band *band)
{
    for (int i = 0; i < s->nv; i++) {
        vreal sum = {0};
        for (int c = 0; c < s->keys; c++)
            sum += v_load(weights + c * s->width + i * LANES);
        v_store(band->tile + i * LANES, sum);
    }
    band->rows = 1;
    band->low = 0;
}

/* Rows from ... end - 1 of a band are added to row `to`. */
ATTN_INLINE void
band_fold(struct vector_band *band, int from, int end, int to)
{
    for (int i = 0; i < band->lanes && from < end; i += LANES) {
        vreal sum = v_load(band->tile + to * band->width + i);
        for (int r = from; r < end; r++)
            sum += v_load(band->tile + r * band->width + i);
        v_store(band->tile + to * band->width + i, sum);
    }
}

/* Weights of a segment, [key][its width], by vector; key: the segment's first. Row r and lane l of it are key r - (lanes - 1) + l. Sums of 64 terms at
 * the most. width: what its rows shall lie apart. */
static struct vector_band
band_make(const struct vector_ring *g, const struct row_block *rows, const struct segment *s, int64_t key, const REAL *weights, int64_t width, REAL *tile)
{
    int lanes = s->nv * LANES, whole = s->keys + lanes - 1, edge = ring_edge(g, s->lane, last_lane(rows, s), key, s->keys);
    int64_t first = g->origin + key - s->lane - (lanes - 1);
    struct vector_band band = {.tile = tile, .width = width, .lanes = lanes, .whole = whole};
    if (edge >= 0) {
        band_edge(s, weights, &band);
        band.vector = edge ? g->vectors - 1 : 0;
        return band;
    }
    for (int i = 0; i < s->nv; i++)
        for (int r = 0; r < whole; r += ATTN_SLANT) {
            vreal x[ATTN_SLANT + VECTOR_BYTES / sizeof(REAL)];
            for (int k = 0; k < ATTN_SLANT + LANES - 1; k++) {
                int c = r + k - (lanes - 1) + i * LANES;
                x[k] = c >= 0 && c < s->keys ? v_load(weights + c * s->width + i * LANES) : (vreal){0};
            }
            slant(x, false);
            for (int k = 0; k < ATTN_SLANT; k++)
                v_store(tile + (r + k) * width + i * LANES, x[k]);
        }
    int low = (int)attn_min(attn_max(-first, 0), whole), high = (int)attn_max(low, attn_min(whole, g->vectors - first));
    if (g->clips) {
        band_fold(&band, 0, low, low);
        band_fold(&band, high, whole, high - 1);
    }
    band.low = low;
    band.rows = high - low;
    band.vector = first + low;
    band.tile += low * width;
    return band;
}

/* Which lanes of the segment, from bit 0, meet each row of its band in a visible place. seen: word = key, bit = lane of the row block; NULL: all. */
static void
band_seen(const struct vector_band *band, const struct segment *s, const uint64_t *seen, bool clips, uint64_t *to)
{
    static const uint64_t bit[6] = {0xaaaaaaaaaaaaaaaa, 0xcccccccccccccccc, 0xf0f0f0f0f0f0f0f0, 0xff00ff00ff00ff00, 0xffff0000ffff0000, 0xffffffff00000000};
    uint64_t x[4 * ATTN_BLOCK] = {0}, lanes = attn_bit_range(0, band->lanes);
    for (int c = 0; c < s->keys; c++)
        x[c + band->lanes - 1] = (seen ? seen[s->from + c] >> s->lane : ~(uint64_t)0) & lanes;
    for (int i = 5; i >= 0; i--)
        for (int k = 0; k < 2 * ATTN_BLOCK + (1 << i) - 1; k++)
            x[k] = (x[k] & ~bit[i]) | (x[k + (1 << i)] & bit[i]);
    for (int r = 0; r < band->rows; r++)
        to[r] = x[band->low + r];
    for (int r = 0; r < band->whole && clips; r++)
        to[attn_max(0, attn_min(r - band->low, band->rows - 1))] |= x[r];
}

/* to: [group][n][width] of the row block += the sums over vectors of band times vector. Two vectors of lanes at a time leave out half of the zeros. */
static void
band_output(const struct attn_attention *a, int64_t batch, const struct row_block *rows, const struct vector_ring *g, const struct attn_tensor *table,
            const struct segment *s, const uint64_t *seen, const struct vector_band *band, int64_t n, REAL *staging, REAL *to)
{
    int base = s->lane / (GROUP_VECTORS * LANES) * (GROUP_VECTORS * LANES), width = (int)band->width;
    int lanes = band->lanes;
    REAL *output = to + base * n + (s->lane - base);
    vreal one[GROUP_VECTORS];
    for (int i = 0; i < GROUP_VECTORS; i++)
        one[i] = v_splat(1);
    for (int from = 0; from < band->rows; from += ATTN_BLOCK) {
        int end = (int)attn_min(band->rows, from + ATTN_BLOCK);
        int64_t row;
        enum attn_finite state = ATTN_UNKNOWN;
        const REAL *vector = vectors_rows(a, table, batch, rows, band->vector + from, end - from, n, staging, &row);
        if (!block_is_finite(vector, row, end - from, n, &state)) {
            uint64_t visible[2 * ATTN_BLOCK];
            band_seen(band, s, seen, g->clips, visible);
            for (int i = 0; i < s->nv; i++)
                output_selected(1, band->tile + from * width + i * LANES, width, visible + from, i * LANES, vector, row, end - from, one, n,
                                output + i * LANES);
            continue;
        }
        int step = s->nv > 2 ? 2 : s->nv;
        for (int i = 0; i < s->nv; i += step) {
            int lane = i * LANES, first = lanes - lane - step * LANES - band->low, last = lanes - 1 - lane + s->keys - 1 - band->low;
            first = (int)attn_max(attn_min(first, band->rows - 1), from);
            last = (int)attn_min(attn_max(last, 0), end - 1);
            if (first <= last)
                group_output(step, band->tile + first * width + lane, width, vector + (first - from) * row, row, last - first + 1, one, n, output + lane);
        }
    }
}
