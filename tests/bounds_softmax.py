"""What softmax, log_softmax, logsumexp and their gradients must be, and how far off: see bounds.py."""

import math

import numpy as np
import oracle
from bounds_tools import LANES, exact_of, finite, oracle_errs
from numerics import Expected, tiny, unit, wider


def _softmax(arguments):
    """Arguments of the oracle, type computed in, results of the oracle and of float32, 72 + n / (64 LANES)."""
    import attnpy._core

    x = np.asarray(arguments["x"])
    compute = oracle.compute_type(x)
    given = {name: arguments[name] for name in ("x", "axis", "where") if arguments.get(name) is not None}
    axes = given.get("axis", -1)
    n = math.prod(x.shape[axis] for axis in (axes if isinstance(axes, tuple) else (axes,)))
    lanes = LANES[attnpy._core.isa] // compute.itemsize
    steps = (72 + n / (64 * lanes)) * oracle_errs(compute)
    plain = oracle.softmax(np.float32, **given) if x.dtype == np.float32 else (None,) * 4
    return compute, given, oracle.softmax(wider(compute), **given), plain, steps


def softmax(arguments):
    """x - m is rounded, |x - m| u as a share of y; half the least subnormal."""
    compute, given, exact, plain, steps = _softmax(arguments)
    y = exact[0].astype(np.float64)
    wanted = exact_of("softmax", compute, given, exact[:1])[0]
    cap = unit(compute) * (steps + finite(exact[3])) * finite(y)
    floor = max(unit(compute) * tiny(compute), 2.0**-1074)
    return [Expected("y", wanted, cap, plain[0], 2 * unit(compute) * finite(y).max(initial=0), floor=floor)]


def log_softmax(arguments):
    compute, given, exact, plain, steps = _softmax(arguments)
    wanted = exact_of("log_softmax", compute, given, exact[1:2])[0]
    size = finite(exact[1])
    cap, floor = unit(compute) * (steps + size), unit(compute) * size
    return [Expected("y", wanted, cap, plain[1], 2 * unit(compute) * max(1, size.max(initial=0)), floor=floor)]


def logsumexp(arguments):
    compute, given, exact, plain, steps = _softmax(arguments)
    axis, keepdims = arguments.get("axis", -1), arguments.get("keepdims", False)
    exact, plain = (None if y is None else y if keepdims else y.squeeze(axis) for y in (exact[2], plain[2]))
    wanted = exact_of("logsumexp", compute, {**given, "keepdims": keepdims}, (exact,))[0]
    size = finite(exact)
    cap, floor = unit(compute) * steps, unit(compute) * size
    return [Expected("y", np.asarray(wanted), cap, plain, 2 * unit(compute) * max(1, size.max(initial=0)), floor=floor)]


def _softmax_backward(function, which, arguments):
    """Type computed in, the wanted gradient, the oracle's and float32's parts, 73 + n / (64 LANES)."""
    import attnpy._core

    g, y = (np.asarray(arguments[name]) for name in ("grad_output", "output"))
    compute = oracle.compute_type(g, y)
    given = {k: arguments[k] for k in ("grad_output", "output", "axis", "where") if arguments.get(k) is not None}
    axes = given.get("axis", -1)
    n = math.prod(y.shape[axis] for axis in (axes if isinstance(axes, tuple) else (axes,)))
    steps = (73 + n / (64 * (LANES[attnpy._core.isa] // compute.itemsize))) * oracle_errs(compute)
    exact = oracle.softmax_backward(wider(compute), **given)[which]
    plain = oracle.softmax_backward(np.float32, **given)[which][0] if g.dtype == y.dtype == np.float32 else None
    wanted = exact_of(function, compute, given, exact[:1])[0]
    kept = np.broadcast_to(given.get("where", True), y.shape)
    g, y = (np.where(kept, array.astype(compute), 0).astype(np.float64) for array in (g, y))
    return unit(compute), wanted, exact, plain, steps, g, y, n * max(unit(compute) * tiny(compute), 2.0**-1074)


def softmax_backward(arguments):
    """sum_j g_j y_j, of `steps` roundings; the difference; the product. Each of n + 1 products may underflow."""
    u, wanted, exact, plain, steps, g, y, floor = _softmax_backward("softmax_backward", 0, arguments)
    apart = np.abs(g) + exact[2]
    cap = u * np.abs(y) * (steps * exact[1] + 2 * apart)
    slack = 2 * u * (np.abs(y) * (exact[1] + np.abs(g))).max(initial=0)
    return [Expected("gradient", wanted, cap, plain, slack, floor=2 * floor)]


def log_softmax_backward(arguments):
    """sum_j g_j; exp of 1 ULP class and its product, 4 u; the last difference."""
    u, wanted, exact, plain, steps, g, y, floor = _softmax_backward("log_softmax_backward", 1, arguments)
    e = np.exp(y)
    cap = u * e * (steps * exact[1] + 4 * exact[2])
    slack = 2 * u * (e * exact[1] + np.abs(g)).max(initial=0)
    floor = floor * (1 + exact[2]) + u * np.abs(exact[0]).astype(np.float64)
    return [Expected("gradient", wanted, cap, plain, slack, floor=floor)]


def logsumexp_backward(arguments):
    """x - y is rounded, |x - y| u as a share of the exponential; exp of 1 ULP class and the product, 4 u."""
    names = ("grad_output", "x", "output")
    compute = oracle.compute_type(*(np.asarray(arguments[name]) for name in names))
    given = {k: arguments[k] for k in (*names, "axis", "where", "keepdims") if arguments.get(k) is not None}
    exact, apart = oracle.logsumexp_backward(wider(compute), **given)
    small = all(np.asarray(arguments[name]).dtype == np.float32 for name in names)
    plain = oracle.logsumexp_backward(np.float32, **given)[0] if small else None
    wanted = exact_of("logsumexp_backward", compute, given, (exact,))[0]
    size, u = finite(exact), unit(compute)
    g = np.abs(np.asarray(arguments["grad_output"]).astype(np.float64)).max(
        initial=0, where=np.asarray(arguments["output"]) != -np.inf
    )
    floor = max(u * tiny(compute), 2.0**-1074) * (1 + g)
    cap = u * (4 + finite(apart)) * size * oracle_errs(compute)
    return [Expected("gradient", np.asarray(wanted), cap, plain, 2 * u * size.max(initial=0), floor=floor)]
