"""NaN and infinities, scores of every size, saturation, long sums, floating-point flags."""

import ctypes
import ctypes.util
import itertools
import math
import platform

import numpy as np
import pytest
from inputs import TYPES, check, operands, seed_of
from numerics import same_bits

import attnpy
from attnpy import reference

INF, NAN = np.inf, np.nan
POISONS = (NAN, -NAN, INF, -INF, 1e30)
SIZES = [(1, 7), (1, 1300), (3, 70), (9, 130), (66, 66), (130, 200)]
ROWS = (1, 3, 9, 70)  # decoding, paired heads, row blocks


def same_kind(got, wanted, note):
    """NaN and infinities stand where the reference has them."""
    for kind in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(kind(np.float64(got)), kind(wanted), err_msg=f"{kind.__name__}: {note}")


def hiding(name, L, S):
    """Options that hide key columns entirely, and which."""
    hidden = np.arange(S) % 5 == 1
    if name == "kv_lengths":
        hidden = np.arange(S) >= S - S // 3
        return {"kv_lengths": S - S // 3}, hidden
    if name == "causal":
        hidden = np.arange(S) > S // 2
        return {"is_causal": True, "causal_offset": S // 2 - L + 1}, hidden
    if name == "window":
        hidden = np.arange(S) < S // 3
        return {"window_size": (0, -1), "causal_offset": S // 3}, hidden
    return {
        "bool mask": {"attn_mask": ~hidden},
        "float mask": {"attn_mask": np.where(hidden, -INF, 0.0)},
        "bias": {"bias": np.where(hidden, -INF, 0.5)},
    }[name], hidden


@pytest.mark.parametrize("name", ["kv_lengths", "causal", "window", "bool mask", "float mask", "bias"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", TYPES)
def test_hidden_keys_may_hold_anything(name, sizes, dtype):
    L, S = sizes
    options, hidden = hiding(name, L, S)
    query, key, value = operands(np.random.default_rng(seed_of(name, sizes)), TYPES[dtype], H=4, G=2, L=L, S=S)
    wanted = attnpy.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
    weights = attnpy.attention_weights(query, key, **options)
    received = attnpy.attention_received(query, key, **options)
    for poison in POISONS if dtype == "float32" else (NAN, INF):
        with np.errstate(over="ignore"):
            bad = np.asarray(poison).astype(TYPES[dtype])
        poisoned = np.where(hidden[:, None], bad, key), np.where(hidden[:, None], bad, value)
        got = attnpy.scaled_dot_product_attention(query, *poisoned, return_lse=True, **options)
        note = f"{poison} in hidden keys, L, S = {sizes}, {dtype}"
        same_bits(got[0], wanted[0], note)
        same_bits(got[1], wanted[1], note)
        same_bits(attnpy.attention_weights(query, poisoned[0], **options), weights, note)
        same_bits(attnpy.attention_received(query, poisoned[0], **options), received, note)


@pytest.mark.parametrize("L", ROWS)
@pytest.mark.parametrize("poison", POISONS)
def test_hidden_places_of_masks_may_hold_anything(L, poison):
    """Where one operand hides, the others may hold NaN, for single rows too."""
    S = 130
    rng = np.random.default_rng(seed_of(L))
    arrays = operands(rng, np.float32, H=4, G=2, L=L, S=S)
    hidden = rng.random((2, 4, L, S)) < 0.4
    bias = rng.standard_normal(hidden.shape).astype(np.float32)
    bad = np.where(hidden, np.float32(poison), bias)
    for mask in (~hidden, np.where(hidden, -INF, np.float32(0.25))):
        wanted = attnpy.scaled_dot_product_attention(*arrays, mask, bias=bias, return_lse=True)
        got = attnpy.scaled_dot_product_attention(*arrays, mask, bias=bad, return_lse=True)
        for one, other in zip(got, wanted):
            same_bits(one, other, f"{poison} in hidden places of bias, L = {L}")
    lower = np.where(hidden, -INF, 0).astype(np.float32)
    mask = np.where(hidden, np.float32(poison), 0.25)
    wanted = attnpy.scaled_dot_product_attention(*arrays, np.full_like(bias, 0.25), bias=lower)
    np.testing.assert_array_equal(attnpy.scaled_dot_product_attention(*arrays, mask, bias=lower), wanted)
    seen = np.tri(L, S, S - L, dtype=bool)
    wanted = attnpy.scaled_dot_product_attention(*arrays, is_causal=True, bias=bias)
    got = attnpy.scaled_dot_product_attention(*arrays, is_causal=True, bias=np.where(seen, bias, np.float32(poison)))
    same_bits(got, wanted, f"{poison} in the future of bias, L = {L}")


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("sizes", [(3, 7), (9, 70), (70, 70), (130, 130)], ids=str)
def test_a_key_poisons_only_the_rows_that_see_it(sizes, poison):
    """Causal: rows before the poisoned key and value keep their bits."""
    L, S = sizes
    query, key, value = operands(np.random.default_rng(seed_of(sizes)), np.float32, batch=(), H=4, G=2, L=L, S=S)
    wanted = attnpy.scaled_dot_product_attention(query, key, value, is_causal=True)
    for j in sorted({0, 1, S // 2, S - 1, min(63, S - 1), min(64, S - 1)}):
        bad_key, bad_value = key.copy(), value.copy()
        bad_key[1, j, 2], bad_value[0, j, 5] = poison, poison
        got = attnpy.scaled_dot_product_attention(query, bad_key, bad_value, is_causal=True)
        note = f"{poison} at key {j}, L, S = {sizes}"
        before = max(0, j - (S - L))
        same_bits(got[:, :before], wanted[:, :before], note)
        same_bits(np.delete(got[:2], 5, axis=-1), np.delete(wanted[:2], 5, axis=-1), note)
        same_kind(got, reference.scaled_dot_product_attention(query, bad_key, bad_value, is_causal=True), note)


@pytest.mark.parametrize("L", ROWS)
@pytest.mark.parametrize("dtype", TYPES)
def test_nan_in_one_query_row(L, dtype):
    """Exactly that row is NaN, its log-sum-exp too; the others keep their bits."""
    query, key, value = operands(np.random.default_rng(seed_of(L)), TYPES[dtype], H=4, G=2, L=L, S=130)
    wanted, wanted_lse = attnpy.scaled_dot_product_attention(query, key, value, return_lse=True)
    for h, i in {(0, 0), (3, L - 1), (2, L // 2)}:
        bad = query.copy()
        bad[1, h, i, 3] = NAN
        got, lse = attnpy.scaled_dot_product_attention(bad, key, value, return_lse=True)
        assert np.isnan(got[1, h, i]).all() and np.isnan(lse[1, h, i]), f"row {i} of head {h}, L = {L}"
        wanted_now, lse_now = wanted.copy(), wanted_lse.copy()
        wanted_now[1, h, i], lse_now[1, h, i] = NAN, NAN
        same_bits(got, wanted_now, f"row {i} of head {h}, L = {L}")
        np.testing.assert_array_equal(lse, lse_now)
        weights = attnpy.attention_weights(bad, key)
        np.testing.assert_array_equal(np.isnan(weights).all(-1), np.isnan(lse))
        np.testing.assert_array_equal(np.isnan(weights).any(-1), np.isnan(lse))


@pytest.mark.parametrize("L", ROWS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_in_a_row_that_sees_nothing(L, dtype):
    query, key, value = operands(np.random.default_rng(1), TYPES[dtype], L=L, S=70)
    query[:, :, 0] = NAN
    seen = np.ones((L, 70), bool)
    seen[0] = False
    got, lse = attnpy.scaled_dot_product_attention(query, key, value, seen, return_lse=True)
    assert (got[:, :, 0] == 0).all() and (lse[:, :, 0] == -INF).all() and np.isfinite(got).all()


@pytest.mark.parametrize("L", ROWS)
@pytest.mark.parametrize("S", [5, 130, 1300])
def test_infinite_scores(L, S):
    """+inf, visible: a NaN row. -inf, visible: a weight of 0. From keys, queries, bias, mask, sinks."""
    for n in range(6):
        rng = np.random.default_rng(seed_of(L, S, n))
        query, key, value = operands(rng, np.float32, batch=(), H=2, L=L, S=S)
        rows, keys = rng.integers(L, size=2), rng.integers(S, size=2)
        options = [{}, {}, {}, {"bias": np.zeros((L, S))}, {"attn_mask": np.zeros((L, S))}, {"sinks": [INF, -INF]}][n]
        if n == 0:
            key[:, keys[0], 0] = INF
        elif n == 1:
            query, key[0, keys[0], 1] = np.abs(query), -INF
        elif n == 2:
            query[0, rows[0], 2], query[1, rows[1], 2] = INF, -INF
        elif n < 5:
            next(iter(options.values()))[rows, keys] = INF, -INF
        with np.errstate(all="ignore"):
            wanted = reference.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
            weights = reference.attention_weights(query, key, **options)
        got = attnpy.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
        note = f"case {n}, L = {L}, S = {S}"
        for one, other in zip(got, wanted):
            same_kind(one, other, note)
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4, err_msg=note)
        same_kind(attnpy.attention_weights(query, key, **options), weights, note)


@pytest.mark.parametrize("L", ROWS)
def test_a_positive_infinite_score_makes_its_row_nan(L):
    query, key, value = operands(np.random.default_rng(2), np.float32, batch=(), H=1, L=L, S=70)
    bias = np.zeros((L, 70))
    bias[L - 1, 66] = INF
    got, lse = attnpy.scaled_dot_product_attention(query, key, value, bias=bias, return_lse=True)
    assert np.isnan(got[0, L - 1]).all() and np.isnan(lse[0, L - 1])
    assert np.isfinite(got[0, : L - 1]).all() and np.isfinite(lse[0, : L - 1]).all()
    bias[L - 1, 65] = NAN
    bias[L - 1, 66] = 0
    assert np.isnan(attnpy.scaled_dot_product_attention(query, key, value, bias=bias)[0, L - 1]).all()


@pytest.mark.parametrize("L", ROWS)
@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_nan_in_a_value_reaches_its_own_column(L, poison):
    rng = np.random.default_rng(seed_of(L))
    query, key, value = operands(rng, np.float32, batch=(2,), H=4, G=2, L=L, S=130, D=19)
    seen = rng.random((4, L, 130)) < 0.5
    seen[0, 0, 77], seen[1, 0, 77] = True, False
    clean = attnpy.scaled_dot_product_attention(query, key, value, seen)
    value[1, 0, 77, 18] = poison
    got = attnpy.scaled_dot_product_attention(query, key, value, seen)
    reached = np.zeros(got.shape, bool)
    reached[1, :2, :, 18] = seen[:2, :, 77]
    np.testing.assert_array_equal(got[~reached], clean[~reached])
    assert np.isnan(got[reached]).all() if np.isnan(poison) else (got[reached] == poison).all()


@pytest.mark.parametrize("payload", [1, 3, 0x3FFFFF, 0x400000, 0x7FFFFF])
def test_every_nan_counts(payload):
    for L, sign in itertools.product(ROWS, (0, 1)):
        nan = np.uint32(sign << 31 | 0x7F800000 | payload).view(np.float32)
        query, key, value = operands(np.random.default_rng(3), np.float32, batch=(), H=1, L=L, S=70)
        bias = np.zeros((L, 70), np.float32)
        bias[0, 65] = nan
        got, lse = attnpy.scaled_dot_product_attention(query, key, value, bias=bias, return_lse=True)
        assert np.isnan(got[0, 0]).all() and np.isnan(lse[0, 0]) and np.isfinite(got[0, 1:]).all(), f"L = {L}"
        value[0, 3, 1] = nan
        assert np.isnan(attnpy.scaled_dot_product_attention(query, key, value)[0, :, 1]).all(), f"L = {L}"


@pytest.mark.parametrize("level", [-120.0, 300.0, -5000.0, 88.0, 0.0])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_all_scores_at_one_level(level, dtype):
    """... with every residue of S by the block: a padded tile must not score 0."""
    for L, S in itertools.product((1, 5, 66), (1, 2, 15, 17, 33, 48, 63, 64, 65, 100, 127, 129)):
        query, key, value = operands(np.random.default_rng(seed_of(L, S)), TYPES[dtype], batch=(), H=2, G=1, L=L, S=S)
        query[..., 0], key[..., 0] = level * math.sqrt(8), 1
        check(query, key, value, note=f"scores near {level}", constructed=True)


@pytest.mark.parametrize("order", ["rising", "falling", "peak in the middle", "one far ahead", "steps"])
@pytest.mark.parametrize("L", [1, 5, 66])
def test_the_maximum_moves(order, L):
    """The running maximum changes in each block, never, or by more than the exponential's range."""
    S = 400
    j = np.arange(S) / S
    path = {
        "rising": 300 * j,
        "falling": -300 * j,
        "peak in the middle": -300 * np.abs(j - 0.5),
        "one far ahead": np.where(np.arange(S) == 321, 1000, 0),
        "steps": 200 * (np.arange(S) // 64 % 2),
    }[order]
    for dtype in ("float32", "float64"):
        query, key, value = operands(np.random.default_rng(4), TYPES[dtype], batch=(), H=2, L=L, S=S)
        query[..., 0], key[..., 0] = math.sqrt(8), path
        check(query, key, value, note=order, constructed=True)
        check(query, key, value, note=order, sinks=[100, -1000], constructed=True)


@pytest.mark.parametrize("L", [1, 5, 66])
@pytest.mark.parametrize("pieces", [(1e25, 1e25, 1e-50), (1e20, 1e18, 1e-38), (1e38, 1.0, 1e-38), (1e-30, 1e-30, 1e60)])
def test_products_beyond_float32_with_scores_inside(L, pieces):
    one, other, scale = pieces
    query, key, value = operands(np.random.default_rng(5), np.float64, batch=(), H=2, L=L, S=130)
    query, key, value = (x.astype(np.float32) for x in (one * query / 8, other * key / 8, value))
    check(query, key, value, scale=scale, note=f"|q|, |k|, scale = {pieces}")
    check(query, key, value, scale=-scale, is_causal=True, note=f"|q|, |k|, scale = {pieces}")


@pytest.mark.parametrize("L", [1, 5, 66])
def test_products_beyond_float64_with_scores_inside(L):
    query, key, value = operands(np.random.default_rng(5), np.float64, batch=(), H=2, L=L, S=130, E=16)
    check(1e160 * query, 1e147 * np.abs(key), value, scale=1e-307)


@pytest.mark.parametrize("L", [1, 5, 66])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products_beyond_half_range(L, dtype):
    query, key, value = operands(np.random.default_rng(6), np.float32, batch=(), H=2, L=L, S=130, E=64)
    query, key, value = ((100 * x).astype(TYPES[dtype]) for x in (query, key, value / 100))
    assert (np.abs(np.float32(query) @ np.float32(key).swapaxes(-1, -2)).max()) > 65504
    check(query, key, value, scale=1e-4)
    check(query, key, value)


MOST = {"float32": float(np.finfo(np.float32).max), "float64": float(np.finfo(np.float64).max)}


@pytest.mark.parametrize("L", ROWS)
@pytest.mark.parametrize("dtype", MOST)
def test_saturation(L, dtype):
    """Scores beyond MAX ln 2 are equal there, with their sign; NaN comes from none of them."""
    most, S = MOST[dtype], 130
    query, key, value = operands(np.random.default_rng(7), TYPES[dtype], batch=(), H=2, L=L, S=S)
    limit = most * math.log(2)
    mean = np.broadcast_to(value.mean(1, keepdims=True), (2, L, 8))
    sums = {
        "bias of MAX": {"bias": np.full((L, S), most)},
        "bias of -MAX": {"bias": np.full((L, S), -most)},
        "mask of -MAX": {"attn_mask": np.full((L, S), -most)},
        "bias and mask of -MAX": {"attn_mask": np.full((L, S), -most), "bias": np.full((L, S), -most)},
        "bias and mask of MAX": {"attn_mask": np.full((L, S), most), "bias": np.full((L, S), most)},
        "alibi of -MAX": {"alibi_slopes": np.full(2, most), "causal_offset": 2**40},
    }
    for name, options in sums.items():
        got, lse = attnpy.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
        sign = -1 if "-" in name else 1
        np.testing.assert_allclose(lse, np.full((2, L), sign * limit), rtol=1e-6, err_msg=f"{name}, L = {L}")
        tolerance = 200 * np.finfo(dtype).eps * np.abs(value).mean()
        np.testing.assert_allclose(got, mean, rtol=0, atol=tolerance, err_msg=f"{name}, L = {L}")
    halves = np.where(np.arange(S) < 65, most, -most)
    got, lse = attnpy.scaled_dot_product_attention(query, key, value, bias=halves, return_lse=True)
    first = np.broadcast_to(value[:, :65].mean(1, keepdims=True), got.shape)
    np.testing.assert_allclose(got, first, rtol=0, atol=200 * np.finfo(dtype).eps)
    np.testing.assert_allclose(lse, np.full((2, L), limit), rtol=1e-6)
    opposite = attnpy.scaled_dot_product_attention(
        query, key, value, np.full((L, S), -most), bias=np.full((L, S), most)
    )
    assert np.isfinite(opposite).all()


@pytest.mark.parametrize("L", ROWS)
@pytest.mark.parametrize("dtype", MOST)
def test_products_that_saturate(L, dtype):
    """q.k beyond the range from finite numbers: the largest keys share the weight."""
    big = {"float32": 1e30, "float64": 1e300}[dtype]
    query, key, value = operands(np.random.default_rng(8), TYPES[dtype], batch=(), H=2, L=L, S=130)
    query, key = np.abs(query) * big, np.abs(key) * big
    key[:, 70:] *= -1
    got, lse = attnpy.scaled_dot_product_attention(query, key, value, return_lse=True)
    first = np.broadcast_to(value[:, :70].mean(1, keepdims=True), got.shape)
    np.testing.assert_allclose(got, first, rtol=0, atol=200 * np.finfo(dtype).eps)
    np.testing.assert_allclose(lse, np.full((2, L), MOST[dtype] * math.log(2)), rtol=1e-6)
    query[:, 0] *= -1
    got = attnpy.scaled_dot_product_attention(query, key, value, softcap=2.0)
    assert np.isfinite(got).all()
    weights = attnpy.attention_weights(query, key, softcap=2.0)
    ratio = math.exp(4) if L > 1 else math.exp(-4)
    np.testing.assert_allclose(weights[:, -1, 0] / weights[:, -1, -1], ratio, rtol=1e-5)


@pytest.mark.parametrize(
    "name, L, S, E",
    [("constants", 2, 65536, 8), ("constants", 66, 65537, 8), ("constants", 5, 70000, 8), ("constants", 3, 300, 1024)]
    + [("equal signs", 2, 100_003, 4), ("equal signs", 66, 65536, 4), ("equal signs", 5, 80, 2048)]
    + [("uniform", 1, 1_000_000, 1), ("uniform", 64, 65536, 2), ("one sign of score", 64, 65536, 16)],
)
def test_long_sums(name, L, S, E):
    """Inputs on which rounding errors add up: constants, equal signs, no differences between scores."""
    query, key, value = operands(np.random.default_rng(9), np.float32, batch=(), H=1, L=L, S=S, E=E, D=4)
    if name == "constants":
        query[:], key[:], value[:] = 0.3, 0.7, 0.1
    elif name == "equal signs":
        query, key, value = np.abs(query), np.abs(key), np.abs(value)
    elif name == "uniform":
        query, value = 0 * query, 1 + np.abs(value) / 1000
    else:
        query, key, value = np.abs(query), -np.abs(key), np.full_like(value, 1 / 3)
    check(query, key, value, note=name, constructed=True)


@pytest.mark.parametrize("S", [2**15 - 1, 2**15, 2**15 + 1, 2**16 - 1, 2**16 + 1])
def test_keys_around_sixteen_bits(S):
    for L in (1, 5, 66):
        query, key, value = operands(np.random.default_rng(10), np.float32, batch=(), H=1, L=L, S=S, E=4, D=3)
        check(query, key, value, is_causal=True)
        last = attnpy.scaled_dot_product_attention(query, key, value, np.arange(S) == S - 1)
        np.testing.assert_array_equal(last, np.broadcast_to(value[:, -1:], last.shape))


def test_queries_beyond_sixteen_bits():
    L = 2**16 + 1
    query, key, value = operands(np.random.default_rng(11), np.float32, batch=(), H=1, L=L, S=3, E=4, D=3)
    check(query, key, value)
    check(query, key, value, is_causal=True)


def test_small_values_are_kept():
    """Subnormal results of subnormal values; float16's included."""
    for dtype, size in (("float32", 1e-42), ("float64", 1e-320), ("float16", 3e-7), ("bfloat16", 1e-39)):
        value = np.full((1, 130, 8), size).astype(TYPES[dtype])
        for L in ROWS:
            query, key, _ = operands(np.random.default_rng(13), TYPES[dtype], batch=(), H=1, L=L, S=130)
            got = attnpy.scaled_dot_product_attention(query, key, value)
            assert (np.abs(got.astype(np.float64) / float(value[0, 0, 0]) - 1) < 0.2).all(), f"{dtype}, L = {L}"


def libm():
    return ctypes.CDLL(ctypes.util.find_library("m"))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the flags' numbers are those of x86")
def test_floating_point_flags_stay_as_they_were():
    """Invalid, division by zero, overflow, underflow: neither raised by a call nor cleared by it."""
    fe_all = 0x3D
    query, key, value = operands(np.random.default_rng(14), np.float32, batch=(), H=1, L=70, S=130)
    query[0, 0], key[0, 3], value[0, 5] = 1e30, 1e30, 1e-40
    query[0, 1], value[0, 6] = NAN, INF
    mask = np.random.default_rng(14).random((70, 130)) < 0.5
    mask[4] = False
    half = tuple(x.astype(np.float16) for x in operands(np.random.default_rng(15), np.float32, L=3, S=70))
    for raised in (0, 0x01, 0x04):
        libm().feclearexcept(fe_all)
        libm().feraiseexcept(raised)
        attnpy.scaled_dot_product_attention(query, key, value, mask, return_lse=True)
        attnpy.attention_weights(query, key, mask)
        attnpy.scaled_dot_product_attention(*half)
        attnpy.softmax(query)
        attnpy.logsumexp(query)
        assert libm().fetestexcept(0x1D) == raised
    libm().feclearexcept(fe_all)
