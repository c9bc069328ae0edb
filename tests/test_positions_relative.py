"""ALiBi's slopes, T5's buckets and compact bias: numbers to check by hand, and what they mean in attention."""

import math

import numpy as np
import pytest

import attnpy


def test_slopes_of_the_authors():
    """A power of two is a geometric sequence; other numbers of heads get every other one of twice as many besides."""
    np.testing.assert_array_equal(attnpy.alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_array_equal(attnpy.alibi_slopes(6), [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8])
    np.testing.assert_array_equal(attnpy.alibi_slopes(3), [1 / 16, 1 / 256, 1 / 4])
    np.testing.assert_array_equal(attnpy.alibi_slopes(1), [1 / 256])
    assert attnpy.alibi_slopes(0).shape == (0,)
    twelve = attnpy.alibi_slopes(12)
    np.testing.assert_array_equal(twelve[:8], attnpy.alibi_slopes(8))
    np.testing.assert_allclose(twelve[8:], 2.0 ** -np.array([0.5, 1.5, 2.5, 3.5]), rtol=2**-52)
    np.testing.assert_allclose(attnpy.alibi_slopes(16), 2.0 ** (-np.arange(1, 17) / 2), rtol=2**-52)


@pytest.mark.parametrize("heads", range(1, 41))
def test_slopes_by_the_authors_code(heads):
    """Written after fairseq's get_slopes."""

    def power_of_two(n):
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    def slopes(n):
        if math.log2(n).is_integer():
            return power_of_two(n)
        below = 2 ** math.floor(math.log2(n))
        return power_of_two(below) + slopes(2 * below)[0::2][: n - below]

    np.testing.assert_allclose(attnpy.alibi_slopes(heads), slopes(heads), rtol=1e-13)


def test_bias_saturates_instead_of_hiding():
    bias = attnpy.alibi_bias(np.array([3e38, np.inf], np.float32), 1, 3)
    largest = np.finfo(np.float32).max
    np.testing.assert_array_equal(bias[0, 0], [-largest, np.float32(-3e38), 0])
    np.testing.assert_array_equal(bias[1, 0, :2], [-np.inf, -np.inf])


@pytest.mark.parametrize("offset", [None, 0, 5, -4])
def test_dense_bias_in_attention(offset):
    """bias= of the array and alibi_slopes= say the same."""
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(4, 20, 8)), rng.normal(size=(4, 33, 8)), rng.normal(size=(4, 33, 8))
    slopes = attnpy.alibi_slopes(4)
    bias = attnpy.alibi_bias(slopes, 20, 33, offset=offset)
    dense = attnpy.scaled_dot_product_attention(query, key, value, bias=bias)
    fused = attnpy.scaled_dot_product_attention(query, key, value, alibi_slopes=slopes, causal_offset=offset)
    np.testing.assert_allclose(fused, dense, rtol=1e-12, atol=1e-14)


# --- T5

STARTS = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]  # of buckets 1 … 15, two directions, 32 and 128
CAUSAL_STARTS = [*range(1, 17), 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]


@pytest.mark.parametrize(("bidirectional", "starts"), [(True, STARTS), (False, CAUSAL_STARTS)])
def test_first_distances_of_the_buckets(bidirectional, starts):
    distances = np.arange(601)
    buckets = attnpy.relative_position_bucket(-distances, bidirectional)
    np.testing.assert_array_equal(np.flatnonzero(np.diff(buckets)) + 1, starts)
    np.testing.assert_array_equal(np.unique(buckets), np.arange(len(starts) + 1))
    after = attnpy.relative_position_bucket(distances, bidirectional)
    np.testing.assert_array_equal(after[1:], buckets[1:] + 16 if bidirectional else 0)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (64, 256), (8, 20), (20, 1000), (7, 9)])
def test_buckets_by_the_formula(bidirectional, num_buckets, max_distance):
    """In 50 digits; where the quotient of logarithms is within them of a whole number, a bucket begins."""
    mpmath = pytest.importorskip("mpmath")
    n = num_buckets // 2 if bidirectional else num_buckets
    m = n // 2

    def bucket(d):
        if d < m:
            return d
        with mpmath.workdps(50):
            place = (n - m) * mpmath.log(mpmath.mpf(d) / m) / mpmath.log(mpmath.mpf(max_distance) / m)
            return min(n - 1, m + int(mpmath.floor(place + mpmath.mpf(10) ** -40)))

    wanted = [bucket(d) for d in range(601)]
    got = attnpy.relative_position_bucket(-np.arange(601), bidirectional, num_buckets, max_distance)
    np.testing.assert_array_equal(got, wanted)


def test_lookup_and_search_agree(monkeypatch):
    from attnpy import _positions_t5

    x = np.arange(-700, 700)
    looked_up = [attnpy.relative_position_bucket(x, both, 32, 600) for both in (True, False)]
    monkeypatch.setattr(_positions_t5, "_LOOKED_UP", 0)
    for both, wanted in zip((True, False), looked_up, strict=True):
        np.testing.assert_array_equal(attnpy.relative_position_bucket(x, both, 32, 600), wanted)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("L", "S", "offset"), [(5, 7, None), (300, 310, None), (1, 200, None), (20, 9, 40), (9, 20, -50)]
)
def test_compact_bias_says_everything(bidirectional, L, S, offset):
    """Spread out by the position rule it is the table at every pair's bucket, and one column fewer would not do."""
    table = np.random.default_rng(0).normal(size=(32, 3))
    bias = attnpy.t5_relative_bias(table, L, S, offset=offset, bidirectional=bidirectional)
    K = bias.shape[-1] // 2
    distance = np.arange(S) - np.arange(L)[:, None] - (S - L if offset is None else offset)
    spread = bias[:, 0, np.clip(distance, -K, K) + K]
    np.testing.assert_array_equal(
        spread, table[attnpy.relative_position_bucket(distance, bidirectional)].transpose(2, 0, 1)
    )
    if K:
        fewer = bias[:, 0, np.clip(distance, 1 - K, K - 1) + K]
        assert (fewer != spread).any()


def test_bias_is_translation_invariant():
    table = np.random.default_rng(0).normal(size=(32, 3))
    one = attnpy.t5_relative_bias(table, 1, 500, offset=499)
    np.testing.assert_array_equal(one, attnpy.t5_relative_bias(table, 500, 500))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_gradient_is_the_transpose(bidirectional):
    rng = np.random.default_rng(0)
    table, direction = rng.normal(size=(2, 32, 3))
    bias = attnpy.t5_relative_bias(direction, 100, 120, bidirectional=bidirectional)
    gradient = rng.normal(size=bias.shape)
    back = attnpy.t5_relative_bias_backward(gradient, table, 100, 120, bidirectional=bidirectional)
    np.testing.assert_allclose((back * direction).sum(), (gradient * bias).sum(), rtol=1e-12)


def test_gradient_through_autograd():
    autograd = pytest.importorskip("autograd")
    table = np.random.default_rng(0).normal(size=(32, 3))
    weights = np.random.default_rng(1).normal(size=(3, 1, 2 * 91 + 1))
    grad = autograd.grad(lambda t: (attnpy.t5_relative_bias(t, 200, 200) * weights).sum())(table)
    np.testing.assert_array_equal(grad, attnpy.t5_relative_bias_backward(weights, table, 200, 200))


# --- in attention


@pytest.mark.parametrize("scheme", ["alibi", "T5", "T5, causal"])
def test_a_decoding_step_is_a_row_of_prefill(scheme):
    """Whatever the length of the query: positions count from the end of the keys, or from an offset."""
    rng, total = np.random.default_rng(0), 150
    query, key, value = rng.normal(size=(3, 4, total, 8))
    table, slopes = rng.normal(size=(32, 4)), attnpy.alibi_slopes(4)

    def attend(query, keys, offset=None):
        given = {"is_causal": True, "causal_offset": offset}
        if scheme == "alibi":
            given["alibi_slopes"] = slopes
        else:
            given["relative_bias"] = attnpy.t5_relative_bias(
                table, query.shape[1], keys, offset=offset, bidirectional=scheme == "T5"
            )
        return attnpy.scaled_dot_product_attention(query, key[:, :keys], value[:, :keys], **given)

    whole = attend(query, total)
    for step in (0, 1, 63, 64, 90, 91, 92, total - 1):
        one = attend(query[:, step : step + 1], step + 1)
        np.testing.assert_allclose(one, whole[:, step : step + 1], rtol=1e-12, atol=1e-13)
        with_offset = attend(query[:, step : step + 1], total, offset=step)
        np.testing.assert_allclose(with_offset, whole[:, step : step + 1], rtol=1e-12, atol=1e-13)


def test_gradient_of_t5_table_through_attention():
    """The compact bias and its gradient, against the dense bias of all pairs and its."""
    rng, L, S = np.random.default_rng(0), 100, 140
    query, grad = rng.normal(size=(2, 2, 4, L, 8))
    key, value = rng.normal(size=(2, 2, 4, S, 8))
    table = rng.normal(size=(32, 4))
    buckets = attnpy.relative_position_bucket(np.arange(S) - np.arange(L)[:, None] - (S - L))
    gradients = {}
    for name, bias in {
        "relative_bias": attnpy.t5_relative_bias(table, L, S), "bias": table[buckets].transpose(2, 0, 1)
    }.items():  # fmt: skip
        output, lse = attnpy.scaled_dot_product_attention(query, key, value, **{name: bias}, return_lse=True)
        found = attnpy.scaled_dot_product_attention_backward(
            grad, query, key, value, output, lse, **{name: bias}, needs=("query", "key", "value", name)
        )
        gradients[name] = found
    compact, dense = gradients["relative_bias"], gradients["bias"]
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(getattr(compact, name), getattr(dense, name), rtol=1e-9, atol=1e-12)
    wanted = np.zeros(table.shape)
    np.add.at(wanted, buckets, dense.bias.transpose(1, 2, 0))
    back = attnpy.t5_relative_bias_backward(compact.relative_bias, table, L, S)
    np.testing.assert_allclose(back, wanted, rtol=1e-9, atol=1e-11)
