"""What the constructors of BlockMask must refuse; see refusals.py."""

import numpy as np
from refusals import of

TRUE = np.ones((5, 7), bool)


def _lengths(*names):
    """What no number of queries or keys may be."""
    rows = []
    for name in names:
        rows += [
            ({name: -1}, ValueError, rf"{name} is -1; it must be in 0"),
            ({name: 2**31}, ValueError, name),
            ({name: 2**80}, ValueError, name),
            ({name: 5.0}, TypeError, f"{name} is 5.0; it must be an integer"),
            ({name: None}, TypeError, name),
            ({name: True}, TypeError, name),
            ({name: [5]}, TypeError, name),
        ]
    return rows


def _positions(name):
    """What no list of token positions may hold."""
    return [
        ({name: [5]}, ValueError, f"{name} holds 5; it must lie in -5 … 4"),
        ({name: [-6]}, ValueError, name),
        ({name: [2**63]}, ValueError, name),
        ({name: [0.5]}, TypeError, name),
        ({name: ["a"]}, TypeError, name),
        ({name: 0}, ValueError, name),
        ({name: [[0, 1]]}, ValueError, name),
        ({name: [True, False]}, ValueError, rf"{name} has shape \(2,\); its last axis must be 5"),
        ({name: np.True_}, ValueError, name),
    ]


BLOCK_MASK = of({}, ({"mask": TRUE}, TypeError, "from_dense"))
FROM_DENSE = of(
    {},
    ({"mask": TRUE.astype(int)}, TypeError, r"mask is int64; it must be bool: use .astype\(bool\)"),
    ({"mask": TRUE.astype(np.float32)}, TypeError, "mask"),
    ({"mask": TRUE.astype(object)}, TypeError, "mask"),
    ({"mask": np.ma.masked_array(TRUE)}, TypeError, "mask is a MaskedArray"),
    ({"mask": TRUE[0]}, ValueError, "mask has shape"),
    ({"mask": True}, ValueError, "mask"),
    ({"mask": np.broadcast_to(True, (2, 2**31))}, ValueError, "mask"),
)


def _numbers(b, h, q, k):
    return q - k


FROM_FUNCTION = of(
    {"mask_mod": lambda b, h, q, k: k <= q, "query_length": 5, "key_length": 7},
    *_lengths("query_length", "key_length"),
    ({"batch": -1}, ValueError, "batch"),
    ({"heads": -1}, ValueError, "heads"),
    ({"heads": 1.5}, TypeError, "heads"),
    ({"mask_mod": _numbers}, TypeError, "mask_mod returned int64; it must return bool"),
    ({"mask_mod": lambda b, h, q, k: np.ones((3, 3), bool)}, ValueError, r"mask_mod returned shape \(3, 3\).*\(5, 7\)"),
    ({"mask_mod": lambda b, h, q, k: np.ones((1, 5, 7), bool)}, ValueError, "mask_mod"),
    ({"mask_mod": 5}, TypeError, "mask_mod is int; it must be a function"),
)
FROM_BLOCKS = of(
    {"indices": [0, 2, 1], "indptr": [0, 2, 3, 3], "block_size": (2, 3), "shape": (5, 7)},
    ({"indices": [0, 3, 1]}, ValueError, "indices holds 3; it must lie in 0 … 2"),
    ({"indices": [0, -1, 1]}, ValueError, "indices holds -1"),
    ({"indices": np.array([0, 2**63, 1], np.uint64)}, ValueError, "indices holds 9223372036854775808"),
    ({"indices": [0, 2, 1.0]}, TypeError, "indices is float64"),
    ({"indices": [[0, 2, 1]]}, ValueError, "indices has shape"),
    ({"indptr": [0, 2, 3]}, ValueError, r"indptr has shape \(3,\); wanted \(4,\)"),
    ({"indptr": [[0, 2, 3, 3]]}, ValueError, "indptr has shape"),
    ({"indptr": [0, 2, 1, 3]}, ValueError, "indptr decreases"),
    ({"indptr": [0, 2, 3, 4]}, ValueError, "indptr holds 4; it must lie in 0 … 3"),
    ({"indptr": [-1, 2, 3, 3]}, ValueError, "indptr holds -1"),
    ({"indptr": np.array([0, 2, 3, 2**63], np.uint64)}, ValueError, "indptr holds 9223372036854775808"),
    ({"indptr": [0.0, 2.0, 3.0, 3.0]}, TypeError, "indptr"),
    ({"block_size": 0}, ValueError, "block_size is 0; it must be in 1"),
    ({"block_size": (2, -3)}, ValueError, "block_size"),
    ({"block_size": (2, 3, 4)}, ValueError, "block_size"),
    ({"block_size": 2.0}, TypeError, "block_size"),
    ({"block_size": 2**70}, ValueError, "block_size"),
    ({"shape": (5,)}, ValueError, "shape"),
    ({"shape": 5}, ValueError, "shape"),
    ({"shape": (2, 5, 7)}, ValueError, r"indptr has shape \(4,\); wanted \(2, 4\)"),
    ({"shape": (5, -7)}, ValueError, "shape"),
    ({"shape": (5, 7.0)}, TypeError, "shape"),
)
CAUSAL = of(
    {"query_length": 5, "key_length": 7},
    *_lengths("query_length", "key_length"),
    ({"offset": 1.0}, TypeError, "offset is 1.0; it must be an integer"),
    ({"offset": [1, 2]}, TypeError, "offset"),
)
SLIDING_WINDOW = of(
    {"query_length": 5, "key_length": 7, "left": 1, "right": 2},
    *_lengths("query_length", "key_length"),
    ({"left": -2}, ValueError, "left is -2; it must be -1 or more"),
    ({"right": -2}, ValueError, "right"),
    ({"left": 1.0}, TypeError, "left"),
    ({"right": None}, TypeError, "right"),
    ({"dilation": 0}, ValueError, "dilation is 0; it must be 1 or more"),
    ({"dilation": 1.0}, TypeError, "dilation"),
    ({"offset": 1.0}, TypeError, "offset"),
)
GLOBAL_TOKENS = of({"length": 5, "tokens": [0]}, *_lengths("length"), *_positions("tokens"))
LONGFORMER = of(
    {"length": 5, "window": 1, "global_tokens": [0]},
    *_lengths("length"),
    *_positions("global_tokens"),
    ({"window": -2}, ValueError, "window"),
    ({"window": 0.5}, TypeError, "window"),
)
BIGBIRD = of(
    {"length": 5, "block_size": 1, "rng": np.random.default_rng(0)},
    *_lengths("length"),
    ({"block_size": 0}, ValueError, "block_size"),
    ({"block_size": (1, 1)}, TypeError, "block_size"),
    ({"num_random": -1}, ValueError, "num_random"),
    ({"num_global": -1}, ValueError, "num_global"),
    ({"window": 2}, ValueError, "window is 2; it must be odd"),
    ({"window": 0}, ValueError, "window"),
    ({"num_random": 1.0}, TypeError, "num_random"),
    ({"rng": 5}, TypeError, "rng is int; it must be a numpy.random.Generator"),
    ({"rng": np.random.RandomState(0)}, TypeError, "rng"),
    ({"rng": None}, TypeError, "rng"),
)
DOCUMENTS = of(
    {"query_ids": [0, 0, 1]},
    ({"query_ids": [0.0, 1.0]}, TypeError, "query_ids is float64; it must be of integers"),
    ({"query_ids": ["a"]}, TypeError, "query_ids"),
    ({"query_ids": [True]}, TypeError, "query_ids"),
    ({"query_ids": 3}, ValueError, "query_ids"),
    ({"key_ids": [0.0]}, TypeError, "key_ids"),
    ({"key_ids": 3}, ValueError, "key_ids"),
    ({"query_ids": np.zeros((2, 3), int), "key_ids": np.zeros((3, 3), int)}, ValueError, "key_ids has shape"),
)
PREFIX = of(
    {"length": 5, "prefix_length": 2},
    *_lengths("length"),
    ({"prefix_length": 6}, ValueError, "prefix_length holds 6; it must lie in 0 … 5"),
    ({"prefix_length": [1, -1]}, ValueError, "prefix_length"),
    ({"prefix_length": 2.0}, TypeError, "prefix_length"),
)
LENGTHS = of(
    {"query_length": 5, "key_length": 7, "key_lengths": [3, 7]},
    *_lengths("query_length", "key_length"),
    ({"key_lengths": [3, 8]}, ValueError, "key_lengths holds 8; it must lie in 0 … 7"),
    ({"key_lengths": -1}, ValueError, "key_lengths"),
    ({"key_lengths": 2**63}, ValueError, "key_lengths"),
    ({"key_lengths": [3.0]}, TypeError, "key_lengths"),
    ({"key_lengths": [True]}, TypeError, "key_lengths"),
)


def _longformer_attention():
    x = np.ones((2, 4, 5, 3), np.float32)
    operands = ("query", "key", "value", "global_query", "global_key", "global_value")
    return of(
        {**dict.fromkeys(operands, x), "window": 2, "global_tokens": [0]},
        *_positions("global_tokens"),
        ({"window": -1}, ValueError, "window is -1; it must be 0 or more"),
        ({"window": 1.0}, TypeError, "window"),
        ({"global_query": x[0, 0, 0]}, ValueError, "global_query has shape"),
        ({"query": x[..., :4, :]}, ValueError, "attn_mask is a BlockMask of shape"),
        ({"key": x[..., :2]}, ValueError, "key has shape"),
        ({"global_value": x[..., :4, :]}, ValueError, "value has shape"),
        ({"kv_lengths": 6}, ValueError, "kv_lengths holds 6"),
        ({"scale": np.inf}, ValueError, "scale"),
        ({"out": np.ones((2, 4, 5, 4), np.float32)}, ValueError, "out has shape"),
    )


LONGFORMER_ATTENTION = _longformer_attention()
