"""The linear layer and its gradients. A PackedWeight is what it unpacks to."""

import math
import typing

import numpy as np

from ._layers import gelu, gelu_backward, relu, relu_backward, silu, silu_backward


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


# f and f'
_ACTIVATIONS = {
    None: (lambda x: x, np.ones_like),
    "relu": (relu, lambda x: relu_backward(1.0, x)),
    "gelu": (gelu, lambda x: gelu_backward(1.0, x)),
    "gelu_tanh": (lambda x: gelu(x, approximate="tanh"), lambda x: gelu_backward(1.0, x, approximate="tanh")),
    "silu": (silu, lambda x: silu_backward(1.0, x)),
}
