"""Few query rows for each key/value head: split over keys at multiples of 1024, many heads to one read."""

import itertools

import numpy as np
import pytest
from inputs import OPTIONS, TYPES, check, operands, options_of, seed_of

import attnpy

INF, NAN = np.inf, np.nan
LONG = (1023, 1024, 1025, 2047, 2048, 2049, 5000)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("S", LONG)
def test_around_the_splits(S, dtype):
    """Rows a key/value head: 1 ... 9, as positions, as heads, as both."""
    for L, group in ((1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (8, 1), (9, 1), (1, 4), (1, 8), (2, 2), (2, 4), (3, 3)):
        seed = seed_of(S, dtype, L, group)
        rng = np.random.default_rng(seed)
        arrays = operands(rng, TYPES[dtype], batch=(), H=2 * group, G=2, L=L, S=S, E=24, D=16)
        check(*arrays, note=f"group {group}, seed {seed}")


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name):
    shapes = itertools.product((1, 2, 7), (1, 4), (1025, 2049))
    for n, (L, group, S) in enumerate(shapes):
        dtype = list(TYPES)[n % 4]
        seed = seed_of(name, L, group, S)
        rng = np.random.default_rng(seed)
        options = options_of((name,), rng, (2,), 2 * group, L, S)
        arrays = operands(rng, TYPES[dtype], batch=(2,), H=2 * group, G=2, L=L, S=S, E=8, D=12)
        check(*arrays, note=f"{name}, group {group}, seed {seed}", **options)


@pytest.mark.parametrize("dtype", TYPES)
def test_head_sizes(dtype):
    for E, D in itertools.product((1, 7, 8, 17, 31, 32, 64, 72, 80, 96, 128, 256), (1, 8, 17, 64, 128)):
        seed = seed_of(E, D)
        arrays = operands(np.random.default_rng(seed), TYPES[dtype], batch=(), H=4, G=1, L=1, S=130, E=E, D=D)
        check(*arrays, note=f"seed {seed}")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_half_caches_with_float32_queries(dtype):
    for L, H, G, S in ((1, 4, 1, 1025), (1, 8, 1, 5000), (3, 2, 2, 130), (9, 4, 2, 2049), (70, 2, 1, 130)):
        query, key, value = operands(np.random.default_rng(seed_of(L, H, G, S)), np.float32, H=H, G=G, L=L, S=S, E=64)
        got, _ = check(query, key.astype(TYPES[dtype]), value.astype(TYPES[dtype]))
        assert got.dtype == np.float32


@pytest.mark.parametrize("rows", [(1, 1), (1, 4), (3, 1), (7, 2)], ids=str)
def test_whole_splits_see_nothing(rows):
    """Of five splits only some have visible keys: by lengths, windows, masks, for all rows or some."""
    L, group = rows
    rng = np.random.default_rng(seed_of(rows))
    arrays = operands(rng, np.float32, batch=(6,), H=2 * group, G=2, L=L, S=5000)
    check(*arrays, kv_lengths=[0, 1, 1024, 1025, 3000, 5000])
    check(*arrays, window_size=(5, 0), causal_offset=[-3, 1020, 2047, 4096, 4999, 6000])
    split = np.arange(5000) // 1024
    for seen in (split == 2, split % 2 == 1, split == 4, split == 0, np.arange(5000) == 3071, split > 9):
        check(*arrays, attn_mask=seen)
        check(*arrays, attn_mask=np.where(seen, 0.5, -INF), sinks=rng.standard_normal(2 * group))
    some = (split + np.arange(L)[:, None]) % 5 == 3
    check(*arrays, attn_mask=some)


@pytest.mark.parametrize("rows", [(1, 1), (1, 8), (5, 1)], ids=str)
def test_a_sink_enters_once(rows):
    """However many splits there are, and also where it is the maximum by far."""
    L, group = rows
    for sink in (-INF, -50.0, 0.0, 7.0, 200.0):
        arrays = operands(np.random.default_rng(1), np.float32, batch=(), H=2 * group, G=2, L=L, S=4100)
        _, lse = check(*arrays, sinks=np.full(2 * group, sink), note=f"sink {sink}")
        got, alone = check(*arrays, sinks=np.full(2 * group, sink), attn_mask=False, note=f"sink {sink}, no key")
        assert (got == 0).all() and (alone == sink).all()


@pytest.mark.parametrize("rows", [(1, 1), (1, 4), (3, 1), (9, 1)], ids=str)
def test_nan_in_one_row_of_a_group(rows):
    L, group = rows
    query, key, value = operands(np.random.default_rng(2), np.float32, batch=(), H=2 * group, G=2, L=L, S=2049)
    wanted = attnpy.scaled_dot_product_attention(query, key, value)
    query[-1, -1, 0] = NAN
    got, lse = attnpy.scaled_dot_product_attention(query, key, value, return_lse=True)
    assert np.isnan(got[-1, -1]).all() and np.isnan(lse[-1, -1])
    wanted[-1, -1] = NAN
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("rows", [(1, 1), (1, 4), (3, 1), (9, 1)], ids=str)
def test_nan_in_a_later_split(rows):
    """In a visible value: its column only. In a visible key: its head only."""
    L, group = rows
    query, key, value = operands(np.random.default_rng(3), np.float32, batch=(), H=2 * group, G=2, L=L, S=2049)
    wanted = attnpy.scaled_dot_product_attention(query, key, value)
    value[0, 2000, 3], key[1, 1030, 2] = NAN, NAN
    got, lse = attnpy.scaled_dot_product_attention(query, key, value, return_lse=True)
    assert np.isnan(got[group:]).all() and np.isnan(lse[group:]).all() and np.isfinite(lse[:group]).all()
    assert np.isnan(got[:group, :, 3]).all()
    np.testing.assert_array_equal(np.delete(got[:group], 3, axis=-1), np.delete(wanted[:group], 3, axis=-1))


def test_decoding_equals_prefill():
    """The last row alone (decoding) and as one of 100 (row blocks): within the rule, not in bits."""
    for dtype, S, G in itertools.product(("float32", "float64", "float16"), (130, 2050), (1, 4)):
        query, key, value = operands(np.random.default_rng(4), TYPES[dtype], H=4, G=G, L=100, S=S, E=64)
        whole = attnpy.scaled_dot_product_attention(query, key, value, is_causal=True)
        got, _ = check(query[:, :, -1:], key, value, is_causal=True)
        bound = {"float32": 64 * 2.0**-24, "float64": 64 * 2.0**-53, "float16": 2.0**-11}[dtype]
        np.testing.assert_allclose(
            got[:, :, 0].astype(float),
            whole[:, :, -1].astype(float),
            rtol=bound,
            atol=bound,
            err_msg=f"{dtype}, S = {S}",
        )


@pytest.mark.parametrize("rows", [(1, 1), (1, 8), (4, 1), (9, 1)], ids=str)
def test_caches_in_any_layout(rows):
    """(B, S, G, D), a part of a longer cache, every second place, and from the end: the bits of a copy."""
    L, group = rows
    for dtype in ("float32", "float16", "bfloat16"):
        rng = np.random.default_rng(5)
        query = rng.standard_normal((2, 2 * group, L, 64)).astype(TYPES[dtype])
        store = rng.standard_normal((2, 2, 3000, 2, 64)).astype(TYPES[dtype])
        for part in (slice(1500), slice(7, 1507), slice(0, 3000, 2), slice(None, None, -2)):
            key, value = (x[:, part].swapaxes(1, 2) for x in store)
            wanted, _ = check(query, key.copy(), value.copy())
            got = attnpy.scaled_dot_product_attention(query, key, value)
            np.testing.assert_array_equal(got, wanted, err_msg=f"{dtype}, strides {key.strides}")
