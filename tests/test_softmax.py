"""softmax, log_softmax, logsumexp: special values, axes, half types, long rows."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import check_call

import attnpy
from attnpy import reference

NAMES = ("softmax", "log_softmax", "logsumexp")
FLOATS = (np.float32, np.float64)
ALL_TYPES = (*FLOATS, np.float16, ml_dtypes.bfloat16)
INF, NAN = np.inf, np.nan


def check(name, x, *, axis=-1, where=None, note=""):
    return check_call(name, {"x": x, "axis": axis, **({} if where is None else {"where": where})}, note)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ALL_TYPES)
def test_every_length_up_to_tails(name, dtype):
    for n in (*range(1, 71), 127, 128, 129, 1023, 1025, 4099):
        x = (8 * np.random.default_rng(n).standard_normal((24, n))).astype(dtype)
        check(name, x, note=f"n = {n}, seed {n}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ALL_TYPES)
def test_tuples_of_axes(name, dtype):
    x = np.random.default_rng(1).standard_normal((3, 5, 4, 7)).astype(dtype)
    for n in range(1, 5):
        for axes in itertools.permutations(range(4), n):
            got = check(name, x, axis=axes, note=f"axes {axes}, seed 1")
            again = getattr(attnpy, name)(x, tuple(a - 4 for a in axes))
            np.testing.assert_array_equal(again, got, err_msg=f"axes {axes}, counted from the end")


@pytest.mark.parametrize("name", NAMES)
def test_strided_axes(name):
    x = np.random.default_rng(2).standard_normal((40, 30, 20)).astype(np.float32)
    for view in (x.T, x[::-2, :, ::3], x[:, ::-1], np.broadcast_to(x[:, :1], x.shape), np.asfortranarray(x)):
        for axis in (0, 1, 2, (0, 2), (2, 1)):
            check(name, view, axis=axis, note=f"strides {view.strides}, axis {axis}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ALL_TYPES)
def test_where(name, dtype):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((6, 5, 67)).astype(dtype)
    for shape in ((6, 5, 67), (5, 1), (67,), (1, 5, 67), ()):
        for axis in (-1, 0, (0, 2)):
            where = np.asarray(rng.random(shape) < 0.6)
            hidden = np.where(np.broadcast_to(where, x.shape), x, np.asarray(NAN, dtype))
            got = check(name, hidden, axis=axis, where=where, note=f"where {shape}, axis {axis}, seed 3")
            for poison in (INF, -INF, 0):
                other = np.where(np.broadcast_to(where, x.shape), x, np.asarray(poison, dtype))
                np.testing.assert_array_equal(getattr(attnpy, name)(other, axis, where=where), got)


@pytest.mark.parametrize("dtype", ALL_TYPES)
@pytest.mark.parametrize("axis", [0, 1, (0, 1)])
def test_nothing_kept(dtype, axis):
    x = np.full((3, 70), NAN, dtype)
    np.testing.assert_array_equal(attnpy.softmax(x, axis, where=False), np.zeros(x.shape, dtype))
    np.testing.assert_array_equal(attnpy.log_softmax(x, axis, where=False), np.full(x.shape, -INF, dtype))
    got = attnpy.logsumexp(x, axis, where=False)
    assert got.dtype == dtype and (got == -INF).all()


@pytest.mark.parametrize("dtype", ALL_TYPES)
def test_special_scores(dtype):
    rows = [[NAN, 0, 1], [INF, 0, 1], [INF, INF, 0], [-INF, 0, 0], [-INF, -INF, -INF], [INF, -INF, 0], [NAN, INF, 0],
            [NAN, -INF, -INF], [-INF, -INF, 3], [0.0, -0.0, -0.0]]  # fmt: skip
    for row in rows:
        for place, width in itertools.product((0, 1, 61), (3, 67)):
            x = np.full(width, -INF, dtype)
            x[(place + np.arange(3)) % width] = row
            for name in NAMES:
                got, wanted = getattr(attnpy, name)(x), getattr(reference, name)(x)
                np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted), err_msg=f"{name} of {x}")
                np.testing.assert_array_equal(np.isinf(got), np.isinf(wanted), err_msg=f"{name} of {x}")
    assert attnpy.logsumexp(np.array([INF, 1], dtype)) == INF
    assert np.isnan(attnpy.softmax(np.array([INF, 1], dtype))).all()
    assert np.isnan(attnpy.logsumexp(np.array([NAN, INF], dtype)))


@pytest.mark.parametrize("payload", [1, 3, 0x3FFFFF])
@pytest.mark.parametrize("sign", [0, 1])
def test_every_nan_stays_nan(payload, sign):
    for n in (1, 5, 64, 200):
        for quiet in (0, 1):
            bits = np.uint32(sign << 31 | 0x7F800000 | quiet << 22 | payload)
            x = np.zeros(n, np.float32)
            x[n // 2] = bits.view(np.float32)
            assert np.isnan(attnpy.softmax(x)).all() and np.isnan(attnpy.logsumexp(x)), f"n = {n}, bits {bits:#x}"


@pytest.mark.parametrize("dtype", ALL_TYPES)
def test_large_scores_do_not_overflow(dtype):
    most = float(ml_dtypes.finfo(dtype).max)
    for size in (1e4, most, -1e4, -most):
        x = np.full(100, size, dtype)
        np.testing.assert_array_equal(attnpy.softmax(x), np.full(100, 0.01).astype(dtype), err_msg=f"scores {size}")
        assert np.isfinite(attnpy.logsumexp(x)), f"scores {size}"
        check("log_softmax", x, note=f"scores {size}")
    assert attnpy.logsumexp(np.float32([1e4, 1e4])) == np.float32(1e4 + np.log(2))
    far = np.array([most, -most], dtype)
    np.testing.assert_array_equal(attnpy.softmax(far), [1, 0])
    assert attnpy.logsumexp(far) == most


def test_subnormal_results_are_kept():
    for dtype, scores in ((np.float32, (-88, -95, -100, -103)), (np.float64, (-709, -720, -740, -745))):
        x = np.array([0, *scores], dtype)
        wanted = np.exp(np.longdouble(x))
        unit = float(np.finfo(dtype).smallest_subnormal)
        got = attnpy.softmax(x)
        assert (got > 0).all(), f"{got}"
        np.testing.assert_array_less(np.abs(got - wanted), 4 * np.finfo(dtype).eps * wanted + unit)
    half = np.array([0, -9, -12, -15], np.float16)
    np.testing.assert_array_equal(attnpy.softmax(half), reference.softmax(half).astype(np.float16))


def every_half(dtype):
    return np.arange(2**16, dtype=np.uint16).view(dtype)


def one_unit_apart(got, wanted):
    """Equal, or neighbours in the half type; NaN where NaN is wanted."""
    assert np.array_equal(np.isnan(got), np.isnan(wanted))
    got, wanted = (x[~np.isnan(wanted)].view(np.int16).astype(int) for x in (got, wanted))
    got, wanted = (np.where(x < 0, -(x & 0x7FFF), x) for x in (got, wanted))
    return np.abs(got - wanted).max() <= 1


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_half_number(dtype):
    """softmax([x, 0]) is the logistic function of x: all 65536 numbers, computed in float32 and rounded once."""
    x = every_half(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        wide = x.astype(np.float32)
    alone = attnpy.softmax(x[:, None])
    np.testing.assert_array_equal(alone[np.isfinite(wide)], 1)
    assert np.isnan(alone[np.isnan(wide) | (wide == INF)]).all()
    pairs = np.stack([x, np.zeros_like(x)], axis=-1)
    with np.errstate(all="ignore"):
        wanted = reference.softmax(pairs).astype(dtype)
        assert one_unit_apart(attnpy.softmax(pairs), wanted), f"all numbers of {np.dtype(dtype)}"
        for name in NAMES:
            check_call(name, {"x": pairs}, "every number beside 0")


@pytest.mark.parametrize("name", NAMES)
def test_axis_is_checked(name):
    function, x = getattr(attnpy, name), np.zeros((3, 4), np.float32)
    for axis in (2, -3, (0, 2), (0, 2**62)):
        with pytest.raises(np.exceptions.AxisError, match="axis"):
            function(x, axis)
    for axis in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match="axis"):
            function(x, axis)
    for axis in (1.0, "0", (0, 1.0)):
        with pytest.raises(TypeError, match="axis"):
            function(x, axis)
    with pytest.raises(np.exceptions.AxisError, match="axis"):
        function(np.float32(1))


@pytest.mark.parametrize("name", NAMES)
def test_refused_arguments(name):
    function, x = getattr(attnpy, name), np.zeros((3, 4), np.float32)
    for wrong in (x.astype(complex), x.astype(object), x.astype("U"), x.astype(np.longdouble), np.ma.array(x)):
        with pytest.raises(TypeError, match=r"\bx\b"):
            function(wrong)
    for wrong in (np.ones((3, 4)), np.ones(4, int)):
        with pytest.raises(TypeError, match="where"):
            function(x, where=wrong)
    for shape in ((3,), (2, 3, 4), (3, 5)):
        with pytest.raises(ValueError, match="where"):
            function(x, where=np.ones(shape, bool))
    for out in (np.zeros((3, 4)), np.zeros((3, 5), np.float32), np.zeros((1, 3, 4), np.float32)):
        with pytest.raises((ValueError, TypeError), match="out"):
            function(x, out=out)


@pytest.mark.parametrize("dtype", ALL_TYPES)
def test_empty_axes(dtype):
    for shape, axis in (((0, 4), 0), ((4, 0), -1), ((0, 4), -1), ((3, 0, 5), (1, 2)), ((0,), 0)):
        x = np.zeros(shape, dtype)
        for name in ("softmax", "log_softmax"):
            got = getattr(attnpy, name)(x, axis)
            assert got.shape == shape and got.dtype == dtype
        got = attnpy.logsumexp(x, axis)
        wanted = reference.logsumexp(x, axis)
        assert np.shape(got) == np.shape(wanted) and got.dtype == dtype and (got == -INF).all()


@pytest.mark.parametrize("dtype", ALL_TYPES)
def test_results_without_axes_are_scalars(dtype):
    x = np.arange(5).astype(dtype)
    one = x[0]
    for got in (
        attnpy.logsumexp(x),
        attnpy.logsumexp(x[None], (0, 1)),
        attnpy.softmax(one, ()),
        attnpy.logsumexp(one, ()),
    ):
        assert type(got) is np.dtype(dtype).type
    assert attnpy.softmax(x[0], ()) == 1 and attnpy.logsumexp(x[3], ()) == 3
    kept = attnpy.logsumexp(x, keepdims=True)
    assert type(kept) is np.ndarray and kept.shape == (1,)


@pytest.mark.parametrize("name", NAMES)
def test_no_axes_reduce_nothing(name):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(getattr(attnpy, name)(x, ()), getattr(reference, name)(x, ()))


def test_keepdims():
    x = np.random.default_rng(4).standard_normal((3, 4, 5))
    for axis, shape in ((0, (1, 4, 5)), (-1, (3, 4, 1)), ((0, 2), (1, 4, 1)), ((2, 1, 0), (1, 1, 1))):
        got = attnpy.logsumexp(x, axis, keepdims=True)
        assert got.shape == shape
        np.testing.assert_array_equal(got.reshape(-1), np.reshape(attnpy.logsumexp(x, axis), -1))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", ALL_TYPES)
def test_in_place(name, dtype):
    x = np.random.default_rng(5).standard_normal((6, 130)).astype(dtype)
    for axis in (-1, 0, (0, 1)):
        wanted, y = getattr(attnpy, name)(x, axis), x.copy()
        assert getattr(attnpy, name)(y, axis, out=y) is y
        np.testing.assert_array_equal(y, wanted, err_msg=f"axis {axis}")


def test_integers_and_lists_compute_in_float64():
    for x in ([[1, 2], [3, 4]], np.arange(4, dtype=np.uint8).reshape(2, 2), np.array([[True, False]])):
        for name in NAMES:
            got = getattr(attnpy, name)(x)
            assert got.dtype == np.float64
            np.testing.assert_allclose(got, getattr(reference, name)(np.asarray(x)), rtol=8 * 2.0**-53)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", [0.0, 1.0, 1e-4, -1e-4])
def test_long_rows(name, step):
    """Constant, rising and falling scores: the longest chains of equal signs."""
    for n in (65536, 1_000_003):
        check(name, (1 + step * np.arange(n)).astype(np.float32)[None], note=f"n = {n}, step {step}")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.floats(-1e3, 1e3))
def test_laws(seed, n, shift):
    x = np.random.default_rng(seed).standard_normal((2, n))
    y = attnpy.softmax(x)
    unit = 2.0**-53 * (72 + n / 64)
    np.testing.assert_allclose(y.sum(-1), 1, rtol=2 * unit)
    np.testing.assert_allclose(np.exp(attnpy.log_softmax(x)), y, rtol=4 * unit * 8)
    lse = attnpy.logsumexp(x, keepdims=True)
    np.testing.assert_allclose(np.exp(x - lse), y, rtol=4 * unit * 8)
    shifted = attnpy.softmax(x + shift)
    np.testing.assert_allclose(shifted, y, rtol=2 * unit + 4 * 2.0**-53 * (abs(shift) + 8))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", NAMES)
def test_large_arrays_have_the_bits_of_small_ones(name, dtype):
    """Beyond 8 MB results go past the caches, by whole cache lines where rows lie side by side."""
    x = (8 * np.random.default_rng(6).standard_normal((1536, 1600))).astype(dtype)
    function = getattr(attnpy, name)
    for axis in (0, 1):
        slices = (x[:, :64], x[:, 64:]) if axis == 0 else (x[:64], x[64:])
        parts = [function(np.ascontiguousarray(part), axis) for part in slices]
        wanted = np.concatenate(parts, axis=-1 if name == "logsumexp" else 1 - axis)
        np.testing.assert_array_equal(function(x, axis), wanted)
        for offset in (0, 1, 5):
            room = np.empty(wanted.size + 16, dtype)[offset : offset + wanted.size].reshape(wanted.shape)
            np.testing.assert_array_equal(function(x, axis, out=room), wanted)
        np.testing.assert_array_equal(function(np.asfortranarray(x), axis), wanted)
