/* positions_rotary.inc.h: rotary_embedding. Rows do not know of each other: they are walked as they lie in memory, in place where they can be, and where
 * the result is larger than the caches it is gathered in scratch and stored past them. */
#ifndef ATTN_ROTARY_NAMES
#define ATTN_ROTARY_NAMES
#define rotary_work SUFFIX(rotary_work)
#define rotary_describe SUFFIX(rotary_describe)
#define rotary_row SUFFIX(rotary_row)
#define rotary_one_run SUFFIX(rotary_one_run)
#define stream_out SUFFIX(stream_out)
#define rotary_plan SUFFIX(rotary_plan)
#define rotary_run SUFFIX(rotary_run)

enum {
    ROTARY_TASK = 128 << 10, /* bytes of results in a task, about: tens of microseconds */
    ROTARY_RUN = 16 << 10, /* bytes of results in a run: they, their source and its rows of the tables stay in the first cache */
    ROTARY_AHEAD = 8, /* rows that are asked for before they are read */
    ROTARY_STREAM = 4 << 20 /* bytes of results from which on they are stored past the caches */
};
#endif

/* How a call walks its rows: in runs of neighbours. Where the tokens of a head lie together in y a run is a block of them, and the heads follow each other
 * over it, since they turn by the same rows of the tables; else it is all heads of a token. */
struct rotary_work {
    const struct attn_rotary *a;
    bool tokens_inside, in_place, stream; /* in_place: rows need no copy in scratch */
    int64_t run, blocks, runs, task_runs, row_bytes, x_step, y_step;
};

static void
rotary_describe(const struct attn_rotary *a, struct rotary_work *w)
{
    const struct attn_tensor *x = &a->x, *y = &a->y;
    int64_t size = attn_type_size(x->type);
    w->a = a;
    w->tokens_inside = a->heads <= 1 || (a->length > 1 && llabs(y->row) <= llabs(y->head));
    w->row_bytes = a->head_dim * size;
    w->run = w->tokens_inside ? attn_max(attn_min(ROTARY_RUN / attn_max(w->row_bytes, 1), a->length), 1) : a->heads;
    w->blocks = w->tokens_inside ? (a->length + w->run - 1) / w->run : a->length;
    w->runs = a->batch * w->blocks * (w->tokens_inside ? a->heads : 1);
    w->task_runs = attn_max(ROTARY_TASK / attn_max(w->run * w->row_bytes, 1), 1);
    w->x_step = w->tokens_inside ? x->row : x->head;
    w->y_step = w->tokens_inside ? y->row : y->head;
    w->in_place = x->column == size && y->column == size && !x->swapped && x->aligned && y->aligned;
    bool together = y->column == size && (w->run == 1 || w->y_step == w->row_bytes) && w->row_bytes <= ROTARY_RUN;
    w->stream = together && x->data != y->data && a->batch * a->heads * a->length * w->row_bytes >= ROTARY_STREAM;
}

/* One row to `to`, which lies as y does but for its address. */
ATTN_INLINE void
rotary_row(const struct rotary_work *w, const char *x, char *to, const REAL *cosine, const REAL *sine, REAL *scratch)
{
    const struct attn_rotary *a = w->a;
    int64_t pairs = a->rotary_dim / 2, size = attn_type_size(a->x.type), done = a->rotary_dim * size;
    if (w->in_place) {
        rotate_stored(to, x, pairs, cosine, sine, a->how, a->inverse, a->x.type);
        if (to != x && a->head_dim > a->rotary_dim)
            memcpy(to + done, x + done, (size_t)(a->head_dim * size - done));
        return;
    }
    load_row(scratch, x, a->x.column, a->head_dim, a->x.type, a->x.swapped);
    rotate_row(scratch, scratch, pairs, cosine, sine, a->how, a->inverse);
    store_row(to, a->y.column, scratch, a->head_dim, a->y.type, a->y.swapped);
}

/* Bytes to memory, past the caches but for what shares a cache line with others at either end. */
ATTN_INLINE void
stream_out(char *to, const char *from, int64_t bytes)
{
    int64_t i = attn_min(-(int64_t)(uintptr_t)to & 63, bytes);
    memcpy(to, from, (size_t)i);
    for (; i + 64 <= bytes; i += 64)
    ATTN_UNROLL
        for (int part = 0; part < 64; part += VECTOR_BYTES)
            v_stream((REAL *)(to + i + part), v_loadu((const REAL *)(from + i + part)));
    memcpy(to + i, from + i, (size_t)(bytes - i));
}

/* Run number `index`. */
static void
rotary_one_run(const struct rotary_work *w, int64_t index, char *scratch)
{
    const struct attn_rotary *a = w->a;
    int64_t heads = w->tokens_inside ? a->heads : 1, head = index % heads, block = index / heads % w->blocks, batch = index / heads / w->blocks;
    int64_t token = w->tokens_inside ? block * w->run : block, count = w->tokens_inside ? attn_min(w->run, a->length - token) : w->run;
    const char *x = a->x.data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, a->x.batch) + head * a->x.head + token * a->x.row;
    char *y = a->y.data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, a->y.batch) + head * a->y.head + token * a->y.row;
    const char *cosine = a->cosine.data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, a->cosine.batch);
    const char *sine = a->sine.data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, a->sine.batch), *positions = a->positions.data;
    if (positions)
        positions += attn_batch_offset(batch, a->batch_ndim, a->batch_shape, a->positions.batch);
    char *gather = scratch + attn_round_up((size_t)a->head_dim * sizeof(REAL));
    int64_t together = w->stream ? ROTARY_RUN / attn_max(w->row_bytes, 1) : 1;
    for (int64_t i = 0, n; i < count; i += n) {
        n = attn_min(together, count - i);
        for (int64_t k = i; k < i + n; k++) {
            for (int64_t byte = 0; w->stream && byte < w->row_bytes; byte += 64)
                __builtin_prefetch(x + (k + ROTARY_AHEAD) * w->x_step + byte);
            int64_t here = w->tokens_inside ? token + k : token, place = positions ? *(const int64_t *)(positions + here * a->positions.row) : here;
            rotary_row(w, x + k * w->x_step, w->stream ? gather + (k - i) * w->row_bytes : y + k * w->y_step,
                       (const REAL *)(cosine + place * a->cosine.row), (const REAL *)(sine + place * a->sine.row), (REAL *)scratch);
        }
        if (w->stream)
            stream_out(y + i * w->y_step, gather, n * w->row_bytes);
    }
}

static void
rotary_plan(const void *arguments, struct attn_plan *plan)
{
    struct rotary_work w;
    rotary_describe(arguments, &w);
    *plan = (struct attn_plan){.phases = 1, .cost = 2.0 * (double)w.runs * (double)w.run * (double)w.a->head_dim};
    plan->tasks[0] = (w.runs + w.task_runs - 1) / w.task_runs;
    plan->scratch = attn_round_up((size_t)w.a->head_dim * sizeof(REAL)) + (w.stream ? ROTARY_RUN : 0);
}

static void
rotary_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    struct rotary_work w;
    (void)phase;
    rotary_describe(arguments, &w);
    for (int64_t index = task * w.task_runs; index < attn_min((task + 1) * w.task_runs, w.runs); index++) {
        if (attn_stopped(w.a->call.stop))
            break;
        rotary_one_run(&w, index, scratch);
    }
    if (w.stream)
        attn_stores_done();
}

static const struct attn_kernel SUFFIX(attn_rotary_embedding) = {rotary_plan, rotary_run};
