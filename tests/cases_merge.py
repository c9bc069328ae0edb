"""The rows of merge_attention, its gradients, and dropout_mask: shapes, options, inputs."""

import numpy as np
from calls import DTYPES, Call, all_of, named, with_holes

import attnpy

MERGE_SHAPES = [(1, 1, 1, 1), (3, 2, 5, 7), (5, 3, 17, 65), (2, 7, 129, 4), (4, 0, 3, 2), (2, 3, 5, 0), (33, 2, 3, 16)]

DROPOUT_SHAPES = [(1, 1), (3, 301), (2, 3, 7, 129), (0, 3, 2), (2, 3, 0)]


def merge(shape, dtype, option="plain", seed=0):
    """(parts, ..., rows, D)"""
    rng = np.random.default_rng([seed, *shape])
    lses = (3 * rng.normal(size=shape[:-1])).astype(np.float64 if dtype == "float64" else np.float32)
    if option == "empty_parts":
        lses = with_holes(rng, lses, 0.4)
        lses[:, ..., :1] = -np.inf
    outputs = rng.normal(size=shape).astype(DTYPES[dtype])
    hidden = np.broadcast_to((lses == -np.inf)[..., None], shape)
    return Call(
        "merge_attention", {"outputs": outputs, "lses": lses}, named(shape, dtype, option, seed), {"outputs": hidden}
    )


def merge_backward(shape, dtype, option="plain", seed=0):
    """broadcast: outputs that batch elements share, beside log-sum-exps that they do not."""
    call = merge(shape, dtype, option, seed)
    outputs, lses = call.arguments["outputs"], call.arguments["lses"]
    rng, real = np.random.default_rng([seed, 1, *shape]), outputs.dtype
    outputs = outputs[:, :1] if option == "broadcast" and outputs.size else outputs
    output, lse = attnpy.reference.merge_attention(list(outputs), list(lses))
    arguments = {
        "grad_output": rng.normal(size=shape[1:]).astype(real), "outputs": outputs, "lses": lses,
        "output": output.astype(real), "lse": lse.astype(lses.dtype),
    }  # fmt: skip
    if option == "grad_lse":
        arguments["grad_lse"] = rng.normal(size=lse.shape).astype(lses.dtype)
    nothing = (lses == -np.inf).all(0)
    hidden = {"outputs": all_of(call.hidden["outputs"], outputs.shape), "lse": nothing}
    hidden |= {name: np.broadcast_to(nothing[..., None], shape[1:]) for name in ("grad_output", "output")}
    return Call("merge_attention_backward", arguments, call.label, hidden)


def dropout(shape, dtype, option="plain", seed=0):
    given = {
        "shape": shape,
        "dropout_p": 0.25 if option == "plain" else 0.9,
        "key": attnpy.DropoutKey([1, 2, 3, seed]),
        "dtype": DTYPES.get(dtype, bool),
    }
    return Call("dropout_mask", given, named(shape, dtype, option, seed))
