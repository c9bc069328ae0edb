"""Inputs that layers must refuse: see refusals.py."""

import ml_dtypes
import numpy as np
from refusals import _out, _read_only, _typed, of, ones

X, ROW = ones(3, 4, 6), ones(6)
MIXED = {"x": X.astype(np.float16), "grad_output": X.astype(ml_dtypes.bfloat16)}
APPROXIMATE = [({"approximate": "erf"}, ValueError, "approximate"), ({"approximate": None}, TypeError, "approximate")]

ELEMENT = of({"x": X}, *_typed("x", X), *_out(3, 4, 6))
GELU = [*ELEMENT, *of({"x": X}, *APPROXIMATE)]
ELEMENT_BACKWARD = of(
    {"grad_output": X, "x": X},
    *_typed("grad_output", X)[:6],
    *_typed("x", X)[:6],
    (MIXED, TypeError, "bfloat16"),
    ({"grad_output": ones(3, 4, 1)}, ValueError, "grad_output has shape"),
    ({"x": ROW}, ValueError, "grad_output"),
    *_out(3, 4, 6),
)
GELU_BACKWARD = [*ELEMENT_BACKWARD, *of({"grad_output": X, "x": X}, *APPROXIMATE)]
GATED = of(
    {"x": X, "gate": X},
    *_typed("x", X)[:6],
    *_typed("gate", X)[:6],
    ({"gate": ones(5)}, ValueError, "gate"),
    ({"gate": None, "x": ones(3, 5)}, ValueError, "x has shape.*even"),
    ({"gate": None, "x": np.float32(1)}, ValueError, "x has shape.*even"),
    *_out(3, 4, 6),
)
GEGLU = [*GATED, *of({"x": X, "gate": X}, *APPROXIMATE)]
GATED_BACKWARD = of(
    {"grad_output": X, "x": X, "gate": X},
    *_typed("grad_output", X)[:6],
    *_typed("gate", X)[:6],
    ({"grad_output": ROW}, ValueError, "grad_output has shape"),
    ({"gate": ROW}, ValueError, "gate has shape"),
    ({"x": ROW}, ValueError, "x has shape"),
    ({"gate": None}, ValueError, "grad_output has shape"),
    ({"out": X.copy()}, TypeError, "out must be a tuple"),
    ({"out": (None,)}, ValueError, "out has 1 entries"),
    ({"out": (None, ones(3, 4, 5))}, ValueError, r"out\[1\]"),
    ({"out": (_read_only(3, 4, 6), None)}, ValueError, r"out\[0\]"),
    ({"out": (X,) * 2}, ValueError, "share"),
)
GEGLU_BACKWARD = [*GATED_BACKWARD, *of({"grad_output": X, "x": X, "gate": X}, *APPROXIMATE)]

_AXES = [
    ({"axis": 3}, ValueError, "axis"),
    ({"axis": (0, -3)}, ValueError, "axis"),
    ({"axis": 0.5}, TypeError, "axis"),
    ({"axis": ()}, ValueError, "axis is empty"),
    ({"eps": -1e-5}, ValueError, "eps"),
    ({"eps": float("nan")}, ValueError, "eps"),
    ({"eps": "small"}, TypeError, "eps"),
    ({"weight": ones(5)}, ValueError, "weight has shape"),
    ({"weight": ones(3, 4, 6)}, ValueError, "weight has shape"),
    ({"weight": ROW, "axis": (0, 2)}, ValueError, "weight has shape"),
    ({"weight": ROW.astype(complex)}, TypeError, "weight"),
]
RMS_NORM = of(
    {"x": X},
    *_typed("x", X),
    *_AXES,
    *_out(3, 4, 6),
    ({"residual": ROW}, ValueError, "residual has shape"),
    ({"residual": X.astype(complex)}, TypeError, "residual"),
    ({"x": X.astype(np.float16), "residual": X.astype(ml_dtypes.bfloat16)}, TypeError, "bfloat16"),
    ({"return_sum": "yes"}, TypeError, "return_sum"),
    ({"return_sum": True, "out": X.copy()}, TypeError, "out must be a tuple"),
    ({"return_sum": True, "out": (X.copy(),)}, ValueError, "out has 1 entries"),
    ({"return_sum": True, "out": (None, ones(3, 4))}, ValueError, r"out\[1\]"),
    ({"x": np.float32(1)}, ValueError, "axis"),
)
LAYER_NORM = [
    *RMS_NORM,
    *of({"x": X}, ({"bias": ones(5)}, ValueError, "bias has shape"), ({"bias": ROW.astype(object)}, TypeError, "bias")),
]
NORM_BACKWARD = of(
    {"grad_output": X, "x": X},
    *_typed("grad_output", X)[:6],
    *_typed("x", X)[:6],
    *_AXES,
    (MIXED, TypeError, "bfloat16"),
    ({"grad_output": ROW}, ValueError, "grad_output has shape"),
    ({"grad_sum": ROW}, ValueError, "grad_sum has shape"),
    ({"out": X.copy()}, TypeError, "out must be a tuple"),
    ({"out": (None,)}, ValueError, "out has 1 entries"),
)
