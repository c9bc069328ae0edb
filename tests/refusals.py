"""Inputs that must be refused: what is changed in a good call, the error, and what its text must name."""

import contextlib
import operator
from typing import NamedTuple

import ml_dtypes
import numpy as np
from refusals_rotary import ROTARY

import attnpy


class Refusal(NamedTuple):
    change: dict
    error: type | tuple
    text: str  # a regular expression; it names the argument
    why: str


def of(good, *rows):
    """Each row (what changes, error, text): a Refusal of the good call's arguments with that change."""
    return [Refusal({**good, **change}, error, text, _named(change)) for change, error, text in rows]


def _named(change):
    def short(x):
        if isinstance(x, np.ndarray):
            return f"{x.dtype}{list(x.shape)}"
        return "[...]" if isinstance(x, list | tuple) and any(isinstance(y, np.ndarray) for y in x) else repr(x)

    return ", ".join(f"{name}={short(x)}" for name, x in change.items())


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


class Text:
    """Converts to an array of strings."""

    def __array__(self, dtype=None, copy=None):
        return np.array(["a", "b"])


def _overlapping(*shape):
    """An array whose elements share memory."""
    return np.lib.stride_tricks.as_strided(np.zeros(shape[-1], np.float32), shape, (0,) * (len(shape) - 1) + (4,))


def _read_only(*shape):
    x = ones(*shape)
    x.setflags(write=False)
    return x


Q, K, V = ones(2, 4, 6, 5), ones(2, 2, 7, 5), ones(2, 2, 7, 3)  # B 2, H 4, G 2, L 6, S 7, E 5, D 3
KEY = attnpy.DropoutKey(1)
HALF = np.array(["a"], object)


def _typed(name, good):
    """Dtypes that no numeric operand may have."""
    shape = good.shape
    return [
        ({name: good.astype(complex)}, TypeError, name),
        ({name: good.astype(object)}, TypeError, name),
        ({name: good.astype("U3")}, TypeError, name),
        ({name: good.astype(np.longdouble)}, TypeError, name),
        ({name: good.astype("M8[s]")}, TypeError, name),
        (
            {name: np.ma.masked_array(good, np.zeros(shape, bool))},
            TypeError,
            f"{name}.*MaskedArray|MaskedArray.*{name}",
        ),
        ({name: Text()}, TypeError, name),
    ]


SCORES = [
    *_typed("query", Q),
    *_typed("key", K),
    ({"query": Q.astype(np.float16), "key": K.astype(ml_dtypes.bfloat16)}, TypeError, "query|key"),
    ({"query": ones(5)}, ValueError, "query"),
    ({"key": ones(5)}, ValueError, "key"),
    ({"query": np.float32(1)}, ValueError, "query"),
    ({"key": ones(2, 2, 7, 6)}, ValueError, "key"),
    ({"query": ones(2, 3, 6, 5)}, ValueError, "head|grad_output|query_tangent"),
    ({"query": ones(2, 1, 6, 5)}, ValueError, "head|grad_output|query_tangent"),
    ({"query": ones(3, 4, 6, 5)}, ValueError, "query|key"),
    ({"query": [[1.0, 2.0], [3.0]]}, ValueError, ""),
    ({"attn_mask": ones(6, 7, dtype=int)}, TypeError, r"attn_mask.*astype\(bool\)"),
    ({"attn_mask": ones(6, 7, dtype=np.uint8)}, TypeError, r"attn_mask.*astype\(bool\)"),
    ({"attn_mask": ones(6, 7, dtype=complex)}, TypeError, "attn_mask"),
    ({"attn_mask": ones(6, 7, dtype=object)}, TypeError, "attn_mask"),
    ({"attn_mask": ones(6, 8, dtype=bool)}, ValueError, "attn_mask has shape.*must broadcast"),
    ({"attn_mask": ones(5, 7, dtype=bool)}, ValueError, "attn_mask"),
    ({"attn_mask": ones(3, 2, 4, 6, 7, dtype=bool)}, ValueError, "attn_mask"),
    ({"attn_mask": ones(2, 7, dtype=bool)}, ValueError, r"attn_mask.*mask\[:, None, None, :\]"),
    ({"attn_mask": ones(2, 6, 7, dtype=bool)}, ValueError, r"attn_mask.*mask\[:, None\]"),
    ({"bias": ones(6, 8)}, ValueError, "bias"),
    ({"bias": ones(6, 7, dtype=complex)}, TypeError, "bias"),
    ({"scale": float("nan")}, ValueError, "scale"),
    ({"scale": float("inf")}, ValueError, "scale"),
    ({"scale": "one"}, TypeError, "scale"),
    ({"query": ones(2, 4, 6, 0), "key": ones(2, 2, 7, 0)}, ValueError, "scale|query_tangent"),
    ({"causal_offset": 1.0}, TypeError, "causal_offset"),
    ({"causal_offset": [1, 2, 3]}, ValueError, "causal_offset"),
    ({"window_size": (-2, 0)}, ValueError, "window_size"),
    ({"window_size": (0, -7)}, ValueError, "window_size"),
    ({"window_size": (1, 2, 3)}, (TypeError, ValueError), "window_size"),
    ({"window_size": 1.5}, TypeError, "window_size"),
    ({"softcap": -1.0}, ValueError, "softcap"),
    ({"softcap": float("nan")}, ValueError, "softcap"),
    ({"softcap": float("inf")}, ValueError, "softcap"),
    ({"alibi_slopes": ones(3)}, ValueError, "alibi_slopes"),
    ({"alibi_slopes": ones(4, dtype=complex)}, TypeError, "alibi_slopes"),
    ({"sinks": ones(5)}, ValueError, "sinks"),
    ({"sinks": ones(4, dtype=complex)}, TypeError, "sinks"),
    ({"query_lengths": [3, 7]}, ValueError, "query_lengths"),
    ({"query_lengths": [-1, 3]}, ValueError, "query_lengths"),
    ({"query_lengths": [1.0, 2.0]}, TypeError, "query_lengths"),
    ({"kv_lengths": [3, 8]}, ValueError, "kv_lengths"),
    ({"kv_lengths": [3, -(2**62)]}, ValueError, "kv_lengths"),
    ({"kv_lengths": [3, 2**63]}, (ValueError, TypeError), "kv_lengths"),
    ({"kv_lengths": [1, 2, 3]}, ValueError, "kv_lengths"),
    ({"kv_lengths": [True, False]}, TypeError, "kv_lengths"),
    ({"kv_lengths": [7, 5], "is_causal": True}, ValueError, "pass query_lengths for a padded batch, or causal_offset"),
    ({"kv_lengths": [7, 5], "window_size": 3}, ValueError, "query_lengths"),
    ({"kv_lengths": [7, 5], "alibi_slopes": ones(4)}, ValueError, "query_lengths"),
    *ROTARY,
]


# Of calls that have no gradient for it.
RELATIVE = [
    ({"relative_bias": ones(4, 1, 6)}, ValueError, "relative_bias.*its last axis must be 2K"),
    ({"relative_bias": 1.0}, ValueError, "relative_bias.*its last axis must be 2K"),
    ({"relative_bias": ones(4, 1, 0)}, ValueError, "relative_bias.*its last axis must be 2K"),
    ({"relative_bias": ones(3, 1, 5)}, ValueError, "relative_bias"),
    ({"relative_bias": ones(4, 2, 5)}, ValueError, "relative_bias"),
    ({"relative_bias": ones(3, 4, 1, 5)}, ValueError, "relative_bias"),
    ({"relative_bias": ones(1, 2, 4, 1, 5)}, ValueError, "relative_bias"),
    ({"relative_bias": ones(4, 1, 5, dtype=complex)}, TypeError, "relative_bias"),
    ({"relative_bias": ones(4, 1, 5, dtype=object)}, TypeError, "relative_bias"),
    ({"relative_bias": ones(4, 1, 5), "kv_lengths": [7, 5]}, ValueError, "query_lengths"),
]


def _out(*shape):
    """What no result may be written to."""
    return [
        ({"out": ones(*shape[:-1], shape[-1] + 1)}, ValueError, "out"),
        ({"out": ones(1, *shape)}, ValueError, "out"),
        ({"out": ones(*shape, dtype=np.float64)}, TypeError, "out"),
        ({"out": ones(*shape, dtype=np.dtype(np.float32).newbyteorder())}, TypeError, "out"),
        ({"out": ones(*shape).tolist()}, TypeError, "out"),
        ({"out": _read_only(*shape)}, ValueError, "out"),
        ({"out": _overlapping(*shape)}, ValueError, "out"),
    ]


SHARED = np.zeros(2 * 4 * 6 * 3, np.float32)  # one buffer for output and lse
FORWARD = of(
    {"query": Q, "key": K, "value": V},
    *SCORES,
    *RELATIVE,
    *_typed("value", V),
    ({"value": V.astype(np.float16), "key": K.astype(ml_dtypes.bfloat16)}, TypeError, "key|value"),
    ({"value": ones(2, 2, 8, 3)}, ValueError, "value"),
    ({"value": ones(2, 4, 7, 3)}, ValueError, "value"),
    ({"value": ones(7)}, ValueError, "value"),
    ({"dropout_p": 1.0, "rng": KEY}, ValueError, "dropout_p"),
    ({"dropout_p": -0.1, "rng": KEY}, ValueError, "dropout_p"),
    ({"dropout_p": float("nan"), "rng": KEY}, ValueError, "dropout_p"),
    ({"dropout_p": "half", "rng": KEY}, TypeError, "dropout_p"),
    ({"dropout_p": 0.5}, ValueError, "rng"),
    ({"dropout_p": 0.5, "rng": 5}, TypeError, "rng"),
    ({"dropout_p": 0.5, "rng": np.random.RandomState(0)}, TypeError, "rng"),
    *_out(2, 4, 6, 3),
    ({"return_lse": True, "out": ones(2, 4, 6, 3)}, TypeError, "out"),
    ({"return_lse": True, "out": (ones(2, 4, 6, 3),)}, (TypeError, ValueError), "out"),
    ({"return_lse": True, "out": (ones(2, 4, 6, 3), ones(2, 4, 5))}, ValueError, "out"),
    ({"return_lse": True, "out": (SHARED.reshape(2, 4, 6, 3), SHARED[:48].reshape(2, 4, 6))}, ValueError, "out"),
)
JVP = of(
    {"query": Q, "key": K, "value": V, "query_tangent": Q, "key_tangent": K, "value_tangent": V},
    *SCORES,
    *RELATIVE,
    *_typed("value", V),
    *_typed("query_tangent", Q),
    *_typed("value_tangent", V)[:2],
    ({"value": ones(2, 2, 8, 3)}, ValueError, "value"),
    ({"query_tangent": ones(2, 4, 6, 4)}, ValueError, r"query_tangent.*must broadcast to \(2, 4, 6, 5\)"),
    ({"query_tangent": ones(3, 2, 4, 6, 5)}, ValueError, "query_tangent"),
    ({"key_tangent": ones(2, 4, 7, 5)}, ValueError, "key_tangent"),
    ({"key_tangent": ones(2, 7)}, ValueError, "key_tangent.*must be 1 or 5$"),
    ({"value_tangent": ones(7, 5)}, ValueError, "value_tangent"),
    ({"bias_tangent": ones(6, 7)}, ValueError, "bias_tangent needs bias"),
    ({"bias": ones(6, 7), "bias_tangent": ones(5, 7)}, ValueError, "bias_tangent"),
    ({"bias": ones(6, 7), "bias_tangent": ones(6, 7, dtype=complex)}, TypeError, "bias_tangent"),
    ({"sinks_tangent": ones(4)}, ValueError, "sinks_tangent needs sinks"),
    ({"relative_bias_tangent": ones(4, 1, 5)}, ValueError, "relative_bias_tangent needs relative_bias"),
    ({"relative_bias": ones(5), "relative_bias_tangent": ones(3)}, ValueError, "relative_bias_tangent"),
    ({"relative_bias": ones(5), "relative_bias_tangent": ones(4, 2, 5)}, ValueError, "relative_bias_tangent"),
    ({"relative_bias": ones(5), "relative_bias_tangent": ones(5, dtype=complex)}, TypeError, "relative_bias_tangent"),
    ({"sinks": ones(4), "sinks_tangent": ones(3)}, ValueError, "sinks_tangent"),
    ({"dropout_p": 1.0, "rng": KEY}, ValueError, "dropout_p"),
    ({"dropout_p": float("nan"), "rng": KEY}, ValueError, "dropout_p"),
    ({"dropout_p": 0.5}, ValueError, "rng"),
    ({"dropout_p": 0.5, "rng": np.random.default_rng(0)}, TypeError, "DropoutKey"),
    ({"rng": np.random.default_rng(0)}, TypeError, "DropoutKey"),
    ({"out": ones(2, 4, 6, 3)}, TypeError, "out"),
    ({"out": (ones(2, 4, 6, 3),)}, ValueError, "out"),
    ({"out": (None, ones(2, 4, 6, 4))}, ValueError, r"out\[1\]"),
    ({"out": (None, ones(2, 4, 6, 3, dtype=np.float64))}, TypeError, r"out\[1\]"),
    ({"return_lse": True, "out": (None, None, None, ones(2, 4, 5))}, ValueError, r"out\[3\]"),
    ({"out": (SHARED.reshape(2, 4, 6, 3),) * 2}, ValueError, "out"),
)
WEIGHTS = of(
    {"query": Q, "key": K},
    *SCORES,
    *RELATIVE,
    *_out(2, 4, 6, 7),
    ({"rows": [6]}, (IndexError, ValueError), "rows"),
    ({"rows": [-7]}, (IndexError, ValueError), "rows"),
    ({"rows": [0.5]}, (IndexError, TypeError), "rows"),
    ({"rows": [[0]]}, ValueError, "rows"),
)
RECEIVED = of({"query": Q, "key": K}, *SCORES, *RELATIVE, *_out(2, 4, 7))
ROOM = np.zeros(2 * 4 * 6 * 5 + 2 * 2 * 7 * 5 - 1, np.float32)  # for two gradients but one element
DO, LSE = ones(2, 4, 6, 3), ones(2, 4, 6)
NEEDS = [
    ({"needs": "query"}, TypeError, "needs"),
    ({"needs": None}, TypeError, "needs"),
    ({"needs": 5}, TypeError, "needs"),
    ({"needs": (0,)}, TypeError, "needs"),
    ({"needs": ("query", "keys")}, ValueError, "needs.*'keys'"),
    ({"needs": ("grad_output",)}, ValueError, "needs"),
    ({"needs": ("query", "key", "query")}, ValueError, "needs.*'query' twice"),
    ({"needs": ("bias",)}, ValueError, "needs.*bias"),
    ({"needs": ("sinks",)}, ValueError, "needs.*sinks"),
    ({"needs": ("attn_mask",)}, ValueError, "needs.*attn_mask"),
    ({"needs": ("attn_mask",), "attn_mask": ones(6, 7, dtype=bool)}, ValueError, "attn_mask.*bool"),
    ({"needs": ("relative_bias",)}, ValueError, "relative_bias"),
    ({"out": ones(2, 4, 6, 5)}, TypeError, "out.*mapping"),
    ({"out": (ones(2, 4, 6, 5),)}, TypeError, "out.*mapping"),
    ({"out": {"query": ones(2, 4, 6, 5), "bias": ones(6, 7)}}, ValueError, "out.*'bias'"),
    ({"needs": ("key",), "out": {"query": ones(2, 4, 6, 5)}}, ValueError, "out.*'query'"),
    ({"out": {"key": ones(2, 4, 7, 5)}}, ValueError, "out|key"),
    ({"out": {"key": ones(2, 2, 7, 5, dtype=np.float64)}}, TypeError, "out|key"),
    ({"out": {"key": ones(2, 2, 7, 5).tolist()}}, TypeError, "out|key"),
    ({"out": {"key": _read_only(2, 2, 7, 5)}}, ValueError, "out|key"),
    ({"out": {"key": _overlapping(2, 2, 7, 5)}}, ValueError, "out|key"),
    ({"out": {"query": ROOM[:240].reshape(2, 4, 6, 5), "key": ROOM[239:].reshape(2, 2, 7, 5)}}, ValueError, "out"),
]
BACKWARD = of(
    {"grad_output": DO, "query": Q, "key": K, "value": V, "output": DO, "lse": LSE},
    *SCORES,
    *_typed("value", V),
    *_typed("grad_output", DO),
    *_typed("output", DO),
    *_typed("lse", LSE),
    *NEEDS,
    ({"grad_output": ones(2, 4, 6, 5)}, ValueError, "grad_output"),
    ({"grad_output": ones(2, 4, 5, 3)}, ValueError, "grad_output"),
    ({"grad_output": ones(3, 4, 6, 3)}, ValueError, "grad_output"),
    ({"output": ones(2, 4, 6, 4)}, ValueError, "output"),
    ({"output": ones(2, 3, 6, 3)}, ValueError, "output"),
    ({"lse": ones(2, 4, 5)}, ValueError, "lse"),
    ({"lse": ones(2, 4, 6, 1)}, ValueError, "lse"),
    ({"grad_lse": ones(2, 4, 7)}, ValueError, "grad_lse"),
    ({"grad_lse": ones(2, 4, 6, dtype=complex)}, TypeError, "grad_lse"),
    ({"value": ones(2, 2, 8, 3)}, ValueError, "value"),
    ({"dropout_p": 1.0, "rng": KEY}, ValueError, "dropout_p"),
    ({"dropout_p": "half", "rng": KEY}, TypeError, "dropout_p"),
    ({"dropout_p": 0.5}, ValueError, "rng"),
    ({"dropout_p": 0.5, "rng": 5}, TypeError, "rng.*DropoutKey"),
    ({"dropout_p": 0.5, "rng": np.random.default_rng(0)}, TypeError, "rng.*a Generator.*DropoutKey"),
    ({"rng": np.random.default_rng(0)}, TypeError, "rng.*a Generator.*DropoutKey"),
)
WEIGHTS_BACKWARD = of(
    {"grad_weights": ones(2, 4, 6, 7), "query": Q, "key": K},
    *SCORES,
    *_typed("grad_weights", ones(2, 4, 6, 7)),
    *NEEDS,
    ({"needs": ("value",)}, ValueError, "needs.*value"),
    ({"grad_weights": ones(2, 4, 6, 6)}, ValueError, "grad_weights"),
    ({"grad_weights": ones(2, 3, 6, 7)}, ValueError, "grad_weights"),
    ({"rows": [0, 1]}, ValueError, "grad_weights|rows"),
    ({"rows": [0, 1, 2, 3, 4, 6]}, (IndexError, ValueError), "rows"),
    ({"rows": [0.5] * 6}, (IndexError, TypeError), "rows"),
)
GRADIENTS = of({}, ({"gradient": 1}, TypeError, "gradient"))
PARTS, LSES = ones(3, 2, 5, 4), ones(3, 2, 5)
MERGE = of(
    {"outputs": PARTS, "lses": LSES},
    ({"outputs": PARTS.astype(complex)}, TypeError, "outputs"),
    ({"lses": LSES.astype(complex)}, TypeError, "lses"),
    ({"outputs": []}, ValueError, "outputs"),
    ({"outputs": PARTS[:2]}, ValueError, "outputs|lses"),
    ({"lses": LSES[:, :, :4]}, ValueError, "lses"),
    ({"outputs": [PARTS[0], PARTS[1][:, :4]], "lses": LSES[:2]}, ValueError, "outputs"),
    ({"outputs": [PARTS[0], PARTS[1].astype(complex)], "lses": LSES[:2]}, TypeError, "outputs"),
    ({"outputs": 5}, (TypeError, ValueError), "outputs"),
    ({"out": (ones(2, 5, 3), ones(2, 5))}, ValueError, "out"),
    ({"out": ones(2, 5, 4)}, TypeError, "out"),
)
MERGE_BACKWARD = of(
    {"grad_output": PARTS[0], "outputs": PARTS, "lses": LSES, "output": PARTS[0], "lse": LSES[0], "grad_lse": LSES[0]},
    *_typed("grad_output", PARTS[0])[:6],
    *_typed("output", PARTS[0])[:6],
    *_typed("lse", LSES[0])[:6],
    *_typed("grad_lse", LSES[0])[:6],
    ({"outputs": PARTS.astype(complex)}, TypeError, "outputs"),
    ({"lses": LSES.astype(complex)}, TypeError, "lses"),
    ({"outputs": []}, ValueError, "outputs"),
    ({"outputs": 5}, (TypeError, ValueError), "outputs"),
    ({"lses": LSES[:2]}, ValueError, "outputs has 3 parts and lses 2"),
    ({"grad_output": ones(5, 4)}, ValueError, r"grad_output has shape \(5, 4\).*\(2, 5, 4\)"),
    ({"grad_output": ones(2, 5, 3)}, ValueError, "grad_output"),
    ({"output": ones(3, 2, 5, 4)}, ValueError, "has shape"),
    ({"lse": ones(1, 5)}, ValueError, "lse has shape"),
    ({"grad_lse": ones(2, 4)}, ValueError, "grad_lse has shape"),
    ({"lse": None}, TypeError, "lse"),
    ({"output": None}, TypeError, "output"),
    ({"grad_output": None}, TypeError, "grad_output"),
    ({"out": ones(3, 2, 5, 4)}, TypeError, "out"),
    ({"out": (None,)}, ValueError, "out has 1 entries"),
    ({"out": (ones(3, 2, 5, 3), None)}, ValueError, r"out\[0\]"),
    ({"out": (None, ones(3, 2, 5, dtype=np.float64))}, TypeError, r"out\[1\]"),
    ({"out": (SHARED[:120].reshape(3, 2, 5, 4), SHARED[:30].reshape(3, 2, 5))}, ValueError, "share"),
    ({"outputs": list(PARTS), "out": (ones(3, 2, 5, 4), None)}, TypeError, r"out\[0\]"),
    ({"outputs": list(PARTS), "out": ((None, None), None)}, ValueError, r"out\[0\] has 2 entries; it must have 3"),
    ({"outputs": list(PARTS), "out": ((None, ones(5), None), None)}, ValueError, r"out\[0\]\[1\]"),
    ({"outputs": list(PARTS), "out": ((PARTS[2].copy(),) * 3, None)}, ValueError, "share"),
)
DROPOUT_MASK = of(
    {"shape": (2, 3, 5), "dropout_p": 0.5, "key": KEY, "dtype": np.float32},
    ({"key": np.random.default_rng(0)}, TypeError, "DropoutKey"),
    ({"key": (1, 2, 3, 4)}, TypeError, "DropoutKey"),
    ({"dropout_p": 1.0}, ValueError, "dropout_p"),
    ({"dropout_p": -1}, ValueError, "dropout_p"),
    ({"dropout_p": float("nan")}, ValueError, "dropout_p"),
    ({"dtype": np.complex64}, TypeError, "dtype"),
    ({"dtype": np.int32}, TypeError, "dtype"),
    ({"dtype": np.longdouble}, TypeError, "dtype"),
    ({"shape": (5,)}, ValueError, "shape"),
    ({"shape": (2, -3, 5)}, ValueError, "shape"),
    ({"shape": (2, 3.5, 5)}, TypeError, "shape"),
    ({"shape": (2**62, 2**62, 5, 5)}, (ValueError, MemoryError), ""),
)
DROPOUT_KEY = of(
    {}, ({"rng": 5}, TypeError, "rng"), ({"rng": KEY}, TypeError, "rng"), ({"rng": None}, TypeError, "rng")
)
DROPOUT_KEY_TYPE = of(
    {},
    ({"key": -1}, ValueError, "key"),
    ({"key": 2**128}, ValueError, "key"),
    ({"key": [1, 2, 3]}, ValueError, "key"),
    ({"key": [1, 2, 3, 2**32]}, ValueError, "key"),
    ({"key": 0.5}, TypeError, "key"),
    ({"key": "1234"}, TypeError, "key"),
)
NUM_THREADS = of(
    {},
    ({"num_threads": 0}, ValueError, "num_threads"),
    ({"num_threads": -3}, ValueError, "num_threads"),
    ({"num_threads": 1025}, ValueError, "num_threads"),
    ({"num_threads": 2**70}, (ValueError, OverflowError), "num_threads"),
    ({"num_threads": 2.0}, TypeError, "num_threads"),
    ({"num_threads": None}, TypeError, "num_threads"),
)
ENTERED = NUM_THREADS  # on entering
NO_ARGUMENTS = of({}, ({"num_threads": 1}, TypeError, "num_threads"))
SHOW_CONFIG = of({}, ({"mode": "text"}, ValueError, "mode"))


def attempt(function, arguments):
    """Calls a public function or constructor; enters what it returns if that is a context."""
    result = operator.attrgetter(function)(attnpy)(**arguments)
    if isinstance(result, contextlib.AbstractContextManager) or hasattr(result, "__enter__"):
        with result:
            pass
    return result
