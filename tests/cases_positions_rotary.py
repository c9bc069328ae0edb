"""The rows of rotary embeddings: shapes, options, inputs."""

from typing import NamedTuple

import numpy as np
import refusals_positions_rotary as refusals
from calls import DTYPES, Call, Row, named

ROTARY_OPTIONS = (
    "plain", "interleaved", "inverse", "positions", "one_position", "long", "batch_tables", "wide", "wide_interleaved",
    "part", "part_interleaved", "wide_part", "float64_tables",
)  # fmt: skip
WITHOUT_TABLES = ("frequencies", "default")  # made by NumPy, which clears the floating-point flags
TABLE_OPTIONS = ("plain", "factor", "fractions")


class Size(NamedTuple):
    """Batch axes, heads, tokens, features."""

    batch: tuple
    H: int
    L: int
    D: int

    def __str__(self):
        return f"{'x'.join(map(str, self.batch)) or '-'}/H{self.H}L{self.L}D{self.D}"


# 16 pairs are a vector of the widest level in float32, 8 in float64.
ROTARY_SHAPES = [
    Size((), 1, 1, 2), Size((2, 3), 5, 7, 12), Size((3,), 2, 65, 34), Size((2,), 1, 9, 64), Size((), 3, 131, 128),
    Size((), 2, 5, 62), Size((2,), 12, 1, 80), Size((), 2, 17, 258), Size((0,), 2, 3, 4), Size((2,), 0, 3, 4),
    Size((2,), 2, 0, 4), Size((2,), 2, 3, 0),
]  # fmt: skip
TABLE_SHAPES = [((1,), 1), ((5,), 7), ((2, 3, 11), 4), ((0,), 3), ((3,), 0), ((65,), 64)]


def embedding(size, dtype, option="plain", seed=0):
    rng = np.random.default_rng([seed, *map(ord, f"{size}{option}")])
    batch, H, L, D = size
    real = np.float64 if dtype == "float64" else np.float32
    arguments = {"x": rng.normal(size=(*batch, H, L, D)).astype(DTYPES[dtype])}
    words, hidden = option.split("_"), {}
    if "interleaved" in words:
        arguments["interleaved"] = True
    if option == "inverse":
        arguments["inverse"] = True
    dim = D // 4 * 2 if "part" in words else D
    if option in ("frequencies", "default"):
        if option == "frequencies":
            arguments |= {"inverse_frequencies": rng.random(D // 2), "positions": 9 * rng.random((*batch, L))}
        return Call("rotary_embedding", arguments, named(size, dtype, option, seed))
    rows = L + 3 if option in ("positions", "one_position", "long") else L
    shape = (*batch[1:], rows, dim // 2) if option == "batch_tables" else (rows, dim // 2)
    angles = 9 * rng.normal(size=shape)
    tables = {"cos": 1.25 * np.cos(angles), "sin": 1.25 * np.sin(angles)}
    if "wide" in words:
        arguments["rotary_dim"] = dim
        for name, x in tables.items():
            tables[name] = np.repeat(x, 2, -1) if "interleaved" in words else np.concatenate([x, x], -1)
    arguments |= {name: x.astype(np.float64 if option == "float64_tables" else real) for name, x in tables.items()}
    if rows > L:
        places = np.broadcast_to(np.arange(L), (*batch, L))
        if option != "long":
            places = rng.integers(0, rows - 1, (*batch, L) if option == "positions" else (*batch, 1))
            arguments["positions"] = places
        unused = ~np.isin(np.arange(rows), places)
        hidden = {name: np.repeat(unused[:, None], dim // 2, 1) for name in tables}
    return Call("rotary_embedding", arguments, named(size, dtype, option, seed), hidden)


def _table(dtype, option, seed, shape, n, function, names):
    rng = np.random.default_rng([seed, n, *map(ord, f"{shape}{option}")])
    places = {
        name: (20 * rng.random(shape) if option == "fractions" else rng.integers(-9, 30, shape)).astype(DTYPES[dtype])
        for name in names
    }
    frequencies = rng.random((2, n) if option == "factor" and len(names) == 2 else n).astype(DTYPES[dtype])
    arguments = {
        **places,
        "inverse_frequencies": frequencies,
        "dtype": np.float64 if dtype == "float64" else np.float32,
    }
    if option == "factor":
        arguments["attention_factor"] = 1.375
    return Call(function, arguments, named((shape, n), dtype, option, seed))


def tables(shape, dtype, option="plain", seed=0):
    return _table(dtype, option, seed, *shape, "rotary_tables", ["positions"])


def tables_2d(shape, dtype, option="plain", seed=0):
    return _table(dtype, option, seed, *shape, "rotary_tables_2d", ["rows", "columns"])


POSITIONS_ROTARY = {
    "rotary_embedding": Row(
        embedding, ROTARY_SHAPES, ROTARY_OPTIONS, batched=True, refused=refusals.EMBEDDING,
        heavy=[(Size((2,), 8, 301, 64), "plain"), (Size((3,), 4, 300, 128), "positions")],
    ),
    "rotary_frequencies": Row(refused=refusals.FREQUENCIES),
    "rotary_tables": Row(
        tables, TABLE_SHAPES, TABLE_OPTIONS, heavy=[(((300,), 64), "plain")], outs=False, keeps_flags=False,
        refused=refusals.TABLES,
    ),
    "rotary_tables_2d": Row(
        tables_2d, TABLE_SHAPES, TABLE_OPTIONS, heavy=[(((300,), 64), "plain")], outs=False, keeps_flags=False,
        refused=refusals.TABLES_2D,
    ),
    "permute_rotary_weights": Row(refused=refusals.PERMUTE),
}  # fmt: skip
