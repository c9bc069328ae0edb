/* softmax_tile.inc.h: a call of softmax cut into tiles, neighbouring rows that are worked on together, and a tile to and from scratch. */
#ifndef ATTN_SOFTMAX_TILE_NAMES
#define ATTN_SOFTMAX_TILE_NAMES
#define softmax_work SUFFIX(softmax_work)
#define softmax_tile SUFFIX(softmax_tile)
#define softmax_describe SUFFIX(softmax_describe)
#define softmax_is_across SUFFIX(softmax_is_across)
#define softmax_cut_lines SUFFIX(softmax_cut_lines)
#define softmax_tile_at SUFFIX(softmax_tile_at)
#define softmax_load SUFFIX(softmax_load)
#define softmax_store SUFFIX(softmax_store)
#define softmax_put SUFFIX(softmax_put)

enum {
    SOFTMAX_RESIDENT = 128 << 10,    /* bytes of the longest row that is kept while it is worked on */
    SOFTMAX_BLOCK = 64 << 10,        /* bytes of a longer row looked at together */
    SOFTMAX_PARTS = 256,             /* parts of a long row at most: every task of the second phase merges them all */
    SOFTMAX_TILE = 1 << 20,          /* bytes of rows brought into scratch together where neighbouring rows share cache lines */
    SOFTMAX_TASK = 1 << 16,          /* elements of a task */
    SOFTMAX_GROUP = 8 << 10,         /* bytes of rows whose sums are finished as one vector: with as many asked for meanwhile, all in L1 */
    SOFTMAX_LINE = 64,               /* bytes of a cache line */
    SOFTMAX_MOST_ROWS = 4 * SOFTMAX_LINE / 4 /* rows of a tile */
};
#define SOFTMAX_STREAM ((int64_t)8 << 20) /* bytes of y from which stores go past the caches */
#endif

struct softmax_work {
    const struct attn_softmax *a;
    struct attn_axes outer, reduced;
    int64_t rows, n;
    int64_t line, run;          /* lengths of the innermost outer and reduced axes: rows, elements, that are one stride apart */
    int64_t row_stride[ATTN_WALKED], stride[ATTN_WALKED];
    bool direct_x, direct_y, direct_grad; /* read or written where it lies */
    int64_t buffers;            /* arrays of a tile in scratch */
    bool stream, is_long;
    int64_t tile_rows, line_tiles, tiles, task_tiles; /* rows that are worked on together; tiles of a line, of all, of a task */
    int64_t shift;              /* rows by which the first tile of a line is shorter, for the others to begin where cache lines of y do */
    int64_t block, part, parts; /* elements; parts of a long row */
    int64_t pitch;              /* REALs between rows in scratch */
};

/* Neighbouring rows: x, keep and y of the first. */
struct softmax_tile {
    int64_t first, rows;
    int64_t offset[ATTN_WALKED];
};

/* Whether the rows lie side by side in an operand, and their elements do not. */
ATTN_INLINE bool
softmax_is_across(const struct softmax_work *w, int operand, enum attn_type type)
{
    int64_t size = attn_type_size(type);
    return w->line > 1 && w->n > 1 && w->row_stride[operand] == size && w->stride[operand] != size;
}

/* There rows of up to four cache lines go together; else as many as are finished together. */
static void
softmax_cut_lines(struct softmax_work *w)
{
    int64_t bytes = w->block * (int64_t)sizeof(REAL) * w->buffers, line_rows = SOFTMAX_LINE / (int64_t)sizeof(REAL), lines = 4;
    w->tile_rows = attn_max(attn_min(SOFTMAX_GROUP / attn_max(bytes, 1), LANES), 1);
    w->shift = 0;
    if (softmax_is_across(w, SOFTMAX_X, w->a->x.type) || softmax_is_across(w, SOFTMAX_Y, w->a->y.type) ||
        (softmax_grad_is_full(w->a) && softmax_is_across(w, SOFTMAX_GRAD, w->a->grad.type))) {
        while (lines > 1 && lines * line_rows * bytes > SOFTMAX_TILE)
            lines /= 2;
        w->tile_rows = lines * line_rows;
        if (w->stream && run_is_direct(&w->a->y))
            w->shift = (int64_t)((uintptr_t)w->a->y.data / sizeof(REAL)) % line_rows;
    }
    w->line_tiles = (w->line + w->shift + w->tile_rows - 1) / w->tile_rows;
    w->tiles = w->rows > 0 ? w->rows / w->line * w->line_tiles : 0;
    w->task_tiles = w->is_long ? 1 : attn_max(SOFTMAX_TASK / attn_max(w->n * w->tile_rows, 1), 1);
}

/* Everything about a call that does not depend on the task. */
static void
softmax_describe(const struct attn_softmax *a, struct softmax_work *w)
{
    w->a = a;
    softmax_outer_axes(a, &w->outer);
    softmax_reduced_axes(a, &w->reduced);
    w->rows = attn_axes_size(&w->outer);
    w->n = attn_axes_size(&w->reduced);
    int last = w->reduced.ndim - 1;
    w->line = w->outer.ndim > 0 ? w->outer.shape[w->outer.ndim - 1] : 1;
    w->run = w->reduced.shape[last];
    for (int o = 0; o < ATTN_WALKED; o++) {
        w->row_stride[o] = w->outer.ndim > 0 ? w->outer.stride[w->outer.ndim - 1][o] : 0;
        w->stride[o] = w->reduced.stride[last][o];
    }
    bool one_run = w->reduced.ndim == 1 && !a->keep.data;
    w->direct_x = one_run && run_is_direct(&a->x) && w->stride[SOFTMAX_X] == (int64_t)sizeof(REAL);
    w->direct_y = one_run && run_is_direct(&a->y) && w->stride[SOFTMAX_Y] == (int64_t)sizeof(REAL);
    w->direct_grad = softmax_grad_is_full(a) && one_run && run_is_direct(&a->grad) && w->stride[SOFTMAX_GRAD] == (int64_t)sizeof(REAL);
    w->buffers = softmax_grad_is_full(a) ? 2 : 1;
    w->stream = w->rows * w->n * (int64_t)sizeof(REAL) >= SOFTMAX_STREAM;
    w->is_long = w->n * (int64_t)sizeof(REAL) > SOFTMAX_RESIDENT;
    w->block = w->is_long ? SOFTMAX_BLOCK / (int64_t)sizeof(REAL) : w->n;
    w->part = attn_max(w->block, (w->n + SOFTMAX_PARTS - 1) / SOFTMAX_PARTS);
    w->parts = w->n > 0 ? (w->n + w->part - 1) / w->part : 1;
    softmax_cut_lines(w);
    w->pitch = (w->block + 2 * LANES - 1) / LANES * LANES; /* not a power of two, or rows would meet in the same cache sets */
}

/* Tile `index`: tiles do not cross lines. */
static void
softmax_tile_at(const struct softmax_work *w, int64_t index, struct softmax_tile *tile)
{
    int64_t begin = index % w->line_tiles * w->tile_rows - w->shift, row = attn_max(begin, 0);
    tile->first = index / w->line_tiles * w->line + row;
    tile->rows = attn_min(begin + w->tile_rows, w->line) - row;
    attn_offsets(&w->outer, tile->first, tile->offset);
}

/* buffer = elements first ... first + n - 1 of the rows of x or grad, `hidden` where not kept. */
static void
softmax_load(const struct softmax_work *w, const struct softmax_tile *tile, int operand, REAL hidden, int64_t first, int64_t n, REAL *buffer)
{
    const struct attn_softmax *a = w->a;
    const struct attn_tensor *from = operand == SOFTMAX_X ? &a->x : &a->grad;
    for (int64_t i = 0, count; i < n; i += count) {
        int64_t offset[ATTN_WALKED];
        attn_offsets(&w->reduced, first + i, offset);
        count = attn_min(n - i, w->run - (first + i) % w->run);
        load_runs(buffer + i, w->pitch, from, from->data + tile->offset[operand] + offset[operand], tile->rows, w->row_stride[operand], count,
                  w->stride[operand]);
        if (a->keep.data)
            hide_runs(buffer + i, w->pitch, a->keep.data + tile->offset[SOFTMAX_KEEP] + offset[SOFTMAX_KEEP], tile->rows, w->row_stride[SOFTMAX_KEEP],
                      count, w->stride[SOFTMAX_KEEP], hidden);
    }
}

/* The way back. What is not kept has come out right by itself, but for rows that became NaN: `spoilt`. */
static void
softmax_store(const struct softmax_work *w, const struct softmax_tile *tile, int64_t first, int64_t n, REAL *buffer, bool spoilt)
{
    const struct attn_softmax *a = w->a;
    for (int64_t i = 0, count; i < n; i += count) {
        int64_t offset[ATTN_WALKED];
        attn_offsets(&w->reduced, first + i, offset);
        count = attn_min(n - i, w->run - (first + i) % w->run);
        if (spoilt && a->keep.data)
            hide_runs(buffer + i, w->pitch, a->keep.data + tile->offset[SOFTMAX_KEEP] + offset[SOFTMAX_KEEP], tile->rows, w->row_stride[SOFTMAX_KEEP],
                      count, w->stride[SOFTMAX_KEEP], a->what == ATTN_LOG_SOFTMAX ? -REAL_INFINITY : 0);
        store_runs(&a->y, a->y.data + tile->offset[SOFTMAX_Y] + offset[SOFTMAX_Y], tile->rows, w->row_stride[SOFTMAX_Y], count, w->stride[SOFTMAX_Y],
                   buffer + i, w->pitch, w->stream);
    }
}

/* logsumexp's results of `rows` rows from row `from` of a tile. */
static void
softmax_put(const struct softmax_work *w, const struct softmax_tile *tile, int64_t from, int64_t rows, const REAL *result)
{
    const struct attn_tensor *y = &w->a->y;
    char *p = y->data + tile->offset[SOFTMAX_Y] + from * w->row_stride[SOFTMAX_Y];
    for (int64_t r = 0; r < rows; r++, p += w->row_stride[SOFTMAX_Y])
        if (run_is_direct(y))
            *(REAL *)p = result[r];
        else
            from_real(p, result[r], y->type, y->swapped);
}
