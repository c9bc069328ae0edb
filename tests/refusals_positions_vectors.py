"""What attention with vectors of distances must refuse."""

import numpy as np
from refusals import DO, LSE, SCORES, K, Q, V, _out, _typed, of, ones

TABLE, VALUES = ones(4, 5, 5), ones(5, 3)  # K 2
POSITIONS, BIAS = ones(4, 12, 5), ones(4, 5)
TAKEN = {
    "query",
    "key",
    "attn_mask",
    "bias",
    "scale",
    "is_causal",
    "causal_offset",
    "window_size",
    "query_lengths",
    "kv_lengths",
}
_COMMON = [
    *(row for row in SCORES if row[0].keys() <= TAKEN),
    *_typed("value", V),
    ({"value": ones(2, 2, 8, 3)}, ValueError, "value"),
    ({"kv_lengths": [7, 5]}, ValueError, "pass query_lengths for a padded batch, or causal_offset"),
]
_SHAW = [
    *_COMMON,
    *_typed("key_table", TABLE),
    *_typed("value_table", VALUES),
    ({"key_table": None}, (TypeError, ValueError), "key_table"),
    ({"key_table": ones(5)}, ValueError, "key_table has shape"),
    ({"key_table": ones(5, 4)}, ValueError, "key_table has shape"),
    ({"key_table": ones(3, 5, 5)}, ValueError, "key_table"),
    ({"key_table": ones(4, 4, 5), "value_table": None}, ValueError, "key_table has 4 rows"),
    ({"key_table": ones(0, 5), "value_table": None}, ValueError, "key_table has 0 rows"),
    ({"value_table": ones(7, 3)}, ValueError, "value_table"),
    ({"value_table": ones(5, 5)}, ValueError, "value_table has shape"),
]
_XL = [
    *_COMMON,
    *_typed("position_keys", POSITIONS),
    *_typed("content_bias", BIAS),
    *_typed("position_bias", BIAS),
    ({"position_keys": None}, (TypeError, ValueError), "position_keys"),
    ({"position_keys": ones(5)}, ValueError, "position_keys has shape"),
    ({"position_keys": ones(12, 4)}, ValueError, "position_keys has shape"),
    ({"position_keys": ones(3, 12, 5)}, ValueError, "position_keys"),
    ({"position_keys": ones(11, 5)}, ValueError, "position_keys has 11 rows.*-5 ... 6 apart"),
    ({"position_keys": ones(6, 5), "is_causal": True}, ValueError, "position_keys has 6 rows"),
    ({"causal_offset": 2}, ValueError, "position_keys has 12 rows"),
    ({"causal_offset": -(2**70)}, ValueError, "position_keys has 12 rows"),
    ({"content_bias": ones(4, 4)}, ValueError, "content_bias has shape"),
    ({"content_bias": ones(3, 5)}, ValueError, "content_bias"),
    ({"position_bias": np.float32(1)}, ValueError, "position_bias"),
]
_OF_SHAW = {"query": Q, "key": K, "value": V, "key_table": TABLE, "value_table": VALUES}
_OF_XL = {"query": Q, "key": K, "value": V, "position_keys": POSITIONS, "content_bias": BIAS, "position_bias": BIAS}
SHAW = of(_OF_SHAW, *_SHAW, *_out(2, 4, 6, 3), ({"return_lse": True, "out": DO}, TypeError, "out"))
XL = of(_OF_XL, *_XL, *_out(2, 4, 6, 3), ({"return_lse": True, "out": DO}, TypeError, "out"))
_BACKWARD = [
    *_typed("grad_output", DO),
    *_typed("output", DO),
    *_typed("lse", LSE),
    ({"grad_output": ones(2, 4, 5, 3)}, ValueError, "grad_output"),
    ({"output": ones(2, 4, 6, 4)}, ValueError, "output"),
    ({"lse": ones(2, 4, 5)}, ValueError, "lse"),
    ({"grad_lse": ones(2, 4, 7)}, ValueError, "grad_lse"),
    ({"output": None}, TypeError, "output"),
    ({"needs": "query"}, TypeError, "needs"),
    ({"needs": ("query", "sinks")}, ValueError, "needs"),
    ({"needs": ("query", "query")}, ValueError, "needs holds 'query' twice"),
    ({"needs": ("bias",)}, ValueError, "no bias"),
    ({"needs": ("attn_mask",), "attn_mask": ones(6, 7, dtype=bool)}, ValueError, "boolean"),
    ({"out": DO}, TypeError, "out"),
    ({"out": {"bias": DO}}, ValueError, "out holds 'bias'"),
    ({"out": {"query": ones(2, 4, 6, 4)}}, ValueError, "query"),
]
SHAW_BACKWARD = of(
    {"grad_output": DO, **_OF_SHAW, "output": DO, "lse": LSE},
    *_SHAW,
    *_BACKWARD,
    ({"needs": ("value_table",), "value_table": None}, ValueError, "no value_table"),
    ({"needs": ("position_keys",)}, ValueError, "needs"),
    ({"needs": ("key_table",), "out": {"key_table": ones(4, 5, 4)}}, ValueError, "key_table"),
)
XL_BACKWARD = of(
    {"grad_output": DO, **_OF_XL, "output": DO, "lse": LSE},
    *_XL,
    *_BACKWARD,
    ({"needs": ("content_bias",), "content_bias": None}, ValueError, "no content_bias"),
    ({"needs": ("key_table",)}, ValueError, "needs"),
)
GRADIENTS = of({}, ({"gradient": 1}, TypeError, "gradient"))
