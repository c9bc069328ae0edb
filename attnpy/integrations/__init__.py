"""Arrays of other libraries in attnpy's functions: autograd boxes, torch tensors.

Nothing is to be imported for that: when an operand is no ndarray, the compiled module asks `handler_of` once for its
type, and from then on gives calls with such an operand to what came back. A module of this package loads when the
first array of its library arrives.
"""

from importlib import import_module

LIBRARIES = {"autograd": "attnpy.integrations.autograd", "torch": "attnpy.integrations.torch"}

__all__ = ["handler_of", "register_with_transformers"]


def handler_of(kind):
    """What answers calls with an operand of this type: handler(name, arguments), or None where NumPy converts it.

    `name` is that of a function of attnpy._core, and `arguments` are its own, by position, as they came.
    """
    for base in kind.__mro__:
        library = str(base.__module__).partition(".")[0]
        if library in LIBRARIES:
            return import_module(LIBRARIES[library]).handler_of(kind)
    return None


def __getattr__(name):
    if name == "register_with_transformers":
        from .torch import register_with_transformers

        return register_with_transformers
    raise AttributeError(f"module 'attnpy.integrations' has no attribute {name!r}")
