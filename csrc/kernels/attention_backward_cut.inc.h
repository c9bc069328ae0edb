/* attention_backward_cut.inc.h: how the backward pass is cut into tasks. Nothing here depends on REAL.
 *
 * A task is a chunk of key blocks of one (batch element, key/value head): it owns their grad_key and grad_value, and goes over all row blocks that see
 * them. Several tasks add to the grad_query of a row block: in ascending order of keys, each waiting for its turn, so that bits do not depend on
 * threads. Batch elements and heads whose gradients share memory are looped over inside one task. */
#ifndef ATTN_BACKWARD_CUT_NAMES
#define ATTN_BACKWARD_CUT_NAMES

enum {
    ATTN_BACKWARD_BLOCKS = 4, /* key blocks that share a row block's loading: at D = 128 their keys, values and gradients take 512 KB */
    ATTN_TURN = 64 / sizeof(atomic_int), /* a cache line for each counter */
    ATTN_SHARED_PARTS = 8,
    ATTN_PREPARE = 0,
    ATTN_CHUNKS,
    ATTN_ROWS,
    ATTN_REDUCE /* phases */
};

/* (batch element, key/value head) pairs are counted along axes: the batch axes and the heads, in an order of their own. */
struct attn_backward_cut {
    struct attn_row_layout layout;
    int64_t heads, pairs;  /* key/value heads of a batch element, and of all */
    int64_t blocks;        /* key blocks a chunk */
    int64_t keys, chunks;  /* keys a chunk, chunks of a head */
    int64_t units, inner;  /* independent parts of the work, and the pairs in each */
    int64_t shared;        /* pairs in a row that add to the same grad_key and grad_value */
    int axes, outer;       /* how many there are, and how many of them count units */
    int axis[ATTN_MAX_BATCH + 1]; /* batch axes; batch_ndim: the heads */
    bool own_query;        /* one chunk makes all of a block of grad_query, in memory of its own */
    bool row_sums, turns;
    bool one_by_one;       /* chunks of a unit wait for one another: what they add to is not theirs */
    bool by_distance;      /* relative_bias has a gradient, and one row for all rows of a head */
    bool turns_apart;      /* each pair's part of grad_key is turned back before they are added: by positions of its own */
    bool in_order;         /* every chunk takes its turn at every row block: gradients of vectors of distances */
    bool prepares;         /* log-sum-exps and deltas are computed once, before the chunks */
};

/* Whether a mask or bias of its own for each key has a gradient: then tiles of dS are added to it. */
static inline bool
attn_is_dense(const struct attn_tensor *gradient)
{
    return gradient->data && gradient->column != 0;
}

/* Whether relative_bias has a gradient, and a row of its own for each query row. */
static inline bool
attn_is_relative_by_row(const struct attn_attention_backward *b)
{
    return b->grad_relative.data && b->grad_relative.row != 0;
}

/* Whether a batch axis is one along which the offset differs, but not the place of a row's gradient of relative_bias: several keys add to it then. */
static inline bool
attn_relative_overlaps(const struct attn_attention_backward *b, int axis)
{
    const struct attn_attention *a = &b->forward;
    const struct attn_tensor *by_lengths[2] = {&a->query_lengths, &a->kv_lengths}, *offset = &a->causal_offset;
    bool differs = offset->data && offset->batch[axis] != 0;
    for (int i = 0; i < 2 && !offset->data; i++)
        differs |= by_lengths[i]->data && by_lengths[i]->batch[axis] != 0;
    return attn_is_relative_by_row(b) && b->grad_relative.batch[axis] == 0 && a->batch_shape[axis] > 1 && differs;
}

/* Whether a gradient is made of the sums of dS over the keys. */
static inline bool
attn_wants_row_sums(const struct attn_attention_backward *b)
{
    return (b->grad_mask.data && b->grad_mask.column == 0) || (b->grad_bias.data && b->grad_bias.column == 0);
}

/* Vectors of distances whose queries have biases: the gradient of a query is kept in two parts. */
static inline bool
attn_has_biases(const struct attn_attention *a)
{
    return a->relative.content_bias.data || a->relative.position_bias.data;
}

static inline bool
attn_wants_query(const struct attn_attention_backward *b)
{
    return b->grad_query.data || b->grad_content_bias.data || b->grad_position_bias.data;
}

/* Sums that a query head has for the vectors of distances: where the first and last stand for all beyond them, each key block has two of its own. */
static inline int64_t
attn_vector_places(const struct attn_attention *a)
{
    return a->relative.vectors + (a->relative.clips ? 2 * attn_key_blocks(a) : 0);
}

/* How far inside an axis is counted: 0 where all gradients differ along it, 1 where a dense mask or bias sums, 2 where keys or values do. */
static inline int
attn_backward_rank(const struct attn_attention_backward *b, int axis)
{
    const struct attn_tensor *added[3] = {&b->grad_mask, &b->grad_bias, &b->grad_relative}, *owned[2] = {&b->grad_key, &b->grad_value};
    bool heads = axis == b->forward.batch_ndim;
    int rank = 0;
    if (!heads && b->forward.batch_shape[axis] == 1)
        return 0;
    for (int i = 0; i < 3; i++)
        if ((i < 2 ? attn_is_dense(added[i]) : attn_is_relative_by_row(b)) && (heads ? added[i]->head : added[i]->batch[axis]) == 0)
            rank = 1;
    for (int i = 0; i < 2 && !heads; i++)
        if (owned[i]->data && owned[i]->batch[axis] == 0)
            rank = 2;
    return rank;
}

static inline struct attn_backward_cut
attn_backward_cut(const struct attn_attention_backward *b)
{
    const struct attn_attention *a = &b->forward;
    struct attn_backward_cut cut = {
        .layout = attn_row_layout(a, a->row_count), .heads = a->heads / attn_max(a->group, 1), .units = 1, .inner = 1, .shared = 1};
    for (int rank = 0; rank < 3; rank++)
        for (int axis = 0; axis <= a->batch_ndim; axis++) {
            int64_t size = axis == a->batch_ndim ? cut.heads : a->batch_shape[axis];
            if (attn_backward_rank(b, axis) != rank)
                continue;
            cut.axis[cut.axes++] = axis;
            cut.outer += rank == 0;
            *(rank == 0 ? &cut.units : &cut.inner) *= size;
            cut.shared *= rank == 2 ? size : 1;
            cut.turns_apart |=
                rank == 2 && b->grad_key.data && attn_turns(a) && a->rotary.key_positions.data && a->rotary.key_positions.batch[axis] != 0;
        }
    int64_t key_blocks = attn_key_blocks(a);
    cut.pairs = a->batch * cut.heads;
    cut.blocks = a->head_dim + a->value_dim > 256 ? ATTN_BACKWARD_BLOCKS / 2 : ATTN_BACKWARD_BLOCKS;
    for (int axis = 0; axis < a->batch_ndim; axis++)
        cut.one_by_one |= attn_relative_overlaps(b, axis) && cut.layout.blocks > 0 && key_blocks > 0;
    if (cut.one_by_one)
        cut.blocks = 1; /* for any number of threads: it is the order in which they add */
    while (cut.blocks > 1 && cut.units * ((key_blocks + cut.blocks - 1) / cut.blocks) < 4 * a->call.threads)
        cut.blocks--;
    cut.keys = cut.blocks * attn_block_keys(a);
    cut.chunks = (key_blocks + cut.blocks - 1) / cut.blocks;
    cut.own_query = cut.chunks == 1 && !b->query_accumulates;
    cut.row_sums = b->grad_slopes.data || attn_wants_row_sums(b) || attn_is_relative_by_row(b);
    cut.by_distance = b->grad_relative.data && !attn_is_relative_by_row(b) && cut.layout.blocks > 0 && cut.chunks > 0;
    cut.in_order = b->grad_relative_key.data || b->grad_relative_value.data || b->grad_content_bias.data || b->grad_position_bias.data;
    cut.prepares = cut.chunks > 1 || b->of_weights || cut.in_order;
    cut.turns = cut.chunks > 1 && (b->grad_query.data || cut.row_sums || cut.in_order);
    return cut;
}

/* Pair number n of a unit: its batch element, counted in C order, and its key/value head. */
static inline void
attn_backward_pair(const struct attn_attention *a, const struct attn_backward_cut *cut, int64_t unit, int64_t n, int64_t *batch, int64_t *head)
{
    int64_t place[ATTN_MAX_BATCH + 1];
    for (int i = cut->axes - 1; i >= 0; i--) {
        int64_t *rest = i < cut->outer ? &unit : &n, size = cut->axis[i] == a->batch_ndim ? cut->heads : a->batch_shape[cut->axis[i]];
        place[cut->axis[i]] = *rest % size;
        *rest /= size;
    }
    *batch = 0;
    for (int axis = 0; axis < a->batch_ndim; axis++)
        *batch = *batch * a->batch_shape[axis] + place[axis];
    *head = place[a->batch_ndim];
}

/* x + y, clipped to 64 bits. */
static inline int64_t
attn_clipped_sum(int64_t x, int64_t y)
{
    int64_t sum;
    return __builtin_add_overflow(x, y, &sum) ? (x < 0 ? INT64_MIN : INT64_MAX) : sum;
}

/* Query rows *first ... *end - 1 are all that may see one of the keys first_key ... end_key - 1, as far as ranges tell. */
static inline void
attn_rows_of_keys(const struct attn_attention *a, const struct attn_place *place, int64_t first_key, int64_t end_key, int64_t *first, int64_t *end)
{
    int64_t lowest = INT64_MIN, highest = INT64_MAX;
    if (a->window_right >= 0)
        lowest = attn_clipped_sum(first_key - place->offset, -a->window_right);
    if (a->is_causal)
        lowest = attn_max(lowest, first_key - place->offset);
    if (a->window_left >= 0)
        highest = attn_clipped_sum(end_key - 1 - place->offset, a->window_left);
    *first = attn_max(0, lowest);
    *end = first_key < place->keys ? attn_min(place->queries, attn_clipped_sum(highest, 1)) : 0;
}

/* Row blocks *first ... *end - 1 hold these rows. A list of rows has any order: all of its blocks. */
static inline void
attn_blocks_of_keys(const struct attn_attention *a, const struct attn_backward_cut *cut, const struct attn_place *place, int64_t first_key,
                    int64_t end_key, int64_t *first, int64_t *end)
{
    *first = 0;
    *end = cut->layout.blocks;
    if (a->rows.data)
        return;
    attn_rows_of_keys(a, place, first_key, end_key, first, end);
    if (*first >= *end)
        *first = *end = 0;
    else if (cut->layout.paired) {
        *first = *first * a->group / ATTN_BLOCK;
        *end = (*end * a->group + ATTN_BLOCK - 1) / ATTN_BLOCK;
    } else {
        *first = *first / ATTN_BLOCK * a->group;
        *end = (*end + ATTN_BLOCK - 1) / ATTN_BLOCK * a->group;
    }
}

/* Which of the chunks that a row block visits is `chunk`. */
struct attn_visit {
    int rank; /* how many come before it; -1: it is none of them */
    bool last;
};

/* Chunks that meet the keys first ... end - 1 and, with a block mask, a tile of `tiles` (NULL: every chunk in that range). */
static inline struct attn_visit
attn_visit(int64_t first, int64_t end, int64_t keys, const struct attn_tile_row *tiles, int64_t chunk)
{
    struct attn_visit visit = {-1, false};
    if (first >= end || first >= (chunk + 1) * keys || end <= chunk * keys)
        return visit;
    if (!tiles)
        return (struct attn_visit){(int)(chunk - first / keys), chunk == (end - 1) / keys};
    int seen = 0;
    for (int64_t n = 0, next = 0; n < tiles->n; n++) {
        int64_t from = attn_max(first, tiles->index[n] * (int64_t)ATTN_BLOCK), to = attn_min(end, (tiles->index[n] + 1) * (int64_t)ATTN_BLOCK);
        if (from >= to)
            continue;
        for (int64_t c = attn_max(next, from / keys); c <= (to - 1) / keys; c++, seen++) {
            if (c == chunk)
                visit.rank = seen;
            visit.last = c == chunk;
            next = c + 1;
        }
    }
    return visit;
}

/* Whether a row may see no key, so that no chunk visits it. */
static inline bool
attn_rows_may_be_empty(const struct attn_attention *a)
{
    bool positional = a->is_causal || a->window_left >= 0 || a->window_right >= 0;
    return a->key_length == 0 || a->block_mask.indptr || a->query_lengths.data || a->kv_lengths.data || a->causal_offset.data ||
           (positional && a->query_length > a->key_length);
}
#endif
