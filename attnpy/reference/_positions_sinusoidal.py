"""Sinusoidal encodings. Angles are float64 products: they err by position * 2**-52."""

import numpy as np


def sinusoidal_encoding(positions, dim, *, base=10000.0, layout="interleaved", denominator="dim", dtype=None):
    """y = (sin, cos)(p base^(-2i/dim)), or of p base^(-i/(F-1)): (...) -> (..., dim), float64 whatever dtype says."""
    integer = isinstance(positions, int | np.integer)
    p = np.arange(positions, dtype=np.float64) if integer else np.asarray(positions, np.float64)
    frequencies = (dim + 1) // 2 if layout == "interleaved" else dim // 2
    i = np.arange(frequencies)
    exponent = 2 * i / dim if denominator == "dim" else i / max(frequencies - 1, 1)
    with np.errstate(invalid="ignore"):  # an infinite position has no sine: NaN
        angle = p[..., None] * float(base) ** -exponent
        sine, cosine = np.sin(angle), np.cos(angle)
    y = np.zeros((*p.shape, dim))
    if layout == "interleaved":
        y[..., 0::2] = sine
        y[..., 1::2] = cosine[..., : dim // 2]
    else:
        y[..., :frequencies] = sine
        y[..., frequencies : 2 * frequencies] = cosine  # the last of an odd dim stays 0
    return y


def sinusoidal_encoding_2d(
    rows, columns, dim, *, base=10000.0, layout="interleaved", denominator="dim", order="rows_first", dtype=None
):
    """y = (enc(row), enc(column)), half of the features each: (R,), (C,) -> (R, C, dim)."""
    given = {"base": base, "layout": layout, "denominator": denominator}
    row = sinusoidal_encoding(rows, dim // 2, **given)[:, None]
    column = sinusoidal_encoding(columns, dim // 2, **given)[None, :]
    halves = np.broadcast_arrays(row, column)
    return np.concatenate(halves if order == "rows_first" else halves[::-1], -1)
