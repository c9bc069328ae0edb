"""The rows of linear, its gradients and PackedWeight: shapes, options, inputs."""

from typing import NamedTuple

import numpy as np
import refusals_layers_linear as refusals
from calls import DTYPES, Call, Row, named

import attnpy


class Size(NamedTuple):
    """Batch axes, input and output features."""

    batch: tuple
    K: int
    N: int

    def __str__(self):
        return f"{'x'.join(map(str, self.batch)) or '-'}K{self.K}N{self.N}"


# 384 terms are a block, 64 (float64: 32) outputs a panel, 192 or 384 rows a task, tiles of 6, 12, 16 and fewer rows.
SHAPES = [
    Size((), 1, 1), Size((2, 3), 7, 5), Size((13,), 31, 33), Size((5,), 64, 65), Size((3, 9), 17, 63),
    Size((), 385, 130), Size((2, 7), 769, 16), Size((33,), 384, 31), Size((195,), 9, 70), Size((1, 387), 3, 2),
    Size((0,), 5, 3), Size((4,), 0, 3), Size((4,), 3, 0), Size((2, 0), 0, 3),
]  # fmt: skip
OPTIONS = (
    "plain",
    "bias",
    "relu",
    "gelu",
    "gelu_tanh",
    "silu",
    "residual",
    "row",
    "packed",
    "half",
    "int8",
    "together",
)
GRADIENT_OPTIONS = ("plain", "bias", "relu", "gelu", "gelu_tanh", "silu", "kept", "one", "int8")
HEAVY = [
    (Size((257,), 300, 129), "together"), (Size((2, 400), 130, 65), "gelu"), (Size((4,), 1000, 700), "plain"),
]  # fmt: skip
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")


def weights(rng, size, dtype, option):
    """(N, K), of variance 1 / K."""
    w = (rng.normal(size=(size.N, size.K)) / max(size.K, 1) ** 0.5).astype(DTYPES[dtype])
    if option in ("packed", "together"):
        return attnpy.PackedWeight(w)
    if option == "half":
        return attnpy.PackedWeight(w, dtype if dtype == "bfloat16" else np.float16)
    return attnpy.PackedWeight(w, np.int8) if option == "int8" else w


def linear(size, dtype, option="plain", seed=0):
    rng = np.random.default_rng([seed, *map(ord, f"{size}{option}")])
    real = DTYPES[dtype]
    arguments = {"x": (2 * rng.normal(size=(*size.batch, size.K))).astype(real)}
    arguments["weight"] = weights(rng, size, dtype, option)
    if option not in ("plain", "residual"):
        arguments["bias"] = rng.normal(size=size.N).astype(real)
    if option in ACTIVATIONS or option == "together":
        arguments["activation"] = "gelu_tanh" if option == "together" else option
    if option in ("residual", "together"):
        arguments["residual"] = rng.normal(size=(*size.batch, size.N)).astype(np.float32)
    if option == "row":
        arguments["residual"] = rng.normal(size=(size.N,)).astype(real)
    return Call("linear", arguments, named(size, dtype, option, seed))


def backward(size, dtype, option="plain", seed=0):
    """kept: a preactivation that was kept; one: of x alone."""
    call = linear(size, dtype, {"kept": "silu", "one": "plain"}.get(option, option), seed)
    arguments = call.arguments
    rng = np.random.default_rng([seed, *map(ord, f"gradient{size}{option}")])
    arguments["grad_output"] = rng.normal(size=(*size.batch, size.N)).astype(DTYPES[dtype])
    needs = {"one": ("x",), "plain": ("x", "weight"), "int8": ("x", "bias")}.get(option, ("x", "weight", "bias"))
    if option == "kept":
        z = attnpy.reference.linear(arguments["x"], arguments["weight"], arguments["bias"])
        arguments["preactivation"] = np.asarray(z).astype(DTYPES[dtype])
    return Call("linear_backward", arguments | {"needs": needs}, named(size, dtype, option, seed))


LINEAR = {
    "linear": Row(linear, SHAPES, OPTIONS, heavy=HEAVY, batched=True, refused=refusals.LINEAR),
    "linear_backward": Row(
        backward, SHAPES, GRADIENT_OPTIONS, heavy=[(HEAVY[0][0], "gelu"), (HEAVY[1][0], "bias")],
        refused=refusals.BACKWARD,
    ),
    "LinearGradients": Row(refused=refusals.GRADIENTS),
    "PackedWeight": Row(refused=refusals.PACKED),
}  # fmt: skip
