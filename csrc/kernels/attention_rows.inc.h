/* attention_rows.inc.h: a row block: up to 64 query rows of one key/value head, loaded, and what each of them may see.
 *
 * Rows are positions of one head, or (L < 64, several heads share the keys) pairs (position, head), position-major. A lane is a row. */
#ifndef ATTN_ROWS_NAMES
#define ATTN_ROWS_NAMES
#define row_block SUFFIX(row_block)
#define rows_layout SUFFIX(rows_layout)
#define rows_bytes SUFFIX(rows_bytes)
#define rows_place SUFFIX(rows_place)
#define rows_describe SUFFIX(rows_describe)
#define rows_load SUFFIX(rows_load)
#define rows_ranges SUFFIX(rows_ranges)
#define rows_query SUFFIX(rows_query)
#define rows_start SUFFIX(rows_start)
#define group_vectors SUFFIX(group_vectors)
#define transpose_in SUFFIX(transpose_in)
#define transpose_out SUFFIX(transpose_out)
#define scalar_at SUFFIX(scalar_at)

/* How the rows of one (batch element, key/value head) are cut into row blocks. */
struct attn_row_layout {
    int64_t positions;  /* query rows a head: L, or len(rows) */
    int64_t blocks;     /* row blocks of this key/value head */
    bool paired;        /* rows are (position, head) pairs */
};

static inline struct attn_row_layout
attn_row_layout(const struct attn_attention *a, int64_t positions)
{
    struct attn_row_layout layout = {.positions = positions, .paired = positions < ATTN_BLOCK && a->group > 1};
    layout.blocks = layout.paired ? (positions * a->group + ATTN_BLOCK - 1) / ATTN_BLOCK : (positions + ATTN_BLOCK - 1) / ATTN_BLOCK * a->group;
    return layout;
}

static inline size_t
attn_round_up(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}
#endif

struct row_block {
    int count;                            /* live lanes: those that are computed and stored */
    int64_t first[ATTN_BLOCK], end[ATTN_BLOCK]; /* keys first <= j < end are visible so far as ranges tell */
    int64_t any_first, any_end;           /* some lane sees something only within these */
    int64_t all_first, all_end;           /* every lane sees everything within these */
    int64_t index[ATTN_BLOCK];            /* query row i, in 0 ... L - 1 */
    int64_t head[ATTN_BLOCK];             /* query head */
    int64_t position[ATTN_BLOCK];         /* i + offset */
    int64_t out_row[ATTN_BLOCK];          /* row of the output */
    REAL slope[ATTN_BLOCK];               /* ALiBi slope times log2(e) */
    REAL query_max;                       /* largest |scaled query|; inf or NaN included */
    REAL top[ATTN_BLOCK] __attribute__((aligned(64)));  /* running maximum, log2 units */
    REAL sum[ATTN_BLOCK] __attribute__((aligned(64)));  /* running sum of 2^(score - top) */
    REAL *query;                          /* [group][E][width], scaled by scale log2(e) */
    REAL *output;                         /* [group][D][width] */
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

/* to[c][lane] = from[lane][c] times `factor`, for `lanes` rows of n REALs that lie `pitch` apart; lanes up to `width` get 0. */
ATTN_NOINLINE void
transpose_in(REAL *to, int64_t width, const REAL *from, int64_t pitch, int lanes, int64_t n, double factor)
{
    vreal scale = v_splat((REAL)factor);
    for (int lane = 0; lane < width; lane += LANES)
        for (int64_t c = 0; c < n; c += LANES) {
            vreal block[VECTOR_BYTES / sizeof(REAL)];
            for (int i = 0; i < LANES; i++) {
                const REAL *row = from + (lane + i) * pitch + c;
                if (lane + i >= lanes)
                    block[i] = (vreal){0};
                else if (c + LANES <= n)
                    block[i] = v_loadu(row) * scale;
                else {
                    REAL part[VECTOR_BYTES / sizeof(REAL)] = {0};
                    memcpy(part, row, (size_t)(n - c) * sizeof(REAL));
                    block[i] = v_loadu(part) * scale;
                }
            }
            v_transpose(block);
            for (int i = 0; i < LANES && c + i < n; i++)
                v_store(to + (c + i) * width + lane, block[i]);
        }
}

/* to[lane][c] = from[c][lane] for the rows of a group; to's rows are `pitch` apart and hold n rounded up to whole vectors. */
ATTN_NOINLINE void
transpose_out(REAL *to, int64_t pitch, const REAL *from, int64_t width, int64_t n)
{
    for (int lane = 0; lane < width; lane += LANES)
        for (int64_t c = 0; c < n; c += LANES) {
            vreal block[VECTOR_BYTES / sizeof(REAL)];
            for (int i = 0; i < LANES; i++)
                block[i] = c + i < n ? v_load(from + (c + i) * width + lane) : (vreal){0};
            v_transpose(block);
            for (int i = 0; i < LANES; i++)
                v_storeu(to + (lane + i) * pitch + c, block[i]);
        }
}

/* Which keys each lane sees, by position alone: causal, window and lengths are one interval. */
static void
rows_ranges(const struct attn_attention *a, int64_t batch, struct row_block *rows)
{
    int64_t queries = a->query_lengths.data ? *(const int64_t *)scalar_at(a, &a->query_lengths, batch, 0) : a->query_length;
    int64_t keys = a->kv_lengths.data ? *(const int64_t *)scalar_at(a, &a->kv_lengths, batch, 0) : a->key_length;
    int64_t offset = a->causal_offset.data ? *(const int64_t *)scalar_at(a, &a->causal_offset, batch, 0) : keys - queries;
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

/* Where query row (head, i) of a batch element begins. */
ATTN_INLINE const char *
rows_query(const struct attn_attention *a, int64_t batch, int64_t head, int64_t i)
{
    return scalar_at(a, &a->query, batch, head) + i * a->query.row;
}

/* Which rows row block `block` of (batch, key/value head) holds and what they may see. */
static void
rows_describe(const struct attn_attention *a, struct attn_row_layout layout, int64_t batch, int64_t kv_head, int64_t block, struct row_block *rows)
{
    int64_t first = layout.paired ? block * ATTN_BLOCK : block / a->group * ATTN_BLOCK;
    int64_t last = layout.paired ? layout.positions * a->group : layout.positions;
    rows->count = (int)attn_min(ATTN_BLOCK, last - first);
    for (int lane = 0; lane < rows->count; lane++) {
        int64_t r = first + lane;
        int64_t position = layout.paired ? r / a->group : r;
        rows->head[lane] = kv_head * a->group + (layout.paired ? r % a->group : block % a->group);
        rows->out_row[lane] = position;
        rows->index[lane] = a->rows.data ? *(const int64_t *)(a->rows.data + position * a->rows.row) : position;
        rows->slope[lane] = a->alibi_slopes.data ? *(const REAL *)scalar_at(a, &a->alibi_slopes, batch, rows->head[lane]) * (REAL)LOG2E : 0;
    }
    rows_ranges(a, batch, rows);
}

/* Describes and loads a row block. staging: 64 rows of E REALs rounded up to whole vectors. */
static void
rows_load(const struct attn_attention *a, struct attn_row_layout layout, int64_t batch, int64_t kv_head, int64_t block, REAL *staging, struct row_block *rows)
{
    int64_t pitch = (a->head_dim + LANES - 1) / LANES * LANES;
    rows_describe(a, layout, batch, kv_head, block, rows);
    for (int lane = 0; lane < rows->count; lane++)
        load_row(staging + lane * pitch, rows_query(a, batch, rows->head[lane], rows->index[lane]), a->query.column, a->head_dim, a->query.type, a->query.swapped);
    vreal largest = {0}, tail = {0};
    for (int lane = 0; lane < ATTN_BLOCK && lane < rows->count;) {
        int nv = group_vectors(rows->count, lane), width = nv * LANES;
        REAL *to = rows->query + lane * a->head_dim;
        transpose_in(to, width, staging + lane * pitch, pitch, rows->count - lane, a->head_dim, a->scale * LOG2E);
        for (int64_t i = 0; i < a->head_dim * width; i += LANES) {
            vreal x = v_abs(v_load(to + i));
            largest = v_max(largest, x);
            tail += x;
        }
        lane += width;
    }
    REAL total = v_sum(tail);
    rows->query_max = total - total == 0 ? v_highest(largest) : REAL_INFINITY;
}

/* Nothing seen yet: no maximum, no sum but the sink's, output 0. */
static void
rows_start(const struct attn_attention *a, int64_t batch, struct row_block *rows, int64_t value_dim, bool with_sink)
{
    for (int lane = 0; lane < ATTN_BLOCK; lane++) {
        rows->top[lane] = -REAL_INFINITY;
        rows->sum[lane] = 0;
        if (with_sink && a->sinks.data && lane < rows->count) {
            REAL sink = *(const REAL *)scalar_at(a, &a->sinks, batch, rows->head[lane]);
            rows->top[lane] = sink - sink == 0 ? fmin(fmax(sink * LOG2E, -REAL_MAX), REAL_MAX) : sink;
            rows->sum[lane] = sink == -REAL_INFINITY ? 0 : 1;
        }
    }
    memset(rows->output, 0, (size_t)(value_dim * ATTN_BLOCK) * sizeof(REAL));
}
