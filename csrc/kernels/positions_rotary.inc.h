/* positions_rotary.inc.h: rotary_embedding. Rows do not know of each other: they are walked as they lie in memory, in place where they can be, and where
 * the result is larger than the caches it is gathered in scratch and stored past them. */
#ifndef ATTN_ROTARY_EMBEDDING_NAMES
#define ATTN_ROTARY_EMBEDDING_NAMES
#define rotary_rows SUFFIX(rotary_rows)
#define rotary_work SUFFIX(rotary_work)
#define rotary_describe SUFFIX(rotary_describe)
#define rotary_one_run SUFFIX(rotary_one_run)
#define rotary_turn_as SUFFIX(rotary_turn_as)
#define rotary_turn SUFFIX(rotary_turn)
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

/* Rows that are turned one after another: from x to `to`, which lies as y does but for its address and step. Row k is token `token` + k token_step. */
struct rotary_rows {
    const char *x, *cosine, *sine, *positions;
    char *to;
    int64_t n, to_step, token, token_step;
};

/* `how` and `type` are constants where this is inlined. */
ATTN_INLINE void
rotary_turn_as(const struct rotary_work *w, const struct rotary_rows *rows, enum attn_rotation how, enum attn_type type, REAL *scratch)
{
    const struct attn_rotary *a = w->a;
    const int64_t pairs = a->rotary_dim / 2, size = attn_type_size(type), done = a->rotary_dim * size, rest = w->row_bytes - done;
    const int64_t x_step = w->x_step, cosine_row = a->cosine.row, sine_row = a->sine.row;
    const bool inverse = a->inverse, in_place = w->in_place;
    for (int64_t k = 0, token = rows->token; k < rows->n; k++, token += rows->token_step) {
        const char *x = rows->x + k * x_step;
        char *to = rows->to + k * rows->to_step;
        int64_t place = rows->positions ? *(const int64_t *)(rows->positions + token * a->positions.row) : token;
        const REAL *cosine = (const REAL *)(rows->cosine + place * cosine_row), *sine = (const REAL *)(rows->sine + place * sine_row);
        for (int64_t byte = 0; w->stream && byte < w->row_bytes; byte += 64)
            __builtin_prefetch(x + ROTARY_AHEAD * x_step + byte);
        if (in_place) {
            rotate_as(to, x, pairs, cosine, sine, how, inverse, type);
            if (to != x && rest > 0)
                memcpy(to + done, x + done, (size_t)rest);
            continue;
        }
        load_row(scratch, x, a->x.column, a->head_dim, type, a->x.swapped);
        rotate_row(scratch, scratch, pairs, cosine, sine, how, inverse);
        store_row(to, a->y.column, scratch, a->head_dim, type, a->y.swapped);
    }
}

static void
rotary_turn(const struct rotary_work *w, const struct rotary_rows *rows, REAL *scratch)
{
    const bool halves = w->a->how == ATTN_ROTATE_HALVES;
#if REAL_BITS == 32
    const enum attn_type type = w->a->x.type;
    if (type == ATTN_FLOAT16 && halves)
        rotary_turn_as(w, rows, ATTN_ROTATE_HALVES, ATTN_FLOAT16, scratch);
    else if (type == ATTN_FLOAT16)
        rotary_turn_as(w, rows, w->a->how, ATTN_FLOAT16, scratch);
    else if (type == ATTN_BFLOAT16 && halves)
        rotary_turn_as(w, rows, ATTN_ROTATE_HALVES, ATTN_BFLOAT16, scratch);
    else if (type == ATTN_BFLOAT16)
        rotary_turn_as(w, rows, w->a->how, ATTN_BFLOAT16, scratch);
    else
#endif
        if (halves)
        rotary_turn_as(w, rows, ATTN_ROTATE_HALVES, REAL_BITS == 32 ? ATTN_FLOAT32 : ATTN_FLOAT64, scratch);
    else
        rotary_turn_as(w, rows, w->a->how, REAL_BITS == 32 ? ATTN_FLOAT32 : ATTN_FLOAT64, scratch);
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
    const int64_t *shape = a->batch_shape;
    struct rotary_rows rows = {.token = token, .token_step = w->tokens_inside};
    rows.x = a->x.data + attn_batch_offset(batch, a->batch_ndim, shape, a->x.batch) + head * a->x.head + token * a->x.row;
    rows.cosine = a->cosine.data + attn_batch_offset(batch, a->batch_ndim, shape, a->cosine.batch);
    rows.sine = a->sine.data + attn_batch_offset(batch, a->batch_ndim, shape, a->sine.batch);
    if (a->positions.data)
        rows.positions = a->positions.data + attn_batch_offset(batch, a->batch_ndim, shape, a->positions.batch);
    char *y = a->y.data + attn_batch_offset(batch, a->batch_ndim, shape, a->y.batch) + head * a->y.head + token * a->y.row;
    char *gather = scratch + attn_round_up((size_t)a->head_dim * sizeof(REAL));
    int64_t together = w->stream ? ROTARY_RUN / attn_max(w->row_bytes, 1) : count;
    for (int64_t i = 0; i < count; i += rows.n) {
        rows.n = attn_min(together, count - i);
        rows.to = w->stream ? gather : y;
        rows.to_step = w->stream ? w->row_bytes : w->y_step;
        rotary_turn(w, &rows, (REAL *)scratch);
        if (w->stream)
            stream_out(y, gather, rows.n * w->row_bytes);
        rows.x += rows.n * w->x_step;
        y += rows.n * w->y_step;
        rows.token += rows.n * rows.token_step;
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
