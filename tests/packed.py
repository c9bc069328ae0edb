"""Packed sequences cut into calls of their own, and what those give put together again."""

import numpy as np

from attnpy.reference._attention_varlen import SequenceKey

QUERY_ROWS = ("query", "grad_output", "output")  # (T, H, E or D)
KEY_ROWS = ("key", "value")
LSES = ("lse", "grad_lse")  # (H, T)
PER_SEQUENCE = {"causal_offset": (), "alibi_slopes": ("H",), "sinks": ("H",)}


def heads_first(x):
    """(rows, heads, columns) ↔ (heads, rows, columns)."""
    return x.swapaxes(0, 1)


def sequences(arguments):
    """(query rows, keys, arguments of scaled_dot_product_attention or its backward) of each sequence."""
    starts = [np.asarray(arguments[name]).tolist() for name in ("cu_seqlens_q", "cu_seqlens_k")]
    slices = (map(slice, x[:-1], x[1:]) for x in starts)
    for n, (rows, keys) in enumerate(zip(*slices, strict=True)):
        own = {}
        for name, x in arguments.items():
            if x is None or "seqlen" in name or name == "out":
                continue
            if name in QUERY_ROWS or name in KEY_ROWS:
                x = heads_first(x[rows if name in QUERY_ROWS else keys])
            elif name in LSES:
                x = x[:, rows]
            elif name in ("query_positions", "key_positions"):
                x = np.asarray(x)[rows if name == "query_positions" else keys]
            elif name in PER_SEQUENCE and np.ndim(x) > len(PER_SEQUENCE[name]):
                x = x[n]
            elif name == "relative_bias":
                x = x[n] if x.ndim > 3 else x
                x = x[:, rows] if x.shape[1] > 1 else x
            elif name == "rng":
                x = SequenceKey(x.words, n)
            own[name] = x
        yield rows, keys, own


def put(whole, name, rows, keys, part):
    """Writes what belongs to one sequence where it stands in the packed array of that name."""
    if name in (*LSES, "relative_bias"):
        whole[:, rows] = part
    else:
        whole[keys if name in KEY_ROWS else rows] = heads_first(part)
