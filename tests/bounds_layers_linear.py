"""What linear and its gradients must be, and how far off: see bounds.py.

A sum of n terms is chains of at most 384 of them, added in order: u (c + n / c + 3) sum |terms|, c = min(n, 384), a
bias and a scale included. An activation passes errors on by its slope, at most 1.13; of itself it errs by 8 u |y|,
gelu_tanh by (10 + 4 D) u |y|, D the argument of its exponential; slopes likewise by terms of at most 1.13 + D.
"""

import math

import numpy as np
import oracle
from bounds_tools import finite, oracle_errs
from numerics import Expected, tiny, unit, wider

import attnpy

STEEPEST = 1.13
BENDS = {None: 0.0, "relu": 0.0, "gelu": 0.8, "gelu_tanh": 0.8, "silu": 0.5}  # the largest |f''|


def steps(n):
    c = min(max(n, 1), 384)
    return c + math.ceil(n / c) + 3


def _matrix(weight):
    return weight.unpack() if isinstance(weight, attnpy.PackedWeight) else np.asarray(weight)


def _compute(arguments):
    """The type computed in, and whether all operands are float32 arrays."""
    weight = arguments["weight"]
    names = [name for name in ("x", "weight", "grad_output", "preactivation") if arguments.get(name) is not None]
    deciding = [arguments[name] for name in names if not isinstance(arguments[name], attnpy.PackedWeight)]
    if isinstance(weight, attnpy.PackedWeight) and weight.dtype != np.int8:
        deciding.append(weight.unpack()[:0])
    deciding = [np.asarray(x) for x in deciding]
    return oracle.compute_type(*deciding), all(x.dtype == np.float32 for x in deciding)


def _operands(real, compute, arguments):
    given = {"x": arguments["x"], "weight": _matrix(arguments["weight"])}
    given |= {
        k: arguments[k] for k in ("bias", "residual", "grad_output", "preactivation") if arguments.get(k) is not None
    }
    return {name: oracle.in_type(real, compute, np.asarray(x)) for name, x in given.items()}


def _activated(name, x):
    """f and f' of the reference, in float64."""
    if name is None:
        return x, np.ones_like(x)
    f, slope = attnpy.reference._layers_linear._ACTIVATIONS[name]
    return f(x), slope(x)


def _before(operands):
    x, weight = operands["x"], operands["weight"]
    z = x @ weight.T + operands.get("bias", 0)
    return z, np.abs(x) @ np.abs(weight.T) + np.abs(operands.get("bias", 0))


def _inner(name, z):
    z = np.abs(z).astype(np.float64)
    return {"gelu_tanh": 1.6 * (z + 0.044715 * z**3), "gelu": z**2 / 2, "silu": z}.get(name, 0 * z)


def _errs(compute, name):
    """The oracle of an activation is in float64, and so errs as much as the result may."""
    return max(oracle_errs(compute), 2 if name is not None and compute == np.float64 else 1)


def linear(arguments):
    compute, small = _compute(arguments)
    u, name = unit(compute), arguments.get("activation")
    exact = _operands(wider(compute), compute, arguments)
    z, size = _before(exact)
    f, _ = _activated(name, z)
    y = f + exact.get("residual", 0)
    own = 0.0 if name in (None, "relu") else 8.0 if name != "gelu_tanh" else 10 + 4 * _inner(name, z)
    cap = (1 if name in (None, "relu") else STEEPEST) * steps(exact["x"].shape[-1]) * finite(size)
    cap = u * (cap + own * finite(f) + finite(f) + finite(exact.get("residual", 0))) * _errs(compute, name)
    floor = tiny(compute) * (1 + finite(z)) * (1 + exact["x"].shape[-1])
    plain = None
    if small and name in (None, "relu"):
        float32 = _operands(np.float32, compute, arguments)
        plain = _activated(name, _formula(float32))[0] + float32.get("residual", np.float32(0))
    return [
        Expected(
            "y",
            y,
            cap,
            plain,
            2 * u * (finite(size) + finite(y)).max(initial=0),
            _again(arguments, compute, name),
            floor,
        )
    ]


def _formula(operands, order=None):
    order = slice(None) if order is None else order
    return operands["x"][..., order] @ operands["weight"][:, order].T + operands.get("bias", np.float32(0))


def _again(arguments, compute, name):
    def again(rng):
        operands = _operands(np.float32, compute, arguments)
        order = rng.permutation(operands["x"].shape[-1])
        return _activated(name, _formula(operands, order))[0] + operands.get("residual", np.float32(0))

    return again


def linear_backward(arguments):
    """dz is off by |g| times what f' is off, by itself and by z's error; where relu may see the other sign, by |g|."""
    compute, _ = _compute(arguments)
    u, name = unit(compute), arguments.get("activation")
    exact = _operands(wider(compute), compute, arguments)
    (z, size), kept = _before(exact), arguments.get("preactivation") is not None
    z = exact["preactivation"] if kept else z
    _, slope = _activated(name, z)
    g, x, weight = exact["grad_output"], exact["x"], exact["weight"]
    dz, scale = g * slope, _errs(compute, name)
    of_z = 0.0 if kept else u * steps(x.shape[-1]) * finite(size) * scale
    off = finite(g) * BENDS[name] * of_z + u * scale * finite(dz)
    if name == "relu":
        off = off + np.where(finite(z) <= of_z, finite(g), 0.0)
    elif name is not None:
        off = (
            off
            + finite(g) * u * scale * (20 + 4 * np.minimum(_inner(name, z), 110)) * STEEPEST
            + tiny(compute) * finite(g)
        )
    m = math.prod(x.shape[:-1])
    rows = [np.reshape(a, (m, weight.shape[0])) for a in (dz, finite(dz), off * np.ones(dz.shape))]
    columns, n = x.reshape(m, weight.shape[1]), weight.shape[0]
    wanted = {"x": dz @ weight, "weight": rows[0].T @ columns, "bias": rows[0].sum(0)}
    size_of = {"x": finite(dz) @ finite(weight), "weight": rows[1].T @ finite(columns), "bias": rows[1].sum(0)}
    of_dz = {
        "x": (off * np.ones(dz.shape)) @ finite(weight),
        "weight": rows[2].T @ finite(columns),
        "bias": rows[2].sum(0),
    }
    results = []
    for what in ("x", "weight", "bias"):
        if what in arguments["needs"]:
            cap = u * steps(n if what == "x" else m) * size_of[what] * scale + of_dz[what]
            results.append(Expected(what, wanted[what], cap, floor=tiny(compute) * (1 + n + m)))
    return results
