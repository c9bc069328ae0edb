"""What the faces of several families ask of a number before it goes down."""

from __future__ import annotations

import operator
from typing import Any


def integer(name: str, x: Any) -> int:
    """Any integer but a bool."""
    try:
        number = operator.index(x)
    except TypeError:
        number = None
    if number is None or isinstance(x, bool):
        raise TypeError(f"{name} is {x!r}; it must be an integer")
    return number
