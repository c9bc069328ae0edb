/* attention_backward_rows.inc.h: what the backward pass holds of a row block and of a few key blocks, and how it is loaded and stored.
 *
 * Query and gradient rows are kept twice: transposed (lanes are queries) for scores and dP, and as they lie, in whole vectors, for the sums over
 * queries. */
#ifndef ATTN_BACKWARD_ROWS_NAMES
#define ATTN_BACKWARD_ROWS_NAMES
#define backward_place SUFFIX(backward_place)
#define backward_bytes SUFFIX(backward_bytes)
#define backward_open SUFFIX(backward_open)
#define whole_vectors SUFFIX(whole_vectors)
#define copy_rows SUFFIX(copy_rows)
#define row_statistics SUFFIX(row_statistics)
#define row_delta SUFFIX(row_delta)
#define load_query SUFFIX(load_query)
#define load_gradient SUFFIX(load_gradient)
#define store_sums SUFFIX(store_sums)
#define add_turned_back SUFFIX(add_turned_back)
#define clear_query SUFFIX(clear_query)
#define store_query SUFFIX(store_query)

enum {
    ATTN_BACKWARD_TILES = 3, /* dS, dropped weights, slopes of the softcap */
    ATTN_ROW_SUMS = 4        /* of a row over keys: of dS, of - dS |distance|, of dS before -K and behind K */
};

/* Whether batch elements that share their keys may have them turned otherwise. */
static inline bool
attn_turns_apart(const struct attn_attention *a)
{
    return attn_turns(a) && a->rotary.key_positions.data;
}
#endif

struct backward_place {
    struct workplace *w;               /* w->scores becomes the weights */
    struct row_block *rows;            /* query, transposed and scaled; output: the gradient, transposed */
    int64_t query_pitch, value_pitch;
    REAL *query, *grad;                /* [64][pitch] as they lie; 0 in rows that see nothing */
    REAL base[ATTN_BLOCK] __attribute__((aligned(64)));  /* log-sum-exp in log2 units, 0 where it is -inf */
    REAL delta[ATTN_BLOCK] __attribute__((aligned(64)));
    enum attn_finite query_state, grad_state;
    REAL *gradients, *dropped, *slopes; /* tiles */
    REAL *sums;                        /* [ATTN_ROW_SUMS][64] of the row block and a key block */
    REAL *distances;                   /* [key blocks of the chunk][group][entries]: sums of dS over equal distances */
    REAL *grad_query;                  /* [group][E][width]: where this row block's grows */
    REAL *own_query;                   /* one such block of this thread */
    REAL *grad_position;               /* the same of vectors of distances: behind it where there are biases, else the same */
    REAL *position, *own_position;     /* [64][pitch] rows that vectors are multiplied by; own: where they are not the query */
    enum attn_finite position_state;
    REAL *grad_key, *grad_value;       /* [keys of the chunk][pitch] */
    REAL *turned_back;                 /* as grad_key, of several pairs; absent without key_positions */
    struct key_block block[ATTN_BACKWARD_BLOCKS];
    REAL *loaded[ATTN_BACKWARD_BLOCKS]; /* for key_block_load */
};

ATTN_INLINE int64_t
whole_vectors(int64_t n)
{
    return (n + LANES - 1) / LANES * LANES;
}

ATTN_INLINE size_t
backward_bytes(const struct attn_attention *a, int blocks)
{
    size_t pitches = (size_t)(whole_vectors(a->head_dim) + whole_vectors(a->value_dim)), row = ATTN_BLOCK * sizeof(REAL);
    return attn_round_up(sizeof(struct backward_place)) + workplace_bytes(a->head_dim, a->value_dim) + rows_bytes(a->head_dim, a->value_dim) +
           pitches * row + (ATTN_BACKWARD_TILES * ATTN_BLOCK + ATTN_ROW_SUMS + (size_t)a->head_dim) * row +
           (size_t)blocks *
               (pitches * row + key_block_bytes(a->head_dim, a->value_dim) + (attn_turns_apart(a) ? (size_t)whole_vectors(a->head_dim) * row : 0)) +
           (a->relative.key.data ? vectors_bytes(a, 2) + (ATTN_BAND + (size_t)whole_vectors(a->head_dim) + (size_t)a->head_dim) * row : 0);
}

/* Lays everything out at the front of a thread's scratch. */
static struct backward_place *
backward_open(const struct attn_attention *a, int blocks, char *memory)
{
    struct backward_place *p = (struct backward_place *)memory;
    memory += attn_round_up(sizeof *p);
    p->w = workplace_open(memory, a->head_dim, a->value_dim);
    p->w->first_use = false;
    memory += workplace_bytes(a->head_dim, a->value_dim);
    p->rows = rows_place(memory, a->head_dim);
    memory += rows_bytes(a->head_dim, a->value_dim);
    p->query_pitch = whole_vectors(a->head_dim);
    p->value_pitch = whole_vectors(a->value_dim);
    p->query = (REAL *)memory;
    p->grad = p->query + ATTN_BLOCK * p->query_pitch;
    p->gradients = p->grad + ATTN_BLOCK * p->value_pitch;
    p->dropped = p->gradients + ATTN_BLOCK * ATTN_BLOCK;
    p->slopes = p->dropped + ATTN_BLOCK * ATTN_BLOCK;
    p->sums = p->slopes + ATTN_BLOCK * ATTN_BLOCK;
    p->own_query = p->sums + ATTN_ROW_SUMS * ATTN_BLOCK;
    p->grad_key = p->own_query + ATTN_BLOCK * a->head_dim * (a->relative.key.data ? 2 : 1);
    p->grad_value = p->grad_key + blocks * ATTN_BLOCK * p->query_pitch;
    p->turned_back = p->grad_value + blocks * ATTN_BLOCK * p->value_pitch;
    memory = (char *)(p->turned_back + (attn_turns_apart(a) ? blocks * ATTN_BLOCK * p->query_pitch : 0));
    for (int n = 0; n < blocks; n++, memory += key_block_bytes(a->head_dim, a->value_dim))
        p->loaded[n] = (REAL *)memory;
    if (a->relative.key.data) {
        p->own_position = (REAL *)memory;
        REAL *band = p->own_position + ATTN_BLOCK * p->query_pitch;
        vectors_open(a, (char *)(band + ATTN_BAND * ATTN_BLOCK), band, 2, p->rows);
    }
    return p;
}

/* Rows of (batch element, head, row) as REALs in whole vectors; those of `live` lanes only, the others 0. */
static void
copy_rows(const struct attn_attention *a, const struct attn_tensor *t, int64_t batch, const struct row_block *rows, uint64_t live, int64_t n,
          REAL *to)
{
    int64_t pitch = whole_vectors(n);
    const char *data = scalar_at(a, t, batch, 0);
    for (int lane = 0; lane < rows->count; lane++) {
        REAL *row = to + lane * pitch;
        if (!(live >> lane & 1)) {
            memset(row, 0, (size_t)pitch * sizeof(REAL));
            continue;
        }
        load_row(row, data + rows->head[lane] * t->head + rows->index[lane] * t->row, t->column, n, t->type, t->swapped);
        memset(row + n, 0, (size_t)(pitch - n) * sizeof(REAL));
    }
}

/* dO . O - dlse of one row; grad NULL: - dlse. */
static REAL
row_delta(const struct attn_attention_backward *b, int64_t batch, const struct row_block *rows, int lane, const REAL *grad, REAL *staging)
{
    const struct attn_attention *a = &b->forward;
    const struct attn_tensor *output = &a->output, *grad_lse = &b->grad_lse;
    int64_t n = a->value_dim, i = rows->index[lane];
    vreal sum = {0};
    if (grad) {
        load_row(staging, scalar_at(a, output, batch, rows->head[lane]) + i * output->row, output->column, n, output->type, output->swapped);
        memset(staging + n, 0, (size_t)(whole_vectors(n) - n) * sizeof(REAL));
        for (int64_t c = 0; c < n; c += LANES)
            sum += v_load(grad + c) * v_load(staging + c);
    }
    REAL delta = v_sum(sum);
    if (grad_lse->data)
        delta -= to_real(scalar_at(a, grad_lse, batch, rows->head[lane]) + i * grad_lse->row, grad_lse->type, grad_lse->swapped);
    return delta;
}

/* The log-sum-exps in log2 units, and delta, of the `live` lanes of a loaded row block; both 0 in the others. Rows that see no key have an output of
 * 0 whatever is stored there: their delta is - dlse. */
static void
row_statistics(const struct attn_attention_backward *b, int64_t batch, struct backward_place *p, uint64_t live, uint64_t sees)
{
    const struct attn_attention *a = &b->forward;
    const struct attn_tensor *lse = &a->lse;
    memset(p->base, 0, sizeof p->base);
    memset(p->delta, 0, sizeof p->delta);
    for (int lane = 0; lane < p->rows->count; lane++) {
        if (!(live >> lane & 1))
            continue;
        REAL x = to_real(scalar_at(a, lse, batch, p->rows->head[lane]) + p->rows->index[lane] * lse->row, lse->type, lse->swapped);
        p->base[lane] = x == -REAL_INFINITY ? 0 : in_log2_units(x);
        p->delta[lane] = row_delta(b, batch, p->rows, lane, sees >> lane & 1 ? p->grad + lane * p->value_pitch : NULL, p->w->staging);
    }
}

/* The query of a described row block, both ways. */
static void
load_query(const struct attn_attention *a, int64_t batch, struct backward_place *p, uint64_t live)
{
    const REAL *row[ATTN_BLOCK];
    copy_rows(a, &a->query, batch, p->rows, live, a->head_dim, p->query);
    if (attn_turns(a))
        turn_queries(a, batch, p->rows, p->query, p->query_pitch, false);
    for (int lane = 0; lane < p->rows->count; lane++)
        row[lane] = p->query + lane * p->query_pitch;
    p->rows->query_abs = rows_pack(p->rows, row, a->head_dim, query_factor_of(a), p->rows->query);
    p->query_state = ATTN_UNKNOWN;
}

/* The gradient of the output likewise. */
static void
load_gradient(const struct attn_attention_backward *b, int64_t batch, struct backward_place *p, uint64_t live)
{
    const struct attn_attention *a = &b->forward;
    const REAL *row[ATTN_BLOCK];
    copy_rows(a, &b->gradient, batch, p->rows, live, a->value_dim, p->grad);
    for (int lane = 0; lane < p->rows->count; lane++)
        row[lane] = p->grad + lane * p->value_pitch;
    for (int lane = 0; lane < p->rows->count;) {
        int width = group_vectors(p->rows->count, lane) * LANES;
        transpose_rows(p->rows->output + lane * a->value_dim, width, row + lane, p->rows->count - lane, a->value_dim);
        lane += width;
    }
    p->grad_state = ATTN_UNKNOWN;
}

/* Rows first ... first + keys - 1 of the gradient of a key/value head, times `factor`; turned back where they are of turned keys. */
static void
store_sums(const struct attn_attention *a, const struct attn_tensor *t, int64_t batch, int64_t kv_head, int64_t first, int64_t keys, REAL factor,
           bool turned, REAL *sums, int64_t n)
{
    int64_t pitch = whole_vectors(n);
    char *data = output_batch(a, t, batch) + kv_head * t->head + first * t->row;
    for (int64_t i = 0; i < keys * pitch; i += LANES)
        v_store(sums + i, v_load(sums + i) * v_splat(factor));
    if (turned)
        turn_keys_back(a, batch, first, keys, sums, pitch);
    for (int64_t j = 0; j < keys; j++)
        store_row(data + j * t->row, t->column, sums + j * pitch, n, t->type, t->swapped);
}

/* The sums of one pair turned back and added to those of the pairs before it, whose keys were turned otherwise. */
static void
add_turned_back(const struct attn_attention *a, int64_t batch, int64_t first, int64_t keys, bool begins, struct backward_place *p)
{
    int64_t pitch = p->query_pitch;
    turn_keys_back(a, batch, first, keys, p->grad_key, pitch);
    if (begins)
        memset(p->turned_back, 0, (size_t)(keys * pitch) * sizeof(REAL));
    for (int64_t i = 0; i < keys * pitch; i += LANES)
        v_store(p->turned_back + i, v_load(p->turned_back + i) + v_load(p->grad_key + i));
}

/* grad_query of rows that see nothing. */
static void
clear_query(const struct attn_attention_backward *b, int64_t batch, const struct row_block *rows, REAL *zeros)
{
    const struct attn_tensor *t = &b->grad_query;
    char *data = output_batch(&b->forward, t, batch);
    memset(zeros, 0, (size_t)b->forward.head_dim * sizeof(REAL));
    for (int lane = 0; lane < rows->count; lane++)
        store_row(output_row(t, data, rows->head[lane], rows->index[lane]), t->column, zeros, b->forward.head_dim, t->type, t->swapped);
}

/* A finished block of grad_query is turned back and stored, or added where the gradient accumulates. */
static void
store_query(const struct attn_attention_backward *b, int64_t batch, const struct row_block *rows, const REAL *block, REAL *staging)
{
    const struct attn_attention *a = &b->forward;
    const struct attn_tensor *t = &b->grad_query;
    int64_t n = a->head_dim, pitch = whole_vectors(n);
    char *data = output_batch(a, t, batch);
    REAL *row[ATTN_BLOCK], factor[ATTN_BLOCK];
    for (int lane = 0; lane < ATTN_BLOCK; lane++) {
        factor[lane] = (REAL)a->scale;
        row[lane] = staging + lane * pitch;
    }
    if (!b->query_accumulates && !attn_turns(a)) {
        rows_store(a, t, batch, rows, block, n, factor, staging);
        return;
    }
    rows_out(rows, row, block, n, n, factor);
    if (attn_turns(a))
        turn_queries(a, batch, rows, staging, pitch, true);
    for (int lane = 0; lane < rows->count; lane++) {
        char *to = output_row(t, data, rows->head[lane], rows->index[lane]);
        for (int64_t c = 0; c < n && b->query_accumulates; c++)
            row[lane][c] += ((REAL *)to)[c];
        store_row(to, t->column, row[lane], n, t->type, t->swapped);
    }
}
