"""The derivative of softmax attention along a direction, with all its scores in memory.

Letters as in _attention.py: H query heads, G key/value heads, L queries, S keys, E and D head sizes, "..." batch axes.
dX stands for the tangent of X, the direction in which X moves.
"""

import numpy as np

from ._attention import (
    _by_distance,
    _float64,
    _kept,
    _operands,
    _per_head,
    _scores,
    _softmax_with_sink,
    _visible_scores,
    _weighted_sum,
)
from ._attention_positions import _turned


def scaled_dot_product_attention_jvp(
    query,
    key,
    value,
    query_tangent,
    key_tangent,
    value_tangent,
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
    bias_tangent=None,
    sinks_tangent=None,
    relative_bias_tangent=None,
    return_lse=False,
):
    """(O, dO), and with `return_lse` (O, dO, lse, dlse), when the operands move along their tangents. None: not at all.

        ds_ij = scale (dq_i . k_j + q_i . dk_j) (1 - tanh(scale q_i . k_j / softcap)^2) + dbias_ij
                + drelative_bias[h, i, clip(j - i - offset, -K, K) + K]
        mu_i = sum_j P_ij ds_ij + exp(sink - lse_i) dsink,    dlse_i = mu_i
        dO_i = sum_j M_ij P_ij (dv_j + (ds_ij - mu_i) v_j)

    over the visible keys j, with the weights P and what dropout multiplies them by, M. O, dO (..., H, L, D), lse, dlse
    (..., H, L).
    """
    operands = query, key, value
    query, key, value, batch, one_head = _operands(query, key, value)
    query, key, rotation = _turned(
        query, key, batch, rotary, rotary_interleaved, query_positions, key_positions, is_causal, causal_offset,
        window_size, query_lengths, kv_lengths,
    )  # fmt: skip
    score, visible, sink, counted, ahead = _visible_scores(
        query, key, batch, attn_mask, is_causal, scale, bias, causal_offset, window_size, softcap, alibi_slopes, sinks,
        query_lengths, kv_lengths, relative_bias,
    )  # fmt: skip
    query_tangent, key_tangent, value_tangent = (
        _tangent(name, x, operand, batch, query.shape[-3])
        for name, x, operand in zip(
            ("query", "key", "value"), (query_tangent, key_tangent, value_tangent), operands, strict=True
        )
    )
    if rotation is not None:
        query_tangent, key_tangent = rotation[0].turned(query_tangent), rotation[1].turned(key_tangent)
    moved_sink = _moved("sinks", sinks_tangent, sinks, lambda x: _per_head("sinks_tangent", x, batch, query.shape[-3]))
    moved_bias = _moved("bias", bias_tangent, bias, lambda x: np.broadcast_to(x, visible.shape))
    moved_bias = moved_bias + _moved(
        "relative_bias", relative_bias_tangent, relative_bias,
        lambda x: _by_distance("relative_bias_tangent", _same_span(x, relative_bias), -ahead, visible.shape),
    )  # fmt: skip
    kept = _dropped(dropout_p, rng, visible.shape)
    with np.errstate(all="ignore"):
        weights, lse = _softmax_with_sink(np.where(visible, score, -np.inf), sink)
        weights = np.where(visible, weights, 0.0)
        sink_weight = np.where(counted & (sink != -np.inf), np.exp(sink - lse), 0.0)
        moved = _scores(query_tangent, key, scale, None) + _scores(query, key_tangent, scale, None)
        if softcap:
            moved = moved * (1 - (_scores(query, key, scale, softcap) / softcap) ** 2)
        moved = np.where(visible, moved + moved_bias, 0.0)
        mean = (weights * moved).sum(-1, keepdims=True) + np.where(sink_weight == 0, 0.0, sink_weight * moved_sink)
        output = _weighted_sum(kept * weights, visible, value)
        output_tangent = _weighted_sum(kept * weights, visible, value_tangent)
        output_tangent = output_tangent + _weighted_sum(kept * weights * (moved - mean), visible, value)
    results = [output, output_tangent, np.where(counted, lse, -np.inf)[..., 0], mean[..., 0]]
    if one_head:
        results = [x[..., 0, :, :] if n < 2 else x[..., 0, :] for n, x in enumerate(results)]
    return tuple(results if return_lse else results[:2])


def _tangent(name, tangent, operand, batch, heads):
    """Of query, key or value: broadcast to it, and its heads repeated for the query heads that share them."""
    shape = np.shape(operand)
    shape = (*batch, shape[-3] if len(shape) > 2 else 1, *shape[-2:])
    x = _broadcast(f"{name}_tangent", 0.0 if tangent is None else tangent, shape)
    return np.repeat(x, heads // max(shape[-3], 1), axis=-3)


def _broadcast(name, x, shape):
    x = _float64(name, x)
    try:
        return np.broadcast_to(x, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {x.shape}; it must broadcast to {shape}") from None


def _moved(name, tangent, operand, broadcast):
    """A tangent of what may be absent: it needs the operand."""
    if tangent is None:
        return 0.0
    if operand is None:
        raise ValueError(f"{name}_tangent needs {name}")
    return broadcast(_float64(f"{name}_tangent", tangent))


def _same_span(tangent, operand):
    """A tangent of relative_bias, broadcast to its 2K + 1 columns."""
    span = np.shape(operand)[-1]
    return _broadcast("relative_bias_tangent", tangent, (*np.shape(tangent)[:-1], span))


def _dropped(dropout_p, rng, shape):
    """M: 1 / (1 - p) where a weight is kept, else 0."""
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p is {dropout_p}; it must be in [0, 1)")
    if isinstance(rng, np.random.Generator):
        raise TypeError("rng is a Generator; pass a DropoutKey: key = attnpy.dropout_key(rng)")
    return _kept(shape, dropout_p, rng) / (1 - dropout_p) if dropout_p > 0 else 1.0
