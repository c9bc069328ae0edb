"""The row of longformer_attention: shapes, options, inputs."""

from typing import NamedTuple

import numpy as np
from calls import DTYPES, Call, named

import attnpy


class Size(NamedTuple):
    """The sizes of one call."""

    batch: tuple
    H: int
    G: int
    L: int
    E: int
    D: int


LONGFORMER_SHAPES = [
    Size((), 1, 1, 1, 1, 1),
    Size((2,), 4, 2, 130, 8, 5),
    Size((2, 3), 2, 1, 63, 7, 9),
    Size((3,), 2, 2, 65, 16, 16),
    Size((), 3, 1, 257, 11, 4),
    Size((0,), 2, 1, 5, 7, 2),
    Size((2,), 2, 1, 0, 7, 2),
]
LONGFORMER_OPTIONS = ("plain", "sets", "none_global", "lengths", "narrow")


def longformer(size, dtype, option="plain", seed=0):
    """sets: each batch element has its own global tokens, some none at all."""
    rng = np.random.default_rng([seed, *map(ord, f"{size}{option}")])
    batch, H, G, L, E, D = size
    shapes = {"query": (H, L, E), "key": (G, L, E), "value": (G, L, D)}
    shapes |= {f"global_{name}": shape for name, shape in shapes.items()}
    arguments = {name: rng.normal(size=(*batch, *shape)).astype(DTYPES[dtype]) for name, shape in shapes.items()}
    tokens = rng.choice(L, min(L, 3), replace=False) if L else np.empty(0, int)
    if option == "sets":
        tokens = rng.random((*batch, L)) < 0.1
        tokens[:1] &= not batch
    arguments |= {"window": 0 if option == "narrow" else 20, "global_tokens": tokens}
    if option == "none_global":
        arguments["global_tokens"] = tokens[:0]
    hidden = {}
    if option == "lengths":
        lengths = rng.integers(0, L + 1, batch)
        arguments["kv_lengths"] = lengths
        past = np.arange(L) >= np.asarray(lengths)[..., None]
        for name in ("key", "value", "global_key", "global_value"):
            hidden[name] = np.broadcast_to(past[..., None, :, None], arguments[name].shape)
    return Call("longformer_attention", arguments, named(size, dtype, option, seed), hidden)


def local_and_global(arguments):
    """The two calls of scaled_dot_product_attention that it stands for, and which rows are of the second, (..., L)."""
    length = np.shape(arguments["query"])[-2]
    tokens = np.asarray(arguments["global_tokens"])
    chosen = tokens if tokens.dtype == bool else np.isin(np.arange(length), tokens % max(length, 1))
    near = attnpy.reference.BlockMask.sliding_window(length, length, arguments["window"], arguments["window"])
    seen = chosen[..., None, None, :] if chosen.ndim > 1 else chosen
    rest = {name: arguments[name] for name in ("scale", "kv_lengths") if arguments.get(name) is not None}
    operands = ("query", "key", "value")
    local = {name: arguments[name] for name in operands} | rest | {"attn_mask": near | seen}
    full = {name: arguments[f"global_{name}"] for name in operands} | rest
    return local, full, chosen
