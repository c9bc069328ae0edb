"""Softmax attention with all its scores in memory, and the dropout mask.

H query heads, G key/value heads, L queries, S keys, E and D head sizes, "..." batch axes.
Query i stands at position i + offset, key j at position j.
"""

import math

import numpy as np

from ._attention_positions import _standing, _turned


def scaled_dot_product_attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    *,
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
    return_lse=False,
    enable_gqa=None,
):
    """O_i = sum_j P_ij v_j with P_ij = exp(s_ij) / sum_j exp(s_ij) over the visible keys j.

    query (..., H, L, E), key (..., G, S, E), value (..., G, S, D) -> (..., H, L, D), and with `return_lse`
    log sum_j exp(s_ij), (..., H, L). See `attnpy.scaled_dot_product_attention` for the options.
    """
    query, key, value, batch, one_head = _operands(query, key, value)
    query, key, _ = _turned(
        query, key, batch, rotary, rotary_interleaved, query_positions, key_positions, is_causal, causal_offset,
        window_size, query_lengths, kv_lengths,
    )  # fmt: skip
    weights, visible, lse = _weights(
        query, key, batch, attn_mask, is_causal, scale, bias, causal_offset, window_size, softcap, alibi_slopes, sinks,
        query_lengths, kv_lengths, relative_bias,
    )  # fmt: skip
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p is {dropout_p}; it must be in [0, 1)")
    if dropout_p > 0:
        weights = weights * _kept(weights.shape, dropout_p, rng) / (1 - dropout_p)
    output = _weighted_sum(weights, visible, value)
    if one_head:
        output, lse = output[..., 0, :, :], lse[..., 0, :]
    return (output, lse) if return_lse else output


def attention_weights(
    query,
    key,
    attn_mask=None,
    *,
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
):
    """P_ij: query (..., H, L, E), key (..., G, S, E) -> (..., H, L, S); of the query rows `rows` only, if given."""
    query, key, _, batch, one_head = _operands(query, key)
    query, key, _ = _turned(
        query, key, batch, rotary, rotary_interleaved, query_positions, key_positions, is_causal, causal_offset,
        window_size, query_lengths, kv_lengths,
    )  # fmt: skip
    weights, _, _ = _weights(
        query, key, batch, attn_mask, is_causal, scale, bias, causal_offset, window_size, softcap, alibi_slopes, sinks,
        query_lengths, kv_lengths, relative_bias,
    )  # fmt: skip
    if rows is not None:
        weights = weights[..., _rows(rows, weights.shape[-2]), :]
    return weights[..., 0, :, :] if one_head else weights


def attention_received(
    query,
    key,
    attn_mask=None,
    *,
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
):
    """sum_i P_ij: query (..., H, L, E), key (..., G, S, E) -> (..., H, S)."""
    return attention_weights(
        query, key, attn_mask, is_causal=is_causal, scale=scale, bias=bias, causal_offset=causal_offset,
        window_size=window_size, softcap=softcap, alibi_slopes=alibi_slopes, sinks=sinks, query_lengths=query_lengths,
        kv_lengths=kv_lengths, relative_bias=relative_bias, rotary=rotary, rotary_interleaved=rotary_interleaved,
        query_positions=query_positions, key_positions=key_positions,
    ).sum(-2)  # fmt: skip


def merge_attention(outputs, lses):
    """Joins attention over parts of the keys: O = sum_t exp(lse_t - lse) O_t with lse = log sum_t exp(lse_t).

    n outputs (..., H, L, D) and n log-sum-exps (..., H, L) -> (..., H, L, D) and (..., H, L).
    """
    outputs = np.stack([_float64("outputs", output) for output in outputs])
    lses = np.stack([_float64("lses", lse) for lse in lses])
    m = lses.max(0)
    m = np.where(m == -np.inf, 0.0, m)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.exp(lses - m)
        total = share.sum(0)
        lse = m + np.log(total)
        share = (share / np.where(total == 0, 1.0, total))[..., None]
        output = np.where((lses == -np.inf)[..., None], 0.0, share * outputs).sum(0)
    return output, lse


def dropout_mask(shape, dropout_p, key, *, dtype):
    """1 / (1 - p) where a weight is kept and 0 where it is dropped, (..., H, L, S); as bool, what is kept."""
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p is {dropout_p}; it must be in [0, 1)")
    if not hasattr(key, "words"):
        raise TypeError(f"key is a {type(key).__name__}; it must be a DropoutKey: key = attnpy.dropout_key(rng)")
    kept = _kept(shape, dropout_p, key)
    return kept if np.dtype(dtype).kind == "b" else (kept / (1 - dropout_p)).astype(dtype)


def _operands(query, key, value=None):
    """Float64 arrays with a head axis, key and value repeated for each query head; batch shape; no head axis?"""
    arrays = [_float64("query", query), _float64("key", key)] + ([] if value is None else [_float64("value", value)])
    if min(x.ndim for x in arrays) < 2:
        raise ValueError("query, key and value need at least two axes")
    one_head = all(x.ndim == 2 for x in arrays)
    query, *shared = [x[None] if x.ndim == 2 else x for x in arrays]
    H, G = query.shape[-3], shared[0].shape[-3]
    if any(x.shape[-3] != G for x in shared) or H % max(G, 1) or (G == 0 and H > 0):
        raise ValueError(f"query has {H} heads; those of key ({G}) and value ({shared[-1].shape[-3]}) must divide it")
    batch = np.broadcast_shapes(*(x.shape[:-3] for x in (query, *shared)))
    key, *value = [np.repeat(x, H // max(G, 1), axis=-3) for x in shared]  # query head h reads head h // (H/G)
    return query, key, value[0] if value else None, batch, one_head


def _weights(
    query, key, batch, attn_mask, is_causal, scale, bias, causal_offset, window_size, softcap, alibi_slopes, sinks,
    query_lengths, kv_lengths, relative_bias=None,
):  # fmt: skip
    """P and what is visible, both (..., H, L, S), and the log-sum-exp, (..., H, L)."""
    score, visible, sink, counted, _ = _visible_scores(
        query, key, batch, attn_mask, is_causal, scale, bias, causal_offset, window_size, softcap, alibi_slopes, sinks,
        query_lengths, kv_lengths, relative_bias,
    )  # fmt: skip
    with np.errstate(all="ignore"):
        weights, lse = _softmax_with_sink(np.where(visible, score, -np.inf), sink)
    return np.where(visible, weights, 0.0), visible, np.where(counted, lse, -np.inf)[..., 0]


def _visible_scores(
    query, key, batch, attn_mask, is_causal, scale, bias, causal_offset, window_size, softcap, alibi_slopes, sinks,
    query_lengths, kv_lengths, relative_bias=None,
):  # fmt: skip
    """The scores and which are visible, both (..., H, L, S); the sinks, (..., H, 1, 1) or -inf; which query rows are
    within their length, (..., 1, L, 1); and i + offset - j, (..., 1, L, S).
    """
    (H, L), S = query.shape[-3:-1], key.shape[-2]
    positional = is_causal or alibi_slopes is not None or relative_bias is not None
    position, visible, counted = _standing(
        L, S, batch, is_causal, causal_offset, window_size, query_lengths, kv_lengths, positional
    )
    j = np.arange(S)
    visible = np.broadcast_to(visible, (*batch, H, L, S))
    with np.errstate(all="ignore"):
        score = np.broadcast_to(_scores(query, key, scale, softcap), visible.shape)
        if bias is not None:
            score, visible = _biased(score, visible, "bias", bias)
        if attn_mask is not None:
            score, visible = _masked(score, visible, attn_mask)
        if alibi_slopes is not None:
            score = score - _per_head("alibi_slopes", alibi_slopes, batch, H) * np.abs(position - j)
        if relative_bias is not None:
            score, visible = _biased(
                score, visible, "relative_bias", _by_distance("relative_bias", relative_bias, j - position, score.shape)
            )
    sink = -np.inf if sinks is None else _per_head("sinks", sinks, batch, H)
    return score, visible, sink, counted, position - j


def _scores(query, key, scale, softcap):
    """s_ij = scale q_i . k_j, then softcap tanh(s_ij / softcap): (..., H, L, S)."""
    E = query.shape[-1]
    if scale is None:
        if E == 0:
            raise ValueError("scale: heads of size 0 need an explicit one")
        scale = 1 / math.sqrt(E)
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale}; it must be finite")
    score = (scale * query) @ key.swapaxes(-1, -2)
    if softcap is None or softcap == 0:
        return score
    if not 0 < softcap < math.inf:
        raise ValueError(f"softcap is {softcap}; it must be positive and finite, or None or 0 for none")
    return softcap * np.tanh(score / softcap)


def _softmax_with_sink(score, sink):
    """P_ij = exp(s_ij) / Z_i and log Z_i, Z_i = sum_j exp(s_ij) + exp(sink): a sink is a key more, whose value is 0."""
    m = np.maximum(score.max(-1, keepdims=True, initial=-np.inf), sink)
    m = np.where(m == -np.inf, 0.0, m)  # exp(-inf - -inf) would be NaN
    e = np.exp(score - m)
    total = e.sum(-1, keepdims=True) + np.exp(sink - m)
    weights = e / np.where(total == 0, 1.0, total)  # a row that sees no key: 0
    return weights, m + np.log(total)  # and log 0 = -inf


def _biased(score, visible, name, bias):
    """Adds what was given for each score; -inf hides."""
    bias = np.broadcast_to(_float64(name, bias), score.shape)
    return score + bias, visible & (bias != -np.inf)


def _by_distance(name, table, distance, shape):
    """table[h, i, clip(j - i - offset, -K, K) + K] of a table (..., H, L or 1, 2K + 1): (..., H, L, S)."""
    table = _float64(name, table)
    if table.ndim == 0 or table.shape[-1] % 2 == 0:
        raise ValueError(f"{name} has shape {table.shape}; its last axis must be 2K + 1")
    K = table.shape[-1] // 2
    column = np.broadcast_to(np.clip(distance, -K, K) + K, shape)
    return np.take_along_axis(np.broadcast_to(table, (*shape[:-1], 2 * K + 1)), column, -1)


def _masked(score, visible, attn_mask):
    """A boolean mask says what is visible, a float one is added."""
    attn_mask = attn_mask.to_dense() if hasattr(attn_mask, "to_dense") else _real("attn_mask", attn_mask)
    if attn_mask.dtype.kind == "b":
        return score, visible & np.broadcast_to(attn_mask, score.shape)
    if attn_mask.dtype.kind in "iu":
        raise TypeError(f"attn_mask is {attn_mask.dtype}; it must be bool or float: use .astype(bool)")
    return _biased(score, visible, "attn_mask", attn_mask)


def _weighted_sum(weights, visible, value):
    """sum_j P_ij v_j over the visible j: a hidden key's weight is 0, but 0 times NaN would still be NaN."""
    finite = np.isfinite(value)
    with np.errstate(all="ignore"):
        output = weights @ np.where(finite, value, 0.0)
        for j in np.unique(np.nonzero(~finite)[-2]):
            seen = visible[..., j, None] & ~finite[..., None, j, :]
            output = output + np.where(seen, weights[..., j, None] * value[..., None, j, :], 0.0)
    return output


def _rows(rows, L):
    """Row numbers from the first on; negative ones are given from the end."""
    rows = np.asarray(rows)
    if rows.size and rows.dtype.kind not in "iu":
        raise TypeError(f"rows is {rows.dtype}; it must be integers")
    if rows.ndim != 1 or np.any((rows < -L) | (rows >= L)):
        raise ValueError(f"rows must be one axis of integers in {-L} … {L - 1}")
    rows = rows.astype(np.intp)
    return np.where(rows < 0, rows + L, rows)


def _per_head(name, x, batch, heads):
    """One number per query head, (..., H, 1, 1)."""
    return np.broadcast_to(_float64(name, x), (*batch, heads))[..., None, None]


def _float64(name, x):
    return _real(name, x).astype(np.float64)


def _real(name, x):
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a MaskedArray; pass its data, and attn_mask")
    x = np.asarray(x)
    if x.dtype.kind in "cOSUMm":
        raise TypeError(f"{name} is {x.dtype}; it must be real numbers")
    return x


def _key_words(rng):
    """The four words of a DropoutKey; a Generator gives one key up."""
    if hasattr(rng, "words"):
        return rng.words
    if isinstance(rng, np.random.Generator):
        return rng.integers(0, 2**32, 4, np.uint32).tolist()
    raise TypeError(f"rng is {type(rng).__name__}; dropout needs a numpy.random.Generator or an attnpy.DropoutKey")


def _kept(shape, dropout_p, rng):
    """What is kept: (batch, head, i, j) where word j mod 4 of Threefry at (j // 4, i, head, batch) is >= p 2^32.

    Batch elements are counted in C order, from `rng.first_batch` on if it says so.
    """
    words, first = _key_words(rng), np.uint32(getattr(rng, "first_batch", 0))
    *batch, heads, rows, keys = (1, *shape) if len(shape) == 2 else shape
    number, head, i, four = np.indices((math.prod(batch), heads, rows, -(-keys // 4)), np.uint32)
    random = np.stack(_threefry4x32([four, i, head, first + number], words), axis=-1)
    random = random.reshape(*random.shape[:-2], 4 * random.shape[-2])[..., :keys]
    return (random >= np.uint32(math.floor(dropout_p * 2**32))).reshape(shape)


def _threefry4x32(counter, key):
    """Threefry-4x32 with 20 rounds: four uint32 arrays and a key of four words -> four arrays of random words.

    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011, doi:10.1145/2063384.2063405.
    """
    rotations = [(10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20)]
    k = [np.uint32(word) for word in key]
    k.append(np.uint32(0x1BD11BDA) ^ k[0] ^ k[1] ^ k[2] ^ k[3])

    def mix(a, b, rotation):
        a = a + b
        return a, ((b << rotation) | (b >> (32 - rotation))) ^ a

    x = [np.asarray(word, np.uint32) + k[n] for n, word in enumerate(counter)]
    for turn in range(20):
        first, second = rotations[turn % 8]
        a, b = (1, 3) if turn % 2 == 0 else (3, 1)
        x[0], x[a] = mix(x[0], x[a], first)
        x[2], x[b] = mix(x[2], x[b], second)
        if turn % 4 == 3:
            added = turn // 4 + 1
            x = [word + k[(added + n) % 5] for n, word in enumerate(x)]
            x[3] = x[3] + np.uint32(added)
    return x
