"""What the tests of the engine share: small operands whose axes all differ, and one comparison, of bits."""

import ml_dtypes
import numpy as np

import attnpy

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATING = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
sdpa = attnpy.scaled_dot_product_attention


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def operands(batch=(2,), H=4, G=2, L=6, S=7, E=5, D=3, dtype=np.float32):
    return (
        normal(*batch, H, L, E, dtype=dtype),
        normal(*batch, G, S, E, dtype=dtype, seed=1),
        normal(*batch, G, S, D, dtype=dtype, seed=2),
    )


QUERY, KEY, VALUE = operands()
WANTED = sdpa(QUERY, KEY, VALUE)


def same(got, wanted):
    assert isinstance(got, type(wanted)) and got.dtype == wanted.dtype and got.shape == wanted.shape
    assert got.tobytes() == wanted.tobytes()


class Subclass(np.ndarray):
    pass
