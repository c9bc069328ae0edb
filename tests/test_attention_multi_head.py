"""multi_head_attention beside its parts (the same bits) and beside the whole formula; its gradients."""

import autograd
import numpy as np
import pytest
from cases_multi_head import OPTIONS, SHAPES, in_parts, multi_head

import attnpy


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bits_are_those_of_the_parts(shape, option, dtype):
    call = multi_head(shape, dtype, option)
    got = call()
    attention, last = in_parts(call.arguments)
    np.testing.assert_array_equal(got[0], attnpy.linear(**last), err_msg=call.label)
    if len(got) == 2:
        without = {k: v for k, v in attention.items() if k != "value"}
        np.testing.assert_array_equal(got[1], attnpy.attention_weights(**without), err_msg=call.label)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_whole_formula(shape, option):
    call = multi_head(shape, "float64", option)
    plain = {k: v.unpack() if isinstance(v, attnpy.PackedWeight) else v for k, v in call.arguments.items()}
    wanted = attnpy.reference.multi_head_attention(**plain)
    for ours, theirs in zip(call(), wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12, err_msg=call.label)


def test_mixed_dtypes_and_dropout():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 5, 8)), rng.standard_normal((4, 8, 8))
    weights = dict(zip(("query_weight", "key_weight", "value_weight", "output_weight"), w.astype(np.float32)))
    mixed = attnpy.multi_head_attention(x, x.astype(np.float32), x.astype(np.float32), **weights, num_heads=2)
    plain = attnpy.multi_head_attention(x, x, x, **weights, num_heads=2)
    assert mixed.dtype == np.float64
    np.testing.assert_allclose(mixed, plain, rtol=1e-5, atol=1e-5)
    key = attnpy.DropoutKey((1, 2, 3, 4))
    call = {"num_heads": 2, "dropout_p": 0.5, "rng": key} | weights
    first, second = (attnpy.multi_head_attention(x, x, x, **call) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, plain)


DIFFERENTIATED = ("query", "key", "value", "query_weight", "key_weight", "value_weight", "output_weight", "qkv_weight",
                  "query_bias", "key_bias", "value_bias", "output_bias", "qkv_bias")  # fmt: skip


@pytest.mark.parametrize("option", ["plain", "biases", "weights", "qkv", "lengths", "broadcast", "together"])
def test_gradients_against_central_differences(option):
    call = multi_head(SHAPES[1], "float64", option)
    names = [name for name in DIFFERENTIATED if name in call.arguments]
    rng = np.random.default_rng(1)
    results = call()
    directions = [rng.standard_normal(r.shape) for r in results]

    def loss(*operands):
        got = attnpy.multi_head_attention(**call.arguments | dict(zip(names, operands, strict=True)))
        got = got if len(results) == 2 else (got,)
        return sum((g * d).sum() for g, d in zip(got, directions, strict=True))

    operands = [call.arguments[name] for name in names]
    gradients = autograd.grad(loss, tuple(range(len(names))))(*operands)
    for n, name in enumerate(names):
        step = rng.standard_normal(operands[n].shape)
        values = [loss(*operands[:n], operands[n] + e * step, *operands[n + 1 :]) for e in (1e-6, -1e-6)]
        numeric = (values[0] - values[1]) / 2e-6
        found = (gradients[n] * step).sum()
        assert abs(found - numeric) < 1e-6 * (1 + abs(numeric)), f"{name}, {option}: {found}, wanted {numeric}"


def test_gradients_of_mask_and_sinks():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 5, 8)), rng.standard_normal((4, 8, 8))
    weights = dict(zip(("query_weight", "key_weight", "value_weight", "output_weight"), w))
    bias, sinks, of = rng.standard_normal((2, 5, 5)), rng.standard_normal(2), rng.standard_normal((2, 5, 8))

    def loss(bias, sinks):
        return (attnpy.multi_head_attention(x, x, x, **weights, num_heads=2, bias=bias, sinks=sinks) * of).sum()

    for n, gradient in enumerate(autograd.grad(loss, (0, 1))(bias, sinks)):
        step = rng.standard_normal(gradient.shape)
        given = [[bias, sinks], [bias, sinks]]
        for sign, arguments in zip((1e-6, -1e-6), given):
            arguments[n] = arguments[n] + sign * step
        numeric = (loss(*given[0]) - loss(*given[1])) / 2e-6
        assert abs((gradient * step).sum() - numeric) < 1e-6 * (1 + abs(numeric))
