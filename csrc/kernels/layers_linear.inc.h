/* layers_linear.inc.h: the linear layer, one product. */
#ifndef ATTN_LINEAR_NAMES
#define ATTN_LINEAR_NAMES
#define linear_rows SUFFIX(linear_rows)
#define linear_weight SUFFIX(linear_weight)
#define linear_forward SUFFIX(linear_forward)
#define linear_sums SUFFIX(linear_sums)
#define linear_plan SUFFIX(linear_plan)
#define linear_run SUFFIX(linear_run)

static inline double
linear_cost(double rows, double columns, double depth)
{
    return (rows < 8 ? 16 : 2 * rows) * columns * depth; /* below 8 rows the weights are waited for: 16 operations in the time of one */
}
#endif

/* An operand (..., n), as rows. */
ATTN_INLINE void
linear_rows(struct product_matrix *m, const struct attn_linear *a, const struct attn_tensor *t)
{
    product_matrix_of(m, t, a->batch_ndim, a->batch_shape, t->batch);
}

/* The weight as B. Its transpose where `turned`; which of the two lies in rows decides how panels are made of it. */
static void
linear_weight(const struct attn_linear *a, struct product *p, bool turned)
{
    const bool upright = a->weight.column == attn_type_size(a->weight.type) || a->weight.row != attn_type_size(a->weight.type);
    struct attn_tensor lying = a->weight;
    lying.column = a->weight.row;
    p->b_across = turned == upright;
    if (upright)
        product_matrix_of(&p->b, &a->weight, 1, &a->outputs, &a->weight.row);
    else
        product_matrix_of(&p->b, &lying, 1, &a->inputs, &a->weight.column);
}

/* z, without activation and residual. */
static void
linear_sums(const struct attn_linear *a, struct product *p)
{
    p->rows = a->rows;
    p->columns = a->outputs;
    p->depth = a->inputs;
    linear_rows(&p->a, a, &a->x);
    p->panels = a->panels;
    p->a_across = p->b_across = p->slope = false;
    if (!a->panels.data)
        linear_weight(a, p, false);
    p->bias = a->bias;
    p->activated = false;
    p->other.data = NULL;
}

static void
linear_forward(const struct attn_linear *a, struct product *p)
{
    linear_sums(a, p);
    p->activated = a->activated;
    p->activation = a->activation;
    linear_rows(&p->other, a, &a->residual);
    linear_rows(&p->result, a, &a->y);
    product_cut(p, &a->call);
}

static void
linear_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_linear *a = arguments;
    struct product p;
    linear_forward(a, &p);
    plan->phases = 1;
    plan->tasks[0] = product_tasks(&p);
    plan->scratch = (size_t)product_scratch(&p) * sizeof(REAL);
    plan->workspace = 0;
    plan->cost = linear_cost((double)a->rows, (double)a->outputs, (double)a->inputs);
}

static void
linear_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_linear *a = arguments;
    struct product p;
    (void)phase;
    linear_forward(a, &p);
    product_task(&p, &a->call, task, scratch);
}

static const struct attn_kernel SUFFIX(attn_linear) = {linear_plan, linear_run};
