"""embedding, cross_entropy and their gradients: small numbers by hand, what is ignored, differences."""

import ml_dtypes
import numpy as np
import pytest
from numerics import same_bits

import attnpy
from attnpy import reference

SIDES = pytest.mark.parametrize("side", [attnpy, reference], ids=["attnpy", "reference"])
INF, NAN = np.inf, np.nan


@SIDES
def test_embedding_by_hand(side):
    table = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(side.embedding([[3], [0]], table), [[[9, 10, 11]], [[0, 1, 2]]])
    np.testing.assert_array_equal(side.embedding(2, table), [6, 7, 8])
    grad = side.embedding_backward([[[1.0, 2.0]], [[4.0, 8.0]]], [[1], [1]], 3)
    np.testing.assert_array_equal(grad, [[0, 0], [5, 10], [0, 0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_embedding_copies_bits(dtype):
    """Also those of NaN with a payload, and of subnormal numbers."""
    word = np.dtype(f"u{np.dtype(dtype).itemsize}")
    table = np.random.default_rng(1).integers(0, np.iinfo(word).max, (50, 9), word, endpoint=True).view(dtype)
    indices = np.random.default_rng(2).integers(0, 50, (3, 40))
    got = attnpy.embedding(indices, table)
    np.testing.assert_array_equal(got.view(word), table.view(word)[indices])
    turned = attnpy.embedding(indices, table.T.copy().T)
    np.testing.assert_array_equal(turned.view(word), got.view(word))


def test_indices_may_change_after_the_check():
    """They are copied: an index that another thread changes is not read again."""
    indices = np.array([1, 2], np.int8)
    assert attnpy.embedding(indices, np.eye(3)).tolist() == np.eye(3)[[1, 2]].tolist()
    assert attnpy.embedding(np.zeros((0, 2), int), np.eye(3)).shape == (0, 2, 3)
    assert attnpy.embedding(np.zeros(0, int), np.zeros((0, 3))).shape == (0, 3)


def test_gradients_of_one_row_are_added_in_blocks():
    """100000 ones beside 2^24 in float32, where one chain would stop counting."""
    grad = np.ones((100001, 1), np.float32)
    grad[0] = 2.0**24
    got = attnpy.embedding_backward(grad, np.zeros(100001, int), 1)[0, 0]
    assert abs(got - (2.0**24 + 100000)) <= 64


@SIDES
def test_cross_entropy_by_hand(side):
    """Probabilities 1/4, 3/4 and 1/2, 1/2."""
    x, t = np.log([[1.0, 3.0], [1.0, 1.0]]), [1, 0]
    losses = -np.log([0.75, 0.5])
    np.testing.assert_allclose(side.cross_entropy(x, t, reduction="none"), losses, rtol=1e-14)
    np.testing.assert_allclose(side.cross_entropy(x, t, reduction="sum"), losses.sum(), rtol=1e-14)
    np.testing.assert_allclose(side.cross_entropy(x, t), losses.mean(), rtol=1e-14)
    smooth = 0.9 * losses - 0.1 * np.log([0.25 * 0.75, 0.25]) / 2
    np.testing.assert_allclose(side.cross_entropy(x, t, label_smoothing=0.1, reduction="none"), smooth, rtol=1e-14)
    grad = side.cross_entropy_backward(8.0, x, t, label_smoothing=0.5)
    np.testing.assert_allclose(grad, 4 * np.array([[0.25 - 0.25, 0.75 - 0.75], [-0.25, 0.25]]), atol=1e-14)


@SIDES
def test_what_is_ignored(side):
    x = np.array([[NAN, 1.0], [0.0, 0.0]])
    assert side.cross_entropy(x, [7, 1], ignore_index=7) == pytest.approx(np.log(2))
    np.testing.assert_array_equal(side.cross_entropy(x, [7, 1], ignore_index=7, reduction="none")[0], 0)
    np.testing.assert_allclose(side.cross_entropy_backward(2.0, x, [7, 1], ignore_index=7), [[0, 0], [1, -1]])
    with np.errstate(invalid="ignore"):
        assert np.isnan(side.cross_entropy(x, [-100, -100]))
    assert side.cross_entropy(x, [-100, -100], reduction="sum") == 0
    assert not side.cross_entropy_backward(1.0, x, [-100, -100]).any()


@SIDES
def test_infinite_scores(side):
    """A class of score -inf has probability 0: its loss is infinite, and it does not matter to the others."""
    x = np.array([[0.0, -INF, 0.0]])
    assert side.cross_entropy(x, [0], reduction="sum") == pytest.approx(np.log(2))
    with np.errstate(invalid="ignore"):
        assert attnpy.cross_entropy(x, [1]) == INF
        assert np.isnan(side.cross_entropy([[0.0, NAN]], [0]))
    np.testing.assert_allclose(side.cross_entropy_backward(2.0, x, [0]), [[-1, 0, 1]])


def test_large_scores_and_small_losses():
    """1e4 and 0: the loss of the right class is exp(-1e4), not what rounding 1e4 leaves."""
    assert attnpy.cross_entropy(np.float32([[1e4, 0.0]]), [0]) == 0
    assert attnpy.cross_entropy(np.float32([[-1e30, 1e30]]), [0]) == np.float32(2e30)
    small = attnpy.cross_entropy(np.array([[30.0, 0.0]]), [0])
    assert small == pytest.approx(np.log1p(np.exp(-30.0)), abs=2.0**-50)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_gradients_are_differences(reduction, smoothing):
    rng = np.random.default_rng(3)
    x, t = rng.standard_normal((4, 5)), np.array([0, 4, -100, 2])
    given = {"targets": t, "label_smoothing": smoothing, "reduction": reduction}
    g = rng.standard_normal(4) if reduction == "none" else np.float64(1.7)
    got = attnpy.cross_entropy_backward(g, x, **given)
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += 2.0**-12
        down[place] -= 2.0**-12
        change = attnpy.cross_entropy(up, **given) - attnpy.cross_entropy(down, **given)
        assert abs(got[place] - np.sum(g * change) * 2.0**11) < 1e-6


def test_dtypes_and_out():
    x, t = np.ones((3, 4), np.float16), [0, 1, 2]
    assert attnpy.cross_entropy(x, t).dtype == np.float32
    assert attnpy.cross_entropy(x.astype(np.float64), t).dtype == np.float64
    assert attnpy.cross_entropy_backward(1.0, x, t).dtype == np.float16
    assert attnpy.cross_entropy_backward(1.0, x.astype(np.float32), t).dtype == np.float32
    x = np.random.default_rng(4).standard_normal((30, 40000)).astype(np.float32)
    t = np.random.default_rng(5).integers(0, 40000, 30)
    wanted = attnpy.cross_entropy_backward(1.0, x, t)
    same_bits(attnpy.cross_entropy_backward(1.0, x, t, out=x), wanted, "over the scores")
