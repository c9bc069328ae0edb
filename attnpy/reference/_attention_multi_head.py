"""Multi-head attention: projections and heads one by one."""

import numpy as np

from ._attention import attention_weights, scaled_dot_product_attention


def multi_head_attention(
    query,
    key,
    value,
    *,
    output_weight,
    query_weight=None,
    key_weight=None,
    value_weight=None,
    qkv_weight=None,
    query_bias=None,
    key_bias=None,
    value_bias=None,
    output_bias=None,
    qkv_bias=None,
    num_heads,
    num_kv_heads=None,
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
    need_weights=False,
):
    """O = Concat(O_1 ... O_H) W_o^T + b_o, O_h = attention(X_q W_qh^T + b_qh, X_k W_kh^T + b_kh, X_v W_vh^T + b_vh).

    query (..., L, N), key, value (..., S, N), weights (heads * size, N) -> (..., L, M), and with `need_weights`
    the weights (..., H, L, S).
    """
    num_kv_heads = num_kv_heads or num_heads
    if qkv_weight is not None:
        size = len(qkv_weight) // (num_heads + 2 * num_kv_heads)
        cuts = [num_heads * size, (num_heads + num_kv_heads) * size]
        query_weight, key_weight, value_weight = np.split(np.asarray(qkv_weight), cuts)
        if qkv_bias is not None:
            query_bias, key_bias, value_bias = np.split(np.asarray(qkv_bias), cuts)
    heads = (
        _heads(_projected(query, query_weight, query_bias), num_heads),
        _heads(_projected(key, key_weight, key_bias), num_kv_heads),
        _heads(_projected(value, value_weight, value_bias), num_kv_heads),
    )
    options = {
        "attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "bias": bias, "causal_offset": causal_offset,
        "window_size": window_size, "softcap": softcap, "alibi_slopes": alibi_slopes, "sinks": sinks,
        "query_lengths": query_lengths, "kv_lengths": kv_lengths, "relative_bias": relative_bias, "rotary": rotary,
        "rotary_interleaved": rotary_interleaved, "query_positions": query_positions, "key_positions": key_positions,
    }  # fmt: skip
    output = scaled_dot_product_attention(*heads, dropout_p=dropout_p, rng=rng, **options).swapaxes(-2, -3)
    output = _projected(output.reshape(*output.shape[:-2], np.prod(output.shape[-2:])), output_weight, output_bias)
    return (output, attention_weights(*heads[:2], **options)) if need_weights else output


def _projected(x, weight, bias):
    x = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    return x if bias is None else x + np.asarray(bias, np.float64)


def _heads(x, number):
    """(..., L, H E) -> (..., H, L, E)"""
    return x.reshape(*x.shape[:-1], number, x.shape[-1] // number).swapaxes(-2, -3)
