"""Gradients of softmax attention and of its weights, with all their scores in memory.

Letters as in _attention.py: H query heads, G key/value heads, L queries, S keys, E and D head sizes, "..." batch axes.
With the loss f, dX stands for the gradient df/dX, P for the weights, M for what dropout multiplies them by.
"""

import typing

import numpy as np

from ._attention import (
    _float64,
    _kept,
    _operands,
    _rows,
    _scores,
    _visible_scores,
    _weighted_sum,
)
from ._attention_positions import _turned


class AttentionGradients(typing.NamedTuple):
    """The gradient dX = df/dX of each operand X, of its shape, such as (..., H, L, E); None where not asked for."""

    query: np.ndarray | None = None
    key: np.ndarray | None = None
    value: np.ndarray | None = None
    attn_mask: np.ndarray | None = None
    bias: np.ndarray | None = None
    sinks: np.ndarray | None = None
    alibi_slopes: np.ndarray | None = None
    relative_bias: np.ndarray | None = None


def scaled_dot_product_attention_backward(
    grad_output,
    query,
    key,
    value,
    output,
    lse,
    *,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    bias=None,
    causal_offset=None,
    window_size=None,
    softcap=None,
    alibi_slopes=None,
    sinks=None,
    query_lengths=None,
    kv_lengths=None,
    relative_bias=None,
    rotary=None,
    rotary_interleaved=False,
    query_positions=None,
    key_positions=None,
    rng=None,
    grad_lse=None,
    needs=("query", "key", "value"),
):
    """The gradient of sum(grad_output * output) + sum(grad_lse * lse), for each operand in `needs`.

        dP_ij = M_ij dO_i . v_j,    delta_i = dO_i . O_i - dlse_i,    dS_ij = P_ij (dP_ij - delta_i)
        dv_j = sum_i P_ij M_ij dO_i,    P_ij = exp(s_ij - lse_i)

    and from dS what _gradients says. grad_output and output (..., H, L, D), lse and grad_lse (..., H, L).
    """
    given = dict(query=query, key=key, value=value, attn_mask=attn_mask, bias=bias, sinks=sinks,
                 alibi_slopes=alibi_slopes, relative_bias=relative_bias)  # fmt: skip
    _check_needs(needs, given)
    q, k, v, batch, _ = _operands(query, key, value)
    q, k, rotation = _turned(
        q, k, batch, rotary, rotary_interleaved, query_positions, key_positions, is_causal, causal_offset, window_size,
        query_lengths, kv_lengths,
    )  # fmt: skip
    score, visible, sink, counted, distance = _visible_scores(
        q, k, batch, attn_mask, is_causal, scale, bias, causal_offset, window_size, softcap, alibi_slopes, sinks,
        query_lengths, kv_lengths, relative_bias,
    )  # fmt: skip
    rows = visible.shape[:-1]
    grad_output = _of_rows("grad_output", grad_output, (*rows, v.shape[-1]))
    output = _of_rows("output", output, grad_output.shape)
    lse = _of_rows("lse", lse, rows)[..., None]
    grad_lse = 0.0 if grad_lse is None else _of_rows("grad_lse", grad_lse, rows)[..., None]
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p is {dropout_p}; it must be in [0, 1)")
    kept = 1.0
    if isinstance(rng, np.random.Generator):
        raise TypeError("rng is a Generator; pass the DropoutKey of the forward: key = attnpy.dropout_key(rng)")
    if dropout_p > 0:
        kept = _kept(visible.shape, dropout_p, rng) / (1 - dropout_p)
    with np.errstate(all="ignore"):
        weights = np.where(visible & (lse != -np.inf), np.exp(score - lse), 0.0)
        grad_weights = np.where(visible, kept * (grad_output @ v.swapaxes(-1, -2)), 0.0)
        sees = visible.any(-1, keepdims=True)  # where nothing is seen the output is 0 whatever grad_output is
        delta = np.where(sees, (grad_output * output).sum(-1, keepdims=True), 0.0) - grad_lse
        grad_score = np.where(visible, weights * (grad_weights - delta), 0.0)
        grad_value = _weighted_sum((weights * kept).swapaxes(-1, -2), visible.swapaxes(-1, -2), grad_output)
        grad_sinks = _grad_sinks(sink, lse, delta, counted)
    found = _gradients(given, q, k, rotation, grad_score, visible, distance, scale, softcap)
    found |= {"value": _of_shared(grad_value, value), "sinks": grad_sinks}
    return _asked(needs, given, found)


def attention_weights_backward(
    grad_weights,
    query,
    key,
    *,
    attn_mask=None,
    is_causal=False,
    scale=None,
    bias=None,
    causal_offset=None,
    window_size=None,
    softcap=None,
    alibi_slopes=None,
    sinks=None,
    query_lengths=None,
    kv_lengths=None,
    relative_bias=None,
    rotary=None,
    rotary_interleaved=False,
    query_positions=None,
    key_positions=None,
    rows=None,
    needs=("query", "key"),
):
    """The gradient of sum(grad_weights * P), for each operand in `needs`.

        delta_i = sum_j P_ij dP_ij,    dS_ij = P_ij (dP_ij - delta_i)

    and from dS what _gradients says. grad_weights dP: (..., H, L, S), or (..., H, R, S) with `rows`, where the parts of
    a row that is named more than once add up.
    """
    given = dict(query=query, key=key, attn_mask=attn_mask, bias=bias, sinks=sinks, alibi_slopes=alibi_slopes,
                 relative_bias=relative_bias)  # fmt: skip
    _check_needs(needs, given)
    q, k, _, batch, _ = _operands(query, key)
    q, k, rotation = _turned(
        q, k, batch, rotary, rotary_interleaved, query_positions, key_positions, is_causal, causal_offset, window_size,
        query_lengths, kv_lengths,
    )  # fmt: skip
    score, visible, sink, counted, distance = _visible_scores(
        q, k, batch, attn_mask, is_causal, scale, bias, causal_offset, window_size, softcap, alibi_slopes, sinks,
        query_lengths, kv_lengths, relative_bias,
    )  # fmt: skip
    (*_, L, S), chosen = visible.shape, np.arange(visible.shape[-2])
    if rows is not None:
        chosen = _rows(rows, L)
        counted = counted & np.isin(np.arange(L), chosen)[:, None]
        visible = visible & counted
    grad_weights = _of_rows("grad_weights", grad_weights, (*visible.shape[:-2], len(chosen), S))
    with np.errstate(all="ignore"):
        each = np.zeros(visible.shape)
        np.add.at(each, (..., chosen, slice(None)), np.where(visible[..., chosen, :], grad_weights, 0.0))
        lse = _log_sum_exp(score, visible, sink)
        weights = np.where(visible & (lse != -np.inf), np.exp(score - lse), 0.0)
        delta = (weights * each).sum(-1, keepdims=True)
        grad_score = np.where(visible, weights * (each - delta), 0.0)
        grad_sinks = _grad_sinks(sink, lse, delta, counted)
    found = _gradients(given, q, k, rotation, grad_score, visible, distance, scale, softcap)
    return _asked(needs, given, found | {"sinks": grad_sinks})


def _gradients(given, query, key, rotation, grad_score, visible, distance, scale, softcap):
    """From dS to the operands that the scores are made of.

        d bias = d attn_mask = dS,    d slope = -sum_ij dS_ij |i + offset - j|
        d relative_bias_ic = sum of dS_ij over the j with clip(j - i - offset, -K, K) + K = c
        T_ij = dS_ij (1 - tanh(scale q_i . k_j / softcap)^2), without softcap dS_ij
        dq_i = scale sum_j T_ij k_j,    dk_j = scale sum_i T_ij q_i

    Turned queries and keys have turned gradients: those of the operands are turned back. Heads that share a key, and
    elements that stand in several places, add up.
    """
    scale = 1 / np.sqrt(query.shape[-1]) if scale is None else scale
    with np.errstate(all="ignore"):
        grad_slopes = -(grad_score * np.abs(distance)).sum((-1, -2))
        grad_product = grad_score
        if softcap:
            grad_product = np.where(
                visible, grad_score * (1 - np.tanh(_scores(query, key, scale, None) / softcap) ** 2), 0.0
            )
        grad_query = scale * _weighted_sum(grad_product, visible, key)
        grad_key = scale * _weighted_sum(grad_product.swapaxes(-1, -2), visible.swapaxes(-1, -2), query)
    if rotation is not None:
        grad_query, grad_key = rotation[0].turned(grad_query, back=True), rotation[1].turned(grad_key, back=True)
    return {"query": _of_operand(grad_query, np.shape(given["query"])), "key": _of_shared(grad_key, given["key"]),
            "bias": grad_score, "attn_mask": grad_score, "alibi_slopes": grad_slopes,
            "relative_bias": _grad_relative(given["relative_bias"], grad_score, -distance)}  # fmt: skip


def _grad_relative(table, grad_score, distance):
    """The sums of dS over the keys of each column, (..., H, L, 2K + 1)."""
    if table is None:
        return None
    span = np.shape(table)[-1]
    found = np.zeros((*grad_score.shape[:-1], span))
    column = np.broadcast_to(np.clip(distance, -(span // 2), span // 2) + span // 2, grad_score.shape)
    rows = np.indices(grad_score.shape, sparse=True)[:-1]
    np.add.at(found, (*rows, column), grad_score)
    return found


def _grad_sinks(sink, lse, delta, counted):
    """d sink = -sum_i exp(sink - lse_i) delta_i, (..., H)."""
    return -np.where(counted & (sink != -np.inf), np.exp(sink - lse) * delta, 0.0).sum((-1, -2))


def _log_sum_exp(score, visible, sink):
    """log(sum_j exp(s_ij) + exp(sink)), (..., H, L, 1)."""
    score = np.where(visible, score, -np.inf)
    m = np.maximum(score.max(-1, keepdims=True, initial=-np.inf), sink)
    m = np.where(m == -np.inf, 0.0, m)
    return m + np.log(np.exp(score - m).sum(-1, keepdims=True) + np.exp(sink - m))


def _of_rows(name, x, shape):
    """Float64, with a head axis where the call has none; it must have this shape, or broadcast to it."""
    x = _float64(name, x)
    try:
        return np.broadcast_to(x, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {x.shape}; it must be {shape}, or without a head axis") from None


def _of_operand(x, shape):
    """Sums over the places where an operand of this shape stands."""
    x = x.sum(tuple(range(x.ndim - len(shape))))
    return x.sum(tuple(n for n, size in enumerate(shape) if size == 1 and x.shape[n] != 1), keepdims=True)


def _of_shared(x, operand):
    """Sums over the query heads that share a key/value head, and over the places of an operand."""
    shape = np.shape(operand)
    G = shape[-3] if len(shape) > 2 else 1
    x = x.reshape(*x.shape[:-3], G, x.shape[-3] // max(G, 1), *x.shape[-2:]).sum(-3)
    return _of_operand(x, shape)


def _asked(needs, given, found):
    return AttentionGradients(**{name: _of_operand(found[name], np.shape(given[name])) for name in needs})


def _check_needs(needs, given):
    """Names of operands that are there and have a gradient, each once."""
    for n, name in enumerate(needs):
        if name not in given or name in needs[:n]:
            raise ValueError(f"needs is {needs!r}; it must hold some of {', '.join(given)}, each once")
        if given[name] is None:
            raise ValueError(f"needs: there is no {name}")
        if name == "attn_mask" and (hasattr(given[name], "to_dense") or np.asarray(given[name]).dtype.kind == "b"):
            raise ValueError("needs: a boolean attn_mask has no gradient")
