"""Gradients of joining attention over parts of the keys."""

import numpy as np


def merge_attention_backward(grad_output, outputs, lses, output, lse, *, grad_lse=None):
    """Of part t: grad_output_t = w_t dO and grad_lse_t = w_t (dO . (O_t - O) + dlse) with w_t = exp(lse_t - lse).

    dO, n outputs (..., H, L, D), n log-sum-exps (..., H, L), O, lse -> n (..., H, L, D) and n (..., H, L).
    """
    grad, whole, whole_lse = (np.asarray(x, np.float64) for x in (grad_output, output, lse))
    grad_whole_lse = 0.0 if grad_lse is None else np.asarray(grad_lse, np.float64)
    grad_outputs, grad_lses = [], []
    for part, part_lse in zip(outputs, lses, strict=True):
        part, part_lse = np.asarray(part, np.float64), np.asarray(part_lse, np.float64)
        nothing = part_lse == -np.inf
        with np.errstate(invalid="ignore", over="ignore"):
            share = np.exp(part_lse - whole_lse)
            of_output = np.where(nothing[..., None], 0.0, share[..., None] * grad)
            of_lse = np.where(nothing, 0.0, share * ((grad * (part - whole)).sum(-1) + grad_whole_lse))
        grad_outputs.append(_summed_to(part.shape, of_output))
        grad_lses.append(_summed_to(part_lse.shape, of_lse))
    return (
        np.stack(grad_outputs) if isinstance(outputs, np.ndarray) else tuple(grad_outputs),
        np.stack(grad_lses) if isinstance(lses, np.ndarray) else tuple(grad_lses),
    )


def _summed_to(shape, grad):
    """The gradient of an operand of this shape, which was broadcast: sums over the axes it lacks or has once."""
    grad = grad.sum(tuple(range(grad.ndim - len(shape))))
    axes = tuple(axis for axis, length in enumerate(shape) if length == 1 and grad.shape[axis] != 1)
    return grad.sum(axes, keepdims=True)
