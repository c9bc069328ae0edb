/* layers: functions of single elements, plain or as the gate of another operand, and their gradients. The family's other contracts are in
 * layers_norm.h, layers_embedding.h and layers_loss.h.
 *
 * Computes   y = f(x), or gated y = f(x) value, with f one of
 *              gelu        x P(N <= x), N of the standard normal distribution
 *              gelu_tanh   x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
 *              silu        x / (1 + e^-x)
 *              relu        max(x, 0)
 *            backward: y = grad f'(x), or gated y = grad value f'(x) and grad_value = grad f(x)
 * Given      x, value, grad   shape, strides in bytes; value only where gated, grad only in the backward functions
 * Returns    y, and grad_value in the gated backward functions: the same shape; each may be an input itself, else overlaps none
 * Special    f(-inf) = -0 and f(inf) = inf; relu'(0) = 0. NaN goes where the formula takes it.
 * Accuracy   in units of u, D = |argument of the exponential|:
 *            gelu 8 |y|; silu 8 |y|; gelu_tanh (10 + 4 D) |y|; relu exact; times value one more.
 *            f': gelu 8 (P + |x| e^(-x^2 / 2) / sqrt(2 pi)); silu 12 (s + |x| s (1 - s)), s = 1 / (1 + e^-x); gelu_tanh (16 + 4 D) times the same sum of
 *            sizes of its terms; relu exact. Besides, what the least normal number times |x| can lose.
 * Source     Hendrycks, Gimpel 2016 (arXiv 1606.08415); Shazeer 2020 (arXiv 2002.05202). */
#ifndef ATTN_LAYERS_H
#define ATTN_LAYERS_H

#include "../core/attn.h"

enum attn_activation_kind { ATTN_GELU, ATTN_GELU_TANH, ATTN_SILU, ATTN_RELU };

/* Here a tensor's axes are all in its batch[]; head, row, column are unused. An operand that is not there has data = NULL. */
struct attn_elementwise {
    struct attn_call call;
    int ndim;
    int64_t shape[ATTN_MAX_BATCH];
    enum attn_activation_kind kind;
    bool gated, backward;
    struct attn_tensor x, value, grad, y, grad_value;
};

#endif
