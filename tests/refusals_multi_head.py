"""What multi_head_attention must refuse; see refusals.py."""

import numpy as np
from refusals import of, ones

X, W, O = ones(2, 6, 8), ones(8, 8), ones(5, 8)
THREE = {"query_weight": W, "key_weight": W, "value_weight": W}
GIVEN = {"query": X, "key": X, "value": X, "output_weight": O, "num_heads": 2} | THREE

MULTI_HEAD = of(
    GIVEN,
    ({"query": ones(8)}, ValueError, r"query has shape \(8,\); it must be \(..., L, N\)"),
    ({"key": np.ma.masked_array(X)}, TypeError, "key is a masked array"),
    ({"value": X.astype(complex)}, TypeError, "x|value"),
    ({"num_heads": 3}, ValueError, "query_weight has 8 rows; 3 heads must share them evenly"),
    ({"num_heads": 0}, ValueError, "num_heads is 0"),
    ({"num_heads": 2.0}, TypeError, "num_heads"),
    ({"num_kv_heads": -1}, ValueError, "num_kv_heads"),
    ({"num_heads": 4, "num_kv_heads": 3}, ValueError, "num_kv_heads 3"),
    ({"key_weight": None}, ValueError, "key_weight is missing"),
    ({"output_weight": None}, ValueError, "output_weight is missing"),
    ({"qkv_weight": ones(24, 8)}, ValueError, "query_weight and qkv_weight are both given"),
    ({"qkv_bias": ones(24)}, ValueError, "qkv_bias is given without qkv_weight"),
    (dict.fromkeys(THREE) | {"qkv_weight": ones(25, 8)}, ValueError, "qkv_weight has 25 rows"),
    (dict.fromkeys(THREE) | {"qkv_weight": ones(24, 8), "key_bias": ones(8)}, ValueError, "key_bias.*pass qkv_bias"),
    (dict.fromkeys(THREE) | {"qkv_weight": ones(24, 8).tolist(), "key": X + 1}, TypeError, "qkv_weight must be"),
    ({"query_weight": ones(8, 7)}, ValueError, "weight"),
    ({"output_weight": ones(5, 9)}, ValueError, "weight"),
    ({"query_bias": ones(7)}, ValueError, "bias"),
    ({"key": ones(3, 6, 8)}, ValueError, "query|key"),
    ({"value": ones(2, 7, 8)}, ValueError, "value|key"),
    ({"attn_mask": ones(6, 6, dtype=int)}, TypeError, r"attn_mask.*astype\(bool\)"),
    ({"attn_mask": ones(6, 7, dtype=bool)}, ValueError, "attn_mask"),
    ({"scale": float("nan")}, ValueError, "scale"),
    ({"dropout_p": 0.5}, ValueError, "rng"),
    ({"kv_lengths": [7, 3]}, ValueError, "kv_lengths"),
    ({"out": ones(2, 6, 6)}, ValueError, "out"),
    ({"out": ones(2, 6, 5, dtype=np.float64)}, TypeError, "out"),
)
