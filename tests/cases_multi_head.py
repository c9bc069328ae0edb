"""The row of multi_head_attention: shapes, options, inputs."""

from typing import NamedTuple

import numpy as np
import refusals_multi_head as refusals
from calls import DTYPES, Call, Row, named

import attnpy


class Size(NamedTuple):
    """Batch axes, heads, lengths, features of query, key, value and output, head sizes."""

    batch: tuple
    H: int
    G: int
    L: int
    S: int
    N: tuple
    M: int
    E: int
    D: int

    def __str__(self):
        batch = "x".join(map(str, self.batch)) or "-"
        return f"{batch}/H{self.H}G{self.G}L{self.L}S{self.S}N{'.'.join(map(str, self.N))}M{self.M}E{self.E}D{self.D}"


SHAPES = [
    Size((), 1, 1, 1, 1, (1, 1, 1), 1, 1, 1),
    Size((2, 3), 4, 2, 7, 5, (9, 11, 6), 10, 5, 3),
    Size((2,), 3, 3, 65, 67, (24, 24, 24), 24, 8, 8),
    Size((), 2, 1, 64, 130, (16, 7, 7), 5, 16, 9),
    Size((3,), 4, 1, 1, 70, (8, 8, 8), 8, 4, 4),
    Size((0,), 2, 2, 3, 4, (5, 5, 5), 5, 2, 2),
    Size((2,), 2, 2, 0, 4, (5, 5, 5), 5, 2, 2),
    Size((2,), 2, 2, 3, 0, (5, 5, 5), 5, 2, 2),
]
OPTIONS = ("plain", "biases", "causal", "lengths", "mask", "weights", "qkv", "self", "packed", "broadcast", "together")
HEAVY = [(Size((2,), 4, 2, 130, 200, (64, 64, 64), 64, 16, 16), "together")]


def matrix(rng, rows, columns, real):
    return (rng.normal(size=(rows, columns)) / max(columns, 1) ** 0.5).astype(real)


def multi_head(size, dtype, option="plain", seed=0):
    """qkv: all rows in one weight; self: likewise, and one array three times; packed: PackedWeights."""
    rng = np.random.default_rng([seed, *map(ord, f"{size}{option}")])
    batch, H, G, L, S, N, M, E, D = size
    real = DTYPES[dtype]
    if option in ("qkv", "self"):
        D = E
    if option == "self":
        S, N = L, (N[0],) * 3
    own = batch[:-1] + (1,) if option == "broadcast" and batch else batch
    x = [rng.normal(size=(*b, n, f)).astype(real) for b, n, f in zip((own, batch, batch), (L, S, S), N, strict=True)]
    if option == "self":
        x = [x[0]] * 3
    arguments = dict(zip(("query", "key", "value"), x, strict=True)) | {"num_heads": H, "num_kv_heads": G}
    rows = {"query": H * E, "key": G * E, "value": G * D}
    weights = {f"{name}_weight": matrix(rng, n, f, real) for (name, n), f in zip(rows.items(), N, strict=True)}
    biases = {f"{name}_bias": rng.normal(size=n).astype(real) for name, n in rows.items()}
    if option in ("qkv", "self"):
        arguments["qkv_weight"] = matrix(rng, sum(rows.values()), N[0], real)
        arguments["qkv_bias"] = np.concatenate(list(biases.values()))
        if len(set(N)) > 1:
            arguments |= {name: x[..., :1] * np.ones(N[0], real) for name, x in list(arguments.items())[:3]}
    else:
        arguments |= weights
    arguments["output_weight"] = matrix(rng, M, H * D, real)
    if option in ("biases", "together"):
        arguments |= biases | {"output_bias": rng.normal(size=M).astype(real)}
    if option == "packed":
        arguments |= {name: attnpy.PackedWeight(w) for name, w in arguments.items() if name.endswith("_weight")}
    return Call(
        "multi_head_attention", *_masked(arguments, size._replace(S=S), option, rng, named(size, dtype, option, seed))
    )


def _masked(arguments, size, option, rng, label):
    hidden = {}
    if option in ("causal", "together"):
        arguments |= {"is_causal": True, "causal_offset": size.S}
    if option in ("lengths", "together"):
        lengths = rng.integers(0, size.S + 1, size.batch)
        arguments["kv_lengths"] = lengths
        past = np.arange(size.S) >= np.asarray(lengths)[..., None]
        hidden = {name: np.broadcast_to(past[..., None], arguments[name].shape) for name in ("key", "value")}
    if option in ("mask", "together"):
        arguments["attn_mask"] = rng.random((size.H, size.L, size.S)) < 0.7
    if option in ("weights", "together"):
        arguments["need_weights"] = True
    return arguments, label, hidden


def in_parts(arguments):
    """(what scaled_dot_product_attention gets, what the last linear gets), by attnpy's own functions."""
    given = dict(arguments)
    heads, groups = given.pop("num_heads"), given.pop("num_kv_heads", None)
    groups = heads if groups is None else groups
    x = {name: given.pop(name) for name in ("query", "key", "value")}
    weights = {name: given.pop(f"{name}_weight", None) for name in (*x, "output", "qkv")}
    biases = {name: given.pop(f"{name}_bias", None) for name in (*x, "output", "qkv")}
    if weights["qkv"] is not None:
        size = len(weights["qkv"]) // (heads + 2 * groups)
        cuts = [heads * size, (heads + groups) * size]
        weights |= dict(zip(x, np.split(weights["qkv"], cuts), strict=True))
        if biases["qkv"] is not None:
            biases |= dict(zip(x, np.split(biases["qkv"], cuts), strict=True))
    given.pop("need_weights", None)
    given.pop("out", None)
    for name, number in zip(x, (heads, groups, groups), strict=True):
        y = attnpy.linear(x[name], weights[name], biases[name])
        given[name] = y.reshape(*y.shape[:-1], number, y.shape[-1] // number).swapaxes(-2, -3)
    output = attnpy.scaled_dot_product_attention(**given).swapaxes(-2, -3)
    output = output.reshape(*output.shape[:-2], output.shape[-2] * output.shape[-1])
    last = {"x": output, "weight": weights["output"]}
    return given, last if biases["output"] is None else last | {"bias": biases["output"]}


MULTI_HEAD = {
    "multi_head_attention": Row(multi_head, SHAPES, OPTIONS, heavy=HEAVY, batched=True, refused=refusals.MULTI_HEAD)
}
