"""Where queries and keys of attention stand: what they let be seen, and how rotary positions turn them.

H query heads, L queries, S keys, E head size, P rows of the tables, "..." batch axes. Query i stands at position
i + offset, key j at position j.
"""

import typing

import numpy as np


def _standing(L, S, batch, is_causal, causal_offset, window_size, query_lengths, kv_lengths, positional):
    """i + offset, (..., 1, L, 1); which keys each query may see by lengths, causal rule and window, (..., 1, L, S); and
    which query rows are within their length, (..., 1, L, 1).
    """
    window = _window(window_size)
    queries = _lengths("query_lengths", query_lengths, L, batch)
    keys = _lengths("kv_lengths", kv_lengths, S, batch)
    known = kv_lengths is None or query_lengths is not None or causal_offset is not None
    if (positional or max(window) >= 0) and not known and np.any(keys < L):
        raise ValueError("kv_lengths: pass query_lengths for a padded batch, or causal_offset")
    offset = keys - queries if causal_offset is None else _integers("causal_offset", causal_offset, batch)
    i, j = np.arange(L)[:, None], np.arange(S)
    position = i + np.clip(offset, -(2**62), 2**62)
    return position, _in_reach(position, j, is_causal, *window) & (i < queries) & (j < keys), i < queries


def _in_reach(position, j, is_causal, left, right):
    """Which keys j the causal rule and the window let a query at `position` see, (..., 1, L, S)."""
    reach = np.ones(np.broadcast_shapes(position.shape, j.shape), bool)
    if is_causal:
        reach &= j <= position
    if left >= 0:
        reach &= position - j <= left
    if right >= 0:
        reach &= j - position <= right
    return reach


def _window(window_size):
    """(left, right); -1 is open."""
    if window_size is None:
        return -1, -1
    left, right = (window_size, window_size) if np.ndim(window_size) == 0 else window_size
    if left < -1 or right < -1:
        raise ValueError(f"window_size is {window_size}; its ends must be -1 (open) or more")
    return left, right


def _lengths(name, lengths, longest, batch):
    if lengths is None:
        return np.full((1, 1, 1), longest)
    lengths = _integers(name, lengths, batch)
    if np.any((lengths < 0) | (lengths > longest)):
        raise ValueError(f"{name} must lie between 0 and {longest}")
    return lengths


def _integers(name, x, batch):
    """One integer per batch element, (..., 1, 1, 1)."""
    x = np.asarray(x)
    if x.dtype.kind not in "iu":
        raise TypeError(f"{name} is {x.dtype}; it must be integers")
    return np.broadcast_to(x.astype(np.int64), batch)[..., None, None, None]


def _turned(
    query, key, batch, rotary, rotary_interleaved, query_positions, key_positions, is_causal, causal_offset,
    window_size, query_lengths, kv_lengths,
):  # fmt: skip
    """Query and key turned by their positions, and the rotations that did it; None where there are none."""
    L, S, E = query.shape[-2], key.shape[-2], query.shape[-1]
    placed = rotary is not None and query_positions is None
    position, reach, _ = _standing(
        L, S, batch, is_causal, causal_offset, window_size, query_lengths, kv_lengths, placed
    )
    reach = np.broadcast_to(reach, (*batch, 1, L, S))
    found = rotations(rotary, rotary_interleaved, query_positions, key_positions, position, reach, E)
    if found is None:
        return query, key, None
    return found[0].turned(query), found[1].turned(key), found


class Rotation(typing.NamedTuple):
    """cos and sin for each row of queries or keys, (..., 1, rows, pairs), and which rows turn, (..., 1, rows, 1)."""

    cos: np.ndarray
    sin: np.ndarray
    turns: np.ndarray
    interleaved: bool

    def turned(self, x, back=False):
        """first' = first cos - second sin, second' = second cos + first sin for each pair: (..., H, rows, E)."""
        pairs = self.cos.shape[-1]
        first, second = slice(0, pairs), slice(pairs, 2 * pairs)
        if self.interleaved:
            first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        sin = -self.sin if back else self.sin
        x = np.broadcast_to(x, np.broadcast_shapes(x.shape, (*self.turns.shape[:-1], x.shape[-1])))
        y = x.copy()
        with np.errstate(all="ignore"):
            y[..., first] = x[..., first] * self.cos - x[..., second] * sin
            y[..., second] = x[..., second] * self.cos + x[..., first] * sin
        return np.where(self.turns, y, x)


def rotations(rotary, interleaved, query_positions, key_positions, position, reach, head_dim):
    """(that of the queries, that of the keys); None without tables.

    position: i + offset, (..., 1, L, 1); reach: which keys each query may see by lengths, causal rule and window,
    (..., 1, L, S). Only rows and keys that see or are seen turn: they must have a row in the tables.
    """
    if rotary is None:
        for name, x in (("query_positions", query_positions), ("key_positions", key_positions)):
            if x is not None:
                raise ValueError(f"{name} needs rotary")
        return None
    cos, sin = (np.asarray(table) for table in rotary)
    for table in (cos, sin):
        if table.dtype not in (np.float32, np.float64):
            raise TypeError(f"rotary has a table of dtype {table.dtype}; it must be float32 or float64")
    if cos.ndim != 2 or cos.shape != sin.shape:
        raise ValueError(f"rotary has tables of shapes {cos.shape} and {sin.shape}; they must be (positions, pairs)")
    columns = cos.shape[1]
    twice = columns == head_dim  # each number stands there twice
    if columns % 2 if twice else columns > head_dim // 2:
        raise ValueError(f"rotary has tables of {columns} columns; they may have {head_dim // 2}, or two for each pair")
    if twice:
        for table in (cos, sin):
            one, other = (table[:, ::2], table[:, 1::2]) if interleaved else np.split(table, 2, axis=1)
            if not np.array_equal(one, other, equal_nan=True):
                raise ValueError("rotary has tables of two columns for each pair, which must hold the same numbers")
        chosen = slice(None, None, 2) if interleaved else slice(0, columns // 2)
        cos, sin = cos[:, chosen], sin[:, chosen]
    seen = reach.any(-1), reach.any(-2)  # (..., 1, L), (..., 1, S)
    rows = (
        _rows("query_positions", query_positions, position[..., 0], seen[0], len(cos)),
        _rows("key_positions", key_positions, np.arange(reach.shape[-1]), seen[1], len(cos)),
    )
    return tuple(
        Rotation(*(_taken(table.astype(np.float64), r) for table in (cos, sin)), turns[..., None], interleaved)
        for r, turns in zip(rows, seen, strict=True)
    )


def _rows(name, given, positions, needed, length):
    """The rows of the tables, (..., 1, L or S); 0 where none is needed."""
    if given is not None:
        positions = np.asarray(given)
        if positions.dtype.kind not in "iu":
            raise TypeError(f"{name} is {positions.dtype}; it must be integers")
        shape = (*needed.shape[:-2], needed.shape[-1])
        if positions.ndim > len(shape):
            raise ValueError(f"{name} has shape {positions.shape}; it must broadcast to {shape}")
        positions = np.broadcast_to(positions, shape)[..., None, :]
    rows = np.where(needed, positions, 0)
    if np.any((rows < 0) | ((rows >= length) & needed)):
        raise ValueError(f"rotary has {length} rows, {name} {rows.min()} ... {rows.max()}")
    return rows


def _taken(table, rows):
    """(..., 1, L or S, pairs)"""
    return table[rows] if len(table) else np.ones((*rows.shape, table.shape[1]))
