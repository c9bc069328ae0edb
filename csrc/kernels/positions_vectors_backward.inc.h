/* positions_vectors_backward.inc.h: the gradients of vectors of distances, and of the biases of queries.
 *
 * dS and weights of a tile slant to bands: their products with vectors belong to the query, their sums over queries to the vectors. These sums have a
 * place for each query head, to which chunks of keys add in ascending order: every chunk takes its turn at every row block, also where it sees nothing of
 * it. Later row blocks meet earlier vectors: what a chunk still has to add lies before all that the next one may add by then. The first and the last
 * vector, where they stand for all beyond them, have a place for each key block besides. */
#ifndef ATTN_VECTORS_BACKWARD_NAMES
#define ATTN_VECTORS_BACKWARD_NAMES
#define vectors_sums SUFFIX(vectors_sums)
#define load_distances SUFFIX(load_distances)
#define biased_rows SUFFIX(biased_rows)
#define start_value_ring SUFFIX(start_value_ring)
#define vector_place SUFFIX(vector_place)
#define add_vectors SUFFIX(add_vectors)
#define add_distances SUFFIX(add_distances)
#define clear_distances SUFFIX(clear_distances)
#define end_distances SUFFIX(end_distances)
#define reduce_vectors SUFFIX(reduce_vectors)
#define reduce_biases SUFFIX(reduce_biases)
#define reduce_relative SUFFIX(reduce_relative)
#endif

/* Where the sums for the vectors of keys (0) or values (1) of a query head grow: [attn_vector_places][pitch]. NULL: not wanted. */
static REAL *
vectors_sums(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, int64_t batch, int64_t head, int which)
{
    size_t part[ATTN_SHARED_PARTS], before = backward_shared_bytes(b, cut, part) - part[6] - part[7];
    if (part[6 + which] == 0)
        return NULL;
    size_t each = part[6 + which] / (size_t)(b->forward.batch * b->forward.heads);
    char *at = (char *)b->forward.call.workspace + before + (which ? part[6] : 0);
    return (REAL *)(at + each * (size_t)(batch * b->forward.heads + head));
}

/* Zeros in the sums of a row block, and in those of its head where it is the first. */
static void
clear_distances(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, int64_t batch, int64_t kv_head, int64_t number)
{
    const struct attn_attention *a = &b->forward;
    const struct backward_shared shared = backward_shared_open(b, cut, batch, kv_head, number);
    const int64_t pitch[2] = {whole_vectors(a->head_dim), whole_vectors(a->value_dim)};
    if (shared.biases)
        memset(shared.biases, 0, (size_t)(2 * pitch[0]) * sizeof(REAL));
    for (int which = 0; which < 2 && number < a->group; which++) {
        REAL *sums = vectors_sums(b, cut, batch, kv_head * a->group + number, which);
        if (sums)
            memset(sums, 0, (size_t)(attn_vector_places(a) * pitch[which]) * sizeof(REAL));
    }
}

/* Adds a bias to the live rows of a block and packs them. */
static REAL
biased_rows(const struct attn_attention *a, const struct attn_tensor *bias, int64_t batch, const struct backward_place *p, uint64_t live, REAL *rows,
            REAL *to)
{
    const REAL *row[ATTN_BLOCK];
    for (int lane = 0; lane < p->rows->count; lane++) {
        row[lane] = rows + lane * p->query_pitch;
        if (live >> lane & 1)
            add_bias(a, bias, batch, p->rows->head[lane], a->head_dim, rows + lane * p->query_pitch);
    }
    return rows_pack(p->rows, row, a->head_dim, query_factor_of(a), to);
}

/* Called when the query of a row block has been loaded: with its biases, both ways, and an empty ring. */
static void
load_distances(const struct attn_attention *a, int64_t batch, struct backward_place *p, uint64_t live)
{
    struct vectors_place *d = p->rows->vectors;
    const struct attn_relative *relative = &a->relative;
    d->key.table = &relative->key;
    d->key.bias = &relative->position_bias;
    d->key.n = a->head_dim;
    d->key.query = p->rows->query;
    d->key.query_abs = p->rows->query_abs;
    p->position = p->query;
    p->position_state = ATTN_UNKNOWN;
    if (attn_has_biases(a)) {
        p->position = p->own_position;
        memcpy(p->position, p->query, (size_t)(p->rows->count * p->query_pitch) * sizeof(REAL));
        d->key.query = d->query;
        d->key.query_abs = biased_rows(a, &relative->position_bias, batch, p, live, p->position, d->query);
        p->rows->query_abs = biased_rows(a, &relative->content_bias, batch, p, live, p->query, p->rows->query);
    }
    ring_start(a, batch, p->rows, &d->key, p->w->staging);
}

/* Called when the gradient of the output has been loaded. */
static void
start_value_ring(const struct attn_attention *a, int64_t batch, struct backward_place *p)
{
    struct vector_ring *g = &p->rows->vectors->value;
    g->table = &a->relative.value;
    g->bias = NULL;
    g->n = a->value_dim;
    g->query = p->rows->output;
    ring_start(a, batch, p->rows, g, p->w->staging);
}

/* The place of row r of a band in the sums, for a key block. */
ATTN_INLINE int64_t
vector_place(const struct vector_ring *g, const struct vector_band *band, int r, int64_t block)
{
    int64_t vector = band->vector + r;
    return !g->clips || (vector > 0 && vector < g->vectors - 1) ? vector : g->vectors + 2 * block + (vector > 0);
}

/* Sums over the lanes of a segment of its weights by vector times y, rows of n. */
static void
add_vectors(const struct vector_ring *g, const struct backward_place *p, const struct segment *s, const uint64_t *seen, int64_t key,
            const REAL *weights, const REAL *y, int64_t n, enum attn_finite *state, int64_t block, REAL *sums)
{
    int64_t pitch = whole_vectors(n);
    const struct vector_band band = band_make(g, p->rows, s, key, weights, s->nv * LANES, p->rows->vectors->band);
    uint64_t visible[2 * ATTN_BLOCK];
    band_seen(&band, s, seen, g->clips, visible);
    const bool finite = block_is_finite(y, pitch, p->rows->count, pitch, state);
    for (int r = 0, end; r < band.rows; r = end) {
        int64_t place = vector_place(g, &band, r, block);
        for (end = r + 1; place < g->vectors && end < band.rows && vector_place(g, &band, end, block) < g->vectors; end++)
            ;
        const struct lane_sum sum = {.tile = band.tile + r * band.width,
                                     .count = (int)attn_min(band.lanes, p->rows->count - s->lane),
                                     .keys = end - r,
                                     .seen = visible + r,
                                     .y = y + s->lane * pitch,
                                     .n = n,
                                     .pitch = pitch,
                                     .sums = sums + place * pitch};
        sum_over_lanes(&sum, finite);
    }
}

/* What a row block and a key block give to the query by its vectors, and to these. */
static void
add_distances(const struct attn_attention_backward *b, int64_t batch, struct backward_place *p, const struct key_block *block, REAL *const *sums)
{
    const struct attn_attention *a = &b->forward;
    const struct workplace *w = p->w;
    const struct vector_ring *g = &p->rows->vectors->key;
    const uint64_t *seen = w->sight == ATTN_PARTIAL ? w->seen : NULL;
    int64_t number = block->first / attn_block_keys(a);
    for (struct segment s = {0}; next_segment(p->rows, w, a->head_dim, &s);) {
        const REAL *gradients = p->gradients + (s.scores - w->scores);
        int64_t key = block->first + w->from + s.from;
        if (attn_wants_query(b)) {
            const struct vector_band band = band_make(g, p->rows, &s, key, gradients, s.width, p->rows->vectors->band);
            band_output(a, batch, p->rows, g, &a->relative.key, &s, seen, &band, a->head_dim, w->staging, p->grad_position);
        }
        if (sums[0])
            add_vectors(g, p, &s, seen, key, gradients, p->position, a->head_dim, &p->position_state, number, sums[0]);
        if (sums[1])
            add_vectors(g, p, &s, seen, key, s.scores, p->grad, a->value_dim, &p->grad_state, number, sums[1]);
    }
}

/* The last chunk has added to a row block: the biases get the sums over its rows, [2][pitch], and its gradient is that by keys and by vectors. */
static void
end_distances(const struct attn_attention *a, const struct row_block *rows, REAL *by_key, REAL *by_vector, REAL *biases)
{
    int64_t n = a->head_dim;
    for (int lane = 0; lane < rows->count;) {
        int64_t width = group_vectors(rows->count, lane) * LANES, lanes = attn_min(width, rows->count - lane);
        for (int64_t c = 0; c < n; c++) {
            REAL *of_key = by_key + lane * n + c * width, *of_vector = by_vector + lane * n + c * width, sum[2] = {0, 0};
            for (int64_t i = 0; i < lanes; i++) {
                sum[0] += of_key[i];
                sum[1] += of_vector[i];
                of_key[i] += of_vector[i];
            }
            for (int i = 0; biases && i < 2; i++)
                biases[i * whole_vectors(n) + c] += sum[i];
        }
        lane += (int)width;
    }
}

/* The gradient of vectors from the sums of all query heads, in order. */
static void
reduce_vectors(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, int which, const struct attn_tensor *t)
{
    const struct attn_attention *a = &b->forward;
    int64_t n = which ? a->value_dim : a->head_dim, pitch = whole_vectors(n);
    REAL factor = which ? 1 : (REAL)a->scale;
    for (int64_t batch = 0; batch < a->batch; batch++)
        for (int64_t head = 0; head < a->heads && !attn_stopped(a->call.stop); head++) {
            const REAL *sums = vectors_sums(b, cut, batch, head, which);
            for (int64_t i = 0; i < attn_vector_places(a); i++) {
                int64_t last = a->relative.vectors - 1, vector = i <= last ? i : (i - last - 1) % 2 ? last : 0;
                char *to = output_row(t, output_batch(a, t, batch), head, vector);
                for (int64_t c = 0; c < n; c++)
                    *(REAL *)(to + c * t->column) += sums[i * pitch + c] * factor;
            }
        }
}

/* That of a bias, from the sums of all row blocks. */
static void
reduce_biases(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, int which, const struct attn_tensor *t)
{
    const struct attn_attention *a = &b->forward;
    for (int64_t pair = 0; pair < cut->pairs && !attn_stopped(a->call.stop); pair++)
        for (int64_t number = 0; number < cut->layout.blocks; number++) {
            int64_t batch = pair / cut->heads, kv_head = pair % cut->heads;
            const REAL *sums = backward_shared_open(b, cut, batch, kv_head, number).biases + which * whole_vectors(a->head_dim);
            char *to = output_row(t, output_batch(a, t, batch), kv_head * a->group + number % a->group, 0);
            for (int64_t c = 0; c < a->head_dim; c++)
                *(REAL *)(to + c * t->column) += sums[c] * (REAL)a->scale;
        }
}

/* Tasks 0 ... 3 of the last phase. */
static void
reduce_relative(const struct attn_attention_backward *b, const struct attn_backward_cut *cut, int64_t task)
{
    const struct attn_tensor *of[4] = {&b->grad_relative_key, &b->grad_relative_value, &b->grad_content_bias, &b->grad_position_bias};
    if (!of[task]->data || cut->layout.blocks == 0)
        return;
    if (task < 2)
        reduce_vectors(b, cut, (int)task, of[task]);
    else
        reduce_biases(b, cut, (int)task - 2, of[task]);
}
