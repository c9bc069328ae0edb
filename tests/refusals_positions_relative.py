"""What ALiBi's and T5's helpers must refuse."""

import numpy as np
from refusals import _out, _overlapping, _read_only, _typed, of, ones

NOT_LENGTHS = [
    ({"query_length": -1}, ValueError, "query_length"),
    ({"query_length": 2.0}, TypeError, "query_length"),
    ({"key_length": -5}, ValueError, "key_length"),
    ({"key_length": "7"}, TypeError, "key_length"),
]
ALIBI_SLOPES = of(
    {"num_heads": 8},
    ({"num_heads": -1}, ValueError, "num_heads is -1"),
    ({"num_heads": 8.0}, TypeError, "num_heads"),
    ({"num_heads": True}, TypeError, "num_heads"),
    ({"num_heads": [8]}, TypeError, "num_heads"),
)
ALIBI_BIAS = of(
    {"slopes": ones(2, 4), "query_length": 6, "key_length": 7},
    *_typed("slopes", ones(2, 4)),
    *NOT_LENGTHS,
    *_out(2, 4, 6, 7),
    ({"slopes": np.float32(1)}, ValueError, "slopes"),
    ({"offset": 1.0}, TypeError, "offset"),
    ({"offset": [1, 2, 3]}, ValueError, "offset"),
    ({"query_length": 2**62, "key_length": 2**62}, MemoryError, ""),
)
NUMBERS = [
    ({"max_distance": 8}, ValueError, "max_distance is 8; it must be 9 or more"),
    ({"max_distance": 2**70}, ValueError, "max_distance"),
    ({"max_distance": 128.0}, TypeError, "max_distance"),
]
PLACE = ones(5, dtype=np.int64)
BUCKET = of(
    {"relative_position": np.arange(5)},
    *NUMBERS,
    ({"relative_position": np.arange(5.0)}, TypeError, "relative_position is float64"),
    ({"relative_position": np.ones(5, bool)}, TypeError, "relative_position"),
    ({"relative_position": "5"}, TypeError, "relative_position"),
    ({"num_buckets": 3}, ValueError, "num_buckets is 3; it must be 4 or more"),
    ({"num_buckets": 1, "bidirectional": False}, ValueError, "num_buckets"),
    ({"num_buckets": 2**30}, ValueError, "num_buckets"),
    ({"num_buckets": None}, TypeError, "num_buckets"),
    ({"out": ones(5)}, TypeError, "out"),
    ({"out": [0] * 5}, TypeError, "out"),
    ({"out": PLACE.astype(np.int64().dtype.newbyteorder())}, TypeError, "out"),
    ({"out": PLACE[:4]}, ValueError, "out"),
    ({"out": _read_only(5).astype(np.int64).view()}, ValueError, "read-only"),
)
BUCKET[-1].change["out"].setflags(write=False)
T5 = of(
    {"table": ones(32, 4), "query_length": 6, "key_length": 7},
    *_typed("table", ones(32, 4)),
    *NOT_LENGTHS,
    *NUMBERS,
    *_out(4, 1, 13),
    ({"table": ones(32)}, ValueError, "table has shape"),
    ({"table": ones(2, 32, 4)}, ValueError, "table has shape"),
    ({"table": ones(3, 4)}, ValueError, "num_buckets is 3"),
    ({"offset": 1.5}, TypeError, "offset"),
    ({"offset": [1]}, TypeError, "offset"),
)
T5_BACKWARD = of(
    {"grad_output": ones(4, 1, 13), "table": ones(32, 4), "query_length": 6, "key_length": 7},
    *_typed("table", ones(32, 4)),
    *_typed("grad_output", ones(4, 1, 13)),
    *NOT_LENGTHS,
    *NUMBERS,
    ({"grad_output": ones(4, 1, 12)}, ValueError, r"grad_output has shape \(4, 1, 12\); it must be \(4, 1, 13\)"),
    ({"grad_output": ones(4, 2, 13)}, ValueError, "grad_output"),
    ({"grad_output": ones(4, 13)}, ValueError, "grad_output"),
    ({"table": ones(32, 5)}, ValueError, "table"),
    ({"table": ones(32)}, ValueError, "table"),
    ({"out": ones(32, 5)}, ValueError, "out"),
    ({"out": ones(32, 4, dtype=np.float64)}, TypeError, "out"),
    ({"out": ones(32, 4).tolist()}, TypeError, "out"),
    ({"out": _read_only(32, 4)}, ValueError, "out"),
    ({"out": _overlapping(32, 4)}, ValueError, "out"),
)
