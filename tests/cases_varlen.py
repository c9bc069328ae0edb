"""Calls on packed sequences."""

from typing import NamedTuple

import numpy as np
import packed
from calls import DTYPES, Call, Row, named
from cases_backward import gradient_hidden
from cases_rotary import rotary_tables

import attnpy


class Packed(NamedTuple):
    """Query heads, key/value heads, head sizes of key and value, lengths of the sequences, rows and keys past them."""

    H: int
    G: int
    E: int
    D: int
    queries: tuple
    keys: tuple
    past: tuple = (0, 0)

    def __str__(self):
        lengths = "_".join(f"{q}x{k}" for q, k in zip(self.queries[:5], self.keys, strict=False))
        return (
            f"N{len(self.queries)}H{self.H}G{self.G}E{self.E}D{self.D}/{lengths or '-'}+{self.past[0]}x{self.past[1]}"
        )


SHAPES = [
    Packed(1, 1, 1, 1, (1,), (1,)),
    Packed(4, 2, 13, 17, (3, 0, 7, 5), (5, 2, 0, 11), (2, 3)),
    Packed(2, 2, 8, 5, (63, 64, 65), (64, 63, 65), (0, 1)),
    Packed(6, 2, 23, 29, (1, 1, 2, 1), (131, 7, 0, 64), (1, 0)),  # decoding
    Packed(3, 1, 7, 16, (129, 1, 200), (127, 3, 331), (5, 6)),
    Packed(2, 1, 16, 16, (2, 1, 3) * 13, (3, 1, 4) * 13, (0, 70)),  # several to a task
    Packed(2, 1, 3, 5, (), (), (4, 6)),
    Packed(2, 1, 7, 3, (0, 0), (0, 5)),
    Packed(0, 0, 7, 3, (2, 1), (3, 5), (1, 1)),
    Packed(2, 1, 7, 0, (3,), (5,), (1, 1)),
    Packed(2, 1, 0, 7, (3,), (5,), (1, 1)),
    Packed(8, 1, 32, 7, (1, 5), (1031, 1100)),  # keys in parts
]
HEAVY = [
    (Packed(4, 2, 64, 64, (257, 100, 0, 300, 1, 17), (257, 333, 5, 300, 1027, 17), (3, 3)), "causal"),
    (Packed(2, 1, 32, 32, (700, 3, 2, 2, 65), (900, 3, 2, 2, 1100), (3, 3)), "together"),
]
OPTIONS = (
    "plain", "causal", "offset", "window", "window_causal", "softcap", "alibi", "sinks", "own_sinks", "scale",
    "together", "dropout", "rotary", "rotary_positions",
)  # fmt: skip
RELATIVE_OPTIONS = ("relative", "relative_rows", "own_relative")


def options(option, shape, rng, real):
    """The keyword arguments of one option."""
    N, H = len(shape.queries), shape.H
    given = {"scale": 0.5} if shape.E == 0 else {}
    if option in ("causal", "window_causal", "together"):
        given["is_causal"] = True
    if option == "offset":
        given |= {"is_causal": True, "causal_offset": rng.integers(-3, 9, N)}
    if option in ("window", "window_causal", "together"):
        given["window_size"] = (70, 2)
    if option in ("softcap", "together"):
        given["softcap"] = 1.5
    if option in ("alibi", "together"):
        given["alibi_slopes"] = (rng.random((N, H) if option == "together" else H) / 4).astype(real)
    if option in ("sinks", "own_sinks", "together"):
        given["sinks"] = rng.normal(size=(N, H) if option == "own_sinks" else H).astype(real)
    if option in RELATIVE_OPTIONS:
        rows = sum(shape.queries) + shape.past[0] if option == "relative_rows" else 1
        own = (N, H, 1, 41) if option == "own_relative" else (H, rows, 41)
        given["relative_bias"] = rng.normal(size=own).astype(real)
    if option == "scale":
        given["scale"] = -1.7
    if option == "dropout":
        given |= {"dropout_p": 0.3, "rng": attnpy.DropoutKey(12345)}
    if option.startswith("rotary"):
        rows, keys = sum(shape.queries) + shape.past[0], sum(shape.keys) + shape.past[1]
        given["rotary"] = rotary_tables(1 + max((1, *shape.queries, *shape.keys)), shape.E // 2, real)
        if option == "rotary":
            given |= {"is_causal": True, "causal_offset": np.array(1)}
        else:
            given |= {"query_positions": rng.integers(0, 2, rows), "key_positions": rng.integers(0, 2, keys)}
    return given


def forward(hidden_of):
    """hidden_of: which elements of the operands of one sequence no result depends on."""

    def make(shape, dtype, option="plain", seed=0):
        rng = np.random.default_rng([seed, *map(ord, f"{shape}{option}")])
        stored, real = DTYPES[dtype], np.float64 if dtype == "float64" else np.float32
        rows, keys = sum(shape.queries) + shape.past[0], sum(shape.keys) + shape.past[1]
        sizes = {"query": (rows, shape.H, shape.E), "key": (keys, shape.G, shape.E), "value": (keys, shape.G, shape.D)}
        arguments = {name: rng.normal(size=size).astype(stored) for name, size in sizes.items()}
        arguments["cu_seqlens_q"] = np.cumsum([0, *shape.queries]).astype(np.int32)
        arguments["cu_seqlens_k"] = np.cumsum([0, *shape.keys])
        arguments |= {"return_lse": True, **options(option, shape, rng, real)}
        hidden = _joined(arguments, lambda own: hidden_of(own), sizes)
        return Call("varlen_attention", arguments, named(shape, dtype, option, seed), hidden)

    return make


def backward(hidden_of):
    make_forward = forward(hidden_of)

    def make(shape, dtype, option="plain", seed=0):
        rng = np.random.default_rng([seed, *map(ord, f"gradient{shape}{option}")])
        call = make_forward(shape, dtype, option, seed)
        output, lse = call()
        arguments = {k: x for k, x in call.arguments.items() if k != "return_lse"}
        arguments |= {"grad_output": rng.normal(size=output.shape).astype(output.dtype), "output": output, "lse": lse}
        if option in ("scale", "sinks", "together"):
            arguments["grad_lse"] = rng.normal(size=lse.shape).astype(lse.dtype)
        operands = ("query", "key", "value", "sinks", "alibi_slopes", "relative_bias")
        arguments["needs"] = tuple(name for name in operands if name in arguments)
        names = [name for name in (*packed.QUERY_ROWS, *packed.KEY_ROWS, *packed.LSES) if name in arguments]
        hidden = _joined(
            arguments, lambda own: gradient_hidden(own, hidden_of(own)), {x: arguments[x].shape for x in names}
        )
        return Call("varlen_attention_backward", arguments, call.label, hidden)

    return make


def _joined(arguments, hidden_of, shapes):
    """What is hidden in each sequence, and all that lies past the last."""
    whole = {name: np.ones(shape, bool) for name, shape in shapes.items()}
    for rows, keys, own in packed.sequences(arguments):
        found = hidden_of(own)
        for name in whole:
            packed.put(whole[name], name, rows, keys, found.get(name, np.zeros(np.shape(own[name]), bool)))
    return whole


def varlen_row(hidden_of, refused):
    return Row(
        forward(hidden_of),
        SHAPES,
        OPTIONS + RELATIVE_OPTIONS,
        heavy=[*HEAVY, (HEAVY[1][0], "own_relative")],
        refused=refused,
    )


def varlen_backward_row(hidden_of, refused):
    heavy = [*HEAVY, (HEAVY[1][0], "relative"), (HEAVY[0][0], "relative_rows")]
    return Row(backward(hidden_of), SHAPES[:-1], OPTIONS + RELATIVE_OPTIONS, heavy=heavy, refused=refused)
