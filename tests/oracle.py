"""The formulas in any floating type, one head at a time.

In np.longdouble they are the oracle of float64 results, in np.float32 they are NumPy's own float32 formula, in float64
a second opinion on attnpy.reference. Beside each result stand the magnitudes that bounds.py makes its bounds of.
"""

import math
from typing import NamedTuple

import numpy as np
import oracle_rotary

import attnpy

ADDITIVE = ("bias", "attn_mask")


class Attention(NamedTuple):
    """H query heads, L queries, S keys, D value size; what belongs to value is None without one."""

    weights: np.ndarray  # (..., H, L, S) before dropout
    visible: np.ndarray  # (..., H, L, S)
    lse: np.ndarray  # (..., H, L)
    reach: np.ndarray  # (..., H, L) S_i: the largest sum of |terms| of a score that counts, the sink's included
    output: np.ndarray | None  # (..., H, L, D)
    spread: np.ndarray | None  # (..., H, L, D) A_i = sum_j p_ij |v_j|
    total: np.ndarray | None  # (..., H, L, D) sum of |v_j| over visible keys


def compute_type(*arrays):
    """float32 for float32 and the half types, else float64."""
    small = all(array.dtype == np.float32 or array.dtype.name in ("float16", "bfloat16") for array in arrays)
    return np.dtype(np.float32 if small else np.float64)


def in_type(real, stored, array):
    """An operand as the call converts it (to the type computed in), then in `real`."""
    return np.asarray(array).astype(stored).astype(real)


def sizes(query, key, value=None, **_):
    """(batch shape, H, G, L, S), and whether there is no head axis."""
    arrays = [np.asarray(x) for x in (query, key, value) if x is not None]
    batch = np.broadcast_shapes(*(x.shape[:-3] for x in arrays))
    heads = [x.shape[-3] if x.ndim > 2 else 1 for x in arrays]
    return batch, heads[0], heads[1], arrays[0].shape[-2], arrays[1].shape[-2], all(x.ndim == 2 for x in arrays)


def spelt_out(arguments):
    """The arguments with a BlockMask as the array it stands for."""
    return {name: x.to_dense() if isinstance(x, attnpy.BlockMask) else x for name, x in arguments.items()}


def visible_keys(arguments):
    """(..., H, L, S): which keys each query row sees."""
    arguments = spelt_out(arguments)
    batch, H, _, L, S, _ = sizes(**arguments)

    def given(name, default):
        return default if arguments.get(name) is None else np.broadcast_to(arguments[name], batch)

    queries, keys = given("query_lengths", np.full(batch, L)), given("kv_lengths", np.full(batch, S))
    offset = given("causal_offset", keys - queries)
    window = arguments.get("window_size")
    left, right = (-1, -1) if window is None else (window, window) if np.ndim(window) == 0 else window
    seen = np.zeros((*batch, H, L, S), bool)
    for index in np.ndindex(batch):
        for i in range(int(queries[index])):
            first, end = 0, int(keys[index])
            if arguments.get("is_causal"):
                end = min(end, i + int(offset[index]) + 1)
            if left >= 0:
                first = max(first, i + int(offset[index]) - left)
            if right >= 0:
                end = min(end, i + int(offset[index]) + right + 1)
            seen[(*index, slice(None), i, slice(first, max(first, end)))] = True
    for name in ADDITIVE:
        mask = arguments.get(name)
        if mask is not None:
            mask = np.asarray(mask)
            seen &= np.broadcast_to(mask if mask.dtype == bool else mask != -np.inf, seen.shape)
    if arguments.get("relative_bias") is not None:
        seen &= by_distance(arguments["relative_bias"], arguments) != -np.inf
    return seen


def by_distance(table, arguments):
    """table[h, i, clip(j - i - offset, -K, K) + K] of a table (..., H, L or 1, 2K + 1), (..., H, L, S)."""
    batch, H, _, L, S, _ = sizes(**arguments)
    table = np.asarray(table)
    table = np.broadcast_to(table, (*batch, H, L, table.shape[-1]))
    K, found = table.shape[-1] // 2, np.empty((*batch, H, L, S), table.dtype)
    for index in np.ndindex(batch):
        column = np.clip(-_distance(arguments, batch, index, L, S), -K, K) + K
        found[index] = table[index][:, np.arange(L)[:, None], column]
    return found


def used_entries(shape, visible, arguments):
    """Which entries of a table of this shape, (..., H, L or 1, 2K + 1), belong to one of the visible pairs."""
    batch, H, _, L, S, _ = sizes(**arguments)
    used, K = np.zeros((*batch, H, L, shape[-1]), bool), shape[-1] // 2
    for index in np.ndindex(batch):
        column = np.clip(-_distance(arguments, batch, index, L, S), -K, K) + K
        h, i, j = np.nonzero(visible[index])
        used[(*index, h, i, column[i, j])] = True
    used = used.any(tuple(range(used.ndim - len(shape))))
    return used.any(tuple(n for n, size in enumerate(shape) if size == 1 and used.shape[n] != 1), keepdims=True)


def turning(real, arguments):
    """turn(x, side, ...): oracle_rotary.turned for a call."""
    ranges = {name: x for name, x in arguments.items() if name not in (*ADDITIVE, "relative_bias")}
    turned_rows = None
    if arguments.get("rotary") is not None:
        turned_rows = oracle_rotary.rows_seen(arguments, sizes(**arguments), visible_keys(ranges))

    def turn(x, side, **what):
        return oracle_rotary.turned(real, arguments, side, turned_rows, x, **what)

    return turn


def attention(real, arguments, rng=None):
    """All of scaled_dot_product_attention; `value` may be missing. With `rng` the sums are made in another order."""
    query, key, value = (arguments.get(name) for name in ("query", "key", "value"))
    batch, H, G, L, S, no_heads = sizes(query, key, value)
    stored = compute_type(*(np.asarray(x) for x in (query, key, value) if x is not None))
    visible = visible_keys(arguments)
    operands = (None if x is None else in_type(real, stored, x) for x in (query, key, value))
    query, key, value = (None if x is None else _with_heads(x, batch) for x in operands)
    turn = turning(real, arguments)
    query_size, key_size = turn(query, "query", sizes=True), turn(key, "key", sizes=True)
    query, key = turn(query, "query"), turn(key, "key")
    keys = slice(None) if rng is None else rng.permutation(S)
    if rng is not None:
        dims = rng.permutation(query.shape[-1])
        query, key = query[..., dims], key[..., dims]
    added = [
        np.broadcast_to(in_type(real, stored, arguments[name]), visible.shape)
        for name in ADDITIVE
        if arguments.get(name) is not None and np.asarray(arguments[name]).dtype != bool
    ]
    if arguments.get("relative_bias") is not None:
        added.append(by_distance(in_type(real, stored, arguments["relative_bias"]), arguments))
    sinks, slopes = (
        None if arguments.get(name) is None else np.broadcast_to(in_type(real, stored, arguments[name]), (*batch, H))
        for name in ("sinks", "alibi_slopes")
    )
    scale, softcap = arguments.get("scale"), arguments.get("softcap")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    kept = _kept(arguments, visible.shape)
    D = 0 if value is None else value.shape[-1]
    weights, lse, reach = np.zeros(visible.shape, real), np.zeros((*batch, H, L), real), np.zeros((*batch, H, L))
    output, spread, total = (np.zeros((*batch, H, L, D), kind) for kind in (real, np.float64, np.float64))
    for index in np.ndindex(*batch, H):
        shared = (*index[:-1], index[-1] // (H // G))
        terms = [term[index] for term in added]
        if slopes is not None:
            terms.append(-slopes[index] * np.abs(_distance(arguments, batch, index[:-1], L, S)).astype(real))
        sink = real(-np.inf) if sinks is None else sinks[index]
        if arguments.get("query_lengths") is not None:
            sink = np.where(
                np.arange(L) < np.broadcast_to(arguments["query_lengths"], batch)[index[:-1]], sink, real(-np.inf)
            )
        p, lse[index], reach[index] = _head(
            real, query[index], key[shared], (query_size[index], key_size[shared]), visible[index], terms, scale,
            softcap, sink, keys,
        )  # fmt: skip
        weights[index] = p
        if value is not None:
            v = value[shared]
            dropped = p if kept is None else p * kept[index].astype(real) / real(1 - arguments["dropout_p"])
            output[index] = dropped[:, keys] @ v[keys]
            spread[index] = (dropped @ np.abs(v)).astype(np.float64)
            total[index] = visible[index] @ np.abs(v).astype(np.float64)
    result = (weights, visible, lse, reach, *((None,) * 3 if value is None else (output, spread, total)))
    lanes = (..., 0, slice(None), slice(None)), (..., 0, slice(None))
    if no_heads:
        result = [x if x is None else x[lanes[0] if n not in (2, 3) else lanes[1]] for n, x in enumerate(result)]
    return Attention(*result)


class Tangents(NamedTuple):
    """Of output (..., H, L, D) and log-sum-exp (..., H, L); and the magnitudes of the terms they are sums of."""

    output: np.ndarray
    lse: np.ndarray
    output_size: np.ndarray  # sum_j p_ij (|dv_j| + |ds_ij| |v_j|) + 2 |ds|_i A_i
    lse_size: np.ndarray  # |ds|_i = sum_j P_ij |ds_ij| + P_i,sink |dsink|, where |ds_ij| is the sum of its |terms|


def attention_jvp(real, arguments, rng=None):
    """(Attention, Tangents) of scaled_dot_product_attention_jvp. With `rng` the sums are made in another order."""
    found = attention(real, arguments, rng)
    batch, H, G, L, S, no_heads = sizes(*(arguments[name] for name in ("query", "key", "value")))
    stored = compute_type(*(np.asarray(arguments[name]) for name in ("query", "key", "value")))
    dims = slice(None) if rng is None else rng.permutation(np.shape(arguments["query"])[-1])
    keys = slice(None) if rng is None else rng.permutation(S)

    def whole(name, last):
        """(..., H, L or S, E or D), 0 where absent."""
        heads, rows = (H, L) if name.startswith("query") else (G, S)
        x = 0.0 if arguments.get(name) is None else arguments[name]
        x = np.broadcast_to(in_type(real, stored, x), (*batch, heads, rows, last))
        return np.repeat(x, H // max(heads, 1), -3)

    def sunk(name):
        return np.broadcast_to(in_type(real, stored, arguments[name]), (*batch, H))[..., None]

    E, D = np.shape(arguments["query"])[-1], np.shape(arguments["value"])[-1]
    scale, softcap = arguments.get("scale"), arguments.get("softcap")
    scale = real(1 / math.sqrt(E) if scale is None else scale)
    names, turn = ("query", "query_tangent", "key", "key_tangent"), turning(real, arguments)
    sizes_of = (turn(whole(name, E), name.removesuffix("_tangent"), sizes=True) for name in names)
    q_size, dq_size, k_size, dk_size = (np.abs(scale) * x if n < 2 else x for n, x in enumerate(sizes_of))
    q, dq, k, dk = (turn(whole(name, E), name.removesuffix("_tangent"))[..., dims] for name in names)
    v, dv = whole("value", D), whole("value_tangent", D)
    heads = found.weights.reshape(*batch, H, L, S), found.lse.reshape(*batch, H, L), found.visible
    weights, lse, visible = heads[0], heads[1], heads[2].reshape(*batch, H, L, S)
    with np.errstate(all="ignore"):
        ds = (scale * dq) @ k.swapaxes(-1, -2) + (scale * q) @ dk.swapaxes(-1, -2)
        size = dq_size @ k_size.swapaxes(-1, -2) + q_size @ dk_size.swapaxes(-1, -2)
        if softcap:
            ds = ds * (1 - np.tanh(scale * q @ k.swapaxes(-1, -2) / real(softcap)) ** 2)
        if arguments.get("bias_tangent") is not None:
            added = np.broadcast_to(in_type(real, stored, arguments["bias_tangent"]), visible.shape)
            ds, size = ds + added, size + np.abs(added)
        if arguments.get("relative_bias_tangent") is not None:
            table, span = (
                in_type(real, stored, arguments["relative_bias_tangent"]),
                np.shape(arguments["relative_bias"]),
            )
            added = by_distance(np.broadcast_to(table, (*table.shape[:-1], span[-1])), arguments)
            added = added.reshape(ds.shape)
            ds, size = ds + added, size + np.abs(added)
        ds, size = np.where(visible, ds, real(0)), np.where(visible, size, real(0))
        mean, reach = (weights * ds)[..., keys].sum(-1), (weights * size).sum(-1)
        if arguments.get("sinks_tangent") is not None:
            sinks, moved = sunk("sinks"), sunk("sinks_tangent")
            share = np.where(np.isfinite(lse), np.exp(sinks - lse), real(0))
            mean, reach = mean + share * moved, reach + share * np.abs(moved)
        kept = _kept(arguments, visible.shape)
        p = weights if kept is None else weights * kept.astype(real) / real(1 - arguments["dropout_p"])
        moved = p * (ds - mean[..., None])
        output = p[..., keys] @ dv[..., keys, :] + moved[..., keys] @ v[..., keys, :]
        spread = p @ np.abs(dv) + (p * size) @ np.abs(v) + 2 * reach[..., None] * (p @ np.abs(v))
    results = [output, mean, spread.astype(np.float64), reach.astype(np.float64)]
    if no_heads:
        results = [x.reshape(x.shape[1:]) for x in results]
    return found, Tangents(*results)


def _head(real, q, k, sizes, seen, terms, scale, softcap, sink, keys):
    """P, the log-sum-exp and S_i of one head: q (L, E), k (S, E); sizes: of |terms| that their elements are sums of;
    keys: the order in which exponentials are summed.
    """
    with np.errstate(all="ignore"):
        scaled = q * real(scale)
        s = scaled @ k.T
        size = ((sizes[0] * np.abs(real(scale))) @ sizes[1].T).astype(np.float64)
        if softcap:
            s = real(softcap) * np.tanh(s / real(softcap))
        for term in terms:
            s = s + term
            size = size + np.abs(term).astype(np.float64)
        s = np.where(seen, s, real(-np.inf))
        m = np.maximum(s.max(-1, initial=real(-np.inf)), sink)
        m = np.where(m == -np.inf, real(0), m)
        e = np.exp(s - m[:, None])
        z = e[:, keys].sum(-1) + np.exp(sink - m)
        p = e / np.where(z == 0, real(1), z)[:, None]
        reach = np.where(p.astype(np.float64) > 0, size, 0.0).max(-1, initial=0.0)
        reach = np.maximum(reach, np.where(np.isinf(sink), 0.0, np.abs(sink)).astype(np.float64))
        return p, m + np.log(z), reach


def _with_heads(x, batch):
    """(..., H or G, rows, size), of the whole batch."""
    x = x[None] if x.ndim < 3 else x
    return np.broadcast_to(x, (*batch, *x.shape[-3:]))


def _distance(arguments, batch, index, L, S):
    """i + offset - j, (L, S)."""

    def given(name, default):
        return default if arguments.get(name) is None else int(np.broadcast_to(arguments[name], batch)[index])

    offset = given("causal_offset", given("kv_lengths", S) - given("query_lengths", L))
    return np.arange(L)[:, None] + offset - np.arange(S)


def _kept(arguments, shape):
    p = arguments.get("dropout_p") or 0.0
    return attnpy.reference.dropout_mask(shape, p, arguments["rng"], dtype=bool) if p else None


def softmax(real, x, axis=-1, where=None):
    """softmax, log_softmax, logsumexp (axes kept) and the largest |x_i - m| among the elements that take part."""
    x = np.asarray(x)
    x = x.astype(compute_type(x)).astype(real)
    kept = np.ones(x.shape, bool) if where is None else np.broadcast_to(where, x.shape)
    with np.errstate(all="ignore"):
        x = np.where(kept, x, real(-np.inf))
        m = x.max(axis, keepdims=True, initial=real(-np.inf))
        m = np.where(np.isinf(m), real(0), m)
        e = np.exp(x - m)
        z = e.sum(axis, keepdims=True)
        y = np.where(kept, e / np.where(z == 0, real(1), z), real(0))
        return y, np.where(kept, x - m - np.log(z), real(-np.inf)), m + np.log(z), np.where(kept, np.abs(x - m), 0)


def softmax_backward(real, grad_output, output, axis=-1, where=None):
    """Of softmax and of log_softmax: the gradient, the sum of |terms| it shares and that sum itself (axes kept)."""
    g, y, kept = _gradient_and_saved(real, where, grad_output, output)
    with np.errstate(all="ignore"):
        terms = g * y
        total, size = terms.sum(axis, keepdims=True), np.abs(terms).sum(axis, keepdims=True)
        soft = np.where(kept, y * (g - total), real(0)), size.astype(np.float64), np.abs(total).astype(np.float64)
        total, size = g.sum(axis, keepdims=True), np.abs(g).sum(axis, keepdims=True)
        e = np.where(kept, np.exp(y), real(0))
        log = np.where(kept, g - e * total, real(0)), size.astype(np.float64), np.abs(total).astype(np.float64)
    return soft, log


def logsumexp_backward(real, grad_output, x, output, axis=-1, where=None, keepdims=False):
    """The gradient and |x_i - y|; 0 where left out."""
    if not keepdims:
        grad_output, output = np.expand_dims(grad_output, axis), np.expand_dims(output, axis)
    compute = compute_type(*(np.asarray(a) for a in (grad_output, x, output)))
    g, x, y = (np.asarray(a).astype(compute).astype(real) for a in (grad_output, x, output))
    kept = np.ones(x.shape, bool) if where is None else np.broadcast_to(where, x.shape)
    with np.errstate(all="ignore"):
        kept = kept & (y != -np.inf)
        return np.where(kept, g * np.exp(x - y), real(0)), np.where(kept, np.abs(x - y), 0).astype(np.float64)


def _gradient_and_saved(real, where, *arrays):
    arrays = [np.asarray(array) for array in arrays]
    compute = compute_type(*arrays)
    kept = np.ones(arrays[0].shape, bool) if where is None else np.broadcast_to(where, arrays[0].shape)
    return *(np.where(kept, array.astype(compute).astype(real), real(0)) for array in arrays), kept


class MergeGradients(NamedTuple):
    """Of outputs or of log-sum-exps, stacked: sums over what a part broadcasts."""

    gradient: np.ndarray
    size: np.ndarray  # sum of |terms|
    apart: np.ndarray  # sum of |terms| |lse_t - lse|
    inner: np.ndarray  # sum of share_t sum_d |dO_d (O_td - O_d)|; of outputs: 0
    summed: int  # terms


def merge_backward(real, grad_output, outputs, lses, output, lse, grad_lse=None):
    """The gradients of merge_attention: MergeGradients of the outputs and of the log-sum-exps."""
    arrays = [np.asarray(x) for x in (grad_output, *outputs, output)]
    compute = compute_type(*arrays)
    grad, *parts, whole = (x.astype(compute).astype(real) for x in arrays)
    whole_lse, grad_lse = (None if x is None else in_type(real, compute, x) for x in (lse, grad_lse))
    of_outputs, of_lses = [], []
    with np.errstate(all="ignore"):
        for part, part_lse in zip(parts, lses, strict=True):
            part_lse = in_type(real, compute, part_lse)
            share = np.where(part_lse == -np.inf, real(0), np.exp(part_lse - whole_lse))
            apart = np.where(share > 0, np.abs(part_lse - whole_lse), real(0))
            kept = np.where((part_lse == -np.inf)[..., None], real(0), grad)
            terms = np.where(kept == 0, real(0), kept * (part - whole))
            of_outputs.append(_merge_gradients(part.shape, share[..., None] * kept, apart[..., None], None))
            total = share * (
                terms.sum(-1) + np.where(part_lse == -np.inf, real(0), 0 if grad_lse is None else grad_lse)
            )
            of_lses.append(_merge_gradients(part_lse.shape, total, apart, share * np.abs(terms).sum(-1)))
    return tuple(
        MergeGradients(*(np.stack(x) for x in list(zip(*each, strict=True))[:4]), max(x[4] for x in each))
        for each in (of_outputs, of_lses)
    )


def _merge_gradients(shape, terms, apart, inner):
    def summed(x):
        x = np.broadcast_to(x, terms.shape)
        x = x.sum(tuple(range(x.ndim - len(shape))))
        return x.sum(tuple(n for n, length in enumerate(shape) if length == 1), keepdims=True)

    sizes = (np.abs(terms), np.abs(terms) * apart, np.zeros(()) if inner is None else inner)
    return summed(terms), *(summed(x).astype(np.float64) for x in sizes), terms.size // max(1, math.prod(shape))


def merge(real, outputs, lses):
    """(output, lse, sum_t share_t |O_t|)."""
    outputs, lses = (np.stack([np.asarray(x) for x in parts]) for parts in (outputs, lses))
    outputs, lses = outputs.astype(np.float64).astype(real), lses.astype(real)
    top = lses.max(0)
    m = np.where(np.isinf(top), real(0), top)
    with np.errstate(all="ignore"):
        share = np.exp(lses - m)
        z = share.sum(0)
        share = (share / np.where(z == 0, real(1), z))[..., None]
        parts = np.where((lses == -np.inf)[..., None], real(0), share * outputs)
        return parts.sum(0), m + np.log(z), np.abs(parts).sum(0).astype(np.float64)
