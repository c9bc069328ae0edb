"""What the results of sinusoidal encodings and learned tables must be, and how far they may be off."""

import functools
import math
from fractions import Fraction

import mpmath
import numpy as np
import oracle
from bounds_tools import oracle_errs
from numerics import Expected, unit, wider

import attnpy

CONTEXT = mpmath.mp.clone()
CONTEXT.prec = 200


# --- sinusoids, by mpmath


@functools.lru_cache(maxsize=200_000)
def _sinusoid(position, base, numerator, denominator):
    """sin and cos of position base^(-numerator / denominator), as longdoubles."""
    cosine, sine = CONTEXT.cos_sin(CONTEXT.mpf(position) * CONTEXT.mpf(base) ** -(CONTEXT.mpf(numerator) / denominator))
    return _long(sine), _long(cosine)


def _long(x):
    high = float(x)
    return np.longdouble(high) + np.longdouble(float(x - high))


def true_encoding(positions, dim, base=10000.0, layout="interleaved", denominator="dim"):
    """The values themselves, (..., dim)."""
    p = np.arange(positions) if isinstance(positions, int) else np.asarray(positions)
    frequencies = (dim + (layout == "interleaved")) // 2
    y = np.zeros((*p.shape, dim), np.longdouble)
    places = [(2 * i, 2 * i + 1) if layout == "interleaved" else (i, frequencies + i) for i in range(frequencies)]
    for index in np.ndindex(p.shape):
        for i, (s, c) in enumerate(places):
            exponent = (2 * i, dim) if denominator == "dim" else (i, max(frequencies - 1, 1))
            sine, cosine = _sinusoid(float(p[index]), base, *exponent)
            y[(*index, s)] = sine
            if c < dim:
                y[(*index, c)] = cosine
    return y


def _encoded(y, dtype):
    """One unit in the last place of float32, 5 u of float64; half types round the float32 number, and half their unit
    is allowed by numerics."""
    if dtype == np.float64:
        cap = 5 * unit(np.float64) * np.abs(y)
    else:
        cap = np.spacing(np.maximum(np.abs(y), np.finfo(np.float32).tiny).astype(np.float32))
        y = y.astype(np.float64)
    return [Expected("encoding", y, cap.astype(np.float64))]


def sinusoidal_encoding(arguments):
    formula = {k: arguments[k] for k in ("base", "layout", "denominator") if k in arguments}
    y = true_encoding(arguments["positions"], arguments["dim"], **formula)
    return _encoded(y, arguments["dtype"])


def sinusoidal_encoding_2d(arguments):
    formula = {k: arguments[k] for k in ("base", "layout", "denominator") if k in arguments}
    row, column = (true_encoding(arguments[name], arguments["dim"] // 2, **formula) for name in ("rows", "columns"))
    halves = np.broadcast_arrays(row[:, None], column[None])
    halves = halves[::-1] if arguments.get("order") == "columns_first" else halves
    return _encoded(np.concatenate(halves, -1), arguments["dtype"])


# --- tables


def add_positions(arguments):
    """x and the row are read exactly, except a float64 table in a float32 call; one sum is rounded."""
    x, table, offset = arguments["x"], arguments["table"], arguments.get("offset", 0)
    compute = oracle.compute_type(x)
    exact = wider(compute)
    rows = np.broadcast_to(np.asarray(offset)[..., None] + np.arange(x.shape[-2]), x.shape[:-1])
    table = np.broadcast_to(table.astype(compute).astype(exact), (*x.shape[:-2], *table.shape[-2:]))
    wanted = x.astype(exact) + np.take_along_axis(table, rows[..., None], -2)
    return [Expected("sum", wanted, unit(compute) * np.abs(wanted).astype(np.float64))]


def add_positions_backward(arguments):
    """Chains of at most 64, whose sums are added one after another."""
    gradient, table = arguments["grad_output"], arguments["table"]
    compute = oracle.compute_type(gradient)
    shared = math.prod(gradient.shape[:-2])
    wanted, total = (
        attnpy.reference.add_positions_backward(**{**arguments, "grad_output": g})
        for g in (gradient, np.abs(gradient.astype(np.float64)))
    )
    cap = unit(compute) * (64 + math.ceil(shared / 64)) * total * oracle_errs(compute)
    stored = table.dtype if table.dtype.kind == "f" or table.dtype.name == "bfloat16" else np.dtype(np.float64)
    narrowed = unit(np.float32) * np.abs(wanted) if stored == np.float32 and compute == np.float64 else 0.0
    return [Expected("gradient", wanted, cap, floor=narrowed)]


def _weights(m, n, cubic):
    """Exact numbers, as longdoubles; (n, m)."""
    w = np.zeros((n, m), np.longdouble)
    for o in range(n if m else 0):
        at = Fraction((2 * o + 1) * m - n, 2 * n)
        at = at if cubic else max(at, Fraction(0))
        below = math.floor(at)
        for point in range(below - cubic, below + 2 + cubic):
            d = abs(at - point)
            weight = 1 - d
            if cubic:
                near, far = (
                    Fraction(5, 4) * d**3 - Fraction(9, 4) * d**2 + 1,
                    -Fraction(3, 4) * (d**3 - 5 * d**2 + 8 * d - 4),
                )
                weight = near if d <= 1 else far
            high = float(weight)
            w[o, min(max(point, 0), m - 1)] += np.longdouble(high) + np.longdouble(float(weight - Fraction(high)))
    return w


def _interpolated(x, weights):
    """Sums along two axes of a grid, with weights that err by a few units of float64: x (..., rows, columns, D)."""
    compute = oracle.compute_type(x)
    exact = x.astype(wider(compute))
    w, used = weights, [(np.abs(one) > 0).astype(exact.dtype) for one in weights]

    def along(by, x):
        return np.einsum("va,ub,...abd->...vud", *(one.astype(x.dtype) for one in by), x)

    steps = 4 + sum(min(n, 64) + math.ceil(n / 64) for n in (int(u.sum(-1).max(initial=0)) for u in used))
    total = along([np.abs(one) for one in w], np.abs(exact)).astype(np.float64)
    weights_err = 32 * unit(np.float64) * along(used, np.abs(exact)).astype(np.float64)
    return along(w, exact), (unit(compute) * steps * total + weights_err) * oracle_errs(compute)


def _line(x, m, n, transposed):
    w = _weights(m, n, False)
    y, cap = _interpolated(x[..., None, :, :], [np.ones((1, 1), np.longdouble), w.T if transposed else w])
    return [Expected("table", y[..., 0, :, :], cap[..., 0, :, :])]


def interpolate_positions(arguments):
    x = arguments["table"]
    return _line(x, x.shape[-2], arguments["length"], False)


def interpolate_positions_backward(arguments):
    x = arguments["grad_output"]
    return _line(x, arguments["length"], x.shape[-2], True)


def _grid(x, before, after, prefix, transposed):
    weights = [_weights(m, n, True) for m, n in zip(before, after, strict=True)]
    own = after if transposed else before
    patches = x[..., prefix:, :].reshape(*x.shape[:-2], *own, x.shape[-1])
    y, cap = _interpolated(patches, [w.T for w in weights] if transposed else weights)
    y, cap = (z.reshape(*x.shape[:-2], -1 if z.size else math.prod(z.shape[-3:-1]), x.shape[-1]) for z in (y, cap))
    kept = x[..., :prefix, :].astype(y.dtype)
    return [Expected("table", np.concatenate([kept, y], -2), np.concatenate([0 * kept.astype(np.float64), cap], -2))]


def interpolate_positions_2d(arguments):
    return _grid(*(arguments[k] for k in ("table", "from_grid", "to_grid", "num_prefix_tokens")), False)


def interpolate_positions_2d_backward(arguments):
    return _grid(*(arguments[k] for k in ("grad_output", "from_grid", "to_grid", "num_prefix_tokens")), True)
