"""The rows of sinusoidal encodings and learned tables: shapes, options, inputs."""

from typing import NamedTuple

import numpy as np
import refusals_positions_tables as refusals
from calls import DTYPES, Call, Row, named


class Sinusoid(NamedTuple):
    """Batch axes, positions, features."""

    batch: tuple
    L: int
    D: int


class Image(NamedTuple):
    """Rows, columns, features."""

    R: int
    C: int
    D: int


class Tokens(NamedTuple):
    """Batch axes, tokens, rows of the table, features."""

    batch: tuple
    L: int
    N: int
    D: int


class Line(NamedTuple):
    """Batch axes, rows before and after, features."""

    batch: tuple
    N: int
    M: int
    D: int


class Grid(NamedTuple):
    """Batch axes, prefix tokens, grids before and after, features."""

    batch: tuple
    P: int
    before: tuple
    after: tuple
    D: int


SINUSOID_SHAPES = [
    Sinusoid((), 1, 1), Sinusoid((2,), 5, 7), Sinusoid((2, 3), 3, 16), Sinusoid((), 65, 34), Sinusoid((), 131, 6),
    Sinusoid((3,), 64, 5), Sinusoid((), 2, 257), Sinusoid((), 0, 4), Sinusoid((0,), 3, 4), Sinusoid((2,), 4, 2),
]  # fmt: skip
SINUSOID_OPTIONS = ("plain", "concatenated", "half_minus_one", "both", "fractional", "far", "base", "same")
IMAGE_SHAPES = [
    Image(1, 1, 2), Image(3, 5, 8), Image(4, 67, 14), Image(70, 2, 12), Image(0, 3, 4), Image(3, 0, 4),
    Image(2, 3, 130),
]  # fmt: skip
IMAGE_OPTIONS = ("plain", "integers", "columns_first", "concatenated", "arrays", "half_minus_one")
TOKENS_SHAPES = [
    Tokens((), 1, 1, 1), Tokens((2, 3), 5, 7, 11), Tokens((3,), 4, 9, 64), Tokens((2,), 33, 40, 67),
    Tokens((), 65, 300, 3),
    Tokens((70,), 3, 5, 4), Tokens((0,), 3, 5, 4), Tokens((2,), 0, 5, 4), Tokens((2,), 3, 5, 0), Tokens((2,), 0, 0, 4),
]  # fmt: skip
TOKENS_OPTIONS = ("plain", "offset", "offsets", "own_table", "other")
LINE_SHAPES = [
    Line((), 1, 1, 1), Line((2,), 5, 9, 7), Line((2, 3), 9, 5, 33), Line((), 64, 100, 3), Line((), 100, 1, 2),
    Line((), 1, 300, 2), Line((3,), 7, 7, 5), Line((0,), 3, 5, 4), Line((2,), 3, 0, 4), Line((2,), 0, 0, 4),
    Line((2,), 3, 5, 0),
]  # fmt: skip
GRID_SHAPES = [
    Grid((), 0, (1, 1), (1, 1), 1), Grid((2,), 1, (3, 4), (5, 2), 7), Grid((2, 3), 2, (7, 5), (3, 9), 33),
    Grid((), 1, (4, 4), (4, 4), 5), Grid((), 0, (2, 1), (1, 150), 3), Grid((), 1, (1, 2), (90, 2), 3),
    Grid((), 0, (5, 6), (2, 3), 17), Grid((0,), 1, (2, 2), (3, 3), 4), Grid((2,), 1, (2, 2), (0, 3), 4),
    Grid((2,), 1, (0, 3), (2, 0), 4), Grid((2,), 1, (2, 2), (3, 3), 0),
]  # fmt: skip


def _rng(shape, option, seed, more=0):
    return np.random.default_rng([seed, more, *map(ord, f"{shape}{option}")])


def sinusoid(shape, dtype, option="plain", seed=0):
    """same: positions that do not move, and that move by quarters."""
    rng = _rng(shape, option, seed)
    batch, L, dim = shape
    first = rng.integers(-100, 1000, (*batch, 1))
    arguments = {"positions": first + np.arange(L), "dim": dim, "dtype": DTYPES[dtype]}
    if option == "plain":
        arguments["positions"] = arguments["positions"].astype(np.float64) if batch else L
    if option in ("concatenated", "both"):
        arguments["layout"] = "concatenated"
    if option in ("half_minus_one", "both"):
        arguments["denominator"] = "half_minus_one"
    if option == "fractional":
        arguments["positions"] = 2.0**20 * rng.random((*batch, L))
    if option == "far":
        arguments["positions"] = 2.0**20 - first - np.arange(L)
    if option == "base":
        arguments["base"] = 1e6
    if option == "same":
        arguments["positions"] = 17.25 + np.where(first % 2, 0, 0.25) * np.arange(L)
    return Call("sinusoidal_encoding", arguments, named(shape, dtype, option, seed))


def image(shape, dtype, option="plain", seed=0):
    rng = _rng(shape, option, seed)
    rows, columns, dim = shape
    arguments = {"rows": np.arange(rows) / 1, "columns": columns, "dim": dim, "dtype": DTYPES[dtype]}
    if option == "integers":
        arguments["rows"] = rows
    if option == "columns_first":
        arguments["order"] = "columns_first"
    if option == "concatenated":
        arguments["layout"] = "concatenated"
    if option == "half_minus_one":
        arguments["denominator"] = "half_minus_one"
    if option == "arrays":
        arguments |= {"rows": np.arange(1, rows + 1) / max(rows, 1) * 2 * np.pi, "columns": 1000 * rng.random(columns)}
    return Call("sinusoidal_encoding_2d", arguments, named(shape, dtype, option, seed))


def tokens(shape, dtype, option="plain", seed=0):
    """other: a table of another dtype."""
    rng = _rng(shape, option, seed)
    batch, L, N, D = shape
    axes = (*batch, N, D) if option == "own_table" else (1,) * (len(batch) > 1) + (N, D)
    kind = DTYPES["float32" if dtype == "float64" else "float64"] if option == "other" else DTYPES[dtype]
    arguments = {
        "x": rng.normal(size=(*batch, L, D)).astype(DTYPES[dtype]),
        "table": rng.normal(size=axes).astype(kind),
    }
    offset = np.zeros(batch, int)
    if option == "offset":
        arguments["offset"] = N - L
        offset[...] = N - L
    if option in ("offsets", "own_table"):
        arguments["offset"] = offset = rng.integers(0, N - L + 1, batch)
    row = np.arange(N)
    taken = (row >= offset[..., None]) & (row < offset[..., None] + L)
    if option != "own_table":
        taken = taken.any(tuple(range(len(batch))))
    hidden = np.broadcast_to(~taken[..., None], axes)
    return Call("add_positions", arguments, named(shape, dtype, option, seed), {"table": hidden})


def tokens_backward(shape, dtype, option="plain", seed=0):
    call = tokens(shape, dtype, option, seed)
    x = call.arguments.pop("x")
    gradient = _rng(shape, option, seed, 1).normal(size=x.shape).astype(x.dtype)
    arguments = {"grad_output": gradient, **call.arguments}
    hidden = {"table": np.ones(call.arguments["table"].shape, bool)}
    return Call("add_positions_backward", arguments, call.label, hidden)


def line(function):
    def make(shape, dtype, option="plain", seed=0):
        batch, N, M, D = shape
        backward = function.endswith("_backward")
        table = _rng(shape, option, seed).normal(size=(*batch, M if backward else N, D)).astype(DTYPES[dtype])
        arguments = {"grad_output" if backward else "table": table, "length": N if backward else M}
        return Call(function, arguments, named(shape, dtype, option, seed))

    return make


def grid(function):
    def make(shape, dtype, option="plain", seed=0):
        batch, prefix, before, after, D = shape
        backward = function.endswith("_backward")
        points = int(np.prod(after if backward else before)) + prefix
        table = _rng(shape, option, seed).normal(size=(*batch, points, D)).astype(DTYPES[dtype])
        arguments = {
            "grad_output" if backward else "table": table,
            "from_grid": before, "to_grid": after, "num_prefix_tokens": prefix,
        }  # fmt: skip
        return Call(function, arguments, named(shape, dtype, option, seed))

    return make


def _row(function, make, shapes, heavy, refused):
    return Row(make(function), shapes, heavy=[(heavy, "plain")], batched=True, refused=refused)


LONG, LARGE = Line((4,), 200, 700, 65), Grid((2,), 1, (14, 14), (24, 20), 129)
POSITIONS_TABLES = {
    "sinusoidal_encoding": Row(
        sinusoid, SINUSOID_SHAPES, SINUSOID_OPTIONS, heavy=[(Sinusoid((3,), 3000, 258), "concatenated")],
        batched=True, refused=refusals.SINUSOIDAL,
    ),
    "sinusoidal_encoding_2d": Row(
        image, IMAGE_SHAPES, IMAGE_OPTIONS, heavy=[(Image(90, 90, 258), "plain")], refused=refusals.SINUSOIDAL_2D,
    ),
    "add_positions": Row(
        tokens, TOKENS_SHAPES, TOKENS_OPTIONS, heavy=[(Tokens((7,), 600, 700, 515), "offsets")], batched=True,
        refused=refusals.ADD,
    ),
    "add_positions_backward": Row(
        tokens_backward, TOKENS_SHAPES, TOKENS_OPTIONS, heavy=[(Tokens((7,), 600, 700, 515), "offsets")],
        refused=refusals.ADD_BACKWARD,
    ),
    "interpolate_positions": _row("interpolate_positions", line, LINE_SHAPES, LONG, refusals.LINE),
    "interpolate_positions_backward": _row(
        "interpolate_positions_backward", line, LINE_SHAPES, LONG, refusals.LINE_BACKWARD
    ),
    "interpolate_positions_2d": _row("interpolate_positions_2d", grid, GRID_SHAPES, LARGE, refusals.GRID),
    "interpolate_positions_2d_backward": _row(
        "interpolate_positions_2d_backward", grid, GRID_SHAPES, LARGE, refusals.GRID_BACKWARD
    ),
}  # fmt: skip
