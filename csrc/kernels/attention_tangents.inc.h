/* attention_tangents.inc.h: what the derivative of attention along a direction has beside the forward pass.
 *
 * The tangents of a row block and of a key block, and those of a segment's scores, which are weighted as the values are. */
#ifndef ATTN_TANGENT_NAMES
#define ATTN_TANGENT_NAMES
#define tangent_rows SUFFIX(tangent_rows)
#define tangent_rows_bytes SUFFIX(tangent_rows_bytes)
#define tangent_rows_load SUFFIX(tangent_rows_load)
#define tangent_block SUFFIX(tangent_block)
#define tangent_block_load SUFFIX(tangent_block_load)
#define tangent_place SUFFIX(tangent_place)
#define tangent_place_bytes SUFFIX(tangent_place_bytes)
#define tangent_place_open SUFFIX(tangent_place_open)
#define tangent_product SUFFIX(tangent_product)
#define tangent_products SUFFIX(tangent_products)
#define join_products SUFFIX(join_products)
#define mean_tangent SUFFIX(mean_tangent)
#define weigh_tangents SUFFIX(weigh_tangents)
#define drop_tangents SUFFIX(drop_tangents)

/* Whether the scores move at all; if not, only values and sinks do. */
static inline bool
attn_scores_move(const struct attn_attention_jvp *j)
{
    return j->query_tangent.data || j->key_tangent.data || j->bias_tangent.data || j->relative_bias_tangent.data;
}
#endif

/* A row block with what is summed for it. */
struct tangent_rows {
    struct row_block rows;
    REAL center[ATTN_BLOCK] __attribute__((aligned(64))); /* c; NaN until the row has seen something */
    REAL mean[ATTN_BLOCK] __attribute__((aligned(64)));   /* m: running sum of 2^(score - top) (ds - c) */
    REAL query_abs;                                       /* sum of |query|, as that of row_block */
    REAL *query, *output;                                 /* query_tangent and T, as query and output of row_block */
};

/* A key block with its tangents, in place or loaded; NULL: absent. */
struct tangent_block {
    struct key_block block;
    const REAL *key, *value;
    int64_t key_row, value_row;
    REAL key_abs;
    enum attn_finite value_state;
};

/* What a thread needs beside its row blocks. */
struct tangent_place {
    struct workplace *w;
    REAL *block;    /* of tangent_block_load */
    REAL *first;    /* [64 keys][64 lanes]: dq . k, then ds, then e (ds - c) */
    REAL *second;   /* q . dk */
    REAL *additive[2]; /* bias_tangent and relative_bias_tangent, [64 lanes][64 keys] */
};

ATTN_INLINE size_t
tangent_rows_bytes(int64_t head_dim, int64_t value_dim)
{
    return attn_round_up(sizeof(struct tangent_rows)) + 2 * ((size_t)head_dim + (size_t)value_dim) * ATTN_BLOCK * sizeof(REAL);
}

ATTN_INLINE size_t
tangent_place_bytes(int64_t head_dim, int64_t value_dim)
{
    return attn_round_up(sizeof(struct tangent_place)) + workplace_bytes(head_dim, value_dim) + key_block_bytes(head_dim, value_dim) +
           4 * ATTN_BLOCK * ATTN_BLOCK * sizeof(REAL);
}

ATTN_INLINE struct tangent_place *
tangent_place_open(char *memory, int64_t head_dim, int64_t value_dim)
{
    struct tangent_place *p = (struct tangent_place *)memory;
    memory += attn_round_up(sizeof *p);
    p->w = workplace_open(memory, head_dim, value_dim);
    memory += workplace_bytes(head_dim, value_dim);
    p->block = (REAL *)memory;
    p->first = (REAL *)(memory + key_block_bytes(head_dim, value_dim));
    p->second = p->first + ATTN_BLOCK * ATTN_BLOCK;
    p->additive[0] = p->second + ATTN_BLOCK * ATTN_BLOCK;
    p->additive[1] = p->additive[0] + ATTN_BLOCK * ATTN_BLOCK;
    return p;
}

/* A row block at `memory`, loaded, before any key. */
static void
tangent_rows_load(const struct attn_attention_jvp *j, struct attn_row_layout layout, int64_t batch, int64_t kv_head, int64_t block, REAL *staging,
                  char *memory)
{
    const struct attn_attention *a = &j->forward;
    struct tangent_rows *r = (struct tangent_rows *)memory;
    r->rows.query = (REAL *)(memory + attn_round_up(sizeof *r));
    r->rows.output = r->rows.query + a->head_dim * ATTN_BLOCK;
    r->query = r->rows.output + a->value_dim * ATTN_BLOCK;
    r->output = r->query + a->head_dim * ATTN_BLOCK;
    rows_load(a, layout, batch, kv_head, block, staging, &r->rows);
    rows_start(a, batch, &r->rows, true);
    if (j->query_tangent.data)
        r->query_abs = rows_transposed(a, &j->query_tangent, batch, &r->rows, a->head_dim, query_factor_of(a), staging, r->query);
    for (int lane = 0; lane < ATTN_BLOCK; lane++) {
        r->center[lane] = (REAL)__builtin_nan("");
        r->mean[lane] = 0;
    }
    memset(r->output, 0, (size_t)(a->value_dim * ATTN_BLOCK) * sizeof(REAL));
}

static void
tangent_block_load(const struct attn_attention_jvp *j, int64_t batch, int64_t kv_head, int64_t first, int keys, bool shared,
                   const struct tangent_place *p, struct tangent_block *b)
{
    const struct attn_attention *a = &j->forward;
    const struct attn_tensor *key = &j->key_tangent, *value = &j->value_tangent;
    key_block_load(a, batch, kv_head, first, keys, shared, p->w->block, &b->block);
    b->key = b->value = NULL;
    b->value_state = ATTN_UNKNOWN;
    if (key->data) {
        b->key = block_rows(key, scalar_at(a, key, batch, kv_head) + first * key->row, keys, a->head_dim, shared, p->block, &b->key_row);
        if (attn_turns(a))
            b->key = turned_rows(a, batch, first, keys, b->key, p->block, &b->key_row);
        b->key_abs = sum_of_abs(b->key, b->key_row, keys, a->head_dim);
    }
    if (value->data) {
        REAL *memory = p->block + ATTN_BLOCK * ((a->head_dim + LANES - 1) / LANES * LANES);
        b->value = block_rows(value, scalar_at(a, value, batch, kv_head) + first * value->row, keys, a->value_dim, shared, memory, &b->value_row);
    }
}

/* One product of queries and keys of a segment, in log2 units; `most` bounds every partial sum of it. What of finite rows overflows saturates.
 * memory: a row of E REALs. */
static void
tangent_product(const struct attn_attention *a, int64_t batch, const struct row_block *rows, const struct segment *s,
                const struct attn_tensor *queries, const REAL *key, int64_t key_row, REAL most, REAL *memory)
{
    vreal ignored[GROUP_VECTORS];
    for (int i = 0; i < s->nv; i++)
        ignored[i] = (vreal){0};
    group_scores(s->nv, s->query, s->width, key, key_row, a->head_dim, s->keys, NULL, 0, &(const struct score_ends){0}, s->scores, ignored);
    if (scales_scores(a))
        scale_scores(score_factor(a), s);
    if (!(most < REAL_MAX))
        repair_scores(a, batch, rows, s, queries, key, key_row, memory);
}

/* first = (first + second) ln 2, times the slope of the softcap at the capped `scores`, where a tanh within rounding of 1 has none. second: NULL where
 * there is one product. */
static void
join_products(double softcap, const struct segment *s, REAL *first, const REAL *second)
{
    const vreal one = v_splat(1), unit = v_splat((REAL)LN2), to_tanh = v_splat(softcap != 0 ? (REAL)(LN2 / softcap) : 0);
    const vreal flat = v_splat(8 * (REAL_BITS == 32 ? (REAL)0x1p-24 : (REAL)0x1p-53));
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv; i++) {
            int64_t at = t * s->width + i * LANES;
            vreal x = v_load(first + at);
            if (second)
                x = saturating_sum(x, v_load(second + at));
            if (softcap != 0) {
                vreal tanh = v_load(s->scores + at) * to_tanh, slope = one - tanh * tanh;
                x *= v_select(slope < flat, (vreal){0}, slope); /* NaN stays */
            }
            v_store(first + at, x * unit);
        }
}

/* ds of a segment whose softcapped products are there, into `first`; in natural units. */
static void
tangent_products(const struct attn_attention_jvp *j, int64_t batch, const struct tangent_rows *r, const struct tangent_block *b,
                 const struct tangent_place *p, const struct segment *s)
{
    const struct attn_attention *a = &j->forward;
    int64_t place = s->scores - p->w->scores, key = p->w->from + s->from;
    struct segment first = *s, second = *s;
    first.scores = p->first + place;
    second.scores = j->query_tangent.data ? p->second + place : first.scores;
    first.query = r->query + (s->query - r->rows.query);
    if (j->query_tangent.data)
        tangent_product(a, batch, &r->rows, &first, &j->query_tangent, b->block.key + key * b->block.key_row, b->block.key_row,
                        r->query_abs * b->block.key_abs, p->w->staging);
    if (b->key)
        tangent_product(a, batch, &r->rows, &second, &a->query, b->key + key * b->key_row, b->key_row, r->rows.query_abs * b->key_abs, p->w->staging);
    if (j->query_tangent.data || b->key)
        join_products(a->softcap, s, first.scores, j->query_tangent.data && b->key ? second.scores : NULL);
    else
        for (int t = 0; t < s->keys; t++)
            for (int i = 0; i < s->nv; i++)
                v_store(first.scores + t * s->width + i * LANES, (vreal){0});
    if (j->bias_tangent.data)
        add_tile(&first, p->additive[0]);
    if (j->relative_bias_tangent.data)
        add_tile(&first, p->additive[1]);
}

/* Of one vector of lanes: the mean of ds over the keys of a segment; NaN where it sees none. */
ATTN_NOINLINE vreal
mean_tangent(const struct segment *s, const uint64_t *seen, const REAL *tangents, int vector)
{
    vreal sum = {0}, weights = {0};
    for (int t = 0; t < s->keys; t++) {
        vreal weight = v_load(s->scores + t * s->width + vector * LANES), x = weight * v_load(tangents + t * s->width + vector * LANES);
        sum += seen ? v_select(v_lane_bits(seen[s->from + t] >> (s->lane + vector * LANES)), x, (vreal){0}) : x;
        weights += weight;
    }
    return sum / weights;
}

/* ds becomes e (ds - c), 0 where hidden; each lane's sum of them is added to m. seen: word = key, or NULL. */
static void
weigh_tangents(const struct segment *s, const uint64_t *seen, REAL *tangents, REAL *centers, REAL *mean)
{
    for (int i = 0; i < s->nv; i++) {
        vreal sum[2] = {{0}, {0}}; /* over the even and the odd keys, as those of the weights */
        vreal center = v_load(centers + i * LANES);
        if (v_any(center != center)) {
            center = v_select(center == center, center, mean_tangent(s, seen, tangents, i));
            v_store(centers + i * LANES, center);
            center = v_select(center == center, center, (vreal){0}); /* no weight so far, or NaN in the row */
        }
        for (int t = 0; t < s->keys; t++) {
            int64_t at = t * s->width + i * LANES;
            vreal x = v_load(s->scores + at) * saturating_sum(v_load(tangents + at), -center);
            if (seen)
                x = v_select(v_lane_bits(seen[s->from + t] >> (s->lane + i * LANES)), x, (vreal){0});
            v_store(tangents + at, x);
            sum[t % 2] += x;
        }
        v_store(mean + i * LANES, v_load(mean + i * LANES) + (sum[0] + sum[1]));
    }
}

/* Dropped weights are 0 by now: e (ds - c) too. */
static void
drop_tangents(const struct segment *s, REAL *tangents)
{
    for (int t = 0; t < s->keys; t++)
        for (int i = 0; i < s->nv; i++) {
            int64_t at = t * s->width + i * LANES;
            v_store(tangents + at, v_select(v_load(s->scores + at) == (vreal){0}, (vreal){0}, v_load(tangents + at)));
        }
}
