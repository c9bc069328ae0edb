"""relative_bias: a number for each distance from a query to a key."""

import math

import numerics
import numpy as np
import pytest
from inputs import TYPES, check, operands, seed_of

import attnpy

INF, NAN = np.inf, np.nan
# Queries of one row, in pairs with heads, of whole blocks and past them; keys of one part and of two.
SIZES = [(1, 131), (1, 1100), (3, 130), (5, 1100), (64, 64), (65, 200), (130, 67), (200, 200)]


def spread(table, L, S, offset=None):
    """table[..., i, clip(j - i - offset, -K, K) + K], (..., L, S)."""
    K = table.shape[-1] // 2
    offset = S - L if offset is None else offset
    column = np.clip(np.arange(S) - np.arange(L)[:, None] - offset, -K, K) + K
    table = np.broadcast_to(table, (*table.shape[:-2], L, table.shape[-1]))
    return np.take_along_axis(table, np.broadcast_to(column, (*table.shape[:-1], S)), -1)


@pytest.mark.parametrize("side", [attnpy, attnpy.reference], ids=["kernel", "reference"])
def test_by_hand(side):
    """Columns: one or more before, here, one or more after; their weights are as 1 : 2 : 4."""
    zeros, table = np.zeros((3, 1)), np.log([1.0, 2, 4])
    wanted = [[2 / 10, 4 / 10, 4 / 10], [1 / 7, 2 / 7, 4 / 7], [1 / 4, 1 / 4, 2 / 4]]
    got = side.attention_weights(zeros, zeros, scale=1, relative_bias=table)
    np.testing.assert_allclose(got, wanted, rtol=1e-15)
    np.testing.assert_allclose(
        side.attention_received(zeros, zeros, relative_bias=table), np.sum(wanted, 0), rtol=1e-15
    )
    got = side.attention_weights(zeros[:1], zeros, scale=1, relative_bias=table)
    np.testing.assert_allclose(got, wanted[2:], rtol=1e-15, err_msg="one query is the last")
    got = side.attention_weights(zeros, zeros, scale=1, relative_bias=table, causal_offset=1)
    np.testing.assert_allclose(got, [wanted[1], wanted[2], [1 / 3] * 3], rtol=1e-15)
    got = side.attention_weights(zeros, zeros, scale=1, relative_bias=[0, -INF, 0])
    np.testing.assert_allclose(got, [[0, 1 / 2, 1 / 2], [1 / 2, 0, 1 / 2], [1 / 2, 1 / 2, 0]], rtol=1e-15)
    got = side.attention_weights(zeros, zeros, scale=1, relative_bias=[5.0])
    np.testing.assert_allclose(got, np.full((3, 3), 1 / 3), rtol=1e-15, err_msg="K = 0")


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", TYPES)
def test_bits_of_the_bias_that_it_stands_for(sizes, dtype):
    """One term of a score has one rounding, whichever way it comes; heads that share keys, and tables of every kind."""
    L, S = sizes
    rng = np.random.default_rng(seed_of("bits", L, S, dtype))
    query, key, value = operands(rng, TYPES[dtype], batch=(2,), H=4, G=2, L=L, S=S)
    for K in (0, 1, 40, S + 5):
        for shape in ((4, 1, 2 * K + 1), (2, 1, L, 2 * K + 1), (1, 2 * K + 1)):
            table = rng.standard_normal(shape).astype(np.float64 if dtype == "float64" else np.float32)
            for hidden in (False, True):
                if hidden:
                    table[rng.random(shape) < 0.1] = -INF
                for more in ({}, {"is_causal": True}, {"softcap": 2.0}, {"window_size": (70, 3)}):
                    got = attnpy.scaled_dot_product_attention(
                        query, key, value, relative_bias=table, return_lse=True, **more
                    )
                    wanted = attnpy.scaled_dot_product_attention(
                        query, key, value, bias=spread(table, L, S), return_lse=True, **more
                    )
                    for ours, theirs in zip(got, wanted, strict=True):
                        numerics.same_bits(ours, theirs, f"K = {K}, {shape}, hidden {hidden}, {more}")


@pytest.mark.parametrize("offset", [0, 5, -40, 2**20, 2**40, -(2**62), 2**62, 2**63 - 1])
def test_any_offset(offset):
    """Far away all distances have the first or the last column."""
    for L in (1, 5, 70):
        arrays = operands(np.random.default_rng(L), np.float32, batch=(), H=2, L=L, S=130)
        table = np.random.default_rng(3).standard_normal((2, 1, 61))
        check(*arrays, relative_bias=table, causal_offset=offset, note=f"L = {L}")
        if abs(offset) > 200:
            same = np.broadcast_to(table[..., :1] if offset > 0 else table[..., -1:], (2, 1, 1))
            got = attnpy.scaled_dot_product_attention(*arrays, relative_bias=table, causal_offset=offset)
            numerics.same_bits(got, attnpy.scaled_dot_product_attention(*arrays, bias=same), f"L = {L}")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_a_step_of_decoding_is_the_row_of_the_whole(dtype):
    query, key, value = operands(np.random.default_rng(4), TYPES[dtype], batch=(2,), H=4, G=2, L=130, S=130)
    options = {"is_causal": True, "relative_bias": np.random.default_rng(5).standard_normal((4, 1, 101)) * 3}
    whole = attnpy.scaled_dot_product_attention(query, key, value, **options).astype(np.float64)
    unit = float(np.finfo(TYPES[dtype]).eps)
    for t in range(0, 130, 7):
        got, _ = check(query[:, :, t : t + 1], key, value, kv_lengths=t + 1, **options)
        np.testing.assert_allclose(
            got[:, :, 0].astype(np.float64), whole[:, :, t], rtol=unit, atol=64 * 2.0**-24 + unit
        )


def test_it_depends_on_the_distance_alone():
    query, key, value = operands(np.random.default_rng(6), np.float64, batch=(), H=2, L=70, S=70)
    table = np.random.default_rng(7).standard_normal((2, 1, 41))
    got = attnpy.scaled_dot_product_attention(query, key, value, relative_bias=table)
    pad, hidden = ((0, 0), (200, 0), (0, 0)), np.arange(270) >= 200
    moved = attnpy.scaled_dot_product_attention(
        *(np.pad(x, pad) for x in (query, key, value)), hidden, relative_bias=table
    )
    np.testing.assert_allclose(moved[:, 200:], got, rtol=0, atol=1e-13)


@pytest.mark.parametrize("L", [1, 3, 70])
def test_columns_of_no_visible_distance_are_not_used(L):
    """The future of a causal call, and what lies beyond every distance."""
    arrays = operands(np.random.default_rng(8), np.float32, batch=(), H=2, L=L, S=130)
    table = np.random.default_rng(9).standard_normal((2, 1, 501)).astype(np.float32)
    wanted = attnpy.scaled_dot_product_attention(*arrays, relative_bias=table, is_causal=True)
    for poison in (NAN, INF, -INF, np.finfo(np.float32).max):
        other = table.copy()
        other[..., 251:] = other[..., : 250 - 129] = poison
        got = attnpy.scaled_dot_product_attention(*arrays, relative_bias=other, is_causal=True)
        numerics.same_bits(got, wanted, f"{poison}")


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("L", [2, 70])
def test_nan_reaches_the_rows_that_see_its_distance(L, bad):
    """Column K + 64 is that of keys 64 further on: rows that have such a key, and no others."""
    arrays = operands(np.random.default_rng(10), np.float32, batch=(), H=2, L=L, S=100)
    table = np.zeros((2, 1, 301), np.float32)
    table[1, 0, 150 + 64] = bad
    output, lse = attnpy.scaled_dot_product_attention(*arrays, relative_bias=table, causal_offset=0, return_lse=True)
    wanted = np.zeros((2, L), bool)
    wanted[1, : 100 - 64] = True
    np.testing.assert_array_equal(np.isnan(output).all(-1), wanted)
    np.testing.assert_array_equal(np.isnan(output).any(-1), wanted)
    np.testing.assert_array_equal(np.isnan(lse), wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("L", [1, 5, 70])
def test_terms_at_the_edge_of_the_range(L, dtype):
    """A finite number is added, however large: it does not hide, and finite scores stay finite."""
    most = float(np.finfo(dtype).max)
    query, key, value = (np.ones((2, n, 8), dtype) for n in (L, 130, 130))
    for table in ([-most], [most], [-most, -most, -most], [most, -most, most]):
        for slopes in (None, [most, 0.0]):
            output, lse = attnpy.scaled_dot_product_attention(
                query, key, value, relative_bias=table, alibi_slopes=slopes, return_lse=True
            )
            np.testing.assert_allclose(output, 1, rtol=1e-6)
            assert np.isfinite(lse).all()
    got = attnpy.attention_weights(query[:, :1], key[:, :3], relative_bias=[-most, 0.0, 0.0])
    np.testing.assert_array_equal(got, np.broadcast_to([0, 0, 1], (2, 1, 3)).astype(dtype))


def test_all_terms_together():
    """Bias and mask before ALiBi, and that before relative_bias: their order is that of the reference."""
    rng = np.random.default_rng(11)
    for L, S in SIZES:
        arrays = operands(rng, np.float32, batch=(2,), H=4, G=2, L=L, S=S)
        table = rng.standard_normal((4, 1, 2 * int(rng.integers(0, S)) + 1))
        terms = {
            "bias": rng.standard_normal((L, S)),
            "alibi_slopes": rng.random(4),
            "softcap": 3.0,
            "relative_bias": table,
        }
        for left_out in (None, *terms):
            check(*arrays, **{k: v for k, v in terms.items() if k != left_out}, sinks=[0.0, 1, 2, 3], note=f"{L}, {S}")


def test_table_shapes():
    query, key, value = operands(np.random.default_rng(12), np.float32, batch=(3,), H=4, L=6, S=7)
    for shape in ((5,), (1, 5), (6, 5), (4, 1, 5), (4, 6, 5), (1, 6, 5), (3, 1, 1, 5), (3, 4, 6, 5), (1, 4, 1, 1)):
        check(query, key, value, relative_bias=np.random.default_rng(13).standard_normal(shape), note=f"{shape}")
    for shape in ((), (4,), (4, 5), (3, 1, 5), (4, 2, 5), (2, 4, 1, 5), (1, 3, 4, 6, 5), (0,)):
        with pytest.raises(ValueError, match="relative_bias"):
            attnpy.scaled_dot_product_attention(query, key, value, relative_bias=np.zeros(shape))


def test_gradient_of_a_table_that_batch_elements_read_at_other_places():
    """A row for each query, one for all batch elements: from offset to offset other keys add to the same entry, and so
    do tasks of several threads. Integers, whose sums are exact in any order, and bits that stay with numbers that are
    not.
    """
    B, L, S = 16, 64, 1024
    rng = np.random.default_rng(14)
    query, key, value = operands(rng, np.float32, batch=(B,), H=1, L=L, S=S)
    options = {"relative_bias": np.zeros((1, L, 2 * S + 1), np.float32), "causal_offset": -64 * np.arange(B)}
    lse = attnpy.scaled_dot_product_attention(query, key, value, return_lse=True, **options)[1]

    def gradient(query, key, value, lse, output, **options):
        grad_output = np.ones_like(output)
        return attnpy.scaled_dot_product_attention_backward(
            grad_output, query, key, value, output, lse, **options, needs=("relative_bias",)
        ).relative_bias

    ones = np.ones_like(value)  # P = 1, dP = D, delta = 0: dS = D
    counted = gradient(0 * query, 0 * key, ones, 0 * lse, 0 * ones[..., :L, :], **options)
    wanted = np.zeros((1, L, 2 * S + 1))
    for offset in options["causal_offset"]:
        column = np.clip(np.arange(S) - np.arange(L)[:, None] - offset, -S, S) + S
        np.add.at(wanted, (0, np.arange(L)[:, None], column), value.shape[-1])
    np.testing.assert_array_equal(counted, wanted)
    output = rng.standard_normal((B, 1, L, value.shape[-1]), np.float32)
    with attnpy.num_threads(1):
        wanted = gradient(query, key, value, lse, output, **options)
    for _ in range(10):
        np.testing.assert_array_equal(gradient(query, key, value, lse, output, **options), wanted)


def test_memory_does_not_grow_with_the_product_of_lengths():
    """30000 queries and keys: their array of scores would be 3.6 GB, the table is 240 kB."""
    n = 30000
    query, key, value = np.zeros((3, 1, n, 1), np.float32)
    value[:] = 1
    table = np.where(np.abs(np.arange(-n, n + 1)) <= 2, 0.0, -INF).astype(np.float32)
    got = attnpy.scaled_dot_product_attention(query, key, value, relative_bias=table, window_size=50)
    np.testing.assert_allclose(got, 1, rtol=1e-6)
    assert math.isclose(
        attnpy.attention_weights(query, key, rows=[n // 2], relative_bias=table)[0, 0, n // 2], 1 / 5, rel_tol=1e-6
    )
