"""What attention with vectors of distances must give, and how far off it may be: as attention, with more terms."""

import math

import numpy as np
import oracle
import oracle_positions_vectors as vectors
from bounds_tools import finite, oracle_errs
from numerics import HALF, Expected, tiny, unit, wider

import attnpy


def _compute(arguments):
    return oracle.compute_type(*(np.asarray(arguments[name]) for name in ("query", "key", "value")))


def _small(arguments):
    return all(np.asarray(arguments[name]).dtype == np.float32 for name in ("query", "key", "value"))


def _magnitudes(p):
    """The same with absolute values: sums of them are what errors are shares of."""
    names = ("content", "position", "key", "value", "vectors")
    changed = {name: finite(getattr(p, name)) for name in names}
    with_values = None if p.value_vectors is None else finite(p.value_vectors)
    return p._replace(**changed, value_vectors=with_values, scale=abs(float(p.scale)))


def _forward(function, arguments):
    """The bound of attention with S_i = sum scale ((|q| + |u|) |k| + (|q| + |v|) |r|) + ..., two more roundings in a
    score (the sums q + u, and with the product by distance), A_i = sum P (|v| + |w|), and the sums over vectors beside
    those over keys.
    """
    compute = _compute(arguments)
    E, S = np.shape(arguments["query"])[-1], np.shape(arguments["key"])[-2]
    u, real = unit(compute), wider(compute)
    p = vectors.pairs(real, arguments)
    wanted = [vectors.output(p), np.where(p.visible.any(-1), p.lse[..., 0], -np.inf).astype(real)]
    if compute == np.float32:
        reference = getattr(attnpy.reference, function)(**{k: v for k, v in arguments.items() if k != "out"})
        wanted = list(reference)
    m = _magnitudes(p)
    weights = finite(p.weights)
    spread = vectors.output(m._replace(weights=weights))
    total = vectors.output(m._replace(weights=p.visible.astype(np.float64)))
    r_n = 64 + math.ceil(S / 64) + (128 + math.ceil(S / 64) if p.value_vectors is not None else 0)
    share = u * (8 + 2 * r_n + 2 * (E + 5) * p.reach) * oracle_errs(compute)
    lse = np.where(np.isfinite(p.lse), np.abs(p.lse), 0).astype(np.float64)[..., 0]
    of_lse = u * (8 + r_n + 2 * (E + 5) * p.reach[..., 0]) * oracle_errs(compute)

    def plain(rng=None):
        found = vectors.pairs(np.float32, arguments, rng)
        return vectors.output(found, rng), np.where(found.visible.any(-1), found.lse[..., 0], -np.inf)

    theirs = plain() if _small(arguments) else (None, None)
    return [
        Expected("output", wanted[0], share * spread, theirs[0], 2 * u * spread.max(initial=0),
                 lambda rng: plain(rng)[0], tiny(compute) * total),
        Expected("lse", wanted[1], of_lse, theirs[1], 2 * u * max(1, lse.max(initial=0)), lambda rng: plain(rng)[1],
                 u * lse),
    ]  # fmt: skip


def relative_attention_shaw(arguments):
    return _forward("relative_attention_shaw", arguments)


def relative_attention_xl(arguments):
    return _forward("relative_attention_xl", arguments)


def _backward(function, arguments):
    """P is off by kappa = 8 + 2 (E + 5) S_i + (E + 1) |lse_i| of itself, dP - delta by lambda = D + 4 of their terms,
    as in bounds.scaled_dot_product_attention_backward; what sums add, see _steps.
    """
    compute = _compute(arguments)
    u, real = unit(compute), wider(compute)
    E, D = np.shape(arguments["query"])[-1], np.shape(arguments["value"])[-1]

    def made(real, rng=None):
        p = vectors.pairs(real, arguments, rng, arguments["lse"])
        apart, grad, parts = vectors.excess(p, arguments, rng)
        return p, vectors.gradients(p, arguments, p.weights, p.weights * apart, grad, rng), grad, parts

    p, exact, grad, parts = made(real)
    if compute == np.float32:
        reference = getattr(attnpy.reference, function)(**{k: v for k, v in arguments.items() if k != "out"})
        exact = {name: getattr(reference, name) for name in exact}
    plain = made(np.float32)[1] if _small(arguments) else {}
    lse = np.where(np.isfinite(p.lse), np.abs(p.lse), 0).astype(np.float64)
    kappa, lambda_ = 8 + 2 * (E + 5) * p.reach + (E + 1) * lse, D + 4
    m, weights, grad = _magnitudes(p), finite(p.weights), finite(grad)

    def summed(of_weights, of_score):
        return vectors.gradients(m, arguments, of_weights * weights, of_score * weights * parts, grad)

    errors, terms = summed(kappa, kappa + lambda_), summed(1.0, 1.0)
    rounded = summed(1 + lse, 1 + lse)
    lost = vectors.gradients(m, arguments, tiny(compute) * p.visible, tiny(compute) * parts, grad)
    results = []
    for name in exact:
        cap = u * oracle_errs(compute) * (errors[name] + _steps(name, arguments) * terms[name])
        numpy_has = plain.get(name) if np.asarray(arguments[name]).dtype.name not in HALF else None

        def again(rng, name=name):
            return made(np.float32, rng)[1][name]

        results.append(
            Expected(name, exact[name], cap, numpy_has, 2 * u * rounded[name].max(initial=0), again, lost[name])
        )
    return results


def _steps(name, arguments):
    """The roundings of the sums that end in an element of a gradient: blocks of 64, bands of 127 that fold, places."""
    batch, H, G, L, S, _ = oracle.sizes(**arguments)
    rows, keys = math.ceil(L / 64), math.ceil(S / 64)
    places = math.prod(batch) * H
    if name == "query":
        return 192 + 3 * keys * math.prod(batch)
    if name in ("key", "value"):
        return 64 + rows * math.prod(batch) * (H // max(G, 1))
    if name in oracle.ADDITIVE:
        return 128 + places * (rows + 1) * (keys + 1)
    if name in ("content_bias", "position_bias"):
        return 256 + 3 * keys + places * rows
    return 256 + (places + 1) * (rows + 1) * (keys + 3)


def relative_attention_shaw_backward(arguments):
    return _backward("relative_attention_shaw_backward", arguments)


def relative_attention_xl_backward(arguments):
    return _backward("relative_attention_xl_backward", arguments)
