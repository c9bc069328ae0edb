"""Rotary embeddings: what turning means, tables for far positions, frequencies, sizes that laws do not reach."""

import itertools

import ml_dtypes
import mpmath
import numpy as np
import pytest
from cases import check
from cases_positions_rotary import ROTARY_SHAPES, WITHOUT_TABLES, embedding
from numerics import same_bits

import attnpy
from attnpy import reference

FLOATS = (np.float32, np.float64)
ALL_TYPES = (*FLOATS, np.float16, ml_dtypes.bfloat16)
UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}
SIDES = {"C": attnpy, "reference": reference}


def normal(seed, *shape, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def tables(length, dim, dtype=np.float32):
    return attnpy.rotary_tables(length, attnpy.rotary_frequencies(dim)[0], dtype=dtype)


# --- small numbers


@pytest.mark.parametrize("side", SIDES)
def test_pairs_and_their_direction(side):
    """A quarter turn: the first of a pair becomes minus the second, the second the first."""
    turn = SIDES[side].rotary_embedding
    x, cos, sin = [[1.0, 2, 3, 4, 5]], [[0.0, 1]], [[1.0, 0]]
    np.testing.assert_array_equal(turn(x, cos, sin), [[-3, 2, 1, 4, 5]])
    np.testing.assert_array_equal(turn(x, cos, sin, inverse=True), [[3, 2, -1, 4, 5]])
    np.testing.assert_array_equal(turn(x, cos, sin, interleaved=True), [[-2, 1, 3, 4, 5]])
    np.testing.assert_array_equal(turn(x, cos, sin, interleaved=True, inverse=True), [[2, -1, 3, 4, 5]])
    np.testing.assert_array_equal(turn(x, [[0.0, 0]], [[1.0, 1]], rotary_dim=2), [[-2, 1, 3, 4, 5]])


@pytest.mark.parametrize("side", SIDES)
def test_rows_are_chosen_by_positions(side):
    turn = SIDES[side].rotary_embedding
    x = np.ones((2, 1, 3, 2))
    cos = np.float64([[1], [10], [100], [1000]])
    places = [[0, 1, 2], [3, 3, 0]]
    got = turn(x, cos, np.zeros((4, 1)), positions=places)[:, 0]
    np.testing.assert_array_equal(got[..., 0], [[1, 10, 100], [1000, 1000, 1]])
    np.testing.assert_array_equal(turn(x, cos, 0 * cos)[:, 0, :, 1], [[1, 10, 100]] * 2)
    np.testing.assert_array_equal(turn(x, cos, 0 * cos, positions=3)[..., 0].ravel(), [1000] * 6)


@pytest.mark.parametrize("side", SIDES)
def test_tables_of_a_batch_element(side):
    turn = SIDES[side].rotary_embedding
    x = np.ones((2, 3, 2, 2))  # two batch elements, three heads, two tokens
    cos = np.float64([[[1], [2]], [[3], [4]]])
    np.testing.assert_array_equal(turn(x, cos, 0 * cos)[:, 1, :, 0], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(turn(x, cos, 0 * cos, positions=[1, 0])[:, 2, :, 1], [[2, 1], [4, 3]])


def test_grid_of_tables():
    """Rows before columns; of the token in row 1, column 2 both angles."""
    cos, sin = attnpy.rotary_tables_2d(2, 4, [[0.5, 0.25], [2.0, 1.0]], 3.0, dtype=np.float64)
    assert cos.shape == sin.shape == (8, 4)
    np.testing.assert_allclose(cos[6], 3 * np.cos([0.5, 0.25, 4, 2]), rtol=1e-15)
    np.testing.assert_allclose(sin[6], 3 * np.sin([0.5, 0.25, 4, 2]), rtol=1e-15)
    again = attnpy.rotary_tables_2d([[0], [1]], [0, 1, 2, 3], [[0.5, 0.25], [2.0, 1.0]], 3.0, dtype=np.float64)
    np.testing.assert_array_equal(again[0].reshape(8, 4), cos)
    of_reference = reference.rotary_tables_2d(2, 4, [[0.5, 0.25], [2.0, 1.0]], 3.0)
    np.testing.assert_allclose(of_reference, (cos, sin), rtol=1e-14)


# --- tables


FAR = [0, 1, 2, 1857, 4095, 65537, 2**17 - 1, 2**20 - 1, 2**20, 0.5, 1234.75, 2**20 - 1 / 3, -777.125]


@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_tables_of_far_positions(base):
    """Beside mpmath with the frequencies as they are: float32 to a unit in the last place, float64 to four."""
    frequencies, _ = attnpy.rotary_frequencies(64, base)
    got = {dtype: attnpy.rotary_tables(FAR, frequencies, dtype=dtype) for dtype in FLOATS}
    with mpmath.workdps(60):
        for (i, p), (j, w) in itertools.product(enumerate(FAR), enumerate(frequencies)):
            angle = mpmath.mpf(p) * mpmath.mpf(float(w))
            for which, exact in enumerate((mpmath.cos(angle), mpmath.sin(angle))):
                for dtype, units in ((np.float32, 1), (np.float64, 4)):
                    value = got[dtype][which][i, j]
                    off = abs(mpmath.mpf(float(value)) - exact)
                    assert off <= units * np.spacing(np.abs(dtype(float(exact)))), f"position {p}, frequency {w}: {off}"


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_number_of_positions(dtype):
    frequencies = [1.0, 0.25]
    for got, wanted in zip(
        attnpy.rotary_tables(5, frequencies, dtype=dtype), attnpy.rotary_tables(np.arange(5), frequencies, dtype=dtype)
    ):
        same_bits(got, wanted, "five positions")
    assert attnpy.rotary_tables(0, frequencies)[0].shape == (0, 2)
    assert attnpy.rotary_tables(np.ones((2, 3)), frequencies)[1].shape == (2, 3, 2)


LONG = {"rope_type": "longrope", "short_factor": [1 + 0.1 * i for i in range(8)],
        "long_factor": [2 + 0.3 * i for i in range(8)], "original_max_position_embeddings": 128}  # fmt: skip
SCALINGS = [
    ({}, {}),
    ({"rope_type": "default", "rope_theta": 5e5}, {}),
    ({"type": "linear", "factor": 4.0}, {}),
    ({"rope_type": "dynamic", "factor": 4.0}, {"max_position_embeddings": 64}),
    ({"rope_type": "dynamic", "factor": 4.0}, {"max_position_embeddings": 64, "sequence_length": 200}),
    ({"rope_type": "yarn", "factor": 8.0}, {"max_position_embeddings": 512}),
    ({"rope_type": "yarn", "original_max_position_embeddings": 64, "truncate": False},
     {"max_position_embeddings": 512}),
    ({"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 16.0, "beta_slow": 2.0},
     {"max_position_embeddings": 4096}),
    ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}, {"max_position_embeddings": 128}),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 128}, {}),
    (LONG, {"max_position_embeddings": 512}),
    (LONG, {"max_position_embeddings": 512, "sequence_length": 129}),
    ({**LONG, "factor": 3.0}, {"sequence_length": 128}),
    ({**LONG, "attention_factor": 1.25}, {"max_position_embeddings": 512}),
    ({"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5}, {}),
    ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("scaling", "given"), SCALINGS, ids=str)
def test_frequencies(scaling, given):
    """Beside the reference, which goes through pair by pair: some ten roundings and that of powers of the base."""
    got, factor = attnpy.rotary_frequencies(16, scaling=scaling, **given)
    wanted, wanted_factor = reference.rotary_frequencies(16, scaling=scaling, **given)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=64 * 2.0**-53)
    assert abs(factor - wanted_factor) <= 8 * 2.0**-53


def test_frequencies_that_scaling_leaves():
    plain, _ = attnpy.rotary_frequencies(16)
    for scaling in (
        {"rope_type": "linear", "factor": 1.0},
        {"rope_type": "dynamic", "factor": 7.0},  # no longer than the model was trained for
        {"rope_type": "yarn", "factor": 1.0},
        {"rope_type": "llama3", "factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "longrope", "factor": 1.0, "short_factor": [1.0] * 8, "long_factor": [9.0] * 8},
    ):
        got, factor = attnpy.rotary_frequencies(16, scaling=scaling, max_position_embeddings=128, sequence_length=128)
        np.testing.assert_allclose(got, plain, rtol=4 * 2.0**-53)
        assert factor == 1.0
    np.testing.assert_array_equal(attnpy.rotary_frequencies(64, rotary_dim=16)[0], plain)
    assert attnpy.rotary_frequencies(2, scaling={"rope_type": "dynamic", "factor": 2.0}, max_position_embeddings=4,
                                     sequence_length=9)[0].tolist() == [1.0]  # fmt: skip


# --- laws


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_norms_are_kept(dtype, interleaved):
    """A feature is off by 3 u (|a| + |b|), of which u is the tables': the sum of squares by 12 u of itself or so."""
    x = normal(1, 3, 50, 64, dtype=dtype)
    y = attnpy.rotary_embedding(x, *tables(50, 64, dtype), interleaved=interleaved).astype(np.longdouble)
    before, after = np.sum(np.square(x.astype(np.longdouble)), -1), np.sum(np.square(y), -1)
    assert (np.abs(after - before) <= 16 * UNIT[dtype] * before).all()


@pytest.mark.parametrize("interleaved", [False, True])
def test_products_depend_on_the_distance_alone(interleaved):
    """Of positions up to 2^20: features are off by 6 u of |a| + |b| with tables made in float64, sums of 64 by 64 u."""
    query, key = normal(2, 2, 1, 64)
    size = 2 * np.abs(query).sum() * np.abs(key).max()

    def product(i, j):
        turned = [attnpy.rotary_embedding(x, positions=[p], interleaved=interleaved) for x, p in ((query, i), (key, j))]
        return float(turned[0][0] @ turned[1][0])

    for distance in (0, 1, 17, 1000):
        wanted = product(distance, 0)
        for shift in (1, 1000, 2**20):
            assert abs(product(distance + shift, shift) - wanted) <= (24 + 64) * 2.0**-53 * size


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_gradient_is_turned_back(dtype, interleaved):
    """sum g (R x) = sum (R' g) x, for tables that are no rotation too: six roundings a term; sums in longdouble."""
    x, g = (normal(seed, 2, 3, 7, 20, dtype=dtype) for seed in (3, 4))
    cos, sin = normal(5, 2, 7, 8, dtype=dtype)
    given = {"cos": cos, "sin": sin, "interleaved": interleaved}
    wide = np.longdouble
    ahead = np.sum(g.astype(wide) * attnpy.rotary_embedding(x, **given).astype(wide))
    back = np.sum(attnpy.rotary_embedding(g, **given, inverse=True).astype(wide) * x.astype(wide))
    size = sum(np.sum(np.abs(g) * np.abs(np.roll(x, n, -1))) for n in (0, 1, -1, 8, -8)) * (
        np.abs(cos).max() + np.abs(sin).max()
    )
    assert abs(ahead - back) <= 6 * UNIT[dtype] * size


@pytest.mark.parametrize("dtype", ALL_TYPES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_a_step_of_decoding_has_the_bits_of_its_row(dtype, interleaved):
    x = normal(6, 2, 3, 9, 24, dtype=dtype)
    given = dict(zip(("cos", "sin"), tables(9, 24))) | {"interleaved": interleaved}
    whole = attnpy.rotary_embedding(x, **given)
    for t in range(9):
        step = attnpy.rotary_embedding(x[:, :, t : t + 1], **given, positions=t)
        same_bits(step[:, :, 0], whole[:, :, t], f"step {t}")
    same_bits(attnpy.rotary_embedding(x[0, 0], **given), whole[0, 0], "without a head axis")


@pytest.mark.parametrize("dim", [2, 6, 16, 30, 34, 62, 64, 66])
@pytest.mark.parametrize("dtype", ALL_TYPES)
def test_both_pairings_are_one_rotation(dim, dtype):
    """The same bits after a permutation of features, for every tail of a vector; and tables that hold numbers twice."""
    x = normal(7, 3, 5, 70, dtype=dtype)
    cos, sin = tables(5, dim)
    order = attnpy.permute_rotary_weights(np.arange(70), 1, to="half_split", rotary_dim=dim)
    one = attnpy.rotary_embedding(x, cos, sin, interleaved=True, rotary_dim=dim)
    other = attnpy.rotary_embedding(x[..., order], cos, sin, rotary_dim=dim)
    same_bits(one[..., order], other, "half-split")
    twice = [np.concatenate([table, table], -1) for table in (cos, sin)]
    same_bits(attnpy.rotary_embedding(x[..., order], *twice, rotary_dim=dim), other, "each number twice")
    twice = [np.repeat(table, 2, -1) for table in (cos, sin)]
    same_bits(
        attnpy.rotary_embedding(x, *twice, rotary_dim=dim, interleaved=True), one, "each number twice, interleaved"
    )


@pytest.mark.parametrize("dtype", ALL_TYPES[2:])
def test_half_types_are_rounded_once(dtype):
    x = normal(8, 2, 65, 36, dtype=dtype)
    for interleaved in (False, True):
        given = dict(zip(("cos", "sin"), tables(65, 36))) | {"interleaved": interleaved}
        wanted = attnpy.rotary_embedding(x.astype(np.float32), **given).astype(dtype)
        same_bits(attnpy.rotary_embedding(x, **given), wanted, f"interleaved {interleaved}")


# --- sizes and layouts


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("option", WITHOUT_TABLES)
def test_without_tables(option, dtype):
    for size in ROTARY_SHAPES:
        call = embedding(size, dtype, option)
        check(call, call())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_large_results_have_the_bits_of_small_ones(dtype):
    """Past the caches: out of any alignment, tokens or heads inside, in place and not."""
    L, H, D = 2100, 9, 66
    x = normal(9, 1, L, H, D, dtype=np.float32).astype(dtype)
    cos, sin = tables(L, D, np.float64 if dtype == np.float64 else np.float32)
    cuts = [attnpy.rotary_embedding(x[:, a : a + 50].swapaxes(1, 2), cos, sin, positions=np.arange(a, a + 50))
            for a in range(0, L, 50)]  # fmt: skip
    wanted = np.concatenate(cuts, -2)
    same_bits(attnpy.rotary_embedding(x.swapaxes(1, 2), cos, sin), wanted, "heads inside x, tokens inside the result")
    x = np.ascontiguousarray(x.swapaxes(1, 2))
    for shift in (0, x.itemsize, 4 * x.itemsize):
        for inside in (False, True):
            buffer = np.zeros(x.nbytes + 64, np.uint8)
            shape = (1, L, H, D) if inside else x.shape
            out = np.ndarray(shape, x.dtype, buffer, shift)
            out = out.swapaxes(1, 2) if inside else out
            same_bits(attnpy.rotary_embedding(x, cos, sin, out=out), wanted, f"out {shift} bytes on, {inside}")
            assert not buffer[:shift].any() and not buffer[shift + x.nbytes :].any()
    assert attnpy.rotary_embedding(x, cos, sin, out=x) is x
    same_bits(x, wanted, "in place")


def test_a_nan_reaches_its_pair_alone():
    x = np.ones((1, 8), np.float32)
    x[0, 1] = np.nan
    cos, sin = np.full((2, 1, 4), 0.5, np.float32)
    np.testing.assert_array_equal(np.isnan(attnpy.rotary_embedding(x, cos, sin))[0], [0, 1, 0, 0, 0, 1, 0, 0])
    got = attnpy.rotary_embedding(x, cos, sin, interleaved=True)
    np.testing.assert_array_equal(np.isnan(got)[0], [1, 1, 0, 0, 0, 0, 0, 0])


# --- weights


@pytest.mark.parametrize("axis", [0, -1, 1])
@pytest.mark.parametrize("rotary_dim", [None, 4, 0])
def test_weights_between_pairings(axis, rotary_dim):
    weight = normal(10, 18, 18)
    for to in ("half_split", "interleaved"):
        got = attnpy.permute_rotary_weights(weight, 3, to=to, axis=axis, rotary_dim=rotary_dim)
        wanted = reference.permute_rotary_weights(weight, 3, to=to, axis=axis, rotary_dim=rotary_dim)
        np.testing.assert_array_equal(got, wanted)
    there = attnpy.permute_rotary_weights(weight, 3, to="half_split", axis=axis, rotary_dim=rotary_dim)
    back = attnpy.permute_rotary_weights(there, 3, to="interleaved", axis=axis, rotary_dim=rotary_dim)
    np.testing.assert_array_equal(back, weight)
