"""What every layer is: parameters in a named tree, and a pure function of them."""

import html

import numpy as np


class Layer:
    """The base of all layers: plain ndarrays with names, and layers inside.

    A layer's parameters are its attributes that are ndarrays; attributes that are layers, or lists of layers, are
    branches of the tree. Nothing else is kept about them. Calling a layer computes with its own parameters, or with
    those that `parameters=` gives in the same tree; it changes neither, so that libraries that differentiate or
    distribute functions can take ``lambda parameters: layer(x, parameters=parameters)``.

    To make a layer, set arrays and layers in ``__init__``; begin ``__call__`` with ``own = self.given(parameters)``.

    See Also
    --------
    Linear, MultiHeadAttention, TransformerEncoderLayer

    Examples
    --------
    >>> import numpy as np
    >>> from attnpy import nn
    >>> layer = nn.Linear(3, 2, rng=0)
    >>> {name: array.shape for name, array in layer.state_dict().items()}
    {'weight': (2, 3), 'bias': (2,)}
    >>> doubled = {name: 2 * array for name, array in layer.parameters().items()}
    >>> x = np.ones((1, 3), np.float32)
    >>> np.allclose(layer(x, parameters=doubled), 2 * layer(x))
    True
    """

    def _branches(self):
        """(name, ndarray, Layer or list of Layers) in the order in which they were set."""
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray | Layer) or (isinstance(value, list) and value and _are_layers(value)):
                yield name, value

    def parameters(self):
        """The tree: a dict of ndarrays and of dicts like it; a list of layers is a dict with the keys '0', '1', …

        Layers without parameters have no place in it. The arrays are the layer's own: what is written to them is what
        the layer computes with.
        """
        trees = {name: _subtree(value) for name, value in self._branches()}
        return {name: tree for name, tree in trees.items() if isinstance(tree, np.ndarray) or tree}

    def state_dict(self):
        """The tree as one dict from dotted names to arrays."""
        return dict(_flat(self.parameters(), ""))

    def load_state_dict(self, state_dict):
        """Takes over the values of all parameters from a dict of dotted names.

        Names and shapes must be exactly those of `state_dict()`; nothing is changed where they are not. Each value is
        converted to the dtype that the parameter has, and copied.

        Returns the layer itself.
        """
        own = self.state_dict()
        missing, unknown = sorted(own.keys() - state_dict.keys()), sorted(state_dict.keys() - own.keys())
        if missing or unknown:
            raise ValueError(
                f"state_dict does not fit {type(self).__name__}:"
                + (f" it lacks {_listed(missing)}" if missing else "")
                + (";" if missing and unknown else "")
                + (f" it has {_listed(unknown)}, which the layer has not" if unknown else "")
            )
        given = {name: np.asarray(state_dict[name]) for name in own}
        for name, array in own.items():
            if given[name].shape != array.shape:
                raise ValueError(f"state_dict[{name!r}] has shape {given[name].shape}; it must have {array.shape}")
            if not np.can_cast(given[name].dtype, array.dtype, "same_kind") and given[name].dtype.kind != "V":
                raise TypeError(f"state_dict[{name!r}] has dtype {given[name].dtype}; it must be a floating one")
        for name, array in own.items():
            array[...] = given[name]
        return self

    def given(self, parameters):
        """The layer's own tree, or the one that was given, if it has the same names."""
        if parameters is None:
            return self.parameters()
        own = self.parameters()
        if own.keys() != set(parameters):
            raise ValueError(
                f"parameters of {type(self).__name__} must be a dict with the keys {_listed(sorted(own))}; "
                f"it has {_listed(sorted(map(str, parameters)))}"
            )
        return parameters

    def _described(self):
        """What the constructor was told, for the repr: a string."""
        return ""

    def _count(self):
        return sum(array.size for array in self.state_dict().values())

    def _lines(self, name, depth):
        head = f"{type(self).__name__}({self._described()})"
        yield depth, f"{name}: {head}" if name else head, f"{self._count():,} parameters"
        for branch, value in self._branches():
            if isinstance(value, np.ndarray):
                yield depth + 1, branch, f"{value.dtype} {value.shape}"
            elif isinstance(value, Layer):
                yield from value._lines(branch, depth + 1)
            else:
                for i, layer in enumerate(value):
                    yield from layer._lines(f"{branch}.{i}", depth + 1)

    def __repr__(self):
        lines = list(self._lines("", 0))
        width = max(2 * depth + len(text) for depth, text, _ in lines)
        return "\n".join(f"{'  ' * depth + text:<{width}}  {about}" for depth, text, about in lines)

    def _repr_html_(self):
        rows = "".join(
            f'<tr><td style="text-align:left;padding-left:{depth + 0.5}em">{html.escape(text)}</td>'
            f'<td style="text-align:left">{html.escape(about)}</td></tr>'
            for depth, text, about in self._lines("", 0)
        )
        return f"<table>{rows}</table>"


def _are_layers(values):
    return all(isinstance(value, Layer) for value in values)


def _subtree(value):
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Layer):
        return value.parameters()
    return {str(i): layer.parameters() for i, layer in enumerate(value)}


def _flat(tree, prefix):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _listed(names):
    shown = ", ".join(map(repr, names[:5])) or "nothing"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def under(state_dict, prefix):
    """The part of a state dict whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}


def generator(rng):
    """A numpy.random.Generator from one, a seed or None."""
    return rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)


def uniform(rng, bound, shape, dtype):
    return rng.uniform(-bound, bound, shape).astype(dtype)
