"""Dropout as seen from Python: keys, what `rng` may be, and what a Generator gives up."""

import contextlib
import copy
import pickle

import numpy as np
import pytest

import attnpy
from attnpy import DropoutKey, reference


def operands(shape=(2, 3, 5, 4), dtype=np.float64):
    return tuple(np.random.default_rng(0).normal(size=(3, *shape)).astype(dtype))


def test_keys_are_values():
    key = DropoutKey(0x0123456789ABCDEF0011223344556677)
    assert key.words == (0x44556677, 0x00112233, 0x89ABCDEF, 0x01234567)
    assert repr(key) == "DropoutKey(0x0123456789abcdef0011223344556677)" and eval(repr(key)) == key
    assert int(key) == 0x0123456789ABCDEF0011223344556677
    assert key == DropoutKey(list(key.words)) == DropoutKey(np.array(key.words, np.uint32))
    assert key != DropoutKey(1) and key != key.words and len({key, DropoutKey(int(key))}) == 1
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(key, protocol)) == key
    assert copy.deepcopy(key) == key


def test_keys_cannot_be_changed():
    key = DropoutKey(1)
    with pytest.raises(AttributeError, match="cannot be changed"):
        key.words = (1, 2, 3, 4)
    with pytest.raises(AttributeError, match="cannot be changed"):
        del key.words
    with pytest.raises(AttributeError):
        key.more = 1
    with contextlib.suppress(TypeError):
        key.__init__(2)
    assert key == DropoutKey(1)


@pytest.mark.parametrize(
    "key, error",
    [(-1, ValueError), (2**128, ValueError), ([1, 2, 3], ValueError), ([0, 0, 0, 2**32], ValueError)]
    + [
        ([-1, 0, 0, 0], ValueError),
        (1.5, TypeError),
        ("1234", TypeError),
        ([1.0, 2, 3, 4], TypeError),
        (None, TypeError),
    ],
)
def test_keys_are_refused(key, error):
    with pytest.raises(error, match="key is"):
        DropoutKey(key)


def test_dropout_key_draws_four_words():
    key = attnpy.dropout_key(np.random.default_rng(5))
    assert key.words == tuple(np.random.default_rng(5).integers(0, 2**32, 4, np.uint32).tolist())
    for rng in (5, None, key, np.random.RandomState(5), np.random):
        with pytest.raises(TypeError, match="rng is an? .*; it must be a numpy.random.Generator"):
            attnpy.dropout_key(rng)


@pytest.mark.parametrize("p", [0.0, 0, -0.0, np.float32(0)])
def test_nothing_is_drawn_without_dropout(p):
    arrays = operands()
    plain = attnpy.scaled_dot_product_attention(*arrays)
    generator = np.random.default_rng(1)
    for rng in (None, DropoutKey(1), generator):
        np.testing.assert_array_equal(attnpy.scaled_dot_product_attention(*arrays, dropout_p=p, rng=rng), plain)
    assert generator.random() == np.random.default_rng(1).random()


def test_one_key_is_drawn_in_each_call():
    arrays, generator, other = operands(), np.random.default_rng(2), np.random.default_rng(2)
    for _ in range(3):
        got = attnpy.scaled_dot_product_attention(*arrays, dropout_p=0.5, rng=generator)
        key = attnpy.dropout_key(other)
        np.testing.assert_array_equal(got, attnpy.scaled_dot_product_attention(*arrays, None, 0.5, rng=key))
    assert generator.random() == other.random()


def test_nothing_is_drawn_by_a_call_that_is_refused():
    generator = np.random.default_rng(3)
    with pytest.raises(ValueError, match="dropout_p"):
        attnpy.scaled_dot_product_attention(*operands(), dropout_p=1.0, rng=generator)
    assert generator.random() == np.random.default_rng(3).random()


@pytest.mark.parametrize("p", [-0.1, 1, 1.5, np.nan, np.inf, -1e-300])
def test_dropout_p_out_of_range(p):
    for rng in (None, np.random.default_rng(), DropoutKey(1)):
        with pytest.raises(ValueError, match=r"dropout_p is .*; it must be in \[0, 1\)"):
            attnpy.scaled_dot_product_attention(*operands(), dropout_p=p, rng=rng)
    with pytest.raises(ValueError, match="dropout_p"):
        attnpy.dropout_mask((2, 2), p, DropoutKey(1), dtype=bool)


@pytest.mark.parametrize("p", ["0.5", None, [0.5], 1j, True, False])
def test_dropout_p_of_another_type(p):
    with pytest.raises(TypeError, match="dropout_p is an? .*; it must be a number"):
        attnpy.scaled_dot_product_attention(*operands(), dropout_p=p, rng=DropoutKey(1))
    with pytest.raises(TypeError, match="dropout_p"):
        attnpy.dropout_mask((2, 2), p, DropoutKey(1), dtype=bool)


def test_rng_is_needed_and_must_be_one():
    with pytest.raises(ValueError, match=r"dropout_p is 0.5; dropout needs rng"):
        attnpy.scaled_dot_product_attention(*operands(), dropout_p=0.5)
    for rng in (1, np.random.RandomState(1), np.random, (1, 2, 3, 4)):
        for p in (0.0, 0.5):
            with pytest.raises(
                TypeError, match=r"rng is an? .*; it must be a numpy.random.Generator or an attnpy.DropoutKey"
            ):
                attnpy.scaled_dot_product_attention(*operands(), dropout_p=p, rng=rng)


def test_the_mask_takes_a_key_only():
    with pytest.raises(
        TypeError, match=r"key is a Generator; it must be a DropoutKey: key = attnpy.dropout_key\(rng\)"
    ):
        attnpy.dropout_mask((2, 2), 0.5, np.random.default_rng(), dtype=bool)
    with pytest.raises(TypeError, match="key is an int"):
        attnpy.dropout_mask((2, 2), 0.5, 1, dtype=bool)


@pytest.mark.parametrize(
    "shape", [(3, 5), (2, 7, 9), (2, 3, 4, 65), (2, 3, 2, 5, 130), (1, 1, 0), (0, 2, 3, 4), (2, 200, 3)]
)
@pytest.mark.parametrize("dtype", [bool, np.float64, np.float32, np.float16])
def test_mask_equals_the_reference(shape, dtype):
    for p, key in ((0.0, DropoutKey(0)), (0.25, DropoutKey(2**128 - 1)), (0.9, DropoutKey(7))):
        got = attnpy.dropout_mask(shape, p, key, dtype=dtype)
        wanted = reference.dropout_mask(shape, p, key, dtype=bool)
        assert got.dtype == dtype and got.shape == shape
        np.testing.assert_array_equal(got != 0, wanted)
        if dtype is not bool:
            kept = np.float64(1 / (1 - p)) if dtype == np.float64 else np.float32(1 / (1 - p))
            np.testing.assert_array_equal(got[wanted], kept.astype(dtype))


def test_mask_in_bfloat16():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    got = attnpy.dropout_mask((3, 40), 0.5, DropoutKey(3), dtype=bfloat16)
    assert got.dtype == bfloat16
    np.testing.assert_array_equal(got.astype(float), reference.dropout_mask((3, 40), 0.5, DropoutKey(3), dtype=float))


@pytest.mark.parametrize("dtype", ["int32", "complex64", "longdouble", "U3"])
def test_mask_of_other_dtypes_is_refused(dtype):
    with pytest.raises(TypeError, match="dtype"):
        attnpy.dropout_mask((2, 2), 0.5, DropoutKey(1), dtype=dtype)


@pytest.mark.parametrize("shape", [(3,), (), (2, -1), 4])
def test_mask_of_other_shapes_is_refused(shape):
    with pytest.raises((ValueError, TypeError), match="shape"):
        attnpy.dropout_mask(shape, 0.5, DropoutKey(1), dtype=bool)


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_forward_drops_what_the_mask_says(rows):
    """With values that are unit vectors the output is the weights times the mask."""
    rng, key = np.random.default_rng(4), DropoutKey(11)
    query, keys = rng.normal(size=(2, 4, rows, 8)), rng.normal(size=(2, 2, 150, 8))
    value = np.broadcast_to(np.eye(150), (2, 2, 150, 150))
    got = attnpy.scaled_dot_product_attention(query, keys, value, dropout_p=0.3, rng=key)
    mask = attnpy.dropout_mask(got.shape, 0.3, key, dtype=float)
    np.testing.assert_array_equal(got != 0, mask != 0)
    weights = attnpy.attention_weights(query, keys)
    size = (np.abs(query) @ np.abs(keys).repeat(2, 1).swapaxes(-1, -2)).max() / np.sqrt(8)
    bound = 2**-53 * (
        8 + 2 * (64 + 3) + 2 * (8 + 3) * size
    )  # the accuracy rule, once for the output and once for the weights
    np.testing.assert_allclose(got, weights * mask, rtol=2 * bound)
