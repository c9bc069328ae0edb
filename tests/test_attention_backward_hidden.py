"""Gradients of attention: scores far from 0, what is hidden, threads, memory."""

import math

import numerics
import numpy as np
import pytest
from inputs import (
    TYPES,
    assert_same_gradients,
    backward_of,
    check_call,
    check_gradients,
    operands,
    seed_of,
)
from oracle import visible_keys
from test_attention_memory import extra_megabytes, needs_proc

import attnpy

UNIT = 2.0**-53
backward = attnpy.scaled_dot_product_attention_backward


# --- numbers far from 0


@pytest.mark.parametrize("level", [-120.0, 300.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("by", ["products", "bias", "sinks"])
def test_scores_far_from_zero(level, dtype, by):
    """All scores about `level`: exp(s) alone would be out of range, exp(s - lse) is not."""
    rng = np.random.default_rng(seed_of(level, by))
    query, key, value = operands(rng, TYPES[dtype], H=2, L=67, S=130, E=8, D=4)
    options = {}
    if by == "products":
        query[..., 0], key[..., 0] = level, math.sqrt(8)
    else:
        options["bias"] = np.full((1, 1), level)
    if by == "sinks":
        options["sinks"] = np.array([level + 5, level - 5])
    arguments = backward_of(query, key, value, random=rng, **options)
    got = check_call("scaled_dot_product_attention_backward", arguments)
    for name in arguments["needs"]:
        assert np.isfinite(getattr(got, name)).all()
    assert np.abs(arguments["lse"] - level).max() < 30


def test_part_of_the_keys_with_the_output_of_all():
    """The gradients of a part, with output and log-sum-exp of the whole, are its part of the whole gradients."""
    rng = np.random.default_rng(6)
    query, key, value = operands(rng, np.float64, L=70, S=200)
    arguments = backward_of(query, key, value, random=rng)
    whole = backward(**arguments)
    parts = [backward(**{**arguments, "key": key[..., part, :], "value": value[..., part, :]})
             for part in (slice(0, 77), slice(77, 200))]  # fmt: skip
    size = np.abs(whole.query).max() + np.abs(arguments["grad_output"]).sum(-1).max() * np.abs(value).max()
    np.testing.assert_allclose(sum(part.query for part in parts), whole.query, rtol=0, atol=600 * UNIT * size)
    for name in ("key", "value"):
        joined = np.concatenate([getattr(part, name) for part in parts], -2)
        np.testing.assert_allclose(joined, getattr(whole, name), rtol=0, atol=600 * UNIT * 70 * size)


# --- what is hidden


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", TYPES)
def test_padding_may_hold_anything(bad, dtype):
    """Beyond the lengths of queries and keys, in operands, bias, grad_output, output and both log-sum-exps."""
    rng = np.random.default_rng(7)
    L, S, queries, keys = 130, 140, [70, 0, 130], [100, 140, 3]
    real = np.float64 if dtype == "float64" else np.float32
    arrays = operands(rng, TYPES[dtype], batch=(3,), H=2, G=1, L=L, S=S, E=5, D=3)
    bias = rng.normal(size=(3, 1, L, S)).astype(real)
    options = {
        "query_lengths": queries,
        "kv_lengths": keys,
        "is_causal": True,
        "bias": bias,
        "sinks": rng.normal(size=2),
    }
    arguments = backward_of(*arrays, random=rng, **options)
    wanted = backward(**arguments)
    for b, (rows, seen) in enumerate(zip(queries, keys)):
        for name in ("query", "grad_output", "output"):
            arguments[name][b, :, rows:] = bad
        for name in ("lse", "grad_lse"):
            arguments[name][b, :, rows:] = bad
        for name in ("key", "value"):
            arguments[name][b, :, seen:] = bad
        bias[b, :, rows:], bias[b, :, :, seen:] = bad, bad
    assert_same_gradients(backward(**arguments), wanted)
    for name in wanted._fields[:3]:
        assert np.isfinite(getattr(wanted, name).astype(real)).all()
    assert (wanted.query[0, :, 70:] == 0).all() and (wanted.key[1] == 0).all() and (wanted.value[2, :, 3:] == 0).all()


def test_rows_that_see_nothing():
    """Their operands and gradients may hold anything; with a sink, it takes grad_lse."""
    rng = np.random.default_rng(8)
    query, key, value = operands(rng, np.float64, batch=(), H=2, L=70, S=66)
    seen = np.ones((70, 66), bool)
    blind = [0, 5, 63, 64, 69]
    seen[blind] = False
    for sinks in (None, np.array([0.5, -1.0])):
        options = {"attn_mask": seen} | ({} if sinks is None else {"sinks": sinks})
        arguments = backward_of(query, key, value, random=rng, **options)
        got = check_call("scaled_dot_product_attention_backward", arguments)
        assert (got.query[:, blind] == 0).all()
        dirty = {name: arguments[name].copy() for name in ("query", "grad_output", "output", "lse", "grad_lse")}
        for name in ("query", "grad_output", "output") + (("lse", "grad_lse") if sinks is None else ()):
            dirty[name][:, blind] = np.nan
        assert_same_gradients(backward(**arguments | dirty), got)
        if sinks is not None:
            only = {
                **arguments,
                "attn_mask": np.zeros((70, 66), bool),
                "needs": ("sinks", "query"),
                "lse": sinks[:, None] + np.zeros(70),
            }
            got = backward(**only)
            np.testing.assert_allclose(got.sinks, only["grad_lse"].sum(-1), rtol=0, atol=400 * UNIT)
            assert (got.query == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_nan_stays_among_those_that_see_it(dtype):
    """A key, a value, a query or a gradient that is NaN changes no bit of rows and keys that do not meet it."""
    rng = np.random.default_rng(9)
    n, at = 200, 100
    arrays = dict(zip(("query", "key", "value"), operands(rng, TYPES[dtype], H=2, L=n, S=n, E=4, D=3)))
    options = {"window_size": (10, 0)}
    seen = visible_keys({**arrays, **options})[0, 0]
    clean = backward_of(**arrays, random=np.random.default_rng(0), **options)
    wanted = backward(**clean)
    for name in ("query", "key", "value", "grad_output"):
        dirty = {k: x.copy() if isinstance(x, np.ndarray) else x for k, x in clean.items()}
        dirty[name][..., at, :] = np.nan
        if name != "grad_output":
            output, lse = attnpy.scaled_dot_product_attention(
                dirty["query"], dirty["key"], dirty["value"], **options, return_lse=True
            )
            dirty |= {"output": output, "lse": lse}
        got = backward(**dirty)
        rows = seen[:, at] if name in ("key", "value") else np.arange(n) == at  # that meet the NaN
        keys = seen[rows].any(0)
        numerics.same_bits(got.query[..., ~rows, :], wanted.query[..., ~rows, :], f"{name}: queries")
        for field in ("key", "value"):
            ours, theirs = getattr(got, field), getattr(wanted, field)
            numerics.same_bits(ours[..., ~keys, :], theirs[..., ~keys, :], f"{name}: {field}")
        assert np.isnan(got.query[..., rows, :].astype(float)).all(), name
        assert np.isnan(got.key[..., keys, :].astype(float)).all(), name
        if name == "value":  # the weights are as before
            numerics.same_bits(got.value, wanted.value, "value: value")


def test_infinite_biases_hide_and_have_no_gradient():
    rng = np.random.default_rng(10)
    query, key, value = operands(rng, np.float32, batch=(), H=2, L=67, S=70)
    hidden = rng.random((67, 70)) < 0.3
    bias = np.where(hidden, -np.inf, rng.normal(size=(67, 70))).astype(np.float32)
    got = check_gradients(query, key, value, random=rng, bias=bias)
    assert (got.bias[hidden] == 0).all() and (got.bias[~hidden] != 0).all()
    key[:, 5], value[:, 5] = np.nan, np.inf
    bias[:, 5] = -np.inf
    got = check_gradients(query, key, value, random=rng, bias=bias)
    assert (got.key[:, 5] == 0).all() and (got.value[:, 5] == 0).all() and np.isfinite(got.query).all()


# --- threads, memory


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("option", ["plain", "causal", "all"])
def test_any_number_of_threads(dtype, option):
    """One head and many; every gradient has the bits of one thread."""
    for H, G, L, S in ((1, 1, 700, 900), (6, 2, 300, 200), (8, 1, 7, 500)):
        rng = np.random.default_rng(seed_of(option, H))
        real = np.float64 if dtype == "float64" else np.float32
        arrays = operands(rng, TYPES[dtype], batch=(2,), H=H, G=G, L=L, S=S, E=16, D=8)
        options = {} if option == "plain" else {"is_causal": True, "causal_offset": S - L}
        if option == "all":
            options |= {"bias": rng.normal(size=(L, S)).astype(real), "sinks": rng.normal(size=H),
                        "attn_mask": rng.normal(size=(H, 1, S)).astype(real), "alibi_slopes": rng.random(H),
                        "dropout_p": 0.2, "rng": attnpy.DropoutKey(1)}  # fmt: skip
        arguments = backward_of(*arrays, random=np.random.default_rng(1), **options)
        with attnpy.num_threads(1):
            wanted = backward(**arguments)
        for threads in (2, 3, 4):
            with attnpy.num_threads(threads):
                assert_same_gradients(backward(**arguments), wanted, f"{threads} threads")


ARRAYS = """
x, y = rng.standard_normal((2, 1, {n}, 16), np.float32)
o, l = attnpy.scaled_dot_product_attention(x, x, x, {options}, return_lse=True)
"""
CALL = "attnpy.scaled_dot_product_attention_backward(y, x, x, x, o, l, {options}, {more})"


@needs_proc
@pytest.mark.parametrize(
    ("n", "options", "more", "most"),
    [
        (16384, "window_size=(400, 0)", "", 16),  # the scores would be 1 GiB, the gradients are 3 MiB
        (16384, "is_causal=True", "needs=('query',)", 16),
        (8192, "bias=np.zeros(8192, np.float32)", "needs=('key', 'bias')", 16),
        (4096, "bias=np.zeros((4096, 4096), np.float32)", "needs=('bias',)", 64 + 16),  # the gradient itself: 64 MiB
    ],
)
def test_memory_grows_with_the_length(n, options, more, most):
    extra = extra_megabytes(ARRAYS.format(n=n, options=options).strip(), CALL.format(options=options, more=more))
    assert extra < most, f"{extra:.0f} MiB"
