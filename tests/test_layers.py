"""Activations, gates and normalisation: small numbers by hand, special values, differences, promises."""

import ml_dtypes
import numpy as np
import pytest
from inputs import check_call
from numerics import same_bits

import attnpy
from attnpy import reference

SIDES = pytest.mark.parametrize("side", [attnpy, reference], ids=["attnpy", "reference"])
REALS = pytest.mark.parametrize("real", [np.float32, np.float64])
INF, NAN = np.inf, np.nan
UNARY = [("gelu", {}), ("gelu", {"approximate": "tanh"}), ("silu", {}), ("relu", {})]
GATES = [("swiglu", {}), ("geglu", {}), ("geglu", {"approximate": "tanh"})]


@SIDES
def test_activations_by_hand(side):
    """P(N <= 1) = 0.8413447460685429; 1 / (1 + 1/e) = 0.7310585786300049; (1 + tanh 0.8338...) / 2 = 0.8411919906."""
    x = [-1.0, 0.0, 1.0]
    np.testing.assert_allclose(side.gelu(x), [-0.15865525393145705, 0, 0.8413447460685429], rtol=1e-15)
    np.testing.assert_allclose(side.silu(x), [-0.2689414213699951, 0, 0.7310585786300049], rtol=1e-15)
    np.testing.assert_allclose(side.gelu(x, approximate="tanh"), [-0.1588080094, 0, 0.8411919906], rtol=1e-9)
    np.testing.assert_array_equal(side.relu(x), [0, 0, 1])
    np.testing.assert_allclose(side.swiglu([3.0], [1.0]), [3 * 0.7310585786300049], rtol=1e-15)
    np.testing.assert_allclose(side.geglu([1.0, -1.0, 3.0, 5.0]), [3 * 0.8413447460685429, -5 * 0.15865525393145705])


@SIDES
@pytest.mark.parametrize(("name", "options"), UNARY)
def test_special_values_of_activations(side, name, options):
    x = np.array([-INF, INF, NAN, 0.0, -200.0, 200.0])
    with np.errstate(all="ignore"):
        got = getattr(side, name)(x, **options)
        slope = getattr(side, f"{name}_backward")(np.ones(6), x, **options)
    np.testing.assert_allclose(got, [0, INF, NAN, 0, 0, 200], atol=1e-80)
    np.testing.assert_allclose(slope, [0, 1, NAN, 0 if name == "relu" else 0.5, 0, 1], atol=1e-80)


@pytest.mark.parametrize("function", ["gelu", "silu"])
def test_small_results_keep_their_digits(function):
    """Where a formula with 1 + erf(x) would have none left."""
    x = -np.linspace(4, 12, 500, dtype=np.float32)
    exact = getattr(reference, function)(x)
    np.testing.assert_allclose(getattr(attnpy, function)(x), exact, rtol=8 * 2.0**-24)


@pytest.mark.parametrize(("name", "options"), UNARY)
def test_slopes_are_differences(name, options):
    x = np.concatenate([np.linspace(-4, 4, 33), [0.1]]) + 1 / 64
    h = 2.0**-16
    f = getattr(attnpy, name)
    difference = (f(x + h, **options) - f(x - h, **options)) / (2 * h)
    got = getattr(attnpy, f"{name}_backward")(np.full_like(x, 3), x, **options)
    np.testing.assert_allclose(got, 3 * difference, rtol=0, atol=1e-8)  # h^2 / 6 times a third derivative below 3


@pytest.mark.parametrize(("name", "options"), GATES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_one_array_is_its_two_halves(name, options, dtype):
    rng = np.random.default_rng(1)
    gate, x, grad = (rng.standard_normal((3, 5, 33)).astype(dtype) for _ in range(3))
    both = np.concatenate([gate, x], -1)
    function, backward = getattr(attnpy, name), getattr(attnpy, f"{name}_backward")
    same_bits(function(both, **options), function(x, gate, **options), name)
    of_x, of_gate = backward(grad, x, gate, **options)
    same_bits(backward(grad, both, **options), np.concatenate([of_gate, of_x], -1), name)


@pytest.mark.parametrize("real", [np.float32, np.float64, np.float16])
def test_a_gate_broadcasts(real):
    rng = np.random.default_rng(2)
    x, gate = rng.standard_normal((4, 1, 7)).astype(real), rng.standard_normal((3, 7)).astype(real)
    same_bits(attnpy.swiglu(x, gate), attnpy.swiglu(*map(np.copy, np.broadcast_arrays(x, gate))), "broadcast")


@pytest.mark.parametrize(("name", "options"), [*UNARY, *GATES])
def test_scalars_and_lists(name, options):
    function = getattr(attnpy, name)
    arguments = (2.0, 1.0) if "glu" in name else (2.0,)
    assert isinstance(function(*arguments, **options), np.float64)
    many = [[x] for x in arguments]
    assert function(*many, **options).tolist() == [function(*arguments, **options)]
    assert getattr(attnpy, f"{name}_backward")([1], *many, **options)[0].dtype == np.float64


def test_in_place():
    """Over each operand, one array at a time; halves too."""
    rng = np.random.default_rng(3)
    x, gate, grad = (rng.standard_normal((64, 37)) for _ in range(3))
    wanted = attnpy.swiglu_backward(grad, x, gate)
    a, b = x.copy(), gate.copy()
    attnpy.swiglu_backward(grad, a, b, out=(b, a))
    same_bits(b, wanted[0], "the gradient of x over the gate")
    same_bits(a, wanted[1], "the gradient of the gate over x")
    both = np.concatenate([gate, x], -1)
    same_bits(attnpy.swiglu_backward(grad, both, out=both), np.concatenate(wanted[::-1], -1), "halves")
    y = x.copy()
    same_bits(attnpy.layer_norm(y, out=y), attnpy.layer_norm(x), "layer_norm")
    y, r = x.copy(), grad.copy()
    attnpy.layer_norm(y, residual=r, return_sum=True, out=(r, y))
    same_bits(y, x + grad, "the sum over x")
    same_bits(r, attnpy.layer_norm(x + grad), "the result over the residual")


# --- normalisation


@SIDES
def test_norms_by_hand(side):
    """1, 3: mean 2, variance 1. 3, 4, 0, 0: mean square 25 / 4."""
    np.testing.assert_allclose(side.layer_norm([1.0, 3.0], [2.0, 3.0], [0.5, 0.0], eps=0), [-1.5, 3], rtol=1e-15)
    np.testing.assert_allclose(side.rms_norm([3.0, 4, 0, 0], [1.0, 2, 3, 4], eps=0), [1.2, 3.2, 0, 0], rtol=1e-15)
    y, total = side.layer_norm([0.0, 1.0], residual=[1.0, 2.0], return_sum=True, eps=3)
    np.testing.assert_allclose(y, [-0.5, 0.5], rtol=1e-15)
    np.testing.assert_array_equal(total, [1, 3])


@pytest.mark.parametrize("function", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("axis", [-1, 0, (0, 2), (2, 0), None])
def test_gradients_are_differences(function, axis):
    """Of sum(c y) by every element of x, weight and bias."""
    rng = np.random.default_rng(4)
    x, c = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 4))
    axes = sorted(n % 3 for n in (range(3) if axis is None else (axis,) if isinstance(axis, int) else axis))
    row = tuple(x.shape[n] for n in axes)
    given = {"x": x, "weight": rng.standard_normal(row)}
    given |= {"bias": rng.standard_normal(row)} if function == "layer_norm" else {}

    def loss(**changed):
        return float((getattr(attnpy, function)(**{**given, **changed}, axis=axis, eps=0.1) * c).sum())

    found = getattr(attnpy, f"{function}_backward")(c, x, given["weight"], axis=axis, eps=0.1)
    for (name, operand), gradient in zip(given.items(), found, strict=True):
        for place in np.ndindex(operand.shape):
            up, down = operand.copy(), operand.copy()
            up[place] += 2.0**-14
            down[place] -= 2.0**-14
            difference = (loss(**{name: up}) - loss(**{name: down})) * 2.0**13
            assert abs(gradient[place] - difference) < 1e-6, (name, place)


@pytest.mark.parametrize("offset", [1e3, 1e5, 1e6])
def test_a_mean_far_from_zero_costs_nothing(offset):
    """float32 holds 1e6 + x to 1/16; the result is that of the rows as they are stored."""
    rng = np.random.default_rng(5)
    x = (offset + 10 * rng.standard_normal((20, 1000))).astype(np.float32)
    check_call("layer_norm", {"x": x}, constructed=True)
    assert np.abs(attnpy.layer_norm(x) - reference.layer_norm(x)).max() < 64 * 2.0**-24


def test_bits_of_gradients_do_not_depend_on_the_batch():
    rng = np.random.default_rng(6)
    x, grad = rng.standard_normal((2, 300, 65)).astype(np.float32)
    weight = rng.standard_normal(65).astype(np.float32)
    whole = attnpy.layer_norm_backward(grad, x, weight)[0]
    for first, end in ((0, 1), (3, 100), (299, 300)):
        part = attnpy.layer_norm_backward(grad[first:end], x[first:end], weight)[0]
        same_bits(part, whole[first:end], f"rows {first} ... {end}")


@REALS
def test_no_rows_and_no_elements(real):
    assert attnpy.layer_norm(np.ones((3, 0), real)).shape == (3, 0)
    grad_x, grad_weight, grad_bias = attnpy.layer_norm_backward(np.ones((0, 4), real), np.ones((0, 4), real))
    assert grad_x.shape == (0, 4) and not grad_weight.any() and not grad_bias.any() and grad_bias.shape == (4,)


def test_dtypes_of_gradients():
    x, weight = np.ones((2, 4), np.float16), np.ones(4, np.float64)
    assert [y.dtype for y in attnpy.layer_norm_backward(x, x, weight)] == [np.float16, np.float64, np.float64]
    assert [y.dtype for y in attnpy.rms_norm_backward(x, x)] == [np.float16, np.float16]
    assert attnpy.layer_norm(x, weight).dtype == np.float16


@pytest.mark.parametrize("function", ["layer_norm", "rms_norm"])
def test_one_bad_number_spoils_its_row_only(function):
    x = np.random.default_rng(7).standard_normal((5, 40))
    wanted = getattr(attnpy, function)(x)
    for bad in (NAN, INF):
        spoilt = x.copy()
        spoilt[2, 7] = bad
        got = getattr(attnpy, function)(spoilt)
        assert np.isnan(got[2, 7]) and np.isnan(got[2]).all() == (function == "layer_norm" or np.isnan(bad))
        same_bits(np.delete(got, 2, 0), np.delete(wanted, 2, 0), "other rows")
