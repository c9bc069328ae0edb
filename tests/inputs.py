"""Operands for the tests of single families, every attention option by name, and calls held to the accuracy rule.

An option is a function of (rng, batch, H, L, S) that gives keyword arguments; numbers come from `rng` alone.
"""

import math
import zlib

import bounds
import ml_dtypes
import numerics
import numpy as np
import oracle
from cases_rotary import rotary_tables

import attnpy

TYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def seed_of(*parts):
    """A seed that a test's name and parameters fix."""
    return zlib.crc32(repr(parts).encode())


def operands(rng, dtype, *, batch=(2,), H=4, G=None, L=5, S=7, E=8, D=None):
    """query (batch, H, L, E), key (batch, G, S, E) and value (batch, G, S, D) of unit variance."""
    G, D = H if G is None else G, E if D is None else D
    shapes = (*batch, H, L, E), (*batch, G, S, E), (*batch, G, S, D)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def check(query, key, value, *, note="", constructed=False, **options):
    """One call with its log-sum-exp, held to the accuracy rule. Returns both."""
    arguments = {"query": query, "key": key, "value": value, "return_lse": True, **options}
    return check_call("scaled_dot_product_attention", arguments, note, constructed)


def check_call(name, arguments, note="", constructed=False, ratchet=True):
    """Calls a function and holds each of its results to the accuracy rule. NaN and infinities are taken to be hidden.

    Inputs constructed so that rounding errors add up, or that float32 happens to hold exactly, meet the cap alone.
    Without `ratchet` the worst ratio on record plays no part.
    """
    got = getattr(attnpy, name)(**arguments)
    results = [x for x in got if x is not None] if isinstance(got, tuple) else [got]  # of gradients those asked for
    shown = {
        name: f"{np.asarray(x).dtype}{np.shape(x)}" if np.ndim(x) else repr(x).splitlines()[0]
        for name, x in arguments.items()
        if x is not None
    }
    label = ", ".join([note, *(f"{name} {x}" for name, x in shown.items())])
    clean = oracle.spelt_out(arguments)
    clean = {name: finite(x) if name in DATA else x for name, x in clean.items() if x is not None}
    expected = getattr(bounds, name)(clean)
    for result, wanted in zip(results, expected, strict=True):
        if constructed:
            wanted = wanted._replace(plain=None)
        numerics.assert_accurate(name, result, wanted, label, ratchet=ratchet and not constructed)
    return got


DATA = ("query", "key", "value", "grad_output", "output", "grad_weights")


def finite(x):
    x = np.asarray(x)
    return np.where(np.isfinite(x), x, np.zeros((), x.dtype))


GRADIENTS = attnpy.AttentionGradients._fields


def backward_of(query, key, value, *, random, grad_lse=True, needs=None, **options):
    """The arguments of the backward function: those of a forward, what it returns, and random gradients of that."""
    output, lse = attnpy.scaled_dot_product_attention(query, key, value, **options, return_lse=True)
    given = {"query": query, "key": key, "value": value, **options}
    given |= {"grad_output": random.standard_normal(output.shape).astype(output.dtype), "output": output, "lse": lse}
    if grad_lse:
        given["grad_lse"] = random.standard_normal(lse.shape).astype(lse.dtype)
    return given | {"needs": differentiable(given) if needs is None else needs}


def differentiable(given):
    """The operands that have a gradient."""
    given = oracle.spelt_out(given)
    return tuple(name for name in GRADIENTS if name in given and np.asarray(given[name]).dtype != bool)


def check_gradients(query, key, value, *, random, note="", constructed=False, **options):
    """All gradients of a call, held to the accuracy rule."""
    arguments = backward_of(query, key, value, random=random, **options)
    return check_call("scaled_dot_product_attention_backward", arguments, note, constructed)


def assert_same_gradients(got, wanted, note=""):
    """The same fields with the same bits."""
    for name, ours, theirs in zip(got._fields, got, wanted, strict=True):
        assert (ours is None) == (theirs is None), f"{note}: {name}"
        if ours is not None:
            numerics.same_bits(ours, theirs, f"{note}: {name}")


def assert_central_differences(loss, gradient, arguments, name, cap, note):
    """The gradient of `loss` by one operand, against (f(x + h) - f(x - h)) / 2h for two h, extrapolated to h = 0.

    The error of the difference is c h^2 + O(h^4), so that a third of what the two differ by is the larger one's error
    but for the rest; twice as much is allowed, and what rounding loss to `cap` of it makes at the smaller h.
    """
    x, h = np.asarray(arguments[name]), 2.0**-10
    for place in np.ndindex(x.shape):
        if not np.isfinite(x[place]):
            assert gradient[place] == 0, f"{note}: {name}{list(place)} is hidden and has a gradient"
            continue
        slopes = []
        for step in (h, h / 2):
            both = []
            for moved in (x[place] + step, x[place] - step):
                other = x.copy()
                other[place] = moved
                both.append(loss(**{**arguments, name: other}))
            slopes.append((both[0] - both[1]) / (2 * step))
        wanted = (4 * slopes[1] - slopes[0]) / 3
        allowed = abs(slopes[1] - slopes[0]) * 2 / 3 + 4 * cap / h
        assert abs(gradient[place] - wanted) <= allowed, (
            f"{note}: {name}{list(place)}: gradient {gradient[place]!r}, difference {wanted!r}, {allowed:.2g} allowed"
        )


def some_kept(rng, shape, share=0.7):
    """A boolean mask with about `share` of True; a few whole rows of False, where there are several rows."""
    kept = rng.random(shape) < share
    rows = kept.reshape(-1, shape[-1])
    if len(rows) > 3:
        rows[rng.integers(len(rows), size=len(rows) // 9 + 1)] = False
    return kept


def some_hidden(rng, shape):
    """Normal numbers with -inf in a few places."""
    return np.where(some_kept(rng, shape, 0.8), rng.standard_normal(shape), -np.inf)


def lengths(rng, batch, longest):
    """Lengths in 0 ... longest; the first is 0 or the longest every other time."""
    length = rng.integers(0, longest + 1, batch)
    if math.prod(batch) > 1:
        length.flat[0] = rng.choice([0, longest])
    return length


OPTIONS = {
    "bool mask": lambda rng, b, H, L, S: {"attn_mask": some_kept(rng, (*b, H, L, S))},
    "mask of keys": lambda rng, b, H, L, S: {"attn_mask": some_kept(rng, (*b, 1, 1, S))},
    "mask of heads": lambda rng, b, H, L, S: {"attn_mask": some_kept(rng, (H, L, S))},
    "float mask": lambda rng, b, H, L, S: {"attn_mask": some_hidden(rng, (*b, 1, L, S))},
    "bias": lambda rng, b, H, L, S: {"bias": some_hidden(rng, (H, L, S))},
    "bias of keys": lambda rng, b, H, L, S: {"bias": some_hidden(rng, (*b, H, 1, S))},
    "causal": lambda rng, b, H, L, S: {"is_causal": True},
    "offset": lambda rng, b, H, L, S: {"is_causal": True, "causal_offset": rng.integers(-L - 2, S + 3, b)},
    "window": lambda rng, b, H, L, S: {"window_size": tuple(int(n) for n in rng.integers(0, S + 1, 2))},
    "left window": lambda rng, b, H, L, S: {"window_size": (int(rng.integers(0, S // 2 + 1)), -1)},
    "softcap": lambda rng, b, H, L, S: {"softcap": 0.8},
    "scale": lambda rng, b, H, L, S: {"scale": -0.37},
    "alibi": lambda rng, b, H, L, S: {"alibi_slopes": 2.0 ** -rng.uniform(0, 8, (*b, H))},
    "sinks": lambda rng, b, H, L, S: {"sinks": rng.normal(0, 3, H)},
    "query_lengths": lambda rng, b, H, L, S: {"query_lengths": lengths(rng, b, L)},
    "kv_lengths": lambda rng, b, H, L, S: {"kv_lengths": lengths(rng, b, S)},
    "rotary": lambda rng, b, H, L, S: {
        "rotary": rotary_tables(40, 1, np.float32),
        "rotary_interleaved": True,
        "query_positions": rng.integers(0, 40, (*b, L)),
        "key_positions": rng.integers(0, 40, (*b, S)),
    },
    "dropout": lambda rng, b, H, L, S: {"dropout_p": 0.3, "rng": attnpy.DropoutKey(int(rng.integers(2**62)))},
    "relative": lambda rng, b, H, L, S: {"relative_bias": rng.normal(size=(H, 1, 2 * int(rng.integers(0, S + 3)) + 1))},
    "relative rows": lambda rng, b, H, L, S: {
        "relative_bias": some_hidden(rng, (*b, H, L, 2 * int(rng.integers(6)) + 1))
    },
}


def options_of(names, rng, batch, H, L, S):
    """The options `names` together, or None where two of them are the same argument.

    Where lengths would leave the positions open, an offset is given.
    """
    together = {}
    for name in names:
        option = OPTIONS[name](rng, batch, H, L, S)
        if (together.keys() & option.keys()) - {"is_causal"}:
            return None
        together |= option
    positional = together.keys() & {"is_causal", "window_size", "alibi_slopes", "relative_bias"}
    if positional and "kv_lengths" in together and "query_lengths" not in together:
        together.setdefault("causal_offset", rng.integers(-L, S + 1, batch))
    return together


def explicit_mask(L, S, offset=None, causal=False, left=-1, right=-1):
    """What causal rule and window let be seen, (L, S), by Python's own unbounded integers."""
    offset = S - L if offset is None else int(offset)
    seen = np.zeros((L, S), bool)
    for i in range(L):
        for j in range(S):
            ahead = j - (i + offset)
            seen[i, j] = (not causal or ahead <= 0) and (left < 0 or ahead >= -left) and (right < 0 or ahead <= right)
    return seen
