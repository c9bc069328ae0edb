"""Queries and keys of attention turned by their positions, before their products.

H query heads, L queries, S keys, E head size, P rows of the tables, "..." batch axes.
"""

import typing

import numpy as np


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
