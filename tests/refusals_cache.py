"""What attention to pages and caches must refuse."""

import ml_dtypes
import numpy as np
import refusals
from refusals import RELATIVE, SCORES, of, ones

import attnpy

typed, out_of = refusals._typed, refusals._out

# B 2, H 4, L 3; 5 pages of 2 keys, G 2, E 5, D 3
PAGED_QUERY, KEY_PAGES, VALUE_PAGES, TABLE = (
    ones(2, 4, 3, 5),
    ones(5, 2, 2, 5),
    ones(5, 2, 2, 3),
    np.array([[4, 1], [0, 3]]),
)
_CACHE_SCORES = [
    row
    for row in SCORES + RELATIVE
    if row[0].keys() & {"scale", "causal_offset", "window_size", "softcap", "alibi_slopes", "sinks", "relative_bias"}
    and not row[0].keys() & {"kv_lengths"}
]
PAGED = of(
    {
        "query": PAGED_QUERY,
        "key_pages": KEY_PAGES,
        "value_pages": VALUE_PAGES,
        "block_table": TABLE,
        "kv_lengths": [4, 3],
    },
    *_CACHE_SCORES,
    *typed("query", PAGED_QUERY),
    *typed("key_pages", KEY_PAGES),
    *typed("value_pages", VALUE_PAGES),
    (
        {"key_pages": KEY_PAGES.astype(np.float16), "value_pages": VALUE_PAGES.astype(ml_dtypes.bfloat16)},
        TypeError,
        "pages",
    ),
    ({"query": ones(5)}, ValueError, "query"),
    ({"query": ones(2, 3, 3, 5)}, ValueError, "heads"),
    ({"query": ones(2, 4, 3, 6)}, ValueError, "key_pages.*last axis must be 6"),
    ({"key_pages": ones(5, 2, 5)}, ValueError, "key_pages.*four axes"),
    ({"key_pages": ones(5, 0, 2, 5), "value_pages": ones(5, 0, 2, 3)}, ValueError, "key_pages.*at least one key"),
    ({"value_pages": ones(5, 2, 1, 3)}, ValueError, r"value_pages.*\(5, 2, 2, D\)"),
    ({"value_pages": ones(4, 2, 2, 3)}, ValueError, "value_pages"),
    ({"block_table": np.array([[4, 5], [0, 3]])}, ValueError, "block_table holds 5 at entry 1 of sequence 0"),
    ({"block_table": np.array([[4, 1], [-1, 3]])}, ValueError, "block_table holds -1"),
    ({"block_table": np.array([[4, 1], [2**62, 3]])}, ValueError, "block_table"),
    ({"block_table": np.array([[4, 1], [2**63 + 5, 3]], np.uint64)}, ValueError, "block_table"),
    ({"block_table": TABLE.astype(float)}, TypeError, "block_table"),
    ({"block_table": TABLE[:, :1]}, ValueError, r"kv_lengths holds 4; each must be in 0 \.\.\. 2"),
    ({"block_table": np.array(1)}, ValueError, "block_table.*last axis"),
    ({"block_table": TABLE[[0, 1, 1]]}, ValueError, "block_table"),
    ({"kv_lengths": None}, TypeError, "kv_lengths"),
    ({"kv_lengths": [4, -1]}, ValueError, "kv_lengths"),
    ({"kv_lengths": [4, 5]}, ValueError, "kv_lengths"),
    ({"kv_lengths": [4, 2**62]}, ValueError, "kv_lengths"),
    ({"kv_lengths": [4.0, 3.0]}, TypeError, "kv_lengths"),
    ({"kv_lengths": [4, 3, 2]}, ValueError, "kv_lengths"),
    ({"kv_lengths": [4, 2], "is_causal": True}, ValueError, "kv_lengths holds 2"),
    ({"query_lengths": [4, 3]}, ValueError, "query_lengths"),
    *out_of(2, 4, 3, 3),
    ({"return_lse": True, "out": ones(2, 4, 3, 3)}, TypeError, "out"),
)


def _filled_cache(**options):
    cache = attnpy.KVCache(1, 2, 2, 7, 5, value_head_dim=3, **options)
    cache.append(0, ones(2, 2, 6, 5), ones(2, 2, 6, 3), [6, 4])
    return cache


FILLED, RING = _filled_cache(), _filled_cache(window=3)
RING.append(0, ones(2, 2, 4, 5), ones(2, 2, 4, 3))  # positions 3 … 9 and 1 … 7
WITH_CACHE = of(
    {"query": PAGED_QUERY, "cache": FILLED, "layer": 0},
    *_CACHE_SCORES,
    *typed("query", PAGED_QUERY),
    ({"cache": None}, TypeError, "cache.*KVCache"),
    ({"layer": 1}, ValueError, "layer"),
    ({"layer": -1}, ValueError, "layer"),
    ({"layer": 0.0}, TypeError, "layer"),
    ({"query": ones(2, 4, 3, 6)}, ValueError, "key.*last axis must be 6"),
    ({"query": ones(2, 3, 3, 5)}, ValueError, "heads"),
    ({"query": ones(3, 4, 3, 5)}, ValueError, "key"),
    ({"query": ones(2, 4, 5, 5)}, ValueError, "kv_lengths holds 4"),
    ({"query_lengths": [4, 3]}, ValueError, "query_lengths"),
    ({"cache": RING, "query": ones(2, 4, 5, 5)}, ValueError, "query looks back 1 positions further"),
    ({"cache": RING, "window_size": (5, 0)}, ValueError, "query looks back 1 positions further"),
    ({"cache": RING, "window_size": -1}, ValueError, "query looks back 3 positions further"),
    ({"cache": RING, "causal_offset": [5, 5]}, ValueError, "query looks back 1 positions further"),
    *out_of(2, 4, 3, 3),
)
CACHE = of(
    {"num_layers": 1, "batch": 2, "num_kv_heads": 2, "max_length": 7, "head_dim": 5},
    ({"num_layers": 0}, ValueError, "num_layers"),
    ({"batch": 2.0}, TypeError, "batch"),
    ({"batch": True}, TypeError, "batch"),
    ({"num_kv_heads": -1}, ValueError, "num_kv_heads"),
    ({"max_length": 0}, ValueError, "max_length"),
    ({"head_dim": None}, TypeError, "head_dim"),
    ({"value_head_dim": 0}, ValueError, "value_head_dim"),
    ({"dtype": complex}, TypeError, "dtype"),
    ({"dtype": np.int16}, TypeError, "dtype"),
    ({"dtype": np.dtype(np.float32).newbyteorder()}, TypeError, "dtype"),
    ({"window": -1}, ValueError, "window"),
    ({"window": 7}, ValueError, "window.*max_length"),
    ({"window": 3, "dtype": np.int8}, ValueError, "window"),
)
