"""Sinusoidal encodings: known numbers, positions near and far, conventions of others, the picture."""

import math

import numpy as np
import pytest
from bounds_positions_tables import true_encoding

import attnpy

UNIT = 2.0**-24
OPTIONS = [
    {}, {"layout": "concatenated"}, {"denominator": "half_minus_one"}, {"base": 500000.0},
    {"layout": "concatenated", "denominator": "half_minus_one", "base": 3.0},
]  # fmt: skip


def units(got, wanted):
    """The largest error in units of the last place of the true values; exact where they are 0."""
    nought = wanted == 0
    np.testing.assert_array_equal(got[nought], 0)
    spacing = np.spacing(np.abs(wanted).astype(got.dtype))
    return float((np.abs(got.astype(np.longdouble) - wanted) / np.where(nought, 1, spacing)).max())


def test_by_hand():
    got = attnpy.sinusoidal_encoding(3, 4)
    np.testing.assert_allclose(got[1], [0.84147098, 0.54030231, 0.00999983, 0.99995], rtol=1e-6)
    np.testing.assert_allclose(got[2], [0.90929743, -0.41614684, 0.01999867, 0.99980001], rtol=1e-6)
    y = attnpy.sinusoidal_encoding(512, 512, dtype=float)
    wanted = {(50, 0): -0.26237485, (50, 1): 0.96496603, (50, 256): 0.47942554, (50, 257): 0.87758256}
    for place, value in (wanted | {(511, 510): 0.05294717}).items():
        assert y[place] == pytest.approx(value, abs=5e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "positions",
    [
        np.arange(2**20 - 70, 2**20 + 1), np.arange(-33, 40), 2.0**20 * np.random.default_rng(0).random(50),
        np.arange(100) / 8 - 5, 10.0 ** np.arange(-30, 14), np.arange(64) * 2**24,
    ],
    ids=["million", "about 0", "fractions", "eighths", "powers", "steps"],
)  # fmt: skip
def test_within_one_unit_of_the_true_value(positions, options):
    """float32 within one unit in the last place, and half of one where rotations do not come in; float64 within 2.5."""
    for dim in (1, 7, 64):
        wanted = true_encoding(positions, dim, **options)
        assert units(attnpy.sinusoidal_encoding(positions, dim, **options, dtype=np.float32), wanted) <= 0.76
        assert units(attnpy.sinusoidal_encoding(positions, dim, **options, dtype=np.float64), wanted) <= 2.5


def test_small_sines_are_not_left_to_rotations():
    """Where a whole position nearly is a multiple of pi: 355 = 113 pi + 3e-5, 103993 = 33102 pi + 2e-5 …"""
    for position in (22, 355, 710, 103993, 104348, 208341, 312689, 833719):
        run = np.arange(position - position % 64 - 1, position + 5)
        wanted = true_encoding(run[-10:], 2)
        assert units(attnpy.sinusoidal_encoding(run, 2)[-10:], wanted) <= 0.76


def test_a_million_positions_are_where_they_should_be():
    """Every number of a long run, against float64; and its hardest ones against the true value."""
    y = attnpy.sinusoidal_encoding(2**20, 6)
    p = np.arange(2**20)
    for i in range(3):
        angle = p * (np.longdouble(10000) ** (-np.longdouble(2 * i) / 6))
        for k, f in ((0, np.sin), (1, np.cos)):
            wanted = f(angle)
            apart = np.abs(y[:, 2 * i + k] - wanted.astype(np.float64))
            assert (apart <= 0.76 * np.spacing(np.abs(wanted).astype(np.float32)) + 2.0**-45).all()
        hard = np.argsort(np.abs(np.sin(angle)).astype(np.float64))[:40]
        assert units(y[hard], true_encoding(hard, 6)) <= 0.76


def test_special_positions():
    got = attnpy.sinusoidal_encoding([np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324], 6)
    assert np.isnan(got[:3]).all()
    np.testing.assert_array_equal(got[3:, 0::2], 0)
    np.testing.assert_array_equal(got[3:, 1::2], 1)
    run = np.arange(64.0)
    run[40] = np.nan
    got, whole = attnpy.sinusoidal_encoding(run, 6), attnpy.sinusoidal_encoding(64, 6)
    assert np.isnan(got[40]).all()
    np.testing.assert_allclose(np.delete(got, 40, 0), np.delete(whole, 40, 0), rtol=2 * UNIT)


def test_huge_positions_stay_bounded():
    y = attnpy.sinusoidal_encoding([1e17, -3e200, 2.0**60 + 1], 8, dtype=np.float64)
    assert (np.abs(y) <= 1).all()
    exact = true_encoding([1e17], 8)
    assert float(np.abs(y[:1] - exact).max()) <= 1e-12


def test_an_integer_stands_for_positions_from_0():
    for n in (5, np.int32(5)):
        np.testing.assert_array_equal(attnpy.sinusoidal_encoding(n, 8), attnpy.sinusoidal_encoding(np.arange(5), 8))
    assert attnpy.sinusoidal_encoding(np.array(5), 8).shape == (8,)
    assert attnpy.sinusoidal_encoding(2.5, 8).shape == (8,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_dtype_is_that_of_out(dtype):
    out = np.empty((3, 4), dtype)
    assert attnpy.sinusoidal_encoding(3, 4, out=out) is out
    np.testing.assert_array_equal(out, attnpy.sinusoidal_encoding(3, 4, dtype=dtype))
    assert attnpy.sinusoidal_encoding(3, 4).dtype == np.float32


def test_odd_dims():
    """Interleaved: the last cosine is missing. Concatenated: the last feature is 0."""
    whole = attnpy.sinusoidal_encoding(9, 5, dtype=float)
    np.testing.assert_allclose(whole[:, 4], np.sin(np.arange(9) * 10000.0 ** (-4 / 5)), rtol=1e-14)
    np.testing.assert_array_equal(attnpy.sinusoidal_encoding(9, 5, layout="concatenated")[:, 4], 0)


def test_rows_do_not_depend_on_who_else_is_asked_for():
    """A row of float64 has its bits alone; of float32 it is within a unit in the last place of a run's."""
    p = np.arange(300)
    wide = attnpy.sinusoidal_encoding(p, 34, dtype=np.float64)
    np.testing.assert_array_equal(wide[[7]], attnpy.sinusoidal_encoding([7], 34, dtype=np.float64))
    run, alone = attnpy.sinusoidal_encoding(p, 34), attnpy.sinusoidal_encoding(p[:, None], 34)[:, 0]
    assert (np.abs(run - alone) <= np.spacing(np.abs(alone))).all()


def test_scores_depend_on_the_distance_alone():
    y = attnpy.sinusoidal_encoding(200, 64, dtype=np.float64)
    scores = y @ y.T
    for distance in (1, 7, 60):
        np.testing.assert_allclose(np.diag(scores, distance), scores[0, distance], atol=1e-11)


def test_conventions_of_others():
    """tensor2tensor's get_timing_signal_1d, fairseq's embedding, MAE's and big_vision's tables, DETR's module."""
    channels, length = 10, 7
    timescales = channels // 2
    step = math.log(1e4) / (timescales - 1)
    scaled = np.arange(length)[:, None] * np.exp(np.arange(timescales) * -step)
    wanted = np.concatenate([np.sin(scaled), np.cos(scaled)], 1)
    got = attnpy.sinusoidal_encoding(length, channels, layout="concatenated", denominator="half_minus_one", dtype=float)
    np.testing.assert_allclose(got, wanted, atol=1e-14)

    dim, rows, columns = 16, 3, 5
    omega = 1.0 / 10000 ** (np.arange(dim // 4) / (dim / 4))
    grid_w, grid_h = np.meshgrid(np.arange(columns, dtype=float), np.arange(rows, dtype=float))
    halves = [np.einsum("m,d->md", x.reshape(-1), omega) for x in (grid_w, grid_h)]  # MAE: here w goes first
    wanted = np.concatenate([f(half) for half in halves for f in (np.sin, np.cos)], 1)
    given = {"layout": "concatenated", "order": "columns_first", "dtype": float}
    got = attnpy.sinusoidal_encoding_2d(rows, columns, dim, **given)
    np.testing.assert_allclose(got.reshape(-1, dim), wanted, atol=1e-14)

    y, x = np.mgrid[:rows, :columns]  # big_vision: posemb_sincos_2d
    omega = 1.0 / 10000 ** (np.arange(dim // 4) / (dim // 4 - 1))
    y, x = (np.einsum("m,d->md", z.reshape(-1), omega) for z in (y, x))
    wanted = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1)
    got = attnpy.sinusoidal_encoding_2d(rows, columns, dim, denominator="half_minus_one", **given)
    np.testing.assert_allclose(got.reshape(-1, dim), wanted, atol=1e-14)

    features = dim // 2  # DETR: PositionEmbeddingSine(normalize=True), rows before columns
    t = 10000.0 ** (2 * (np.arange(features) // 2) / features)
    along = []
    for n in (rows, columns):
        angle = (np.arange(1, n + 1) / n * 2 * np.pi)[:, None] / t
        along.append(np.stack([np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])], -1).reshape(n, -1))
    shape = (rows, columns, features)
    wanted = np.concatenate([np.broadcast_to(along[0][:, None], shape), np.broadcast_to(along[1][None], shape)], -1)
    numbers = [np.arange(1, n + 1) / n * 2 * np.pi for n in (rows, columns)]
    np.testing.assert_allclose(attnpy.sinusoidal_encoding_2d(*numbers, dim, dtype=float), wanted, atol=1e-14)
