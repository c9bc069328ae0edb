/* layers_linear_matrix.inc.h: the operands of a product of matrices, and how blocks of them come to scratch. Changes no operation, so the bits stay. */
#ifndef ATTN_MATRIX_NAMES
#define ATTN_MATRIX_NAMES
#define product_matrix_of SUFFIX(product_matrix_of)
#define product_at SUFFIX(product_at)
#define product_load_rows SUFFIX(product_load_rows)
#define product_turn SUFFIX(product_turn)
#define product_few_of SUFFIX(product_few_of)
#define product_few SUFFIX(product_few)
#define product_turns SUFFIX(product_turns)
#define product_load_panel SUFFIX(product_load_panel)
#define product_load_packed SUFFIX(product_load_packed)
#define product_load_turned SUFFIX(product_load_turned)
#define product_panel SUFFIX(product_panel)

/* Terms in a block: 384 divides the sizes of many models; a panel of it takes 96 KB. Rows of A in a task: so much of it stays in L2 beside them. */
enum { PRODUCT_DEPTH = 384, PRODUCT_PANEL_BYTES = 256, PRODUCT_CHUNK_BYTES = 640 << 10 };

/* Rows of elements: the axes of the rows, walked in C order, and the stride of the columns. Axes that follow on one another are one. */
struct product_matrix {
    char *data; /* NULL: absent */
    enum attn_type type;
    bool swapped, direct; /* direct: REALs of this machine, side by side along the columns */
    int ndim;
    int64_t shape[ATTN_MAX_BATCH], stride[ATTN_MAX_BATCH];
    int64_t column;
};

struct product {
    int64_t rows, columns, depth; /* M, N, C */
    struct product_matrix a; /* (M, C); across: (C, M) */
    struct product_matrix b; /* (N, C), as weights are stored; across: (C, N) */
    bool a_across, b_across;
    struct attn_panels panels; /* in place of b; across: their columns are the terms */
    struct attn_tensor bias; /* (N), REALs; NULL: none */
    bool activated, slope; /* slope: the result is other f'(C), not f(C) + other */
    enum attn_activation_kind activation;
    struct product_matrix other, result; /* (M, N) */
    int64_t step, chunk, group, panel_count; /* the cut */
};

static inline int64_t
product_offset(const struct product_matrix *m, int64_t row)
{
    return m->ndim == 0 ? 0 : m->ndim == 1 ? row * m->stride[0] : attn_batch_offset(row, m->ndim, m->shape, m->stride);
}
#endif

#undef PANEL
#define PANEL ((int64_t)(PRODUCT_PANEL_BYTES / sizeof(REAL)))

static void
product_matrix_of(struct product_matrix *m, const struct attn_tensor *t, int ndim, const int64_t *shape, const int64_t *stride)
{
    m->data = t->data;
    if (!t->data)
        return;
    m->type = t->type;
    m->swapped = t->swapped;
    m->direct = is_direct(t);
    m->column = t->column;
    m->ndim = 0;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] == 1)
            continue;
        if (m->ndim > 0 && m->stride[m->ndim - 1] == shape[i] * stride[i])
            m->shape[m->ndim - 1] *= shape[i];
        else
            m->shape[m->ndim++] = shape[i];
        m->stride[m->ndim - 1] = stride[i];
    }
}

/* Whether the rows of A are read where they lie. */
ATTN_INLINE bool
product_at(const struct product *p)
{
    return p->a.direct && !p->a_across && p->a.ndim <= 1;
}

/* Rows first ... of A, terms from ... from + steps - 1, to scratch: [rows][step], or across [steps][chunk]. */
static void
product_load_rows(const struct product *p, int64_t first, int64_t rows, int64_t from, int64_t steps, REAL *to)
{
    const struct product_matrix *a = &p->a;
    if (p->a_across)
        for (int64_t t = 0; t < steps; t++)
            load_row(to + t * p->chunk, a->data + product_offset(a, from + t) + first * a->column, a->column, rows, a->type, a->swapped);
    else
        for (int64_t r = 0; r < rows; r++)
            load_row(to + r * p->step, a->data + product_offset(a, first + r) + from * a->column, a->column, steps, a->type, a->swapped);
}

/* to[t][i] = rows[i][t] for LANES rows, `pitch` apart, of which the first `n` are there; the others give 0. */
ATTN_NOINLINE void
product_turn(const REAL *rows, int64_t pitch, int64_t n, int64_t steps, REAL *to)
{
    vreal turned[VECTOR_BYTES / sizeof(REAL)];
    int64_t t = 0;
    for (; n == LANES && t + LANES <= steps; t += LANES) {
    ATTN_UNROLL
        for (int i = 0; i < LANES; i++)
            turned[i] = v_loadu(rows + i * pitch + t);
        v_transpose(turned);
        ATTN_UNROLL
        for (int i = 0; i < LANES; i++)
            v_store(to + (t + i) * PANEL, turned[i]);
    }
    for (; t < steps; t += LANES) {
        int64_t left = attn_min(LANES, steps - t);
        for (int i = 0; i < LANES; i++)
            turned[i] = i >= n ? (vreal){0} : left == LANES ? v_loadu(rows + i * pitch + t) : v_load_part(rows + i * pitch + t, left, (vreal){0});
        v_transpose(turned);
        for (int i = 0; i < left; i++)
            v_store(to + (t + i) * PANEL, turned[i]);
    }
}

/* sums[r][i] = or += the sum of A[r][t] b[i][t], for LANES rows of b where they lie: they are turned in registers. The chain is that of product_tile. */
ATTN_INLINE void
product_few_of(int rows, const REAL *a, int64_t a_row, const REAL *b, int64_t b_row, int64_t steps, bool first, REAL *sums)
{
    vreal sum[4] = {{0}, {0}, {0}, {0}}, turned[VECTOR_BYTES / sizeof(REAL)];
    int64_t t = 0;
    for (; t + LANES <= steps; t += LANES) {
        ATTN_UNROLL
        for (int i = 0; i < LANES; i++) {
            turned[i] = v_loadu(b + i * b_row + t);
            if (t % (64 / (int64_t)sizeof(REAL)) == 0)
                __builtin_prefetch(b + i * b_row + t + 1024 / (int64_t)sizeof(REAL), 0, 3);
        }
        v_transpose(turned);
        ATTN_UNROLL
        for (int i = 0; i < LANES; i++)
            ATTN_UNROLL
            for (int r = 0; r < rows; r++)
                sum[r] += v_splat(a[r * a_row + t + i]) * turned[i];
    }
    if (t < steps) {
        for (int i = 0; i < LANES; i++)
            turned[i] = v_load_part(b + i * b_row + t, steps - t, (vreal){0});
        v_transpose(turned);
        for (int i = 0; i < steps - t; i++)
            for (int r = 0; r < rows; r++)
                sum[r] += v_splat(a[r * a_row + t + i]) * turned[i];
    }
    ATTN_UNROLL
    for (int r = 0; r < rows; r++) {
        if (!first)
            sum[r] += v_load(sums + r * PANEL);
        v_store(sums + r * PANEL, sum[r]);
    }
}

ATTN_NOINLINE void
product_few(int64_t rows, const REAL *a, int64_t a_row, const REAL *b, int64_t b_row, int64_t steps, bool first, REAL *sums)
{
    if (rows == 1)
        product_few_of(1, a, a_row, b, b_row, steps, first, sums);
    else if (rows == 2)
        product_few_of(2, a, a_row, b, b_row, steps, first, sums);
    else if (rows == 3)
        product_few_of(3, a, a_row, b, b_row, steps, first, sums);
    else
        product_few_of(4, a, a_row, b, b_row, steps, first, sums);
}

/* Whether weights are turned in registers as they are multiplied, since so few rows use them. */
ATTN_INLINE bool
product_turns(const struct product *p)
{
    return p->rows <= 4 && !p->panels.data && !p->b_across && !p->a_across && p->b.direct && p->b.ndim == 1;
}

/* Columns left ... of B, terms from ... from + steps - 1, to a panel [steps][PANEL]; columns past the last are 0. raw: room for LANES rows. */
static void
product_load_panel(const struct product *p, int64_t left, int64_t from, int64_t steps, REAL *panel, REAL *raw)
{
    const struct product_matrix *b = &p->b;
    const int64_t n = attn_min(PANEL, p->columns - left), size = sizeof(REAL);
    if (p->b_across) {
        for (int64_t t = 0; t < steps; t++) {
            load_row(panel + t * PANEL, b->data + product_offset(b, from + t) + left * b->column, b->column, n, b->type, b->swapped);
            if (n < PANEL)
                memset(panel + t * PANEL + n, 0, (size_t)((PANEL - n) * size));
        }
        return;
    }
    for (int64_t i = 0; i < n; i += LANES) {
        const int64_t rows = attn_min(LANES, n - i);
        if (b->direct && b->ndim <= 1) {
            product_turn((const REAL *)(b->data + product_offset(b, left + i)) + from, b->ndim == 0 ? 0 : b->stride[0] / size, rows, steps, panel + i);
            continue;
        }
        for (int64_t r = 0; r < rows; r++)
            load_row(raw + r * p->step, b->data + product_offset(b, left + i + r) + from * b->column, b->column, steps, b->type, b->swapped);
        product_turn(raw, p->step, rows, steps, panel + i);
    }
    for (int64_t i = (n + LANES - 1) / LANES * LANES; i < PANEL; i += LANES)
        for (int64_t t = 0; t < steps; t++)
            v_store(panel + t * PANEL + i, (vreal){0});
}

/* The same from packed weights, which may be of another type, and then wider. */
static void
product_load_packed(const struct product *p, int64_t left, int64_t from, int64_t steps, REAL *panel)
{
    const struct attn_panels *packed = &p->panels;
    const int64_t wide = packed->columns, size = attn_type_size(packed->type);
    const char *data = packed->data + (left / wide * wide * p->depth + from * wide + left % wide) * size;
    if (wide == PANEL)
        load_row(panel, data, size, steps * PANEL, packed->type, false);
    else
        for (int64_t t = 0; t < steps; t++)
            load_row(panel + t * PANEL, data + t * wide * size, size, PANEL, packed->type, false);
}

/* The same where the terms are the packed weights' outputs. Columns past the last are 0. Scales are of 17 bits: times an int8 they are exact. */
static void
product_load_turned(const struct product *p, int64_t left, int64_t from, int64_t steps, REAL *panel, REAL *raw)
{
    const struct attn_panels *packed = &p->panels;
    const int64_t wide = packed->columns, size = attn_type_size(packed->type), n = attn_min(PANEL, p->columns - left);
    for (int64_t i = 0; i < PANEL; i += LANES) {
        const int64_t rows = attn_max(0, attn_min(LANES, n - i));
        for (int64_t r = 0; r < rows; r++)
            for (int64_t t = from, end; t < from + steps; t = end) {
                const char *data = packed->data + (t / wide * wide * p->columns + (left + i + r) * wide + t % wide) * size;
                end = attn_min(from + steps, (t / wide + 1) * wide);
                load_row(raw + r * p->step + t - from, data, size, end - t, packed->type, false);
            }
        product_turn(raw, p->step, rows, steps, panel + i);
    }
    for (int64_t t = 0; packed->scale && t < steps; t++)
        for (int64_t i = 0; i < PANEL; i += LANES)
            v_store(panel + t * PANEL + i, v_load(panel + t * PANEL + i) * v_splat((REAL)packed->scale[from + t]));
}

/* A panel where it can be read: in place, or made in scratch. */
static const REAL *
product_panel(const struct product *p, int64_t left, int64_t from, int64_t steps, REAL *panel, REAL *raw)
{
    const struct attn_panels *packed = &p->panels;
    if (!packed->data)
        product_load_panel(p, left, from, steps, panel, raw);
    else if (p->b_across)
        product_load_turned(p, left, from, steps, panel, raw);
    else if (packed->columns == PANEL && packed->type == (REAL_BITS == 32 ? ATTN_FLOAT32 : ATTN_FLOAT64) && (uintptr_t)packed->data % VECTOR_BYTES == 0)
        return (const REAL *)packed->data + left * p->depth + from * PANEL;
    else
        product_load_packed(p, left, from, steps, panel);
    return panel;
}
