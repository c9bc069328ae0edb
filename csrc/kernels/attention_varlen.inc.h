/* attention_varlen.inc.h: packed sequences: each is a call of attention_run or backward_run with its own pointers, lengths and local tasks.
 *
 * What is too little for a task of its own joins its neighbours: one task then does all phases of several sequences, one after the other. Rows past the
 * last sequence are a sequence without keys, keys past it one without queries: numbers N and N + 1. */
#ifndef ATTN_VARLEN_NAMES
#define ATTN_VARLEN_NAMES
#define varlen_plan SUFFIX(varlen_plan)
#define varlen_run SUFFIX(varlen_run)
#define varlen_way SUFFIX(varlen_way)
#define varlen_backward_plan SUFFIX(varlen_backward_plan)
#define varlen_backward_run SUFFIX(varlen_backward_run)
#define varlen_backward_way SUFFIX(varlen_backward_way)
#define attn_varlen_kernel SUFFIX(attn_varlen)
#define attn_varlen_backward_kernel SUFFIX(attn_varlen_backward)

/* How one sequence is computed. */
struct attn_varlen_way {
    const struct attn_kernel *kernel;
    size_t arguments; /* size of its struct, with which struct attn_varlen begins */
    int phases;
    int main;         /* the phase that does the work: sequences that are done together go there */
    int joined;       /* the phase whose tasks go over all sequences; `phases`: none */
    bool keys_alone;  /* keys without queries have results too */
};

/* Operations, roughly: what one task takes at most of sequences that it does together, and what a head costs beside its scores. */
static const double attn_varlen_most = 2e7, attn_varlen_head = 2e4;

/* A sequence's work in the forward pass. A row costs as much as eight scores, and so does a key. */
static inline double
attn_varlen_work(const struct attn_attention *a)
{
    double rows = (double)a->query_length, keys = (double)a->key_length, each = 2 * (double)(a->head_dim + a->value_dim + 8);
    return (double)a->heads * (each * (rows * (keys + 8) + 8 * keys) + attn_varlen_head);
}

/* The lengths of sequence n. */
static inline void
attn_varlen_measure(const struct attn_varlen *v, int64_t n, struct attn_attention *one)
{
    int64_t N = v->sequences;
    one->query_length = n > N ? 0 : (n < N ? v->query_starts[n + 1] : v->query_rows) - v->query_starts[n];
    one->key_length = n == N ? 0 : n < N ? v->key_starts[n + 1] - v->key_starts[n] : v->key_rows - v->key_starts[N];
}

/* An operand n strides further on; an absent one, whose strides are not set, stays absent. */
static inline void
attn_move(struct attn_tensor *to, const struct attn_tensor *from, int64_t n, int64_t stride)
{
    to->data = from->data ? from->data + n * stride : NULL;
}

/* Makes of a copy of the arguments those of sequence n. */
static void
attn_varlen_place(const struct attn_varlen *v, int64_t n, struct attn_attention_backward *to)
{
    const struct attn_attention_backward *of = &v->backward;
    const struct attn_attention *a = &of->forward;
    struct attn_attention *one = &to->forward;
    int64_t N = v->sequences, query = v->query_starts[attn_min(n, N)], key = v->key_starts[attn_min(n, N)];
    attn_varlen_measure(v, n, one);
    one->row_count = one->query_length;
    one->first_batch = n;
    attn_move(&one->query, &a->query, query, a->query.row);
    attn_move(&one->output, &a->output, query, a->output.row);
    attn_move(&one->lse, &a->lse, query, a->lse.row);
    attn_move(&one->key, &a->key, key, a->key.row);
    attn_move(&one->value, &a->value, key, a->value.row);
    attn_move(&one->rotary.query_positions, &a->rotary.query_positions, query, a->rotary.query_positions.row);
    attn_move(&one->rotary.key_positions, &a->rotary.key_positions, key, a->rotary.key_positions.row);
    attn_move(&one->causal_offset, &a->causal_offset, n, a->causal_offset.batch[0]);
    attn_move(&one->alibi_slopes, &a->alibi_slopes, n, a->alibi_slopes.batch[0]);
    attn_move(&one->sinks, &a->sinks, n, a->sinks.batch[0]);
    attn_move(&one->relative_bias, &a->relative_bias, n, a->relative_bias.batch[0]);
    if (n >= N)
        one->causal_offset.data = one->alibi_slopes.data = one->sinks.data = one->relative_bias.data = NULL;
    if (one->relative_bias.data)
        one->relative_bias.data += query * a->relative_bias.row;
}

/* The same for the backward pass. */
static void
attn_varlen_place_backward(const struct attn_varlen *v, int64_t n, struct attn_attention_backward *one)
{
    const struct attn_attention_backward *of = &v->backward;
    int64_t N = v->sequences, query = v->query_starts[attn_min(n, N)], key = v->key_starts[attn_min(n, N)];
    attn_varlen_place(v, n, one);
    attn_move(&one->gradient, &of->gradient, query, of->gradient.row);
    attn_move(&one->grad_lse, &of->grad_lse, query, of->grad_lse.row);
    attn_move(&one->grad_query, &of->grad_query, query, of->grad_query.row);
    attn_move(&one->grad_key, &of->grad_key, key, of->grad_key.row);
    attn_move(&one->grad_value, &of->grad_value, key, of->grad_value.row);
    attn_move(&one->grad_sinks, &of->grad_sinks, n, of->grad_sinks.batch[0]);
    attn_move(&one->grad_slopes, &of->grad_slopes, n, of->grad_slopes.batch[0]);
    attn_move(&one->grad_relative, &of->grad_relative, n, of->grad_relative.batch[0]);
    if (n >= N)
        one->grad_sinks.data = one->grad_slopes.data = one->grad_relative.data = NULL;
    if (one->grad_relative.data)
        one->grad_relative.data += query * of->grad_relative.row;
}

/* False: the sequence has no results. The threads that it may count on are its share of them, which is how finely it is cut then. */
static bool
attn_varlen_open(const struct attn_varlen *v, const struct attn_varlen_way *way, int64_t n, struct attn_attention_backward *one)
{
    const struct attn_call *call = &v->backward.forward.call;
    if (way->keys_alone)
        attn_varlen_place_backward(v, n, one);
    else
        attn_varlen_place(v, n, one);
    double threads = (double)call->threads * attn_varlen_work(&one->forward) / v->table->work;
    one->forward.call.threads = threads < (double)call->threads ? (int)threads + 1 : call->threads;
    one->forward.call.workspace = (char *)call->workspace + v->table->workspace[n];
    return one->forward.query_length > 0 || (way->keys_alone && one->forward.key_length > 0);
}

/* Sequences as items, and where the workspace of each begins. The work of all is known. */
static void
attn_varlen_cut(const struct attn_varlen *v, const struct attn_varlen_way *way, struct attn_plan *plan)
{
    struct attn_attention_backward one;
    struct attn_varlen_table *table = v->table;
    struct attn_varlen_item *item = NULL;
    double most = fmin(attn_varlen_most, table->work / (8 * v->backward.forward.call.threads));
    memcpy(&one, &v->backward, way->arguments);
    table->items = 0;
    for (int64_t n = 0; n < v->sequences + 2; n++) {
        struct attn_plan own = {0};
        table->workspace[n] = (int64_t)plan->workspace;
        if (!attn_varlen_open(v, way, n, &one))
            continue;
        way->kernel->plan(&one, &own);
        plan->cost += own.cost + (double)one.forward.heads * attn_varlen_head;
        plan->workspace += attn_round_up(own.workspace);
        plan->scratch = own.scratch > plan->scratch ? own.scratch : plan->scratch;
        if (n < v->sequences && way->joined < way->phases)
            plan->tasks[way->joined] = own.tasks[way->joined];
        double work = attn_varlen_work(&one.forward);
        if (!item || !item->together || item->work + work > most) {
            item = &table->item[table->items++];
            *item = (struct attn_varlen_item){.first = n, .together = work <= most};
            for (int phase = 0; phase < way->phases; phase++)
                item->task[phase] = item->together ? phase == way->main : phase < own.phases ? own.tasks[phase] : 0;
        }
        item->end = n + 1;
        item->work += work;
    }
}

static int
attn_varlen_heavier(const void *one, const void *other)
{
    const struct attn_varlen_item *x = one, *y = other;
    return x->work > y->work ? -1 : x->work < y->work ? 1 : x->first < y->first ? -1 : 1;
}

static void
attn_varlen_plan(const struct attn_varlen *v, const struct attn_varlen_way *way, struct attn_plan *plan)
{
    struct attn_attention one = v->backward.forward;
    struct attn_varlen_table *table = v->table;
    *plan = (struct attn_plan){.phases = way->phases};
    table->work = 0;
    for (int64_t n = 0; n < v->sequences + 2; n++) {
        attn_varlen_measure(v, n, &one);
        table->work += attn_varlen_work(&one);
    }
    attn_varlen_cut(v, way, plan);
    qsort(table->item, (size_t)table->items, sizeof *table->item, attn_varlen_heavier);
    for (int phase = 0; phase < way->phases; phase++)
        for (int64_t i = 0; i < table->items && phase != way->joined; i++) {
            int64_t tasks = table->item[i].task[phase];
            table->item[i].task[phase] = plan->tasks[phase];
            plan->tasks[phase] += tasks;
        }
}

/* The item that a task belongs to. */
static const struct attn_varlen_item *
attn_varlen_find(const struct attn_varlen_table *table, int phase, int64_t task)
{
    int64_t first = 0, end = table->items;
    while (end - first > 1) {
        int64_t middle = first + (end - first) / 2;
        *(table->item[middle].task[phase] <= task ? &first : &end) = middle;
    }
    return &table->item[first];
}

/* All phases of a sequence but the joined one. */
static void
attn_varlen_run_whole(const struct attn_varlen_way *way, const struct attn_attention_backward *one, void *scratch)
{
    struct attn_plan own = {0};
    way->kernel->plan(one, &own);
    for (int phase = 0; phase < own.phases; phase++)
        for (int64_t task = 0; task < own.tasks[phase] && phase != way->joined; task++)
            way->kernel->run(one, phase, task, scratch);
}

static void
attn_varlen_run(const struct attn_varlen *v, const struct attn_varlen_way *way, int phase, int64_t task, void *scratch)
{
    const struct attn_varlen_item all = {.end = v->sequences}, *item = phase == way->joined ? &all : attn_varlen_find(v->table, phase, task);
    struct attn_attention_backward one;
    memcpy(&one, &v->backward, way->arguments);
    for (int64_t n = item->first; n < item->end && !attn_stopped(v->backward.forward.call.stop); n++)
        if (!attn_varlen_open(v, way, n, &one))
            continue;
        else if (item->together)
            attn_varlen_run_whole(way, &one, scratch);
        else
            way->kernel->run(&one, phase, task - item->task[phase], scratch);
}
#endif

static const struct attn_varlen_way varlen_way = {
    .kernel = &attn_attention_kernel, .arguments = sizeof(struct attn_attention), .phases = 2, .main = 0, .joined = 2};

static const struct attn_varlen_way varlen_backward_way = {.kernel = &attn_attention_backward_kernel,
                                                           .arguments = sizeof(struct attn_attention_backward),
                                                           .phases = ATTN_REDUCE + 1,
                                                           .main = ATTN_CHUNKS,
                                                           .joined = ATTN_REDUCE,
                                                           .keys_alone = true};

static void
varlen_plan(const void *arguments, struct attn_plan *plan)
{
    attn_varlen_plan(arguments, &varlen_way, plan);
}

static void
varlen_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    attn_varlen_run(arguments, &varlen_way, phase, task, scratch);
}

static void
varlen_backward_plan(const void *arguments, struct attn_plan *plan)
{
    attn_varlen_plan(arguments, &varlen_backward_way, plan);
}

static void
varlen_backward_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    attn_varlen_run(arguments, &varlen_backward_way, phase, task, scratch);
}

static const struct attn_kernel attn_varlen_kernel = {varlen_plan, varlen_run};
static const struct attn_kernel attn_varlen_backward_kernel = {varlen_backward_plan, varlen_backward_run};
