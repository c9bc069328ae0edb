"""The linear layer by numbers that one can check by hand, packed weights, and gradients by central differences."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from numerics import same_bits

import attnpy

X = np.array([[1.0, 2.0], [-3.0, 0.5]])
W = np.array([[1.0, 0.0], [0.0, -1.0], [2.0, 4.0]])
Z = np.array([[1.0, -2.0, 10.0], [-3.0, -0.5, -4.0]])  # X W^T
STORAGES = ["float64", "float32", "float16", "bfloat16", "int8"]


def numbers(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def test_by_hand():
    assert (attnpy.linear(X, W) == Z).all()
    assert (attnpy.linear(X, W, [1, 2, 3]) == Z + [1, 2, 3]).all()
    assert (attnpy.linear(X[0], W) == Z[0]).all() and attnpy.linear(X[0], W).shape == (3,)
    assert (attnpy.linear(X, W, activation="relu") == np.maximum(Z, 0)).all()
    assert (attnpy.linear(X, W, activation="relu", residual=[[1.0], [2.0]]) == np.maximum(Z, 0) + [[1], [2]]).all()
    assert attnpy.linear([[1]], [[1]], activation="gelu")[0, 0] == pytest.approx(0.8413447460685429, rel=1e-15)
    assert attnpy.linear([[1]], [[1]], activation="gelu_tanh")[0, 0] == pytest.approx(0.8411919906082768, rel=1e-15)
    assert attnpy.linear([[1]], [[1]], activation="silu")[0, 0] == pytest.approx(0.7310585786300049, rel=1e-15)


def test_gradients_by_hand():
    g = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    found = attnpy.linear_backward(g, X, W, [0, 0, 0], needs=("x", "weight", "bias"))
    assert (found.x == [[5, 8], [0, -1]]).all()
    assert (found.weight == [[1, 2], [-3, 0.5], [2, 4]]).all()
    assert (found.bias == [1, 1, 2]).all()
    found = attnpy.linear_backward(g, X, W, activation="relu")  # the second row of Z has nothing above 0
    assert (
        (found.x == [[5, 8], [0, 0]]).all() and (found.weight == [[1, 2], [0, 0], [2, 4]]).all() and found.bias is None
    )


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
def test_central_differences(activation):
    x, w, b, r = (numbers(*shape, dtype=np.float64) for shape in ((3, 5), (4, 5), (4,), (3, 4)))
    needs, h = ("x", "weight", "bias"), 2.0**-16
    found = attnpy.linear_backward(r, x, w, b, activation=activation, needs=needs)

    def loss(**changed):
        given = {"x": x, "weight": w, "bias": b} | changed
        return (r * attnpy.linear(**given, activation=activation)).sum()

    for name, operand in zip(needs, (x, w, b)):
        for place in np.ndindex(operand.shape):
            up, down = operand.copy(), operand.copy()
            up[place] += h
            down[place] -= h
            slope = (loss(**{name: up}) - loss(**{name: down})) / (2 * h)
            # third derivatives are below 2, sums of 20 terms below 100: h^2 100 / 3, and 100 u / h of rounding
            assert abs(getattr(found, name)[place] - slope) < 35 * h**2 + 100 * 2.0**-53 / h


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [(1, 5, 3), (13, 385, 65), (400, 769, 130)])
def test_packed_weights_have_the_bits_of_plain_ones(dtype, size):
    M, K, N = size
    x, w, b = numbers(M, K, dtype=dtype), numbers(N, K, dtype=dtype), numbers(N, dtype=dtype)
    whole = attnpy.linear(x, w, b)
    same_bits(attnpy.linear(x, attnpy.PackedWeight(w), b), whole, "packed")
    same_bits(attnpy.linear(x, np.asfortranarray(w), b), whole, "transposed")
    for row in (0, M // 2, M - 1):
        same_bits(attnpy.linear(x[row], w, b), whole[row], f"row {row}")
    packed = attnpy.PackedWeight(w)
    g = numbers(M, N, dtype=dtype)
    needs = ("x",)
    same_bits(attnpy.linear_backward(g, x, packed, needs=needs).x, attnpy.linear_backward(g, x, w, needs=needs).x, "dx")


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("shape", [(3, 5), (64, 7), (65, 1), (0, 3), (3, 0), (130, 40)])
def test_packing_and_unpacking(storage, shape):
    w = numbers(*shape, dtype=np.float64)
    packed = attnpy.PackedWeight(w, storage)
    back = packed.unpack()
    assert packed.shape == shape == back.shape and packed.dtype.name == storage
    if storage != "int8":
        same_bits(back, w.astype(packed.dtype), "unpacked")
    else:
        assert back.dtype == np.float32
        most = np.abs(w).max(1, initial=0)[:, None]
        assert (np.abs(back - w) <= most / 127 / 2 * (1 + 2.0**-16)).all()
    again = pickle.loads(pickle.dumps(packed))
    x = numbers(4, shape[1])
    same_bits(attnpy.linear(x, again), attnpy.linear(x, packed), "after pickling")
    assert repr(packed) == f"PackedWeight({shape[0]} outputs of {shape[1]} inputs, {storage})"


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_half_weights_are_read_as_their_values(storage):
    w = numbers(70, 400).astype(np.float16 if storage == "float16" else ml_dtypes.bfloat16)
    x = numbers(9, 400)
    wanted = attnpy.linear(x, w.astype(np.float32))
    same_bits(attnpy.linear(x, attnpy.PackedWeight(w)), wanted, "packed")
    same_bits(attnpy.linear(x, w), wanted, "plain")
    assert attnpy.linear(x.astype(w.dtype), attnpy.PackedWeight(w)).dtype == w.dtype


def test_int8_weights_are_their_integers_times_a_scale():
    w = numbers(70, 400)
    packed = attnpy.PackedWeight(w, "int8")
    assert packed.nbytes < w.nbytes / 2
    assert attnpy.linear(numbers(2, 400, dtype=np.float16), packed).dtype == np.float16
    x = numbers(5, 400, dtype=np.float64)
    np.testing.assert_allclose(
        attnpy.linear(x, packed), x @ packed.unpack().T.astype(np.float64), rtol=1e-12, atol=1e-12
    )
    # |y - exact| <= sum |x| s / 2
    apart = np.abs(attnpy.linear(x, packed) - x @ w.T)
    assert (apart <= np.abs(x).sum(1)[:, None] * (np.abs(w).max(1) / 127 / 2) * 1.001).all() and apart.max() > 1e-3


def test_later_changes_of_the_weights_do_not_matter():
    w = numbers(3, 4)
    packed, x = attnpy.PackedWeight(w), numbers(2, 4)
    before = attnpy.linear(x, packed)
    w[:] = 0
    same_bits(attnpy.linear(x, packed), before, "changed afterwards")


class Broken:
    """What looks like packed weights to the compiled module."""

    def __init__(self, shape, panels, scale=None):
        self.parts = shape, panels, scale

    @property
    def _core_panels(self):
        return self.parts


@pytest.mark.parametrize(
    "parts",
    [
        ((3, 4), np.zeros((1, 4, 63), np.float32)),
        ((65, 4), np.zeros((1, 4, 64), np.float32)),
        ((3, 5), np.zeros((1, 4, 64), np.float32)),
        ((3, 4), np.zeros((1, 4, 64), np.float64)),
        ((3, 4), np.zeros((1, 4, 64), np.int16)),
        ((3, 4), np.zeros((1, 4, 128), np.float32)[..., ::2]),
        ((3, 4), np.zeros((4, 64), np.float32)),
        ((-3, 4), np.zeros((0, 4, 64), np.float32)),
        ((3, 4), np.zeros((1, 4, 64), np.int8), np.zeros(2, np.float32)),
        ((3, 4), np.zeros((1, 4, 64), np.int8), np.zeros(3)),
        ((3, 4), None),
        (None, np.zeros((1, 4, 64), np.float32)),
    ],
)
def test_panels_that_do_not_fit_are_refused(parts):
    with pytest.raises(ValueError, match="weight is a PackedWeight whose"):
        attnpy.linear(np.ones((2, 4), np.float32), Broken(*parts))


@pytest.mark.parametrize("kept", [False, True])
def test_a_preactivation_that_was_kept(kept):
    x, w, b, g = numbers(40, 300), numbers(70, 300), numbers(70), numbers(40, 70)
    z = attnpy.linear(x, w, b)
    needs = ("x", "weight", "bias")
    given = {"activation": "silu", "needs": needs}
    one = attnpy.linear_backward(g, x, w, b, **given)
    other = attnpy.linear_backward(g, x, w, b, preactivation=z, **given)
    for name in needs:
        same_bits(getattr(other, name), getattr(one, name), name)


def test_nan_stays_in_its_row_and_its_column():
    x, w = numbers(30, 400), numbers(70, 400)
    x[7, 3] = np.nan
    w[11, 5] = np.inf
    y = attnpy.linear(x, w)
    bad = ~np.isfinite(y)
    wanted = np.zeros_like(bad)
    wanted[7], wanted[:, 11] = True, True
    assert (bad == wanted).all()


@pytest.mark.parametrize("K", [64, 384, 1024, 4096])
def test_error_of_long_sums(K):
    """Equal terms, whose rounding errors add up: the bound of the docstring, not by luck."""
    x = np.full((3, K), 1.1, np.float32)
    w = np.full((5, K), 0.7, np.float32)
    exact = K * float(x[0, 0]) * float(w[0, 0])
    c = min(K, 384)
    error = np.abs(attnpy.linear(x, w).astype(float) - exact).max()
    assert error <= 2.0**-24 * (c + K / c + 3) * exact
