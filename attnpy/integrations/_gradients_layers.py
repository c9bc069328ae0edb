"""The rules of layers: see _gradients.py."""

import numpy as np

import attnpy

from .._native import core as _core
from ._rule import Rule, or_zeros, summed

LINEAR = ("x", "weight", "bias", "activation", "residual", "out")
CROSS_ENTROPY = ("logits", "targets", "ignore_index", "label_smoothing", "reduction", "out")

# --- layers: x, weight, bias, activation, residual, out


def linear(arguments):
    return (_core.linear(*arguments),), ()


def linear_backward(arguments, needed, gradients, places):
    x, weight, bias, activation, residual, _ = arguments
    needs = [name for name in LINEAR[:3] if LINEAR.index(name) in places]
    found = attnpy.linear_backward(gradients[0], x, weight, bias, activation=activation, needs=needs)
    found = {LINEAR.index(name): getattr(found, name) for name in needs}
    if LINEAR.index("residual") in places:
        found[LINEAR.index("residual")] = summed(gradients[0], residual)
    return found


# --- activations: x, (approximate,) out, or x, gate, (approximate,) out


def elements(name):
    """The rule of a function of single elements."""
    given = ("approximate",) if name.startswith("ge") else ()

    def forward(arguments):
        return (getattr(_core, name)(*arguments),), ()

    def backward(arguments, needed, gradients, places):
        return {0: getattr(_core, f"{name}_backward")(gradients[0], *arguments)}

    return Rule(("x", *given, "out"), frozenset({"x"}), forward, backward, needs_results=False)


def gated(name):
    """The rule of a gate. The gradients of operands that were broadcast are sums."""
    given = ("approximate",) if name.startswith("ge") else ()

    def forward(arguments):
        return (getattr(_core, name)(*arguments),), ()

    def backward(arguments, needed, gradients, places):
        x, gate, *others = arguments
        function = getattr(_core, f"{name}_backward")
        if gate is None:
            return {0: function(gradients[0], x, None, *others)}
        found = function(gradients[0], *np.broadcast_arrays(x, gate), *others)
        return {place: summed(found[place], arguments[place]) for place in places}

    return Rule(("x", "gate", *given, "out"), frozenset({"x", "gate"}), forward, backward, needs_results=False)


# --- normalisation: x, weight, (bias,) axis, eps, residual, return_sum, out


def norm(name, rows):
    """The rule of a norm with these operands of one row. It keeps what was normalised."""
    names = ("x", *rows, "axis", "eps", "residual", "return_sum", "out")

    def forward(arguments):
        return_sum = arguments[-2]
        if return_sum or arguments[-3] is not None:
            y, total = getattr(_core, name)(*arguments[:-2], True, None)
        else:
            y, total = getattr(_core, name)(*arguments), arguments[0]
        return ((y, total), ()) if return_sum else ((y,), (total,))

    def backward(arguments, needed, gradients, places):
        y, total = needed
        x, weight = arguments[:2]
        axis, eps, residual, return_sum, _ = arguments[-5:]
        grad_y, grad_sum = gradients if return_sum else (*gradients, None)
        found = getattr(_core, f"{name}_backward")(
            or_zeros(grad_y, y), total, weight, axis, eps, grad_sum, None
        )  # fmt: skip
        by_name = {"x": found[0], "residual": found[0], **dict(zip(rows, found[1:]))}
        return {place: by_name[names[place]].astype(np.asarray(arguments[place]).dtype, copy=False) for place in places}

    return Rule(names, frozenset({"x", "residual", *rows}), forward, backward)


# --- embedding: indices, table, out; cross_entropy: logits, targets, ignore_index, label_smoothing, reduction, out


def embedding(arguments):
    return (_core.embedding(*arguments),), ()


def embedding_backward(arguments, needed, gradients, places):
    indices, table, _ = arguments
    return {1: _core.embedding_backward(gradients[0], indices, len(table), None)}


def cross_entropy(arguments):
    return (_core.cross_entropy(*arguments),), ()


def cross_entropy_backward(arguments, needed, gradients, places):
    return {0: _core.cross_entropy_backward(gradients[0], *arguments)}
