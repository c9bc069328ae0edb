"""Learned tables: by hand, laws, gradients against differences and libraries."""

import numpy as np
import pytest

import attnpy

GRIDS = [((14, 14), (24, 24)), ((7, 5), (3, 9)), ((1, 1), (4, 4)), ((2, 3), (1, 100)), ((16, 16), (16, 16))]
LENGTHS = [(5, 9), (9, 5), (100, 1), (1, 30), (7, 7)]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# --- add_positions


def test_a_cache_goes_on_where_it_was():
    """Token t alone, at offset t, is row t of all at once."""
    x, table = normal(2, 9, 4), normal(12, 4)
    whole = attnpy.add_positions(x, table, [1, 3])
    for t in range(9):
        step = attnpy.add_positions(x[:, t : t + 1], table, [1 + t, 3 + t])
        np.testing.assert_array_equal(step[:, 0], whole[:, t])


def test_in_place():
    """Over x itself, over x backwards, and over the table."""
    x, table = normal(3, 5, 7), normal(9, 7)
    wanted = attnpy.add_positions(x, table, 2)
    y = x.copy()
    assert attnpy.add_positions(y, table, 2, out=y) is y
    np.testing.assert_array_equal(y, wanted)
    y = x.copy()
    attnpy.add_positions(y, table, 2, out=y[::-1])
    np.testing.assert_array_equal(y[::-1], wanted)
    both = np.zeros((3 * 5 * 7 + 60,))
    y, shifted = both[:105].reshape(3, 5, 7), both[40:103].reshape(9, 7)
    shifted[...] = table
    y_before = y.copy()
    wanted = attnpy.add_positions(y_before, shifted.copy(), 2)
    attnpy.add_positions(y, shifted, 2, out=y)
    np.testing.assert_array_equal(y, wanted)


def test_the_dtype_is_that_of_x():
    x = np.ones((2, 3), np.float16)
    assert attnpy.add_positions(x, np.full((2, 3), 1e-4)).dtype == np.float16
    assert attnpy.add_positions([[1, 2]], [[1, 2]]).dtype == np.float64
    assert attnpy.add_positions_backward(x, np.zeros((4, 3), np.float32)).dtype == np.float32
    assert attnpy.add_positions_backward(x, np.zeros((4, 3), int)).dtype == np.float64


def test_many_batch_elements_share_a_row():
    """Sums are cut every 64 terms."""
    grad = np.full((1000, 1, 3), 0.1, np.float32)
    got = attnpy.add_positions_backward(grad, np.zeros((2, 3), np.float32), np.arange(1000) % 2)
    np.testing.assert_allclose(got, np.full((2, 3), 500 * np.float64(np.float32(0.1))), rtol=16 * 2.0**-24)


# --- interpolation


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_what_stays_as_it_is_keeps_its_bits(dtype):
    """Also NaN, infinity and -0 next to others."""
    table = normal(2, 31, 5).astype(dtype)
    table[0, 3] = [np.nan, np.inf, -0.0, 0.0, -np.inf]
    for got in (
        attnpy.interpolate_positions(table, 31),
        attnpy.interpolate_positions_2d(table, (5, 6), (5, 6), num_prefix_tokens=1),
    ):
        assert got.tobytes() == table.tobytes()


def test_lines_stay_lines():
    """Linear interpolation of a line is the line, between the first and the last cell's centre."""
    for n, m in LENGTHS:
        line = np.arange(n, dtype=float)[:, None]
        wanted = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
        np.testing.assert_allclose(attnpy.interpolate_positions(line, m)[:, 0], wanted, atol=1e-12)


@pytest.mark.parametrize(("before", "after"), GRIDS)
def test_constants_stay_constant_and_prefixes_stay(before, after):
    table = np.full((2 + before[0] * before[1], 3), 2.5)
    table[:2] = [[1, 2, 3], [4, 5, 6]]
    got = attnpy.interpolate_positions_2d(table, before, after, num_prefix_tokens=2)
    np.testing.assert_array_equal(got[:2], table[:2])
    np.testing.assert_allclose(got[2:], 2.5, rtol=1e-14)


def test_rows_and_columns_are_told_apart():
    table = np.repeat(np.arange(3.0), 4)[:, None]  # (3, 4): each row its number
    got = attnpy.interpolate_positions_2d(table, (3, 4), (3, 8)).reshape(3, 8)
    np.testing.assert_allclose(got, np.repeat(np.arange(3.0)[:, None], 8, 1), atol=1e-14)


def transposed(forward, backward, x, y):
    """<forward x, y> = <x, backward y>: what a gradient of a linear function is."""
    assert np.vdot(forward(x), y) == pytest.approx(np.vdot(x, backward(y)), rel=1e-11, abs=1e-11)


@pytest.mark.parametrize(("n", "m"), LENGTHS)
def test_gradient_of_lines(n, m):
    transposed(
        lambda x: attnpy.interpolate_positions(x, m), lambda y: attnpy.interpolate_positions_backward(y, n),
        normal(2, n, 3), normal(2, m, 3, seed=1),
    )  # fmt: skip


@pytest.mark.parametrize(("before", "after"), GRIDS)
def test_gradient_of_grids(before, after):
    given = {"from_grid": before, "to_grid": after, "num_prefix_tokens": 1}
    transposed(
        lambda x: attnpy.interpolate_positions_2d(x, **given),
        lambda y: attnpy.interpolate_positions_2d_backward(y, **given),
        normal(2, 1 + before[0] * before[1], 3), normal(2, 1 + after[0] * after[1], 3, seed=1),
    )  # fmt: skip


def test_gradient_of_sums():
    offset = np.array([[0, 3, 1], [2, 2, 0]])
    transposed(
        lambda t: attnpy.add_positions(np.zeros((2, 3, 4, 5)), t, offset),
        lambda y: attnpy.add_positions_backward(y, np.zeros((1, 3, 8, 5)), offset),
        normal(1, 3, 8, 5), normal(2, 3, 4, 5, seed=1),
    )  # fmt: skip


# --- arrays of other libraries


def test_autograd():
    autograd = pytest.importorskip("autograd")
    from autograd.test_util import check_grads

    x, table, offset = normal(2, 3, 4), normal(6, 4), [1, 3]
    check_grads(lambda x, t: attnpy.add_positions(x, t, offset), modes=["rev", "fwd"], order=1)(x, table)
    check_grads(lambda t: attnpy.interpolate_positions(t, 9), modes=["rev", "fwd"], order=1)(table)
    given = {"from_grid": (1, 4), "to_grid": (3, 2), "num_prefix_tokens": 2}
    check_grads(lambda t: attnpy.interpolate_positions_2d(t, **given), modes=["rev", "fwd"], order=1)(table)
    assert autograd.grad(lambda t: attnpy.add_positions(x, t, offset).sum())(table).shape == table.shape
