"""ALiBi: slopes and the bias they make."""

import math

import numpy as np


def alibi_slopes(num_heads):
    """slope_h = 2^(-8 (h + 1) / n) for a power of two n; else those of the one below, then every other of 2 n: (H,)."""
    if num_heads == 0:
        return np.empty(0)
    below = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8 * h / below) for h in range(1, below + 1)]
    if below < num_heads:
        slopes += [2.0 ** (-8 * h / (2 * below)) for h in range(1, 2 * below + 1)][::2]
    return np.array(slopes[:num_heads])


def alibi_bias(slopes, query_length, key_length, *, offset=None):
    """bias_hij = - slope_h |i + offset - j|: (..., H) -> (..., H, L, S)."""
    slopes = np.asarray(slopes, np.float64)
    offset = np.asarray(key_length - query_length if offset is None else offset)
    i, j = np.arange(query_length)[:, None], np.arange(key_length)
    distance = np.abs(i + offset[..., None, None, None] - j)  # (..., 1, L, S)
    return 0.0 - slopes[..., None, None] * distance
