"""Longformer's attention with all its scores in memory."""

import numpy as np

from ._attention import scaled_dot_product_attention
from ._masks import BlockMask, _chosen, _with_head_axis


def longformer_attention(
    query,
    key,
    value,
    global_query,
    global_key,
    global_value,
    *,
    window,
    global_tokens,
    scale=None,
    kv_lengths=None,
):
    """Tokens attend to |i - j| <= window and to the global tokens; these to all, by projections of their own.

    query, global_query (..., H, L, E), key, global_key (..., G, L, E), value, global_value (..., G, L, D)
    -> (..., H, L, D).
    """
    length = np.shape(query)[-2]
    chosen = _chosen(global_tokens, length)
    seen = np.repeat(chosen[..., None, :], length, axis=-2)  # by every query
    mask = BlockMask.sliding_window(length, length, window, window) | _with_head_axis(seen)
    local = scaled_dot_product_attention(query, key, value, mask, scale=scale, kv_lengths=kv_lengths)
    full = scaled_dot_product_attention(global_query, global_key, global_value, scale=scale, kv_lengths=kv_lengths)
    is_global = chosen[..., None, :, None] if chosen.ndim > 1 else chosen[:, None]
    return np.where(is_global, full, local)
