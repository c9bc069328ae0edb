"""Positions: the causal rule and its offset, windows, lengths, ALiBi."""

import itertools

import numpy as np
import pytest
from inputs import TYPES, check, explicit_mask, operands, seed_of

import attnpy

INF, NAN = np.inf, np.nan
FAR = (2**31, -(2**31), 2**53, -(2**53) - 1, 2**62, -(2**62), 2**63 - 1, -(2**63))


def close(got, wanted, note):
    """Two float64 results of the same masked scores: small sizes, unit variance."""
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-13, err_msg=note)


@pytest.mark.parametrize("L", range(1, 10))
def test_causal_for_any_two_lengths_and_any_offset(L):
    """L and S in 1 ... 9, every offset that differs, one for each batch element: against the mask written out."""
    for S in range(1, 10):
        offsets = np.arange(-L - 1, S + 2)
        arrays = operands(np.random.default_rng(seed_of(L, S)), np.float64, batch=(len(offsets),), H=2, G=1, L=L, S=S)
        mask = np.stack([explicit_mask(L, S, offset, causal=True) for offset in offsets])[:, None]
        got = attnpy.scaled_dot_product_attention(*arrays, is_causal=True, causal_offset=offsets, return_lse=True)
        wanted, lse = check(*arrays, attn_mask=mask)
        close(got[0], wanted, f"L = {L}, S = {S}")
        np.testing.assert_array_equal(got[1] == -INF, lse == -INF)
        plain = attnpy.scaled_dot_product_attention(*arrays, is_causal=True)
        last = attnpy.scaled_dot_product_attention(*arrays, is_causal=True, causal_offset=S - L)
        np.testing.assert_array_equal(plain, last, err_msg=f"L = {L}, S = {S}: the default offset is S - L")
        top = attnpy.scaled_dot_product_attention(*arrays, attn_mask=np.tri(L, S, dtype=bool))
        close(attnpy.scaled_dot_product_attention(*arrays, is_causal=True, causal_offset=0), top, "from the top left")


@pytest.mark.parametrize("sizes", [(1, 200), (3, 130), (65, 64), (64, 65), (130, 200), (200, 130)], ids=str)
def test_causal_across_blocks(sizes):
    L, S = sizes
    offsets = np.array([S - L, 0, 1, -1, 63, 64, 65, -63, -64, -65, S, -L, -L + 1, S - 1])
    arrays = operands(np.random.default_rng(seed_of(sizes)), np.float32, batch=(len(offsets),), H=2, G=1, L=L, S=S)
    mask = np.stack([explicit_mask(L, S, offset, causal=True) for offset in offsets])[:, None]
    got, lse = check(*arrays, is_causal=True, causal_offset=offsets)
    hidden = np.broadcast_to(~mask.any(-1), lse.shape)
    assert (got[hidden] == 0).all() and (lse[hidden] == -INF).all() and np.isfinite(lse[~hidden]).all()
    check(*arrays, attn_mask=mask)


def test_more_queries_than_keys_leave_the_first_rows_empty():
    got, lse = check(*operands(np.random.default_rng(0), np.float32, L=130, S=50), is_causal=True)
    assert (got[:, :, :80] == 0).all() and (lse[:, :, :80] == -INF).all() and np.isfinite(lse[:, :, 80:]).all()


@pytest.mark.parametrize("L", [1, 3, 70])
@pytest.mark.parametrize("offset", FAR)
def test_offsets_far_away(L, offset):
    """Every key is in the past, or every key in the future; a window is far from all keys in both cases."""
    arrays = operands(np.random.default_rng(1), np.float32, L=L, S=130)
    plain = attnpy.scaled_dot_product_attention(*arrays)
    for offsets in (offset, np.array([offset, offset])):
        got, lse = attnpy.scaled_dot_product_attention(*arrays, is_causal=True, causal_offset=offsets, return_lse=True)
        if offset > 0:
            np.testing.assert_array_equal(got, plain)
        else:
            assert (got == 0).all() and (lse == -INF).all()
        for window in ((3, 5), (0, 0), (200, 200)):
            got = attnpy.scaled_dot_product_attention(*arrays, causal_offset=offsets, window_size=window)
            assert (got == 0).all(), f"window {window}"
        for window, sees in (((-1, 0), offset > 0), ((0, -1), offset < 0), ((-1, -1), True)):
            got = attnpy.scaled_dot_product_attention(*arrays, causal_offset=offsets, window_size=window)
            np.testing.assert_array_equal(got, plain if sees else 0 * plain, err_msg=f"window {window}")


def test_offsets_of_each_batch_element():
    rng = np.random.default_rng(2)
    query, key, value = operands(rng, np.float32, batch=(2, 3), L=70, S=130)
    offsets = np.array([[2**62, 0, -(2**62)], [5, -5, 60]])
    whole, _ = check(query, key, value, is_causal=True, causal_offset=np.clip(offsets, -200, 200))
    got = attnpy.scaled_dot_product_attention(query, key, value, is_causal=True, causal_offset=offsets)
    np.testing.assert_array_equal(got, whole)
    for b in np.ndindex(2, 3):
        one = attnpy.scaled_dot_product_attention(query[b], key[b], value[b], is_causal=True, causal_offset=offsets[b])
        np.testing.assert_array_equal(one, got[b], err_msg=f"batch element {b}")


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint32", "int64", "uint64", ">i4"])
def test_any_integer_type(kind):
    arrays = operands(np.random.default_rng(3), np.float32, L=5, S=7)
    options = {"causal_offset": [3, 1], "query_lengths": [5, 2], "kv_lengths": [6, 0]}
    wanted = attnpy.scaled_dot_product_attention(*arrays, is_causal=True, **options)
    typed = {name: np.array(numbers, kind) for name, numbers in options.items()}
    np.testing.assert_array_equal(attnpy.scaled_dot_product_attention(*arrays, is_causal=True, **typed), wanted)


def test_unsigned_numbers_beyond_int64():
    """Lengths of 2^63 are refused; as an offset it is far away."""
    arrays = operands(np.random.default_rng(3), np.float32)
    for name in ("query_lengths", "kv_lengths"):
        with pytest.raises(ValueError, match=name):
            attnpy.scaled_dot_product_attention(*arrays, **{name: np.uint64(2**63)})
    got = attnpy.scaled_dot_product_attention(*arrays, is_causal=True, causal_offset=np.uint64(2**64 - 1))
    np.testing.assert_array_equal(got, attnpy.scaled_dot_product_attention(*arrays))


WINDOWS = [
    (0, 0),
    (1, 0),
    (0, 1),
    (5, 3),
    (-1, 3),
    (3, -1),
    (-1, -1),
    (63, 0),
    (64, 64),
    (65, 1),
    (700, 700),
    (2**62, 0),
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("sizes", [(1, 200), (3, 130), (9, 7), (64, 64), (130, 200), (200, 63)], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_windows(window, sizes, is_causal):
    L, S = sizes
    arrays = operands(np.random.default_rng(seed_of(window, sizes)), np.float64, H=2, L=L, S=S)
    for offset in (None, 0, 40):
        mask = explicit_mask(L, S, offset, is_causal, *window)
        options = {} if offset is None else {"causal_offset": offset}
        got, lse = check(*arrays, window_size=window, is_causal=is_causal, **options)
        wanted, wanted_lse = check(*arrays, attn_mask=mask)
        close(got, wanted, f"window {window}, offset {offset}")
        np.testing.assert_array_equal(lse == -INF, wanted_lse == -INF)


@pytest.mark.parametrize("L", [1, 4, 130])
def test_windows_over_many_blocks(L):
    """S > 10 blocks: rows and whole row blocks with windows before, inside and after the keys."""
    arrays = operands(np.random.default_rng(4), np.float32, batch=(), H=2, L=L, S=700)
    for window, offset in itertools.product([(10, 0), (100, 50), (0, 0)], [-300, -64, 0, 100, 321, 569, 640, 800]):
        check(*arrays, window_size=window, causal_offset=offset, note=f"window {window}, offset {offset}")


def test_an_integer_window_looks_both_ways():
    arrays = operands(np.random.default_rng(5), np.float32, L=70, S=70)
    both = attnpy.scaled_dot_product_attention(*arrays, window_size=(6, 6))
    for window in (6, np.int64(6), [6, 6], np.array([6, 6])):
        np.testing.assert_array_equal(attnpy.scaled_dot_product_attention(*arrays, window_size=window), both)


def test_the_token_itself_is_not_counted():
    """(left, right) = (2, 1): four keys. With the identity as keys' values the weights show them."""
    weights = attnpy.attention_weights(np.zeros((9, 2)), np.zeros((9, 2)), window_size=(2, 1))
    np.testing.assert_array_equal(np.flatnonzero(weights[4]), [2, 3, 4, 5])
    np.testing.assert_allclose(weights[4, 2:6], 0.25)
    np.testing.assert_array_equal(np.flatnonzero(weights[0]), [0, 1])


@pytest.mark.parametrize("L", [1, 3, 70])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_length_of_keys(L, dtype):
    """0 ... S in one batch; what lies beyond is NaN."""
    S = 70
    query, key, value = operands(np.random.default_rng(seed_of(L, dtype)), TYPES[dtype], batch=(S + 1,), H=2, L=L, S=S)
    for length in range(S + 1):
        key[length, :, length:] = NAN
        value[length, :, length:] = INF
    got, lse = check(query, key, value, kv_lengths=np.arange(S + 1))
    assert np.isfinite(got).all() and (got[0] == 0).all() and (lse[0] == -INF).all()
    seen = np.arange(S) < np.arange(S + 1)[:, None]
    np.testing.assert_array_equal(
        attnpy.scaled_dot_product_attention(query, key, value, seen[:, None, None, :])[0], got[0]
    )
    check(query, key, value, attn_mask=seen[:, None, None, :])


@pytest.mark.parametrize("L", [1, 3, 70])
def test_every_length_of_queries(L):
    """Rows past the length give 0 and -inf, and are not read."""
    query, key, value = operands(np.random.default_rng(6), np.float32, batch=(L + 1,), H=2, G=1, L=L, S=66)
    clean, _ = check(query, key, value)
    for length in range(L + 1):
        query[length, :, length:] = NAN
    got, lse = check(query, key, value, query_lengths=np.arange(L + 1))
    for length in range(L + 1):
        np.testing.assert_array_equal(got[length, :, :length], clean[length, :, :length])
        assert (got[length, :, length:] == 0).all() and (lse[length, :, length:] == -INF).all()


def test_padded_queries_give_nothing_even_with_a_sink():
    got, lse = check(*operands(np.random.default_rng(7), np.float32), query_lengths=[2, 0], sinks=[0.0, 1, 2, 3])
    assert (lse[0, :, 2:] == -INF).all() and (lse[1] == -INF).all() and (got[1] == 0).all()


@pytest.mark.parametrize(
    "options",
    [{}, {"window_size": (9, 3)}, {"alibi_slopes": [0.5, 0.1]}, {"relative_bias": np.arange(41) % 3 / 2}],
    ids=["", "window", "alibi", "relative"],
)
def test_a_padded_batch_equals_its_sequences(options):
    """The offset of a sequence is its kv_length - query_length: its last query stands at its last key."""
    rng = np.random.default_rng(8)
    queries, keys = np.array([70, 1, 3, 64, 0, 40]), np.array([130, 130, 2, 64, 7, 0])
    query, key, value = operands(rng, np.float32, batch=(6,), H=2, G=1, L=70, S=130)
    got, lse = check(query, key, value, is_causal=True, query_lengths=queries, kv_lengths=keys, **options)
    for b, (n, m) in enumerate(zip(queries, keys)):
        alone, alone_lse = check(query[b, :, :n], key[b, :, :m], value[b, :, :m], is_causal=True, **options)
        np.testing.assert_allclose(got[b, :, :n], alone, rtol=0, atol=1e-5, err_msg=f"sequence {b}")
        assert (got[b, :, n:] == 0).all() and (lse[b, :, n:] == -INF).all()
        np.testing.assert_array_equal(np.isinf(lse[b, :, :n]), np.isinf(alone_lse))


POSITIONAL = {"is_causal": True, "window_size": (3, 0), "alibi_slopes": [0.1] * 4, "relative_bias": [0.1] * 9}


@pytest.mark.parametrize("name", POSITIONAL)
def test_key_lengths_alone_are_ambiguous(name):
    arrays = operands(np.random.default_rng(9), np.float32, L=5, S=7)
    option = {name: POSITIONAL[name]}
    for kv_lengths in ([7, 4], 0, [4, 5]):
        with pytest.raises(ValueError, match="pass query_lengths for a padded batch, or causal_offset"):
            attnpy.scaled_dot_product_attention(*arrays, kv_lengths=kv_lengths, **option)
        for other in ({"query_lengths": [5, 3]}, {"causal_offset": 0}):
            check(*arrays, kv_lengths=kv_lengths, **option, **other)
        check(*arrays, kv_lengths=kv_lengths)
        check(*arrays, kv_lengths=kv_lengths, window_size=(-1, -1))
    check(*arrays, kv_lengths=[5, 7], **option)


def test_a_cache_decodes_with_no_more_arguments():
    """One step at a time over a cache of 130 places, lengths growing: each equals the row of the whole causal call."""
    for dtype in ("float32", "float16"):
        query, key, value = operands(np.random.default_rng(10), TYPES[dtype], batch=(2,), H=4, G=2, L=130, S=130)
        options = {"is_causal": True, "window_size": (50, -1), "alibi_slopes": [0.5, 0.25, 0.1, 0]}
        whole = attnpy.scaled_dot_product_attention(query, key, value, **options).astype(np.float64)
        filled = np.full_like(key, NAN), np.full_like(value, NAN)
        for t in range(130):
            for cache, new in zip(filled, (key, value)):
                cache[:, :, t] = new[:, :, t]
            got, _ = check(query[:, :, t : t + 1], *filled, kv_lengths=t + 1, **options)
            unit = float(np.finfo(TYPES[dtype]).eps)
            np.testing.assert_allclose(
                got[:, :, 0].astype(np.float64), whole[:, :, t], rtol=unit, atol=32 * 2.0**-24 + unit
            )


@pytest.mark.parametrize("n", [1, 3, 64])
def test_chunks_of_prefill_equal_the_whole(n):
    query, key, value = operands(np.random.default_rng(11), np.float32, L=200, S=200)
    whole = attnpy.scaled_dot_product_attention(query, key, value, is_causal=True)
    for first in range(0, 200, n):
        end = min(first + n, 200)
        got = attnpy.scaled_dot_product_attention(
            query[:, :, first:end], key[:, :, :end], value[:, :, :end], is_causal=True
        )
        np.testing.assert_allclose(got, whole[:, :, first:end], rtol=0, atol=32 * 2.0**-24, err_msg=f"from {first}")


@pytest.mark.parametrize("L", [1, 3, 70])
@pytest.mark.parametrize("dtype", TYPES)
def test_alibi(L, dtype):
    rng = np.random.default_rng(seed_of("alibi", L, dtype))
    arrays = operands(rng, TYPES[dtype], H=4, G=2, L=L, S=130)
    for slopes in (2.0 ** -np.arange(1, 5), np.zeros(4), [-0.1, 0, 1, 30], rng.random((2, 4))):
        for more in ({}, {"is_causal": True}, {"causal_offset": 5}, {"causal_offset": [-200, 100]}):
            check(*arrays, alibi_slopes=slopes, note=f"slopes {slopes}", constructed=True, **more)


@pytest.mark.parametrize("L", [1, 70])
@pytest.mark.parametrize("offset", [2**20, -(2**20), 2**24 + 1, 2**40, -(2**62), 2**62])
def test_alibi_far_away(L, offset):
    """All keys on one side: the distances differ by the same steps, so far as the compute type can tell them apart."""
    for dtype in ("float32", "float64"):
        arrays = operands(np.random.default_rng(12), TYPES[dtype], batch=(), H=4, L=L, S=130)
        check(
            *arrays,
            alibi_slopes=[1, 0.25, 2.0**-8, 1e-6],
            causal_offset=offset,
            note=f"offset {offset}",
            constructed=True,
        )


def test_alibi_does_not_change_with_the_place():
    """Without other positions a row sees its keys as any other row would: shifted queries and keys give the same."""
    query, key, value = operands(np.random.default_rng(13), np.float64, batch=(), H=2, L=70, S=70)
    got = attnpy.scaled_dot_product_attention(query, key, value, alibi_slopes=[0.5, 0.1], is_causal=True)
    pad = ((0, 0), (200, 0), (0, 0))
    hidden = np.arange(270) >= 200
    moved = attnpy.scaled_dot_product_attention(
        np.pad(query, pad), np.pad(key, pad), np.pad(value, pad), hidden, alibi_slopes=[0.5, 0.1], is_causal=True
    )
    np.testing.assert_allclose(moved[:, 200:], got, rtol=0, atol=1e-13)


def test_slopes_and_sinks_must_be_numbers_for_heads():
    arrays = operands(np.random.default_rng(14), np.float32, H=4)
    for name in ("alibi_slopes", "sinks"):
        for shape in ((3,), (4, 1), (2, 3), (3, 4)):
            with pytest.raises(ValueError, match=name):
                attnpy.scaled_dot_product_attention(*arrays, **{name: np.ones(shape)})
        for wrong in (np.ones(4, complex), np.array(["a"] * 4), np.array([None] * 4)):
            with pytest.raises(TypeError, match=name):
                attnpy.scaled_dot_product_attention(*arrays, **{name: wrong})
