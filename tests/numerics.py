"""The one accuracy assertion.

A result of the oracle, a cap on the error of each element, made from the input's own scores and magnitudes, and, for
float32, NumPy's own float32 formula, whose largest error may be exceeded at most twofold. The worst share of the cap
seen for each function, dtype and CPU level is kept in accuracy.json and may grow fourfold at the most: run all tests
with ATTNPY_RECORD_ACCURACY=1 to write the file anew.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

RECORDS = Path(__file__).with_name("accuracy.json")
ORDERS = 15
SLACK = 4  # how far a worst ratio may grow: the rule of SciPy's xsf
LEAST = (
    1 / 64
)  # of a cap. A smaller record means that these inputs happened to come out exact: no rule to hold others to
HALF = {"float16": (11, -14), "bfloat16": (8, -126)}  # bits of the significand, exponent of the smallest normal number
# Where longdouble is no wider than double, the oracle of a float64 result errs as much as the result may.
ORACLE_ERRS = 2 if np.finfo(np.longdouble).nmant <= 52 else 1

recorded = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}
worst = {}


class Expected(NamedTuple):
    """What one result of a call must be."""

    name: str
    wanted: np.ndarray
    cap: np.ndarray
    plain: np.ndarray | None = None  # NumPy's float32 formula
    slack: float = 0.0  # added to twice its largest error
    again: Callable[[np.random.Generator], np.ndarray] | None = None  # the formula with its sums in another order
    floor: np.ndarray | float = 0.0  # allowed besides, and no share of the cap: underflow, the last rounding


def unit(compute):
    """Unit roundoff u."""
    return 2.0**-24 if compute == np.float32 else 2.0**-53


def tiny(compute):
    return 2.0**-126 if compute == np.float32 else 2.0**-1022


def wider(compute):
    """The type of the oracle."""
    return np.float64 if compute == np.float32 else np.longdouble


def half_unit(dtype, magnitude):
    """Half a unit in the last place of a half storage type; 0 for float32 and float64."""
    if dtype.name not in HALF:
        return 0.0
    bits, lowest = HALF[dtype.name]
    _, exponent = np.frexp(np.asarray(magnitude, np.float64))  # magnitude = f 2^exponent, f in [1/2, 1)
    return np.ldexp(1.0, np.maximum(exponent - 1, lowest) - bits)


def level():
    import attnpy._core

    return attnpy._core.isa


def errors(got, wanted):
    """|got - wanted|; what is not finite must be the same: 0 or inf."""
    wide = np.asarray(got)
    wide = (wide if wide.dtype.kind == "f" else wide.astype(np.float64)).astype(wanted.dtype)
    with np.errstate(invalid="ignore"):
        apart = np.abs(wide - wanted).astype(np.float64)
        same = (wide == wanted) | (np.isnan(wide) & np.isnan(wanted))
    return np.where(same, 0.0, np.where(np.isfinite(wide) & np.isfinite(wanted), apart, np.inf))


def allowed_besides(got, expected):
    """The floor, and half a unit of a half storage type."""
    magnitude = np.where(np.isfinite(expected.wanted), np.abs(expected.wanted), 0) + expected.cap + expected.floor
    return expected.floor + half_unit(got.dtype, magnitude)


def assert_accurate(function, got, expected, label, ratchet=True):
    """Asserts the accuracy rule for one result and remembers the ratio. `label` says shape, dtype, layout, seed."""
    got = np.asarray(got)
    where = f"{function} {expected.name}: {label}"
    assert got.shape == expected.wanted.shape, f"{where}: shape {got.shape}, wanted {expected.wanted.shape}"
    if got.size == 0:
        return
    error = errors(got, expected.wanted)
    cap = np.broadcast_to(np.asarray(expected.cap, np.float64), error.shape)
    excess = error - allowed_besides(got, expected)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(excess <= 0, 0.0, np.where(error == np.inf, np.inf, excess / cap))
    at = np.unravel_index(np.argmax(ratio), ratio.shape)
    key = f"{function} {expected.name} {got.dtype.name} {level()}"
    recording = bool(os.environ.get("ATTNPY_RECORD_ACCURACY"))
    limit = min(1.0, max(LEAST, SLACK * recorded[key])) if ratchet and not recording and key in recorded else 1.0
    assert ratio[at] <= limit, (
        f"{where}: {key}: worst at {tuple(map(int, at))}: got {got[at]!r}, wanted {expected.wanted[at]!r}, "
        f"{ratio[at]:.3g} of the cap {cap[at]:.3g}; allowed {limit:.3g}"
    )
    if expected.plain is not None and not os.environ.get("ATTNPY_DEBUG_BLOCKS"):  # short blocks make long chains
        _compare_with_numpy(got, error, expected, where)
    if ratchet:
        worst[key] = max(worst.get(key, 0.0), float(ratio[at]))


def _compare_with_numpy(got, error, expected, where):
    """The largest error of few numbers is partly luck; where NumPy has had it, its sums are made in more orders."""
    theirs = errors(expected.plain, expected.wanted).max()
    for seed in range(ORDERS if expected.again else 0):
        if error.max() <= 2 * theirs + expected.slack:
            break
        theirs = max(theirs, errors(expected.again(np.random.default_rng(seed)), expected.wanted).max())
    allowed = 2 * theirs + expected.slack
    at = np.unravel_index(np.argmax(error), error.shape)
    assert error[at] <= allowed, (
        f"{where}: worst at {tuple(map(int, at))}: got {got[at]!r}, wanted {expected.wanted[at]!r}: "
        f"error {error[at]:.3g}; NumPy's float32 formula errs by {theirs:.3g}; "
        f"twice that and {expected.slack:.3g} are allowed"
    )


def merge_worst(seen):
    """Takes over what another process saw."""
    for key, ratio in seen.items():
        worst[key] = max(worst.get(key, 0.0), ratio)


def save():
    """Writes the worst ratios of this run; what it did not touch stays."""
    kept = {**recorded, **{key: float(f"{ratio:.3g}") for key, ratio in worst.items()}}
    RECORDS.write_text(json.dumps(dict(sorted(kept.items())), indent=0) + "\n", encoding="utf-8")


def same_bits(got, wanted, label):
    """Equal shape, dtype and bits; any NaN equals any other."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.dtype == wanted.dtype and got.shape == wanted.shape, (
        f"{label}: {got.dtype}{got.shape}, wanted {wanted.dtype}{wanted.shape}"
    )
    if got.size == 0:
        return
    word = np.dtype(f"u{got.itemsize}")
    differ = np.ascontiguousarray(got).view(word) != np.ascontiguousarray(wanted).view(word)
    if got.dtype.kind != "b":
        differ &= ~((got != got) & (wanted != wanted))
    if differ.any():
        at = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(differ)))
        first = (np.atleast_1d(got)[at], np.atleast_1d(wanted)[at])
        raise AssertionError(
            f"{label}: {differ.sum()} of {differ.size} elements differ; at {at} got {first[0]!r}, wanted {first[1]!r}"
        )
