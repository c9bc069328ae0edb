"""attnpy.reference against published numbers and laws, and its softmax against loops."""

import itertools
import math

import numpy as np
import pytest

from attnpy import DropoutKey, reference
from attnpy.reference._attention import _threefry4x32

UNIT = 2.0**-53
B, H, G, L, S, E, D = 2, 4, 2, 3, 5, 2, 3


def operands(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, H, L, E)), rng.normal(size=(B, G, S, E)), rng.normal(size=(B, G, S, D))


def assert_agree(got, wanted, query, key, value=1, terms=0.0):
    """Both within the accuracy rule of the exact result. `terms`: magnitude of what is added to the scores."""
    size = query.shape[-1] * np.abs(query).max() * np.abs(key).max() + terms
    cap = UNIT * (8 + 2 * (64 + 1) + 2 * (query.shape[-1] + 3) * size) * np.abs(value).max()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2 * cap)


def test_dot_attention_of_keras():
    """Keras's own test of its Attention layer; 8 digits recomputed."""
    arrays = np.eye(2), [[0, 1], [1, 0]], [[1, 2], [3, 4]]
    got = reference.scaled_dot_product_attention(*arrays, scale=1)
    np.testing.assert_allclose(got, [[2.46211716, 3.46211716], [1.53788284, 2.53788284]], rtol=0, atol=5e-9)
    weights = reference.attention_weights(*arrays[:2], scale=1)
    np.testing.assert_allclose(weights, [[0.26894142, 0.73105858], [0.73105858, 0.26894142]], rtol=0, atol=5e-9)
    assert abs(reference.attention_weights(*arrays[:2])[0, 0] - 0.33023845) <= 5e-9
    assert abs(reference.scaled_dot_product_attention(*arrays)[0, 0] - 2.33952310) <= 5e-9


def test_identity_attention_of_keras():
    """Eight orthonormal tokens with heads of size 8: 4 digits from Keras's test of MultiHeadAttention."""
    weights = reference.attention_weights(np.eye(8), np.eye(8))
    np.testing.assert_allclose(weights, np.where(np.eye(8) == 1, 0.1691, 0.1187), rtol=0, atol=5e-5)


def test_threefry_gives_the_published_words():
    """Random123's tests/kat_vectors, threefry4x32 with 20 rounds: counter, key, words."""
    for line in """
        00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 9c6ca96a e17eae66 fc10ecd4 5256a7d8
        ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 2a881696 57012287 f6c7446e a16a6732
        243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 082efa98 ec4e6c89 59cd1dbb b8879579 86b5d00c ac8b6d84
    """.strip().splitlines():
        words = [int(word, 16) for word in line.split()]
        assert [int(x[0]) for x in _threefry4x32([[word] for word in words[:4]], words[4:8])] == words[8:]


def test_dropout_mask_is_threefry_at_batch_head_row_and_key():
    key = DropoutKey([5, 6, 7, 8])
    shape, p = (2, 3, 4, 5, 7), 0.3
    kept = reference.dropout_mask(shape, p, key, dtype=bool)
    for batch, (b, c, h, i, j) in zip(np.repeat(np.arange(6), 4 * 5 * 7), np.ndindex(shape)):
        word = _threefry4x32([[j // 4], [i], [h], [batch]], key.words)[j % 4][0]
        assert kept[b, c, h, i, j] == (word >= int(p * 2**32))
    mask = reference.dropout_mask(shape, p, key, dtype=np.float32)
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, np.where(kept, np.float32(1 / 0.7), 0))
    np.testing.assert_array_equal(reference.dropout_mask(shape[3:], p, key, dtype=bool), kept[0, 0, 0])
    assert reference.dropout_mask((2, 0, 3, 0), p, key, dtype=float).shape == (2, 0, 3, 0)


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.5, 0.9, 1 - 2**-53])
def test_dropout_keeps_the_right_share(p):
    """The count of kept entries lies within six standard deviations of its mean."""
    n = 400_000
    kept = reference.dropout_mask((1000, 400), p, DropoutKey(1), dtype=bool).sum()
    assert abs(kept - n * (1 - p)) <= 6 * math.sqrt(n * p * (1 - p)) + 1e-3


def test_dropout_takes_the_key_that_a_generator_gives_up():
    query, key, value = operands()
    words = np.random.default_rng(3).integers(0, 2**32, 4, np.uint32)
    got = [
        reference.scaled_dot_product_attention(query, key, value, dropout_p=0.5, rng=rng)
        for rng in (np.random.default_rng(3), DropoutKey(words))
    ]
    np.testing.assert_array_equal(*got)
    generator = np.random.default_rng(3)
    reference.scaled_dot_product_attention(query, key, value, rng=generator)
    assert generator.integers(0, 2**32, 4, np.uint32).tolist() == words.tolist()


def test_rows_sum_to_one_and_constant_values_stay():
    query, key, value = operands(4)
    np.testing.assert_allclose(reference.attention_weights(query, key).sum(-1), 1, rtol=2 * S * UNIT)
    got = reference.scaled_dot_product_attention(query, key, np.full_like(value, 2.5))
    np.testing.assert_allclose(got, 2.5, rtol=3 * S * UNIT)


def test_keys_of_zero_give_the_mean():
    query, key, value = operands(5)
    got = reference.scaled_dot_product_attention(query, 0 * key, value)
    wanted = np.broadcast_to(value.mean(-2).repeat(2, -2)[..., None, :], got.shape)
    assert_agree(got, wanted, query, 0 * key, value)


def test_finite_minimum_is_only_added():
    query, key, value = operands(5)
    least = np.finfo(float).min
    got = reference.scaled_dot_product_attention(query, key, value, np.full((L, S), least))
    wanted = np.broadcast_to(value.mean(-2).repeat(2, -2)[..., None, :], got.shape)
    assert_agree(got, wanted, query, 0 * key, value)


def test_window_of_everything_is_no_window():
    arrays = operands(6)
    plain = reference.scaled_dot_product_attention(*arrays)
    for window in (L + S, (L + S, -1), (-1, -1), -1):
        np.testing.assert_array_equal(reference.scaled_dot_product_attention(*arrays, window_size=window), plain)


def test_causal_is_aligned_with_the_last_key():
    query, key = np.zeros((2, 3)), np.zeros((4, 3))
    last = [[1 / 3, 1 / 3, 1 / 3, 0], [0.25, 0.25, 0.25, 0.25]]
    np.testing.assert_allclose(reference.attention_weights(query, key, is_causal=True), last, rtol=UNIT)
    first = [[1, 0, 0, 0], [0.5, 0.5, 0, 0]]
    np.testing.assert_array_equal(reference.attention_weights(query, key, is_causal=True, causal_offset=0), first)
    more = reference.attention_weights(np.zeros((3, 3)), key[:2], is_causal=True)
    np.testing.assert_array_equal(more, [[0, 0], [1, 0], [0.5, 0.5]])


def test_decoding_is_the_last_row_of_prefill():
    query, key, value = (np.random.default_rng(7).normal(size=(4, 9, 3)) for _ in range(3))
    options = {"is_causal": True, "alibi_slopes": [0.5, 0.25, 1, 2], "window_size": (4, -1)}
    full = reference.scaled_dot_product_attention(query, key, value, **options)
    for t in range(1, 10):
        step = reference.scaled_dot_product_attention(query[:, t - 1 : t], key[:, :t], value[:, :t], **options)
        assert_agree(step[:, 0], full[:, t - 1], query, key, value, terms=2 * 9)


def test_parts_merge_to_the_whole():
    query, key, value = operands(8)
    whole = reference.scaled_dot_product_attention(query, key, value, sinks=[1, 2, 3, 4], return_lse=True)
    parts = [
        reference.scaled_dot_product_attention(
            query, key[..., part, :], value[..., part, :], return_lse=True, **options
        )
        for part, options in ((slice(0, 2), {}), (slice(2, 2), {}), (slice(2, 5), {"sinks": [1, 2, 3, 4]}))
    ]
    parts[1][0][:] = np.nan
    for got, wanted in zip(reference.merge_attention(*zip(*parts)), whole):
        assert_agree(got, wanted, query, key, np.maximum(1, np.abs(wanted)), terms=4)
    stacked = reference.merge_attention(*map(np.stack, zip(*parts)))
    np.testing.assert_array_equal(stacked[0], reference.merge_attention(*zip(*parts))[0])
    nothing = reference.merge_attention([np.full((2, 3), np.nan)], [[-np.inf, -np.inf]])
    np.testing.assert_array_equal(nothing[0], np.zeros((2, 3)))
    np.testing.assert_array_equal(nothing[1], [-np.inf, -np.inf])


def test_shared_heads_are_repeated_and_batches_broadcast():
    query, key, value = operands(9)
    shared = reference.scaled_dot_product_attention(query, key, value)
    repeated = reference.scaled_dot_product_attention(query, key.repeat(2, 1), value.repeat(2, 1))
    np.testing.assert_array_equal(shared, repeated)
    got, lse = reference.scaled_dot_product_attention(query[0], key[:, None], value[0], return_lse=True)
    assert got.shape == (B, 1, H, L, D) and lse.shape == (B, 1, H, L)
    np.testing.assert_array_equal(got[1, 0], reference.scaled_dot_product_attention(query[0], key[1], value[0]))
    value = np.stack([value, -value])
    got, lse = reference.scaled_dot_product_attention(query, key, value, kv_lengths=[[2, 3], [1, 5]], return_lse=True)
    assert got.shape == (2, B, H, L, D) and lse.shape == (2, B, H, L)
    one = reference.scaled_dot_product_attention(query[0], key[0], value[1, 0], kv_lengths=1)
    np.testing.assert_array_equal(got[1, 0], one)


def test_empty_axes():
    for empty in itertools.product((0, 2), repeat=5):
        b, h, rows, keys, d = empty
        arrays = np.ones((b, h, rows, 3)), np.ones((b, h, keys, 3)), np.ones((b, h, keys, d))
        output, lse = reference.scaled_dot_product_attention(*arrays, return_lse=True, is_causal=True, softcap=1)
        assert output.shape == (b, h, rows, d) and lse.shape == (b, h, rows)
        assert reference.attention_received(*arrays[:2]).shape == (b, h, keys)
        if keys == 0:
            assert np.all(output == 0) and np.all(lse == -np.inf)
    no_size = reference.attention_weights(np.ones((3, 0)), np.ones((2, 0)), scale=1)
    np.testing.assert_array_equal(no_size, np.full((3, 2), 0.5))


def test_a_row_that_sees_only_its_sink():
    output, lse = reference.scaled_dot_product_attention(
        np.ones((1, 2, 3)),
        np.ones((1, 2, 3)),
        np.ones((1, 2, 3)),
        [[True, True], [False, False]],
        sinks=[1.5],
        return_lse=True,
    )
    assert np.all(output[0, 1] == 0) and lse[0, 1] == 1.5 and 0 < output[0, 0, 0] < 1
    padded = reference.scaled_dot_product_attention(
        *[np.ones((1, 2, 3))] * 3, sinks=[1.5], query_lengths=1, return_lse=True
    )
    assert np.all(padded[0][0, 1] == 0) and padded[1][0, 1] == -np.inf


def test_float16_and_bfloat16_become_float64():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (np.float16, ml_dtypes.bfloat16):
        query, key, value = (x.astype(dtype) for x in operands(10))
        got = reference.scaled_dot_product_attention(query, key, value)
        assert got.dtype == np.float64
        wanted = reference.scaled_dot_product_attention(*(x.astype(float) for x in (query, key, value)))
        np.testing.assert_array_equal(got, wanted)


def softmax_loops(x, keep):
    """(softmax, log_softmax, logsumexp) of one row of numbers."""
    kept = [a for a, k in zip(x, keep) if k]
    top = max(kept, default=0.0)
    if not kept:
        return [0.0] * len(x), [-math.inf] * len(x), -math.inf
    total = math.fsum(math.exp(a - top) for a in kept)
    lse = top + math.log(total)
    return (
        [math.exp(a - top) / total if k else 0.0 for a, k in zip(x, keep)],
        [a - top - math.log(total) if k else -math.inf for a, k in zip(x, keep)],
        lse,
    )


@pytest.mark.parametrize("n", [1, 2, 7, 65])
@pytest.mark.parametrize("kept", [1.0, 0.5, 0.0])
def test_softmax_equals_loops(n, kept):
    rng = np.random.default_rng(n)
    x, keep = rng.normal(size=n) * 300, rng.random(n) < kept
    p, log_p, lse = softmax_loops(x.tolist(), keep.tolist())
    x = np.where(keep, x, np.nan)
    bound = (72 + n / 64) * UNIT  # csrc/kernels/softmax.h
    np.testing.assert_allclose(reference.softmax(x, where=keep), p, rtol=bound, atol=0)
    np.testing.assert_allclose(reference.log_softmax(x, where=keep), log_p, rtol=4 * UNIT, atol=bound)
    np.testing.assert_allclose(reference.logsumexp(x, where=keep), lse, rtol=4 * UNIT, atol=bound)


def test_softmax_axes_and_shapes():
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    flat = x.transpose(1, 0, 2).reshape(3, 8)
    lse = reference.logsumexp(x, axis=(0, -1))
    np.testing.assert_allclose(lse, reference.logsumexp(flat), rtol=8 * UNIT)
    assert reference.logsumexp(x, axis=(0, 2), keepdims=True).shape == (1, 3, 1)
    np.testing.assert_allclose(reference.softmax(x, (0, 2)).sum((0, 2)), 1, rtol=8 * UNIT)
    np.testing.assert_allclose(np.exp(reference.log_softmax(x, 1)), reference.softmax(x, 1), rtol=16 * UNIT)
    assert isinstance(reference.logsumexp([1, 2]), np.float64)
    assert reference.logsumexp(np.ones((0, 4))).shape == (0,)
    np.testing.assert_array_equal(reference.logsumexp(np.ones((4, 0))), [-np.inf] * 4)
    assert reference.softmax(np.ones((4, 0))).shape == (4, 0)
    keep = np.array([[True], [False], [True]])
    assert np.all(reference.softmax(x, where=keep)[:, 1] == 0)
    with pytest.raises(ValueError):
        reference.softmax(x[0, 0], where=np.ones((2, 4), bool))


def test_softmax_of_special_values():
    nan, inf = np.nan, np.inf
    np.testing.assert_array_equal(reference.softmax([[nan, 0], [inf, 0], [-inf, 0], [-inf, -inf]]),
                                  [[nan, nan], [nan, nan], [0, 1], [0, 0]])  # fmt: skip
    np.testing.assert_array_equal(reference.log_softmax([[nan, 0], [inf, 0], [-inf, 0], [-inf, -inf]]),
                                  [[nan, nan], [nan, nan], [-inf, 0], [-inf, -inf]])  # fmt: skip
    np.testing.assert_array_equal(reference.logsumexp([[nan, 0], [inf, 0], [-inf, 0], [-inf, -inf], [nan, inf]]),
                                  [nan, inf, 0, -inf, nan])  # fmt: skip
    np.testing.assert_array_equal(reference.softmax([nan, 0, inf], where=[False, True, False]), [0, 1, 0])
    assert reference.logsumexp([1000.0, 1000.0]) == 1000 + math.log(2)
    assert reference.logsumexp([-1000.0, -1000.0]) == -1000 + math.log(2)
