"""Calls of attention's backward functions, made of those of the forward."""

import numpy as np
import oracle
from calls import Call

import attnpy


def gradient_of(function, make_forward):
    """Gradients of all operands that have one, from what the forward gives."""
    of_output = function == "scaled_dot_product_attention_backward"

    def make(size, dtype, option="plain", seed=0):
        rng = np.random.default_rng([seed, *map(ord, f"gradient{size}{option}")])
        call = make_forward(size, dtype, option, seed)
        arguments, results = call.arguments, call()
        stored, real = results[0].dtype, np.float64 if dtype == "float64" else np.float32
        gradient = rng.normal(size=results[0].shape).astype(stored)
        arguments.pop("return_lse", None)
        if of_output:
            arguments |= {"grad_output": gradient, "output": results[0], "lse": results[1]}
            if option in ("scale", "bias", "sinks", "lengths", "together"):
                arguments["grad_lse"] = rng.normal(size=results[1].shape).astype(real)
        else:
            arguments["grad_weights"] = gradient
        arguments["needs"] = tuple(
            name
            for name in attnpy.AttentionGradients._fields
            if arguments.get(name) is not None and np.asarray(oracle.spelt_out(arguments)[name]).dtype != bool
        )
        return Call(function, arguments, call.label, gradient_hidden(arguments, call.hidden))

    return make


def gradient_hidden(arguments, hidden):
    """Of rows that see nothing what belongs to them, but that of the log-sum-exp where the row has a sink."""
    if not hidden:
        return {}
    visible = oracle.visible_keys(arguments)
    rows = arguments.get("rows")
    sees = visible.any(-1)
    counted = sees
    if arguments.get("sinks") is not None:
        L, batch = visible.shape[-2], visible.shape[:-3]
        lengths = np.broadcast_to(arguments.get("query_lengths", L), batch)
        counted = np.broadcast_to(np.arange(L) < lengths[..., None, None], sees.shape)
    of_rows = {"grad_output": ~sees[..., None], "output": ~sees[..., None], "lse": ~counted, "grad_lse": ~counted,
               "grad_weights": ~visible[..., slice(None) if rows is None else np.asarray(rows, int), :]}  # fmt: skip
    return hidden | {
        name: np.broadcast_to(x, np.shape(arguments[name])) for name, x in of_rows.items() if name in arguments
    }
