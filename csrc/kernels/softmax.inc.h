/* softmax.inc.h: softmax, log_softmax, logsumexp. One algorithm for rows, on rows that lie in memory side by side or are brought into scratch first:
 * a row that fits is read once: its maximum, then the terms exp(x - m), kept in scratch, then the results. */
#ifndef ATTN_SOFTMAX_NAMES
#define ATTN_SOFTMAX_NAMES
#define softmax_group SUFFIX(softmax_group)
#define softmax_resident SUFFIX(softmax_resident)
#define softmax_split SUFFIX(softmax_split)
#define softmax_plan SUFFIX(softmax_plan)
#define softmax_run SUFFIX(softmax_run)
#endif

/* Up to LANES resident rows. x, e (where terms may go; may be x) and y (may be both) point to the first; pitches are in REALs. Returns the sums. */
ATTN_INLINE vreal
softmax_group(const struct softmax_work *w, enum attn_softmax_what what, int64_t rows, const REAL *x, int64_t x_pitch, REAL *e, int64_t e_pitch,
              REAL *y, int64_t y_pitch, REAL *result)
{
    const bool stored = what == ATTN_SOFTMAX;
    int64_t n = w->n, ahead = w->direct_x ? x_pitch * w->tile_rows : 0;
    bool stream = w->stream && w->direct_y, written = what != ATTN_LOGSUMEXP && w->direct_y && !w->stream;
    REAL tops[VECTOR_BYTES / sizeof(REAL)] = {0}, sums[VECTOR_BYTES / sizeof(REAL)] = {0}, bases[VECTOR_BYTES / sizeof(REAL)];
    vreal base, factor;
    for (int64_t r = 0; r < rows; r++)
        tops[r] = v_highest(row_highest(x + r * x_pitch, n));
    v_storeu(bases, softmax_base(v_loadu(tops)));
    for (int64_t r = 0; r < rows; r++)
        sums[r] = v_sum(
            row_terms(x + r * x_pitch, n, v_splat(bases[r]), e + r * e_pitch, stored, x + r * x_pitch + ahead, written ? y + r * y_pitch : NULL));
    if (what == ATTN_LOGSUMEXP && v_any(v_loadu(tops) == v_splat(REAL_INFINITY)))
        for (int64_t r = 0; r < rows; r++)
            sums[r] = softmax_total_of(tops[r], sums[r], x + r * x_pitch, n).sum;
    softmax_factors(what, v_loadu(tops), v_loadu(sums), &base, &factor);
    v_storeu(result, factor);
    if (what != ATTN_LOGSUMEXP)
        for (int64_t r = 0; r < rows; r++)
            row_results(what, stored ? e + r * e_pitch : x + r * x_pitch, n, v_splat(bases[r]), v_splat(result[r]), y + r * y_pitch, stream);
    return v_loadu(sums);
}

/* A tile of rows that fit into scratch. */
ATTN_INLINE void
softmax_resident(const struct softmax_work *w, enum attn_softmax_what what, const struct softmax_tile *tile, REAL *scratch)
{
    const struct attn_softmax *a = w->a;
    const int64_t size = sizeof(REAL);
    REAL *x = scratch, *y = scratch, result[VECTOR_BYTES / sizeof(REAL)];
    int64_t x_pitch = w->pitch, y_pitch = w->pitch;
    bool spoilt = false;
    if (w->direct_x) {
        x = (REAL *)(a->x.data + tile->offset[SOFTMAX_X]);
        x_pitch = w->row_stride[SOFTMAX_X] / size;
    } else
        softmax_load(w, tile, SOFTMAX_X, -REAL_INFINITY, 0, w->n, scratch);
    if (w->direct_y && what != ATTN_LOGSUMEXP) {
        y = (REAL *)(a->y.data + tile->offset[SOFTMAX_Y]);
        y_pitch = w->row_stride[SOFTMAX_Y] / size;
    }
    for (int64_t r = 0; r < tile->rows; r += LANES) {
        int64_t rows = attn_min(LANES, tile->rows - r);
        vreal sum = softmax_group(w, what, rows, x + r * x_pitch, x_pitch, scratch + r * w->pitch, w->pitch, y + r * y_pitch, y_pitch, result);
        spoilt |= v_any(sum != sum);
        if (what == ATTN_LOGSUMEXP)
            softmax_put(w, tile, r, rows, result);
    }
    if (what != ATTN_LOGSUMEXP && !w->direct_y)
        softmax_store(w, tile, 0, w->n, scratch, spoilt);
}

/* Whether tasks are parts of rows. It decides who computes what, not what is computed, so it may look at the threads. */
ATTN_INLINE bool
softmax_split(const struct softmax_work *w)
{
    return w->is_long && w->tiles < 4 * (int64_t)w->a->call.threads;
}

static void
softmax_plan(const void *arguments, struct attn_plan *plan)
{
    struct softmax_work w;
    softmax_describe(arguments, &w);
    bool split = softmax_split(&w);
    *plan = (struct attn_plan){.phases = split ? 2 : 1, .cost = 8.0 * (double)w.rows * (double)w.n};
    plan->tasks[0] = split ? w.tiles * w.parts : (w.tiles + w.task_tiles - 1) / w.task_tiles;
    plan->tasks[1] = !split ? 0 : w.a->what == ATTN_LOGSUMEXP ? w.tiles : w.tiles * w.parts;
    plan->scratch = (size_t)(attn_max(w.tile_rows, 1) * w.pitch) * sizeof(REAL);
    plan->workspace = split ? (size_t)(w.rows * w.parts) * sizeof(struct softmax_total) : 0;
}

static void
softmax_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    struct softmax_work w;
    struct softmax_tile tile;
    softmax_describe(arguments, &w);
    if (softmax_split(&w))
        softmax_long_phase(&w, phase, task, scratch);
    else
        for (int64_t t = task * w.task_tiles; t < attn_min((task + 1) * w.task_tiles, w.tiles); t++) {
            if (attn_stopped(w.a->call.stop))
                break;
            softmax_tile_at(&w, t, &tile);
            if (w.is_long)
                softmax_long(&w, &tile, scratch);
            else if (w.a->what == ATTN_SOFTMAX)
                softmax_resident(&w, ATTN_SOFTMAX, &tile, scratch);
            else if (w.a->what == ATTN_LOG_SOFTMAX)
                softmax_resident(&w, ATTN_LOG_SOFTMAX, &tile, scratch);
            else
                softmax_resident(&w, ATTN_LOGSUMEXP, &tile, scratch);
        }
    if (w.stream)
        attn_stores_done();
}

static const struct attn_kernel SUFFIX(attn_softmax) = {softmax_plan, softmax_run};
