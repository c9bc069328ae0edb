/* positions_sinusoidal.inc.h: always computed in double, whatever the results are stored as; so there is one of it, for both types.
 * Rows of float32 whose positions grow evenly are made from the row before by a rotation; every 64th is computed anew. */
#if REAL_BITS == 64

enum { SINUSOIDAL_RUN = 64, SINUSOIDAL_ROWS = 3 }; /* rows that an exact one begins; rows made in one pass */
#define SINUSOIDAL_STREAM ((int64_t)8 << 20)    /* bytes of y from which stores go past the caches */
#define SINUSOIDAL_GROUP ((int64_t)8 << 10)     /* bytes of rows that are stored together */
#define SINUSOIDAL_TASK ((int64_t)256 << 10)    /* bytes of rows of a task */
static inline int64_t
sinusoidal_frequencies(const struct attn_sinusoidal *a)
{
    return (a->dim + !a->concatenated) / 2;
}

struct sinusoidal_work {
    const struct attn_sinusoidal *a;
    int64_t frequencies, padded; /* of a part; a whole number of vectors */
    int64_t row_bytes, group;    /* of y; rows that are stored together */
    int64_t runs, runs_of_line, runs_of_task;
    const double *high, *low; /* frequencies in turns, in the workspace; what pads them repeats the last */
    bool evenly, stream, adjacent, in_place; /* adjacent: rows of y follow one another */
};

/* A part's row and the step from row to row, in whole vectors; how they are laid out in y. */
struct sinusoidal_vectors {
    double *sine, *cosine, *step_sine, *step_cosine;
    const double *high, *low;
    int64_t frequencies, padded, dim;
    bool concatenated;
};

struct sinusoidal_state {
    struct sinusoidal_vectors vectors;
    double step, position[SINUSOIDAL_RUN];
    bool evenly;
};

static void
sinusoidal_describe(const struct attn_sinusoidal *a, struct sinusoidal_work *w)
{
    int64_t size = attn_type_size(a->y.type), rows = 1;
    for (int axis = 0; axis < a->ndim; axis++)
        rows *= a->shape[axis];
    w->a = a;
    w->frequencies = sinusoidal_frequencies(a);
    w->padded = (w->frequencies + LANES - 1) / LANES * LANES;
    w->row_bytes = a->parts * a->dim * size;
    w->group = attn_max(1, attn_min(SINUSOIDAL_RUN, SINUSOIDAL_GROUP / attn_max(w->row_bytes, 1)));
    w->runs_of_line = (a->shape[a->ndim - 1] + SINUSOIDAL_RUN - 1) / SINUSOIDAL_RUN;
    w->runs = w->runs_of_line > 0 ? rows / a->shape[a->ndim - 1] * w->runs_of_line : 0;
    w->runs_of_task = attn_max(1, SINUSOIDAL_TASK / attn_max(w->row_bytes * attn_min(SINUSOIDAL_RUN, a->shape[a->ndim - 1]), 1));
    w->high = a->call.workspace;
    w->low = w->high + w->padded;
    w->evenly = a->y.type != ATTN_FLOAT64;
    w->stream = rows * w->row_bytes >= SINUSOIDAL_STREAM;
    w->adjacent = a->y.column == size && a->y.batch[a->ndim - 1] == w->row_bytes;
    w->in_place = w->adjacent && !w->stream;
}

/* Each frequency is the one LANES before it times the same number: short chains. */
static void
sinusoidal_fill(const struct sinusoidal_work *w)
{
    const struct attn_sinusoidal *a = w->a;
    double *high = (double *)w->high, *low = (double *)w->low;
    int64_t n = w->frequencies;
    struct twofold ratio = a->half_minus_one ? sinusoidal_ratio(a->base, 1, attn_max(n - 1, 1)) : sinusoidal_ratio(a->base, 2, a->dim);
    struct twofold f = {ONE_OVER_TWO_PI_HIGH, ONE_OVER_TWO_PI_LOW}, far = twofold_power(ratio, LANES);
    for (int64_t i = 0; i < w->padded; i++) {
        if (i >= LANES && i < n)
            f = twofold_product((struct twofold){high[i - LANES], low[i - LANES]}, far);
        high[i] = f.high;
        low[i] = f.low;
        if (i < LANES && i + 1 < n)
            f = twofold_product(f, ratio);
    }
}

typedef float vsingle __attribute__((vector_size(VECTOR_BYTES / 2), may_alias)); /* LANES of them */
typedef float vpairs __attribute__((vector_size(VECTOR_BYTES), may_alias));

/* x0 y0 x1 y1 ... */
ATTN_INLINE vpairs
v_pairs(vsingle x, vsingle y)
{
#if VECTOR_BYTES == 64
    return __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
#elif VECTOR_BYTES == 32
    return __builtin_shufflevector(x, y, 0, 4, 1, 5, 2, 6, 3, 7);
#else
    return __builtin_shufflevector(x, y, 0, 2, 1, 3);
#endif
}

/* count numbers of a vector, all or fewer. */
ATTN_INLINE void
store_some(char *to, vreal x, int64_t count, bool wide, bool whole)
{
    vsingle narrow = __builtin_convertvector(x, vsingle);
    if (whole && wide)
        memcpy(to, &x, sizeof x);
    else if (whole)
        memcpy(to, &narrow, sizeof narrow);
    else
        for (int64_t i = 0; i < count; i++)
            memcpy(to + i * (wide ? 8 : 4), wide ? (char *)&x + 8 * i : (char *)&narrow + 4 * i, wide ? 8 : 4);
}

/* The smaller of |x| and |y|. */
ATTN_INLINE vreal
v_least_size(vreal x, vreal y)
{
#if defined ATTN_ISA_AVX512
    return (vreal)_mm512_range_pd((__m512d)x, (__m512d)y, 10);
#else
    return v_min(v_abs(x), v_abs(y));
#endif
}

ATTN_INLINE bool
v_any_below(vreal x, REAL limit)
{
#if defined ATTN_ISA_AVX512
    return _mm512_cmp_pd_mask((__m512d)x, _mm512_set1_pd(limit), _CMP_LT_OQ) != 0;
#else
    return v_any(x < v_splat(limit));
#endif
}

/* Sines and cosines i ... i + LANES - 1 of a row of doubles or floats; nothing beyond the row. whole: the row has all of them. */
ATTN_INLINE void
sinusoidal_emit(const struct sinusoidal_vectors *v, int64_t i, vreal s, vreal c, char *row, bool wide, bool whole)
{
    int64_t n = v->frequencies, size = wide ? sizeof(double) : sizeof(float);
    if (v->concatenated) {
        store_some(row + i * size, s, n - i, wide, whole);
        store_some(row + (n + i) * size, c, n - i, wide, whole);
    } else if (whole && !wide) {
        vpairs pairs = v_pairs(__builtin_convertvector(s, vsingle), __builtin_convertvector(c, vsingle));
        memcpy(row + 2 * i * size, &pairs, sizeof pairs);
    } else {
        int64_t room = v->dim - 2 * i; /* in an odd dim the last cosine has none */
        store_some(row + 2 * i * size, v_interleave_low(s, c), attn_min(room, LANES), wide, whole);
        store_some(row + (2 * i + LANES) * size, v_interleave_high(s, c), attn_min(room - LANES, LANES), wide, whole);
    }
}

/* Vectors that a row has whole; one more may be begun. */
static inline int64_t
sinusoidal_whole(const struct sinusoidal_vectors *v)
{
    int64_t n = v->frequencies - (!v->concatenated && v->dim % 2);
    return n - n % LANES;
}

ATTN_INLINE void
sinusoidal_exact_vector(const struct sinusoidal_vectors *v, double position, int64_t i, char *to, bool wide, bool whole)
{
    vreal s, c;
    v_sinusoid(v_splat(position), v->high + i, v->low + i, &s, &c);
    v_store(v->sine + i, s);
    v_store(v->cosine + i, c);
    sinusoidal_emit(v, i, s, c, to, wide, whole);
}

/* A row from its position alone. `to` holds doubles or floats. */
ATTN_INLINE void
sinusoidal_exact(const struct sinusoidal_vectors *v, double position, char *to, bool wide)
{
    int64_t whole = sinusoidal_whole(v);
    for (int64_t i = 0; i < whole; i += LANES)
        sinusoidal_exact_vector(v, position, i, to, wide, true);
    if (whole < v->padded)
        sinusoidal_exact_vector(v, position, whole, to, wide, false);
}

/* Rows where a sine or cosine is too small to be left to rotations. */
ATTN_NOINLINE void
sinusoidal_mend(const double *high, const double *low, const double *position, int rows, vreal *s, vreal *c)
{
    for (int r = 0; r < rows; r++)
        v_sinusoid(v_splat(position[r]), high, low, &s[r], &c[r]);
}

ATTN_INLINE void
sinusoidal_turn_vector(const struct sinusoidal_vectors *v, const double *position, int rows, int64_t i, char *to, int64_t pitch, bool whole)
{
    vreal step_s = v_load(v->step_sine + i), step_c = v_load(v->step_cosine + i), smallest = v_splat(1);
    vreal s[SINUSOIDAL_ROWS + 1], c[SINUSOIDAL_ROWS + 1];
    s[0] = v_load(v->sine + i);
    c[0] = v_load(v->cosine + i);
    ATTN_UNROLL
    for (int r = 1; r <= rows; r++) {
        s[r] = s[r - 1] * step_c + c[r - 1] * step_s;
        c[r] = c[r - 1] * step_c - s[r - 1] * step_s;
        smallest = v_least_size(smallest, v_least_size(s[r], c[r]));
    }
    v_store(v->sine + i, s[rows]);
    v_store(v->cosine + i, c[rows]);
    if (__builtin_expect(v_any_below(smallest, 0x1p-19), 0)) {
        vreal mended_s[SINUSOIDAL_ROWS], mended_c[SINUSOIDAL_ROWS];
        sinusoidal_mend(v->high + i, v->low + i, position, rows, mended_s, mended_c);
        ATTN_UNROLL
        for (int r = 0; r < rows; r++)
            sinusoidal_emit(v, i, mended_s[r], mended_c[r], to + r * pitch, false, whole);
        return;
    }
    ATTN_UNROLL
    for (int r = 1; r <= rows; r++)
        sinusoidal_emit(v, i, s[r], c[r], to + (r - 1) * pitch, false, whole);
}

/* The next `rows` rows of floats, `pitch` bytes apart. 63 rotations err by less than 2^-45: a quarter of a unit of a float that is not smaller than 2^-19.
 * Where one is smaller, its vector of frequencies is computed anew. */
ATTN_INLINE void
sinusoidal_turn(const struct sinusoidal_vectors *v, const double *position, int rows, char *to, int64_t pitch)
{
    int64_t whole = sinusoidal_whole(v);
    for (int64_t i = 0; i < whole; i += LANES)
        sinusoidal_turn_vector(v, position, rows, i, to, pitch, true);
    if (whole < v->padded)
        sinusoidal_turn_vector(v, position, rows, whole, to, pitch, false);
}

/* Rows first ... first + n - 1 of a part's run, n at most SINUSOIDAL_ROWS, to `to`, as doubles or floats. Row 0 comes alone. */
ATTN_NOINLINE void
sinusoidal_rows(const struct sinusoidal_state *state, int64_t first, int64_t n, char *to, int64_t pitch, bool wide)
{
    const struct sinusoidal_vectors v = state->vectors;
    const double *position = state->position + first;
    int64_t size = wide ? sizeof(double) : sizeof(float);
    if (first > 0 && state->evenly && n == SINUSOIDAL_ROWS && v.concatenated)
        sinusoidal_turn(&v, position, SINUSOIDAL_ROWS, to, pitch);
    else if (first > 0 && state->evenly && n == SINUSOIDAL_ROWS)
        sinusoidal_turn(&v, position, SINUSOIDAL_ROWS, to, pitch);
    else if (first > 0 && state->evenly)
        for (int64_t r = 0; r < n; r++)
            sinusoidal_turn(&v, position + r, 1, to + r * pitch, pitch);
    else if (wide)
        for (int64_t r = 0; r < n; r++)
            sinusoidal_exact(&v, position[r], to + r * pitch, true);
    else
        for (int64_t r = 0; r < n; r++)
            sinusoidal_exact(&v, position[r], to + r * pitch, false);
    if (v.concatenated && v.dim % 2)
        for (int64_t r = 0; r < n; r++)
            memset(to + r * pitch + (v.dim - 1) * size, 0, (size_t)size);
}

/* The same in y's type. Half types come by way of `floats`. */
static void
sinusoidal_put(const struct sinusoidal_work *w, struct sinusoidal_state *state, int64_t first, int64_t n, char *to, float *floats)
{
    enum attn_type type = w->a->y.type;
    if (type == ATTN_FLOAT64 || type == ATTN_FLOAT32)
        sinusoidal_rows(state, first, n, to, w->row_bytes, type == ATTN_FLOAT64);
    else {
        sinusoidal_rows(state, first, n, (char *)floats, w->a->dim * (int64_t)sizeof(float), false);
        for (int64_t r = 0; r < n; r++)
            store_row_f32(to + r * w->row_bytes, sizeof(uint16_t), floats + r * w->a->dim, w->a->dim, type, false);
    }
}

/* Bytes to where they belong. */
ATTN_INLINE void
copy_past_caches(char *to, const char *from, int64_t bytes)
{
    int64_t i = attn_min(bytes, -(int64_t)(uintptr_t)to & (VECTOR_BYTES - 1));
    memcpy(to, from, (size_t)i);
    for (; i + VECTOR_BYTES <= bytes; i += VECTOR_BYTES) {
        vreal x;
        memcpy(&x, from + i, sizeof x);
        v_stream((REAL *)(to + i), x);
    }
    memcpy(to + i, from + i, (size_t)(bytes - i));
}

static void
sinusoidal_store(const struct sinusoidal_work *w, char *y, const char *rows, int64_t n)
{
    const struct attn_tensor *t = &w->a->y;
    int64_t size = attn_type_size(t->type), stride = t->batch[w->a->ndim - 1], columns = w->a->parts * w->a->dim;
    if (w->adjacent && w->stream)
        copy_past_caches(y, rows, n * w->row_bytes);
    else
        for (int64_t r = 0; r < n; r++)
            if (t->column == size)
                memcpy(y + r * stride, rows + r * w->row_bytes, (size_t)w->row_bytes);
            else
                for (int64_t i = 0; i < columns; i++)
                    attn_copy_element(y + r * stride + i * t->column, rows + r * w->row_bytes + i * size, size, false);
}

/* Whether n positions grow evenly, by differences that are exact. */
static bool
sinusoidal_is_even(const double *position, int64_t n)
{
    bool even = n > 3;
    for (int64_t i = 0; i < n && even; i++) {
        double scaled = position[i] * 0x1p20; /* whole and below 2^51: all differences are exact */
        even = scaled > -0x1p51 && scaled < 0x1p51 && scaled == (double)(int64_t)scaled;
    }
    for (int64_t i = 2; i < n && even; i++)
        even = position[i] - position[i - 1] == position[1] - position[0];
    return even;
}

/* The positions of a run of a part, and what its first row needs. */
static void
sinusoidal_begin(const struct sinusoidal_work *w, int part, int64_t line, int64_t first, int64_t n, struct sinusoidal_state *state)
{
    const struct attn_sinusoidal *a = w->a;
    const struct attn_tensor *t = &a->positions[part];
    int64_t stride = t->batch[a->ndim - 1], offset = attn_batch_offset(line, a->ndim - 1, a->shape, t->batch) + first * stride;
    if (t->data)
        load_row(state->position, t->data + offset, stride, n, t->type, t->swapped);
    else
        for (int64_t i = 0; i < n; i++)
            state->position[i] = (double)(offset + i * stride);
    state->evenly = w->evenly && sinusoidal_is_even(state->position, n);
    if (state->evenly && state->position[1] - state->position[0] != state->step) {
        state->step = state->position[1] - state->position[0];
        for (int64_t i = 0; i < w->padded; i += LANES) {
            vreal s, c;
            v_sinusoid(v_splat(state->step), w->high + i, w->low + i, &s, &c);
            v_store(state->vectors.step_sine + i, s);
            v_store(state->vectors.step_cosine + i, c);
        }
    }
}

/* A run of rows of y: SINUSOIDAL_RUN of them, or what is left of a line. */
static void
sinusoidal_run_of_rows(const struct sinusoidal_work *w, int64_t run, struct sinusoidal_state *state, char *made, float *floats)
{
    const struct attn_sinusoidal *a = w->a;
    int64_t line = run / w->runs_of_line, first = run % w->runs_of_line * SINUSOIDAL_RUN, stride = a->y.batch[a->ndim - 1];
    int64_t n = attn_min(SINUSOIDAL_RUN, a->shape[a->ndim - 1] - first), waiting = 0;
    char *y = a->y.data + attn_batch_offset(line, a->ndim - 1, a->shape, a->y.batch) + first * stride;
    for (int part = 0; part < a->parts; part++)
        sinusoidal_begin(w, part, line, first, n, &state[part]);
    for (int64_t r = 0; r < n;) {
        int64_t rows = r == 0 ? 1 : attn_min(SINUSOIDAL_ROWS, n - r);
        char *to = w->in_place ? y + r * stride : made + waiting * w->row_bytes;
        for (int part = 0; part < a->parts; part++)
            sinusoidal_put(w, &state[part], r, rows, to + part * (w->row_bytes / a->parts), floats);
        r += rows;
        waiting += rows;
        if (!w->in_place && (waiting >= w->group || r == n)) {
            sinusoidal_store(w, y + (r - waiting) * stride, made, waiting);
            waiting = 0;
        }
    }
}

static void
sinusoidal_plan(const void *arguments, struct attn_plan *plan)
{
    struct sinusoidal_work w;
    sinusoidal_describe(arguments, &w);
    int64_t numbers = w.runs * SINUSOIDAL_RUN * w.a->parts * w.a->dim;
    *plan = (struct attn_plan){.phases = 2, .cost = 4.0 * (double)numbers};
    plan->tasks[0] = 1;
    plan->tasks[1] = (w.runs + w.runs_of_task - 1) / w.runs_of_task;
    plan->workspace = (size_t)(2 * w.padded) * sizeof(double);
    plan->scratch = (size_t)(4 * w.a->parts * w.padded) * sizeof(double) + (size_t)((w.group + SINUSOIDAL_ROWS) * w.row_bytes) +
                    (size_t)(SINUSOIDAL_ROWS * w.a->dim) * sizeof(float);
}

static void
sinusoidal_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    struct sinusoidal_work w;
    struct sinusoidal_state state[ATTN_SINUSOIDAL_PARTS];
    double *next = scratch;
    sinusoidal_describe(arguments, &w);
    if (phase == 0) {
        sinusoidal_fill(&w);
        return;
    }
    for (int part = 0; part < w.a->parts; part++) {
        state[part].vectors = (struct sinusoidal_vectors){next, next + w.padded, next + 2 * w.padded, next + 3 * w.padded, w.high, w.low,
                                                          w.frequencies, w.padded, w.a->dim, w.a->concatenated};
        state[part].step = __builtin_nan("");
        next += 4 * w.padded;
    }
    float *floats = (float *)next;
    char *rows = (char *)(floats + SINUSOIDAL_ROWS * w.a->dim);
    for (int64_t run = task * w.runs_of_task; run < attn_min((task + 1) * w.runs_of_task, w.runs) && !attn_stopped(w.a->call.stop); run++)
        sinusoidal_run_of_rows(&w, run, state, rows, floats);
    if (w.stream)
        attn_stores_done();
}

static const struct attn_kernel SUFFIX(attn_sinusoidal) = {sinusoidal_plan, sinusoidal_run};
#endif
