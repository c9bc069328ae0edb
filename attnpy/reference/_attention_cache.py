"""Attention to keys and values in a cache or in pages: they are put one after another first.

B sequences, H query heads, G key/value heads, L queries, S keys, E and D head sizes.
"""

import numpy as np

from ._attention import scaled_dot_product_attention


def attention_with_cache(
    query,
    cache,
    layer,
    *,
    is_causal=True,
    scale=None,
    causal_offset=None,
    window_size=None,
    softcap=None,
    alibi_slopes=None,
    sinks=None,
    query_lengths=None,
    relative_bias=None,
    rotary=None,
    rotary_interleaved=False,
    return_lse=False,
):
    """O_i = sum_j P_ij v_j over what the cache holds of a layer: query (..., H, L, E) -> (..., H, L, D).

    The cache has one batch axis, so query has it too.
    """
    view, lengths = cache.view(layer), cache.lengths(layer)
    key, value = (
        _by_position(rows, step, view.position, int(lengths.max()))
        for rows, step in ((view.key, view.key_scale), (view.value, view.value_scale))
    )
    if window_size is None and cache.window is not None:
        window_size = (cache.window, -1)
    return scaled_dot_product_attention(
        query, key, value, is_causal=is_causal, scale=scale, causal_offset=causal_offset, window_size=window_size,
        softcap=softcap, alibi_slopes=alibi_slopes, sinks=sinks, query_lengths=query_lengths, kv_lengths=lengths,
        relative_bias=relative_bias, rotary=rotary,
        rotary_interleaved=rotary_interleaved, return_lse=return_lse,
    )  # fmt: skip


def paged_attention(
    query,
    key_pages,
    value_pages,
    block_table,
    kv_lengths,
    *,
    is_causal=False,
    scale=None,
    causal_offset=None,
    window_size=None,
    softcap=None,
    alibi_slopes=None,
    sinks=None,
    query_lengths=None,
    relative_bias=None,
    rotary=None,
    rotary_interleaved=False,
    return_lse=False,
):
    """O_i = sum_j P_ij v_j where key j of sequence b is row j mod n of page block_table[b, j div n], pages of n rows.

    query (..., H, L, E), key_pages (pages, n, G, E), value_pages (pages, n, G, D) -> (..., H, L, D).
    """
    batch = np.shape(query)[:-3]
    table, lengths = np.asarray(block_table), np.broadcast_to(kv_lengths, batch)
    table = np.broadcast_to(table, (*batch, table.shape[-1]))
    key, value = (_gathered(np.asarray(pages), table, lengths) for pages in (key_pages, value_pages))
    if np.ndim(query) == 2:
        query = np.asarray(query)[None]
    result = scaled_dot_product_attention(
        query, key, value, is_causal=is_causal, scale=scale, causal_offset=causal_offset, window_size=window_size,
        softcap=softcap, alibi_slopes=alibi_slopes, sinks=sinks, query_lengths=query_lengths, kv_lengths=lengths,
        relative_bias=relative_bias, rotary=rotary,
        rotary_interleaved=rotary_interleaved, return_lse=return_lse,
    )  # fmt: skip
    return result


def _gathered(pages, table, lengths):
    """Rows of all sequences, (B, G, S, n), S the longest; 0 past a sequence's length."""
    number, n, heads, size = pages.shape
    rows = np.zeros((*lengths.shape, heads, int(lengths.max(initial=0)), size))
    for b in np.ndindex(lengths.shape):
        for j in range(int(lengths[b])):
            page = int(table[(*b, j // n)])
            if not 0 <= page < number:
                raise ValueError(f"block_table holds {page}; each entry must be in 0 … {number - 1}")
            rows[(*b, slice(None), j)] = pages[page, j % n].astype(np.float64)
    return rows


def _by_position(rows, step, position, length):
    """(B, G, length, n): each row, times its step where it has one, at its position; 0 where there is none."""
    rows = rows.astype(np.float64)
    if step is not None:
        rows = rows * step[..., None].astype(np.float64)
    placed = np.zeros((*rows.shape[:2], length, rows.shape[-1]))
    for b, r in np.argwhere(position >= 0):
        placed[b, :, position[b, r]] = rows[b, :, r]
    return placed
