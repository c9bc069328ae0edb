"""What the engine takes: conversion, dtypes, broadcasting, integers, scalars. The numbers have their own tests."""

import laws
import numpy as np
import pytest
from calls import Call
from small import BFLOAT16, FLOATING, KEY, QUERY, VALUE, WANTED, Subclass, normal, same, sdpa

import attnpy

# --- conversion


class Converts:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(np.float64).tolist(),
        lambda x: tuple(x.astype(np.float64).tolist()),
        lambda x: Converts(x.astype(np.float64)),
        lambda x: [Converts(y) for y in x.astype(np.float64)],
    ],
    ids=["list", "tuple", "__array__", "list of __array__"],
)
def test_whatever_asarray_takes(convert):
    wanted = sdpa(QUERY.astype(np.float64), KEY.astype(np.float64), VALUE.astype(np.float64))
    same(sdpa(convert(QUERY), convert(KEY), convert(VALUE)), wanted)


def test_subclasses_give_plain_arrays():
    same(sdpa(QUERY.view(Subclass), KEY.view(Subclass), VALUE.view(Subclass)), WANTED)
    assert type(attnpy.softmax(QUERY.view(Subclass))) is np.ndarray


def test_conversions_leave_the_floating_point_flags():
    """NumPy's conversions clear them."""
    given = {"query": QUERY.astype(int), "key": KEY, "value": VALUE, "sinks": np.ones(QUERY.shape[-3], np.float16)}
    laws.flags_untouched(Call("scaled_dot_product_attention", given, "of integers"))
    given |= {"query": QUERY, "kv_lengths": np.array(3, np.int32)}
    laws.flags_untouched(Call("scaled_dot_product_attention", given, "with lengths in 32 bits"))


class MaskedSubclass(np.ma.MaskedArray):
    pass


@pytest.mark.parametrize("name", ["query", "key", "value", "attn_mask", "bias", "sinks", "alibi_slopes", "kv_lengths"])
@pytest.mark.parametrize("kind", [np.ma.MaskedArray, MaskedSubclass])
def test_masked_arrays_are_refused(name, kind):
    given = {"query": QUERY, "key": KEY, "value": VALUE}
    plain = {"attn_mask": np.ones((6, 7), bool), "bias": np.ones((6, 7)), "kv_lengths": np.array([7, 7])}
    given[name] = kind({**given, **plain}.get(name, np.ones(4)))
    with pytest.raises(TypeError, match=f"^{name} is a MaskedArray, whose mask would be ignored: pass attn_mask$"):
        sdpa(**given)


def test_masked_arrays_are_refused_elsewhere():
    masked = np.ma.MaskedArray(np.ones((2, 3), np.float32))
    with pytest.raises(TypeError, match=r"^x is a MaskedArray, .* pass where$"):
        attnpy.softmax(masked)
    with pytest.raises(TypeError, match=r"^outputs\[1\] is a MaskedArray"):
        attnpy.merge_attention([np.ones((2, 3)), masked], np.ones((2, 2)))
    with pytest.raises(TypeError, match=r"^out is a MaskedArray"):
        attnpy.softmax(np.ones((2, 3), np.float32), out=masked)


# --- dtypes


def expected_dtype(*dtypes):
    """The rule of the documentation, in its own words: None where it is refused."""
    if any(t.kind in "iub" for t in dtypes):
        dtypes = [np.dtype(np.float64) if t.kind in "iub" else t for t in dtypes]
    kinds = set(dtypes)
    if {np.dtype(np.float16), BFLOAT16} <= kinds:
        return None
    for wide in (np.float64, np.float32):
        if np.dtype(wide) in kinds:
            return np.dtype(wide)
    return dtypes[0]


ALL = [*FLOATING, np.dtype(np.int8), np.dtype(np.uint64), np.dtype(bool)]


@pytest.mark.parametrize("value", ALL, ids=str)
@pytest.mark.parametrize("key", ALL, ids=str)
@pytest.mark.parametrize("query", ALL, ids=str)
def test_dtype_rule(query, key, value):
    arrays = [np.abs(x).astype(t) for x, t in zip((QUERY, KEY, VALUE), (query, key, value))]
    wanted = expected_dtype(query, key, value)
    if wanted is None:
        with pytest.raises(
            TypeError,
            match=r"^(key|value) has dtype b?float16 and (query|key) b?float16; float16 and bfloat16 do not mix",
        ):
            sdpa(*arrays)
        return
    output, lse = sdpa(*arrays, return_lse=True)
    assert output.dtype == wanted
    assert lse.dtype == (np.float64 if wanted == np.float64 else np.float32)
    wide = [x.astype(lse.dtype) for x in arrays]
    same(output, sdpa(*wide).astype(wanted))  # storage types are read exactly, computed wide, rounded once


@pytest.mark.parametrize("dtype", [*FLOATING, np.dtype(np.int32), np.dtype(bool)], ids=str)
@pytest.mark.parametrize("name", ["attn_mask", "bias", "alibi_slopes", "sinks"])
def test_other_operands_never_change_the_dtype(name, dtype):
    shape = (6, 7) if name in ("attn_mask", "bias") else (4,)
    other = (4 * np.abs(normal(*shape))).astype(dtype)
    if name == "attn_mask" and dtype.kind == "i":
        return
    for stored in FLOATING:
        arrays = [x.astype(stored) for x in (QUERY, KEY, VALUE)]
        got = sdpa(*arrays, **{name: other})
        assert got.dtype == stored
        if dtype.kind != "b":
            same(got, sdpa(*arrays, **{name: other.astype(np.float64)}))


def test_a_finite_float64_stays_finite_in_float32():
    for name, shape in (("bias", (6, 7)), ("attn_mask", (6, 7)), ("sinks", (4,))):
        with np.errstate(all="raise"):
            assert np.isfinite(sdpa(QUERY, KEY, VALUE, **{name: np.full(shape, -1e300)})).all(), name


# --- broadcasting


@pytest.mark.parametrize(
    "batches",
    [
        ((), (), ()),
        ((2,), (), ()),
        ((), (2,), (1,)),
        ((3, 1), (2,), (3, 2)),
        ((1, 1), (5,), ()),
        ((2, 1, 3), (4, 1), (3,)),
        ((0,), (1,), ()),
        ((2, 0), (1,), (2, 1)),
        ((1,) * 9, (2,), ()),
    ],
)
def test_batch_axes_broadcast_as_in_numpy(batches):
    arrays = [x[0] for x in (QUERY, KEY, VALUE)]
    arrays = [normal(*batch, *x.shape, seed=n) for n, (batch, x) in enumerate(zip(batches, arrays))]
    shape = np.broadcast_shapes(*batches)
    got = sdpa(*arrays)
    assert got.shape == (*shape, 4, 6, 3)
    same(got, sdpa(*(np.broadcast_to(x, (*shape, *x.shape[-3:])).copy() for x in arrays)))


def test_operands_without_a_head_axis():
    query, key, value = (x[0, 0] for x in (QUERY, KEY, VALUE))
    output, lse = sdpa(query, key, value, return_lse=True)
    assert output.shape == (6, 3) and lse.shape == (6,)
    assert attnpy.attention_weights(query, key).shape == (6, 7)
    assert attnpy.attention_received(query, key).shape == (7,)
    assert sdpa(QUERY, key, value).shape == (2, 4, 6, 3)
    same(sdpa(QUERY, key, value), sdpa(QUERY, key[None], value[None]))
    assert sdpa(query[None], key, value).shape == (1, 6, 3)
    same(
        sdpa(query, key, value, sinks=[0.5], kv_lengths=3), sdpa(query[None], key, value, sinks=[0.5], kv_lengths=3)[0]
    )


def test_sixty_four_axes():
    query = np.ones((1,) * 62 + (2, 4), np.float32)
    assert sdpa(query, query, query).shape == query.shape
    assert attnpy.softmax(query).shape == query.shape
    with pytest.raises(ValueError, match="axis is empty"):
        attnpy.softmax(query, axis=())


@pytest.mark.parametrize("shape", [(), (1,), (7,), (6, 1), (6, 7), (4, 1, 1), (1, 6, 7), (2, 1, 1, 7), (2, 4, 6, 7)])
def test_masks_broadcast_to_the_scores(shape):
    mask, bias = normal(*shape) > 0, normal(*shape, seed=1)
    whole = [np.broadcast_to(x, (2, 4, 6, 7)).copy() for x in (mask, bias)]
    same(sdpa(QUERY, KEY, VALUE, mask, bias=bias), sdpa(QUERY, KEY, VALUE, whole[0], bias=whole[1]))
    same(sdpa(QUERY, KEY, VALUE, bias), sdpa(QUERY, KEY, VALUE, whole[1]))


def test_numbers_per_head_and_per_batch_element():
    for name in ("sinks", "alibi_slopes"):
        each = normal(2, 4, seed=3)
        for given in (each, each[:1], each[0]):
            same(
                sdpa(QUERY, KEY, VALUE, **{name: given}),
                sdpa(QUERY, KEY, VALUE, **{name: np.broadcast_to(given, (2, 4)).copy()}),
            )
        for wrong in (np.float32(1), np.ones(1), np.ones((2, 1)), np.ones((3, 4)), np.ones((1, 2, 4))):
            with pytest.raises(ValueError, match=f"^{name} has shape"):
                sdpa(QUERY, KEY, VALUE, **{name: wrong})


# --- integers


@pytest.mark.parametrize(
    "make",
    [
        lambda x: list(x),
        np.int8,
        np.uint16,
        np.uint64,
        lambda x: np.array(x, ">i4"),
        lambda x: np.array(x, object),
        lambda x: [np.int16(y) for y in x],
        lambda x: np.array([x, x]).T[:, 0],
        lambda x: np.array(x)[::-1].copy()[::-1],
    ],
)
def test_lengths_of_any_integer_type(make):
    wanted = sdpa(QUERY, KEY, VALUE, kv_lengths=np.array([3, 5]), query_lengths=np.array([2, 6]))
    same(sdpa(QUERY, KEY, VALUE, kv_lengths=make([3, 5]), query_lengths=make([2, 6])), wanted)


def test_lengths_are_one_for_all_or_one_each():
    for given in (5, [5], np.int64(5), np.array(5, np.uint8)):
        same(sdpa(QUERY, KEY, VALUE, kv_lengths=given), sdpa(QUERY, KEY, VALUE, kv_lengths=[5, 5]))
    same(sdpa(QUERY[0], KEY[0], VALUE[0], kv_lengths=5), sdpa(QUERY, KEY, VALUE, kv_lengths=5)[0])
    with pytest.raises(
        ValueError, match=r"^kv_lengths has shape \(1,\); it must broadcast to \(\), which has fewer axes$"
    ):
        sdpa(QUERY[0], KEY[0], VALUE[0], kv_lengths=[5])


@pytest.mark.parametrize("huge", [2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**40])
def test_numbers_beyond_every_type(huge):
    nothing = np.zeros_like(WANTED)
    same(sdpa(QUERY, KEY, VALUE, is_causal=True, causal_offset=huge), WANTED)
    same(sdpa(QUERY, KEY, VALUE, is_causal=True, causal_offset=-huge), nothing)
    same(sdpa(QUERY, KEY, VALUE, window_size=huge), WANTED)
    same(sdpa(QUERY, KEY, VALUE, window_size=(huge, huge), causal_offset=[-5, 5]), WANTED)
    same(sdpa(QUERY, KEY, VALUE, window_size=(3, huge), causal_offset=huge), nothing)
    same(sdpa(QUERY, KEY, VALUE, window_size=(huge, 3), causal_offset=-huge), nothing)
    for number in (huge, -huge, [3, huge], [huge, 3]):
        for name in ("kv_lengths", "query_lengths"):
            with pytest.raises(ValueError, match=rf"^{name} holds .*; each must be in 0 \.\.\. "):
                sdpa(QUERY, KEY, VALUE, **{name: number})
        with pytest.raises(ValueError, match=r"^rows holds .*; each must be in -6 \.\.\. 5"):
            attnpy.attention_weights(QUERY, KEY, rows=number if isinstance(number, list) else [number])
    with pytest.raises(ValueError, match="window_size"):
        sdpa(QUERY, KEY, VALUE, window_size=-huge)


@pytest.mark.parametrize(
    "wrong", [[True, False], [1.0, 2.0], ["1", "2"], [None, 1], [1j, 2], np.array([1, 2], "M8[s]")]
)
@pytest.mark.parametrize("name", ["kv_lengths", "query_lengths", "causal_offset"])
def test_what_is_no_integer(name, wrong):
    with pytest.raises(TypeError, match=name):
        sdpa(QUERY, KEY, VALUE, **{name: wrong})


def test_rows():
    whole = attnpy.attention_weights(QUERY, KEY)
    for rows in ([0], [-1, 2, 2, -6], range(6), np.array([5, 1], np.uint8), [], np.empty(0, int)):
        same(attnpy.attention_weights(QUERY, KEY, rows=rows), whole[..., np.array(rows, int), :])


# --- scalars


@pytest.mark.parametrize("scale", [0.25, np.float32(0.25), np.float16(0.25), np.array(0.25), 0, -1, np.int64(3), -0.0])
def test_scale(scale):
    same(sdpa(QUERY, KEY, VALUE, scale=scale), sdpa(QUERY, KEY, VALUE, scale=float(scale)))


@pytest.mark.parametrize("wrong", ["1", 1j, np.complex64(1), True, [1.0], np.ones(1), np.array(1j), object()])
@pytest.mark.parametrize("name", ["scale", "softcap"])
def test_what_is_no_number(name, wrong):
    with pytest.raises(TypeError, match=f"^{name} must be a real number"):
        sdpa(QUERY, KEY, VALUE, **{name: wrong})


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match="^scale is too large for a float$"):
        sdpa(QUERY, KEY, VALUE, scale=10**400)
    with pytest.raises(ValueError, match="^softcap is -0.5; it must be positive, or None or 0 for none$"):
        sdpa(QUERY, KEY, VALUE, softcap=-0.5)
    for none in (0, 0.0, -0.0, None):
        same(sdpa(QUERY, KEY, VALUE, softcap=none), WANTED)


@pytest.mark.parametrize("true", [True, np.True_, 1])
def test_flags(true):
    same(sdpa(QUERY, KEY, VALUE, is_causal=true), sdpa(QUERY, KEY, VALUE, window_size=(-1, 0)))
    assert len(sdpa(QUERY, KEY, VALUE, return_lse=true)) == 2
    for wrong in (None, "yes", 1.0, np.ones(2, bool)):
        with pytest.raises(TypeError, match="^is_causal must be True or False"):
            sdpa(QUERY, KEY, VALUE, is_causal=wrong)


def test_window_forms():
    wanted = sdpa(QUERY, KEY, VALUE, window_size=(2, 2))
    for given in (2, [2, 2], np.array([2, 2]), np.int8(2), (np.uint8(2), 2)):
        same(sdpa(QUERY, KEY, VALUE, window_size=given), wanted)
    for none in (-1, (-1, -1), None):
        same(sdpa(QUERY, KEY, VALUE, window_size=none), WANTED)
    for wrong in (True, (True, 1), (1.0, 2), "ab", {}):
        with pytest.raises(TypeError, match="window_size"):
            sdpa(QUERY, KEY, VALUE, window_size=wrong)
