"""exp2, exp, log, tanh and the half types, as the kernels compute them, on every level of this processor.

float32 is compared with NumPy's float64 at every STRIDEth bit pattern and at all of them near where something happens;
with ATTNPY_EXHAUSTIVE=1 at every pattern (some minutes). float64 is compared with mpmath at chosen points.
"""

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import mpmath
import numpy as np
import pytest

import attnpy
from attnpy import _core

EXHAUSTIVE = os.environ.get("ATTNPY_EXHAUSTIVE") == "1"
STRIDE = 1 if EXHAUSTIVE else 229
CHUNK = 1 << 20
LEVELS = ("baseline", "avx2", "avx512")

# The largest errors over all float32 in ULP, rounded up; the baseline has no fused multiply-add.
BOUND = {
    "exp2": {"baseline": 1.23, "fused": 0.96},
    "exp2_weight": {"baseline": 1.23, "fused": 0.96},
    "exp": {"baseline": 0.99, "fused": 1.02},
    "log": {"baseline": 0.84, "fused": 0.84},
    "tanh": {"baseline": 1.10, "fused": 0.94},
    "upper_tail": {"baseline": 5.0, "fused": 4.5},
    "logistic": {"baseline": 2.8, "fused": 2.8},
}


def bound(name):
    return BOUND[name]["baseline" if _core.isa == "baseline" else "fused"]


def elementary(name, x):
    out = np.full_like(x, 7)
    _core.elementary(name, x, out)
    return out


def weight(x, real=np.float64):
    return np.where(x < (-126 if real == np.float64 else -1022), 0, np.exp2(x))


def upper_tail(x):
    """P(N > x), as the kernels have it in float64: test_float64 holds that to mpmath."""
    return elementary("upper_tail", x)


def logistic(x):
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)


FUNCTIONS = {"exp2": np.exp2, "exp2_weight": weight, "exp": np.exp, "log": np.log, "tanh": np.tanh}
FUNCTIONS |= {"upper_tail": upper_tail, "logistic": logistic}
EXACT = {"exp2": lambda x: mpmath.power(2, x), "exp": mpmath.exp, "log": mpmath.log, "tanh": mpmath.tanh}
EXACT["exp2_weight"] = EXACT["exp2"]
EXACT["upper_tail"] = lambda x: mpmath.erfc(x / mpmath.sqrt(2)) / 2
EXACT["logistic"] = lambda x: 1 / (1 + mpmath.exp(-x))


def ulps(got, exact):
    """Errors of float32 results in units of the last place of the exact ones; infinity counts as 2^128."""
    top = 2.0**128
    exact, got = np.clip(exact, -top, top), np.clip(got.astype(np.float64), -top, top)
    _, exponent = np.frexp(exact)  # |exact| = f 2^exponent, f in [1/2, 1)
    return np.abs(got - exact) / np.ldexp(1.0, np.clip(exponent, -125, 128) - 24)


def check_float32(name, x):
    if name == "exp2_weight":
        x = x[~(x > 0)]
    if name == "upper_tail":
        x = x[~(x < 0)]
    got = elementary(name, x)
    with np.errstate(all="ignore"):
        exact = FUNCTIONS[name](x.astype(np.float64))
        error = np.where(np.isnan(exact), 0, ulps(got, exact))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
    assert error.max(initial=0) <= bound(name), f"{name}({x[error.argmax()]!r}): {error.max()} ULP"
    if name == "exp2_weight":
        assert (got[x < -126] == 0).all()
    if name in ("tanh", "log"):
        sign = ~np.isnan(exact)
        np.testing.assert_array_equal(np.signbit(got[sign]), np.signbit(exact[sign]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_everywhere(name):
    for first in range(0, 1 << 32, CHUNK * STRIDE):
        bits = np.arange(first, min(first + CHUNK * STRIDE, 1 << 32), STRIDE, np.uint64)
        check_float32(name, bits.astype(np.uint32).view(np.float32))


EDGES = (0.0, 2.0**-149, 2.0**-126, 2.0**-24, 0.5, 1.0, 2.0**0.5, 0.5**0.5, 9.01, 10.0, 2.0**23, 2.0**24, 1e30, 3.4e38)
EDGES += (87.336, 88.7228, 103.28, 103.97, 104.0, 126.0, 127.0, 128.0, 149.0, 150.0, 151.0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_near_edges(name):
    places = np.float32([*EDGES, *np.arange(0.25, 160, 0.25)])
    around = (places.view(np.int32)[:, None] + np.arange(-300, 301)).ravel()
    around = np.clip(around, 0, 0x7F800000).astype(np.int32).view(np.float32)
    check_float32(name, np.concatenate([around, -around]))


def points(name):
    """Arguments of float64: spread over the range, near its ends, near 0 and near whole numbers."""
    rng = np.random.default_rng(1)
    if name == "log":
        spread = [np.exp2(rng.uniform(-1022, 1024, 1500)), np.ldexp(rng.integers(1, 1 << 52, 300), -1074)]
        return np.concatenate([*spread, rng.uniform(0.5, 2, 1500), [5e-324, 1.0, np.finfo(np.float64).max]])
    low, high = {
        "exp2": (-1076, 1024),
        "exp2_weight": (-1022, 0),
        "exp": (-746, 709.78),
        "upper_tail": (0, 37),
        "logistic": (-700, 40),
    }.get(name, (-20, 20))
    near = np.arange(np.ceil(low), high, max(1, (high - low) // 200))
    x = [rng.uniform(low, high, 1500), rng.uniform(-2, min(2, high), 1500), near, np.nextafter(near, 0)]
    x += [-(10.0 ** rng.uniform(-320, 0, 300)), 10.0 ** rng.uniform(-320, 0, 300)]
    x = np.concatenate(x)
    return x[(x >= low) & (x <= high)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64(name):
    x = points(name)
    got = elementary(name, x)
    with mpmath.workprec(140):
        for argument, result in zip(x.tolist(), got.tolist(), strict=True):
            exact = EXACT[name](mpmath.mpf(argument))
            place = max(int(mpmath.frexp(exact)[1]) - 53, -1074)
            error = abs(mpmath.mpf(result) - exact) / mpmath.ldexp(1, place)
            assert error <= bound(name), f"{name}({argument!r}): {mpmath.nstr(error, 4)} ULP"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_at_whole_numbers(dtype):
    info = np.finfo(dtype)
    n = np.arange(info.minexp - info.nmant - 3, info.maxexp + 3).astype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        powers = np.ldexp(dtype(1), n.astype(np.int32))
    np.testing.assert_array_equal(elementary("exp2", n), powers)
    down = n[n <= 0]
    np.testing.assert_array_equal(elementary("exp2_weight", down), np.where(down < info.minexp, 0, powers[n <= 0]))
    assert elementary("exp2_weight", np.zeros(3, dtype)).tolist() == [1, 1, 1]
    assert elementary("exp", np.zeros(3, dtype)).tolist() == [1, 1, 1]
    assert elementary("log", np.ones(3, dtype)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ends(dtype):
    x = np.array([-np.inf, np.inf, 0.0, -0.0], dtype)
    assert elementary("exp2", x).tolist() == [0, np.inf, 1, 1]
    assert elementary("exp", x).tolist() == [0, np.inf, 1, 1]
    assert elementary("exp2_weight", x[[0, 2, 3]]).tolist() == [0, 1, 1]
    logarithms = elementary("log", x)
    assert np.isnan(logarithms[0]) and logarithms[1:].tolist() == [np.inf, -np.inf, -np.inf]
    signs = elementary("tanh", x)
    assert signs.tolist() == [-1, 1, 0, 0] and np.signbit(signs).tolist() == [True, False, False, True]
    assert np.isnan(elementary("log", np.array([-np.finfo(dtype).smallest_subnormal, -1], dtype))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_stays(name, dtype):
    """Where an exponent is built from bits, a payload could become a number."""
    bits, word = (23, np.uint32) if dtype == np.float32 else (52, np.uint64)
    payloads = [1, 3, 0x3FFFFF, (1 << (bits - 1)) - 1, 1 << (bits - 1), (1 << (bits - 1)) + 1, (1 << bits) - 1]
    payloads += [1 << k for k in range(bits)]
    all_ones = (1 << (np.dtype(dtype).itemsize * 8 - 1)) - (1 << bits)
    sign = 1 << (np.dtype(dtype).itemsize * 8 - 1)
    x = np.array([s | all_ones | p for s in (0, sign) for p in payloads], word).view(dtype)
    assert np.isnan(x).all()
    assert np.isnan(elementary(name, x)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_arguments_of_tanh(dtype):
    x = np.array([np.finfo(dtype).smallest_subnormal, np.finfo(dtype).tiny, 1e-30, np.finfo(dtype).eps / 4], dtype)
    np.testing.assert_array_equal(elementary("tanh", np.concatenate([x, -x])), np.concatenate([x, -x]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_odd_lengths(name):
    x = -np.linspace(0.1, 3, 40, dtype=np.float32)
    x = -x if name == "log" else x
    whole = elementary(name, x)
    for n in range(41):
        np.testing.assert_array_equal(elementary(name, x[:n].copy()), whole[:n])


HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("compute", [np.float32, np.float64])
@pytest.mark.parametrize("name", HALVES)
def test_halves_come_back(name, compute):
    """float32 goes through the vectors, float64 through the functions for one number."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(HALVES[name])
    with np.errstate(invalid="ignore"):
        wide = halves.astype(np.float32)
        got = elementary(name, wide.astype(compute))
    np.testing.assert_array_equal(got, wide)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(wide))


@pytest.mark.parametrize("compute", [np.float32, np.float64])
@pytest.mark.parametrize("name", HALVES)
def test_rounding_to_halves(name, compute):
    """Every half, every middle between two, their neighbours in float32, and patterns from everywhere."""
    halves = np.arange(1 << 15, dtype=np.uint16).view(HALVES[name]).astype(np.float32)
    halves = halves[np.isfinite(halves)].view(np.uint32).astype(np.int64)
    middles = halves + np.diff(halves, append=2 * halves[-1] - halves[-2]) // 2
    bits = (np.concatenate([halves, middles])[:, None] + np.arange(-2, 3)).ravel()
    bits = np.clip(np.concatenate([bits, np.arange(0, 1 << 31, 1009)]), 0, 0x7FFFFFFF).astype(np.uint32)
    x = np.concatenate([bits, bits | np.uint32(1 << 31)]).view(np.float32)
    with np.errstate(all="ignore"):
        rounded = x.astype(HALVES[name]).astype(np.float32)
        got = elementary(name, x.astype(compute))
    np.testing.assert_array_equal(got, rounded)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(x))


@pytest.mark.skipif(bool(os.environ.get("ATTNPY_ISA")), reason="the level is chosen already")
@pytest.mark.parametrize("level", LEVELS[: LEVELS.index(_core.isa)])
def test_lower_levels(level):
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "-c", root / "pyproject.toml", "--rootdir", root, __file__]
    packages = str(Path(attnpy.__file__).parent.parent)
    environment = {**os.environ, "ATTNPY_ISA": level, "PYTHONPATH": packages}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
