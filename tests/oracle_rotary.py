"""Rotary positions in the formulas of oracle.py: operands turned, and the magnitudes of what they are sums of."""

import numpy as np

ROUNDINGS = 6  # of a score: a turned feature is off by 3 u (|first cos| + |second sin|), on both sides


def turned(real, arguments, side, rows_seen, x, back=False, sizes=False):
    """x (..., heads, rows, E) of the queries or keys (`side`), turned by their positions, or back.

    rows_seen: the rows of the tables and whether anything is seen, both (..., L or S). sizes: |first cos| +
    |second sin| in place of the sums.
    """
    if arguments.get("rotary") is None:
        return np.abs(x) if sizes else x
    rows, seen = rows_seen[side]
    (cos, sin), interleaved, E = arguments["rotary"], arguments.get("rotary_interleaved", False), x.shape[-1]
    pairs = np.shape(cos)[-1]
    if pairs == E:  # every number twice
        pairs //= 2
        cos, sin = (np.asarray(t)[:, :: 2 if interleaved else 1][:, :pairs] for t in (cos, sin))
    cos, sin = (np.asarray(t).astype(real)[np.where(seen, rows, 0)][..., None, :, :] for t in (cos, sin))
    first, second = np.arange(pairs), np.arange(pairs) + pairs
    if interleaved:
        first, second = 2 * np.arange(pairs), 2 * np.arange(pairs) + 1
    sin = -sin if back else sin
    if sizes:
        x, cos, sin = np.abs(x), np.abs(cos), np.abs(sin)
    shape = np.broadcast_shapes(x.shape[:-2], (*seen.shape[:-1], 1))
    y = np.array(np.broadcast_to(x, (*shape, *x.shape[-2:])))
    with np.errstate(all="ignore"):
        a, b = x[..., first], x[..., second]
        y[..., first] = a * cos + b * sin if sizes else a * cos - b * sin
        y[..., second] = b * cos + a * sin
    return np.where(seen[..., None, :, None], y, x)


def rows_seen(arguments, sizes, seen):
    """{"query": (rows, seen), "key": ...}, each (..., L or S). seen: what ranges let be seen, (..., H, L, S)."""
    if arguments.get("rotary") is None:
        return None
    batch, _, _, L, S, _ = sizes
    found = {}
    for side, n, axis in (("query", L, -1), ("key", S, -2)):
        rows = arguments.get(f"{side}_positions")
        if rows is None:
            rows = np.arange(n)
            if side == "query":
                rows = rows + _offset(arguments, batch, L, S)[..., None]
        found[side] = np.broadcast_to(rows, (*batch, n)), seen.any(axis).any(-2)
    return found


def _offset(arguments, batch, L, S):
    def given(name, default):
        return np.broadcast_to(default if arguments.get(name) is None else arguments[name], batch)

    return given("causal_offset", given("kv_lengths", S) - given("query_lengths", L))
