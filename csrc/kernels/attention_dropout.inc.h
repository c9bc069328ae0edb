/* attention_dropout.inc.h: the dropout mask, a pure function of the key and of (batch number, head, i, j).
 *
 * r = word j mod 4 of Threefry-4x32-20 at counter (j / 4, i, head, batch); the entry is kept where r >= p 2^32. Additions, rotations and
 * exclusive ors only, so every level computes the same bits. */
#ifndef ATTN_DROPOUT_NAMES
#define ATTN_DROPOUT_NAMES
#define vword SUFFIX(vword)
#define threefry SUFFIX(threefry)
#define drop_weights SUFFIX(drop_weights)
#define drop_lanes SUFFIX(drop_lanes)
#define drop_row SUFFIX(drop_row)
#define dropout_mask_plan SUFFIX(dropout_mask_plan)
#define dropout_mask_run SUFFIX(dropout_mask_run)
#define attn_dropout_mask SUFFIX(attn_dropout_mask)

/* Rotation counts: Salmon et al. 2011, Random123's R_32x4. */
static const uint8_t attn_threefry_rotation[8][2] = {{10, 26}, {11, 21}, {13, 27}, {23, 5}, {6, 20}, {17, 11}, {25, 10}, {18, 20}};

static inline uint32_t
attn_dropout_threshold(double p)
{
    return (uint32_t)(p * 4294967296.0);
}
#endif

typedef uint32_t vword __attribute__((vector_size(VECTOR_BYTES / sizeof(REAL) * 4)));

/* x[0..3]: counters in, random words out. */
ATTN_INLINE void
threefry(vword *x, const uint32_t *key)
{
    uint32_t k[5] = {key[0], key[1], key[2], key[3], 0x1bd11bda ^ key[0] ^ key[1] ^ key[2] ^ key[3]};
    for (int i = 0; i < 4; i++)
        x[i] += k[i];
    ATTN_UNROLL
    for (int round = 0; round < 20; round++) {
        int even = round % 2 == 0 ? 1 : 3, odd = round % 2 == 0 ? 3 : 1;
        int r = attn_threefry_rotation[round % 8][0], s = attn_threefry_rotation[round % 8][1];
        x[0] += x[even];
        x[even] = ((x[even] << r) | (x[even] >> (32 - r))) ^ x[0];
        x[2] += x[odd];
        x[odd] = ((x[odd] << s) | (x[odd] >> (32 - s))) ^ x[2];
        if (round % 4 == 3) {
            int turn = round / 4 + 1;
            for (int i = 0; i < 4; i++)
                x[i] += k[(turn + i) % 5];
            x[3] += (uint32_t)turn;
        }
    }
}

/* Sets dropped weights of a group to 0: lanes are queries. Kept ones are divided by 1 - p when the output is finished. */
static void
drop_weights(const struct attn_attention *a, int64_t batch, const struct row_block *rows, int lane, int nv, int64_t width, REAL *weights,
             int64_t key, int keys)
{
    uint32_t threshold = attn_dropout_threshold(a->dropout_p);
    for (int i = 0; i < nv; i++) {
        vword index = {0}, head = {0}, word[4] = {{0}};
        for (int n = 0; n < LANES && lane + i * LANES + n < rows->count; n++) {
            index[n] = (uint32_t)rows->index[lane + i * LANES + n];
            head[n] = (uint32_t)rows->head[lane + i * LANES + n];
        }
        for (int t = 0; t < keys; t++) {
            if (t == 0 || (key + t) % 4 == 0) {
                word[0] = (vword){0} + (uint32_t)((key + t) >> 2);
                word[1] = index;
                word[2] = head;
                word[3] = (vword){0} + (uint32_t)(a->first_batch + batch);
                threefry(word, a->dropout_key);
            }
            REAL *w = weights + t * width + i * LANES;
            vint kept = __builtin_convertvector(word[(key + t) & 3] >= threshold, vint);
            v_store(w, v_select(kept, v_load(w), (vreal){0}));
        }
    }
}

/* Four LANES entries, `value` or 0, from key 4 `four` on. Lanes are groups of four keys, whose words two rounds of interleaving bring side by side. */
ATTN_INLINE void
drop_lanes(const uint32_t *dropout_key, uint32_t threshold, int64_t batch, int64_t head, int64_t i, int64_t four, REAL value, REAL *kept)
{
    vword counter = {0};
    vreal part[4];
    for (int lane = 0; lane < LANES; lane++)
        counter[lane] = (uint32_t)(four + lane);
    vword word[4] = {counter, (vword){0} + (uint32_t)i, (vword){0} + (uint32_t)head, (vword){0} + (uint32_t)batch};
    threefry(word, dropout_key);
    ATTN_UNROLL
    for (int n = 0; n < 4; n++)
        part[n] = v_select(__builtin_convertvector(word[n] >= threshold, vint), v_splat(value), (vreal){0});
    vreal even = v_interleave_low(part[0], part[2]), odd = v_interleave_low(part[1], part[3]);
    v_storeu(kept, v_interleave_low(even, odd));
    v_storeu(kept + LANES, v_interleave_high(even, odd));
    even = v_interleave_high(part[0], part[2]), odd = v_interleave_high(part[1], part[3]);
    v_storeu(kept + 2 * LANES, v_interleave_low(even, odd));
    v_storeu(kept + 3 * LANES, v_interleave_high(even, odd));
}

/* kept[t] = `value` or 0 for keys first ... first + n - 1 of row (batch, head, i). */
static void
drop_row(const uint32_t *dropout_key, double p, int64_t batch, int64_t head, int64_t i, int64_t first, int64_t n, REAL value, REAL *kept)
{
    uint32_t threshold = attn_dropout_threshold(p);
    for (int64_t from = first / 4 * 4; from < first + n; from += 4 * LANES) {
        REAL part[4 * VECTOR_BYTES / sizeof(REAL)];
        int64_t begin = attn_max(from, first), end = attn_min(from + 4 * LANES, first + n);
        bool whole = end - begin == 4 * LANES;
        drop_lanes(dropout_key, threshold, batch, head, i, from / 4, value, whole ? kept + (from - first) : part);
        if (!whole)
            memcpy(kept + (begin - first), part + (begin - from), (size_t)(end - begin) * sizeof(REAL));
    }
}

/* A task is one row of the mask. */
static void
dropout_mask_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_dropout *a = arguments;
    plan->phases = 1;
    plan->tasks[0] = a->batch * a->heads * a->query_length;
    plan->scratch = attn_round_up((size_t)a->key_length * sizeof(REAL));
    plan->workspace = 0;
    plan->cost = 40.0 * (double)plan->tasks[0] * (double)a->key_length;
}

static void
dropout_mask_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_dropout *a = arguments;
    REAL *row = scratch;
    int64_t i = task % a->query_length, head = task / a->query_length % a->heads, batch = task / a->query_length / a->heads;
    (void)phase;
    if (attn_stopped(a->call.stop))
        return;
    drop_row(a->dropout_key, a->dropout_p, batch, head, i, 0, a->key_length, (REAL)(1 / (1 - a->dropout_p)), row);
    char *out = a->output.data + attn_batch_offset(batch, a->batch_ndim, a->batch_shape, a->output.batch) + head * a->output.head + i * a->output.row;
    store_row(out, a->output.column, row, a->key_length, a->output.type, a->output.swapped);
}

static const struct attn_kernel attn_dropout_mask = {dropout_mask_plan, dropout_mask_run};
