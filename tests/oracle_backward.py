"""The gradients of attention in any floating type, and how large the terms are that they are sums of.

In np.longdouble they are the oracle of float64 results, in np.float32 they are NumPy's own float32 formula.
"""

import math
from typing import NamedTuple

import numpy as np
from oracle import ADDITIVE, _distance, _kept, by_distance, compute_type, in_type, sizes, turning, visible_keys

FIELDS = ("query", "key", "value", "attn_mask", "bias", "sinks", "alibi_slopes", "relative_bias")


class Pairs(NamedTuple):
    """Every pair of a query row and a key, (..., H, L, S) unless said otherwise, and what belongs to rows and keys."""

    query: np.ndarray  # (..., H, L, E)
    key: np.ndarray  # (..., H, S, E), repeated for each query head
    query_size: np.ndarray  # the magnitudes of what they are made of
    key_size: np.ndarray
    grad_output: np.ndarray | None  # (..., H, L, D); None: gradients of the weights
    visible: np.ndarray
    distance: np.ndarray  # |i + offset - j|, (..., 1, L, S)
    weights: np.ndarray  # P
    dropped: np.ndarray | float  # M
    excess: np.ndarray  # dP - delta
    slope: np.ndarray | float  # 1 - tanh^2
    share: np.ndarray  # exp(sink - lse), (..., H, L, 1)
    delta: np.ndarray  # (..., H, L, 1)
    scale: float
    # Magnitudes, float64: sum_d |terms| of a score, of scale q.k alone, of dP, and of delta.
    reach: np.ndarray  # (..., H, L, 1) the largest of a row whose weight counts, the sink's included
    product: np.ndarray
    parts: np.ndarray
    delta_parts: np.ndarray  # (..., H, L, 1)
    lse: np.ndarray  # (..., H, L, 1) |lse|, 0 where it is not finite


def pairs(real, arguments, rng=None):
    """From the arguments of either function. With `rng` sums over head sizes are made in another order."""
    batch, H, _, L, S, _ = sizes(**arguments)
    stored = compute_type(*(np.asarray(arguments[x]) for x in ("query", "key", "value") if x in arguments))
    turn = turning(real, arguments)
    query, key = (_of_heads(real, stored, arguments[name], batch, H) for name in ("query", "key"))
    query_size, key_size = turn(query, "query", sizes=True), turn(key, "key", sizes=True)
    query, key = turn(query, "query"), turn(key, "key")
    scale, softcap = arguments.get("scale"), arguments.get("softcap")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    visible = visible_keys(arguments)
    counted = np.arange(L)[:, None] < _of_batch(arguments, "query_lengths", L, batch)  # (..., 1, L, 1)
    if arguments.get("rows") is not None:
        counted = counted & np.isin(np.arange(L), np.asarray(arguments["rows"], int) % L)[:, None]
        visible = visible & counted
    offset = _of_batch(arguments, "causal_offset", None, batch)
    if offset is None:
        offset = _of_batch(arguments, "kv_lengths", S, batch) - _of_batch(arguments, "query_lengths", L, batch)
    distance = np.abs(np.arange(L)[:, None] + offset - np.arange(S)).astype(real)
    sink = real(-np.inf)
    if arguments.get("sinks") is not None:
        sink = np.broadcast_to(in_type(real, stored, arguments["sinks"]), (*batch, H))[..., None, None]
    with np.errstate(all="ignore"):
        scaled = query * real(scale)
        score = contract(scaled, key.swapaxes(-1, -2), rng)
        product = (abs(real(scale)) * (query_size @ key_size.swapaxes(-1, -2))).astype(np.float64)
        slope = 1.0
        if softcap:
            capped = np.tanh(score / real(softcap))
            score, slope = real(softcap) * capped, np.where(visible, 1 - capped**2, 0)
        size = product
        for term in _added(real, stored, arguments, visible.shape, distance):
            score, size = score + term, size + np.abs(term).astype(np.float64)
        lse = _of_rows(real, stored, arguments["lse"], (*batch, H, L)) if "lse" in arguments else None
        lse = log_sum_exp(np.where(visible, score, real(-np.inf)), sink) if lse is None else lse[..., None]
        weights = np.where(visible & (lse != -np.inf), np.exp(score - lse), real(0))
        reach = np.where(weights.astype(np.float64) > 0, size, 0.0).max(-1, initial=0.0, keepdims=True)
        reach = np.maximum(reach, np.where(np.isfinite(sink), np.abs(sink), 0).astype(np.float64))
        share = np.where(counted & (sink != -np.inf), np.exp(sink - lse), real(0))
        finite = np.where(np.isfinite(lse), np.abs(lse), 0).astype(np.float64)
        of_weights = _of_weights if "grad_weights" in arguments else _of_output
        grad_output, dropped, grad_weights, delta, parts, delta_parts = of_weights(
            real, stored, arguments, visible, weights, rng
        )
    excess = np.where(visible, grad_weights - delta, real(0))
    delta, delta_parts = (np.where(counted, x, 0) for x in (delta, delta_parts))
    return Pairs(query, key, query_size, key_size, grad_output, visible, distance, weights, dropped, excess, slope,
                 share, delta, scale, reach, product, parts, delta_parts, finite)  # fmt: skip


def _of_output(real, stored, arguments, visible, weights, rng):
    """dO, M, dP, delta, and the magnitudes of the last two."""
    batch, H, _, L, _, _ = sizes(**arguments)
    value = _of_heads(real, stored, arguments["value"], batch, H)
    rows = (*batch, H, L, value.shape[-1])
    grad_output, output = (_of_rows(real, stored, arguments[name], rows) for name in ("grad_output", "output"))
    kept = _kept(arguments, visible.shape)
    dropped = real(1) if kept is None else kept.astype(real) / real(1 - arguments["dropout_p"])
    grad_lse = real(0)
    if arguments.get("grad_lse") is not None:
        grad_lse = _of_rows(real, stored, arguments["grad_lse"], rows[:-1])[..., None]
    delta = (grad_output * output).sum(-1, keepdims=True) - grad_lse
    grad_weights = dropped * contract(grad_output, value.swapaxes(-1, -2), rng)
    parts = (dropped * (np.abs(grad_output) @ np.abs(value).swapaxes(-1, -2))).astype(np.float64)
    delta_parts = (np.abs(grad_output * output).sum(-1, keepdims=True) + np.abs(grad_lse)).astype(np.float64)
    return grad_output, dropped, grad_weights, delta, parts, delta_parts


def _of_weights(real, stored, arguments, visible, weights, rng):
    batch, H, _, L, S, _ = sizes(**arguments)
    rows = np.arange(L) if arguments.get("rows") is None else np.asarray(arguments["rows"], int)
    given = _of_rows(real, stored, arguments["grad_weights"], (*batch, H, len(rows), S))
    grad_weights = np.zeros(visible.shape, real)
    np.add.at(grad_weights, (..., rows, slice(None)), np.where(visible[..., rows, :], given, 0))
    keys = slice(None) if rng is None else rng.permutation(S)
    delta = (weights * grad_weights)[..., keys].sum(-1, keepdims=True)
    parts = np.zeros(visible.shape)
    np.add.at(parts, (..., rows, slice(None)), np.where(visible[..., rows, :], np.abs(given), 0).astype(np.float64))
    return None, real(1), grad_weights, delta, parts, (weights * parts).sum(-1, keepdims=True).astype(np.float64)


def gradients(p, arguments, weights=None, grad_score=None, grad_product=None, shares=None, rng=None):
    """The last sums, field by field. Without more arguments those of the gradients themselves; bounds.py gives the
    errors of P M, dS, T and of what the sinks get, with the magnitudes of all else in `p`.
    """
    sign = -1 if grad_score is None else 1
    if grad_score is None:
        weights, grad_score, shares = p.weights * p.dropped, p.weights * p.excess, p.share * p.delta
        grad_product = grad_score * p.slope
    scale, turn = weights.dtype.type(p.scale), turning(weights.dtype.type, arguments)
    found = {}
    for name in arguments["needs"]:
        if name == "query":
            x = turn(scale * contract(grad_product, p.key, rng), "query", back=True, sizes=sign == 1)
        elif name == "key":
            x = turn(scale * contract(grad_product.swapaxes(-1, -2), p.query, rng), "key", back=True, sizes=sign == 1)
            x = of_shared(x, arguments[name])
        elif name == "value":
            x = of_shared(contract(weights.swapaxes(-1, -2), p.grad_output, rng), arguments[name])
        elif name == "sinks":
            x = sign * in_any_order(shares[..., 0], rng).sum(-1)
        elif name == "alibi_slopes":
            x = sign * in_any_order((grad_score * p.distance).sum(-1), rng).sum(-1)
        elif name == "relative_bias":
            x = _by_column(grad_score, arguments, rng)
        else:
            x = grad_score
        found[name] = summed_to(x, np.shape(arguments[name]))
    return {name: found[name] for name in FIELDS if name in found}


def _by_column(x, arguments, rng):
    """Sums over the keys of each column of relative_bias: (..., H, L, S) -> (..., H, L, 2K + 1)."""
    batch, H, _, L, S, _ = sizes(**arguments)
    span = np.shape(arguments["relative_bias"])[-1]
    found, order = np.zeros((*batch, H, L, span), x.dtype), np.arange(S) if rng is None else rng.permutation(S)
    for index in np.ndindex(batch):
        column = np.clip(-_distance(arguments, batch, index, L, S), -(span // 2), span // 2) + span // 2
        np.add.at(found[index], (slice(None), np.arange(L)[:, None], column[:, order]), x[index][..., order])
    return found


def contract(a, b, rng=None):
    """a @ b, with `rng` in another order."""
    order = slice(None) if rng is None else rng.permutation(a.shape[-1])
    return a[..., order] @ b[..., order, :]


def in_any_order(x, rng):
    return x if rng is None else x[..., rng.permutation(x.shape[-1])]


def summed_to(x, shape):
    """Sums over the places where an operand of this shape stands."""
    x = x.sum(tuple(range(x.ndim - len(shape))))
    return x.sum(tuple(n for n, size in enumerate(shape) if size == 1 and x.shape[n] != 1), keepdims=True)


def of_shared(x, operand):
    """Sums over the query heads of each key/value head."""
    G = np.shape(operand)[-3] if np.ndim(operand) > 2 else 1
    return x.reshape(*x.shape[:-3], G, x.shape[-3] // max(G, 1), *x.shape[-2:]).sum(-3)


def log_sum_exp(score, sink):
    """Along keys and the sink, (..., H, L, 1)."""
    m = np.maximum(score.max(-1, keepdims=True, initial=-np.inf), sink)
    m = np.where(m == -np.inf, 0, m).astype(score.dtype)
    return m + np.log(np.exp(score - m).sum(-1, keepdims=True) + np.exp(sink - m))


def _of_heads(real, stored, x, batch, H):
    """(..., H, n, size), each key/value head repeated."""
    x = in_type(real, stored, x)
    x = x[None] if x.ndim == 2 else x
    x = np.repeat(x, H // max(x.shape[-3], 1), -3)
    return np.broadcast_to(x, (*batch, *x.shape[-3:]))


def _of_rows(real, stored, x, shape):
    return np.broadcast_to(in_type(real, stored, x), shape)


def _of_batch(arguments, name, default, batch):
    x = arguments.get(name)
    return default if x is None else np.broadcast_to(x, batch)[..., None, None, None]


def _added(real, stored, arguments, shape, distance):
    """What is added to the scores, each (..., H, L, S)."""
    for name in ADDITIVE:
        x = arguments.get(name)
        if x is not None and np.asarray(x).dtype != bool:
            yield np.broadcast_to(in_type(real, stored, x), shape)
    if arguments.get("alibi_slopes") is not None:
        slopes = np.broadcast_to(in_type(real, stored, arguments["alibi_slopes"]), shape[:-2])
        yield -slopes[..., None, None] * distance
    if arguments.get("relative_bias") is not None:
        yield by_distance(in_type(real, stored, arguments["relative_bias"]), arguments)
