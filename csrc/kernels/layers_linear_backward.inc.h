/* layers_linear_backward.inc.h: the gradients of the linear layer. First, where there is an activation, dz = g f'(z) goes to the workspace, z being given
 * or a product as in the forward; then each gradient is a product of its own, and all their tasks are one phase. */
#ifndef ATTN_LINEAR_BACKWARD_NAMES
#define ATTN_LINEAR_BACKWARD_NAMES
#define linear_of_z SUFFIX(linear_of_z)
#define linear_gradient SUFFIX(linear_gradient)
#define linear_slopes SUFFIX(linear_slopes)
#define linear_backward_plan SUFFIX(linear_backward_plan)
#define linear_backward_run SUFFIX(linear_backward_run)

enum { LINEAR_GRAD_X, LINEAR_GRAD_WEIGHT, LINEAR_GRAD_BIAS, LINEAR_GRADIENTS, LINEAR_SLOPE_ROWS = 32 };
#endif

/* dz = g f'(z) in the workspace, z a product. */
static void
linear_of_z(const struct attn_linear *a, struct product *p)
{
    linear_sums(a, p);
    p->activated = a->activated;
    p->activation = a->activation;
    p->slope = true;
    linear_rows(&p->other, a, &a->grad);
    p->result = (struct product_matrix){.data = a->call.workspace, .direct = true, .ndim = 1, .column = sizeof(REAL)};
    p->result.type = REAL_BITS == 32 ? ATTN_FLOAT32 : ATTN_FLOAT64;
    p->result.shape[0] = a->rows;
    p->result.stride[0] = a->outputs * (int64_t)sizeof(REAL);
    product_cut(p, &a->call);
}

/* The product that a gradient is; false: it is not wanted. */
static bool
linear_gradient(const struct attn_linear *a, int which, struct product *p)
{
    static const REAL one = 1;
    const struct attn_tensor *target[LINEAR_GRADIENTS] = {&a->grad_x, &a->grad_weight, &a->grad_bias};
    struct product_matrix dz;
    if (!target[which]->data)
        return false;
    if (!a->activated)
        linear_rows(&dz, a, &a->grad);
    else {
        linear_of_z(a, p);
        dz = p->result;
    }
    p->panels = which == LINEAR_GRAD_X ? a->panels : (struct attn_panels){0};
    p->bias.data = p->other.data = NULL;
    p->activated = false;
    p->slope = false;
    p->a_across = which == LINEAR_GRAD_WEIGHT;
    p->b_across = true;
    p->rows = which == LINEAR_GRAD_X ? a->rows : which == LINEAR_GRAD_WEIGHT ? a->outputs : 1;
    p->columns = which == LINEAR_GRAD_BIAS ? a->outputs : a->inputs;
    p->depth = which == LINEAR_GRAD_X ? a->outputs : a->rows;
    p->a = dz;
    if (which == LINEAR_GRAD_X) {
        if (!a->panels.data)
            linear_weight(a, p, true);
        linear_rows(&p->result, a, &a->grad_x);
    } else if (which == LINEAR_GRAD_WEIGHT) {
        linear_rows(&p->b, a, &a->x);
        product_matrix_of(&p->result, &a->grad_weight, 1, &a->outputs, &a->grad_weight.row);
    } else {
        p->a = (struct product_matrix){.data = (char *)&one, .type = REAL_BITS == 32 ? ATTN_FLOAT32 : ATTN_FLOAT64}; /* ones: all strides are 0 */
        p->b = dz;
        product_matrix_of(&p->result, &a->grad_bias, 0, NULL, NULL);
    }
    product_cut(p, &a->call);
    return true;
}

/* dz of some rows, from a z that was given. */
static void
linear_slopes(const struct attn_linear *a, int64_t task, REAL *scratch)
{
    struct product_matrix z, grad;
    REAL *own = scratch, *other = scratch + PANEL;
    linear_rows(&z, a, &a->z);
    linear_rows(&grad, a, &a->grad);
    for (int64_t row = task * LINEAR_SLOPE_ROWS; row < attn_min(a->rows, (task + 1) * LINEAR_SLOPE_ROWS); row++)
        for (int64_t column = 0; column < a->outputs; column += PANEL) {
            int64_t n = attn_min(PANEL, a->outputs - column);
            load_row(own, z.data + product_offset(&z, row) + column * z.column, z.column, n, z.type, z.swapped);
            load_row(other, grad.data + product_offset(&grad, row) + column * grad.column, grad.column, n, grad.type, grad.swapped);
            linear_activate(a->activation, true, own, n);
            for (int64_t i = 0; i < n; i += LANES)
                v_store(own + i, v_load(own + i) * v_load(other + i));
            memcpy((REAL *)a->call.workspace + row * a->outputs + column, own, (size_t)n * sizeof(REAL));
        }
}

static void
linear_backward_plan(const void *arguments, struct attn_plan *plan)
{
    const struct attn_linear *a = arguments;
    const bool slopes = a->activated;
    double each = linear_cost((double)a->rows, (double)a->outputs, (double)a->inputs);
    struct product p;
    plan->phases = 2;
    plan->tasks[0] = plan->tasks[1] = 0;
    plan->scratch = (size_t)(2 * PANEL) * sizeof(REAL);
    plan->cost = 0;
    if (slopes && a->z.data)
        plan->tasks[0] = (a->rows + LINEAR_SLOPE_ROWS - 1) / LINEAR_SLOPE_ROWS;
    else if (slopes) {
        linear_of_z(a, &p);
        plan->tasks[0] = product_tasks(&p);
        plan->scratch = (size_t)product_scratch(&p) * sizeof(REAL);
        plan->cost = each;
    }
    for (int which = 0; which < LINEAR_GRADIENTS; which++)
        if (linear_gradient(a, which, &p)) {
            size_t scratch = (size_t)product_scratch(&p) * sizeof(REAL);
            plan->tasks[1] += product_tasks(&p);
            plan->scratch = plan->scratch > scratch ? plan->scratch : scratch;
            plan->cost += which == LINEAR_GRAD_BIAS ? 2 * (double)a->rows * (double)a->outputs : each;
        }
    plan->workspace = slopes ? (size_t)(a->rows * a->outputs) * sizeof(REAL) : 0;
}

static void
linear_backward_run(const void *arguments, int phase, int64_t task, void *scratch)
{
    const struct attn_linear *a = arguments;
    struct product p;
    if (phase == 0 && a->z.data) {
        linear_slopes(a, task, scratch);
        return;
    }
    if (phase == 0)
        linear_of_z(a, &p);
    for (int which = 0; phase == 1 && which < LINEAR_GRADIENTS; which++) {
        if (!linear_gradient(a, which, &p))
            continue;
        if (task < product_tasks(&p))
            break;
        task -= product_tasks(&p);
    }
    product_task(&p, &a->call, task, scratch);
}

static const struct attn_kernel SUFFIX(attn_linear_backward) = {linear_backward_plan, linear_backward_run};
