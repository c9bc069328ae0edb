"""What the results of ALiBi's and T5's helpers must be, and how far they may be off."""

import math

import numpy as np
import oracle
from numerics import Expected, unit

import attnpy


def _exact(function, arguments):
    return getattr(attnpy.reference, function)(**{k: v for k, v in arguments.items() if k != "out"})


def alibi_bias(arguments):
    """Distances are exact: one product is rounded."""
    wanted = _exact("alibi_bias", arguments)
    return [Expected("bias", wanted, unit(oracle.compute_type(arguments["slopes"])) * np.abs(wanted))]


def relative_position_bucket(arguments):
    return [Expected("bucket", _exact("relative_position_bucket", arguments), np.float64(0))]


def t5_relative_bias(arguments):
    return [Expected("bias", _exact("t5_relative_bias", arguments), np.float64(0))]


def t5_relative_bias_backward(arguments):
    """Chains of at most 64, whose sums are added one after another."""
    gradient, table = arguments["grad_output"], arguments["table"]
    steps = 64 + math.ceil(gradient.shape[-1] / 64)
    wanted = _exact("t5_relative_bias_backward", arguments)
    total = _exact("t5_relative_bias_backward", {**arguments, "grad_output": np.abs(gradient.astype(np.float64))})
    return [Expected("gradient", wanted, unit(oracle.compute_type(gradient, table)) * steps * total)]
