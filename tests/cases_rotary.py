"""Rotary tables and positions for calls of attention."""

import numpy as np


def rotary_tables(rows, pairs, real, twice=False):
    """(cos, sin) of `rows` positions; twice: each number for both features of a pair of neighbours."""
    angles = np.arange(rows)[:, None] * 100.0 ** (-np.arange(pairs) / max(pairs, 1))
    angles = np.repeat(angles, 2, 1) if twice else angles
    return np.cos(angles).astype(real), np.sin(angles).astype(real)


def rotary_positions(rng, batch, L, S, E, real):
    """Positions in any order, garbage where lengths hide; neighbours turn, but not the last of them."""
    lengths = {name: rng.integers(0, n + 1, batch) for name, n in (("query_lengths", L), ("kv_lengths", S))}
    given = {"rotary": rotary_tables(50, (E - E // 4) // 2, real, twice=True), "rotary_interleaved": True, **lengths}
    for name, n, length in zip(("query_positions", "key_positions"), (L, S), lengths.values(), strict=True):
        used = np.arange(n) < np.asarray(length)[..., None]
        given[name] = np.where(used, rng.integers(0, 50, (*batch, n)), -7)
    return given


def rotary(L, S, E, real):
    """The default positions, made such that none is negative; tables that end with the last."""
    tables = rotary_tables(max(L, S), E // 2, real)
    return {"is_causal": True, "window_size": (65, -1), "causal_offset": np.array(max(0, S - L)), "rotary": tables}
