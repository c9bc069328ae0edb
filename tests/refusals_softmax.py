"""What the softmax family must refuse."""

import ml_dtypes
import numpy as np
from refusals import _out, _typed, of, ones

X = ones(3, 4, 5)
_SOFTMAX = [
    *_typed("x", X)[:5],
    ({"axis": 3}, ValueError, "axis"),
    ({"axis": -4}, ValueError, "axis"),
    ({"axis": (0, 0)}, ValueError, "axis"),
    ({"axis": (0, -3)}, ValueError, "axis"),
    ({"axis": 0.5}, TypeError, "axis"),
    ({"where": np.ones(4, bool)}, ValueError, "where"),
    ({"where": np.ones((2, 3, 4, 5), bool)}, ValueError, "where"),
    ({"where": "text"}, TypeError, "where"),
    ({"where": np.ones(5)}, TypeError, "where"),
    ({"x": np.float32(1)}, ValueError, "axis"),
]
_BACKWARD = [
    ({"axis": 3}, ValueError, "axis"),
    ({"axis": (0, -3)}, ValueError, "axis"),
    ({"axis": 0.5}, TypeError, "axis"),
    ({"where": np.ones(4, bool)}, ValueError, "where"),
    ({"where": np.ones(5)}, TypeError, "where"),
]
SOFTMAX_BACKWARD = of(
    {"grad_output": X, "output": X},
    *_typed("grad_output", X)[:6],
    *_typed("output", X)[:6],
    *_BACKWARD,
    ({"grad_output": ones(3, 4, 1)}, ValueError, "grad_output has shape.*that of output"),
    ({"grad_output": ones(4, 5)}, ValueError, "grad_output"),
    ({"grad_output": X.astype(np.float16), "output": X.astype(ml_dtypes.bfloat16)}, TypeError, "grad_output.*bfloat16"),
    ({"grad_output": np.float32(1), "output": np.float32(1)}, ValueError, "axis"),
    *_out(3, 4, 5),
)
LOGSUMEXP_BACKWARD = of(
    {"grad_output": ones(3, 4), "x": X, "output": ones(3, 4)},
    *_typed("grad_output", ones(3, 4))[:6],
    *_typed("x", X)[:6],
    *_typed("output", ones(3, 4))[:6],
    *_BACKWARD,
    ({"grad_output": X}, ValueError, "grad_output has shape.*reduced over axis"),
    ({"output": ones(3, 4, 1)}, ValueError, "output has shape.*reduced over axis"),
    ({"keepdims": True}, ValueError, "grad_output"),
    ({"axis": 0}, ValueError, "grad_output"),
    *_out(3, 4, 5),
)
SOFTMAX = of({"x": X}, *_SOFTMAX, *_out(3, 4, 5))
LOGSUMEXP = of({"x": X}, *_SOFTMAX, *_out(3, 4))
