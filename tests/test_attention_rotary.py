"""Rotary positions inside attention: what is special to them; the laws of all functions are in test_laws.py."""

import itertools

import cases_rotary
import inputs
import memory
import numpy as np
import oracle_rotary
import pytest
from numerics import same_bits

import attnpy

FUNCTIONS = ("scaled_dot_product_attention", "attention_weights", "attention_received")
SIZES = [  # batch, H, G, L, S, E, D: decoding, paired rows, split keys, several row blocks and key blocks
    ((2,), 4, 2, 1, 131, 64, 64),
    ((), 8, 1, 1, 1100, 16, 8),
    ((2,), 6, 2, 5, 1031, 10, 7),
    ((2,), 2, 1, 129, 200, 33, 17),
    ((), 12, 12, 70, 70, 32, 32),
]


def tables(rows, E, real=np.float32, twice=False):
    return cases_rotary.rotary_tables(rows, E // 2, real, twice)


def turned_first(x, rotary, positions, interleaved, inverse=False):
    return attnpy.rotary_embedding(x, *rotary, positions=positions, interleaved=interleaved, inverse=inverse)


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_bits_of_a_rotation_before_the_call(size, dtype, interleaved):
    batch, H, G, L, S, E, D = size
    rng = np.random.default_rng(inputs.seed_of(size))
    query, key, value = inputs.operands(rng, dtype, batch=batch, H=H, G=G, L=L, S=S, E=E, D=D)
    rotary = tables(S, E, dtype)
    at = {"query": np.arange(L) + S - L, "key": np.arange(S)}
    first = {name: turned_first(x, rotary, at[name], interleaved) for name, x in (("query", query), ("key", key))}
    options = {"rotary": rotary, "rotary_interleaved": interleaved}
    for causal, name in itertools.product((False, True), FUNCTIONS):
        call, operands = getattr(attnpy, name), [value] if name.startswith("scaled") else []
        ours = call(query, key, *operands, is_causal=causal, **options)
        same_bits(ours, call(*first.values(), *operands, is_causal=causal), f"{name} causal {causal}")
    tangents = [rng.standard_normal(x.shape).astype(dtype) for x in (query, key, value)]
    moved = [turned_first(x, rotary, at[name], interleaved) for name, x in zip(at, tangents, strict=False)]
    ours = attnpy.scaled_dot_product_attention_jvp(query, key, value, *tangents, return_lse=True, **options)
    theirs = attnpy.scaled_dot_product_attention_jvp(*first.values(), value, *moved, tangents[2], return_lse=True)
    for one, other in zip(ours, theirs, strict=True):
        same_bits(one, other, "tangents")
    output, lse = attnpy.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
    gradient = rng.standard_normal(output.shape).astype(dtype)
    ours = attnpy.scaled_dot_product_attention_backward(gradient, query, key, value, output, lse, **options)
    theirs = attnpy.scaled_dot_product_attention_backward(gradient, *first.values(), value, output, lse)
    for name in at:
        back = turned_first(getattr(theirs, name), rotary, at[name], interleaved, inverse=True)
        same_bits(getattr(ours, name), back, f"gradient of {name}")
    same_bits(ours.value, theirs.value, "gradient of value")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("L", [1, 3, 70])
def test_half_types_turn_in_float32_without_rounding(dtype, L):
    rng = np.random.default_rng(L)
    stored = inputs.operands(rng, inputs.TYPES[dtype], H=8, G=2, L=L, S=90, E=32)
    wide = [x.astype(np.float32) for x in stored]
    ours = attnpy.scaled_dot_product_attention(*stored, rotary=tables(90, 32))
    same_bits(ours, attnpy.scaled_dot_product_attention(*wide, rotary=tables(90, 32)).astype(ours.dtype), dtype)


def test_small_numbers_by_hand():
    """One pair, a quarter turn a position: the query at 1 and the key at 0 stand at a right angle."""
    cos, sin = np.array([[1.0], [0.0], [-1.0]]), np.array([[0.0], [1.0], [0.0]])
    one = np.array([[1.0, 0.0]])
    weights = attnpy.attention_weights(np.repeat(one, 1, 0), np.repeat(one, 2, 0), scale=1, rotary=(cos, sin))
    np.testing.assert_allclose(weights, [[1 / (1 + np.e), np.e / (1 + np.e)]], rtol=1e-15)  # scores 0 and 1
    ahead = attnpy.attention_weights(one, np.repeat(one, 2, 0), scale=1, rotary=(cos, sin), query_positions=[2])
    np.testing.assert_allclose(ahead, [[1 / (1 + np.e), np.e / (1 + np.e)]], rtol=1e-15)  # scores -1 and 0


def call(**changes):
    rng = np.random.default_rng(5)
    query, key, value = inputs.operands(rng, np.float32, L=67, S=70, E=18)
    given = {"query": query, "key": key, "value": value, "rotary": tables(70, 18), "return_lse": True}
    return attnpy.scaled_dot_product_attention(**(given | changes))


def assert_same(ours, theirs, note):
    for one, other in zip(ours, theirs, strict=True):
        same_bits(one, other, note)


def test_layouts_and_types_of_the_tables():
    rotary = tables(70, 18)
    wanted = call()
    for layouts in zip(*(memory.layouts(table, None) for table in rotary), strict=True):
        assert_same(call(rotary=[x for _, x in layouts]), wanted, layouts[0][0])
    assert_same(call(rotary=[x.astype(np.float64) for x in rotary]), wanted, "float64 tables")
    assert_same(call(rotary=[np.concatenate([x, x], 1) for x in rotary]), wanted, "each number twice")
    wanted = call(rotary_interleaved=True)
    assert_same(call(rotary=[np.repeat(x, 2, 1) for x in rotary], rotary_interleaved=True), wanted, "twice, neighbours")
    assert_same(
        call(rotary=[np.repeat(x, 2, 1)[:, ::-1][:, ::-1] for x in rotary], rotary_interleaved=True), wanted, ""
    )
    guarded = [memory.guarded(x, side, 0) for side, x in zip(("start", "end"), rotary, strict=True)]
    assert_same(call(rotary=guarded), call(), "guard pages")


def test_table_rows_that_nothing_needs_are_not_used():
    long = [np.concatenate([x, np.full((30, 9), np.nan, np.float32)]) for x in tables(70, 18)]
    assert_same(call(rotary=long), call(), "longer tables")
    given = {"is_causal": True, "causal_offset": -40, "kv_lengths": [60, 5], "query_lengths": [67, 60]}
    short = [x[:27] for x in long]
    assert_same(call(rotary=short, **given), call(rotary=long, **given), "rows before position 0, keys past the last")
    windowed = {"window_size": (3, 0), "causal_offset": 20}
    middle = [x.copy() for x in long]
    for x in middle:
        x[:17] = np.nan
    assert_same(call(rotary=middle, **windowed), call(**windowed, rotary=long), "keys before all windows")


def test_positions_of_what_is_hidden_may_hold_anything():
    rng = np.random.default_rng(0)
    at = {"query_positions": rng.integers(0, 70, (2, 67)), "key_positions": rng.integers(0, 70, (2, 70))}
    lengths = {"query_lengths": [60, 3], "kv_lengths": [70, 64]}
    wanted = call(**at, **lengths)
    for x, n in zip(at.values(), lengths.values(), strict=True):
        for b in range(2):
            x[b, n[b] :] = (-(2**62), 10**6)[b]
    assert_same(call(**at, **lengths), wanted, "garbage in positions")


def test_scores_beyond_the_range_are_those_of_a_rotation_before():
    rng = np.random.default_rng(1)
    for L in (1, 67):
        query, key, value = inputs.operands(rng, np.float32, H=2, L=L, S=70, E=16)
        query, key, rotary = query * np.float32(1e30), key * np.float32(1e20), tables(70, 16)
        key[0, 0, 3, 1] = np.inf
        first = (
            turned_first(query, rotary, np.arange(L) + 70 - L, False),
            turned_first(key, rotary, np.arange(70), False),
        )
        ours = attnpy.scaled_dot_product_attention(query, key, value, rotary=rotary, return_lse=True)
        assert_same(ours, attnpy.scaled_dot_product_attention(*first, value, return_lse=True), f"{L} rows")


def test_weights_depend_on_the_distance_alone():
    rng = np.random.default_rng(2)
    query, key, _ = inputs.operands(rng, np.float64, L=9, S=20, E=16)
    rotary = tables(2000, 16, np.float64)
    at = {"query_positions": np.arange(9) + 11, "key_positions": np.arange(20)}
    wanted = attnpy.attention_weights(query, key, rotary=rotary)
    assert_same([attnpy.attention_weights(query, key, rotary=rotary, **at)], [wanted], "the default positions, given")
    for shift in (1, 100, 1900):
        moved = attnpy.attention_weights(query, key, rotary=rotary, **{name: x + shift for name, x in at.items()})
        np.testing.assert_allclose(moved, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_step_of_decoding_is_the_row_of_the_whole(interleaved):
    rng = np.random.default_rng(3)
    query, key, value = inputs.operands(rng, np.float64, batch=(1,), H=4, G=2, L=70, S=70, E=16)
    options = {"rotary": tables(70, 16, np.float64), "rotary_interleaved": interleaved}
    whole = attnpy.scaled_dot_product_attention(query, key, value, is_causal=True, **options)
    cache = attnpy.KVCache(1, 1, 2, 70, 16, dtype=np.float64)
    for t in range(70):
        cache.append(0, key[:, :, t : t + 1], value[:, :, t : t + 1])
        step = attnpy.attention_with_cache(query[:, :, t : t + 1], cache, 0, **options)
        np.testing.assert_allclose(step, whole[:, :, t : t + 1], rtol=1e-11, atol=1e-13)


def test_a_ring_has_the_bits_of_a_cache_that_keeps_everything():
    rng = np.random.default_rng(4)
    ring, whole = (attnpy.KVCache(1, 2, 2, n, 16, window=w) for n, w in ((60, 40), (3000, None)))
    rotary = tables(3000, 16)
    for start in range(0, 3000, 20):
        rows = rng.standard_normal((2, 2, 2, 20, 16), np.float32)
        for cache in (ring, whole):
            cache.append(0, *rows, lengths=[20, 20 if start else 7])
    for L in (1, 5, 20):
        query = rng.standard_normal((2, 8, L, 16), np.float32)
        ours = attnpy.attention_with_cache(query, ring, 0, rotary=rotary, return_lse=True)
        assert_same(
            ours, attnpy.attention_with_cache(query, whole, 0, rotary=rotary, window_size=(40, -1), return_lse=True), L
        )


def test_gradients_of_keys_that_batch_elements_share_at_other_positions():
    rng = np.random.default_rng(6)
    query = rng.standard_normal((3, 4, 9, 8))
    key, value = rng.standard_normal((2, 1, 2, 70, 8))
    options = {
        "rotary": tables(90, 8, np.float64), "query_positions": rng.integers(0, 90, (3, 9)),
        "key_positions": rng.integers(0, 90, (3, 70)), "kv_lengths": [70, 3, 40],
    }  # fmt: skip
    output, lse = attnpy.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
    gradient = rng.standard_normal(output.shape)
    needed = attnpy.scaled_dot_product_attention_backward(gradient, query, key, value, output, lse, **options)
    exact = attnpy.reference.scaled_dot_product_attention_backward(gradient, query, key, value, output, lse, **options)
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(getattr(needed, name), getattr(exact, name), rtol=1e-11, atol=1e-12)


def test_the_oracle_turns_as_the_reference_does():
    rng = np.random.default_rng(7)
    arguments = {"query": rng.standard_normal((2, 3, 5, 8)), "key": rng.standard_normal((2, 3, 7, 8)),
                 "rotary": tables(7, 8, np.float64), "rotary_interleaved": True}  # fmt: skip
    seen = np.ones((2, 3, 5, 7), bool)
    rows = oracle_rotary.rows_seen(arguments, ((2,), 3, 3, 5, 7, False), seen)
    ours = oracle_rotary.turned(np.float64, arguments, "query", rows, arguments["query"])
    wanted = attnpy.reference.rotary_embedding(
        arguments["query"], *arguments["rotary"], positions=[2, 3, 4, 5, 6], interleaved=True
    )
    np.testing.assert_allclose(ours, wanted, rtol=1e-14, atol=1e-15)
    back = oracle_rotary.turned(np.float64, arguments, "query", rows, ours, back=True)
    np.testing.assert_allclose(back, arguments["query"], rtol=1e-13, atol=1e-14)
