"""Small numbers that one can check by hand, and published ones."""

import math

import mpmath
import numpy as np
import pytest

import attnpy
from attnpy import reference

SIDES = {"C": attnpy, "reference": reference}
DTYPES = (np.float32, np.float64)


def assert_digits(got, published, digits):
    """Rounded to as many decimals, got is what was published."""
    np.testing.assert_array_equal(np.float64(got).round(digits), published)


@pytest.fixture(params=SIDES, ids=list(SIDES))
def side(request):
    return SIDES[request.param]


@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_dictionary_look_up(side, dtype):
    query, key, value = (dtype(x) for x in ([[1, 0]], [[1, 0], [-10, 1]], [[10, 20], [30, 40]]))
    weights = side.attention_weights(query, key, scale=1)
    output = side.scaled_dot_product_attention(query, key, value, scale=1)
    assert_digits(weights, [[0.9999833, 0.0000167]], 7)
    assert_digits(output, [[10.0003, 20.0003]], 4)


@pytest.mark.parametrize(
    "scale, weight, outputs",
    [
        (1.0, 0.26894142, [[2.46211716, 3.46211716], [1.53788284, 2.53788284]]),
        (None, 0.33023845, [[2.33952310, 3.33952310], [1.66047690, 2.66047690]]),
    ],
    ids=["unscaled", "scaled"],
)
def test_dot_attention_of_keras(side, scale, weight, outputs):
    query, key, value = np.eye(2), np.array([[0.0, 1], [1, 0]]), np.array([[1.0, 2], [3, 4]])
    assert_digits(side.attention_weights(query, key, scale=scale), [[weight, 1 - weight], [1 - weight, weight]], 8)
    assert_digits(side.scaled_dot_product_attention(query, key, value, scale=scale), outputs, 8)


def test_dot_attention_of_keras_in_many_digits(side):
    mpmath.mp.dps = 40
    near = 1 / (1 + mpmath.exp(mpmath.sqrt(2) / 2))
    query, key, value = np.eye(2), np.array([[0.0, 1], [1, 0]]), np.array([[1.0, 2], [3, 4]])
    output, lse = side.scaled_dot_product_attention(query, key, value, return_lse=True)
    assert abs(output[0, 0] - float(near + 3 * (1 - near))) <= 4 * 2.0**-53 * 3
    assert abs(lse[1] - float(mpmath.log(1 + mpmath.exp(mpmath.sqrt(2) / 2)))) <= 4 * 2.0**-53


@pytest.mark.parametrize("dtype", DTYPES)
def test_identity_attention_of_keras(side, dtype):
    weights = side.attention_weights(np.eye(8, dtype=dtype), np.eye(8, dtype=dtype))
    assert_digits(weights, np.where(np.eye(8), 0.1691, 0.1187), 4)


def test_causal_rows_of_equal_scores_are_harmonic(side):
    value = np.arange(4.0)[:, None]
    output, lse = side.scaled_dot_product_attention(
        np.zeros((4, 3)), np.ones((4, 3)), value, is_causal=True, return_lse=True
    )
    np.testing.assert_allclose(output[:, 0], [0, 0.5, 1, 1.5], rtol=0, atol=2 * 2.0**-53)
    np.testing.assert_allclose(lse, np.log([1, 2, 3, 4]), rtol=2 * 2.0**-53)


def test_alibi_halves_the_weight_with_each_step(side):
    """Slope ln 2: the weights of a causal row are 1/2^distance, of row 2: 1/7, 2/7, 4/7."""
    zeros = np.zeros((1, 3, 2))
    weights = side.attention_weights(zeros, zeros, is_causal=True, alibi_slopes=[math.log(2)])
    np.testing.assert_allclose(
        weights[0], [[1, 0, 0], [1 / 3, 2 / 3, 0], [1 / 7, 2 / 7, 4 / 7]], rtol=8 * 2.0**-53, atol=0
    )


def test_alibi_looks_both_ways_without_the_causal_rule(side):
    zeros = np.zeros((1, 3, 2))
    weights = side.attention_weights(zeros, zeros, alibi_slopes=[math.log(2)])
    np.testing.assert_allclose(weights[0, 1], [0.25, 0.5, 0.25], rtol=8 * 2.0**-53)


def test_alibi_with_the_published_slopes(side):
    """Eight heads, slopes 1/2 ... 1/256: the log of the weight ratio of neighbours is the slope."""
    slopes = 2.0 ** -np.arange(1, 9)
    zeros = np.zeros((8, 5, 2))
    weights = side.attention_weights(zeros, zeros, is_causal=True, alibi_slopes=slopes)
    np.testing.assert_allclose(np.log(weights[:, 4, 4] / weights[:, 4, 3]), slopes, atol=16 * 2.0**-53)


def test_sink_of_zero_is_one_more_key(side):
    """Two keys of score 0 and a sink of 0: three equal shares, of which one goes nowhere."""
    zeros, ones = np.zeros((1, 1, 2)), np.ones((1, 2, 2))
    output, lse = side.scaled_dot_product_attention(zeros, ones, ones, sinks=[0.0], return_lse=True)
    np.testing.assert_allclose(output, np.full((1, 1, 2), 2 / 3), rtol=4 * 2.0**-53)
    np.testing.assert_allclose(lse, [[math.log(3)]], rtol=4 * 2.0**-53)


def test_softcap_of_one(side):
    """Scores 0 and 10 become 0 and tanh 10."""
    weights = side.attention_weights([[1.0]], [[0.0], [10.0]], scale=1, softcap=1)
    np.testing.assert_allclose(weights, [[1 / (1 + math.exp(math.tanh(10))), 1 / (1 + math.exp(-math.tanh(10)))]],
                               rtol=8 * 2.0**-53)  # fmt: skip


def test_attention_received_of_equal_scores(side):
    received = side.attention_received(np.zeros((3, 4)), np.zeros((3, 4)), is_causal=True)
    np.testing.assert_allclose(received, [1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3], rtol=4 * 2.0**-53)


def test_merging_weighs_by_the_sums(side):
    """Sums 1 and 3: a quarter of the first output, three quarters of the second."""
    output, lse = side.merge_attention([np.array([[4.0]]), np.array([[8.0]])], [np.array([0.0]), np.log([3.0])])
    np.testing.assert_allclose(output, [[7.0]], rtol=4 * 2.0**-53)
    np.testing.assert_allclose(lse, [math.log(4)], rtol=4 * 2.0**-53)


def test_softmax_family(side):
    x = np.log([1.0, 2.0, 5.0])
    np.testing.assert_allclose(side.softmax(x), [0.125, 0.25, 0.625], rtol=8 * 2.0**-53)
    np.testing.assert_allclose(side.log_softmax(x), np.log([0.125, 0.25, 0.625]), rtol=8 * 2.0**-53)
    np.testing.assert_allclose(side.logsumexp(x), math.log(8), rtol=8 * 2.0**-53)


def test_threefry_gives_the_published_words(side):
    """Random123's answer for counter 0 and key 0, read through the mask: word w is kept up to p = w / 2^32."""
    for j, word in enumerate([0x9C6CA96A, 0xE17EAE66, 0xFC10ECD4, 0x5256A7D8]):
        for p, kept in ((word / 2**32, True), ((word + 1) / 2**32, False)):
            mask = side.dropout_mask((1, 4), p, attnpy.DropoutKey(0), dtype=bool)
            assert mask[0, j] == kept, f"word {j} of counter 0, p = {p}"


def test_scaled_scores_have_variance_one():
    """With entries of variance 1, q.k has variance E, the scaled score 1; ln P gives the scores but for a constant."""
    rng = np.random.default_rng(11)
    query, key = rng.standard_normal((2, 400, 64))
    scores = np.log(attnpy.attention_weights(query, key))
    assert abs(scores.var(axis=1).mean() - 1) < 0.05


def test_self_attention_commutes_with_permutations():
    rng = np.random.default_rng(12)
    x, order = rng.standard_normal((3, 150, 16)), rng.permutation(150)
    once = attnpy.scaled_dot_product_attention(x, x, x)
    again = attnpy.scaled_dot_product_attention(x[:, order], x[:, order], x[:, order])
    np.testing.assert_allclose(again, once[:, order], rtol=0, atol=200 * 2.0**-53)
