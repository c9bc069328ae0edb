"""What constructors and indices of a BlockMask are given: checked, and in one form."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arguments
from ._masks_tiles import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST = 2**31 - 1  # queries or keys


def integer(name: str, x: Any, least: int | None = None, most: int | None = None) -> int:
    number = _arguments.integer(name, x)
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{name} is {number}; it must be {bounds(least, most)}")
    return number


def bounds(least: int | None, most: int | None) -> str:
    return f"{least} or more" if most is None else f"in {least} … {most}"


def length(name: str, x: Any) -> int:
    return integer(name, x, 0, LONGEST)


def pair(name: str, x: Any) -> tuple[int, int]:
    both = tuple(x) if isinstance(x, tuple | list) else (x, x)
    if len(both) != 2:
        raise ValueError(f"{name} is {x!r}; it must be an integer or two of them")
    return integer(name, both[0], 1, LONGEST), integer(name, both[1], 1, LONGEST)


def grid(name: str, shape: Any) -> tuple[tuple[int, ...], Grid]:
    if not isinstance(shape, tuple | list) or len(shape) < 2:
        raise ValueError(f"{name} is {shape!r}; it must be a tuple (..., L, S)")
    *lead, L, S = (length(name, x) for x in shape)
    return tuple(lead), Grid(math.prod(lead), L, S)


def array(name: str, x: Any, ndim: int | None, least: int, most: int) -> NDArray[np.int64]:
    """Integers in least … most, as int64."""
    x = np.asarray(x)
    if x.size == 0 and x.dtype == np.float64:  # of an empty list
        x = x.astype(np.int64)
    if x.dtype.kind not in "iu":
        raise TypeError(f"{name} is {x.dtype}; it must be of integers")
    if ndim is not None and x.ndim != ndim:
        raise ValueError(f"{name} has shape {x.shape}; it must have {ndim} axis")
    outside = (x < least) | (x > most)
    if outside.any():
        raise ValueError(f"{name} holds {x[outside][0]}; it must lie in {least} … {most}")
    return x.astype(np.int64)


def ids(name: str, x: Any) -> NDArray[Any]:
    x = np.asarray(x)
    if x.size == 0 and x.dtype == np.float64:
        x = x.astype(np.int64)
    if x.dtype.kind not in "iu":
        raise TypeError(f"{name} is {x.dtype}; it must be of integers")
    if x.ndim < 1:
        raise ValueError(f"{name} is one number; it must have at least one axis")
    length(f"the last axis of {name}", x.shape[-1])
    return x


def chosen(name: str, tokens: Any, length: int) -> NDArray[np.bool_]:
    """Positions or bools as bools (..., length)."""
    tokens = np.asarray(tokens)
    if tokens.dtype == bool:
        if tokens.ndim < 1 or tokens.shape[-1] != length:
            raise ValueError(f"{name} has shape {tokens.shape}; its last axis must be {length}")
        return tokens
    positions = array(name, tokens, 1, -length, length - 1)
    chosen = np.zeros(length, bool)
    chosen[positions] = True
    return chosen


def split_index(index: Any, shape: tuple[int, ...]) -> tuple[tuple[Any, ...], slice]:
    """The index of the leading axes, and the slice of queries."""
    items = list(index) if isinstance(index, tuple) else [index]
    dots = [n for n, item in enumerate(items) if item is Ellipsis]
    given = sum(item is not None and item is not Ellipsis for item in items)
    if given > len(shape) or len(dots) > 1:
        raise IndexError(f"the index has {given} entries and {len(dots)} ellipses; the mask has {len(shape)} axes")
    at = dots[0] if dots else len(items)
    items[at : at + 1] = [slice(None)] * (len(shape) - given)
    *leading, queries, keys = items
    if not isinstance(queries, slice) or not isinstance(keys, slice) or keys.indices(shape[-1]) != (0, shape[-1], 1):
        raise IndexError("a BlockMask is cut by a slice of its queries, mask[..., a:b, :], and keeps all its keys")
    for item in leading:
        if item is not None and not isinstance(item, slice):
            integer("an index of a leading axis", item)
    return tuple(leading), queries
