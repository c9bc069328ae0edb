"""Gradients of attention: numbers by hand, central differences, sizes, sums over what broadcasts, needs=."""

import itertools
import math

import numpy as np
import pytest
from inputs import (
    OPTIONS,
    TYPES,
    assert_central_differences,
    assert_same_gradients,
    backward_of,
    check_call,
    check_gradients,
    differentiable,
    operands,
    options_of,
    seed_of,
)

import attnpy

UNIT = 2.0**-53
backward = attnpy.scaled_dot_product_attention_backward


# --- by hand


def test_two_keys_by_hand():
    """One query 1 and keys 0 and log 3: weights 1/4 and 3/4. Values (1, 0) and (0, 2), gradient of the output (1, 1).

    output (1/4, 3/2), delta 7/4, dP (1, 2), dS = (1/4 (1 - 7/4), 3/4 (2 - 7/4)) = (-3/16, 3/16).
    """
    key = math.log(3)
    query, keys, value = np.array([[1.0]]), np.array([[0.0], [key]]), np.array([[1.0, 0.0], [0.0, 2.0]])
    options = {"scale": 1.0, "bias": np.zeros((1, 2)), "alibi_slopes": [0.0], "causal_offset": 1}
    got = backward(
        [[1.0, 1.0]], query, keys, value, [[0.25, 1.5]], [math.log(4)], **options,
        needs=("query", "key", "value", "bias", "alibi_slopes"),
    )  # fmt: skip
    wanted = {
        "query": [[3 / 16 * key]], "key": [[-3 / 16], [3 / 16]], "value": [[1 / 4, 1 / 4], [3 / 4, 3 / 4]],
        "bias": [[-3 / 16, 3 / 16]], "alibi_slopes": [3 / 16],  # the distances are 1 and 0
    }  # fmt: skip
    for name, x in wanted.items():
        np.testing.assert_allclose(getattr(got, name), x, rtol=0, atol=40 * UNIT, err_msg=name)
    assert got.attn_mask is None and got.sinks is None and got.relative_bias is None


def test_a_sink_by_hand():
    """One key and a sink with equal logits: weight 1/2, output 1/2 v. With v = 3, dO = 1: delta 3/2, dS = 3/4."""
    zero = np.zeros((1, 1, 1))
    options = {"sinks": np.zeros(1), "bias": zero, "needs": ("value", "bias", "sinks")}
    got = backward(zero + 1, zero, zero, zero + 3, zero + 1.5, [[math.log(2)]], **options)
    for name, x in {"value": 0.5, "bias": 0.75, "sinks": -0.75}.items():
        np.testing.assert_allclose(getattr(got, name).item(), x, rtol=0, atol=20 * UNIT, err_msg=name)
    # the gradient of the log-sum-exp is the weights, the sink's included
    got = backward(zero, zero, zero, zero + 3, zero + 1.5, [[math.log(2)]], **options, grad_lse=[[1.0]])
    for name, x in {"value": 0, "bias": 0.5, "sinks": 0.5}.items():
        np.testing.assert_allclose(getattr(got, name).item(), x, rtol=0, atol=20 * UNIT, err_msg=name)


def test_softcap_by_hand():
    """q k = 2 c atanh(1/2) twice over: tanh is 1/2, so that 3/4 of what flows into the score passes."""
    c, x = 1.5, 1.5 * math.atanh(0.5)
    query, keys, value = np.array([[1.0]]), np.array([[x], [-x]]), np.array([[1.0], [0.0]])
    weight = 1 / (1 + math.exp(-c))  # scores c/2 and -c/2
    output, lse = [[weight]], [math.log(2 * math.cosh(c / 2))]
    bias = np.zeros((1, 2))
    got = backward(
        [[1.0]], query, keys, value, output, lse, scale=1, softcap=c, bias=bias, needs=("query", "key", "bias")
    )
    flow = weight * (1 - weight)
    np.testing.assert_allclose(got.bias, [[flow, -flow]], rtol=0, atol=20 * UNIT)
    np.testing.assert_allclose(got.key, [[0.75 * flow], [-0.75 * flow]], rtol=0, atol=20 * UNIT)
    np.testing.assert_allclose(got.query, [[1.5 * flow * x]], rtol=0, atol=20 * UNIT)


def test_only_dropped_weights_have_no_gradient_of_the_value():
    """Beside the mask itself: dV = (P M)^T dO, dP = M (dO V^T)."""
    rng = np.random.default_rng(0)
    query, key, value = operands(rng, np.float64, batch=(2, 1), H=3, L=5, S=70)
    options = {"dropout_p": 0.4, "rng": attnpy.DropoutKey(7)}
    arguments = backward_of(query, key, value, random=rng, **options, bias=np.zeros((5, 70)), grad_lse=False)
    got = check_call("scaled_dot_product_attention_backward", {**arguments, "needs": ("query", "value", "bias")})
    mask = attnpy.dropout_mask((2, 1, 3, 5, 70), 0.4, attnpy.DropoutKey(7), dtype=np.float64)
    weights, grad_output = attnpy.attention_weights(query, key), arguments["grad_output"]
    wanted = (weights * mask).swapaxes(-1, -2) @ grad_output
    size = (weights * mask).swapaxes(-1, -2) @ np.abs(grad_output)
    assert (np.abs(got.value - wanted) <= 400 * UNIT * size).all()
    grad_weights = mask * (grad_output @ value.swapaxes(-1, -2))
    score = weights * (grad_weights - (grad_weights * weights).sum(-1, keepdims=True))
    np.testing.assert_allclose(got.bias, score.sum((0, 1, 2)), rtol=0, atol=4000 * UNIT)


# --- central differences


def loss_of(grad_output, grad_lse):
    def loss(**arguments):
        output, lse = attnpy.scaled_dot_product_attention(**arguments, return_lse=True)
        return math.fsum((grad_output * output).flat) + math.fsum((grad_lse * np.where(lse > -np.inf, lse, 0)).flat)

    return loss


def check_differences(names, shape=((2,), 2, 3, 4)):
    """Every gradient under the options `names`; False where they cannot be together."""
    batch, H, L, S = shape
    rng = np.random.default_rng(seed_of("differences", names))
    query, key, value = operands(rng, np.float64, batch=batch, H=H, G=1, L=L, S=S, E=3, D=2)
    options = options_of(names, rng, batch, H, L, S)
    if options is None:
        return False
    arguments = backward_of(query, key, value, random=rng, **options)
    got = check_call("scaled_dot_product_attention_backward", arguments, f"options {names}")
    forward = {"query": query, "key": key, "value": value, **options}
    grad_output, grad_lse = arguments["grad_output"], arguments["grad_lse"]
    finite = np.where(arguments["lse"] > -np.inf, np.abs(arguments["lse"]), 0)
    reach = 3 * 0.6 * np.abs(query).max() * np.abs(key).max() + 16  # sum_d |scale q k| and what is added
    size = np.abs(grad_output).sum() * np.abs(value).max() / 0.7 + (np.abs(grad_lse) * (1 + finite)).sum()
    cap = UNIT * (8 + 2 * 65 + 2 * 6 * reach) * size
    for name in arguments["needs"]:
        note = f"options {names}"
        assert_central_differences(loss_of(grad_output, grad_lse), getattr(got, name), forward, name, cap, note)
    return True


@pytest.mark.parametrize("option", ["none", *OPTIONS])
def test_central_differences(option):
    assert check_differences(() if option == "none" else (option,))


@pytest.mark.parametrize("first", list(OPTIONS)[:-1])
def test_central_differences_of_pairs(first):
    others = list(OPTIONS)[list(OPTIONS).index(first) + 1 :]
    assert sum(check_differences((first, other)) for other in others) >= len(others) - 4


def test_a_shift_of_all_scores_changes_nothing():
    """Without sinks the gradients of the scores of a row add up to 0, with grad_lse to it."""
    rng = np.random.default_rng(1)
    query, key, value = operands(rng, np.float64, L=65, S=130, E=4)
    bias = np.zeros((2, 4, 65, 130))
    arguments = backward_of(query, key, value, random=rng, bias=bias, is_causal=True, grad_lse=False)
    rows = backward(**arguments).bias.sum(-1)
    size = np.abs(arguments["grad_output"]).sum(-1) * np.abs(value).max()
    assert (np.abs(rows) <= 600 * UNIT * size).all()
    arguments["grad_lse"] = grad_lse = rng.standard_normal((2, 4, 65))
    rows = backward(**arguments).bias.sum(-1)
    assert (np.abs(rows - grad_lse) <= 600 * UNIT * (size + np.abs(grad_lse))).all()


# --- sizes


BLOCKS = (1, 63, 64, 65, 127, 129, 300)


@pytest.mark.parametrize("L", BLOCKS)
def test_sizes_around_blocks(L):
    for n, S in enumerate(BLOCKS):
        for m, options in enumerate((
            {},
            {"is_causal": True},
            {"window_size": (20, 3)},
            {"query_lengths": [L, L // 2], "kv_lengths": [S - S // 3, S], "is_causal": True},
        )):  # fmt: skip
            rng = np.random.default_rng(seed_of(L, S, m))
            dtype = TYPES[[*TYPES][(n + m) % 4] if L * S < 10_000 else "float32"]
            H, G = ((2, 2), (2, 1), (3, 1), (4, 2))[(n + m + L) % 4]
            arrays = operands(rng, dtype, H=H, G=G, L=L, S=S, E=6, D=5)
            check_gradients(*arrays, random=rng, **options, grad_lse=m % 2 == 0)


@pytest.mark.parametrize("heads", [(4, 2), (6, 1), (12, 4), (8, 8)], ids=str)
def test_shared_heads(heads):
    """Like repeated heads, and the sum over each group."""
    H, G = heads
    for L, S in ((1, 70), (3, 130), (20, 33), (70, 66)):
        rng = np.random.default_rng(seed_of(H, L))
        query, key, value = operands(rng, np.float64, H=H, G=G, L=L, S=S, E=5, D=3)
        arguments = backward_of(query, key, value, random=rng, is_causal=True)
        got = check_call("scaled_dot_product_attention_backward", arguments)
        many = backward(**{**arguments, "key": key.repeat(H // G, 1), "value": value.repeat(H // G, 1)})
        np.testing.assert_allclose(got.query, many.query, rtol=0, atol=2000 * UNIT)
        for ours, theirs in ((got.key, many.key), (got.value, many.value)):
            summed = theirs.reshape(2, G, H // G, S, -1).sum(2)
            np.testing.assert_allclose(ours, summed, rtol=0, atol=6000 * UNIT * (H // G))


def test_empty_axes():
    for b, h, rows, keys, d in itertools.product((0, 2), repeat=5):
        arrays = np.ones((b, h, rows, 3)), np.ones((b, h, keys, 3)), np.ones((b, h, keys, d))
        options = {"bias": np.zeros((h, rows, keys)), "sinks": np.zeros(h), "alibi_slopes": np.ones(h)}
        arguments = backward_of(*arrays, random=np.random.default_rng(0), **options)
        got = backward(**arguments)
        for name in arguments["needs"]:
            x = getattr(got, name)
            assert x.shape == arguments[name].shape
            if keys == 0 and name != "sinks":
                assert (x == 0).all(), name
        if rows and not keys:  # the sink is all there is: lse = sink
            np.testing.assert_allclose(got.sinks, arguments["grad_lse"].sum((0, 2)), rtol=0, atol=20 * UNIT)
    nothing = np.ones((3, 0))
    arguments = backward_of(nothing, np.ones((2, 0)), np.eye(2), random=np.random.default_rng(0), scale=1.0)
    got = backward(**arguments)
    assert got.query.shape == (3, 0) and got.key.shape == (2, 0)
    np.testing.assert_allclose(got.value, 0.5 * np.full((2, 1), 1) * arguments["grad_output"].sum(0), atol=20 * UNIT)


@pytest.mark.parametrize("dtype", TYPES)
def test_head_sizes_that_differ(dtype):
    for n, (E, D) in enumerate(((1, 3), (64, 1), (17, 128), (128, 40), (96, 64), (3, 200))):
        rng = np.random.default_rng(n)
        arrays = operands(rng, TYPES[dtype], L=70, S=66, H=2, E=E, D=D)
        check_gradients(*arrays, random=rng, softcap=2.0, sinks=rng.normal(size=2), note=f"E {E} D {D}")


# --- broadcasting, layouts


def test_broadcast_operands_get_the_sum():
    """The gradient of an operand that stands in many places is the sum of those of its copies."""
    rng = np.random.default_rng(2)
    full = {
        "query": (3, 2, 4, 9, 5), "key": (3, 2, 2, 70, 5), "value": (3, 2, 2, 70, 3), "bias": (3, 2, 4, 9, 70),
        "attn_mask": (3, 2, 4, 9, 70), "sinks": (3, 2, 4), "alibi_slopes": (3, 2, 4),
    }  # fmt: skip
    small = {
        "query": [(2, 4, 9, 5), (3, 1, 4, 9, 5), (4, 9, 5)], "key": [(2, 70, 5), (1, 2, 2, 70, 5)],
        "value": [(3, 1, 2, 70, 3), (2, 70, 3)], "bias": [(9, 70), (4, 1, 70), (3, 1, 1, 9, 1), (1,), (2, 1, 9, 70)],
        "attn_mask": [(3, 1, 4, 9, 70), (1, 1), (2, 4, 1, 70)], "sinks": [(4,), (1, 2, 4), (3, 1, 4)],
        "alibi_slopes": [(4,), (3, 1, 4)],
    }  # fmt: skip
    for name, shapes in small.items():
        for shape in shapes:
            given = {other: rng.normal(size=size) for other, size in full.items()}
            given[name] = rng.normal(size=shape)
            together = backward_of(**given, random=rng, causal_offset=3)
            got = check_call("scaled_dot_product_attention_backward", together, f"{name} {shape}")
            copies = {**together, name: np.broadcast_to(given[name], full[name]).copy(), "needs": (name,)}
            every = getattr(backward(**copies), name)
            wanted = np.zeros(shape)
            places = np.broadcast_to(np.arange(wanted.size).reshape(shape), full[name])
            np.add.at(wanted.reshape(-1), places, every)
            size = np.zeros(shape)
            np.add.at(size.reshape(-1), places, np.abs(every))
            ours = getattr(got, name)
            assert ours.shape == shape
            assert (np.abs(ours - wanted) <= 4000 * UNIT * (size + 1)).all(), f"{name} {shape}"


def test_integers_and_lists_get_float64():
    got = backward([[1, 0]], [[1, 2]], [[1, 0], [0, 1]], [[1, 2], [3, 4]], [[2.0, 3.0]], [1.0])
    assert all(getattr(got, name).dtype == np.float64 for name in ("query", "key", "value"))
    options = {"bias": np.zeros((3, 4), np.float16), "sinks": [1, 2], "alibi_slopes": np.ones(2, np.float32)}
    arrays = operands(np.random.default_rng(0), np.float32, H=2, L=3, S=4)
    arguments = backward_of(*arrays, random=np.random.default_rng(1), **options)
    got = check_call("scaled_dot_product_attention_backward", arguments)
    dtypes = {name: getattr(got, name).dtype.name for name in arguments["needs"]}
    assert dtypes == {"query": "float32", "key": "float32", "value": "float32", "bias": "float16",
                      "sinks": "float64", "alibi_slopes": "float32"}  # fmt: skip


def test_swapped_axes_are_read_and_written_in_place():
    """(B, L, H, D) data by swapaxes, operands and out= backwards: the bits of plain copies."""
    rng = np.random.default_rng(3)
    arrays = operands(rng, np.float32, H=4, G=2, L=70, S=131, E=8, D=6)
    arguments = backward_of(*arrays, random=rng, bias=rng.normal(size=(4, 70, 131)).astype(np.float32))
    wanted = backward(**arguments)
    for view in (
        lambda x: x.swapaxes(-2, -3).copy().swapaxes(-2, -3) if x.ndim > 3 else x,
        lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2),
        lambda x: np.flip(np.flip(x).copy()),
    ):
        views = {name: view(x) if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
        out = {name: view(np.full_like(arguments[name], np.nan)) for name in arguments["needs"]}
        got = backward(**views, out=out)
        assert all(getattr(got, name) is out[name] for name in out)
        assert_same_gradients(got, wanted)


def test_out_may_be_the_operands():
    rng = np.random.default_rng(4)
    arguments = backward_of(*operands(rng, np.float32, L=70, S=66), random=rng, bias=np.zeros((70, 66), np.float32))
    wanted = backward(**arguments)
    arguments = {name: x.copy() if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
    got = backward(**arguments, out={name: arguments[name] for name in arguments["needs"]})
    assert got.key is arguments["key"] and got.bias is arguments["bias"]
    assert_same_gradients(got, wanted)


# --- needs


def test_every_choice_of_needs_has_the_same_bits():
    rng = np.random.default_rng(5)
    for L, S, dtype in ((5, 70, np.float64), (131, 70, np.float32), (70, 131, np.float16)):
        real = np.float64 if dtype == np.float64 else np.float32
        options = {
            "bias": rng.normal(size=(4, L, S)).astype(real), "attn_mask": rng.normal(size=(L, S)).astype(real),
            "sinks": rng.normal(size=4), "alibi_slopes": rng.random(4), "softcap": 2.0, "is_causal": True,
        }  # fmt: skip
        arguments = backward_of(*operands(rng, dtype, H=4, G=2, L=L, S=S), random=rng, **options)
        names = arguments.pop("needs")
        together = backward(**arguments, needs=names)
        choices = [choice for n in range(len(names)) for choice in itertools.combinations(names, n)]
        for choice in choices:
            got = backward(**arguments, needs=choice[::-1])
            wanted = [x if name in choice else None for name, x in zip(got._fields, together, strict=True)]
            assert_same_gradients(got, attnpy.AttentionGradients(*wanted), f"needs {choice}")


def test_differentiable_names_what_has_a_gradient():
    """What the tests above ask for."""
    given = {"query": 1.0, "key": 1.0, "value": 1.0, "attn_mask": True, "bias": 0.0}
    assert differentiable(given) == ("query", "key", "value", "bias")
    assert differentiable({**given, "attn_mask": 0.0, "sinks": 0.0}) == (
        "query",
        "key",
        "value",
        "attn_mask",
        "bias",
        "sinks",
    )
