"""The rows of activations, gates and normalisation, and of their gradients: shapes, options, inputs."""

import numpy as np
import refusals_layers
from calls import DTYPES, Call, Row, named

ELEMENT_SHAPES = [
    (1,),
    (7,),
    (63, 64),
    (3, 5, 257),
    (2, 127, 3),
    (5, 2049),
    (0, 4),
    (4, 0),
    (2, 0, 3),
    (16451,),
]
ROW_SHAPES = [(1,), (7,), (63, 64), (3, 5, 257), (2, 65), (2, 127, 3), (1031,), (5, 2049), (0, 4), (4, 0), (2, 0, 3)]
ROW_SHAPES += [(3, 16385)]  # longer than what is kept of a row


def _random(shape, dtype, seed, option):
    rng = np.random.default_rng([seed, *shape, *map(ord, option)])
    return lambda *size, spread=1.0: (spread * rng.standard_normal(size)).astype(DTYPES[dtype])


def activation(function):
    """Gates: an array of their own, one that broadcasts, or half of x."""
    gated, backward = "glu" in function, function.endswith("_backward")

    def make(shape, dtype, option="plain", seed=0):
        normal = _random(shape, dtype, seed, option)
        spread = 30.0 if option == "wide" else 2.5
        doubled = (*shape[:-1], 2 * shape[-1]) if option == "halves" else shape
        arguments = {"grad_output": normal(*shape)} if backward else {}
        arguments["x"] = normal(*doubled, spread=spread)
        if gated and option != "halves":
            arguments["gate"] = normal(*(shape[-1:] if option == "broadcast" else shape), spread=spread)
        if option == "tanh":
            arguments["approximate"] = "tanh"
        return Call(function, arguments, named(shape, dtype, option, seed))

    return make


def activation_row(function, refused):
    options = ["plain", "wide"]
    options += ["tanh"] * function.startswith("ge") + ["halves"] * ("glu" in function)
    options += ["broadcast"] * (function in ("swiglu", "geglu"))
    return Row(activation(function), ELEMENT_SHAPES, tuple(options), heavy=[((1024, 601), "plain")], batched=True,
               refused=refused)  # fmt: skip


NORM_OPTIONS = ("plain", "affine", "first_axis", "two_axes", "far", "residual")


def norm(function):
    backward, centred = function.endswith("_backward"), function.startswith("layer")

    def make(shape, dtype, option="plain", seed=0):
        normal = _random(shape, dtype, seed, option)
        arguments = {"grad_output": normal(*shape)} if backward else {}
        arguments["x"] = normal(*shape, spread=3.0)
        if option == "far":
            arguments["x"] = (arguments["x"].astype(np.float64) + 300).astype(DTYPES[dtype])
        if option in ("first_axis", "two_axes"):
            arguments["axis"] = 0 if option == "first_axis" else (0, len(shape) - 1)
        row = {"first_axis": shape[:1], "two_axes": (shape[0], shape[-1])}.get(option, shape[-1:])
        if option != "plain":
            real = np.float64 if dtype == "float64" else np.float32
            arguments["weight"] = (1 + 0.2 * normal(*row).astype(real)).astype(real)
            if centred and not backward:
                arguments["bias"] = normal(*row).astype(real)
        if option == "residual" and backward:
            arguments["grad_sum"] = normal(*shape)
        elif option == "residual":
            arguments |= {"residual": normal(*shape), "return_sum": True, "eps": 0.01}
        return Call(function, arguments, named(shape, dtype, option, seed))

    return make


def norm_row(function, refused):
    heavy = [((301, 1031), "residual"), ((257, 513), "first_axis")]
    return Row(norm(function), ROW_SHAPES, NORM_OPTIONS, heavy=heavy, batched=not function.endswith("_backward"),
               refused=refused)  # fmt: skip


LAYERS = {
    "layer_norm": norm_row("layer_norm", refusals_layers.LAYER_NORM),
    "rms_norm": norm_row("rms_norm", refusals_layers.RMS_NORM),
    "layer_norm_backward": norm_row("layer_norm_backward", refusals_layers.NORM_BACKWARD),
    "rms_norm_backward": norm_row("rms_norm_backward", refusals_layers.NORM_BACKWARD),
    "gelu": activation_row("gelu", refusals_layers.GELU),
    "silu": activation_row("silu", refusals_layers.ELEMENT),
    "relu": activation_row("relu", refusals_layers.ELEMENT),
    "swiglu": activation_row("swiglu", refusals_layers.GATED),
    "geglu": activation_row("geglu", refusals_layers.GEGLU),
    "gelu_backward": activation_row("gelu_backward", refusals_layers.GELU_BACKWARD),
    "silu_backward": activation_row("silu_backward", refusals_layers.ELEMENT_BACKWARD),
    "relu_backward": activation_row("relu_backward", refusals_layers.ELEMENT_BACKWARD),
    "swiglu_backward": activation_row("swiglu_backward", refusals_layers.GATED_BACKWARD),
    "geglu_backward": activation_row("geglu_backward", refusals_layers.GEGLU_BACKWARD),
}
