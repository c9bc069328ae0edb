"""Rotary position embedding: its tables, the rotation, and weights between its two pairings."""

import numpy as np

from ._positions_frequencies import rotary_frequencies


def rotary_tables(positions, inverse_frequencies, attention_factor=1.0, *, dtype=np.float32):
    """cos_pi = m cos(p w_i), sin_pi = m sin(p w_i): (...), (n,) -> (..., n) twice, in float64 whatever dtype says."""
    positions = _positions(positions)
    angles = positions[..., None] * np.asarray(inverse_frequencies, np.float64)
    return attention_factor * np.cos(angles), attention_factor * np.sin(angles)


def rotary_tables_2d(rows, columns, inverse_frequencies, attention_factor=1.0, *, dtype=np.float32):
    """cos_ti = m cos(row_t w_i), cos_t,n+i = m cos(column_t w_i), and sin: (...), (...), (n,) -> (..., 2 n) twice."""
    by_row, by_column = np.broadcast_to(
        np.asarray(inverse_frequencies, np.float64), (2, np.shape(inverse_frequencies)[-1])
    )
    if np.ndim(rows) == np.ndim(columns) == 0 and np.asarray(rows).dtype.kind == np.asarray(columns).dtype.kind == "i":
        rows, columns = np.repeat(np.arange(rows), columns), np.tile(np.arange(columns), rows)
    rows, columns = np.broadcast_arrays(np.asarray(rows, np.float64), np.asarray(columns, np.float64))
    angles = np.concatenate([rows[..., None] * by_row, columns[..., None] * by_column], -1)
    return attention_factor * np.cos(angles), attention_factor * np.sin(angles)


def rotary_embedding(
    x,
    cos=None,
    sin=None,
    *,
    positions=None,
    inverse_frequencies=None,
    interleaved=False,
    rotary_dim=None,
    inverse=False,
):
    """y_a = x_a cos - x_b sin, y_b = x_b cos + x_a sin for the pairs (a, b): (..., H, L, D) -> (..., H, L, D)."""
    x = np.asarray(x, np.float64)
    length, head_dim = x.shape[-2:]
    if cos is None:
        if inverse_frequencies is None:
            inverse_frequencies, _ = rotary_frequencies(head_dim, rotary_dim=rotary_dim)
        places = np.arange(length) if positions is None else np.asarray(positions, np.float64)
        cos, sin = rotary_tables(np.broadcast_to(places, (*places.shape[:-1], length)), inverse_frequencies)
        positions = None
    cos, sin = np.asarray(cos, np.float64), np.asarray(sin, np.float64)
    if rotary_dim is None:
        rotary_dim = head_dim if cos.shape[-1] == head_dim else 2 * cos.shape[-1]
    n = rotary_dim // 2
    if interleaved:
        a, b = np.arange(0, rotary_dim, 2), np.arange(1, rotary_dim, 2)
    else:
        a, b = np.arange(n), np.arange(n, rotary_dim)
    if cos.shape[-1] != n:  # each number twice
        cos, sin = cos[..., a], sin[..., a]
    batch = x.shape[:-3]
    cos = np.broadcast_to(cos, (*batch, *cos.shape[-2:]))
    sin = np.broadcast_to(sin, (*batch, *sin.shape[-2:]))
    places = np.broadcast_to(np.arange(length) if positions is None else positions, (*batch, length))
    cos = np.take_along_axis(cos, places[..., None], -2)  # (..., L, n)
    sin = np.take_along_axis(sin, places[..., None], -2)
    if x.ndim > 2:  # the same for all heads
        cos, sin = cos[..., None, :, :], sin[..., None, :, :]
    if inverse:
        sin = -sin
    y = x.copy()
    with np.errstate(invalid="ignore", over="ignore"):
        y[..., a] = x[..., a] * cos - x[..., b] * sin
        y[..., b] = x[..., b] * cos + x[..., a] * sin
    return y


def permute_rotary_weights(weight, num_heads, *, to, axis=0, rotary_dim=None):
    """W'[i] = W[2 i], W'[rotary_dim / 2 + i] = W[2 i + 1] in each head, or back: (..., H D, ...) -> as much."""
    weight = np.moveaxis(np.asarray(weight), axis, 0)
    permuted = weight.copy()
    head_dim = len(weight) // num_heads
    dim = head_dim if rotary_dim is None else rotary_dim
    for head in range(num_heads):
        first = head * head_dim
        for i in range(dim // 2):
            for half_split, interleaved in ((i, 2 * i), (dim // 2 + i, 2 * i + 1)):
                if to == "half_split":
                    permuted[first + half_split] = weight[first + interleaved]
                else:
                    permuted[first + interleaved] = weight[first + half_split]
    return np.moveaxis(permuted, 0, axis)


def _positions(x):
    x = np.asarray(x)
    return np.arange(float(x)) if x.ndim == 0 and x.dtype.kind in "iu" else x.astype(np.float64)
