"""Dropout inside attention: the mask that is used is the mask that dropout_mask shows."""

import itertools

import numpy as np
import pytest
from inputs import OPTIONS, TYPES, check, operands, options_of, seed_of

import attnpy
from attnpy import DropoutKey

SIZES = [(1, 130, 4, 2), (1, 2050, 4, 1), (3, 70, 4, 2), (9, 7, 2, 2), (66, 130, 2, 1), (130, 66, 4, 4)]


def dropped(query, key, value, p, dropout_key, **options):
    """weights * mask @ value in float64, made of the public functions."""
    wide = query.astype(np.float64), key.astype(np.float64)
    weights = attnpy.attention_weights(*wide, **options)
    mask = attnpy.dropout_mask(weights.shape, p, dropout_key, dtype=np.float64)
    return (weights * mask) @ np.repeat(value.astype(np.float64), query.shape[-3] // value.shape[-3], axis=-3)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_mask_used_is_the_mask_shown(sizes, dtype):
    L, S, H, G = sizes
    for p, word in itertools.product((1e-9, 0.1, 0.5, 0.99), (0, 2**128 - 1, 12345678901234567890)):
        rng = np.random.default_rng(seed_of(sizes, dtype, p))
        query, key, value = operands(rng, TYPES[dtype], batch=(2, 2), H=H, G=G, L=L, S=S)
        got, lse = check(query, key, value, dropout_p=p, rng=DropoutKey(word), note=f"p = {p}, key {word}")
        wanted = dropped(query, key, value, p, DropoutKey(word))
        unit = {"float64": 1e-13, "float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}[dtype]
        largest = np.abs(wanted).max() + 1
        np.testing.assert_allclose(
            got.astype(float), wanted, rtol=unit, atol=unit * largest, err_msg=f"p = {p}, key {word}"
        )
        plain = attnpy.scaled_dot_product_attention(query, key, value, return_lse=True)[1]
        np.testing.assert_array_equal(
            lse, plain, err_msg="dropout comes after the softmax: the sum is that of all weights"
        )


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "dropout"])
def test_with_every_option(name):
    for n, (L, S, H, G) in enumerate(SIZES):
        seed = seed_of(name, n)
        rng = np.random.default_rng(seed)
        options = options_of((name,), rng, (3,), H, L, S)
        query, key, value = operands(rng, np.float64, batch=(3,), H=H, G=G, L=L, S=S)
        got = attnpy.scaled_dot_product_attention(query, key, value, dropout_p=0.4, rng=DropoutKey(seed), **options)
        wanted = dropped(query, key, value, 0.4, DropoutKey(seed), **options)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12, err_msg=f"{name}, sizes {SIZES[n]}, seed {seed}")


def test_nothing_is_left_of_a_row_whose_keys_are_dropped():
    """A few rows of four keys at p = 0.9 lose all of them: 0, while the log-sum-exp stays."""
    query, key, value = operands(np.random.default_rng(1), np.float64, batch=(), H=1, L=200, S=4)
    got, lse = attnpy.scaled_dot_product_attention(query, key, value, dropout_p=0.9, rng=DropoutKey(9), return_lse=True)
    kept = attnpy.dropout_mask((1, 200, 4), 0.9, DropoutKey(9), dtype=bool)
    empty = ~kept.any(-1)
    assert empty.any() and (got[empty] == 0).all() and (got[~empty] != 0).all() and np.isfinite(lse).all()


@pytest.mark.parametrize("L", [1, 3, 70])
def test_the_mean_over_keys_is_attention_without_dropout(L):
    """A dropped output has expectation O and variance p/(1-p) sum_j P_ij^2 v_j^2: 400 keys, six standard errors."""
    query, key, value = operands(np.random.default_rng(2), np.float64, batch=(), H=2, L=L, S=66)
    attend = attnpy.scaled_dot_product_attention
    total = sum(attend(query, key, value, dropout_p=0.3, rng=DropoutKey(n)) for n in range(400))
    spread = np.sqrt(0.3 / 0.7 * attnpy.attention_weights(query, key) ** 2 @ value**2 / 400)
    assert (np.abs(total / 400 - attend(query, key, value)) < 6 * spread).all()


def test_every_coordinate_counts():
    """Batch number in C order, head, row and key each change the mask; nothing else does."""
    mask = attnpy.dropout_mask((2, 3, 4, 64, 64), 0.5, DropoutKey(3), dtype=bool)
    tiles = mask.reshape(24, -1)
    for one, other in itertools.combinations(range(24), 2):
        share = (tiles[one] == tiles[other]).mean()
        assert abs(share - 0.5) < 0.06, f"heads {one} and {other} agree in {share:.3f} of their places"
    rows = mask[0, 0, 0]
    assert len(np.unique(rows, axis=0)) == 64 and len(np.unique(rows.T, axis=0)) == 64
    np.testing.assert_array_equal(
        attnpy.dropout_mask((6, 4, 64, 64), 0.5, DropoutKey(3), dtype=bool).ravel(), mask.ravel()
    )
    np.testing.assert_array_equal(
        attnpy.dropout_mask((2, 3, 4, 70, 99), 0.5, DropoutKey(3), dtype=bool)[..., :64, :64], mask
    )
    for bit in range(128):
        other = attnpy.dropout_mask((64, 64), 0.5, DropoutKey(3 ^ 1 << bit), dtype=bool)
        assert abs((other == rows).mean() - 0.5) < 0.06, f"bit {bit} of the key"


def test_the_kept_share():
    for p in (0.001, 0.1, 0.5, 0.9, 0.999):
        kept = attnpy.dropout_mask((4, 500, 500), p, DropoutKey(4), dtype=bool)
        deviation = np.sqrt(p * (1 - p) / kept.size)
        assert abs(kept.mean() - (1 - p)) < 5 * deviation, f"p = {p}"


def test_a_larger_p_drops_more_of_the_same():
    masks = [attnpy.dropout_mask((70, 70), p, DropoutKey(5), dtype=bool) for p in (0, 0.2, 0.5, 0.8, 1 - 2**-33)]
    assert masks[0].all()
    for less, more in itertools.pairwise(masks):
        assert not (more & ~less).any() and (less.sum() > more.sum())


@pytest.mark.parametrize("L", [1, 3, 70])
def test_the_mask_is_that_of_the_whole_call(L):
    """Hidden keys, lengths and heads that share keys do not move it."""
    query, key, value = operands(np.random.default_rng(6), np.float64, batch=(2,), H=4, G=2, L=L, S=130)
    repeated = key.repeat(2, axis=1), value.repeat(2, axis=1)
    attend, dropout = attnpy.scaled_dot_product_attention, {"dropout_p": 0.5, "rng": DropoutKey(7)}
    shared = attend(query, key, value, is_causal=True, **dropout)
    np.testing.assert_allclose(attend(query, *repeated, is_causal=True, **dropout), shared, rtol=0, atol=1e-13)
    masked = attend(query, key, value, np.tri(L, 130, 130 - L, dtype=bool), **dropout)
    np.testing.assert_allclose(masked, shared, rtol=0, atol=1e-13)
    broadcast = attend(query[:1], key[0], value[0], **dropout)
    np.testing.assert_allclose(broadcast[0], attend(query, key, value, **dropout)[0], rtol=0, atol=1e-13)


def test_a_hidden_nan_is_not_dropped_into_view():
    query, key, value = operands(np.random.default_rng(8), np.float32, L=70, S=130)
    value[:, :, 100:] = np.nan
    got = attnpy.scaled_dot_product_attention(query, key, value, dropout_p=0.5, rng=DropoutKey(8), kv_lengths=100)
    assert np.isfinite(got).all()
