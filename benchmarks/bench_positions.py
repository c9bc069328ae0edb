"""Positions: what is made of them before attention, beside copies of the same arrays and others' formulas."""

import numpy as np
from bench_masks import made
from harness import Row, Work

import attnpy


def rows():
    yield from relative()


# --- ALiBi and T5


def relative():
    slopes = attnpy.alibi_slopes(8).astype(np.float32)
    yield Row("alibi_slopes", "H112", made(lambda: attnpy.alibi_slopes(112)))
    yield Row("alibi_bias", "H8 L2048 S2048 float32", alibi_bias(slopes, 2048), ("memcpy", 0.9))
    distances = np.arange(2048) - np.arange(2048)[:, None]
    yield Row("relative_position_bucket", "2048 x 2048 int64", buckets(distances))
    table = np.random.default_rng(0).standard_normal((32, 8), np.float32)
    bias = attnpy.t5_relative_bias(table, 2048, 2048)
    yield Row("t5_relative_bias", "H8 L2048 S2048", made(lambda: attnpy.t5_relative_bias(table, 2048, 2048)))
    backward = made(lambda: attnpy.t5_relative_bias_backward(bias, table, 2048, 2048))
    yield Row("t5_relative_bias_backward", "H8 L2048 S2048", backward)


def alibi_bias(slopes, length):
    """Bytes are those written; a copy reads as many besides."""

    def prepare(wanted):
        out = np.empty((len(slopes), length, length), np.float32)
        distance = np.abs(np.arange(length) - np.arange(length)[:, None]).astype(np.float32)
        compared = {}
        if "numpy" in wanted:
            compared["numpy"] = lambda: -slopes[:, None, None] * distance
        if "torch" in wanted:
            import torch

            slope, far = torch.from_numpy(slopes), torch.from_numpy(distance)
            compared["torch"] = lambda: (-slope[:, None, None] * far).numpy()
        return Work(
            ours=lambda: attnpy.alibi_bias(slopes, length, length, out=out),
            bytes=out.nbytes,
            yardsticks=("memcpy",),
            memory=[(out, np.empty_like(out))],
            peers=compared,
            tolerance=1e-4,
        )

    return prepare


def buckets(distances):
    """Beside the formula in floating point."""

    def prepare(wanted):
        others = {}
        if "numpy" in wanted:
            others["numpy"] = lambda: by_logarithm(distances)
        return made(lambda: attnpy.relative_position_bucket(distances), others)(wanted)

    return prepare


def by_logarithm(x, num_buckets=32, max_distance=128):
    n = num_buckets // 2
    m, d = n // 2, np.abs(x)
    far = m + (np.log(np.maximum(d, m) / m) / np.log(max_distance / m) * (n - m)).astype(np.int64)
    return n * (x > 0) + np.where(d < m, d, np.minimum(far, n - 1))
