"""Softmax, its logarithm and its normaliser. An element that `where` leaves out counts as -inf: exp(-inf) = 0."""

import numpy as np


def softmax(x, axis=-1, *, where=None):
    """y_i = exp(x_i) / sum_j exp(x_j): (..., n) -> (..., n)."""
    x, m = _scores_and_maximum(x, axis, where)
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf: a +inf that takes part makes its row NaN
        e = np.exp(x - m)
        total = e.sum(axis, keepdims=True)
        y = e / np.where(total == 0, 1.0, total)  # nothing takes part: 0
    return y if where is None else np.where(where, y, 0.0)


def log_softmax(x, axis=-1, *, where=None):
    """y_i = x_i - log sum_j exp(x_j): (..., n) -> (..., n), -inf where left out."""
    x, m = _scores_and_maximum(x, axis, where)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        total = np.exp(x - m).sum(axis, keepdims=True)
        y = x - m - np.log(np.where(total == 0, 1.0, total))
    return y if where is None else np.where(where, y, -np.inf)


def logsumexp(x, axis=-1, *, where=None, keepdims=False):
    """y = log sum_i exp(x_i): (..., n) -> (...), -inf where nothing takes part."""
    x, m = _scores_and_maximum(x, axis, where)
    m = np.where(m == np.inf, 0.0, m)  # log exp(inf) = inf
    with np.errstate(divide="ignore", over="ignore"):  # log 0 = -inf
        y = m + np.log(np.exp(x - m).sum(axis, keepdims=True))
    return (y if keepdims else y.squeeze(axis))[()]


def _scores_and_maximum(x, axis, where):
    """The scores, -inf where left out, and what is subtracted from them: their maximum, or 0 where that is -inf."""
    x = np.asarray(x, np.float64)
    if where is not None:
        x = np.where(np.broadcast_to(where, x.shape), x, -np.inf)
    m = x.max(axis, keepdims=True, initial=-np.inf)
    return x, np.where(m == -np.inf, 0.0, m)
