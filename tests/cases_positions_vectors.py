"""The rows of attention with vectors of distances: shapes, options, inputs."""

import numpy as np
import oracle
import oracle_positions_vectors as vectors
import refusals_positions_vectors as refusals
from calls import DTYPES, Call, Row, named
from cases_backward import gradient_hidden

import attnpy

# The plain ones have vectors of their own for each head; shared: one table for all heads and batch elements.
OPTIONS = (
    "plain",
    "causal",
    "offset",
    "window",
    "mask",
    "float_mask",
    "blocks",
    "bias",
    "lengths",
    "scale",
    "shared",
    "alone",
)
OWN = ("shared", "alone")


def _forward(function, options_of, hidden_of):
    """K goes through 0, 1, 5, 37 and 70 with the shape's lengths."""

    def make(size, dtype, option="plain", seed=0):
        rng = np.random.default_rng([seed, *map(ord, f"{function}{size}{option}")])
        batch, H, G, L, S, E, D = size
        stored, real = DTYPES[dtype], np.float64 if dtype == "float64" else np.float32
        shapes = {"query": (*batch, H, L, E), "key": (*batch, G, S, E), "value": (*batch, G, S, D)}
        arguments = {name: rng.normal(size=shape).astype(stored) for name, shape in shapes.items()}
        arguments |= options_of("plain" if option in OWN else option, size, rng, real)
        lead = () if option == "shared" else (*batch, H)
        if "shaw" in function:
            rows = 2 * (0, 1, 5, 37, 70)[(L + S) % 5] + 1
            arguments["key_table"] = rng.normal(size=(*lead, rows, E)).astype(stored)
            arguments["value_table"] = rng.normal(size=(*lead, rows, D)).astype(stored)
            if option == "alone":
                arguments["value_table"] = None
        else:
            causal = option == "causal"
            rows = S if causal else max(L + S - 1, 0)
            if option == "offset":
                rows = S + L + 5  # it is causal: distances of 0 … S - 1
                arguments["causal_offset"] = np.minimum(arguments["causal_offset"], S - L)
            arguments["position_keys"] = rng.normal(size=(*lead, rows, E)).astype(stored)
            arguments["content_bias"] = rng.normal(size=(*lead, E)).astype(real) / 2
            arguments["position_bias"] = rng.normal(size=(*lead, E)).astype(real) / 2
            if option == "alone":
                arguments["content_bias"] = None
        call = Call(function, arguments | {"return_lse": True}, named(size, dtype, option, seed))
        call.hidden = hidden_of(arguments) | _unmet(arguments)
        return call

    return make


def _unmet(arguments):
    """Vectors that no visible pair meets."""
    plain = oracle.spelt_out(arguments)
    visible, hidden = oracle.visible_keys(plain), {}
    for name in ("key_table", "value_table", "position_keys"):
        x = arguments.get(name)
        if x is None or x.size == 0:
            continue
        number = vectors.numbers(plain, visible, x.shape[-2], name != "position_keys")
        met = np.zeros((*visible.shape[:-2], x.shape[-2]), bool)
        places = np.indices(visible.shape, sparse=True)[:-2]
        np.logical_or.at(met, (*places, number), visible)
        met = met if x.ndim > 2 else met.any(tuple(range(met.ndim - 1)))
        hidden[name] = np.broadcast_to(~met[..., None], x.shape)
    return hidden


NEEDS = attnpy.RelativeAttentionGradients._fields


def _backward(function, forward):
    def make(size, dtype, option="plain", seed=0):
        rng = np.random.default_rng([seed, *map(ord, f"gradient{size}{option}")])
        call = forward(size, dtype, option, seed)
        arguments, (output, lse) = dict(call.arguments), call()
        del arguments["return_lse"]
        arguments |= {"grad_output": rng.normal(size=output.shape).astype(output.dtype), "output": output, "lse": lse}
        if option in ("scale", "bias", "lengths"):
            arguments["grad_lse"] = rng.normal(size=lse.shape).astype(lse.dtype)
        arguments["needs"] = tuple(
            name for name in NEEDS
            if arguments.get(name) is not None and np.asarray(oracle.spelt_out(arguments)[name]).dtype != bool
        )  # fmt: skip
        return Call(function, arguments, call.label, gradient_hidden(arguments, call.hidden))

    return make


# Sizes of cases.py: batch, H, G, L, S, E, D.
HEAVY = [
    (((2,), 4, 2, 257, 257, 32, 32), "causal"),
    (((), 2, 2, 193, 331, 17, 16), "bias"),
    (((), 1, 1, 513, 1025, 16, 16), "plain"),
    (((3,), 2, 1, 129, 200, 8, 8), "shared"),
]


def vectors_row(function, shapes, options_of, hidden_of):
    """The row of one of the four functions; there is no kernel of its own for one query row."""
    size = type(shapes[0])
    forward = _forward(function.removesuffix("_backward"), options_of, hidden_of)
    make = _backward(function, forward) if function.endswith("_backward") else forward
    refused = getattr(refusals, function.removeprefix("relative_attention_").upper())
    heavy = [(size(*sizes), option) for sizes, option in HEAVY]
    return Row(make, [*shapes[:7], *shapes[-8:]], OPTIONS, heavy=heavy, batched=True, refused=refused)
