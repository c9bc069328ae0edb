"""How attention with vectors of distances is differentiated: parts of the rules in _gradients."""

from .._native import core as _core
from ._rule import or_zeros

OPTIONS = ("attn_mask", "is_causal", "scale", "bias", "causal_offset", "window_size", "query_lengths", "kv_lengths",
           "return_lse", "out")  # fmt: skip
SHAW = ("query", "key", "value", "key_table", "value_table", *OPTIONS)
XL = ("query", "key", "value", "position_keys", "content_bias", "position_bias", *OPTIONS)


def of_vectors(function, names):
    """The operands that are differentiated, forward and backward of a function with these arguments."""
    mask = names.index("attn_mask")
    fields = (*names[:3], "attn_mask", "bias", *names[3:mask])  # the order of _core's `needs`

    def forward(arguments):
        output, lse = getattr(_core, function)(*arguments[:-2], True, None)
        return ((output, lse), ()) if arguments[-2] else ((output,), (lse,))

    def backward(arguments, needed, gradients, places):
        output, lse = needed
        grad_output, grad_lse = gradients if arguments[-2] else (*gradients, None)
        wanted = {names[place] for place in places}
        found = getattr(_core, f"{function}_backward")(
            or_zeros(grad_output, output), *arguments[:mask], output, lse, *arguments[mask:-2], grad_lse,
            tuple([name in wanted for name in fields]), None,
        )  # fmt: skip
        return {names.index(name): gradient for name, gradient in zip(fields, found) if gradient is not None}

    return frozenset(fields), forward, backward
