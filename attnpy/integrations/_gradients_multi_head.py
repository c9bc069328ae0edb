"""The rule of multi_head_attention: projections, attention, a projection, each by its own gradient."""

import numpy as np

from .._native import core as _core
from ._names import ATTENTION, GRADIENTS
from ._rule import or_zeros

SIDES = ("query", "key", "value")
MULTI_HEAD = (*SIDES, *(f"{name}_weight" for name in (*SIDES, "output", "qkv")),
              *(f"{name}_bias" for name in (*SIDES, "output", "qkv")), "num_heads", "num_kv_heads",
              *ATTENTION[3:-2], "need_weights", "out")  # fmt: skip
MULTI_HEAD_OPERANDS = frozenset(MULTI_HEAD[:13]) | (frozenset(GRADIENTS) & frozenset(MULTI_HEAD))


def multi_head(arguments):
    given = dict(zip(MULTI_HEAD, arguments))
    options = arguments[15:-2]  # from attn_mask to dropout_key
    heads = [
        _as_heads(_core.linear(given[side], weight, bias, None, None, None), number)
        for side, weight, bias, number in _projections(given)
    ]
    output, lse = _core.scaled_dot_product_attention(*heads, *options, True, None)
    joined = _side_by_side(output)
    result = _core.linear(joined, given["output_weight"], given["output_bias"], None, None, None)
    if not given["need_weights"]:
        return (result,), (*heads, output, lse, joined)
    weights = _core.attention_weights(*heads[:2], options[0], *options[2:-1], None, None)
    return (result, weights), (*heads, output, lse, joined)


def _projections(given):
    """(side, weight, bias, heads) of query, key and value."""
    number = given["num_heads"]
    shared = number if given["num_kv_heads"] is None else given["num_kv_heads"]
    numbers = (number, shared, shared)
    weights, biases = ([given[f"{side}_{kind}"] for side in SIDES] for kind in ("weight", "bias"))
    if given["qkv_weight"] is not None:
        packed = np.asarray(given["qkv_weight"])
        size = len(packed) // sum(numbers)
        cuts = [number * size, (number + shared) * size]
        weights = np.split(packed, cuts)
        biases = [None] * 3 if given["qkv_bias"] is None else np.split(np.asarray(given["qkv_bias"]), cuts)
    return list(zip(SIDES, weights, biases, numbers))


def _as_heads(x, number):
    return x.reshape(*x.shape[:-1], number, x.shape[-1] // number).swapaxes(-2, -3)


def _side_by_side(heads):
    swapped = heads.swapaxes(-2, -3)
    return swapped.reshape(*swapped.shape[:-2], swapped.shape[-2] * swapped.shape[-1])


def multi_head_backward(arguments, needed, gradients, places):
    given, wanted = dict(zip(MULTI_HEAD, arguments)), {MULTI_HEAD[place] for place in places}
    results, (query, key, value, output, lse, joined) = needed[:-6], needed[-6:]
    found = {}
    of_joined = _linear_gradients(
        found, wanted | {"joined"}, or_zeros(gradients[0], results[0]),
        {"joined": joined, "output_weight": given["output_weight"], "output_bias": given["output_bias"]},
    )  # fmt: skip
    sides = [side for side in SIDES if wanted & {side, f"{side}_weight", f"{side}_bias", "qkv_weight", "qkv_bias"}]
    names = {*sides, *(wanted & frozenset(GRADIENTS[3:]))}
    flags = tuple([name in names for name in GRADIENTS])
    options, heads = arguments[15:-2], (query, key, value)
    of_attention = _core.scaled_dot_product_attention_backward(
        _as_heads(of_joined, given["num_heads"]), *heads, output, lse, *options, None, flags, None
    )
    by_name = dict(zip(GRADIENTS, of_attention))
    if len(results) == 2 and gradients[1] is not None:
        more = _core.attention_weights_backward(
            gradients[1], query, key, options[0], *options[2:-1], None,
            tuple([flag and name != "value" for name, flag in zip(GRADIENTS, flags)]), None,
        )  # fmt: skip
        by_name |= {n: by_name[n] + g for n, g in zip(GRADIENTS, more) if g is not None}
    found |= {name: by_name[name] for name in names - {*SIDES}}
    parts = {}
    for side, weight, bias, _ in _projections(given):
        if side in sides:
            _linear_gradients(
                parts, wanted | ({f"{side}_weight"} if "qkv_weight" in wanted else set())
                | ({f"{side}_bias"} if "qkv_bias" in wanted else set()), _side_by_side(by_name[side]),
                {side: given[side], f"{side}_weight": weight, f"{side}_bias": bias},
            )  # fmt: skip
    for kind in ("weight", "bias"):
        if f"qkv_{kind}" in wanted:
            parts[f"qkv_{kind}"] = np.concatenate([parts.pop(f"{side}_{kind}") for side in SIDES])
    found |= parts
    return {place: found[MULTI_HEAD[place]] for place in places}


def _linear_gradients(found, wanted, gradient, operands):
    """Puts the gradients of x, weight and bias that are wanted into `found`; returns that of x."""
    names = list(operands)
    flags = tuple([name in wanted for name in names])
    got = _core.linear_backward(gradient, *operands.values(), None, None, flags, None)
    found |= {name: g for name, g in zip(names, got) if g is not None and name != "joined"}
    return got[0]
