"""Gradients of softmax, its logarithm and its normaliser. An element that `where` leaves out has gradient 0."""

import numpy as np


def softmax_backward(grad_output, output, axis=-1, *, where=None):
    """dx_i = y_i (g_i - sum_j g_j y_j): (..., n), (..., n) -> (..., n)."""
    y, g = _kept(where, output, grad_output)
    with np.errstate(invalid="ignore", over="ignore"):
        grad = y * (g - (g * y).sum(axis, keepdims=True))
    return grad if where is None else np.where(where, grad, 0.0)


def log_softmax_backward(grad_output, output, axis=-1, *, where=None):
    """dx_i = g_i - exp(y_i) sum_j g_j: (..., n), (..., n) -> (..., n)."""
    y, g = _kept(where, output, grad_output)
    with np.errstate(invalid="ignore", over="ignore"):
        grad = g - np.exp(y) * g.sum(axis, keepdims=True)
    return grad if where is None else np.where(where, grad, 0.0)


def logsumexp_backward(grad_output, x, output, axis=-1, *, where=None, keepdims=False):
    """dx_i = g exp(x_i - y): (...), (..., n), (...) -> (..., n)."""
    g, x, y = (np.asarray(array, np.float64) for array in (grad_output, x, output))
    if not keepdims:
        axes = tuple(range(x.ndim)) if axis is None else axis
        g, y = np.expand_dims(g, axes), np.expand_dims(y, axes)
    (x,) = _kept(where, x)
    nothing = y == -np.inf  # nothing takes part: x is -inf everywhere
    g, y = np.where(nothing, 0.0, g), np.where(nothing, 0.0, y)
    with np.errstate(invalid="ignore", over="ignore"):
        grad = g * np.exp(x - y)
    return grad if where is None else np.where(where, grad, 0.0)


def _kept(where, *arrays):
    """The arrays in float64, 0 where left out."""
    arrays = tuple(np.asarray(array, np.float64) for array in arrays)
    return arrays if where is None else tuple(np.where(where, array, 0.0) for array in arrays)
