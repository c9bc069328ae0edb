"""What linear, its gradients and PackedWeight refuse."""

import ml_dtypes
import numpy as np
import refusals
from refusals import of, ones

import attnpy

X, W, B = ones(2, 3, 5), ones(4, 5), ones(4)  # K 5, N 4
OPERANDS = [
    *refusals._typed("x", X),
    *refusals._typed("weight", W)[:6],
    *refusals._typed("bias", B),
    ({"x": X.astype(np.float16), "weight": W.astype(ml_dtypes.bfloat16)}, TypeError, "weight.*bfloat16"),
    ({"x": np.float32(1)}, ValueError, "x has shape"),
    ({"x": ones(2, 3, 4)}, ValueError, "weight has shape.*its last axis must be 4, as in x"),
    ({"weight": ones(5)}, ValueError, r"weight has shape.*\(out_features, in_features\)"),
    ({"weight": ones(1, 4, 5)}, ValueError, "weight"),
    ({"weight": attnpy.PackedWeight(ones(4, 6))}, ValueError, "x has shape|weight"),
    ({"bias": ones(5)}, ValueError, r"bias has shape \(5,\); it must be \(4,\)"),
    ({"bias": ones(1, 4)}, ValueError, "bias"),
    ({"bias": np.float32(1)}, ValueError, "bias"),
    ({"activation": "tanh"}, ValueError, "activation is 'tanh'"),
    ({"activation": 1}, TypeError, "activation"),
]
LINEAR = of(
    {"x": X, "weight": W},
    *OPERANDS,
    *refusals._typed("residual", ones(2, 3, 4)),
    ({"residual": ones(2, 3, 5)}, ValueError, r"residual has shape.*must broadcast to \(2, 3, 4\)"),
    ({"residual": ones(1, 2, 3, 4)}, ValueError, "residual"),
    ({"residual": ones(2, 1, 2, 4)}, ValueError, "residual"),
    *refusals._out(2, 3, 4),
)
G = ones(2, 3, 4)
BACKWARD = of(
    {"grad_output": G, "x": X, "weight": W, "bias": B},
    *OPERANDS,
    *refusals._typed("grad_output", G),
    *refusals._typed("preactivation", G)[:6],
    ({"grad_output": None}, TypeError, "grad_output"),
    ({"grad_output": ones(2, 3, 5)}, ValueError, "grad_output"),
    ({"grad_output": ones(3, 4)}, ValueError, "grad_output has shape"),
    ({"grad_output": ones(2, 1, 4)}, ValueError, "grad_output has shape"),
    ({"grad_output": ones(7, 2, 3, 4)}, ValueError, "x has shape"),
    ({"grad_output": ones(2, 2, 4)}, ValueError, "grad_output"),
    ({"preactivation": ones(3, 4), "activation": "relu"}, ValueError, "preactivation"),
    ({"needs": "weight"}, TypeError, "needs"),
    ({"needs": None}, TypeError, "needs"),
    ({"needs": (0,)}, TypeError, "needs"),
    ({"needs": ("x", "weights")}, ValueError, "needs.*'weights'"),
    ({"needs": ("x", "x")}, ValueError, "needs.*'x' twice"),
    ({"needs": ("bias",), "bias": None}, ValueError, "needs.*bias"),
    ({"needs": ("weight",), "weight": attnpy.PackedWeight(W)}, ValueError, "needs.*weight.*PackedWeight"),
    ({"out": ones(2, 3, 5)}, TypeError, "out.*mapping"),
    ({"out": {"bias": ones(4)}}, ValueError, "out.*'bias'"),
    ({"out": {"x": ones(2, 3, 4)}}, ValueError, r"out\['x'\]"),
    ({"out": {"weight": ones(4, 5, dtype=np.float64)}}, TypeError, r"out\['weight'\]"),
    ({"out": {"x": X.tolist()}}, TypeError, r"out\['x'\]"),
    ({"out": {"weight": refusals._read_only(4, 5)}}, ValueError, r"out\['weight'\]"),
    ({"out": {"weight": refusals._overlapping(4, 5)}}, ValueError, r"out\['weight'\]"),
)
GRADIENTS = of({}, ({"gradient": 1}, TypeError, "gradient"))
PACKED = of(
    {"weight": W},
    *[row for row in refusals._typed("weight", W) if not isinstance(row[0]["weight"], refusals.Text)],
    ({"weight": ones(5)}, ValueError, "weight has shape"),
    ({"weight": ones(2, 4, 5)}, ValueError, "weight has shape"),
    ({"weight": "text"}, TypeError, "weight"),
    ({"dtype": np.int16}, TypeError, "dtype is int16"),
    ({"dtype": complex}, TypeError, "dtype"),
    ({"dtype": "nothing"}, TypeError, "nothing"),
    ({"weight": np.full((2, 2), np.nan), "dtype": np.int8}, ValueError, "weight holds NaN"),
    ({"weight": np.full((2, 2), 1e300), "dtype": "int8"}, ValueError, "beyond float32"),
)
