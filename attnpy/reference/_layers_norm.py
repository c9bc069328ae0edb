"""Normalisation of rows, and its gradients."""

import math

import numpy as np


def layer_norm(x, weight=None, bias=None, *, axis=-1, eps=1e-5, residual=None, return_sum=False):
    """y_i = w_i (s_i - m) / sqrt(v + eps) + b_i, s = x + residual: (..., n), (n,), (n,) -> (..., n)."""
    s = _sum_of(x, residual)
    y = _rows(weight, 1.0, s, axis) * _normalised(s, axis, eps, True)[0] + _rows(bias, 0.0, s, axis)
    return (y, s) if return_sum else y


def rms_norm(x, weight=None, *, axis=-1, eps=1e-5, residual=None, return_sum=False):
    """y_i = w_i s_i / sqrt(v + eps), v = sum_j s_j^2 / n, s = x + residual: (..., n), (n,) -> (..., n)."""
    s = _sum_of(x, residual)
    y = _rows(weight, 1.0, s, axis) * _normalised(s, axis, eps, False)[0]
    return (y, s) if return_sum else y


def layer_norm_backward(grad_output, x, weight=None, *, axis=-1, eps=1e-5, grad_sum=None):
    """dx_i = (p_i - mean p - h_i mean(p h)) / sqrt(v + eps), p = g w; dw = sum g h, db = sum g: (..., n) -> (n,)."""
    return _backward(grad_output, x, weight, axis, eps, grad_sum, True)


def rms_norm_backward(grad_output, x, weight=None, *, axis=-1, eps=1e-5, grad_sum=None):
    """dx_i = (p_i - h_i mean(p h)) / sqrt(v + eps), p = g w; dw = sum g h: (..., n), (n,) -> (..., n), (n,)."""
    return _backward(grad_output, x, weight, axis, eps, grad_sum, False)[:2]


def _backward(grad_output, x, weight, axis, eps, grad_sum, centred):
    g, x = (np.asarray(array, np.float64) for array in (grad_output, x))
    h, root = _normalised(x, axis, eps, centred)
    p = g * _rows(weight, 1.0, x, axis)
    with np.errstate(invalid="ignore", over="ignore"):
        grad = p - h * _mean(p * h, axis) - (_mean(p, axis) if centred else 0.0)
        grad = grad / root + (0.0 if grad_sum is None else np.asarray(grad_sum, np.float64))
        outer = tuple(n for n in range(x.ndim) if n not in _axes(x, axis))
        return grad, (g * h).sum(outer), g.sum(outer)


def _sum_of(x, residual):
    x = np.asarray(x, np.float64)
    return x if residual is None else x + np.asarray(residual, np.float64)


def _normalised(s, axis, eps, centred):
    """h, of mean 0 (if centred) and mean square 1, and sqrt(v + eps)."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        d = s - _mean(s, axis) if centred else s
        root = np.sqrt(_mean(d * d, axis) + eps)
        return d / root, root


def _mean(x, axis):
    count = math.prod(x.shape[n] for n in _axes(x, axis))
    return x.sum(_axes(x, axis), keepdims=True) / max(count, 1)


def _axes(x, axis):
    """The normalised axes, each counted from the front."""
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple | list) else (axis,)
    return tuple(sorted(n % x.ndim for n in axes))


def _rows(row, default, x, axis):
    """weight or bias along the normalised axes of x."""
    if row is None:
        return default
    outer = tuple(n for n in range(x.ndim) if n not in _axes(x, axis))
    return np.expand_dims(np.asarray(row, np.float64), outer)
