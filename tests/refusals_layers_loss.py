"""Inputs that embedding and cross_entropy must refuse: see refusals.py."""

import numpy as np
from refusals import _out, _typed, of, ones

TABLE, INDICES, GRAD = ones(5, 4), np.array([[0, 4, 2], [1, 1, 3]]), ones(2, 3, 4)
_INDICES = [
    ({"indices": np.array([0, 5])}, ValueError, "indices holds 5; each must be in 0 ... 4"),
    ({"indices": np.array([0, -1])}, ValueError, "indices holds -1"),
    ({"indices": [2**70]}, ValueError, "indices"),
    ({"indices": np.array([0.0])}, TypeError, "indices"),
    ({"indices": [True]}, TypeError, "indices"),
    ({"indices": ["a"]}, TypeError, "indices"),
]
EMBEDDING = of(
    {"indices": INDICES, "table": TABLE},
    *_INDICES,
    *_typed("table", TABLE),
    ({"table": ones(5)}, ValueError, "table has shape"),
    ({"table": ones(1, 5, 4)}, ValueError, "table has shape"),
    ({"table": ones(0, 4)}, ValueError, "indices"),
    *_out(2, 3, 4),
)
EMBEDDING_BACKWARD = of(
    {"grad_output": GRAD, "indices": INDICES, "num_embeddings": 5},
    *_INDICES,
    *_typed("grad_output", GRAD),
    ({"grad_output": ones(2, 3)}, ValueError, "grad_output has shape"),
    ({"grad_output": ones(3, 2, 4)}, ValueError, "grad_output has shape"),
    ({"num_embeddings": 4}, ValueError, "indices holds 4"),
    ({"num_embeddings": -1}, ValueError, "num_embeddings"),
    ({"num_embeddings": 5.0}, TypeError, "num_embeddings"),
    *_out(5, 4),
)
LOGITS, TARGETS = ones(2, 3, 7), np.array([[0, 6, 2], [-100, 1, 3]])
_LOSS = [
    *_typed("logits", LOGITS)[:5],
    ({"logits": np.float32(1)}, ValueError, "logits has shape"),
    ({"targets": TARGETS.astype(float)}, TypeError, "targets"),
    ({"targets": TARGETS[0]}, ValueError, "targets has shape"),
    ({"targets": TARGETS[..., None]}, ValueError, "targets has shape"),
    ({"targets": TARGETS + 1}, ValueError, "targets holds 7; each must be in 0 ... 6, or ignore_index, -100"),
    ({"ignore_index": -1}, ValueError, "targets holds -100"),
    ({"ignore_index": 0.5}, TypeError, "ignore_index"),
    ({"label_smoothing": -0.1}, ValueError, "label_smoothing"),
    ({"label_smoothing": 1.1}, ValueError, "label_smoothing"),
    ({"label_smoothing": float("nan")}, ValueError, "label_smoothing"),
    ({"label_smoothing": "much"}, TypeError, "label_smoothing"),
    ({"reduction": "max"}, ValueError, "reduction"),
    ({"reduction": None}, TypeError, "reduction"),
]
CROSS_ENTROPY = [
    *of({"logits": LOGITS, "targets": TARGETS, "reduction": "none"}, *_out(2, 3)),
    *of({"logits": LOGITS, "targets": TARGETS}, *_LOSS, ({"out": ones(1)}, ValueError, "out")),
]
CROSS_ENTROPY_BACKWARD = of(
    {"grad_output": np.float32(1), "logits": LOGITS, "targets": TARGETS},
    *_LOSS,
    ({"grad_output": ones(2, 3)}, ValueError, "grad_output has shape"),
    ({"reduction": "none"}, ValueError, "grad_output has shape"),
    ({"grad_output": 1j}, TypeError, "grad_output"),
    *_out(2, 3, 7),
)
