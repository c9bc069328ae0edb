"""What a row of cases.py is made of: a call of a public function, and the row itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import ml_dtypes
import numpy as np

import attnpy

DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass
class Call:
    """A function with its arguments, by name; `hidden`: elements of arguments that no result may depend on."""

    function: str
    arguments: dict
    label: str
    hidden: dict = field(default_factory=dict)

    def __call__(self, **changes):
        """The results, always as a tuple; of gradients those asked for, whose out= is a tuple here too."""
        arguments = {**self.arguments, **changes}
        out = arguments.get("out")
        kinds = {"linear": attnpy.LinearGradients, "relative": attnpy.RelativeAttentionGradients}
        fields = kinds.get(self.function.split("_")[0], attnpy.AttentionGradients)._fields
        if "needs" in arguments and out is not None:
            needed = [name for name in fields if name in arguments["needs"]]
            arguments["out"] = dict(zip(needed, out if isinstance(out, tuple) else (out,), strict=True))
        result = getattr(attnpy, self.function)(**arguments)
        if "needs" in arguments:
            return tuple(x for x in result if x is not None)
        return result if isinstance(result, tuple) else (result,)

    def changed(self, label="", **changes):
        return Call(self.function, {**self.arguments, **changes}, f"{self.label} {label}".strip(), self.hidden)

    @property
    def arrays(self):
        """The arguments that are arrays."""
        return {name: x for name, x in self.arguments.items() if isinstance(x, np.ndarray)}

    def fresh(self):
        """The same call on copies of all arrays."""
        return self.changed(**{name: x.copy() for name, x in self.arrays.items()})


class Row(NamedTuple):
    """make(shape, dtype, option, seed) → Call. The cases are `shapes` × `options` × `dtypes`."""

    make: Callable | None = None
    shapes: Sequence = ()
    options: Sequence[str] = ("plain",)
    dtypes: Sequence[str] = tuple(DTYPES)
    heavy: Sequence = ()  # (shape, option): enough work for a second thread
    batched: bool = False  # results have batch axes in front, whose elements do not know of each other
    outs: bool = True  # takes out=
    keeps_flags: bool = True  # False: uses NumPy, which clears the processor's floating-point flags
    refused: Sequence = ()  # refusals.Refusal


def named(shape, dtype, option, seed):
    return f"shape {shape} {dtype} option {option} seed {seed}"


def with_holes(rng, x, share=0.2):
    return np.where(rng.random(x.shape) < share, -np.inf, x).astype(x.dtype)


def all_of(hidden, shape):
    """An element of a broadcast operand is hidden where it is hidden in all its places."""
    extra = hidden.ndim - len(shape)
    hidden = hidden.all(tuple(range(extra)))
    return hidden.all(tuple(n for n, size in enumerate(shape) if size == 1 and hidden.shape[n] != 1), keepdims=True)
