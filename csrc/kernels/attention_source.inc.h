/* attention_source.inc.h: where keys and values are stored, and blocks of them as REALs: in place, or loaded.
 *
 * Row j of a key/value head lies j rows behind the first, or, where the call has a block table, in a page of its batch element: then the pages are the
 * operand's only batch axis. Rows of int8 are multiplied by a scale each. Loading changes no number but those. */
#ifndef ATTN_SOURCE_NAMES
#define ATTN_SOURCE_NAMES
#define key_block SUFFIX(key_block)
#define key_block_load SUFFIX(key_block_load)
#define key_block_bytes SUFFIX(key_block_bytes)
#define in_place SUFFIX(in_place)
#define stored_at SUFFIX(stored_at)
#define places_of SUFFIX(places_of)
#define scales_of SUFFIX(scales_of)
#define scale_row SUFFIX(scale_row)
#define block_rows SUFFIX(block_rows)
#define source_rows SUFFIX(source_rows)
#define turned_rows SUFFIX(turned_rows)
#define sum_of_abs SUFFIX(sum_of_abs)
#define block_is_finite SUFFIX(block_is_finite)

enum attn_finite { ATTN_UNKNOWN, ATTN_FINITE, ATTN_NOT_FINITE };
#endif

/* A block of keys and values, in place or loaded. */
struct key_block {
    int64_t first;               /* its first key */
    int keys;
    const REAL *key, *value;     /* rows key_row and value_row REALs apart */
    int64_t key_row, value_row;
    REAL key_abs;                /* sum |k|; inf or NaN where there are such */
    enum attn_finite value_state; /* asked for by partial tiles only */
};

/* Rows that lie over 2 KB apart touch a page each: copied once, they are read six times from L1 and L2. */
ATTN_INLINE bool
in_place(const struct attn_tensor *t, bool shared)
{
    return is_direct(t) && (!shared || (t->row < 2048 && t->row > -2048));
}

/* sum |x| over a block: a bound of the largest |x|, and not finite where some x is not. */
ATTN_INLINE REAL
sum_of_abs(const REAL *x, int64_t row, int rows, int64_t n)
{
    vreal sum[4] = {{0}, {0}, {0}, {0}};
    REAL tail = 0;
    for (int r = 0; r < rows; r++) {
        const REAL *p = x + r * row;
        int64_t i = 0;
        for (; i + 4 * LANES <= n; i += 4 * LANES)
    ATTN_UNROLL
            for (int k = 0; k < 4; k++)
                sum[k] += v_abs(v_loadu(p + i + k * LANES));
        for (; i + LANES <= n; i += LANES)
            sum[0] += v_abs(v_loadu(p + i));
        for (; i < n; i++)
            tail += p[i] < 0 ? -p[i] : p[i];
    }
    return v_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) + tail;
}

ATTN_INLINE size_t
key_block_bytes(int64_t head_dim, int64_t value_dim)
{
    return attn_round_up(((size_t)head_dim + (size_t)value_dim + 2 * VECTOR_BYTES / sizeof(REAL)) * ATTN_BLOCK * sizeof(REAL));
}

/* Rows of keys or values as REALs, in place or copied to `memory`; *row is what they lie apart. shared: several row blocks use them. */
static const REAL *
block_rows(const struct attn_tensor *t, const char *data, int keys, int64_t n, bool shared, REAL *memory, int64_t *row)
{
    if (in_place(t, shared)) {
        *row = t->row / (int64_t)sizeof(REAL);
        return (const REAL *)data;
    }
    *row = (n + LANES - 1) / LANES * LANES;
    for (int r = 0; r < keys; r++)
        load_row(memory + r * *row, data + r * t->row, t->column, n, t->type, t->swapped);
    return memory;
}

/* Where row j of a key/value head is stored. */
ATTN_INLINE const char *
stored_at(const struct attn_attention *a, const struct attn_tensor *t, int64_t batch, int64_t kv_head, int64_t j)
{
    if (!a->block_table.data)
        return scalar_at(a, t, batch, kv_head) + j * t->row;
    int64_t page = *(const int64_t *)(scalar_at(a, &a->block_table, batch, 0) + j / a->page_size * a->block_table.column);
    return t->data + page * t->batch[0] + kv_head * t->head + j % a->page_size * t->row;
}

/* Where rows first ... first + n - 1 are stored. Whether each lies t->row bytes behind the one before it. */
static bool
places_of(const struct attn_attention *a, const struct attn_tensor *t, int64_t batch, int64_t kv_head, int64_t first, int n, const char **place)
{
    bool together = true;
    for (int done = 0; done < n;) {
        const char *p = stored_at(a, t, batch, kv_head, first + done);
        int run = n - done;
        if (a->block_table.data)
            run = (int)attn_min(run, a->page_size - (first + done) % a->page_size);
        together &= done == 0 || p == place[done - 1] + t->row;
        for (int end = done + run; done < end; p += t->row)
            place[done++] = p;
    }
    return together;
}

/* The scales of rows first ... first + n - 1, (B.., G, S). */
static void
scales_of(const struct attn_attention *a, const struct attn_tensor *scale, int64_t batch, int64_t kv_head, int64_t first, int n, REAL *to)
{
    const char *p = scalar_at(a, scale, batch, kv_head) + first * scale->row;
    if (scale->row == (int64_t)sizeof(REAL)) {
        memcpy(to, p, (size_t)n * sizeof(REAL));
        return;
    }
    for (int r = 0; r < n; r++)
        to[r] = *(const REAL *)(p + r * scale->row);
}

/* Whole vectors of a row times its scale. */
ATTN_INLINE void
scale_row(REAL *row, int64_t n, REAL scale)
{
    for (int64_t c = 0; c < n; c += LANES)
        v_store(row + c, v_load(row + c) * v_splat(scale));
}

/* Rows of a key/value head as block_rows gives them, wherever they are stored. */
static const REAL *
source_rows(const struct attn_attention *a, const struct attn_tensor *t, const struct attn_tensor *scale, int64_t batch, int64_t kv_head,
            int64_t first, int keys, int64_t n, bool shared, REAL *memory, int64_t *row)
{
    const char *place[ATTN_BLOCK];
    REAL factor[ATTN_BLOCK];
    bool together = !a->block_table.data || places_of(a, t, batch, kv_head, first, keys, place);
    if (together && !scale->data)
        return block_rows(t, stored_at(a, t, batch, kv_head, first), keys, n, shared, memory, row);
    if (scale->data) {
        places_of(a, t, batch, kv_head, first, keys, place);
        scales_of(a, scale, batch, kv_head, first, keys, factor);
    }
    *row = (n + LANES - 1) / LANES * LANES;
    for (int r = 0; r < keys; r++) {
        load_row(memory + r * *row, place[r], t->column, n, t->type, t->swapped);
        if (scale->data)
            scale_row(memory + r * *row, n, factor[r]);
    }
    return memory;
}

/* Rows of keys, or of their tangents, turned into `memory`, where they may lie already. */
static const REAL *
turned_rows(const struct attn_attention *a, int64_t batch, int64_t first, int keys, const REAL *from, REAL *memory, int64_t *row)
{
    int64_t pitch = (a->head_dim + LANES - 1) / LANES * LANES;
    turn_keys(a, batch, first, keys, from, *row, memory, pitch);
    *row = pitch;
    return memory;
}

/* value may be absent. */
static void
key_block_load(const struct attn_attention *a, int64_t batch, int64_t kv_head, int64_t first, int keys, bool shared, REAL *memory,
               struct key_block *block)
{
    block->first = first;
    block->keys = keys;
    block->key = source_rows(a, &a->key, &a->key_scale, batch, kv_head, first, keys, a->head_dim, shared, memory, &block->key_row);
    if (attn_turns(a))
        block->key = turned_rows(a, batch, first, keys, block->key, memory, &block->key_row);
    block->key_abs = sum_of_abs(block->key, block->key_row, keys, a->head_dim);
    block->value = NULL;
    block->value_row = 0;
    block->value_state = ATTN_UNKNOWN;
    if (!a->value.data)
        return;
    memory += ATTN_BLOCK * ((a->head_dim + LANES - 1) / LANES * LANES);
    block->value = source_rows(a, &a->value, &a->value_scale, batch, kv_head, first, keys, a->value_dim, shared, memory, &block->value_row);
}

/* Whether all values of a block are finite: 0 times one that is not is NaN. They are looked at once. */
static bool
block_is_finite(const REAL *value, int64_t value_row, int keys, int64_t value_dim, enum attn_finite *state)
{
    if (*state == ATTN_UNKNOWN) {
        REAL sum = sum_of_abs(value, value_row, keys, value_dim);
        *state = sum - sum == 0 ? ATTN_FINITE : ATTN_NOT_FINITE;
    }
    return *state == ATTN_FINITE;
}
