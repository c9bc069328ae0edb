"""Beside JAX's dot_product_attention, whose arrays are (B, L, H, D), and where the two differ by design."""

import itertools

import numpy as np
import pytest

import attnpy

jax = pytest.importorskip("jax")
jnp = jax.numpy

INF, NAN = np.inf, np.nan
SIZES = [(1, 130, 64), (3, 70, 8), (5, 7, 16), (64, 64, 64), (66, 130, 17), (130, 66, 32)]


@pytest.fixture(autouse=True, scope="module")
def wide():
    """float64 in this module; JAX still computes the softmax in float32 (jax#37422)."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def operands(seed, L, S, E, *, batch=2, H=4, G=4, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = (batch, L, H, E), (batch, S, G, E), (batch, S, G, E)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def ours(query, key, value, *mask, **options):
    """(B, L, H, D) data is passed as a view, and nothing is copied."""
    views = (x.swapaxes(1, 2) for x in (query, key, value))
    return attnpy.scaled_dot_product_attention(*views, *mask, **options).swapaxes(1, 2)


def theirs(*arrays, **options):
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.nn.dot_product_attention(*map(jnp.asarray, arrays), **options))


def assert_close(got, wanted, note=""):
    """Unit variance, small sizes: a tenth of what the accuracy rule would let two results be apart."""
    np.testing.assert_allclose(got, wanted, rtol=0, atol=256 * 2.0**-24, err_msg=str(note))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_masks_and_bias(sizes, dtype):
    L, S, E = sizes
    arrays = operands(1, *sizes, dtype=dtype)
    rng = np.random.default_rng(2)
    seen = rng.random((2, 4, L, S)) < 0.7
    seen[..., 0] = True
    bias = rng.standard_normal((1, 4, L, S)).astype(dtype)
    for mask, added, scale in itertools.product((None, seen, seen[:1, :1]), (None, bias), (None, 0.3)):
        got = ours(*arrays, mask, bias=added, scale=scale)
        assert got.dtype == dtype
        assert_close(got, theirs(*arrays, mask=mask, bias=added, scale=scale), sizes)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_causal_and_windows_from_the_top_left(sizes):
    """JAX never moves queries to the end: causal_offset=0. Its windows count as ours do."""
    arrays = operands(3, *sizes)
    for is_causal, window in itertools.product((False, True), (None, 3, (5, 2), (70, 0))):
        got = ours(*arrays, is_causal=is_causal, window_size=window, causal_offset=0)
        wanted = theirs(*arrays, is_causal=is_causal, local_window_size=window)
        seen = np.ones(sizes[:2], bool) if not is_causal else np.tri(*sizes[:2], dtype=bool)
        if window is not None:
            left, right = (window, window) if np.ndim(window) == 0 else window
            ahead = np.arange(sizes[1]) - np.arange(sizes[0])[:, None]
            seen = seen & (ahead >= -left) & (ahead <= right)
        some = seen.any(1)  # rows without keys differ by design
        assert_close(got[:, some], wanted[:, some], f"{sizes}, causal {is_causal}, window {window}")
        assert (got[:, ~some] == 0).all()


@pytest.mark.parametrize("heads", [(4, 2), (8, 1), (6, 3)], ids=str)
def test_grouped_queries(heads):
    H, G = heads
    for L, S in ((1, 130), (5, 70), (70, 130)):
        arrays = operands(4, L, S, 16, H=H, G=G)
        assert_close(ours(*arrays), theirs(*arrays), heads)


def test_lengths():
    arrays = operands(5, 9, 70, 8, batch=3)
    queries, keys = np.array([9, 1, 4], np.int32), np.array([70, 1, 33], np.int32)
    got = ours(*arrays, query_lengths=queries, kv_lengths=keys)
    assert_close(got, theirs(*arrays, query_seq_lengths=queries, key_value_seq_lengths=keys))
    assert (got[1, 1:] == 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    half = np.dtype(getattr(ml_dtypes, dtype, dtype))
    arrays = [x.astype(half) for x in operands(6, 66, 130, 64)]
    exact = ours(*(x.astype(np.float64) for x in arrays))
    got = ours(*arrays)
    assert got.dtype == half
    assert np.abs(got - exact).max() <= np.abs(theirs(*arrays).astype(np.float64) - exact).max()


def test_log_sum_exp():
    """Theirs is (B, L, H), in the dtype of the key."""
    arrays = operands(7, 66, 130, 16)
    _, got = attnpy.scaled_dot_product_attention(*(x.swapaxes(1, 2) for x in arrays), return_lse=True)
    _, wanted = jax.nn.dot_product_attention(*map(jnp.asarray, arrays), return_residual=True)
    assert_close(got.swapaxes(1, 2), np.asarray(wanted))


def test_differs_a_row_without_keys():
    """By design: ours is 0; theirs is the mean of all values."""
    arrays = operands(8, 5, 7, 8)
    seen = np.ones((1, 1, 5, 7), bool)
    seen[..., 2, :] = False
    got, wanted = ours(*arrays, seen), theirs(*arrays, mask=seen)
    assert (got[:, 2] == 0).all()
    assert_close(wanted[:, 2], arrays[2].mean(1))
    assert_close(np.delete(got, 2, axis=1), np.delete(wanted, 2, axis=1))


def test_differs_causal_from_the_bottom_right():
    """By design: one query over a cache of 7 keys sees them all in attnpy, only the first in JAX."""
    arrays = operands(9, 1, 7, 8)
    assert_close(ours(*arrays, is_causal=True), theirs(*arrays))
    assert_close(theirs(*arrays, is_causal=True)[:, 0], arrays[2][:, 0])


def test_differs_hidden_nan_does_not_leak():
    """By design: 0 times NaN is NaN in JAX, nothing in attnpy."""
    query, key, value = operands(10, 5, 7, 8)
    clean = ours(query, key, value, np.arange(7) < 6)
    value[:, 6] = NAN
    seen = np.broadcast_to(np.arange(7) < 6, (1, 1, 5, 7))
    assert np.isnan(theirs(query, key, value, mask=seen)).all()
    np.testing.assert_array_equal(ours(query, key, value, np.arange(7) < 6), clean)


def test_differs_minus_infinity_in_a_bias_hides_a_whole_row():
    """By design: a row of -inf is 0 in attnpy, NaN in JAX."""
    arrays = operands(11, 5, 7, 8)
    bias = np.zeros((1, 1, 5, 7), np.float32)
    bias[..., 2, :] = -INF
    assert np.isnan(theirs(*arrays, bias=bias)[:, 2]).all()
    assert (ours(*arrays, bias=bias)[:, 2] == 0).all()


def test_softmax_family():
    x = np.random.default_rng(12).standard_normal((3, 5, 67)) * 20
    seen = np.random.default_rng(13).random(x.shape) < 0.6
    seen[..., 0] = seen[..., 0, :] = True
    for axis in (-1, 0, (0, 2)):
        for where in (None, seen):
            for ours, theirs in ((attnpy.softmax, jax.nn.softmax), (attnpy.logsumexp, jax.nn.logsumexp)):
                np.testing.assert_allclose(
                    ours(x, axis, where=where), theirs(x, axis, where=where), rtol=1e-12, atol=1e-14
                )
        np.testing.assert_allclose(attnpy.log_softmax(x, axis), jax.nn.log_softmax(x, axis), rtol=1e-12, atol=1e-14)
