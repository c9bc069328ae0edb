"""What the rule of a function is, and what rules are made with: see _gradients.py."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Rule(NamedTuple):
    names: tuple  # of the arguments; the last is out
    operands: frozenset  # the names of those that are differentiated
    forward: Callable  # arguments → (results, what the gradients need besides them)
    backward: Callable  # (arguments, needed, gradients of the results or None, places) → {place: gradient}
    jvp: Callable | None = None  # (arguments, needed, {place: tangent}) → tangents of the results
    needs_results: bool = True  # `needed` begins with the results
    sequences: int = 0  # so many arguments, the first ones, are sequences of operands

    def spread(self, arguments):
        """The arguments and their names."""
        if not self.sequences:
            return list(arguments), self.names
        spread, names = [], []
        for name, parts in zip(self.names[: self.sequences], arguments):
            parts = list(parts)
            spread += parts
            names += [f"{name}[{i}]" for i in range(len(parts))]
        return [*spread, *arguments[self.sequences :]], [*names, *self.names[self.sequences :]]

    def differentiates(self, name):
        return name in self.operands or (self.sequences > 0 and name.partition("[")[0] in self.operands)


def or_zeros(gradient, result):
    return np.broadcast_to(np.zeros((), result.dtype), result.shape) if gradient is None else gradient


def summed(gradient, operand):
    """The gradient of an operand that broadcast: summed over the places that each of its elements had."""
    shape, real = np.shape(operand), np.asarray(operand).dtype
    wide = np.float32 if real.itemsize == 2 else real
    gradient = np.ascontiguousarray(gradient).reshape(-1, *np.shape(gradient)[np.ndim(gradient) - len(shape) :])
    axes = (0, *(n + 1 for n, size in enumerate(shape) if size == 1))
    return gradient.astype(wide, copy=False).sum(axes, dtype=wide).reshape(shape).astype(real, copy=False)
