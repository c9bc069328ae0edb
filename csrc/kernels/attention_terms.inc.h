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
#define block_rows SUFFIX(block_rows)
#define saturating_sum SUFFIX(saturating_sum)
#define repaired_score SUFFIX(repaired_score)
#define repair_scores SUFFIX(repair_scores)
#define softcap_tanh SUFFIX(softcap_tanh)
#define capped SUFFIX(capped)
#define cap_scores SUFFIX(cap_scores)
#define scale_scores SUFFIX(scale_scores)
#define key_alibi SUFFIX(key_alibi)
#define add_tile SUFFIX(add_tile)
#define add_alibi SUFFIX(add_alibi)
#define alibi_term SUFFIX(alibi_term)
#define hide_scores SUFFIX(hide_scores)
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
    const char *key_data;        /* the operand itself, for repair_scores */
    REAL key_abs;                /* sum |k|; inf or NaN where there are such */
    enum attn_finite value_state; /* asked for by partial tiles only */
};

struct segment {
    int lane, nv;       /* first lane within the row block */
    int64_t width;      /* lanes of its group */
    int step;           /* vectors that a segment of this group has */
    int from, keys;     /* keys from ... from + keys - 1 of what the row block may see of the key block */
    REAL *scores;       /* of its first key and first lane */
    REAL *slopes;       /* likewise, for the backward pass: where the softcap's derivative goes; or NULL */
    const REAL *query;  /* of its first lane */
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

/* value may be absent. */
static void
key_block_load(const struct attn_attention *a, int64_t batch, int64_t kv_head, int64_t first, int keys, bool shared, REAL *memory,
               struct key_block *block)
{
    block->first = first;
    block->keys = keys;
    block->key_data = scalar_at(a, &a->key, batch, kv_head) + first * a->key.row;
    block->key = block_rows(&a->key, block->key_data, keys, a->head_dim, shared, memory, &block->key_row);
    block->key_abs = sum_of_abs(block->key, block->key_row, keys, a->head_dim);
    block->value = NULL;
    block->value_row = 0;
    block->value_state = ATTN_UNKNOWN;
    if (!a->value.data)
        return;
    memory += ATTN_BLOCK * ((a->head_dim + LANES - 1) / LANES * LANES);
    block->value = block_rows(&a->value, scalar_at(a, &a->value, batch, kv_head) + first * a->value.row, keys, a->value_dim, shared, memory,
                              &block->value_row);
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

/* x + y; a sum of finite terms stays finite. */
ATTN_INLINE vreal
saturating_sum(vreal x, vreal y)
{
    const vreal most = v_splat(REAL_MAX);
    vreal sum = x + y;
    return v_select((v_abs(x) <= most) & (v_abs(y) <= most), v_max(v_min(sum, most), -most), sum);
}

/* A score that came out inf or NaN in REAL, from finite rows: again in a wider type, saturated. Rows that are not finite keep theirs.
 * query, key: a row of each operand. */
static REAL
repaired_score(const struct attn_attention *a, const struct attn_tensor *queries, const char *query, const struct attn_tensor *keys, const char *key,
               REAL score)
{
#if REAL_BITS == 32
    double factor = a->scale * LOG2E, sum = 0;
#else
    long double factor = (long double)a->scale * LOG2E, sum = 0;
#endif
    for (int64_t d = 0; d < a->head_dim; d++) {
        REAL q = to_real(query + d * queries->column, queries->type, queries->swapped);
        REAL k = to_real(key + d * keys->column, keys->type, keys->swapped);
        if (q - q != 0 || k - k != 0)
            return score;
        sum += factor * q * k;
    }
    return sum > REAL_MAX ? REAL_MAX : sum < -REAL_MAX ? -REAL_MAX : (REAL)sum;
}

/* key: where the segment's first row of `keys` is stored. */
static void
repair_scores(const struct attn_attention *a, int64_t batch, const struct row_block *rows, const struct segment *s,
              const struct attn_tensor *queries, const struct attn_tensor *keys, const char *key)
{
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv * LANES && s->lane + i < rows->count; i++) {
            REAL *score = s->scores + t * s->width + i;
            if (*score - *score != 0)
                *score = repaired_score(a, queries, row_in(a, queries, batch, rows->head[s->lane + i], rows->index[s->lane + i]), keys,
                                        key + t * keys->row, *score);
        }
}

ATTN_INLINE vreal
softcap_tanh(double softcap, vreal score)
{
    return v_tanh(score * v_splat((REAL)(LN2 / softcap)));
}

/* softcap tanh(score / softcap); scores are in log2 units before and after. */
ATTN_INLINE vreal
capped(double softcap, vreal tanh)
{
    return v_splat(narrowed(fmin(softcap * LOG2E, __DBL_MAX__))) * tanh;
}

/* Also keeps the derivative 1 - tanh^2 where it is wanted. */
static void
cap_scores(double softcap, const struct segment *s)
{
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv; i++) {
            REAL *score = s->scores + t * s->width + i * LANES;
            vreal y = softcap_tanh(softcap, v_load(score));
            v_store(score, capped(softcap, y));
            if (s->slopes)
                v_store(s->slopes + t * s->width + i * LANES, v_splat(1) - y * y);
        }
}

static void
scale_scores(REAL factor, const struct segment *s)
{
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv; i++) {
            REAL *score = s->scores + t * s->width + i * LANES;
            v_store(score, v_load(score) * v_splat(factor));
        }
}

/* Adds a tile that lies [lane][64] and begins with the first key that the row block may see; it is transposed on the way. */
static void
add_tile(const struct segment *s, const REAL *tile)
{
    for (int i = 0; i < s->nv; i++)
        for (int c = 0; c < s->from + s->keys; c += LANES) {
            vreal block[VECTOR_BYTES / sizeof(REAL)];
            for (int n = 0; n < LANES; n++)
                block[n] = v_load(tile + (s->lane + i * LANES + n) * ATTN_BLOCK + c);
            v_transpose(block);
            for (int n = 0; n < LANES; n++)
                if (c + n >= s->from && c + n < s->from + s->keys) {
                    REAL *score = s->scores + (c + n - s->from) * s->width + i * LANES;
                    v_store(score, saturating_sum(v_load(score), block[n]));
                }
        }
}

/* - slope |distance|; of finite numbers it stays finite. */
ATTN_INLINE vreal
alibi_term(vreal slope, vreal distance)
{
    const vreal most = v_splat(REAL_MAX);
    vreal term = -(slope * v_abs(distance));
    return v_select(v_abs(slope) <= most, v_max(v_min(term, most), -most), term);
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
            v_store(score, saturating_sum(v_load(score), alibi_term(slope, ahead - v_splat((REAL)t))));
        }
    }
}

/* The same for one row and LANES keys, the first of which is `ahead` positions before it. */
ATTN_INLINE vreal
key_alibi(REAL slope, int64_t ahead)
{
    vreal key;
    for (int n = 0; n < LANES; n++)
        key[n] = (REAL)n;
    return alibi_term(v_splat(slope), v_splat((REAL)ahead) - key);
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
