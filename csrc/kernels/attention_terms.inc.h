/* attention_terms.inc.h: what is done to the scores of a tile between the product and the softmax: saturation, softcap, bias, mask, ALiBi, hiding.
 *
 * A segment is `nv` vectors of lanes of one group and a range of keys. Its scores lie [key][width]. Every step is lane by lane. */
#ifndef ATTN_TERMS_NAMES
#define ATTN_TERMS_NAMES
#define segment SUFFIX(segment)
#define key_block SUFFIX(key_block)
#define key_block_load SUFFIX(key_block_load)
#define key_block_bytes SUFFIX(key_block_bytes)
#define in_place SUFFIX(in_place)
#define saturating_sum SUFFIX(saturating_sum)
#define repaired_score SUFFIX(repaired_score)
#define repair_scores SUFFIX(repair_scores)
#define cap_scores SUFFIX(cap_scores)
#define add_tile SUFFIX(add_tile)
#define add_alibi SUFFIX(add_alibi)
#define hide_scores SUFFIX(hide_scores)
#define largest_of SUFFIX(largest_of)
#endif

/* A block of keys and values, in place or loaded. */
struct key_block {
    int64_t first;               /* its first key */
    int keys;
    const REAL *key, *value;     /* rows key_row and value_row REALs apart */
    int64_t key_row, value_row;
    const char *key_data;        /* the operand itself, for repair_scores */
    REAL key_max;                /* largest |k|; inf or NaN where there are such */
    bool value_finite;
};

struct segment {
    int lane, nv;       /* first lane within the row block */
    int64_t width;      /* lanes of its group */
    int from, keys;     /* keys from ... from + keys - 1 of the key block */
    REAL *scores;       /* of its first key and first lane */
    const REAL *query;  /* of its first lane */
};

/* Rows that lie over 2 KB apart touch a page each: copied once, they are read six times from L1 and L2. */
ATTN_INLINE bool
in_place(const struct attn_tensor *t, bool shared)
{
    return is_direct(t) && (!shared || (t->row < 2048 && t->row > -2048));
}

/* The largest |x| of a block; inf where any is not finite. */
ATTN_INLINE REAL
largest_of(const REAL *x, int64_t row, int rows, int64_t n)
{
    vreal largest = {0}, zero = {0};
    REAL top = 0, tail = 0;
    for (int r = 0; r < rows; r++) {
        int64_t i = 0;
        for (; i + LANES <= n; i += LANES) {
            vreal v = v_loadu(x + r * row + i);
            largest = v_max(v_abs(v), largest);
            zero += v * v_splat(0); /* NaN from the first inf or NaN on */
        }
        for (; i < n; i++) {
            REAL v = x[r * row + i];
            top = v > top ? v : -v > top ? -v : top;
            tail += v * 0;
        }
    }
    REAL highest = v_highest(largest);
    return v_sum(zero) + tail == 0 ? (highest > top ? highest : top) : REAL_INFINITY;
}

ATTN_INLINE size_t
key_block_bytes(int64_t head_dim, int64_t value_dim)
{
    return attn_round_up(((size_t)head_dim + (size_t)value_dim + 2 * VECTOR_BYTES / sizeof(REAL)) * ATTN_BLOCK * sizeof(REAL));
}

/* shared: several row blocks use it. value may be absent. Rows of a loaded block are whole vectors, filled up with 0. */
static void
key_block_load(const struct attn_attention *a, int64_t batch, int64_t kv_head, int64_t first, int keys, bool shared, bool pad, REAL *memory, struct key_block *block)
{
    const char *key = scalar_at(a, &a->key, batch, kv_head) + first * a->key.row;
    block->first = first;
    block->keys = keys;
    block->key_data = key;
    block->value = NULL;
    block->value_finite = true;
    int64_t pitch = (a->head_dim + LANES - 1) / LANES * LANES;
    if (in_place(&a->key, shared) && !(pad && pitch != a->head_dim)) {
        block->key = (const REAL *)key;
        block->key_row = a->key.row / (int64_t)sizeof(REAL);
    } else {
        for (int r = 0; r < keys; r++) {
            load_row(memory + r * pitch, key + r * a->key.row, a->key.column, a->head_dim, a->key.type, a->key.swapped);
            for (int64_t i = a->head_dim; i < pitch; i++)
                memory[r * pitch + i] = 0;
        }
        block->key = memory;
        block->key_row = pitch;
    }
    block->key_max = largest_of(block->key, block->key_row, keys, a->head_dim);
    if (!a->value.data)
        return;
    const char *value = scalar_at(a, &a->value, batch, kv_head) + first * a->value.row;
    memory += ATTN_BLOCK * pitch;
    pitch = (a->value_dim + LANES - 1) / LANES * LANES;
    if (in_place(&a->value, shared) && !(pad && pitch != a->value_dim)) {
        block->value = (const REAL *)value;
        block->value_row = a->value.row / (int64_t)sizeof(REAL);
    } else {
        for (int r = 0; r < keys; r++) {
            load_row(memory + r * pitch, value + r * a->value.row, a->value.column, a->value_dim, a->value.type, a->value.swapped);
            for (int64_t i = a->value_dim; i < pitch; i++)
                memory[r * pitch + i] = 0;
        }
        block->value = memory;
        block->value_row = pitch;
    }
    block->value_finite = largest_of(block->value, block->value_row, keys, a->value_dim) != REAL_INFINITY;
}

/* x + y; a sum of finite terms stays finite. */
ATTN_INLINE vreal
saturating_sum(vreal x, vreal y)
{
    const vreal most = v_splat(REAL_MAX);
    vreal sum = x + y;
    return v_select((v_abs(x) <= most) & (v_abs(y) <= most), v_max(v_min(sum, most), -most), sum);
}

/* A score that came out inf or NaN in REAL, from finite rows: again in a wider type, saturated. Rows that are not finite keep theirs. */
static REAL
repaired_score(const struct attn_attention *a, const char *query, const char *key, REAL score)
{
#if REAL_BITS == 32
    double factor = a->scale * LOG2E, sum = 0;
#else
    long double factor = (long double)a->scale * LOG2E, sum = 0;
#endif
    for (int64_t d = 0; d < a->head_dim; d++) {
        REAL q = to_real(query + d * a->query.column, a->query.type, a->query.swapped);
        REAL k = to_real(key + d * a->key.column, a->key.type, a->key.swapped);
        if (q - q != 0 || k - k != 0)
            return score;
        sum += factor * q * k;
    }
    return sum > REAL_MAX ? REAL_MAX : sum < -REAL_MAX ? -REAL_MAX : (REAL)sum;
}

static void
repair_scores(const struct attn_attention *a, int64_t batch, const struct row_block *rows, const struct segment *s, const struct key_block *block)
{
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv * LANES && s->lane + i < rows->count; i++) {
            REAL *score = s->scores + t * s->width + i;
            if (*score - *score != 0)
                *score = repaired_score(a, rows_query(a, batch, rows->head[s->lane + i], rows->index[s->lane + i]),
                                        block->key_data + (s->from + t) * a->key.row, *score);
        }
}

/* softcap tanh(score / softcap); scores are in log2 units before and after. */
static void
cap_scores(double softcap, const struct segment *s)
{
    vreal in = v_splat((REAL)(LN2 / softcap)), out = v_splat((REAL)(softcap * LOG2E));
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv; i++) {
            REAL *score = s->scores + t * s->width + i * LANES;
            v_store(score, out * v_tanh(v_load(score) * in));
        }
}

/* Adds a tile that lies [lane][64]; it is transposed on the way. Its columns begin with the key block's `tile_from`th key. */
static void
add_tile(const struct segment *s, const REAL *tile, int tile_from)
{
    int shift = s->from - tile_from;
    for (int i = 0; i < s->nv; i++)
        for (int c = 0; c < shift + s->keys; c += LANES) {
            vreal block[VECTOR_BYTES / sizeof(REAL)];
            for (int n = 0; n < LANES; n++)
                block[n] = v_load(tile + (s->lane + i * LANES + n) * ATTN_BLOCK + c);
            v_transpose(block);
            for (int n = 0; n < LANES; n++)
                if (c + n >= shift && c + n < shift + s->keys) {
                    REAL *score = s->scores + (c + n - shift) * s->width + i * LANES;
                    v_store(score, saturating_sum(v_load(score), block[n]));
                }
        }
}

/* - slope |i + offset - j|. The distance of the block's first key is exact in 64 bits before it is rounded once. */
static void
add_alibi(const struct row_block *rows, const struct segment *s, int64_t key)
{
    for (int i = 0; i < s->nv; i++) {
        vreal ahead = {0}, slope = {0};
        for (int n = 0; n < LANES && s->lane + i * LANES + n < rows->count; n++) {
            ahead[n] = (REAL)(rows->position[s->lane + i * LANES + n] - key);
            slope[n] = rows->slope[s->lane + i * LANES + n];
        }
        for (int t = 0; t < s->keys; t++) {
            REAL *score = s->scores + t * s->width + i * LANES;
            v_store(score, saturating_sum(v_load(score), -(slope * v_abs(ahead - v_splat((REAL)t)))));
        }
    }
}

/* Hidden scores become -inf, by select: what was computed there may be NaN. top follows the maximum of the rest. seen: word = key, or NULL. */
static void
hide_scores(const struct segment *s, const uint64_t *seen, vreal *top)
{
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv; i++) {
            REAL *p = s->scores + t * s->width + i * LANES;
            vreal score = v_load(p);
            if (seen) {
                score = v_select(v_lane_bits(seen[s->from + t] >> (s->lane + i * LANES)), score, v_splat(-REAL_INFINITY));
                v_store(p, score);
            }
            top[i] = v_max(score, top[i]);
        }
}
