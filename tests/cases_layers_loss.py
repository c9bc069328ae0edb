"""The rows of embedding, cross_entropy and their gradients: shapes, options, inputs."""

import numpy as np
import refusals_layers_loss as refusals
from calls import DTYPES, Call, Row, named

# The axes of the indices, V, D.
TABLE_SHAPES = [(1, 1, 1), (5, 7, 3), (3, 70, 11, 65), (2, 3, 4, 17), (700, 3, 5), (0, 3, 4), (4, 3, 0), (0, 0, 2)]


def embedding(shape, dtype, option="plain", seed=0):
    rng = np.random.default_rng([seed, *shape])
    *axes, V, D = shape
    arguments = {"indices": rng.integers(0, max(V, 1), axes)}
    if option == "one row":
        arguments["indices"][...] = max(V, 1) - 1
    arguments["table"] = rng.standard_normal((V, D)).astype(DTYPES[dtype])
    return Call("embedding", arguments, named(shape, dtype, option, seed))


def embedding_backward(shape, dtype, option="plain", seed=0):
    call = embedding(shape, dtype, option, seed)
    rng = np.random.default_rng([seed, 1, *shape])
    *axes, V, D = shape
    grad = rng.standard_normal((*axes, D)).astype(DTYPES[dtype])
    arguments = {"grad_output": grad, "indices": call.arguments["indices"], "num_embeddings": V}
    return Call("embedding_backward", arguments, call.label)


SCORE_SHAPES = [(1,), (4, 7), (63, 64), (3, 5, 257), (2, 65), (1031,), (5, 2049), (0, 4), (3, 1), (2, 0, 3), (3, 33000)]
LOSS_OPTIONS = ("plain", "ignored", "smooth", "sum", "none", "wide", "all")


def cross_entropy(shape, dtype, option="plain", seed=0):
    """all: rows that do not count, smoothing, and a loss for each row."""
    rng = np.random.default_rng([seed, *shape, *map(ord, option)])
    spread = 30 if option == "wide" else 3
    logits = (spread * rng.standard_normal(shape)).astype(DTYPES[dtype])
    targets = np.asarray(rng.integers(0, shape[-1], shape[:-1]))
    arguments, hidden = {"logits": logits, "targets": targets}, {}
    if option in ("ignored", "all"):
        left_out = np.asarray(rng.random(shape[:-1]) < 0.4)
        targets[left_out] = -1
        arguments["ignore_index"] = -1
        hidden["logits"] = np.broadcast_to(left_out[..., None], shape)
    if option in ("smooth", "all"):
        arguments["label_smoothing"] = 0.1
    if option in ("sum", "none", "all"):
        arguments["reduction"] = "sum" if option == "sum" else "none"
    return Call("cross_entropy", arguments, named(shape, dtype, option, seed), hidden)


def cross_entropy_backward(shape, dtype, option="plain", seed=0):
    call = cross_entropy(shape, dtype, option, seed)
    rng = np.random.default_rng([seed, 1, *shape])
    real = np.float64 if dtype == "float64" else np.float32
    axes = shape[:-1] if option in ("none", "all") else ()
    grad, hidden = np.asarray(rng.standard_normal(axes)).astype(real), dict(call.hidden)
    if option == "all":
        hidden["grad_output"] = hidden["logits"][..., 0]
    return Call("cross_entropy_backward", {"grad_output": grad, **call.arguments}, call.label, hidden)


LOSS = {
    "embedding": Row(
        embedding, TABLE_SHAPES, ("plain", "one row"), heavy=[((2000, 50, 600), "plain")], refused=refusals.EMBEDDING
    ),
    "embedding_backward": Row(
        embedding_backward, TABLE_SHAPES, ("plain", "one row"), heavy=[((2000, 50, 1200), "plain")],
        refused=refusals.EMBEDDING_BACKWARD,
    ),
    "cross_entropy": Row(
        cross_entropy, SCORE_SHAPES, LOSS_OPTIONS, heavy=[((900, 1531), "ignored")], refused=refusals.CROSS_ENTROPY
    ),
    "cross_entropy_backward": Row(
        cross_entropy_backward, SCORE_SHAPES, LOSS_OPTIONS, heavy=[((900, 1531), "all")],
        refused=refusals.CROSS_ENTROPY_BACKWARD,
    ),
}  # fmt: skip
