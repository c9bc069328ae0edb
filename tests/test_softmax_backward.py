"""softmax_backward, log_softmax_backward, logsumexp_backward: small numbers, differences, special values, long rows."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from inputs import check_call
from numerics import same_bits

import attnpy
from attnpy import reference

NAMES = ("softmax", "log_softmax", "logsumexp")
ALL_TYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
INF, NAN = np.inf, np.nan
SIDES = pytest.mark.parametrize("side", [attnpy, reference], ids=["attnpy", "reference"])


def backward(name, grad, x, axis=-1, side=attnpy, **options):
    """The gradient of `name` at x, by way of its result."""
    y = getattr(side, name)(x, axis, **options)
    arguments = (grad, x, y) if name == "logsumexp" else (grad, y)
    return getattr(side, f"{name}_backward")(*arguments, axis, **options)


def check(name, grad, x, axis=-1, note="", **options):
    """Held to the accuracy rule."""
    y = np.asarray(getattr(attnpy, name)(x, axis, **options)).astype(x.dtype)
    saved = {"x": x, "output": y} if name == "logsumexp" else {"output": y}
    return check_call(f"{name}_backward", {"grad_output": grad, **saved, "axis": axis, **options}, note)


def grad_shape(name, shape, axis):
    return np.sum(np.ones(shape), axis).shape if name == "logsumexp" else shape


@SIDES
def test_by_hand(side):
    """y = 1/8, 2/8, 5/8 and g = 8, 0, 0: sum g y = 1, sum g = 8."""
    x, g, u = np.log([1.0, 2.0, 5.0]), [8.0, 0.0, 0.0], 2.0**-53
    np.testing.assert_allclose(backward("softmax", g, x, side=side), [7 / 8, -2 / 8, -5 / 8], rtol=0, atol=64 * u)
    np.testing.assert_allclose(backward("log_softmax", g, x, side=side), [7, -2, -5], rtol=0, atol=128 * u)
    np.testing.assert_allclose(backward("logsumexp", 16.0, x, side=side), [2, 4, 10], rtol=0, atol=128 * u)


@SIDES
def test_the_cross_entropy_of_two_classes(side):
    """-log_softmax at the right class: the probabilities, less 1 there."""
    got = backward("log_softmax", [[-1.0, 0.0], [0.0, -1.0]], [[0.0, np.log(3)]] * 2, side=side)
    np.testing.assert_allclose(got, [[-0.75, 0.75], [0.25, -0.25]], rtol=0, atol=16 * 2.0**-53)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("axis", [-1, 0, (0, 2), (1, 2, 0), None, ()])
@pytest.mark.parametrize("masked", [False, True])
def test_central_differences(name, axis, masked):
    """(f(x + h e_i) - f(x - h e_i)) / 2h along every e_i.

    Off by h^2 / 6 times a third derivative, which is below 6, and by what the contract lets two values of f err,
    u (73 + 2 |y|) each with |y| < 8, over 2h.
    """
    rng, h = np.random.default_rng(5), 1e-5
    x = rng.normal(size=(3, 2, 4))
    options = {"where": rng.random(x.shape) < 0.7} if masked else {}
    grad = rng.normal(size=grad_shape(name, x.shape, axis))

    def loss(x):
        y = np.asarray(getattr(attnpy, name)(x, axis, **options))
        return (grad * np.where(np.isneginf(y), 0.0, y)).sum()

    got = backward(name, grad, x, axis, **options)
    for i in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[i] = h
        wanted = (loss(x + step) - loss(x - step)) / (2 * h)
        allowed = np.abs(grad).sum() * (h**2 + 2.0**-53 * (73 + 2 * 8) / h)
        assert abs(got[i] - wanted) <= allowed, f"{name} axis {axis} at {i}: {got[i]}, differences {wanted}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ALL_TYPES)
def test_every_length_up_to_tails(name, dtype):
    for n in (*range(1, 71), 127, 128, 129, 1023, 1025, 4099):
        rng = np.random.default_rng(n)
        x = (4 * rng.standard_normal((24, n))).astype(dtype)
        grad = rng.standard_normal(grad_shape(name, x.shape, -1)).astype(dtype)
        check(name, grad, x, note=f"n = {n}, seed {n}")


@pytest.mark.parametrize("name", NAMES)
def test_tuples_of_axes_and_strides(name):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 5, 4, 7)).astype(np.float32)
    for view in (x, x.T, x[::-2, :, ::3], np.asfortranarray(x), np.broadcast_to(x[:, :1], x.shape)):
        for n in range(1, 5):
            for axes in itertools.combinations(range(4), n):
                shape = grad_shape(name, view.shape, axes)
                grad = rng.standard_normal(shape[::-1]).astype(np.float32).T
                got = check(name, grad, view, axes, note=f"strides {view.strides}, axes {axes}")
                assert got.flags.c_contiguous
    keepdims = rng.standard_normal((3, 1, 4, 1)).astype(np.float32)
    once = attnpy.logsumexp_backward(keepdims[:, 0, :, 0], x, attnpy.logsumexp(x, (1, 3)), (1, 3))
    again = attnpy.logsumexp_backward(keepdims, x, attnpy.logsumexp(x, (1, 3), keepdims=True), (1, 3), keepdims=True)
    same_bits(again, once, "keepdims")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ALL_TYPES)
@pytest.mark.parametrize("axis", [-1, 0, (0, 1)])
def test_what_is_left_out_is_zero_whatever_it_holds(name, dtype, axis):
    rng = np.random.default_rng(3)
    where = rng.random((9, 70)) < 0.6
    where[:, 7] = where[4] = False
    x, grad = (rng.standard_normal(shape).astype(dtype) for shape in (where.shape, grad_shape(name, where.shape, axis)))
    wanted = check(name, grad, x, axis, where=where)
    assert not wanted[~where].any() and not np.signbit(wanted[~where]).any()
    y = getattr(attnpy, name)(x, axis, where=where)
    for poison in (NAN, INF, -INF, 6e4):
        poisoned = [
            np.where(where, array, np.asarray(poison, dtype)) for array in ((x,) if name == "logsumexp" else (grad, y))
        ]
        arguments = (grad, *poisoned, y) if name == "logsumexp" else poisoned
        same_bits(getattr(attnpy, f"{name}_backward")(*arguments, axis, where=where), wanted, f"{poison} left out")
    hidden = np.full_like(grad, NAN)
    assert not backward(name, hidden, np.full_like(x, NAN), axis, where=False).any(), "nothing takes part"


def test_nothing_but_minus_infinity():
    """softmax gives 0 there, and its gradient is 0; logsumexp gives -inf, and its gradient is 0 as well."""
    x = np.full((2, 5), -INF, np.float32)
    np.testing.assert_array_equal(backward("softmax", np.ones_like(x), x), np.zeros_like(x))
    for grad in (1, NAN, INF):
        np.testing.assert_array_equal(backward("logsumexp", np.full(2, grad, np.float32), x), np.zeros_like(x))


@pytest.mark.parametrize("dtype", ALL_TYPES)
def test_nan_and_infinity_go_where_the_formula_takes_them(dtype):
    for bad, width in itertools.product((NAN, INF, -INF), (3, 67)):
        for name in NAMES:
            grad = np.ones(grad_shape(name, (3, width), -1), dtype)
            grad[1 if name == "logsumexp" else (1, 0)] = bad
            x = np.zeros((3, width), dtype)
            with np.errstate(all="ignore"):
                got, wanted = (backward(name, grad, x, side=side) for side in (attnpy, reference))
            np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted), err_msg=f"{name} {bad}")
            np.testing.assert_array_equal(np.isinf(got), np.isinf(wanted), err_msg=f"{name} {bad}")
            assert np.isfinite(got[::2]).all(), "other rows"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_long_rows_in_parts(name, dtype):
    """One row of many parts; three rows; rows across: the same bits for any number of threads, and in place."""
    for shape, axis in (((1, 300_001), -1), ((3, 70_000), -1), ((70_000, 5), 0)):
        rng = np.random.default_rng(shape)
        x = rng.standard_normal(shape).astype(dtype)
        grad = rng.standard_normal(grad_shape(name, shape, axis)).astype(dtype)
        with attnpy.num_threads(1):
            wanted = check(name, grad, x, axis, note=f"{shape}")
        for threads in (2, 5):
            with attnpy.num_threads(threads):
                same_bits(backward(name, grad, x, axis), wanted, f"{threads} threads")
        y = getattr(attnpy, name)(x, axis)
        arguments = {"x": x, "output": y} if name == "logsumexp" else {"output": y}
        for place in ("x",) if name == "logsumexp" else ("output", "grad_output"):
            given = {"grad_output": grad, **arguments}
            given[place] = out = given[place].copy()
            assert getattr(attnpy, f"{name}_backward")(**given, axis=axis, out=out) is out
            same_bits(out, wanted, f"over {place}")


def test_the_result_has_the_dtype_of_the_operand():
    g, y = np.ones((2, 3), np.float64), np.full((2, 3), 1 / 3, np.float32)
    assert attnpy.softmax_backward(g, y).dtype == np.float32
    assert attnpy.softmax_backward(g.astype(np.float32), y.astype(np.float16)).dtype == np.float16
    assert attnpy.softmax_backward([[1, 2]], [[0, 1]]).dtype == np.float64
    assert attnpy.logsumexp_backward(g[:, 0], y, g[:, 0]).dtype == np.float32
    tiny = attnpy.softmax_backward(np.float64([1 + 2**-40, 1]), np.float32([0.5, 0.5]))
    np.testing.assert_array_equal(tiny, np.float32([2**-42, -(2**-42)]), err_msg="computed in float64, rounded once")


def test_half_types_are_rounded_once():
    rng = np.random.default_rng(8)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        g, y = (
            rng.standard_normal((40, 130)).astype(dtype),
            attnpy.softmax(rng.standard_normal((40, 130))).astype(dtype),
        )
        wide = attnpy.softmax_backward(g.astype(np.float32), y.astype(np.float32))
        same_bits(attnpy.softmax_backward(g, y), wide.astype(dtype), f"{dtype}")
