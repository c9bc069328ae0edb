/* softmax_long.inc.h: rows too long to be kept while they are worked on. They are cut into parts of a size that depends on their length only; each
 * has a maximum and a sum, merged in ascending order, and a second pass over memory computes the results. */
#ifndef ATTN_SOFTMAX_LONG_NAMES
#define ATTN_SOFTMAX_LONG_NAMES
#define softmax_part_totals SUFFIX(softmax_part_totals)
#define softmax_part_results SUFFIX(softmax_part_results)
#define softmax_row_results SUFFIX(softmax_row_results)
#define softmax_put_totals SUFFIX(softmax_put_totals)
#define softmax_long SUFFIX(softmax_long)
#define softmax_long_phase SUFFIX(softmax_long_phase)
#endif

/* The totals of one part of long rows, row by row. */
static void
softmax_part_totals(const struct softmax_work *w, const struct softmax_tile *tile, int64_t part, REAL *scratch, struct softmax_total *total)
{
    int64_t end = attn_min((part + 1) * w->part, w->n);
    for (int64_t r = 0; r < tile->rows; r++)
        total[r] = (struct softmax_total){-REAL_INFINITY, 0};
    for (int64_t i = part * w->part; i < end && !attn_stopped(w->a->call.stop); i += w->block) {
        int64_t n = attn_min(w->block, end - i);
        if (!w->direct_x)
            softmax_load(w, tile, SOFTMAX_X, -REAL_INFINITY, i, n, scratch);
        for (int64_t r = 0; r < tile->rows; r++) {
            const REAL *x =
                w->direct_x ? (const REAL *)(w->a->x.data + tile->offset[SOFTMAX_X] + r * w->row_stride[SOFTMAX_X]) + i : scratch + r * w->pitch;
            REAL highest = v_highest(row_highest(x, n)), base = highest == -REAL_INFINITY ? 0 : highest;
            REAL sum = v_sum(row_terms(x, n, v_splat(base), NULL, false, w->direct_x ? x + n : x, NULL));
            total[r] = softmax_merge(total[r], softmax_total_of(highest, sum, x, n));
        }
    }
}

/* The results of elements i ... i + n - 1 of a long row, at x, to y. */
ATTN_INLINE void
softmax_row_results(const struct softmax_work *w, const REAL *x, int64_t n, struct softmax_total total, REAL *terms, REAL *y)
{
    vreal base, factor;
    softmax_factors(w->a->what, v_splat(total.highest), v_splat(total.sum), &base, &factor);
    if (w->a->what == ATTN_SOFTMAX) {
        row_terms(x, n, base, terms, true, w->direct_x ? x + n : x, w->direct_y && !w->stream ? y : NULL);
        row_results(ATTN_SOFTMAX, terms, n, base, factor, y, w->stream && w->direct_y);
    } else
        row_results(ATTN_LOG_SOFTMAX, x, n, base, factor, y, w->stream && w->direct_y);
}

/* The results of one part of long rows. */
static void
softmax_part_results(const struct softmax_work *w, const struct softmax_tile *tile, int64_t part, REAL *scratch, const struct softmax_total *total)
{
    const struct attn_softmax *a = w->a;
    int64_t end = attn_min((part + 1) * w->part, w->n);
    bool spoilt = false;
    for (int64_t r = 0; r < tile->rows; r++)
        spoilt |= total[r].sum != total[r].sum || total[r].highest == REAL_INFINITY;
    for (int64_t i = part * w->part; i < end && !attn_stopped(a->call.stop); i += w->block) {
        int64_t n = attn_min(w->block, end - i);
        if (!w->direct_x)
            softmax_load(w, tile, SOFTMAX_X, -REAL_INFINITY, i, n, scratch);
        for (int64_t r = 0; r < tile->rows; r++) {
            REAL *buffer = scratch + r * w->pitch;
            const REAL *x = w->direct_x ? (const REAL *)(a->x.data + tile->offset[SOFTMAX_X] + r * w->row_stride[SOFTMAX_X]) + i : buffer;
            REAL *y = w->direct_y ? (REAL *)(a->y.data + tile->offset[SOFTMAX_Y] + r * w->row_stride[SOFTMAX_Y]) + i : buffer;
            softmax_row_results(w, x, n, total[r], buffer, y);
        }
        if (!w->direct_y)
            softmax_store(w, tile, i, n, scratch, spoilt);
    }
}

/* logsumexp of long rows. */
static void
softmax_put_totals(const struct softmax_work *w, const struct softmax_tile *tile, const struct softmax_total *total)
{
    for (int64_t r = 0; r < tile->rows; r++) {
        vreal base, result;
        softmax_factors(ATTN_LOGSUMEXP, v_splat(total[r].highest), v_splat(total[r].sum), &base, &result);
        softmax_put(w, tile, r, 1, (const REAL[]){result[0]});
    }
}

/* A tile of long rows, in one task. */
static void
softmax_long(const struct softmax_work *w, const struct softmax_tile *tile, REAL *scratch)
{
    struct softmax_total total[SOFTMAX_MOST_ROWS], more[SOFTMAX_MOST_ROWS];
    softmax_part_totals(w, tile, 0, scratch, total);
    for (int64_t part = 1; part < w->parts; part++) {
        softmax_part_totals(w, tile, part, scratch, more);
        for (int64_t r = 0; r < tile->rows; r++)
            total[r] = softmax_merge(total[r], more[r]);
    }
    if (w->a->what == ATTN_LOGSUMEXP)
        softmax_put_totals(w, tile, total);
    else
        for (int64_t part = 0; part < w->parts; part++)
            softmax_part_results(w, tile, part, scratch, total);
}

/* Where long rows are few, a task is a part of a tile: its totals go to the workspace, [row][part], in phase 0; phase 1 merges them and goes on. */
static void
softmax_long_phase(const struct softmax_work *w, int phase, int64_t task, REAL *scratch)
{
    struct softmax_total total[SOFTMAX_MOST_ROWS], *all = w->a->call.workspace;
    struct softmax_tile tile;
    bool whole = phase == 1 && w->a->what == ATTN_LOGSUMEXP;
    int64_t part = whole ? 0 : task % w->parts;
    softmax_tile_at(w, whole ? task : task / w->parts, &tile);
    if (phase == 0) {
        softmax_part_totals(w, &tile, part, scratch, total);
        for (int64_t r = 0; r < tile.rows; r++)
            all[(tile.first + r) * w->parts + part] = total[r];
        return;
    }
    for (int64_t r = 0; r < tile.rows; r++) {
        const struct softmax_total *row = all + (tile.first + r) * w->parts;
        total[r] = row[0];
        for (int64_t p = 1; p < w->parts; p++)
            total[r] = softmax_merge(total[r], row[p]);
    }
    if (whole)
        softmax_put_totals(w, &tile, total);
    else
        softmax_part_results(w, &tile, part, scratch, total);
}
