"""Rotary tables and positions for calls of attention."""

import numpy as np


def rotary_tables(rows, pairs, real, twice=False):
    """(cos, sin) of `rows` positions; twice: each number for both features of a pair of neighbours."""
    angles = np.arange(rows)[:, None] * 100.0 ** (-np.arange(pairs) / max(pairs, 1))
    angles = np.repeat(angles, 2, 1) if twice else angles
    return np.cos(angles).astype(real), np.sin(angles).astype(real)


def rotary_positions(rng, batch, L, S, E, real):
    """Positions in any order; neighbours turn. Tables have a column for each feature, or the last features stay."""
    given = {name: rng.integers(0, n + 1, batch) for name, n in (("query_lengths", L), ("kv_lengths", S))}
    twice = E % 2 == 0
    given |= {"rotary": rotary_tables(50, E // 2 if twice else E // 3, real, twice), "rotary_interleaved": True}
    for name, n in (("query_positions", L), ("key_positions", S)):
        given[name] = rng.integers(0, 50, (*batch, n))
    return given


def rotary(L, S, E, real):
    """The default positions, made such that none is negative; tables that end with the last."""
    tables = rotary_tables(max(L, S), E // 2, real)
    return {"is_causal": True, "window_size": (65, -1), "causal_offset": np.array(max(0, S - L)), "rotary": tables}
