"""Keys and values in a cache or in pages: the same numbers as one after another, whatever lies in the other places."""

import bounds
import dense
import ml_dtypes
import numerics
import numpy as np
import pytest
from calls import Call
from cases import attention_hidden, check
from cases_cache import CACHED_SHAPES, PAGED_SHAPES, Paged, cached, paged
from inputs import seed_of

import attnpy

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
STORED = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": BFLOAT16, "int8": np.int8}
make_paged = paged(attention_hidden)


def with_windows(*windows):
    """(dtype, window): every type without one, all but int8 with each."""
    return [(dtype, None) for dtype in STORED] + [(dtype, w) for dtype in STORED if dtype != "int8" for w in windows]


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


# --- pages


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("page", [1, 3, 16, 63, 64, 65, 200])
def test_pages_have_the_bits_of_rows_one_after_another(page, dtype):
    for L, group, S in ((1, 1, 90), (1, 4, 1030), (1, 8, 70), (3, 2, 200), (70, 1, 130), (5, 12, 1030)):
        for option in ("causal", "together", "plain"):
            call = make_paged(Paged((3,), 2 * group, 2, L, S, 32, 16, page), dtype, option)
            for got, wanted in zip(
                call(), attnpy.scaled_dot_product_attention(**dense.of_pages(call.arguments)), strict=True
            ):
                numerics.same_bits(got, wanted, call.label)


def test_what_lies_past_the_lengths_is_not_read():
    """Neither entries of the table nor rows of pages: huge, negative, and NaN."""
    for shape in PAGED_SHAPES[:9]:
        for dtype, option in (("float32", "causal"), ("float16", "together"), ("float64", "shared")):
            call = make_paged(shape, dtype, option)
            wanted, table = call(), call.arguments["block_table"].copy()
            inside = np.arange(table.shape[-1]) < -(-call.arguments["kv_lengths"][..., None] // shape.page)
            for garbage in (-1, -(2**63), 2**63 - 1, len(call.arguments["key_pages"])):
                table[~inside] = garbage
                for got, other in zip(call(block_table=table), wanted, strict=True):
                    numerics.same_bits(got, other, f"{call.label}, {garbage} past the length")


def test_a_bad_entry_is_refused_before_a_page_is_read():
    """Pages without access: reading one would end the process."""
    from memory import guarded

    query, lengths = np.ones((2, 2, 1, 4), np.float32), [5, 3]
    inside = guarded(np.ones((3, 2, 1, 4), np.float32), "end")
    pages = np.lib.stride_tricks.as_strided(inside[2:], (2, 2, 1, 4), (4096 * 2, 16, 16, 4))[1:]  # behind the guard
    for entry in (-1, 1, 2**40):
        table = [[0, 0, entry], [0, 0, 7]]
        with pytest.raises(ValueError, match="block_table holds"):
            attnpy.paged_attention(query, pages, pages, table, lengths)


def test_pages_of_any_strides():
    """(G, pages, page_size, D), every second page, backwards: the bits of a copy."""
    rng = np.random.default_rng(1)
    query, table, lengths = normal(rng, 2, 4, 3, 16), np.array([[3, 0, 2], [1, 2, 0]]), [11, 9]
    for dtype in (np.float32, np.float16, np.float64):
        store = normal(rng, 2, 2, 8, 4, 16).astype(dtype)
        for part in (slice(4), slice(None, None, 2), slice(None, None, -2)):
            key, value = (x[:, part].transpose(1, 2, 0, 3) for x in store)
            wanted = attnpy.paged_attention(query, key.copy(), value.copy(), table, lengths, is_causal=True)
            got = attnpy.paged_attention(query, key, value, table, lengths, is_causal=True)
            numerics.same_bits(got, wanted, f"{dtype} {part}")


def test_batch_axes_and_none():
    rng = np.random.default_rng(2)
    pages, query = normal(rng, 2, 4, 2, 1, 8), normal(rng, 2, 3, 2, 5, 8)
    table, lengths = rng.integers(0, 4, (2, 3, 4)), rng.integers(5, 9, (2, 3))
    whole = attnpy.paged_attention(query, *pages, table, lengths, is_causal=True)
    for index in np.ndindex(2, 3):
        one = attnpy.paged_attention(query[index], *pages, table[index], lengths[index], is_causal=True)
        numerics.same_bits(one, whole[index], f"{index}")
    same = attnpy.paged_attention(query, *pages, table[0, 0], 5, is_causal=True)
    numerics.same_bits(
        same[1, 2], attnpy.paged_attention(query[1, 2], *pages, table[0, 0], 5, is_causal=True), "one table"
    )
    numerics.same_bits(
        attnpy.paged_attention(query[0, 0, 0], *pages, table[0, 0], 5),
        attnpy.paged_attention(query[0, 0, :1], *pages, table[0, 0], 5)[0],
        "two axes",
    )


def test_the_references_agree():
    """That of pages and caches, and the plain one of rows that the tests have put one after another."""
    for shape in PAGED_SHAPES[:5]:
        arguments = make_paged(shape, "float64", "together").arguments
        wanted = attnpy.reference.scaled_dot_product_attention(**dense.of_pages(arguments))
        for got, other in zip(attnpy.reference.paged_attention(**arguments), wanted, strict=True):
            np.testing.assert_allclose(got, other, rtol=1e-12)
    for option in ("plain", "ring", "ragged", "int8"):
        arguments = cached(CACHED_SHAPES[1], "float64", option).arguments
        wanted = attnpy.reference.scaled_dot_product_attention(**dense.of_cache(arguments))
        for got, other in zip(attnpy.reference.attention_with_cache(**arguments), wanted, strict=True):
            np.testing.assert_allclose(got, other, rtol=1e-12)


# --- caches


@pytest.mark.parametrize(
    ("dtype", "window"), [(dtype, w) for dtype in STORED for w in (None, 9, 64) if w is None or dtype != "int8"]
)
def test_a_decoding_step_is_a_row_of_the_causal_pass(dtype, window):
    """Prompt in two chunks, then step by step, over the places of a ring several times."""
    rng = np.random.default_rng(seed_of(dtype, window))
    B, H, G, S, E, D = 2, 8, 2, 150, 32, 16
    real = np.float32 if dtype == "int8" else STORED[dtype]
    query, key, value = (normal(rng, B, heads, S, n).astype(real) for heads, n in ((H, E), (G, E), (G, D)))
    cache = attnpy.KVCache(
        1, B, G, S if window is None else window + 30, E, value_head_dim=D, dtype=STORED[dtype], window=window
    )
    rows, start = [], 0
    for n in (30, 29, *[1] * (S - 59)):
        part = slice(start, start + n)
        cache.append(0, key[:, :, part], value[:, :, part])
        rows.append(attnpy.attention_with_cache(query[:, :, part], cache, 0))
        start += n
    arguments = {"query": query, "key": key, "value": value, "is_causal": True, "window_size": window and (window, -1)}
    if dtype == "int8":
        whole = attnpy.KVCache(1, B, G, S, E, value_head_dim=D, dtype=np.int8)
        whole.append(0, key, value)
        expected = bounds.attention_with_cache({"query": query, "cache": whole, "layer": 0})
    else:
        expected = bounds.scaled_dot_product_attention(arguments)
    numerics.assert_accurate(
        "attention_with_cache", np.concatenate(rows, 2), expected[0], f"{dtype}, window {window}", False
    )


def test_a_sequence_does_not_know_of_the_others():
    for option in ("plain", "ragged", "int8", "ring"):
        size = CACHED_SHAPES[2]
        call = cached(size, "float32", option)
        cache, whole = call.arguments["cache"], call()
        for b in range(size.B):
            ring = {} if cache.window is None else {"window": cache.window}
            alone = attnpy.KVCache(
                1, 1, size.G, cache.max_length, size.E, value_head_dim=size.D, dtype=cache.dtype, **ring
            )
            view, length = dense.of_cache(call.arguments), int(cache.lengths(1)[b])
            alone.append(0, view["key"][b : b + 1, :, :length], view["value"][b : b + 1, :, :length])
            got = call(query=call.arguments["query"][b : b + 1], cache=alone, layer=0)
            if option == "int8":  # quantised again, which is exact only up to the scale's rounding
                continue
            for ours, theirs in zip(got, whole, strict=True):
                numerics.same_bits(ours[0], theirs[b], f"{option}, sequence {b}")


def test_int8_lies_within_its_bound_of_the_unquantised():
    """Half a step of each row: of the stored numbers, and what follows for the output, for rows of any size."""
    rng = np.random.default_rng(7)
    for scale, spread in ((None, 0), (0.05, 3), (0.3, 6)):
        B, H, G, L, S, E, D = 2, 4, 2, 5, 90, 32, 24
        query, key, value = normal(rng, B, H, L, E), normal(rng, B, G, S, E), normal(rng, B, G, S, D)
        key, value = (
            x * np.float32(10) ** rng.uniform(-spread, 0, (B, G, S, 1)).astype(np.float32) for x in (key, value)
        )
        cache = attnpy.KVCache(1, B, G, S, E, value_head_dim=D, dtype=np.int8)
        cache.append(0, key, value)
        view = cache.view(0)
        for stored, step, x in ((view.key, view.key_scale, key), (view.value, view.value_scale, value)):
            np.testing.assert_array_equal(step, np.abs(x).max(-1) / np.float32(127))
            apart = np.abs(stored * step[..., None].astype(float) - x)
            assert (apart <= (0.5 + 2.0**-16) * step[..., None]).all() and apart.max() > 0.4 * step.min()
        got = attnpy.attention_with_cache(query, cache, 0, is_causal=False, scale=scale)
        arguments = {"query": query, "key": key, "value": value, "scale": scale}
        expected = bounds.scaled_dot_product_attention(arguments)[0]
        factor = 1 / np.sqrt(E) if scale is None else scale
        steps = np.repeat(view.key_scale.max(-1), H // G, 1)[..., None]
        error = factor * np.abs(query).sum(-1) * steps / 2  # (B, H, L)
        mean = attnpy.reference.scaled_dot_product_attention(query, key, np.abs(value), scale=scale)
        bound = (
            np.repeat(view.value_scale.max(-1), H // G, 1)[..., None, None] / 2 + np.expm1(2 * error)[..., None] * mean
        )
        apart = np.abs(got - expected.wanted)
        assert (apart <= bound + 2 * expected.cap).all()
        assert apart.max() > 0.001 * bound.max()


def test_int8_rows_that_are_special():
    """Zeros are exact, NaN and infinity make NaN in the rows that see them, tiny numbers stay below the bound."""
    cache = attnpy.KVCache(1, 1, 1, 4, 2, dtype=np.int8)
    rows = np.float32([[[[0, 0], [1, -1], [2e-45, -3e-45], [np.inf, 1]]]])
    cache.append(0, np.zeros_like(rows[:, :, :3]), rows[:, :, :3])
    np.testing.assert_array_equal(cache.view(0).value[0, 0, :2], [[0, 0], [127, -127]])
    query = np.ones((1, 1, 1, 2), np.float32)
    np.testing.assert_allclose(attnpy.attention_with_cache(query, cache, 0)[0, 0, 0], [1 / 3, -1 / 3], rtol=1e-6)
    cache.append(0, np.zeros((1, 1, 1, 2)), rows[:, :, 3:])
    assert np.isnan(attnpy.attention_with_cache(query, cache, 0)).all()
    shorter = attnpy.attention_with_cache(query, cache, 0, causal_offset=[2])
    np.testing.assert_allclose(shorter[0, 0, 0], [1 / 3, -1 / 3], rtol=1e-6)


@pytest.mark.parametrize("dtype", STORED)
def test_overflow_is_refused_and_changes_nothing(dtype):
    rng = np.random.default_rng(3)
    cache = attnpy.KVCache(2, 2, 1, 5, 4, dtype=STORED[dtype])
    cache.append(1, normal(rng, 2, 1, 4, 4), normal(rng, 2, 1, 4, 4), [4, 2])
    before = [x.copy() for x in cache.view(1) if x is not None]
    for rows, lengths in ((2, None), (3, [0, 4]), (2, [2, 2]), (2, [-1, 1])):
        with pytest.raises(ValueError, match=r"max_length|lengths"):
            cache.append(1, np.full((2, 1, rows, 4), 9.0), np.full((2, 1, rows, 4), 9.0), lengths)
    for bad in (np.ones((2, 1, 1, 3)), np.ones((1, 1, 1, 4)), np.ones((2, 1, 4))):
        with pytest.raises(ValueError, match="key has shape"):
            cache.append(1, bad, np.ones((2, 1, 1, 4)))
    with pytest.raises(TypeError, match="value has dtype complex"):
        cache.append(1, np.ones((2, 1, 1, 4)), np.ones((2, 1, 1, 4), complex))
    np.testing.assert_array_equal(cache.lengths(1), [4, 2])
    for x, y in zip(before, [x for x in cache.view(1) if x is not None], strict=True):
        numerics.same_bits(y, x, "after refused rows")
    cache.append(1, np.ones((2, 1, 3, 4)), np.ones((2, 1, 3, 4)), [1, 3])
    np.testing.assert_array_equal(cache.lengths(1), [5, 5])
    np.testing.assert_array_equal(cache.lengths(0), [0, 0])


@pytest.mark.parametrize(
    ("dtype", "window"), [(dtype, w) for dtype in STORED for w in (None, 4) if w is None or dtype != "int8"]
)
def test_truncate_and_reorder(dtype, window):
    """A cache that has been cut and put in another order is the cache of those sequences."""
    rng = np.random.default_rng(4)
    tokens = normal(rng, 3, 2, 12, 4)
    make = lambda: attnpy.KVCache(2, 3, 2, 12 if window is None else 9, 4, dtype=STORED[dtype], window=window)  # noqa: E731
    cache, wanted = make(), make()
    for layer in range(2):
        cache.append(layer, tokens, -tokens, [10, 7, 12])
    cache.truncate([9, 7, 11])
    cache.reorder([2, 2, 0])
    for layer in range(2):
        wanted.append(layer, tokens[[2, 2, 0]], -tokens[[2, 2, 0]], [11, 11, 9])
        np.testing.assert_array_equal(cache.lengths(layer), [11, 11, 9])
        query = normal(rng, 3, 4, 1, 4).astype(np.float32 if dtype == "int8" else STORED[dtype])
        got, other = (attnpy.attention_with_cache(query, x, layer) for x in (cache, wanted))
        numerics.same_bits(got, other, f"layer {layer}")
    cache.truncate(8, layer=1)
    np.testing.assert_array_equal([cache.lengths(0), cache.lengths(1)], [[11, 11, 9], [8, 8, 8]])
    for change in ({"lengths": 9, "layer": 1}, {"lengths": [11, 11, 9]}, {"lengths": -1}, {"lengths": [1, 2]}):
        with pytest.raises(ValueError, match="lengths"):
            cache.truncate(**change)
    for indices in ([0, 1], [0, 1, 3], [-1, 0, 1]):
        with pytest.raises(ValueError, match="indices"):
            cache.reorder(indices)
    np.testing.assert_array_equal(cache.lengths(1), [8, 8, 8])


@pytest.mark.parametrize(("window", "places"), [(9, 40), (64, 64 + 37), (1100, 1152)])
def test_a_ring_has_the_bits_of_a_cache_that_keeps_everything(window, places):
    rng = np.random.default_rng(window)
    for dtype in ("float32", "float16", "float64"):
        ring = attnpy.KVCache(1, 2, 2, places, 16, dtype=STORED[dtype], window=window)
        whole = attnpy.KVCache(1, 2, 2, 4000, 16, dtype=STORED[dtype])
        for rows, lengths in ((30, None), (1, None), (7, [7, 2]), (2500, None), (1, None), (30, [1, 30])):
            key, value = (normal(rng, 2, 2, rows, 16) for _ in range(2))
            for cache in (ring, whole):
                cache.append(0, key, value, lengths)
            L = min(rows, 30)
            query = normal(rng, 2, 4, L, 16).astype(STORED[dtype])
            options = {"query_lengths": lengths} if lengths and rows == L else {}
            got = attnpy.attention_with_cache(query, ring, 0, **options)
            wanted = attnpy.attention_with_cache(query, whole, 0, window_size=(window, -1), **options)
            numerics.same_bits(got, wanted, f"{dtype}, after {rows} rows")


def test_what_a_ring_has_overwritten_does_not_come_back():
    rng = np.random.default_rng(5)
    cache = attnpy.KVCache(1, 1, 1, 6, 4, window=3)
    cache.append(0, normal(rng, 1, 1, 10, 4), normal(rng, 1, 1, 10, 4))  # positions 4 … 9
    np.testing.assert_array_equal(cache.view(0).position, [[6, 7, 8, 9, 4, 5]])
    query = normal(rng, 1, 1, 1, 4)
    cache.truncate(8)
    np.testing.assert_array_equal(cache.view(0).position, [[6, 7, -1, -1, 4, 5]])
    attnpy.attention_with_cache(query, cache, 0)  # at 7: keys 4 … 7
    cache.truncate(7)
    with pytest.raises(ValueError, match="looks back 1 positions"):
        attnpy.attention_with_cache(query, cache, 0)
    cache.truncate(2)  # nothing is left
    cache.append(0, normal(rng, 1, 1, 1, 4), normal(rng, 1, 1, 1, 4))
    np.testing.assert_array_equal(cache.view(0).position, [[-1, -1, 2]])
    with pytest.raises(ValueError, match="looks back 2 positions"):
        attnpy.attention_with_cache(query, cache, 0)
    assert np.isfinite(attnpy.attention_with_cache(query, cache, 0, window_size=0)).all()


def test_hidden_places_of_a_cache():
    """Rows past the lengths, of a ring those outside the window, and scales of int8: NaN there changes no bit."""
    for option in ("ragged", "ring", "int8", "int8_window"):
        for size in CACHED_SHAPES[1:4]:
            call = cached(size, "float32", option)
            cache = call.arguments["cache"]
            if option == "int8":
                cache.truncate(cache.lengths(1) - np.arange(size.B) % 2, layer=1)
                call = call.changed(query_lengths=np.full(size.B, size.L))
            wanted, plain = call(), dense.of_cache(call.arguments)
            seen = ~attention_hidden(plain)["key"].all(-1)  # (B, G, S)
            places = np.arange(seen.shape[-1]) % cache.max_length
            for b in range(size.B):
                kept = np.zeros((size.G, cache.max_length), bool)
                for g in range(size.G):
                    kept[g, places[seen[b, g]]] = True
                if option.startswith("int8"):
                    cache._scales[:, 1, b][:, ~kept] = np.nan
                else:
                    cache._key[1, b][~kept] = cache._value[1, b][~kept] = np.nan
            for got, other in zip(call(), wanted, strict=True):
                numerics.same_bits(got, other, f"{call.label}: hidden places")


def test_a_view_cannot_be_written():
    cache = attnpy.KVCache(1, 2, 1, 4, 3, dtype=np.int8)
    cache.append(0, np.ones((2, 1, 2, 3)), np.ones((2, 1, 2, 3)), [2, 1])
    view = cache.view(0)
    np.testing.assert_array_equal(view.position, [[0, 1], [0, -1]])
    for x in view[:4]:
        with pytest.raises(ValueError, match="read-only"):
            x[...] = 0
    cache.append(0, np.ones((2, 1, 1, 3)), np.ones((2, 1, 1, 3)))
    assert cache.nbytes == 2 * 2 * 4 * (3 + 4) and "int8" in repr(cache)


def test_long_rows_of_a_ring_in_one_call():
    """More rows than the ring has places: the last of them stay."""
    rng = np.random.default_rng(6)
    tokens = normal(rng, 1, 2, 40, 8)
    at_once, in_parts = (attnpy.KVCache(1, 1, 2, 16, 8, window=5) for _ in range(2))
    at_once.append(0, tokens, tokens)
    for i in range(0, 40, 8):
        in_parts.append(0, tokens[:, :, i : i + 8], tokens[:, :, i : i + 8])
    for x, y in zip(at_once.view(0), in_parts.view(0), strict=True):
        if x is not None:
            numerics.same_bits(x, y, "ring")
    query = normal(rng, 1, 4, 11, 8)
    call = Call("attention_with_cache", {"query": query, "cache": at_once, "layer": 0, "return_lse": True}, "a ring")
    check(call, call())
