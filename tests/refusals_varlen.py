"""Inputs that functions on packed sequences must refuse."""

import ml_dtypes
import numpy as np
from refusals import KEY, _out, _typed, of, ones

T, H = 9, 4
Q, K, V = ones(T, H, 5), ones(11, 2, 5), ones(11, 2, 3)
STARTS = {"cu_seqlens_q": np.array([0, 4, 7]), "cu_seqlens_k": np.array([0, 5, 11])}
LSE, DO = ones(H, T), ones(T, H, 3)


def _starts(name, end):
    """Cumulative lengths that are none."""
    return [
        ({name: np.array([0, 4, end + 1])}, ValueError, f"{name} holds {end + 1}.*exceed the {end} rows"),
        ({name: np.array([0, 2**62, end])}, ValueError, f"{name} holds"),
        ({name: np.array([0, 5, 4])}, ValueError, f"{name} holds 4 after 5.*must not decrease"),
        ({name: np.array([0, -1, 4])}, ValueError, f"{name} holds -1"),
        ({name: np.array([1, 4, 7])}, ValueError, f"{name} begins with 1"),
        ({name: np.array([-1, 4, 7])}, ValueError, f"{name} begins with -1"),
        ({name: [0, 4, 2**70]}, ValueError, name),
        ({name: np.array([], int)}, ValueError, f"{name} has shape.*one axis"),
        ({name: np.array(0)}, ValueError, f"{name} has shape.*one axis"),
        ({name: np.array([[0, 4, 7]])}, ValueError, f"{name} has shape.*one axis"),
        ({name: np.array([0.0, 4.0, 7.0])}, TypeError, name),
        ({name: np.array([False, True, True])}, TypeError, name),
        ({name: np.array([0, 4])}, ValueError, "cu_seqlens_q holds .* sequences and cu_seqlens_k"),
        ({name: None}, TypeError, name),
    ]


# Two sequences: query rows stand at 1 ... 4 and 3 ... 5, keys at 0 ... 4 and 0 ... 5.
ROTARY = [
    ({"rotary": (ones(5, 2), ones(5, 2))}, ValueError, "query row 2 stands at position 5; rotary has rows 0 ... 4"),
    ({"rotary": (ones(6, 2), ones(6, 2)), "causal_offset": [0, -1]}, ValueError, "query row 0 stands at position -1"),
    ({"rotary": (ones(6, 4), ones(6, 2))}, ValueError, "rotary"),
    ({"rotary": (ones(6, 2), ones(6, 2)), "query_positions": [0] * 8}, ValueError, "query_positions"),
    ({"rotary": (ones(6, 2), ones(6, 2)), "query_positions": [0, 0, 0, 0, 6, 0, 0, 9, 9]}, ValueError, "holds 6"),
    ({"rotary": (ones(6, 2), ones(6, 2)), "key_positions": [[0] * 11]}, ValueError, "key_positions"),
    ({"key_positions": [0] * 11}, ValueError, "key_positions needs rotary"),
]
_SHARED = [
    *_typed("query", Q),
    *_typed("key", K),
    *_typed("value", V),
    *_starts("cu_seqlens_q", T),
    *_starts("cu_seqlens_k", 11),
    ({"query": Q.astype(np.float16), "key": K.astype(ml_dtypes.bfloat16)}, TypeError, "query|key"),
    ({"query": ones(T, 5)}, ValueError, "query has shape.*3 axes"),
    ({"key": ones(11, 5)}, ValueError, "key has shape.*3 axes"),
    ({"value": ones(1, 11, 2, 3)}, ValueError, "value has shape.*3 axes"),
    ({"key": ones(11, 2, 6)}, ValueError, "key"),
    ({"value": ones(12, 2, 3)}, ValueError, "value"),
    ({"value": ones(11, 4, 3)}, ValueError, "value"),
    ({"query": ones(T, 3, 5)}, ValueError, "heads|grad_output"),
    ({"attn_mask": ones(4, 5, dtype=bool)}, TypeError, "attn_mask"),
    ({"bias": ones(4, 5)}, TypeError, "bias"),
    ({"kv_lengths": [3, 3]}, TypeError, "kv_lengths"),
    ({"query_lengths": [3, 3]}, TypeError, "query_lengths"),
    ({"scale": float("nan")}, ValueError, "scale"),
    ({"query": ones(T, H, 0), "key": ones(11, 2, 0)}, ValueError, "scale"),
    ({"causal_offset": [1, 2, 3]}, ValueError, "causal_offset"),
    ({"causal_offset": 1.5}, TypeError, "causal_offset"),
    ({"window_size": (-2, 0)}, ValueError, "window_size"),
    ({"softcap": -1.0}, ValueError, "softcap"),
    ({"alibi_slopes": ones(3)}, ValueError, "alibi_slopes"),
    ({"alibi_slopes": ones(3, 4)}, ValueError, "alibi_slopes"),
    ({"sinks": ones(5)}, ValueError, "sinks"),
    ({"sinks": ones(1, 2, 4)}, ValueError, "sinks"),
    ({"dropout_p": 1.0, "rng": KEY}, ValueError, "dropout_p"),
    ({"dropout_p": 0.5}, ValueError, "rng"),
    ({"dropout_p": 0.5, "rng": 5}, TypeError, "rng"),
    *ROTARY,
]
VARLEN = of(
    {"query": Q, "key": K, "value": V, **STARTS},
    *_SHARED,
    ({"relative_bias": ones(H, 1, 4)}, ValueError, "relative_bias.*its last axis must be 2K"),
    ({"relative_bias": ones(H, T + 1, 5)}, ValueError, "relative_bias"),
    ({"relative_bias": ones(5, H, 1, 5)}, ValueError, "relative_bias"),
    ({"relative_bias": ones(3, 1, 5)}, ValueError, "relative_bias"),
    ({"relative_bias": ones(H, 1, 5, dtype=complex)}, TypeError, "relative_bias"),
    *_out(T, H, 3),
    ({"return_lse": True, "out": ones(T, H, 3)}, TypeError, "out"),
    ({"return_lse": True, "out": (None, ones(T, H))}, ValueError, r"out\[1\]"),
)
VARLEN_BACKWARD = of(
    {"grad_output": DO, "query": Q, "key": K, "value": V, "output": DO, "lse": LSE, **STARTS},
    *_SHARED,
    *_typed("grad_output", DO),
    *_typed("output", DO),
    *_typed("lse", LSE),
    ({"grad_output": None}, TypeError, "grad_output"),
    ({"output": None}, TypeError, "output"),
    ({"lse": None}, TypeError, "lse"),
    ({"grad_output": ones(T, H, 5)}, ValueError, "grad_output"),
    ({"grad_output": ones(1, T, H, 3)}, ValueError, "grad_output"),
    ({"output": ones(8, H, 3)}, ValueError, "output"),
    ({"lse": ones(T, H)}, ValueError, "lse"),
    ({"grad_lse": ones(H, 8)}, ValueError, "grad_lse"),
    ({"rng": np.random.default_rng(0)}, TypeError, "rng.*DropoutKey"),
    ({"needs": ("attn_mask",)}, ValueError, "needs.*attn_mask"),
    ({"needs": ("sinks",)}, ValueError, "needs.*sinks"),
    ({"needs": "query"}, TypeError, "needs"),
    ({"out": {"key": ones(11, 2, 6)}}, ValueError, r"out\['key'\]"),
    ({"out": {"query": ones(T, H, 5, dtype=np.float64)}}, TypeError, r"out\['query'\]"),
    ({"out": {"sinks": ones(4)}}, ValueError, "out holds 'sinks'"),
)
