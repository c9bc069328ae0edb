"""Activations, the gates made of them, and their gradients. One array given to a gate holds the gate first."""

import math

import numpy as np


def gelu(x, *, approximate="none"):
    """y = x P(N <= x): (..., n) -> (..., n)."""
    x = np.asarray(x, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        if approximate == "tanh":
            return _times(x, _logistic(_inner(x)))
        return _times(x, _below(x))


def gelu_backward(grad_output, x, *, approximate="none"):
    """dx = g (P(N <= x) + x exp(-x^2 / 2) / sqrt(2 pi)): (..., n), (..., n) -> (..., n)."""
    g, x = (np.asarray(array, np.float64) for array in (grad_output, x))
    with np.errstate(invalid="ignore", over="ignore"):
        return g * _gelu_slope(x, approximate)


def silu(x):
    """y = x / (1 + exp(-x)): (..., n) -> (..., n)."""
    x = np.asarray(x, np.float64)
    return _times(x, _logistic(x))


def silu_backward(grad_output, x):
    """dx = g (s + x s (1 - s)), s = 1 / (1 + exp(-x)): (..., n), (..., n) -> (..., n)."""
    g, x = (np.asarray(array, np.float64) for array in (grad_output, x))
    return g * _silu_slope(x)


def relu(x):
    """y = max(x, 0): (..., n) -> (..., n)."""
    return np.maximum(np.asarray(x, np.float64), 0.0)


def relu_backward(grad_output, x):
    """dx = g where x > 0, else 0: (..., n), (..., n) -> (..., n)."""
    g, x = (np.asarray(array, np.float64) for array in (grad_output, x))
    return g * np.where(np.isnan(x), x, x > 0)


def swiglu(x, gate=None):
    """y = x silu(gate): (..., n), (..., n) -> (..., n)."""
    x, gate = _pair(x, gate)
    return x * silu(gate)


def swiglu_backward(grad_output, x, gate=None):
    """dx = g silu(gate), dgate = g x silu'(gate): (..., n), (..., n), (..., n) -> (..., n), (..., n)."""
    g, one = np.asarray(grad_output, np.float64), gate is None
    x, gate = _pair(x, gate)
    return _joined(one, g * silu(gate), g * x * _silu_slope(gate))


def geglu(x, gate=None, *, approximate="none"):
    """y = x gelu(gate): (..., n), (..., n) -> (..., n)."""
    x, gate = _pair(x, gate)
    return x * gelu(gate, approximate=approximate)


def geglu_backward(grad_output, x, gate=None, *, approximate="none"):
    """dx = g gelu(gate), dgate = g x gelu'(gate): (..., n), (..., n), (..., n) -> (..., n), (..., n)."""
    g, one = np.asarray(grad_output, np.float64), gate is None
    x, gate = _pair(x, gate)
    return _joined(one, g * gelu(gate, approximate=approximate), g * x * _gelu_slope(gate, approximate))


def _pair(x, gate):
    """The operand and its gate, which are two halves of one array where no gate is given."""
    x = np.asarray(x, np.float64)
    if gate is None:
        gate, x = np.split(x, 2, -1)
    return x, np.asarray(gate, np.float64)


def _joined(one, grad_x, grad_gate):
    return np.concatenate([grad_gate, grad_x], -1) if one else (grad_x, grad_gate)


def _times(x, share):
    """x times a share of 0 to 1; -inf times 0 is 0, the limit."""
    with np.errstate(invalid="ignore"):
        return np.where(x == -np.inf, 0.0, x * share)


def _below(x):
    """P(N <= x) for N of the standard normal distribution."""
    return np.vectorize(lambda t: math.erfc(-t / math.sqrt(2.0)) / 2, otypes=[np.float64])(x)


def _logistic(x):
    """1 / (1 + exp(-x)), without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, np.where(np.isnan(x), x, 1.0)) / (1.0 + e)


def _inner(x):
    return 2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)


def _silu_slope(x):
    s, t = _logistic(x), _logistic(-x)
    return s + np.where(np.isinf(x), 0.0, x) * s * t


def _gelu_slope(x, approximate):
    near = np.where(np.isinf(x), 0.0, x)
    if approximate == "tanh":
        z = _inner(x)
        slope = 2.0 * math.sqrt(2.0 / math.pi) * (1.0 + 3 * 0.044715 * near**2)
        return _logistic(z) + near * _logistic(z) * _logistic(-z) * slope
    return _below(x) + near * np.exp(-(x**2) / 2.0) / math.sqrt(2.0 * math.pi)
