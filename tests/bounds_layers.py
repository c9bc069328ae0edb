"""What activations, gates, normalisation and their gradients must be, and how far off: see bounds.py."""

import math

import numpy as np
import oracle
from bounds_tools import LANES, oracle_errs
from numerics import Expected, tiny, unit, wider

import attnpy

# --- activations: the reference has the exact values but for a few of its own roundings, which count in float64


def _operands(arguments, names=("grad_output", "x", "gate")):
    """The type computed in, and the operands as the reference takes them."""
    arrays = {name: np.asarray(arguments[name]) for name in names if arguments.get(name) is not None}
    compute = oracle.compute_type(*arrays.values())
    return compute, {name: x.astype(np.float64) for name, x in arrays.items()}


def _parts(function, arguments):
    """Type computed in, gradient (or 1), value that the gate opens (or 1), argument of the activation."""
    compute, given = _operands(arguments)
    x, g = given["x"], given.get("grad_output", 1.0)
    if "glu" not in function:
        return compute, g, np.ones_like(x), x
    if "gate" in given:
        return compute, g, x, given["gate"]
    gate, value = np.split(x, 2, -1)
    return compute, g, value, gate


def _steps(function, arguments, x, compute):
    """What an activation may be off, in u, as a share of the terms that it is the sum of; and the sum of their sizes.

    In float64 the reference errs too, by what x / sqrt(2) is rounded by before it is squared.
    """
    approximate = arguments.get("approximate", "none")
    near = np.where(np.isinf(x), 0.0, x)
    if function.startswith("relu"):
        return 0.0, np.ones_like(x)
    if function.startswith("ge") and approximate == "none":
        steps = 8.0 + (near**2 if compute == np.float64 else 0)
        below, density = attnpy.reference.gelu(-np.abs(x)), np.exp(-(near**2) / 2) / math.sqrt(2 * math.pi)
        tail = np.where(near == 0, 0.5, -below / np.where(near == 0, 1, np.abs(near)))
        return steps, np.where(x < 0, tail, 1 - tail) + np.abs(near) * density
    z, slope = near, 1.0
    if function.startswith("ge"):
        c = 2 * math.sqrt(2 / math.pi)
        z, slope = c * (near + 0.044715 * near**3), c * (1 + 3 * 0.044715 * near**2)
    s = np.exp(-np.abs(z)) / (1 + np.exp(-np.abs(z)))
    s = np.where(z < 0, s, 1 - s)
    return (8.0 if z is near else 10 + 4 * np.abs(z)), s + np.abs(near) * slope * s * (1 - s)


def _activation(function, arguments):
    compute, _, value, x = _parts(function, arguments)
    steps, _ = _steps(function, arguments, x, compute)
    wanted = np.asarray(getattr(attnpy.reference, function)(**arguments), np.float64)
    u, gated = unit(compute), "glu" in function
    size = np.abs(np.where(np.isfinite(wanted), wanted, 0))
    floor = 2 * (1 + np.abs(x) + np.abs(value)) ** 2 * max(u * tiny(compute), 2.0**-1074)
    plain = _plain(function, arguments, value, x) if compute == np.float32 and not _halves(arguments) else None
    slack = 2 * u * size.max(initial=0)
    return [Expected("y", wanted, u * (steps + gated) * size * _errs(compute), plain, slack, floor=floor)]


def _halves(arguments):
    return any(np.asarray(arguments[name]).dtype != np.float32 for name in ("x", "gate") if name in arguments)


def _errs(compute):
    """The reference is in float64 itself."""
    return 2 if compute == np.float64 else 1


def _plain(function, arguments, value, x):
    """NumPy's formula in float32, where there is one: it has no error function."""
    x, value, one = x.astype(np.float32), value.astype(np.float32), np.float32(1)
    with np.errstate(over="ignore"):
        if arguments.get("approximate") == "tanh":
            inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
            return x * np.float32(0.5) * (one + np.tanh(inner)) * value
        return x / (one + np.exp(-x)) * value if function in ("silu", "swiglu") else None


def gelu(arguments):
    return _activation("gelu", arguments)


def silu(arguments):
    return _activation("silu", arguments)


def relu(arguments):
    return _activation("relu", arguments)


def swiglu(arguments):
    return _activation("swiglu", arguments)


def geglu(arguments):
    return _activation("geglu", arguments)


def _activation_backward(function, arguments):
    """The derivative errs as a share of the sizes of its terms, and is multiplied once or twice."""
    compute, g, value, x = _parts(function, arguments)
    forward = function.removesuffix("_backward")
    steps, terms = _steps(function, arguments, x, compute)
    u, gated = unit(compute), "glu" in function
    wanted = getattr(attnpy.reference, function)(**arguments)
    least = 4 * (1 + np.abs(x) + np.abs(value) + np.abs(g)) ** 3 * max(u * tiny(compute), 2.0**-1074)
    more = 0 if forward == "relu" else 4
    cap = u * (steps + more + gated) * terms * np.abs(g * value) * _errs(compute)
    if not gated:
        return [Expected("gradient", np.asarray(wanted), cap, floor=least)]
    share = np.abs(_of_gate(forward, arguments, x) * g)
    value_cap = u * (steps + 2) * share * _errs(compute)
    if not isinstance(wanted, tuple):
        joined = np.concatenate([cap, value_cap], -1)
        return [Expected("gradient", wanted, joined, floor=np.concatenate([least, least], -1))]
    return [Expected("x", wanted[0], value_cap, floor=least), Expected("gate", wanted[1], cap, floor=least)]


def _of_gate(forward, arguments, gate):
    given = {"approximate": arguments["approximate"]} if "approximate" in arguments else {}
    return attnpy.reference.silu(gate) if forward == "swiglu" else attnpy.reference.gelu(gate, **given)


def gelu_backward(arguments):
    return _activation_backward("gelu_backward", arguments)


def silu_backward(arguments):
    return _activation_backward("silu_backward", arguments)


def relu_backward(arguments):
    return _activation_backward("relu_backward", arguments)


def swiglu_backward(arguments):
    return _activation_backward("swiglu_backward", arguments)


def geglu_backward(arguments):
    return _activation_backward("geglu_backward", arguments)


# --- normalisation


class _Norm:
    """A call in `real`: h, 1 / sqrt(v + eps), and how far off h may be, in u."""

    def __init__(self, function, arguments, real):
        import attnpy._core

        names = ("x", "residual", "grad_output", "grad_sum")
        arrays = {name: np.asarray(arguments[name]) for name in names if arguments.get(name) is not None}
        compute = oracle.compute_type(*arrays.values())
        self.compute, self.centred = compute, function.startswith("layer")
        given = {name: x.astype(real) for name, x in arrays.items()}
        s = given["x"] + given.get("residual", real(0))
        axis = arguments.get("axis", -1)
        self.axes = tuple(sorted(n % s.ndim for n in (axis if isinstance(axis, tuple) else (axis,))))
        self.outer = tuple(n for n in range(s.ndim) if n not in self.axes)
        n = max(1, math.prod(s.shape[axis] for axis in self.axes))
        self.n, self.s, self.given = n, s, given
        self.steps = 80 + n / (64 * (LANES[attnpy._core.isa] // compute.itemsize))
        mean = self.mean(s) if self.centred else real(0)
        d = s - mean
        self.scale = 1 / np.sqrt(self.mean(d * d) + real(arguments.get("eps", 1e-5)))
        self.h = d * self.scale
        self.rows = {name: self.row(arguments, name, real) for name in ("weight", "bias")}
        size, u = np.abs(self.h), unit(compute)
        shift = self.steps * u * self.mean(np.abs(s)) * self.scale  # how far off the mean may be before it is made good
        self.off = self.steps * (size + 1 + shift) + 6 * size if self.centred else size * (self.steps + 6)
        if "residual" in given:
            self.off = self.off + self.scale * (
                np.abs(s) + self.mean(np.abs(s)) + size * self.mean(np.abs(s) * size)
            )  # fmt: skip

    def mean(self, x):
        return x.sum(self.axes, keepdims=True) / x.dtype.type(self.n)

    def row(self, arguments, name, real):
        if arguments.get(name) is None:
            return real(1 if name == "weight" else 0)
        return np.expand_dims(oracle.in_type(real, self.compute, arguments[name]), self.outer)


def _double(x):
    return np.asarray(x).astype(np.float64)


def _norm(function, arguments):
    compute = _Norm(function, arguments, np.float64).compute
    exact = _Norm(function, arguments, wider(compute))
    u, (weight, bias) = unit(compute) * oracle_errs(compute), exact.rows.values()
    y = weight * exact.h + bias
    cap = u * (np.abs(weight) * (exact.off + np.abs(exact.h)) + 2 * np.abs(y))
    plain = None
    if all(np.asarray(x).dtype == np.float32 for x in exact.given and [arguments["x"]]):
        part = _Norm(function, arguments, np.float32)
        plain = part.rows["weight"] * part.h + part.rows["bias"]
    size = np.abs(_double(y)).max(initial=0)
    results = [Expected("y", y, _double(cap), plain, 2 * u * size, floor=tiny(compute))]
    if arguments.get("return_sum"):
        results.append(Expected("sum", exact.s, _double(u * np.abs(exact.s))))
    return results


def layer_norm(arguments):
    return _norm("layer_norm", arguments)


def rms_norm(arguments):
    return _norm("rms_norm", arguments)


def _norm_backward(function, arguments):
    """Every mean errs by `steps` of the sizes of its terms; h by exact.off; the sums over rows by 140 and more."""
    compute = _Norm(function, arguments, np.float64).compute
    exact = _Norm(function, arguments, wider(compute))
    u, r, h, off, steps = unit(compute) * oracle_errs(compute), exact.scale, exact.h, exact.off, exact.steps
    g, mean = exact.given["grad_output"], exact.mean
    p, more = g * exact.rows["weight"], exact.given.get("grad_sum", np.zeros_like(g))
    shared, product = mean(p) if exact.centred else 0 * mean(p), mean(p * h)
    y = r * (p - shared - h * product) + more
    size, apart = np.abs(p), mean(np.abs(p)) if exact.centred else 0 * mean(p)
    inner = 4 * size + steps * apart + np.abs(h) * (steps * mean(np.abs(p * h)) + mean(size * off))
    inner = inner + off * np.abs(product) + (steps + 6) * (size + apart + np.abs(h * product))
    cap = u * (r * inner + 2 * np.abs(more) + np.abs(y))
    rows = math.prod(g.shape[axis] for axis in exact.outer)
    chain = 140 + rows / 4096
    weight_cap = u * (np.abs(g) * (off + chain * np.abs(h))).sum(exact.outer)
    results = [
        Expected("x", y, _double(cap), floor=tiny(compute)),
        Expected("weight", (g * h).sum(exact.outer), _double(weight_cap), floor=tiny(compute)),
    ]
    if exact.centred:
        results.append(Expected("bias", g.sum(exact.outer), _double(u * chain * np.abs(g).sum(exact.outer))))
    return results


def layer_norm_backward(arguments):
    return _norm_backward("layer_norm_backward", arguments)


def rms_norm_backward(arguments):
    return _norm_backward("rms_norm_backward", arguments)
