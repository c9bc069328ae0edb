/* attention_rows.inc.h: a row block: up to 64 query rows of one key/value head, loaded, and what each of them may see.
 *
 * Rows are positions of one head, or (L < 64, several heads share the keys) pairs (position, head), position-major. A lane is a row. */
#ifndef ATTN_ROWS_NAMES
#define ATTN_ROWS_NAMES
#define row_block SUFFIX(row_block)
#define rows_bytes SUFFIX(rows_bytes)
#define rows_place SUFFIX(rows_place)
#define rows_describe SUFFIX(rows_describe)
#define rows_tiles SUFFIX(rows_tiles)
#define rows_ranges SUFFIX(rows_ranges)
#define row_in SUFFIX(row_in)
#define place_of SUFFIX(place_of)
#define rows_start SUFFIX(rows_start)
#define row_sink SUFFIX(row_sink)
#define in_log2_units SUFFIX(in_log2_units)
#define group_vectors SUFFIX(group_vectors)
#define transpose_in SUFFIX(transpose_in)
#define transpose_by SUFFIX(transpose_by)
#define transpose_rows SUFFIX(transpose_rows)
#define rows_pack SUFFIX(rows_pack)
#define transpose_out SUFFIX(transpose_out)
#define rows_out SUFFIX(rows_out)
#define row_factors SUFFIX(row_factors)
#define scalar_at SUFFIX(scalar_at)
#define scales_scores SUFFIX(scales_scores)
#define query_factor SUFFIX(query_factor)
#define query_factor_of SUFFIX(query_factor_of)
#define scaled_query SUFFIX(scaled_query)
#define score_factor SUFFIX(score_factor)
#define vectors_place SUFFIX(vectors_place)

/* How the rows of one (batch element, key/value head) are cut into row blocks. */
struct attn_row_layout {
    int64_t positions;  /* query rows a head: L, or len(rows) */
    int64_t blocks;     /* row blocks of this key/value head */
    bool paired;        /* rows are (position, head) pairs */
};

static inline struct attn_row_layout
attn_row_layout(const struct attn_attention *a, int64_t positions)
{
    struct attn_row_layout layout = {.positions = positions, .paired = positions < ATTN_BLOCK && a->group > 1 && !a->relative.key.data};
    layout.blocks = layout.paired ? (positions * a->group + ATTN_BLOCK - 1) / ATTN_BLOCK : (positions + ATTN_BLOCK - 1) / ATTN_BLOCK * a->group;
    return layout;
}

/* Valid queries and keys of a batch element; query i stands at position i + offset. */
struct attn_place {
    int64_t queries, keys, offset;
};

/* Keys in a key block. */
static inline int64_t
attn_block_keys(const struct attn_attention *a)
{
    return a->call.debug_blocks ? a->call.debug_blocks : ATTN_BLOCK;
}

static inline size_t
attn_round_up(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}
#endif

struct vectors_place;

struct row_block {
    int count;                            /* live lanes: those that are computed and stored */
    uint64_t valid;                       /* bit = lane: not past the query's length */
    int64_t first[ATTN_BLOCK], end[ATTN_BLOCK]; /* keys first <= j < end are visible so far as ranges tell */
    int64_t any_first, any_end;           /* some lane sees something only within these */
    int64_t all_first, all_end;           /* every lane sees everything within these */
    int64_t index[ATTN_BLOCK];            /* query row i, in 0 ... L - 1 */
    int64_t head[ATTN_BLOCK];             /* query head */
    int64_t position[ATTN_BLOCK];         /* i + offset */
    int64_t out_row[ATTN_BLOCK];          /* row of the output */
    struct attn_tile_row tiles;           /* of a block mask, */
    bool consecutive;                     /* lanes are rows of one head, one after another */
    bool one_tile_row;                    /* if all lanes lie in one tile row of it: lane = row of the tile */
    REAL slope[ATTN_BLOCK];               /* ALiBi slope times log2(e) */
    REAL query_abs;                       /* sum of |scaled query|; inf or NaN where there are such */
    REAL top[ATTN_BLOCK] __attribute__((aligned(64)));  /* running maximum, log2 units */
    REAL sum[ATTN_BLOCK] __attribute__((aligned(64)));  /* running sum of 2^(score - top) */
    REAL *query;                          /* [group][E][width], scaled by scale log2(e) */
    REAL *output;                         /* [group][D][width] */
    struct vectors_place *vectors;      /* positions_vectors.inc.h; not set without vectors of distances */
};

/* Vectors of the group that starts at lane `lane` of `count`: the fewest that hold the rest. */
ATTN_INLINE int
group_vectors(int count, int lane)
{
    int rest = count - lane;
    return rest > 2 * LANES && GROUP_VECTORS == 4 ? 4 : rest > LANES ? 2 : 1;
}

ATTN_INLINE size_t
rows_bytes(int64_t head_dim, int64_t value_dim)
{
    return attn_round_up(sizeof(struct row_block)) + ((size_t)head_dim + (size_t)value_dim) * ATTN_BLOCK * sizeof(REAL);
}

ATTN_INLINE struct row_block *
rows_place(char *memory, int64_t head_dim)
{
    struct row_block *rows = (struct row_block *)memory;
    rows->query = (REAL *)(memory + attn_round_up(sizeof(struct row_block)));
    rows->output = rows->query + head_dim * ATTN_BLOCK;
    return rows;
}

/* A native int64 or REAL that belongs to batch element `batch` (and head): lengths, offsets, slopes, sinks. */
ATTN_INLINE const char *
scalar_at(const struct attn_attention *a, const struct attn_tensor *t, int64_t batch, int64_t head)
{
    return t->data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, t->batch) + head * t->head;
}

/* Where scale log2(e) is so small that query times it would lose bits below the normal range, it multiplies the scores instead. */
ATTN_INLINE bool
scales_scores(const struct attn_attention *a)
{
    return fabs(a->scale) < (REAL_BITS == 32 ? 0x1p-60 : 0x1p-500);
}

/* scale log2(e) as a sum of two REALs: rounded to one it would be off by the same u in every score, which NumPy's formula is not. */
struct query_factor {
    REAL high, low;
};

static struct query_factor
query_factor_of(const struct attn_attention *a)
{
#if REAL_BITS == 32
    double factor = a->scale * LOG2E; /* enough for two floats, and without x87, whose rounding is still the caller's */
#else
    long double factor = (long double)a->scale * LOG2E_LONG;
#endif
    REAL high = (REAL)factor;
    if (scales_scores(a))
        return (struct query_factor){1, 0};
    return (struct query_factor){high, high - high == 0 ? (REAL)(factor - high) : 0};
}

ATTN_INLINE vreal
scaled_query(vreal query, struct query_factor factor)
{
    return query * v_splat(factor.high) + query * v_splat(factor.low);
}

ATTN_INLINE REAL
score_factor(const struct attn_attention *a)
{
    return scales_scores(a) ? (REAL)(a->scale * LOG2E) : 1;
}

/* to[c][lane] = row[lane][c] for `lanes` rows of n REALs; lanes up to `width` get 0. Returns sums of the absolute values written. Unscaled, inf stays inf. */
ATTN_INLINE vreal
transpose_by(REAL *to, int64_t width, const REAL *const *row, int lanes, int64_t n, struct query_factor factor, bool scaled)
{
    vreal sum[4] = {{0}, {0}, {0}, {0}};
    for (int lane = 0; lane < width; lane += LANES)
        for (int64_t c = 0; c < n; c += LANES) {
            vreal block[VECTOR_BYTES / sizeof(REAL)];
            for (int i = 0; i < LANES; i++) {
                if (lane + i >= lanes)
                    block[i] = (vreal){0};
                else if (c + LANES <= n)
                    block[i] = v_loadu(row[lane + i] + c);
                else {
                    REAL part[VECTOR_BYTES / sizeof(REAL)] = {0};
                    memcpy(part, row[lane + i] + c, (size_t)(n - c) * sizeof(REAL));
                    block[i] = v_loadu(part);
                }
                if (scaled)
                    block[i] = scaled_query(block[i], factor);
                sum[i % 4] += v_abs(block[i]);
            }
            v_transpose(block);
            for (int i = 0; i < LANES && c + i < n; i++)
                v_store(to + (c + i) * width + lane, block[i]);
        }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* The query, scaled. */
ATTN_NOINLINE vreal
transpose_in(REAL *to, int64_t width, const REAL *const *row, int lanes, int64_t n, struct query_factor factor)
{
    return transpose_by(to, width, row, lanes, n, factor, true);
}

/* Other rows, as they are. */
ATTN_NOINLINE void
transpose_rows(REAL *to, int64_t width, const REAL *const *row, int lanes, int64_t n)
{
    transpose_by(to, width, row, lanes, n, (struct query_factor){1, 0}, false);
}

/* row[lane][c] = from[c][lane] factor[lane] for `lanes` rows of a group. */
ATTN_NOINLINE void
transpose_out(REAL *const *row, const REAL *from, int64_t width, int lanes, int64_t n, const REAL *factor)
{
    for (int lane = 0; lane < lanes; lane += LANES) {
        vreal scale = v_loadu(factor + lane);
        for (int64_t c = 0; c < n; c += LANES) {
            vreal block[VECTOR_BYTES / sizeof(REAL)];
            for (int i = 0; i < LANES; i++) {
                block[i] = c + i < n ? v_load(from + (c + i) * width + lane) : (vreal){0};
                block[i] *= scale;
            }
            v_transpose(block);
            for (int i = 0; i < LANES && lane + i < lanes; i++)
                if (c + LANES <= n)
                    v_storeu(row[lane + i] + c, block[i]);
                else
                    memcpy(row[lane + i] + c, &block[i], (size_t)(n - c) * sizeof(REAL));
        }
    }
}

/* row[lane][c] = element c of a row block's `lane`, times factor[lane]. from: [group][at least n][width], a lane's part of it `pitch` REALs long. */
static void
rows_out(const struct row_block *rows, REAL *const *row, const REAL *from, int64_t pitch, int64_t n, const REAL *factor)
{
    for (int lane = 0; lane < rows->count;) {
        int width = group_vectors(rows->count, lane) * LANES;
        transpose_out(row + lane, from + lane * pitch, width, (int)attn_min(width, rows->count - lane), n, factor + lane);
        lane += width;
    }
}

/* What each row is multiplied by at the end: whole / sum, and 0 where nothing was seen. */
static void
row_factors(const struct row_block *rows, REAL whole, REAL *factor)
{
    for (int lane = 0; lane < ATTN_BLOCK; lane += LANES) {
        vreal sum = v_load(rows->sum + lane);
        v_storeu(factor + lane, v_select(sum == (vreal){0}, (vreal){0}, v_splat(whole) / sum));
    }
}

static struct attn_place
place_of(const struct attn_attention *a, int64_t batch)
{
    struct attn_place place = {a->query_length, a->key_length, 0};
    if (a->query_lengths.data)
        place.queries = *(const int64_t *)scalar_at(a, &a->query_lengths, batch, 0);
    if (a->kv_lengths.data)
        place.keys = *(const int64_t *)scalar_at(a, &a->kv_lengths, batch, 0);
    place.offset = a->causal_offset.data ? *(const int64_t *)scalar_at(a, &a->causal_offset, batch, 0) : place.keys - place.queries;
    return place;
}

/* Which keys each lane sees, by position alone: causal, window and lengths are one interval. */
static void
rows_ranges(const struct attn_attention *a, int64_t batch, struct row_block *rows)
{
    const struct attn_place place = place_of(a, batch);
    int64_t queries = place.queries, keys = place.keys, offset = place.offset;
    rows->valid = 0;
    rows->any_first = keys;
    rows->any_end = 0;
    rows->all_first = 0;
    rows->all_end = keys;
    for (int lane = 0; lane < rows->count; lane++) {
        int64_t position = rows->index[lane] + offset, first = 0, end = keys;
        if (a->is_causal)
            end = attn_min(end, position + 1);
        if (a->window_left >= 0)
            first = attn_max(first, position - a->window_left);
        if (a->window_right >= 0 && a->window_right < keys - position)
            end = attn_min(end, position + a->window_right + 1);
        if (rows->index[lane] >= queries || end <= first)
            first = end = 0;
        rows->valid |= (uint64_t)(rows->index[lane] < queries) << lane;
        rows->position[lane] = position;
        rows->first[lane] = first;
        rows->end[lane] = end;
        if (first < end) {
            rows->any_first = attn_min(rows->any_first, first);
            rows->any_end = attn_max(rows->any_end, end);
        }
        rows->all_first = attn_max(rows->all_first, first);
        rows->all_end = attn_min(rows->all_end, end);
    }
}

/* Where row i of a head of an operand begins, in a batch element. */
ATTN_INLINE const char *
row_in(const struct attn_attention *a, const struct attn_tensor *t, int64_t batch, int64_t head, int64_t i)
{
    return scalar_at(a, t, batch, head) + i * t->row;
}

/* x log2(e); what is finite stays finite. */
ATTN_INLINE REAL
in_log2_units(REAL x)
{
    double y = (double)x * LOG2E, most = (double)REAL_MAX;
    return x - x != 0 ? x : y > most ? REAL_MAX : y < -most ? -REAL_MAX : (REAL)y;
}

/* The tile row of a row block, where all its rows lie in one; else only how far all their tile rows reach. Ranges shrink to that. */
static void
rows_tiles(const struct attn_attention *a, bool one_tile_row, int64_t batch, struct row_block *rows)
{
    int64_t first = INT64_MAX, end = 0;
    rows->one_tile_row = one_tile_row;
    for (int lane = 0; lane < (one_tile_row ? attn_min(rows->count, 1) : rows->count); lane++) {
        rows->tiles = attn_tile_row(a, batch, rows->head[lane], rows->index[lane]);
        if (rows->tiles.n > 0) {
            first = attn_min(first, rows->tiles.index[0] * (int64_t)ATTN_BLOCK);
            end = attn_max(end, (rows->tiles.index[rows->tiles.n - 1] + 1) * (int64_t)ATTN_BLOCK);
        }
    }
    if (end > 0)
        rows->any_first = attn_max(rows->any_first, first);
    rows->any_end = attn_min(rows->any_end, end);
}

/* Which rows row block `block` of (batch, key/value head) holds and what they may see. */
static void
rows_describe(const struct attn_attention *a, struct attn_row_layout layout, int64_t batch, int64_t kv_head, int64_t block, struct row_block *rows)
{
    int64_t first = layout.paired ? block * ATTN_BLOCK : block / a->group * ATTN_BLOCK;
    int64_t last = layout.paired ? layout.positions * a->group : layout.positions;
    int64_t position = layout.paired ? first / a->group : first, head = layout.paired ? first % a->group : block % a->group;
    rows->count = (int)attn_min(ATTN_BLOCK, last - first);
    for (int lane = 0; lane < rows->count; lane++) {
        rows->head[lane] = kv_head * a->group + head;
        rows->out_row[lane] = position;
        rows->index[lane] = a->rows.data ? *(const int64_t *)(a->rows.data + position * a->rows.row) : position;
        if (!layout.paired || ++head == a->group) {
            position++;
            head = layout.paired ? 0 : head;
        }
    }
    if (a->alibi_slopes.data)
        for (int lane = 0; lane < rows->count; lane++)
            rows->slope[lane] = in_log2_units(*(const REAL *)scalar_at(a, &a->alibi_slopes, batch, rows->head[lane]));
    rows_ranges(a, batch, rows);
    rows->consecutive = !layout.paired && !a->rows.data;
    rows->one_tile_row = false;
    if (a->block_mask.indptr)
        rows_tiles(a, rows->consecutive, batch, rows);
}

/* to: [group][n][width], the given rows of a block, times `factor`. Returns the sum of the absolute values written. */
static REAL
rows_pack(const struct row_block *rows, const REAL *const *row, int64_t n, struct query_factor factor, REAL *to)
{
    vreal sum = {0};
    for (int lane = 0; lane < rows->count;) {
        int width = group_vectors(rows->count, lane) * LANES;
        sum += transpose_in(to + lane * n, width, row + lane, rows->count - lane, n, factor);
        lane += width;
    }
    return v_sum(sum);
}

/* A sink enters the maximum and the sum, as a key without a value would; rows past the batch element's length have none. */
ATTN_INLINE void
row_sink(const struct attn_attention *a, int64_t batch, const struct row_block *rows, int lane, REAL *top, REAL *sum)
{
    if (a->query_lengths.data && rows->index[lane] >= *(const int64_t *)scalar_at(a, &a->query_lengths, batch, 0))
        return;
    REAL sink = *(const REAL *)scalar_at(a, &a->sinks, batch, rows->head[lane]);
    *top = in_log2_units(sink);
    *sum = sink == -REAL_INFINITY ? 0 : 1;
}

/* Nothing seen yet: no maximum, no sum but the sink's, output 0. */
static void
rows_start(const struct attn_attention *a, int64_t batch, struct row_block *rows, bool with_sink)
{
    for (int lane = 0; lane < ATTN_BLOCK; lane++) {
        rows->top[lane] = -REAL_INFINITY;
        rows->sum[lane] = 0;
        if (with_sink && a->sinks.data && lane < rows->count)
            row_sink(a, batch, rows, lane, &rows->top[lane], &rows->sum[lane]);
    }
    memset(rows->output, 0, (size_t)(a->value_dim * ATTN_BLOCK) * sizeof(REAL));
}
