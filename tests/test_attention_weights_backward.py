"""Gradients of the weights: numbers by hand, central differences, chosen rows, what is hidden, memory."""

import math

import numerics
import numpy as np
import pytest
from inputs import (
    OPTIONS,
    TYPES,
    assert_central_differences,
    assert_same_gradients,
    check_call,
    differentiable,
    operands,
    options_of,
    seed_of,
)
from oracle import visible_keys
from test_attention_memory import extra_megabytes, needs_proc

import attnpy

UNIT = 2.0**-53
NAME = "attention_weights_backward"
backward = attnpy.attention_weights_backward


def backward_of(query, key, *, random, **options):
    """The arguments for a random gradient of the weights, and all operands that have one."""
    weights = attnpy.attention_weights(query, key, **options)
    given = {"query": query, "key": key, **options}
    return {"grad_weights": random.standard_normal(weights.shape).astype(weights.dtype), **given,
            "needs": differentiable(given)}  # fmt: skip


def test_two_keys_by_hand():
    """One query 1 and keys 0 and log 3: weights 1/4 and 3/4. dP = (1, 3), delta 5/2, dS = (-3/8, 3/8)."""
    key = math.log(3)
    got = backward(
        [[1, 3]], [[1.0]], [[0.0], [key]], scale=1, bias=np.zeros((1, 2)), alibi_slopes=[0.0], causal_offset=1,
        needs=("query", "key", "bias", "alibi_slopes"),
    )  # fmt: skip
    wanted = {"query": [[3 / 8 * key]], "key": [[-3 / 8], [3 / 8]], "bias": [[-3 / 8, 3 / 8]], "alibi_slopes": [3 / 8]}
    for name, x in wanted.items():
        np.testing.assert_allclose(getattr(got, name), x, rtol=0, atol=80 * UNIT, err_msg=name)
    assert got.value is None and got.attn_mask is None and got.relative_bias is None


def test_a_sink_by_hand():
    """One key and a sink with equal logits: weight 1/2, delta 1/2 dP, dS = 1/4 dP, and the sink gets the opposite."""
    zero = np.zeros((1, 1, 1))
    got = backward(zero + 8, zero, zero, sinks=[0.0], bias=zero, needs=("bias", "sinks"))
    np.testing.assert_allclose([got.bias.item(), got.sinks.item()], [2, -2], rtol=0, atol=80 * UNIT)


def check_differences(names):
    """Every gradient under the options `names`, of all rows and of some; False where they cannot be together."""
    batch, H, L, S = (2,), 2, 3, 4
    rng = np.random.default_rng(seed_of("weights", names))
    query, key, _ = operands(rng, np.float64, batch=batch, H=H, G=1, L=L, S=S, E=3)
    options = options_of(names, rng, batch, H, L, S)
    if options is None:
        return False
    for rows in (None, [-1, 0, 2, 2]):
        chosen = options if rows is None else {**options, "rows": np.array(rows)}
        arguments = backward_of(query, key, random=rng, **chosen)
        got = check_call(NAME, arguments, f"options {names}, rows {rows}")
        grad_weights = arguments["grad_weights"]
        forward = {"query": query, "key": key, **chosen}
        reach = 3 * 0.6 * np.abs(query).max() * np.abs(key).max() + 16  # sum_d |scale q k| and what is added
        cap = UNIT * (8 + 2 * 65 + 2 * 6 * reach) * np.abs(grad_weights).sum()

        def loss(grad_weights=grad_weights, **moved):
            return math.fsum((grad_weights * attnpy.attention_weights(**moved)).flat)

        for name in arguments["needs"]:
            note = f"options {names}, rows {rows}"
            assert_central_differences(loss, getattr(got, name), forward, name, cap, note)
    return True


WITHOUT_DROPOUT = [name for name in OPTIONS if name != "dropout"]


@pytest.mark.parametrize("option", ["none", *WITHOUT_DROPOUT])
def test_central_differences(option):
    assert check_differences(() if option == "none" else (option,))


@pytest.mark.parametrize("first", WITHOUT_DROPOUT[:-1])
def test_central_differences_of_pairs(first):
    others = WITHOUT_DROPOUT[WITHOUT_DROPOUT.index(first) + 1 :]
    assert sum(check_differences((first, other)) for other in others) >= len(others) - 4


def test_like_the_gradients_of_the_output():
    """The output is P V: with dP = dO V^T both functions say the same."""
    rng = np.random.default_rng(0)
    query, key, value = operands(rng, np.float64, H=4, G=2, L=70, S=131, E=5, D=3)
    options = {"is_causal": True, "sinks": rng.normal(size=4), "bias": rng.normal(size=(70, 131)), "softcap": 3.0}
    output, lse = attnpy.scaled_dot_product_attention(query, key, value, **options, return_lse=True)
    grad_output = rng.standard_normal(output.shape)
    needs = ("query", "key", "bias", "sinks")
    wanted = attnpy.scaled_dot_product_attention_backward(
        grad_output, query, key, value, output, lse, **options, needs=needs
    )
    got = backward(grad_output @ value.repeat(2, 1).swapaxes(-1, -2), query, key, **options, needs=needs)
    for name in needs:
        ours, theirs = getattr(got, name), getattr(wanted, name)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2000 * UNIT * np.abs(theirs).max(), err_msg=name)


@pytest.mark.parametrize("dtype", TYPES)
def test_chosen_rows_add_up(dtype):
    """Rows in any order and named again: as one gradient of all rows, into which theirs are added."""
    rng = np.random.default_rng(1)
    for L, S in ((5, 70), (70, 131), (200, 66)):
        query, key, _ = operands(rng, TYPES[dtype], H=4, G=2, L=L, S=S, E=8)
        options = {"bias": rng.normal(size=(4, L, S)), "is_causal": True, "causal_offset": 1}
        once = rng.permutation(L)[: L // 2 + 1]
        arguments = backward_of(query, key, random=rng, rows=once, **options)
        got = check_call(NAME, arguments)
        whole = np.zeros((2, 4, L, S), query.dtype)
        whole[..., once, :] = arguments["grad_weights"]
        every = check_call(NAME, {**arguments, "grad_weights": whole, "rows": None})
        np.testing.assert_allclose(
            got.bias, every.bias, rtol=0, atol=4000 * numerics.unit(np.float64 if dtype == "float64" else np.float32)
        )
        again = np.concatenate([once - L, once[:3], once[:1]])
        check_call(NAME, backward_of(query, key, random=rng, rows=again, **options), f"rows {again}")
    none = backward(np.zeros((2, 4, 0, S), query.dtype), query, key, rows=[])
    assert (none.query == 0).all() and (none.key == 0).all()


@pytest.mark.parametrize("L", [1, 63, 65, 129])
def test_sizes_around_blocks(L):
    for n, S in enumerate((1, 64, 65, 127, 130)):
        for m, options in enumerate((
            {},
            {"is_causal": True, "rows": np.arange(0, L, 3)},
            {"query_lengths": [L, L // 2], "kv_lengths": [S - S // 3, S], "window_size": (20, 3)},
        )):  # fmt: skip
            rng = np.random.default_rng(seed_of(L, S, m))
            query, key, _ = operands(rng, TYPES[[*TYPES][(n + m) % 4]], H=4, G=(4, 2, 1)[n % 3], L=L, S=S, E=6)
            check_call(NAME, backward_of(query, key, random=rng, **options))


def test_empty_axes():
    for h, rows, keys in np.ndindex(2, 2, 2):
        query, key = np.ones((2, 2 * h, 3 * rows, 4)), np.ones((2, 2 * h, 5 * keys, 4))
        options = {"bias": np.zeros((2 * h, 3 * rows, 5 * keys)), "sinks": np.zeros(2 * h)}
        arguments = backward_of(query, key, random=np.random.default_rng(0), **options)
        got = backward(**arguments)
        for name in arguments["needs"]:
            assert getattr(got, name).shape == arguments[name].shape
            assert keys or (getattr(got, name) == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_hidden_places_may_hold_anything(bad, dtype):
    rng = np.random.default_rng(2)
    query, key, _ = operands(rng, TYPES[dtype], H=2, L=70, S=140, E=5)
    seen = rng.random((70, 140)) < 0.6
    seen[[0, 5, 63, 64]] = False
    options = {"attn_mask": seen, "kv_lengths": [100, 140], "query_lengths": [70, 3], "is_causal": True,
               "bias": rng.normal(size=(2, 1, 70, 140)), "sinks": rng.normal(size=2)}  # fmt: skip
    arguments = backward_of(query, key, random=rng, **options)
    wanted = check_call(NAME, arguments)
    visible = visible_keys({"query": query, "key": key, **options})
    dirty = {name: arguments[name].copy() for name in ("grad_weights", "query", "key", "bias")}
    dirty["grad_weights"][~visible] = bad
    dirty["query"][~visible.any(-1)] = bad
    dirty["key"][~visible.any(-2)] = bad
    dirty["bias"][~visible.any(1, keepdims=True)] = bad
    assert_same_gradients(backward(**arguments | dirty), wanted)


@pytest.mark.parametrize("level", [-120.0, 300.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_far_from_zero(level, dtype):
    rng = np.random.default_rng(seed_of(level))
    query, key, _ = operands(rng, TYPES[dtype], H=2, L=67, S=130, E=8)
    query[..., 0], key[..., 0] = level, math.sqrt(8)
    check_call(NAME, backward_of(query, key, random=rng, sinks=np.array([level, level + 3])))


def test_needs_and_threads_change_no_bit():
    rng = np.random.default_rng(3)
    query, key, _ = operands(rng, np.float32, H=4, G=2, L=300, S=200, E=8)
    options = {"bias": rng.normal(size=(300, 200)).astype(np.float32), "sinks": rng.normal(size=4), "is_causal": True}
    arguments = backward_of(query, key, random=rng, **options)
    names = arguments.pop("needs")
    with attnpy.num_threads(1):
        wanted = backward(**arguments, needs=names)
    for threads in (1, 2, 4):
        with attnpy.num_threads(threads):
            assert_same_gradients(backward(**arguments, needs=names), wanted, f"{threads} threads")
            for name in names:
                got = backward(**arguments, needs=[name])
                numerics.same_bits(getattr(got, name), getattr(wanted, name), f"{threads} threads, {name} only")
                assert sum(x is not None for x in got) == 1


@needs_proc
def test_memory_beyond_the_gradient_that_is_given():
    """Two rows of 16384 keys; and 4096 x 4096, where weights of another 64 MiB would show."""
    arrays = "x = rng.standard_normal((1, 16384, 16), np.float32)\ng = np.ones((1, 2, 16384), np.float32)"
    extra = extra_megabytes(arrays, "attnpy.attention_weights_backward(g, x, x, rows=[0, 16383])")
    assert extra < 16, f"{extra:.0f} MiB"
    arrays = "x = rng.standard_normal((1, 4096, 16), np.float32)\ng = np.ones((1, 4096, 4096), np.float32)"
    extra = extra_megabytes(arrays, "attnpy.attention_weights_backward(g, x, x)")
    assert extra < 16, f"{extra:.0f} MiB"
