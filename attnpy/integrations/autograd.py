"""attnpy's functions on boxes of HIPS autograd: derivatives of code that calls them.

`autograd.grad`, and all else in reverse mode, works for attention, its weights and their sums, merging and the softmax
family; `autograd.make_jvp` for attention and softmax. Second derivatives are refused.
"""

import numpy as np
from autograd.extend import Box, defjvp_argnums, defvjp_argnums, primitive

from ._gradients import RULES

__all__ = ["handler_of"]


def handler_of(kind):
    return handle if issubclass(kind, Box) else None


def handle(name, arguments):
    """The results of attnpy._core's function, as boxes."""
    rule = RULES.get(name)
    if rule is None:
        raise TypeError(f"{name} has no derivative: its arguments must be arrays, not boxes of autograd")
    arguments, names = rule.spread(arguments)
    if arguments[-1] is not None:
        raise TypeError(f"out is given, but an operand of {name} is a box of autograd: nothing can be written then")
    for what, argument in zip(names, arguments):
        if _boxed(argument) and not rule.differentiates(what):
            raise TypeError(f"{what} is a box of autograd, but {name} has no derivative by it")
    return _call(_Call(name, rule), *arguments)


def _boxed(x):
    return isinstance(x, Box) or (isinstance(x, tuple | list) and any(map(_boxed, x)))


class _Call:
    """One call: its function, and what it leaves for its derivatives."""

    __slots__ = ("name", "needed", "results", "rule")

    def __init__(self, name, rule):
        self.name, self.rule = name, rule


@primitive
def _call(call, *arguments):
    call.results, besides = call.rule.forward(arguments)
    call.needed = (*call.results, *besides)
    return call.results[0] if len(call.results) == 1 else tuple(call.results)


def _vjp(places, answer, arguments, keywords):
    call, *arguments = arguments
    places = [place - 1 for place in places]

    def vjp(gradient):
        _refuse_second(f"{call.name}_backward", gradient, answer, arguments)
        gradients = [gradient] if len(call.results) == 1 else gradient
        gradients = [np.asarray(g, y.dtype) for g, y in zip(gradients, call.results)]
        found = call.rule.backward(arguments, call.needed, gradients, places)
        return [found[place] for place in places]

    return vjp


def _jvp(places, tangents, answer, arguments, keywords):
    call, *arguments = arguments
    if call.rule.jvp is None:
        raise NotImplementedError(f"{call.name} has no forward-mode derivative")
    _refuse_second(f"{call.name}_jvp", tangents, answer, arguments)
    given = {place - 1: np.asarray(t, arguments[place - 1].dtype) for place, t in zip(places, tangents)}
    found = call.rule.jvp(arguments, call.needed, given)
    return found[0] if len(call.results) == 1 else tuple(found)


def _refuse_second(name, *values):
    """A box here comes from an outer derivative, which would take a derivative of the derivative."""
    if any(map(_boxed, values)):
        raise TypeError(f"{name} has no derivative: attnpy computes first derivatives only")


defvjp_argnums(_call, _vjp)
defjvp_argnums(_call, _jvp)
