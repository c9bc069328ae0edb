"""Attention over packed sequences of different lengths: a loop over the sequences.

T query rows and T' keys of all sequences, N sequences, H query heads, G key/value heads, E and D head sizes.
"""

import typing

import numpy as np

from ._attention import _float64, _key_words, scaled_dot_product_attention
from ._attention_backward import AttentionGradients, _of_operand, scaled_dot_product_attention_backward


def varlen_attention(
    query,
    key,
    value,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q=None,
    max_seqlen_k=None,
    *,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    causal_offset=None,
    window_size=None,
    softcap=None,
    alibi_slopes=None,
    sinks=None,
    relative_bias=None,
    rotary=None,
    rotary_interleaved=False,
    query_positions=None,
    key_positions=None,
    rng=None,
    return_lse=False,
):
    """O_i = sum_j P_ij v_j for query rows cu_seqlens_q[n] ... cu_seqlens_q[n + 1] - 1 and the keys j of sequence n.

    query (T, H, E), key (T', G, E), value (T', G, D), cu_seqlens (N + 1,) -> (T, H, D), and with `return_lse` the
    log-sum-exp, (H, T). Rows of no sequence: 0 and -inf. The two maxima are not used.
    """
    query, key, value = _packed(query=query, key=key, value=value)
    sequences = _sequences(cu_seqlens_q, cu_seqlens_k, len(query), len(key))
    own = _of_each(len(sequences), query.shape[1], causal_offset, alibi_slopes, sinks)
    placed = _positions(sequences, len(query), len(key), query_positions, key_positions)
    tables = _tables(len(sequences), query.shape[1::-1], relative_bias)
    words = _key_words(rng) if dropout_p > 0 else None
    output, lse = np.zeros((*query.shape[:2], value.shape[2])), np.full(query.shape[1::-1], -np.inf)
    for n, (rows, keys) in enumerate(sequences):
        found, lse[:, rows] = scaled_dot_product_attention(
            _heads_first(query[rows]), _heads_first(key[keys]), _heads_first(value[keys]), dropout_p=dropout_p,
            is_causal=is_causal, scale=scale, window_size=window_size, softcap=softcap, rng=SequenceKey(words, n),
            return_lse=True, relative_bias=None if tables is None else tables[n][:, rows], rotary=rotary,
            rotary_interleaved=rotary_interleaved, **placed[n], **own[n],
        )  # fmt: skip
        output[rows] = _heads_first(found)
    return (output, lse) if return_lse else output


def varlen_attention_backward(
    grad_output,
    query,
    key,
    value,
    output,
    lse,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q=None,
    max_seqlen_k=None,
    *,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    causal_offset=None,
    window_size=None,
    softcap=None,
    alibi_slopes=None,
    sinks=None,
    relative_bias=None,
    rotary=None,
    rotary_interleaved=False,
    query_positions=None,
    key_positions=None,
    rng=None,
    grad_lse=None,
    needs=("query", "key", "value"),
):
    """The gradient of sum(grad_output * output) + sum(grad_lse * lse), for each operand in `needs`.

    That of each sequence stands in its place: d query[rows of n] = that of sequence n. Sinks and slopes that sequences
    share get the sum. grad_output and output (T, H, D), lse and grad_lse (H, T).
    """
    query, key, value, grad_output, output = _packed(
        query=query, key=key, value=value, grad_output=grad_output, output=output
    )
    sequences = _sequences(cu_seqlens_q, cu_seqlens_k, len(query), len(key))
    own = _of_each(len(sequences), query.shape[1], causal_offset, alibi_slopes, sinks)
    tables = _tables(len(sequences), query.shape[1::-1], relative_bias)
    placed = _positions(sequences, len(query), len(key), query_positions, key_positions)
    words = _key_words(rng) if dropout_p > 0 else None
    lse = np.broadcast_to(_float64("lse", lse), query.shape[1::-1])
    grad_lse = np.broadcast_to(_float64("grad_lse", 0 if grad_lse is None else grad_lse), lse.shape)
    every = len(sequences), query.shape[1]
    found = {"query": np.zeros(query.shape), "key": np.zeros(key.shape), "value": np.zeros(value.shape),
             "sinks": np.zeros(every), "alibi_slopes": np.zeros(every),
             "relative_bias": None if tables is None else np.zeros(tables.shape)}  # fmt: skip
    for n, (rows, keys) in enumerate(sequences):
        gradients = scaled_dot_product_attention_backward(
            _heads_first(grad_output[rows]), _heads_first(query[rows]), _heads_first(key[keys]),
            _heads_first(value[keys]), _heads_first(output[rows]), lse[:, rows], dropout_p=dropout_p,
            is_causal=is_causal, scale=scale, window_size=window_size, softcap=softcap, rng=SequenceKey(words, n),
            grad_lse=grad_lse[:, rows], needs=needs, relative_bias=None if tables is None else tables[n][:, rows],
            rotary=rotary, rotary_interleaved=rotary_interleaved, **placed[n],
            **own[n],
        )  # fmt: skip
        for name in needs:
            part = getattr(gradients, name)
            if name in ("sinks", "alibi_slopes"):
                found[name][n] = part
            elif name == "relative_bias":
                found[name][n][:, rows] = part
            else:
                found[name][rows if name == "query" else keys] = _heads_first(part)
    given = {"sinks": sinks, "alibi_slopes": alibi_slopes, "relative_bias": relative_bias}
    return AttentionGradients(
        **{name: _of_operand(found[name], np.shape(given[name])) if name in given else found[name] for name in needs}
    )


class SequenceKey(typing.NamedTuple):
    """A dropout key, and the batch number that its dropout has."""

    words: tuple | None
    first_batch: int


def _packed(**arrays):
    """Float64 arrays of three axes."""
    arrays = {name: _float64(name, x) for name, x in arrays.items()}
    for name, x in arrays.items():
        if x.ndim != 3:
            raise ValueError(f"{name} has shape {x.shape}; it must have 3 axes")
    return arrays.values()


def _sequences(cu_seqlens_q, cu_seqlens_k, rows, keys):
    """(slice of the query rows, slice of the keys) of each sequence."""
    starts = []
    for name, x, end in (("cu_seqlens_q", cu_seqlens_q, rows), ("cu_seqlens_k", cu_seqlens_k, keys)):
        x = np.asarray(x)
        if x.dtype.kind not in "iu":
            raise TypeError(f"{name} is {x.dtype}; it must be integers")
        if x.ndim != 1 or len(x) == 0 or x[0] != 0 or np.any(x[1:] < x[:-1]) or x[-1] > end:
            raise ValueError(f"{name} is {x}; it must begin with 0, not decrease, and end at {end} at the most")
        starts.append(x.tolist())
    if len(starts[0]) != len(starts[1]):
        raise ValueError("cu_seqlens_q and cu_seqlens_k must have the same number of sequences")
    return list(zip(*(map(slice, x[:-1], x[1:]) for x in starts), strict=True))


def _positions(sequences, T, S, query_positions, key_positions):
    """The rows of rotary tables that each sequence has."""
    given = {"query_positions": (query_positions, T, 0), "key_positions": (key_positions, S, 1)}
    given = {name: (np.broadcast_to(x, length), which) for name, (x, length, which) in given.items() if x is not None}
    return [{name: x[own[which]] for name, (x, which) in given.items()} for own in sequences]


def _of_each(sequences, heads, causal_offset, alibi_slopes, sinks):
    """What each sequence has of the options that may differ between them."""
    given = {"causal_offset": (causal_offset, ()), "alibi_slopes": (alibi_slopes, (heads,)), "sinks": (sinks, (heads,))}
    given = {name: np.broadcast_to(x, (sequences, *shape)) for name, (x, shape) in given.items() if x is not None}
    return [{name: x[n] for name, x in given.items()} for n in range(sequences)]


def _tables(sequences, heads_and_rows, relative_bias):
    """relative_bias of each sequence, for all T query rows: (N, H, T, 2K + 1)."""
    if relative_bias is None:
        return None
    return np.broadcast_to(relative_bias, (sequences, *heads_and_rows, np.shape(relative_bias)[-1]))


def _heads_first(x):
    """(rows, heads, columns) <-> (heads, rows, columns)."""
    return x.swapaxes(0, 1)
