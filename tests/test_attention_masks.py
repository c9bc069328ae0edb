"""attn_mask and bias: shapes, types, hidden rows and blocks, what warns and what is refused."""

import itertools
import warnings

import ml_dtypes
import numpy as np
import pytest
from inputs import TYPES, check, explicit_mask, operands, seed_of

import attnpy

INF, NAN = np.inf, np.nan
B, H, L, S = 2, 3, 5, 7  # all different primes: a mask read along another axis gives other numbers or an error


def patterns():
    """Every pattern of whole, single and missing axes that broadcasts to (B, H, L, S)."""
    for kept in itertools.product((True, False), repeat=4):
        shape = tuple(n if keep else 1 for n, keep in zip((B, H, L, S), kept))
        yield shape
        while shape and shape[0] == 1:
            shape = shape[1:]
            yield shape


@pytest.mark.parametrize("form", ["bool", "float", "bias"])
@pytest.mark.parametrize("sizes", [(L, S), (67, 71), (1, 131)], ids=str)
def test_every_shape_of_mask(form, sizes):
    rows, keys = sizes
    for shape in sorted(set(patterns())):
        real = tuple({L: rows, S: keys}.get(n, n) for n in shape)
        seed = seed_of(form, sizes, shape)
        rng = np.random.default_rng(seed)
        arrays = operands(rng, np.float32, batch=(B,), H=H, G=1, L=rows, S=keys)
        if form == "bool":
            options = {"attn_mask": rng.random(real) < 0.7}
        else:
            numbers = np.where(rng.random(real) < 0.7, rng.standard_normal(real), -INF)
            options = {"attn_mask" if form == "float" else "bias": numbers}
        check(*arrays, note=f"mask {real}, seed {seed}", **options)


def test_three_axes_are_heads():
    """With B = H too: a mask (X, L, S) belongs to the heads, for every batch element."""
    rng = np.random.default_rng(0)
    query, key, value = operands(rng, np.float64, batch=(4,), H=4, L=5, S=7)
    mask = rng.random((4, 5, 7)) < 0.6
    got, _ = check(query, key, value, attn_mask=mask)
    alone, _ = check(query[2], key[2], value[2], attn_mask=mask)
    np.testing.assert_array_equal(got[2], alone)
    other, _ = check(query, key, value, attn_mask=mask[:, None])
    assert not np.array_equal(other, got)


@pytest.mark.parametrize(
    "shape, hint",
    [
        ((B, S), r"mask\[:, None, None, :\]"),
        ((B, L, S), r"mask\[:, None\]"),
        ((L,), "last axis must be 1 or 7"),
        ((S, L), "must broadcast to"),
        ((8, 10), "must broadcast to"),
        ((B, H, S, L), "must broadcast to"),
        ((3, B, H, L, S), "must broadcast to"),
        ((1, B, H, L, S), None),
        ((H, B, L, S), "must broadcast to"),
        ((0,), "must broadcast to"),
        ((B, H, L, 0), "must broadcast to"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["attn_mask", "bias"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_wrong_shapes_are_refused_with_a_hint(shape, hint, name, is_causal):
    arrays = operands(np.random.default_rng(0), np.float32, batch=(B,), H=H, L=L, S=S)
    operand = np.ones(shape, bool) if name == "attn_mask" else np.zeros(shape)
    if hint is None:  # single axes in front change nothing, as everywhere in NumPy
        hint = "must broadcast to"
    with pytest.raises(ValueError, match=hint) as error:
        attnpy.scaled_dot_product_attention(*arrays, is_causal=is_causal, **{name: operand})
    assert str(error.value).startswith(name) and str((B, H, L, S)) in str(error.value)


def test_the_hint_names_lengths():
    arrays = operands(np.random.default_rng(0), np.float32, batch=(B,), H=H, L=L, S=S)
    with pytest.raises(ValueError, match="kv_lengths"):
        attnpy.scaled_dot_product_attention(*arrays, np.ones((B, S), bool))


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, complex, object, "U1"])
def test_other_types_of_mask_are_refused(dtype):
    arrays = operands(np.random.default_rng(0), np.float32)
    mask = np.ones((5, 7)).astype(dtype)
    match = r"\.astype\(bool\)" if np.dtype(dtype).kind in "iu" else "attn_mask"
    with pytest.raises(TypeError, match=match) as error:
        attnpy.scaled_dot_product_attention(*arrays, mask)
    assert "attn_mask" in str(error.value)
    with pytest.raises(TypeError, match="attn_mask"):
        attnpy.scaled_dot_product_attention(*arrays, np.ma.array(np.ones((5, 7), bool)))


def zeros_and_ones(shape=(5, 7), *, last=0.0, one=True):
    mask = np.zeros(shape)
    if one:
        mask.flat[1] = 1
    mask.flat[-1] = last
    return mask


SUSPICIOUS = {
    "one 1": zeros_and_ones(),
    "ones": np.ones((5, 7)),
    "a single 1": np.ones(()),
    "-0.0 and 1": -zeros_and_ones() * -1.0 + np.float64(-0.0),
    "last is 1": zeros_and_ones(last=1, one=False),
    "float32": zeros_and_ones().astype(np.float32),
    "float16": zeros_and_ones().astype(np.float16),
    "bfloat16": zeros_and_ones().astype(ml_dtypes.bfloat16),
    "byte-swapped": zeros_and_ones().astype(">f4"),
    "strided": np.repeat(zeros_and_ones(), 2, axis=1)[:, ::2],
    "broadcast": np.broadcast_to(np.float64([0, 1, 0, 1, 0, 1, 1]), (5, 7)),
    "per batch": zeros_and_ones((2, 1, 1, 7)),
}
HARMLESS = {
    "zeros": np.zeros((5, 7)),
    "last is a half": zeros_and_ones(last=0.5),
    "last is -inf": zeros_and_ones(last=-INF),
    "last is NaN": zeros_and_ones(last=NAN),
    "last is 2": zeros_and_ones(last=2),
    "last is -1": zeros_and_ones(last=-1),
    "zeros and -inf": np.where(np.eye(5, 7), 0, -INF),
    "bool": np.eye(5, 7, dtype=bool),
}


@pytest.mark.parametrize("name", SUSPICIOUS)
def test_zeros_and_ones_warn(name):
    """... and are added all the same. bias never warns."""
    arrays, mask = operands(np.random.default_rng(0), np.float32), SUSPICIOUS[name]
    with pytest.warns(UserWarning, match="attn_mask") as caught:
        got = attnpy.scaled_dot_product_attention(*arrays, mask)
    assert len(caught) == 1 and caught[0].category is UserWarning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        added = attnpy.scaled_dot_product_attention(*arrays, bias=mask)
    np.testing.assert_array_equal(got, added)
    for function in (attnpy.attention_weights, attnpy.attention_received):
        with pytest.warns(UserWarning, match="attn_mask"):
            function(*arrays[:2], mask)


@pytest.mark.parametrize("name", HARMLESS)
def test_other_masks_do_not_warn(name):
    arrays = operands(np.random.default_rng(0), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attnpy.scaled_dot_product_attention(*arrays, HARMLESS[name])


def test_the_warning_can_be_an_error():
    arrays = operands(np.random.default_rng(0), np.float32)
    out = np.full((2, 4, 5, 8), 7, np.float32)
    with warnings.catch_warnings(), pytest.raises(UserWarning, match="attn_mask"):
        warnings.simplefilter("error")
        attnpy.scaled_dot_product_attention(*arrays, np.ones((5, 7)), out=out)
    assert (out == 7).all()


def test_any_byte_but_zero_is_true():
    arrays = operands(np.random.default_rng(1), np.float32, L=70, S=130)
    mask = np.random.default_rng(1).random((70, 130)) < 0.6
    odd = np.where(mask, np.resize(np.uint8([1, 2, 16, 128, 254, 255]), mask.shape), 0).astype(np.uint8).view(bool)
    wanted, _ = check(*arrays, attn_mask=mask)
    for view in (odd, np.asfortranarray(odd)):
        np.testing.assert_array_equal(attnpy.scaled_dot_product_attention(*arrays, view), wanted)


@pytest.mark.parametrize("kind", ["bool", "float32", "float64", "float16", "bfloat16", ">f8", ">f4"])
@pytest.mark.parametrize("sizes", [(1, 130), (3, 70), (70, 130)], ids=str)
def test_every_layout_of_mask_gives_the_same_bits(kind, sizes):
    rows, keys = sizes
    rng = np.random.default_rng(seed_of(kind, sizes))
    arrays = operands(rng, np.float32, L=rows, S=keys)
    seen = rng.random((2, 4, rows, keys)) < 0.7
    dtype = TYPES.get(kind, kind)
    mask = seen if kind == "bool" else np.where(seen, rng.standard_normal(seen.shape), -INF).astype(dtype)
    wanted, _ = check(*arrays, attn_mask=mask)
    far = np.zeros((*mask.shape[:-1], 3 * keys), mask.dtype)
    far[..., 1::3] = mask
    unaligned = np.empty(mask.nbytes + 1, np.uint8)[1:].view(mask.dtype).reshape(mask.shape)
    unaligned[...] = mask
    layouts = {
        "Fortran": np.asfortranarray(mask),
        "keys first": np.ascontiguousarray(mask.swapaxes(-1, -2)).swapaxes(-1, -2),
        "reversed": np.ascontiguousarray(mask[..., ::-1, ::-1])[..., ::-1, ::-1],
        "stepped": far[..., 1::3],
        "unaligned": unaligned,
    }
    for layout, view in layouts.items():
        got = attnpy.scaled_dot_product_attention(*arrays, view)
        np.testing.assert_array_equal(got, wanted, err_msg=f"{layout} {kind} mask {view.shape}, strides {view.strides}")


@pytest.mark.parametrize("form", ["bool", "float", "bias"])
@pytest.mark.parametrize("dtype", TYPES)
def test_zero_to_all_rows_hidden(form, dtype):
    rng = np.random.default_rng(seed_of(form, dtype))
    for rows, keys in ((1, 5), (3, 70), (70, 66)):
        arrays = operands(rng, TYPES[dtype], batch=(), H=2, L=rows, S=keys)
        for hidden in sorted({0, 1, rows // 2, rows - 1, rows}):
            seen = np.ones((rows, keys), bool)
            seen[rng.permutation(rows)[:hidden]] = False
            options = {
                "bool": {"attn_mask": seen},
                "float": {"attn_mask": np.where(seen, 0.5, -INF)},
                "bias": {"bias": np.where(seen, 0.5, -INF)},
            }[form]
            got, lse = check(*arrays, **options)
            assert (got[:, ~seen.any(1)] == 0).all() and (lse[:, ~seen.any(1)] == -INF).all()


@pytest.mark.parametrize("form", ["bool", "float"])
@pytest.mark.parametrize("rows", [1, 3, 66])
def test_bands_hide_whole_blocks_of_visible_rows(form, rows):
    """Each row sees a band of 5 or of 150 keys that begins anywhere in 700: blocks before and after it see nothing."""
    rng = np.random.default_rng(seed_of(form, rows))
    arrays = operands(rng, np.float32, batch=(), H=1, L=rows, S=700)
    for width, step in ((5, 29), (150, 31)):
        for first in range(0, 700, step):
            start = (first + 61 * np.arange(rows)) % 700
            seen = (np.arange(700) - start[:, None]) % 700 < width
            mask = seen if form == "bool" else np.where(seen, 0.25, -INF)
            check(*arrays, attn_mask=mask, note=f"bands of {width} from {first}")


@pytest.mark.parametrize("rows", [1, 4, 70])
def test_only_one_key_is_visible(rows):
    """The output is that key's value, whichever it is."""
    query, key, value = operands(np.random.default_rng(2), np.float32, batch=(), H=1, L=rows, S=200)
    for j in (0, 1, 63, 64, 65, 127, 128, 191, 192, 199):
        mask = np.arange(200) == j
        got = attnpy.scaled_dot_product_attention(query, key, value, mask)
        np.testing.assert_array_equal(got, np.broadcast_to(value[:, j : j + 1], got.shape), err_msg=f"key {j}")


@pytest.mark.parametrize("mask_type", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("low", ["-inf", "min", -1e9, -1e4])
def test_large_negative_masks(low, dtype, mask_type):
    """Where any key is open the others get nothing; where none is, -inf gives 0 and a finite number changes nothing."""
    finfo = ml_dtypes.finfo(TYPES[mask_type])
    low = {"-inf": -INF, "min": float(finfo.min)}.get(low, low)
    if np.isfinite(low) and low < float(finfo.min):
        low = -INF
    rng = np.random.default_rng(seed_of(low, dtype, mask_type))
    for rows, keys in ((1, 130), (3, 66), (66, 130)):
        query, key, value = operands(rng, TYPES[dtype], batch=(), H=2, L=rows, S=keys)
        seen = rng.random((rows, keys)) < 0.5
        seen[:, 3] = True
        seen[0] = False
        mask = np.where(seen, 0, low).astype(TYPES[mask_type])
        got, lse = attnpy.scaled_dot_product_attention(query, key, value, mask, return_lse=True)
        exact, exact_lse = attnpy.scaled_dot_product_attention(query, key, value, seen, return_lse=True)
        note = f"{rows} rows of {keys} keys"
        np.testing.assert_array_equal(got[:, 1:], exact[:, 1:], err_msg=note)
        np.testing.assert_array_equal(lse[:, 1:], exact_lse[:, 1:], err_msg=note)
        if low == -INF:
            assert (got[:, 0] == 0).all() and (lse[:, 0] == -INF).all(), note
        elif low > -1e10:
            check(query, key, value, attn_mask=mask, note=note)
        else:
            mean = value.astype(np.float64).mean(1)
            spread = np.abs(value.astype(np.float64)).mean(1)
            unit = 2.0**-24 * (8 + 2 * (64 + 3)) + 0.5 * float(ml_dtypes.finfo(TYPES[dtype]).eps)
            assert (np.abs(got[:, 0].astype(np.float64) - mean) <= unit * spread).all(), note


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_least_float64_is_a_finite_mask(dtype):
    """A mask is converted to the compute type; a finite number stays finite."""
    query, key, value = operands(np.random.default_rng(3), TYPES[dtype], batch=(), H=1, L=3, S=70)
    mask = np.full((3, 70), np.finfo(np.float64).min)
    mask[1, 5] = 0
    got = attnpy.scaled_dot_product_attention(query, key, value, mask)
    np.testing.assert_array_equal(got[:, 1], value[:, 5])
    assert (np.abs(got[:, 0].astype(float) - value.astype(float).mean(1)) < 1e-3).all()


@pytest.mark.parametrize("sizes", [(1, 130), (5, 7), (63, 200), (130, 70)], ids=str)
def test_all_masks_combine_by_and(sizes):
    rows, keys = sizes
    rng = np.random.default_rng(seed_of("and", sizes))
    arrays = operands(rng, np.float64, L=rows, S=keys)
    seen = rng.random((2, 1, rows, keys)) < 0.7
    hidden = rng.random((4, rows, keys)) < 0.2
    together = explicit_mask(rows, keys, causal=True, left=keys // 2) & seen & ~hidden
    got, lse = check(
        *arrays, is_causal=True, window_size=(keys // 2, -1), attn_mask=seen, bias=np.where(hidden, -INF, 0)
    )
    once, once_lse = check(*arrays, attn_mask=together)
    np.testing.assert_allclose(got, once, rtol=0, atol=1e-13)
    np.testing.assert_allclose(lse, once_lse, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_causal_with_padding_on_rows_where_both_hide(dtype):
    rng = np.random.default_rng(4)
    for rows, keys in ((5, 7), (66, 66), (130, 200)):
        padding = np.arange(keys) < np.array([[keys], [keys // 2], [1], [0]])
        arrays = operands(rng, TYPES[dtype], batch=(4,), L=rows, S=keys)
        got, _ = check(*arrays, is_causal=True, attn_mask=padding[:, None, None, :])
        assert (got[3] == 0).all()
        check(*arrays, is_causal=True, kv_lengths=padding.sum(1), causal_offset=keys - rows)


def test_softcap_comes_before_the_mask():
    """A capped -inf would be -softcap: the hidden key must not return."""
    rng = np.random.default_rng(5)
    query, key, value = operands(rng, np.float32, L=3, S=130)
    hidden = rng.random(130) < 0.5
    value[:, :, hidden] = NAN
    for mask in (~hidden, np.where(hidden, -INF, 0.0)):
        got, _ = check(query, key, value, attn_mask=mask, softcap=0.01)
        assert np.isfinite(got).all()


def test_numbers_in_the_mask_are_not_capped_nor_scaled():
    query, key, value = operands(np.random.default_rng(6), np.float64, L=3, S=5)
    bias = np.arange(15.0).reshape(3, 5)
    got, lse = check(query, key, value, scale=0, softcap=0.5, bias=bias, attn_mask=bias / 2)
    weights = np.exp(1.5 * bias - lse[0, 0][:, None])
    np.testing.assert_allclose(got[0, 0], weights @ value[0, 0], rtol=1e-13)
