"""What the results of rotary embeddings and their tables must be, and how far they may be off."""

import numpy as np
import oracle
from numerics import Expected, unit, wider

import attnpy


def _angles(real, positions, frequencies):
    return np.asarray(positions).astype(real)[..., None] * np.asarray(frequencies).astype(real)


def _turned(real, arguments):
    """The result in a floating type; of both products the magnitudes, |x cos| + |other sin|; |x| + |other|."""
    given = {name: x for name, x in arguments.items() if name != "out"}
    x = np.asarray(given["x"]).astype(real)
    if given.get("cos") is None:
        L, D = x.shape[-2:]
        frequencies = given.get("inverse_frequencies")
        if frequencies is None:
            frequencies = attnpy.rotary_frequencies(D)[0]  # at far positions their last bit counts
        angles = _angles(real, given.pop("positions", np.arange(L)), frequencies)
        given |= {"cos": np.cos(angles), "sin": np.sin(angles)}
    cos, sin = (np.asarray(given[name]).astype(real) for name in ("cos", "sin"))
    dim = given.get("rotary_dim") or (x.shape[-1] if cos.shape[-1] == x.shape[-1] else 2 * cos.shape[-1])
    interleaved = given.get("interleaved", False)
    a = np.arange(0, dim, 2) if interleaved else np.arange(dim // 2)
    b = a + (1 if interleaved else dim // 2)
    if cos.shape[-1] == dim and dim:
        cos, sin = cos[..., a], sin[..., a]
    positions = np.asarray(given.get("positions", np.arange(x.shape[-2])))
    batch = x.shape[:-3]
    rows = np.broadcast_to(positions, (*batch, x.shape[-2]))
    turns = []
    for table in (cos, sin):
        table = np.broadcast_to(table, (*batch, *table.shape[-2:]))
        turns.append(np.take_along_axis(table, rows[..., None], -2)[..., None, :, :])
    cos, sin = turns
    if given.get("inverse"):
        sin = -sin
    y, size, both = x.copy(), np.zeros(x.shape), np.zeros(x.shape)
    for mine, other, sign in ((a, b, -1), (b, a, 1)):
        y[..., mine] = x[..., mine] * cos + sign * (x[..., other] * sin)
        size[..., mine] = np.abs(x[..., mine] * cos) + np.abs(x[..., other] * sin)
        both[..., mine] = np.abs(x[..., mine]) + np.abs(x[..., other])
    return y, size, both


def rotary_embedding(arguments):
    """Two products and a sum, each rounded once. Tables that are converted are off by u each, those made here by the
    rounding of an angle besides, 4 u: NumPy's cosine and sine have an error of less than that.
    """
    compute = oracle.compute_type(np.asarray(arguments["x"]))
    u = unit(compute)
    exact, size, both = _turned(wider(compute), arguments)
    made = arguments.get("cos") is None
    converted = not made and np.asarray(arguments["cos"]).dtype != compute
    cap = u * (2 + made + converted) * size + (u if compute == np.float64 else 2.0**-50) * 4 * made * both
    wanted = exact
    if compute == np.float32:
        wanted = attnpy.reference.rotary_embedding(**{k: x for k, x in arguments.items() if k != "out"})
    small = np.asarray(arguments["x"]).dtype == np.float32 and not made
    plain = _turned(np.float32, arguments)[0] if small else None
    return [Expected("y", wanted, cap, plain, 2 * u * size.max(initial=0))]


def _tables(function, arguments, places):
    """cos and sin of the exact product, times the factor, rounded: float32 tables are right to half a unit and what
    float64 leaves, float64 ones as NumPy's cosine and sine are, 4 u, and three more roundings. The oracle's own angle
    is rounded to longdouble.
    """
    compute, factor = arguments["dtype"], arguments.get("attention_factor", 1.0)
    angles = np.concatenate([_angles(np.longdouble, p, w) for p, w in places], -1)
    u = unit(compute)
    share = 7 * u if compute == np.float64 else u * (1 + 2.0**-20)
    results = []
    for name, exact, other in zip(("cos", "sin"), (np.cos(angles), np.sin(angles)), (np.sin(angles), np.cos(angles))):
        exact = (factor * exact).astype(np.longdouble if compute == np.float64 else np.float64)
        off = np.abs(factor * angles * other).astype(np.float64) * np.finfo(np.longdouble).eps
        cap = share * np.abs(exact).astype(np.float64) + off + 2.0**-100
        results.append(Expected(name, exact, cap))
    return results


def rotary_tables(arguments):
    places = [(arguments["positions"], arguments["inverse_frequencies"])]
    return _tables("rotary_tables", arguments, places)


def rotary_tables_2d(arguments):
    w = np.asarray(arguments["inverse_frequencies"])
    by_row, by_column = w if w.ndim == 2 else (w, w)
    return _tables("rotary_tables_2d", arguments, [(arguments["rows"], by_row), (arguments["columns"], by_column)])
