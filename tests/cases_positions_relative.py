"""The rows of ALiBi's and T5's helpers: shapes, options, inputs."""

from typing import NamedTuple

import numpy as np
import refusals_positions_relative as refusals
from calls import DTYPES, Call, Row, named

import attnpy


class Alibi(NamedTuple):
    batch: tuple
    H: int
    L: int
    S: int


class T5(NamedTuple):
    """num_buckets, heads, queries, keys."""

    buckets: int
    H: int
    L: int
    S: int


ALIBI_SHAPES = [
    Alibi((), 1, 1, 1), Alibi((2,), 3, 5, 7), Alibi((2, 3), 2, 33, 64), Alibi((), 5, 65, 131), Alibi((3,), 1, 1, 1031),
    Alibi((0,), 2, 3, 4), Alibi((2,), 0, 3, 4), Alibi((2,), 3, 0, 4), Alibi((2,), 3, 4, 0),
]  # fmt: skip
ALIBI_OPTIONS = ("plain", "offset", "offsets")
T5_SHAPES = [
    T5(4, 1, 1, 1), T5(32, 3, 5, 7), T5(32, 4, 300, 200), T5(7, 2, 65, 40), T5(64, 5, 1, 1031), T5(33, 2, 900, 1),
    T5(32, 0, 3, 4), T5(32, 2, 0, 4), T5(32, 2, 4, 0),
]  # fmt: skip
T5_OPTIONS = ("plain", "causal", "offset", "far", "farther")
BUCKET_SHAPES = [(1,), (3, 257), (2, 65, 3), (1201,), (0, 4), ()]
BUCKET_OPTIONS = ("plain", "causal", "few", "far", "odd")
INTEGERS = {"float32": np.int32, "float64": np.int64, "float16": np.uint16, "bfloat16": np.uint64}  # of a row's dtypes


def alibi(shape, dtype, option="plain", seed=0):
    rng = np.random.default_rng([seed, *map(ord, f"{shape}{option}")])
    batch, H, L, S = shape
    slopes = rng.random((*batch, H)).astype(DTYPES[dtype])
    arguments = {"slopes": slopes, "query_length": L, "key_length": S}
    if option == "offset":
        arguments["offset"] = -3
    if option == "offsets":
        arguments["offset"] = rng.integers(-L - 3, S + 1000, batch)
    return Call("alibi_bias", arguments, named(shape, dtype, option, seed))


def t5(shape, dtype, option="plain", seed=0):
    rng = np.random.default_rng([seed, *map(ord, f"{shape}{option}")])
    buckets, H, L, S = shape
    arguments = {"table": rng.normal(size=(buckets, H)).astype(DTYPES[dtype]), "query_length": L, "key_length": S}
    if option == "causal":
        arguments["bidirectional"] = False
    if option == "offset":
        arguments["offset"] = 60
    if option in ("far", "farther"):
        arguments["max_distance"] = 1000 if option == "far" else 10**9
    return Call("t5_relative_bias", arguments, named(shape, dtype, option, seed))


def t5_backward(shape, dtype, option="plain", seed=0):
    """other: a gradient of another dtype than the table."""
    call = t5(shape, dtype, option, seed)
    bias = attnpy.t5_relative_bias(**call.arguments)
    rng = np.random.default_rng([seed, 1, *map(ord, f"{shape}{option}")])
    kind = bias.dtype if option != "other" or dtype == "bfloat16" else np.float32
    gradient = rng.normal(size=bias.shape).astype(kind)
    hidden = {"table": np.ones(call.arguments["table"].shape, bool)}
    return Call("t5_relative_bias_backward", {"grad_output": gradient, **call.arguments}, call.label, hidden)


def bucket(shape, dtype, option="plain", seed=0):
    rng = np.random.default_rng([seed, *shape])
    kind = np.dtype(INTEGERS[dtype])
    x = rng.integers(-300 if kind.kind == "i" else 0, 300, shape).astype(kind)
    x.reshape(-1)[:1] = np.iinfo(kind).max
    x.reshape(-1)[1:2] = np.iinfo(kind).min
    arguments = {"relative_position": x}
    if option == "causal":
        arguments["bidirectional"] = False
    if option == "few":
        arguments |= {"num_buckets": 4, "max_distance": 5}
    if option == "far":
        arguments |= {"num_buckets": 30, "max_distance": 10**12}
    if option == "odd":
        arguments |= {"num_buckets": 19, "max_distance": 90}
    return Call("relative_position_bucket", arguments, named(shape, dtype, option, seed))


POSITIONS_RELATIVE = {
    "alibi_slopes": Row(refused=refusals.ALIBI_SLOPES),
    "alibi_bias": Row(
        alibi, ALIBI_SHAPES, ALIBI_OPTIONS, heavy=[(Alibi((2,), 8, 300, 500), "plain")], batched=True,
        refused=refusals.ALIBI_BIAS,
    ),
    "relative_position_bucket": Row(
        bucket, BUCKET_SHAPES, BUCKET_OPTIONS, heavy=[((300, 500), "plain")], keeps_flags=False,
        refused=refusals.BUCKET,
    ),
    "t5_relative_bias": Row(
        t5, T5_SHAPES, T5_OPTIONS, heavy=[(T5(32, 900, 300, 300), "plain")], refused=refusals.T5, keeps_flags=False,
    ),
    "t5_relative_bias_backward": Row(
        t5_backward, T5_SHAPES, (*T5_OPTIONS, "other"), heavy=[(T5(32, 900, 300, 300), "plain")],
        refused=refusals.T5_BACKWARD, keeps_flags=False,
    ),
}  # fmt: skip
