"""The rows of softmax, log_softmax, logsumexp and their gradients: shapes, options, inputs."""

import numpy as np
from calls import DTYPES, Call, Row, named

import attnpy

SOFTMAX_SHAPES = [
    (1,),
    (7,),
    (63, 64),
    (3, 5, 257),
    (2, 65),
    (2, 127, 3),
    (1031,),
    (5, 2049),
    (0, 4),
    (4, 0),
    (2, 0, 3),
    (3, 16385),
]
SOFTMAX_OPTIONS = ("plain", "where", "first_axis", "two_axes", "wide")


def softmax(function):
    def make(shape, dtype, option="plain", seed=0):
        rng = np.random.default_rng([seed, *shape])
        spread = 30 if option == "wide" else 3
        arguments = {"x": (spread * rng.normal(size=shape)).astype(DTYPES[dtype])}
        if option in ("first_axis", "two_axes"):
            arguments["axis"] = 0 if option == "first_axis" else tuple({0, len(shape) - 1})
        if function == "logsumexp" and option == "two_axes":
            arguments["keepdims"] = True
        hidden = {}
        if option == "where":
            keep = rng.random(shape) < 0.7
            keep[..., :1] = keep[..., :1] & (len(shape) == 1)
            if len(shape) > 1:
                keep[:1] = False  # a row of which nothing is kept
            arguments["where"], hidden["x"] = keep, ~keep
        return Call(function, arguments, named(shape, dtype, option, seed), hidden)

    return make


def softmax_backward(function):
    """The forward of the same name, what it returned, and a gradient."""
    forward = function.removesuffix("_backward")

    def make(shape, dtype, option="plain", seed=0):
        call = softmax(forward)(shape, dtype, option, seed)
        rng = np.random.default_rng([seed, 1, *shape])
        real = DTYPES[dtype]
        given = {k: call.arguments[k] for k in ("axis", "where", "keepdims") if k in call.arguments}
        output = np.asarray(getattr(attnpy.reference, forward)(**call.arguments)).astype(real)
        arrays = {"grad_output": rng.normal(size=output.shape).astype(real)}
        arrays |= {"x": call.arguments["x"], "output": output} if forward == "logsumexp" else {"output": output}
        hidden = {}
        if "where" in given:
            left_out = call.hidden["x"]
            nothing = left_out.all(-1) if forward == "logsumexp" else left_out
            hidden = {name: left_out if name == "x" else nothing for name in arrays}
        return Call(function, arrays | given, call.label, hidden)

    return make


SOFTMAX_HEAVY = [((301, 1031), "where"), ((257, 513), "first_axis")]


def softmax_row(function, refused, make=softmax):
    return Row(make(function), SOFTMAX_SHAPES, SOFTMAX_OPTIONS, heavy=SOFTMAX_HEAVY, batched=True, refused=refused)
