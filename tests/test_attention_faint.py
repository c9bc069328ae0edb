"""Tiles whose weights are all far below their row's largest, as steep ALiBi slopes make them."""

import numerics
import numpy as np
import pytest
from inputs import TYPES, check, operands

import attnpy

STEEP = [0.5, 3.0]  # a block of 64 keys on, weights are 2^-46 and 2^-277 of the largest
SIZES = [(1, 300), (5, 300), (70, 700), (200, 331)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", ["small", "plain", "large"])
def test_accuracy(sizes, dtype, size):
    """Values for which faint weights times values are below the normal numbers, and such for which they matter."""
    L, S = sizes
    factor = 10.0 ** ({"small": -1, "plain": 0, "large": 1}[size] * (3 if dtype == "float16" else 30))
    query, key, value = operands(np.random.default_rng(L), TYPES[dtype], batch=(), H=2, G=1, L=L, S=S)
    value = (value.astype(np.float64) * factor).astype(TYPES[dtype])
    for slopes in (STEEP, [-0.5, 40.0], [1.0, 0.0]):
        for more in ({"causal_offset": 0}, {"causal_offset": S // 2}, {"causal_offset": 0, "window_size": (-1, 250)}):
            check(query, key, value, alibi_slopes=slopes, constructed=True, note=f"{slopes} {more}", **more)


@pytest.mark.parametrize("values", ["plain", "tiny", "nan"])
def test_a_row_does_not_know_whether_its_neighbours_are_faint(values):
    """Other rows get a bias or a mask of their own: this one keeps its bits."""
    rng = np.random.default_rng(1)
    query, key, value = operands(rng, np.float32, batch=(2,), H=2, G=1, L=130, S=700)
    if values == "tiny":
        value *= np.float32(1e-35)
    if values == "nan":
        value[rng.random(value.shape) < 0.01] = np.nan
    options = {"alibi_slopes": STEEP, "causal_offset": 0}
    plain = attnpy.scaled_dot_product_attention(query, key, value, **options)
    whole = attnpy.scaled_dot_product_attention(query, key, value, bias=np.zeros((130, 700)), **options)
    for row in (0, 37, 64, 129):
        others = np.arange(130)[:, None] != row
        bias = np.where(others, 50 * rng.standard_normal((130, 700)), 0)
        got = attnpy.scaled_dot_product_attention(query, key, value, bias=bias, **options)
        numerics.same_bits(got[:, :, row], whole[:, :, row], f"row {row}, bias")
        mask = ~others | (rng.random((130, 700)) < 0.5)
        got = attnpy.scaled_dot_product_attention(query, key, value, mask, **options)
        numerics.same_bits(got[:, :, row], plain[:, :, row], f"row {row}, mask")


def test_tangents_leave_the_output_its_bits():
    query, key, value = operands(np.random.default_rng(2), np.float32, batch=(), H=2, G=1, L=130, S=700)
    options = {"alibi_slopes": STEEP, "causal_offset": 0}
    wanted = attnpy.scaled_dot_product_attention(query, key, value, **options)
    got, tangent = attnpy.scaled_dot_product_attention_jvp(query, key, value, query, key, value, **options)
    numerics.same_bits(got, wanted, "output")
    assert np.isfinite(tangent).all()
