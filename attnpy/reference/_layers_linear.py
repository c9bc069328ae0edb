"""The linear layer and its gradients. A PackedWeight is what it unpacks to."""

import math
import typing

import numpy as np

_normal = np.vectorize(lambda x: math.erfc(-x / math.sqrt(2)) / 2, otypes=[float])  # P(N <= x)


def linear(x, weight, bias=None, *, activation=None, residual=None):
    """y = f(x W^T + b) + r: (..., K), (N, K) -> (..., N)."""
    f, _ = _ACTIVATIONS[activation]
    y = f(_before(x, _matrix(weight), bias))
    return y if residual is None else y + np.asarray(residual, np.float64)


class LinearGradients(typing.NamedTuple):
    """Gradients by operand: x (..., K), weight (N, K), bias (N,) = dz W, dz^T x, sum of dz; None where not asked."""

    x: np.ndarray | None = None
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None


def linear_backward(grad_output, x, weight, bias=None, *, activation=None, preactivation=None, needs=("x", "weight")):
    """dz = g f'(z); dx = dz W, dW = dz^T x, db = sum of dz: (..., N), (..., K), (N, K) -> gradients."""
    x, weight = np.asarray(x, np.float64), _matrix(weight)
    _, slope = _ACTIVATIONS[activation]
    z = _before(x, weight, bias) if preactivation is None else np.asarray(preactivation, np.float64)
    dz = np.asarray(grad_output, np.float64) * slope(z)
    rows = math.prod(x.shape[:-1])
    of_rows = dz.reshape(rows, weight.shape[0])
    of_weight = of_rows.T @ x.reshape(rows, weight.shape[1])
    found = {"x": dz @ weight, "weight": of_weight, "bias": of_rows.sum(0)}
    return LinearGradients(**{name: found[name] for name in needs})


def _matrix(weight):
    return np.asarray(weight.unpack() if hasattr(weight, "unpack") else weight, np.float64)


def _before(x, weight, bias):
    z = np.asarray(x, np.float64) @ weight.T
    return z if bias is None else z + np.asarray(bias, np.float64)


def _sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1 + e)


def _inner(x):
    """tanh(p) of gelu_tanh is 2 sigmoid(2 p) - 1: 2 p, and its slope."""
    c = math.sqrt(8 / math.pi)
    return c * (x + 0.044715 * x**3), c * (1 + 3 * 0.044715 * x**2)


def _gelu_tanh_slope(x):
    inner, slope = _inner(x)
    s = _sigmoid(inner)
    return s + x * s * _sigmoid(-inner) * slope


# f and f'
_ACTIVATIONS = {
    None: (lambda x: x, np.ones_like),
    "relu": (lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1.0, 0.0) + 0 * x),
    "gelu": (
        lambda x: x * _normal(x) if x.size else x,
        lambda x: _normal(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) if x.size else x,
    ),
    "gelu_tanh": (lambda x: x * _sigmoid(_inner(x)[0]), _gelu_tanh_slope),
    "silu": (lambda x: x * _sigmoid(x), lambda x: _sigmoid(x) * (1 + x * _sigmoid(-x))),
}
