/* attention_parts.inc.h: results over parts of the keys, and their merging in ascending order.
 *
 * A part's row: its maximum, its sum, and its output not yet divided, in whole vectors. The rows of one key/value head lie [part][row], in the
 * workspace where tasks share a head, else in the scratch of the one task that computes all its parts. */
#ifndef ATTN_PARTS_NAMES
#define ATTN_PARTS_NAMES
#define part_pitch SUFFIX(part_pitch)
#define parts_bytes SUFFIX(parts_bytes)
#define part_rows SUFFIX(part_rows)
#define rows_part SUFFIX(rows_part)
#define merge_row SUFFIX(merge_row)
#define merge_parts SUFFIX(merge_parts)
#endif

ATTN_INLINE int64_t
part_pitch(const struct attn_attention *a)
{
    return (a->value_dim + LANES - 1) / LANES * LANES + LANES;
}

/* Of all parts of one key/value head. */
ATTN_INLINE size_t
parts_bytes(const struct attn_attention *a, const struct attn_forward_cut *cut)
{
    return attn_round_up((size_t)(cut->parts * cut->rows * part_pitch(a)) * sizeof(REAL));
}

/* The first row of a part. */
ATTN_INLINE REAL *
part_rows(const struct attn_attention *a, const struct attn_forward_cut *cut, REAL *parts, int64_t part)
{
    return parts + part * cut->rows * part_pitch(a);
}

/* Keeps a row block as part of its rows. */
static void
rows_part(const struct attn_attention *a, const struct row_block *rows, REAL *part)
{
    REAL *row[ATTN_BLOCK], one[ATTN_BLOCK];
    for (int lane = 0; lane < ATTN_BLOCK; lane++)
        one[lane] = 1;
    for (int lane = 0; lane < rows->count; lane++) {
        REAL *to = part + lane * part_pitch(a);
        to[0] = rows->top[lane];
        to[1] = rows->sum[lane];
        row[lane] = to + LANES;
    }
    rows_out(rows, row, rows->output, a->value_dim, a->value_dim, one);
}

/* The parts of one row: O = sum_t 2^(top_t - top) O_t / l. The first part's row is used up. */
static void
merge_row(const struct attn_attention *a, const struct attn_forward_cut *cut, REAL *parts, int64_t row, int64_t batch, int64_t head, int64_t i)
{
    int64_t pitch = part_pitch(a), step = cut->rows * pitch;
    REAL top = -REAL_INFINITY, *to = parts + row * pitch, sum = 0;
    for (int64_t t = 0; t < cut->parts; t++) {
        REAL m = to[t * step];
        top = m > top || m != m ? m : top;
    }
    REAL base = top == -REAL_INFINITY ? 0 : top;
    for (int64_t t = 0; t < cut->parts; t++) {
        const REAL *part = to + t * step;
        vreal factor = v_exp2_weight(v_splat(part[0] - base));
        sum += factor[0] * part[1];
        for (int64_t c = LANES; c < pitch; c += LANES) {
            vreal more = v_load(part + c) * factor;
            if (t > 0)
                more += v_load(to + c);
            v_store(to + c, more);
        }
    }
    REAL factor = sum == 0 ? 0 : (REAL)(1 / (1 - a->dropout_p)) / sum;
    for (int64_t c = LANES; c < pitch; c += LANES)
        v_store(to + c, v_load(to + c) * v_splat(factor));
    const struct attn_tensor *output = &a->output;
    store_row(output_row(output, output_batch(a, output, batch), head, i), output->column, to + LANES, a->value_dim, output->type, output->swapped);
    if (a->lse.data)
        store_lse(a, output_batch(a, &a->lse, batch), head, i, (double)top, (double)sum);
}

/* All rows of one key/value head. */
static void
merge_parts(const struct attn_attention *a, const struct attn_forward_cut *cut, REAL *parts, int64_t batch, int64_t kv_head)
{
    for (int64_t row = 0; row < cut->rows; row++) {
        bool paired = cut->layout.paired;
        merge_row(a, cut, parts, row, batch, kv_head * a->group + (paired ? row % a->group : 0), paired ? row / a->group : row);
    }
}
