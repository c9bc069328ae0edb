"""Rotary tables and positions that attention must refuse: for query (2, 4, 6, 5) and key (2, 2, 7, 5)."""

import numpy as np


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


# Of tables: six query rows at 1 ... 6, keys at 0 ... 6.
ROTARY = [
    ({"rotary": ones(7, 2)}, TypeError, "rotary"),
    ({"rotary": 1}, TypeError, "rotary"),
    ({"rotary": (ones(9, 2),)}, TypeError, "rotary"),
    ({"rotary": (ones(9, 2), None)}, TypeError, "rotary"),
    ({"rotary": (ones(9, 2), ones(9, 1))}, ValueError, "rotary.*one shape"),
    ({"rotary": (ones(9, 2), ones(8, 2))}, ValueError, "rotary.*one shape"),
    ({"rotary": (ones(9), ones(9))}, ValueError, "rotary.*two axes"),
    ({"rotary": (ones(9, 3), ones(9, 3))}, ValueError, "rotary.*columns"),
    ({"rotary": (ones(9, 5), ones(9, 5))}, ValueError, "rotary.*columns"),
    (
        {"query": ones(2, 4, 6, 2), "key": ones(2, 2, 7, 2), "rotary": (ones(9, 2), ones(9, 2) * [1, 2])},
        ValueError,
        "rotary.*same number|query_tangent",
    ),
    ({"rotary": (ones(9, 6), ones(9, 6))}, ValueError, "rotary.*columns"),
    ({"rotary": (ones(9, 2, dtype=np.float16), ones(9, 2))}, TypeError, "rotary.*float16"),
    ({"rotary": (ones(9, 2), ones(9, 2, dtype=int))}, TypeError, "rotary.*int64"),
    ({"rotary": (ones(0, 2), ones(0, 2))}, ValueError, "rotary has rows"),
    ({"rotary": (ones(2, 2), ones(2, 2))}, ValueError, "stands at position 6; rotary has rows 0 ... 1"),
    (
        {"rotary": (ones(9, 2), ones(9, 2)), "causal_offset": -1, "is_causal": False},
        ValueError,
        "query row 0 stands at position -1",
    ),
    ({"rotary": (ones(9, 2), ones(9, 2)), "causal_offset": 2**62}, ValueError, "query row"),
    ({"rotary": (ones(9, 2), ones(9, 2)), "rotary_interleaved": "yes"}, TypeError, "rotary_interleaved"),
    ({"query_positions": [0] * 6}, ValueError, "query_positions needs rotary"),
    ({"key_positions": [0] * 7}, ValueError, "key_positions needs rotary"),
    (
        {"rotary": (ones(7, 2), ones(7, 2)), "query_positions": [0, 1, 2, 3, 4, 7]},
        ValueError,
        "query_positions holds 7",
    ),
    (
        {"rotary": (ones(7, 2), ones(7, 2)), "key_positions": [0, 1, 2, -1, 4, 5, 6]},
        ValueError,
        "key_positions holds -1",
    ),
    ({"rotary": (ones(7, 2), ones(7, 2)), "key_positions": 2**63}, ValueError, "key_positions holds"),
    ({"rotary": (ones(7, 2), ones(7, 2)), "query_positions": [0.0] * 6}, TypeError, "query_positions"),
    ({"rotary": (ones(7, 2), ones(7, 2)), "query_positions": [0] * 7}, ValueError, "query_positions"),
    ({"rotary": (ones(7, 2), ones(7, 2)), "key_positions": [[0] * 7] * 3}, ValueError, "key_positions"),
    ({"rotary": (ones(9, 2), ones(9, 2)), "kv_lengths": [7, 5]}, ValueError, "query_lengths"),
]
