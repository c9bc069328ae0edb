"""What the bounds of all functions are made with."""

import numpy as np
from numerics import ORACLE_ERRS

import attnpy

LANES = {"avx512": 64, "avx2": 32, "baseline": 16}  # bytes of a vector


def oracle_errs(compute):
    return ORACLE_ERRS if compute == np.float64 else 1


def exact_of(function, compute, arguments, exact):
    """The result of attnpy.reference for float32, of the longdouble formula for float64."""
    if compute == np.float64:
        return exact
    result = getattr(attnpy.reference, function)(**{k: v for k, v in arguments.items() if k != "out"})
    return result if isinstance(result, tuple) else (result,)


def finite(x):
    return np.where(np.isfinite(x), np.abs(x), 0).astype(np.float64)
