/* attention_terms.inc.h: what is done to the scores of a tile between the product and the softmax: saturation, softcap, bias, mask, ALiBi, hiding.
 *
 * A segment is `nv` vectors of lanes of one group and a range of keys. Its scores lie [key][width]. Every step is lane by lane. */
#ifndef ATTN_TERMS_NAMES
#define ATTN_TERMS_NAMES
#define segment SUFFIX(segment)
#define saturating_sum SUFFIX(saturating_sum)
#define biased_score SUFFIX(biased_score)
#define add_bias SUFFIX(add_bias)
#define repaired_score SUFFIX(repaired_score)
#define repair_scores SUFFIX(repair_scores)
#define softcap_tanh SUFFIX(softcap_tanh)
#define capped SUFFIX(capped)
#define cap_scores SUFFIX(cap_scores)
#define scale_scores SUFFIX(scale_scores)
#define key_alibi SUFFIX(key_alibi)
#define tile_columns SUFFIX(tile_columns)
#define add_tile SUFFIX(add_tile)
#define add_terms SUFFIX(add_terms)
#define add_alibi SUFFIX(add_alibi)
#define alibi_term SUFFIX(alibi_term)
#define hide_scores SUFFIX(hide_scores)
#endif

struct segment {
    int lane, nv;       /* first lane within the row block */
    int64_t width;      /* lanes of its group */
    int step;           /* vectors that a segment of this group has */
    int from, keys;     /* keys from ... from + keys - 1 of what the row block may see of the key block */
    REAL *scores;       /* of its first key and first lane */
    REAL *slopes;       /* likewise, for the backward pass: where the softcap's derivative goes; or NULL */
    const REAL *query;  /* of its first lane */
};

/* x + y; a sum of finite terms stays finite. */
ATTN_INLINE vreal
saturating_sum(vreal x, vreal y)
{
    const vreal most = v_splat(REAL_MAX);
    vreal sum = x + y;
    return v_select((v_abs(x) <= most) & (v_abs(y) <= most), v_max(v_min(sum, most), -most), sum);
}

/* A score that came out inf or NaN in REAL, from finite rows: again in a wider type, saturated. Rows that are not finite keep theirs.
 * query: a row of the operand, or turned; key: a row as it was loaded; bias: what is added to the query, where `biases` has data. */
static REAL
biased_score(const struct attn_attention *a, const char *query, const struct attn_tensor *queries, const char *bias, const struct attn_tensor *biases,
             const REAL *key, REAL score)
{
#if REAL_BITS == 32
    double factor = a->scale * LOG2E, sum = 0;
#else
    long double factor = (long double)a->scale * LOG2E, sum = 0;
#endif
    for (int64_t d = 0; d < a->head_dim; d++) {
        REAL q = to_real(query + d * queries->column, queries->type, queries->swapped);
        REAL added = biases->data ? *(const REAL *)(bias + d * biases->column) : 0;
        if (q - q != 0 || key[d] - key[d] != 0 || added - added != 0)
            return score;
        sum += factor * q * key[d] + factor * added * key[d];
    }
    return sum > REAL_MAX ? REAL_MAX : sum < -REAL_MAX ? -REAL_MAX : (REAL)sum;
}

static REAL
repaired_score(const struct attn_attention *a, const struct attn_tensor *queries, const char *query, const REAL *key, REAL score)
{
    static const struct attn_tensor none;
    return biased_score(a, query, queries, NULL, &none, key, score);
}

/* row[c] += the bias of a head, (B.., H, n); absent: nothing. */
static void
add_bias(const struct attn_attention *a, const struct attn_tensor *bias, int64_t batch, int64_t head, int64_t n, REAL *row)
{
    if (!bias->data)
        return;
    const char *from = scalar_at(a, bias, batch, head);
    for (int64_t c = 0; c < n; c++)
        row[c] += *(const REAL *)(from + c * bias->column);
}

/* key: the segment's first. memory: a row of E REALs. */
static void
repair_scores(const struct attn_attention *a, int64_t batch, const struct row_block *rows, const struct segment *s, const struct attn_tensor *queries,
              const REAL *key, int64_t key_row, REAL *memory)
{
    struct attn_tensor turned;
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv * LANES && s->lane + i < rows->count; i++) {
            REAL *score = s->scores + t * s->width + i;
            const struct attn_tensor *of = queries, *biases = &a->relative.content_bias;
            if (*score - *score != 0) {
                const char *query = turned_query(a, batch, rows, s->lane + i, &of, &turned, memory);
                const char *bias = biases->data ? scalar_at(a, biases, batch, rows->head[s->lane + i]) : NULL;
                *score = biased_score(a, query, of, bias, biases, key + t * key_row, *score);
            }
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

/* Columns c ... c + LANES - 1 of a tile that lies [lane][64], each as a vector of the lanes from `lane` on. */
ATTN_INLINE void
tile_columns(const REAL *tile, int lane, int c, vreal *block)
{
    for (int n = 0; n < LANES; n++)
        block[n] = v_load(tile + (lane + n) * ATTN_BLOCK + c);
    v_transpose(block);
}

/* Adds a tile that lies [lane][64] and begins with the first key that the row block may see; it is transposed on the way. */
static void
add_tile(const struct segment *s, const REAL *tile)
{
    for (int i = 0; i < s->nv; i++)
        for (int c = 0; c < s->from + s->keys; c += LANES) {
            vreal block[VECTOR_BYTES / sizeof(REAL)];
            tile_columns(tile, s->lane + i * LANES, c, block);
            for (int n = 0; n < LANES; n++)
                if (c + n >= s->from && c + n < s->from + s->keys) {
                    REAL *score = s->scores + (c + n - s->from) * s->width + i * LANES;
                    v_store(score, saturating_sum(v_load(score), block[n]));
                }
        }
}

/* Adds terms that lie as the scores of the segment do. */
static void
add_terms(const struct segment *s, const REAL *terms)
{
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv; i++) {
            int64_t at = t * s->width + i * LANES;
            v_store(s->scores + at, saturating_sum(v_load(s->scores + at), v_load(terms + at)));
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
