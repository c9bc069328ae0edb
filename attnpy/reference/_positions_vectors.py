"""Attention with a vector for each distance, as in attnpy._positions_vectors, in float64 NumPy.

Query i stands at position i + offset, key j at j; every function begins with n_ij, the vector that they meet.
"""

import typing

import numpy as np

from ._attention import _float64, _operands, _softmax_with_sink, _visible_scores
from ._attention_backward import _check_needs, _of_operand, _of_rows, _of_shared


class RelativeAttentionGradients(typing.NamedTuple):
    """The gradient dX = df/dX of each operand X, of its shape, such as (..., H, L, E); None where there is none."""

    query: np.ndarray | None = None
    key: np.ndarray | None = None
    value: np.ndarray | None = None
    attn_mask: np.ndarray | None = None
    bias: np.ndarray | None = None
    key_table: np.ndarray | None = None
    value_table: np.ndarray | None = None
    position_keys: np.ndarray | None = None
    content_bias: np.ndarray | None = None
    position_bias: np.ndarray | None = None


def relative_attention_shaw(
    query,
    key,
    value,
    key_table,
    value_table=None,
    *,
    attn_mask=None,
    is_causal=False,
    scale=None,
    bias=None,
    causal_offset=None,
    window_size=None,
    query_lengths=None,
    kv_lengths=None,
    return_lse=False,
):
    """O_i = sum_j P_ij (v_j + w_n) with s_ij = scale q_i . (k_j + r_n), n = clip(j - i - offset, -K, K) + K.

    r = key_table (..., H, 2 K + 1, E), w = value_table (..., H, 2 K + 1, D) or None; both may lack leading axes.
    """
    p = _pairs(query, key, value, key_table, value_table, None, None, True, attn_mask, is_causal, scale, bias,
               causal_offset, window_size, query_lengths, kv_lengths)  # fmt: skip
    return _result(p, return_lse)


def relative_attention_xl(
    query,
    key,
    value,
    position_keys,
    content_bias,
    position_bias,
    *,
    attn_mask=None,
    is_causal=False,
    scale=None,
    bias=None,
    causal_offset=None,
    window_size=None,
    query_lengths=None,
    kv_lengths=None,
    return_lse=False,
):
    """O_i = sum_j P_ij v_j with s_ij = scale ((q_i + u) . k_j + (q_i + v) . r_n), n = S - 1 - (i + offset - j).

    r = position_keys (..., H, rows, E), u = content_bias and v = position_bias (..., H, E) or None (0).
    """
    p = _pairs(query, key, value, position_keys, None, content_bias, position_bias, False, attn_mask, is_causal, scale,
               bias, causal_offset, window_size, query_lengths, kv_lengths)  # fmt: skip
    return _result(p, return_lse)


def relative_attention_shaw_backward(
    grad_output,
    query,
    key,
    value,
    key_table,
    value_table,
    output,
    lse,
    *,
    attn_mask=None,
    is_causal=False,
    scale=None,
    bias=None,
    causal_offset=None,
    window_size=None,
    query_lengths=None,
    kv_lengths=None,
    grad_lse=None,
    needs=("query", "key", "value", "key_table"),
):
    """The gradient of sum(grad_output * output) + sum(grad_lse * lse), for each operand in `needs`.

    dr_n = scale sum_ij dS_ij q_i and dw_n = sum_ij P_ij dO_i over the pairs that meet vector n; others: see _gradients.
    grad_output and output (..., H, L, D), lse and grad_lse (..., H, L); operands as in the forward.
    """
    given = dict(query=query, key=key, value=value, attn_mask=attn_mask, bias=bias, key_table=key_table,
                 value_table=value_table)  # fmt: skip
    _check_needs(needs, given)
    p = _pairs(query, key, value, key_table, value_table, None, None, True, attn_mask, is_causal, scale, bias,
               causal_offset, window_size, query_lengths, kv_lengths)  # fmt: skip
    found = _gradients(p, given, grad_output, output, lse, grad_lse)
    found |= {"key_table": found.pop("vectors"), "value_table": found.pop("value_vectors")}
    return _asked(needs, given, found)


def relative_attention_xl_backward(
    grad_output,
    query,
    key,
    value,
    position_keys,
    content_bias,
    position_bias,
    output,
    lse,
    *,
    attn_mask=None,
    is_causal=False,
    scale=None,
    bias=None,
    causal_offset=None,
    window_size=None,
    query_lengths=None,
    kv_lengths=None,
    grad_lse=None,
    needs=("query", "key", "value", "position_keys"),
):
    """The gradient of sum(grad_output * output) + sum(grad_lse * lse), for each operand in `needs`.

    dr_n = scale sum_ij dS_ij (q_i + v) over the pairs that meet row n, and others as _gradients says.
    grad_output and output (..., H, L, D), lse and grad_lse (..., H, L); operands as in the forward.
    """
    given = dict(query=query, key=key, value=value, attn_mask=attn_mask, bias=bias, position_keys=position_keys,
                 content_bias=content_bias, position_bias=position_bias)  # fmt: skip
    _check_needs(needs, given)
    p = _pairs(query, key, value, position_keys, None, content_bias, position_bias, False, attn_mask, is_causal, scale,
               bias, causal_offset, window_size, query_lengths, kv_lengths)  # fmt: skip
    found = _gradients(p, given, grad_output, output, lse, grad_lse)
    found |= {"position_keys": found.pop("vectors")}
    return _asked(needs, given, found)


class _Pairs(typing.NamedTuple):
    """Arrays (..., H, L, S) of pairs, and operands with all their axes."""

    score: np.ndarray
    visible: np.ndarray
    counted: np.ndarray  # (..., 1, L, 1)
    number: np.ndarray  # n_ij, 0 where not visible
    scale: float
    content: np.ndarray  # q + u
    position: np.ndarray  # q + v
    key: np.ndarray
    value: np.ndarray
    vectors: np.ndarray
    value_vectors: np.ndarray | None
    one_head: bool


def _pairs(query, key, value, vectors, value_vectors, content_bias, position_bias, clips, attn_mask, is_causal, scale,
           bias, causal_offset, window_size, query_lengths, kv_lengths):  # fmt: skip
    query, key, value, batch, one_head = _operands(query, key, value)
    (H, L, E), (S, D) = query.shape[-3:], value.shape[-2:]
    if scale is None:
        if E == 0:
            raise ValueError("scale: heads of size 0 need an explicit one")
        scale = 1 / np.sqrt(E)
    query = np.broadcast_to(query, (*batch, H, L, E))
    vectors = _of_heads("vectors", vectors, batch, H, E)
    N = vectors.shape[-2]
    if value_vectors is not None:
        value_vectors = _of_heads("value_table", value_vectors, batch, H, D)
        if value_vectors.shape[-2] != N:
            raise ValueError(f"key_table has {N} rows and value_table {value_vectors.shape[-2]}")
    if clips and N % 2 == 0:
        raise ValueError(f"key_table has {N} rows; it must have 2 K + 1")
    content, position = (_with_bias(query, u, batch) for u in (content_bias, position_bias))

    # positions matter even where nothing else asks for them: slopes of 0 say so
    score, visible, _, counted, distance = _visible_scores(
        content, key, batch, attn_mask, is_causal, scale, bias, causal_offset, window_size, None, np.zeros(H), None,
        query_lengths, kv_lengths,
    )  # fmt: skip
    by_range = _visible_scores(
        content, key, batch, None, is_causal, scale, None, causal_offset, window_size, None, None, None,
        query_lengths, kv_lengths,
    )[1]  # fmt: skip
    number = N // 2 - distance if clips else S - 1 - distance
    if not clips and np.any(by_range & ((number < 0) | (number >= N))):
        raise ValueError(f"position_keys has {N} rows; some visible pairs are further apart")
    number = np.broadcast_to(np.clip(number, 0, max(N - 1, 0)), visible.shape)
    with np.errstate(all="ignore"):
        if N:
            products = (scale * position) @ vectors.swapaxes(-1, -2)
            score = score + np.take_along_axis(products, number, -1)
    return _Pairs(score, visible, counted, number, scale, content, position, key, value, vectors, value_vectors,
                  one_head)  # fmt: skip


def _of_heads(name, x, batch, heads, size):
    """(..., H, rows, size)"""
    x = _float64(name, x)
    if x.ndim < 2 or x.shape[-1] != size:
        raise ValueError(f"{name} has shape {x.shape}; it must be (..., H, rows, {size})")
    return np.broadcast_to(x, (*batch, heads, *x.shape[-2:]))


def _with_bias(query, u, batch):
    if u is None:
        return query
    u = _float64("bias of the query", u)
    if u.ndim < 1 or u.shape[-1] != query.shape[-1]:
        raise ValueError(f"content_bias and position_bias must be (..., H, {query.shape[-1]}), not {u.shape}")
    with np.errstate(all="ignore"):
        return query + np.broadcast_to(u, (*batch, query.shape[-3], u.shape[-1]))[..., None, :]


def _result(p, return_lse):
    with np.errstate(all="ignore"):
        weights, lse = _softmax_with_sink(np.where(p.visible, p.score, -np.inf), -np.inf)
    weights, lse = np.where(p.visible, weights, 0.0), np.where(p.counted, lse, -np.inf)[..., 0]
    output = _sum_of(weights, p.visible, p.value)
    if p.value_vectors is not None:
        output = output + _sum_of(*_by_vector(p, weights), p.value_vectors)
    if p.one_head:
        output, lse = output[..., 0, :, :], lse[..., 0, :]
    return (output, lse) if return_lse else output


def _by_vector(p, x):
    """Sums of x_ij over the keys j that meet a vector, and whether there are such, both (..., H, L, vectors)."""
    sums = np.zeros((*x.shape[:-1], p.vectors.shape[-2]))
    seen = np.zeros(sums.shape, bool)
    places = np.indices(x.shape, sparse=True)[:-1]
    np.add.at(sums, (*places, p.number), np.where(p.visible, x, 0.0))
    np.logical_or.at(seen, (*places, p.number), p.visible)
    return sums, seen


def _sum_of(weights, visible, value):
    """sum_j w_ij v_j over the visible j: 0 times NaN would be NaN."""
    value = np.broadcast_to(value, (*weights.shape[:-2], *value.shape[-2:]))
    finite = np.isfinite(value)
    with np.errstate(all="ignore"):
        output = weights @ np.where(finite, value, 0.0)
        for j in np.unique(np.nonzero(~finite)[-2]):
            seen = visible[..., j, None] & ~finite[..., None, j, :]
            output = output + np.where(seen, weights[..., j, None] * value[..., None, j, :], 0.0)
    return output


def _gradients(p, given, grad_output, output, lse, grad_lse):
    """With P_ij = exp(s_ij - lse_i), and sums over the pairs that meet vector n,

    dP_ij = dO_i . (v_j + w_n),    delta_i = dO_i . O_i - dlse_i,    dS_ij = P_ij (dP_ij - delta_i)
    dv_j = sum_i P_ij dO_i,    dw_n = sum_ij P_ij dO_i,    d bias = d attn_mask = dS
    dk_j = scale sum_i dS_ij (q_i + u),    dr_n = scale sum_ij dS_ij (q_i + v)
    du = scale sum_ij dS_ij k_j,    dv = scale sum_ij dS_ij r_n,    dq_i = scale sum_j dS_ij (k_j + r_n)
    """
    rows = (*p.visible.shape[:-1], p.value.shape[-1])
    grad_output, output = _of_rows("grad_output", grad_output, rows), _of_rows("output", output, rows)
    lse = _of_rows("lse", lse, rows[:-1])[..., None]
    grad_lse = 0.0 if grad_lse is None else _of_rows("grad_lse", grad_lse, rows[:-1])[..., None]
    sees, turned = p.visible.any(-1, keepdims=True), p.visible.swapaxes(-1, -2)
    with np.errstate(all="ignore"):
        grad_output, output = (np.where(sees, x, 0.0) for x in (grad_output, output))
        weights = np.where(p.visible, np.exp(p.score - lse), 0.0)
        grad_weights = grad_output @ p.value.swapaxes(-1, -2)
        grad_value_vectors = None
        if p.value_vectors is not None:
            products = grad_output @ p.value_vectors.swapaxes(-1, -2)
            grad_weights = grad_weights + np.take_along_axis(products, p.number, -1)
            sums, seen = _by_vector(p, weights)
            grad_value_vectors = _sum_of(sums.swapaxes(-1, -2), seen.swapaxes(-1, -2), grad_output)
        delta = (grad_output * output).sum(-1, keepdims=True) - grad_lse
        grad_score = np.where(p.visible, weights * (grad_weights - delta), 0.0)
        sums, seen = _by_vector(p, grad_score)
        of_content = p.scale * _sum_of(grad_score, p.visible, p.key)
        of_position = p.scale * _sum_of(sums, seen, p.vectors)
        found = {
            "query": of_content + of_position,
            "key": _of_shared(p.scale * _sum_of(grad_score.swapaxes(-1, -2), turned, p.content), given["key"]),
            "value": _of_shared(_sum_of(weights.swapaxes(-1, -2), turned, grad_output), given["value"]),
            "attn_mask": grad_score,
            "bias": grad_score,
            "content_bias": of_content.sum(-2),
            "position_bias": of_position.sum(-2),
            "vectors": p.scale * _sum_of(sums.swapaxes(-1, -2), seen.swapaxes(-1, -2), p.position),
            "value_vectors": grad_value_vectors,
        }
    return found


def _asked(needs, given, found):
    return RelativeAttentionGradients(**{name: _of_operand(found[name], np.shape(given[name])) for name in needs})
