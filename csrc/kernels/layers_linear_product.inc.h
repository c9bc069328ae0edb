/* layers_linear_product.inc.h: products of matrices, C = A B in blocks, and what is done to each row of C at the end.
 *
 * A has M rows, B has N columns, C terms belong to an element. A task takes a chunk of rows and a group of panels of PANEL columns each. Block after
 * block of at most PRODUCT_DEPTH terms, a panel of B, [terms][PANEL], lies in L2 while the rows of A pass by, read by scalar broadcasts:
 * tile_product, as in attention. Every element is one chain over the terms of a block, started at 0 and added once, whatever the chunk, the group and
 * the tile. */
#ifndef ATTN_PRODUCT_NAMES
#define ATTN_PRODUCT_NAMES
#define product_cut SUFFIX(product_cut)
#define product_tasks SUFFIX(product_tasks)
#define product_scratch SUFFIX(product_scratch)
#define product_tile SUFFIX(product_tile)
#define product_rows_of SUFFIX(product_rows_of)
#define product_rows_by_1 SUFFIX(product_rows_by_1)
#define product_rows_by_2 SUFFIX(product_rows_by_2)
#define product_rows_by_4 SUFFIX(product_rows_by_4)
#define product_rows SUFFIX(product_rows)
#define product_store SUFFIX(product_store)
#define product_finish SUFFIX(product_finish)
#define product_turned SUFFIX(product_turned)
#define product_step SUFFIX(product_step)
#define product_task SUFFIX(product_task)

/* What is asked for meanwhile: the panel after this one, if it lies behind it, and the rows of the result that these sums will go to. */
struct product_ahead {
    const char *panel; /* NULL: nothing */
    int64_t slice;     /* bytes of it for each row */
    char *result;      /* NULL: nothing */
    int64_t result_row;
};

static inline __attribute__((always_inline)) void
product_ask(const struct product_ahead *ahead, int64_t row, int rows)
{
    for (int64_t i = 0; ahead->panel && i < rows * ahead->slice; i += 64)
        __builtin_prefetch(ahead->panel + row * ahead->slice + i, 0, 2);
    for (int r = 0; ahead->result && r < rows; r++)
        for (int i = 0; i < PRODUCT_PANEL_BYTES; i += 64)
            __builtin_prefetch(ahead->result + (row + r) * ahead->result_row + i, 1, 2);
}
#endif

/* How the work is cut; no result depends on it. Rows of A that must be converted serve several panels, panels that must be made more rows. */
static void
product_cut(struct product *p, const struct attn_call *call)
{
    bool made = !p->panels.data || p->panels.type != (REAL_BITS == 32 ? ATTN_FLOAT32 : ATTN_FLOAT64);
    p->step = call->debug_blocks > 0 ? call->debug_blocks : PRODUCT_DEPTH;
    p->panel_count = (p->columns + PANEL - 1) / PANEL;
    int64_t rows = attn_min(384, PRODUCT_CHUNK_BYTES / (attn_max(1, p->depth) * (int64_t)sizeof(REAL)) / 12 * 12); /* whole tiles of 6 and 12 */
    p->chunk = attn_max(1, attn_min(p->rows, attn_max(made ? 192 : 96, rows)));
    int64_t chunks = (p->rows + p->chunk - 1) / p->chunk;
    p->group = product_at(p) ? 1 : attn_max(1, attn_min(4, chunks * p->panel_count / (3 * (int64_t)call->threads)));
}

ATTN_INLINE int64_t
product_tasks(const struct product *p)
{
    return (p->rows + p->chunk - 1) / p->chunk * ((p->panel_count + p->group - 1) / p->group);
}

/* REALs: sums, rows of A, a panel, rows of B on their way there, and three rows: bias, scale, other. */
ATTN_INLINE int64_t
product_scratch(const struct product *p)
{
    return 3 * PANEL + p->step * PANEL + p->chunk * p->group * PANEL + p->step * LANES + p->chunk * p->step;
}

/* sums[r][columns of nv vectors] = or += A[r][t] B[t][the same], for a tile of rows. */
ATTN_INLINE void
product_tile(int rows, int nv, const REAL *a, int64_t a_row, int64_t a_step, const REAL *b, int64_t steps, bool first, REAL *sums)
{
    vreal sum[16][GROUP_VECTORS];
    ATTN_UNROLL
    for (int r = 0; r < rows; r++)
        ATTN_UNROLL
        for (int i = 0; i < nv; i++)
            sum[r][i] = (vreal){0};
    tile_product(sum, rows, nv, a, a_row, a_step, b, PANEL, steps);
    if (!first)
        ATTN_UNROLL
        for (int r = 0; r < rows; r++)
            ATTN_UNROLL
            for (int i = 0; i < nv; i++)
                sum[r][i] += v_load(sums + r * PANEL + i * LANES);
    ATTN_UNROLL
    for (int r = 0; r < rows; r++)
        ATTN_UNROLL
        for (int i = 0; i < nv; i++)
            v_store(sums + r * PANEL + i * LANES, sum[r][i]);
}

/* All rows, in tiles as in scores_of. */
ATTN_INLINE void
product_rows_of(int nv, int64_t rows, const REAL *a, int64_t a_row, int64_t a_step, const REAL *b, int64_t steps, bool first, REAL *sums,
                const struct product_ahead *ahead)
{
    const int whole = TILE_ROWS(nv);
    int64_t r = 0, end = whole == 6 && rows % 6 == 2 && rows > 6 ? rows - 8 : rows;
    for (; r + whole <= end; r += whole) {
        product_ask(ahead, r, whole);
        product_tile(whole, nv, a + r * a_row, a_row, a_step, b, steps, first, sums + r * PANEL);
    }
    for (; whole > 8 && r + 8 <= rows; r += 8)
        product_tile(8, nv, a + r * a_row, a_row, a_step, b, steps, first, sums + r * PANEL);
    for (; r + 4 <= rows; r += 4)
        product_tile(4, nv, a + r * a_row, a_row, a_step, b, steps, first, sums + r * PANEL);
    for (; r + 2 <= rows; r += 2)
        product_tile(2, nv, a + r * a_row, a_row, a_step, b, steps, first, sums + r * PANEL);
    for (; r < rows; r++)
        product_tile(1, nv, a + r * a_row, a_row, a_step, b, steps, first, sums + r * PANEL);
}

ATTN_NOINLINE void
product_rows_by_1(int64_t rows, const REAL *a, int64_t a_row, int64_t a_step, const REAL *b, int64_t steps, bool first, REAL *sums,
                  const struct product_ahead *ahead)
{
    product_rows_of(1, rows, a, a_row, a_step, b, steps, first, sums, ahead);
}

ATTN_NOINLINE void
product_rows_by_2(int64_t rows, const REAL *a, int64_t a_row, int64_t a_step, const REAL *b, int64_t steps, bool first, REAL *sums,
                  const struct product_ahead *ahead)
{
    product_rows_of(2, rows, a, a_row, a_step, b, steps, first, sums, ahead);
}

#ifdef ATTN_ISA_AVX512
ATTN_NOINLINE void
product_rows_by_4(int64_t rows, const REAL *a, int64_t a_row, int64_t a_step, const REAL *b, int64_t steps, bool first, REAL *sums,
                  const struct product_ahead *ahead)
{
    product_rows_of(4, rows, a, a_row, a_step, b, steps, first, sums, ahead);
}
#endif

/* All columns of a panel that count, in vectors: as many at a time as a tile is wide. */
ATTN_INLINE void
product_rows(int64_t columns, int64_t rows, const REAL *a, int64_t a_row, int64_t a_step, const REAL *b, int64_t steps, bool first, REAL *sums,
             const struct product_ahead *ahead)
{
    int64_t vectors = (columns + LANES - 1) / LANES, i = 0;
#ifdef ATTN_ISA_AVX512
    if (vectors > 2 && rows != 8) { /* 8 rows by half the columns read the panel once */
        product_rows_by_4(rows, a, a_row, a_step, b, steps, first, sums, ahead);
        return;
    }
#endif
    for (; i + 2 <= vectors; i += 2)
        product_rows_by_2(rows, a, a_row, a_step, b + i * LANES, steps, first, sums + i * LANES, ahead);
    if (i < vectors)
        product_rows_by_1(rows, a, a_row, a_step, b + i * LANES, steps, first, sums + i * LANES, ahead);
}

/* The most frequent end of all: whole panels, a bias or none, stored where they belong. */
ATTN_INLINE void
product_store(const struct product *p, int64_t first, int64_t rows, int64_t column, const REAL *sums, const REAL *bias)
{
    vreal more[PRODUCT_PANEL_BYTES / VECTOR_BYTES];
    ATTN_UNROLL
    for (int i = 0; i < PRODUCT_PANEL_BYTES / VECTOR_BYTES; i++)
        more[i] = bias ? v_load(bias + i * LANES) : (vreal){0};
    for (int64_t r = 0; r < rows; r++) {
        REAL *to = (REAL *)(p->result.data + product_offset(&p->result, first + r)) + column;
        ATTN_UNROLL
        for (int i = 0; i < PRODUCT_PANEL_BYTES / VECTOR_BYTES; i++) {
            vreal sum = v_load(sums + r * PANEL + i * LANES);
            v_storeu(to + i * LANES, bias ? (vreal)(sum + more[i]) : sum);
        }
    }
}

/* One panel's columns of rows first ... of the result: scale, bias, activation, other, rounding. */
static void
product_finish(const struct product *p, int64_t first, int64_t rows, int64_t panel, REAL *sums, REAL *room)
{
    const int64_t column = panel * PANEL, n = attn_min(PANEL, p->columns - column);
    const struct product_matrix *other = &p->other, *result = &p->result;
    REAL *bias = room, *scale = room + PANEL, *row_other = room + 2 * PANEL;
    const bool scaled = p->panels.scale && !p->b_across;
    memset(room, 0, 3 * PANEL * sizeof(REAL));
    if (p->bias.data)
        load_row(bias, p->bias.data + column * p->bias.column, p->bias.column, n, p->bias.type, false);
    if (scaled)
        load_row(scale, (const char *)(p->panels.scale + column), sizeof(float), n, ATTN_FLOAT32, false);
    if (n == PANEL && result->direct && !scaled && !p->activated && !other->data) {
        if (p->bias.data)
            product_store(p, first, rows, column, sums, bias);
        else
            product_store(p, first, rows, column, sums, NULL);
        return;
    }
    for (int64_t r = 0; r < rows; r++) {
        REAL *row = sums + r * PANEL;
        char *to = result->data + product_offset(result, first + r) + column * result->column;
        const char *from = other->data ? other->data + product_offset(other, first + r) + column * other->column : NULL;
        const REAL *besides = other->data && other->direct ? (const REAL *)from : row_other;
        if (other->data && !other->direct)
            load_row(row_other, from, other->column, n, other->type, other->swapped);
        if (scaled)
            for (int64_t i = 0; i < n; i += LANES)
                v_store(row + i, v_load(row + i) * v_load(scale + i));
        for (int64_t i = 0; i < n && p->bias.data; i += LANES)
            v_store(row + i, v_load(row + i) + v_load(bias + i));
        if (p->activated)
            linear_activate(p->activation, p->slope, row, n);
        for (int64_t i = 0; i < n && other->data; i += LANES) {
            vreal x = n - i < LANES ? v_load_part(besides + i, n - i, (vreal){0}) : v_loadu(besides + i);
            v_store(row + i, p->slope ? v_load(row + i) * x : v_load(row + i) + x);
        }
        if (!result->direct) {
            store_row(to, result->column, row, n, result->type, result->swapped);
            continue;
        }
        for (int64_t i = 0; i < n; i += LANES)
            if (n - i < LANES)
                v_store_part((REAL *)to + i, n - i, v_load(row + i));
            else
                v_storeu((REAL *)to + i, v_load(row + i));
    }
}

/* The sums of a few rows and one panel, its columns of B read where they lie, or, where they do not fill a vector, from `raw`. */
static void
product_turned(const struct product *p, int64_t rows, const REAL *a, int64_t a_row, int64_t left, int64_t from, int64_t steps, REAL *sums, REAL *raw)
{
    const int64_t n = attn_min(PANEL, p->columns - left), b_row = p->b.stride[0] / (int64_t)sizeof(REAL);
    for (int64_t i = 0; i < n; i += LANES) {
        const REAL *b = (const REAL *)(p->b.data + (left + i) * p->b.stride[0]) + from;
        const bool whole = i + LANES <= n;
        for (int64_t r = 0; !whole && r < LANES; r++)
            if (i + r < n)
                memcpy(raw + r * p->step, b + r * b_row, (size_t)steps * sizeof(REAL));
            else
                memset(raw + r * p->step, 0, (size_t)steps * sizeof(REAL));
        product_few(rows, a, a_row, whole ? b : raw, whole ? b_row : p->step, steps, from == 0, sums + i);
    }
}

/* The sums of a chunk of rows and one panel, for one block of terms. */
static void
product_step(const struct product *p, int64_t first, int64_t rows, const REAL *a, int64_t a_row, int64_t a_step, int64_t left, int64_t from,
             int64_t steps, REAL *sums, REAL *panel, REAL *raw)
{
    struct product_ahead ahead = {0};
    const struct product_matrix *result = &p->result;
    if (product_turns(p)) {
        product_turned(p, rows, a, a_row, left, from, steps, sums, raw);
        return;
    }
    const REAL *b = product_panel(p, left, from, steps, panel, raw);
    if (b != panel) {
        ahead.panel = (const char *)(b + steps * PANEL);
        ahead.slice = steps * PRODUCT_PANEL_BYTES / rows;
    }
    if (result->direct && result->ndim <= 1 && from + steps == p->depth) {
        ahead.result = result->data + product_offset(result, first) + left * result->column;
        ahead.result_row = result->ndim == 0 ? 0 : result->stride[0];
    }
    product_rows(attn_min(PANEL, p->columns - left), rows, a, a_row, a_step, b, steps, from == 0, sums, &ahead);
}

static void
product_task(const struct product *p, const struct attn_call *call, int64_t task, REAL *scratch)
{
    const int64_t groups = (p->panel_count + p->group - 1) / p->group, first = task / groups * p->chunk, left = task % groups * p->group;
    const int64_t rows = attn_min(p->chunk, p->rows - first), right = attn_min(left + p->group, p->panel_count);
    const bool in_place = product_at(p);
    REAL *room = scratch, *panel = room + 3 * PANEL, *sums = panel + p->step * PANEL, *raw = sums + p->chunk * p->group * PANEL;
    REAL *loaded = raw + p->step * LANES;
    const int64_t a_row = in_place ? (p->a.ndim == 0 ? 0 : p->a.stride[0] / (int64_t)sizeof(REAL)) : p->a_across ? 1 : p->step;
    const int64_t a_step = !in_place && p->a_across ? p->chunk : 1;
    int64_t from = 0;
    do {
        const int64_t steps = attn_min(p->step, p->depth - from);
        const REAL *a = loaded;
        if (in_place)
            a = (const REAL *)(p->a.data + product_offset(&p->a, first)) + from;
        else
            product_load_rows(p, first, rows, from, steps, loaded);
        for (int64_t g = left; g < right; g++) {
            REAL *own = sums + (g - left) * p->chunk * PANEL;
            if (attn_stopped(call->stop))
                return;
            product_step(p, first, rows, a, a_row, a_step, g * PANEL, from, steps, own, panel, raw);
            if (from + steps == p->depth)
                product_finish(p, first, rows, g, own, room);
        }
        from += p->step;
    } while (from < p->depth);
}
