"""Attention over packed sequences of different lengths, and its gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._attention import DropoutKey, _kind, _tables, _words_of
from ._attention_backward import AttentionGradients, _needed, _places
from ._native import core as _core

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import ArrayLike, NDArray


def varlen_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    max_seqlen_q: Any = None,
    max_seqlen_k: Any = None,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    causal_offset: ArrayLike | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    relative_bias: ArrayLike | None = None,
    rotary: tuple[ArrayLike, ArrayLike] | None = None,
    rotary_interleaved: bool = False,
    query_positions: ArrayLike | None = None,
    key_positions: ArrayLike | None = None,
    rng: np.random.Generator | DropoutKey | None = None,
    return_lse: bool = False,
    out: Any = None,
) -> Any:
    r"""Attention over sequences of different lengths that are packed one behind the other, without padding.

    .. math::

        O_i = \sum_j P_{ij} v_j, \qquad P_{ij} = \frac{\exp s_{ij}}{\sum_j \exp s_{ij}}

    for query i and over the visible keys j of the same sequence, with the scores s of `scaled_dot_product_attention`.
    Sequence n has the query rows from ``cu_seqlens_q[n]`` to ``cu_seqlens_q[n + 1] - 1``, and the keys that
    `cu_seqlens_k` says likewise; i and j count from its start. No sequence sees another.

    Letters: T query rows and T' keys of all sequences, N sequences, H query heads, G key/value heads (G divides H), E
    head size of query and key, D of value and output.

    Parameters
    ----------
    query : (T, H, E) array_like
    key : (T', G, E) array_like
    value : (T', G, D) array_like
        Any strides. The dtype of the result comes from these three, as in `scaled_dot_product_attention`.
    cu_seqlens_q, cu_seqlens_k : (N + 1,) array_like of int
        Cumulative lengths: where each sequence begins, and the end of the last. They begin with 0, do not decrease, and
        end at T and T' at the most. Empty sequences are allowed.
    max_seqlen_q, max_seqlen_k : optional
        Accepted for the sake of code written for flash-attention, and ignored.
    dropout_p : float, default 0.0
    is_causal : bool, default False
    scale : float, optional
        As in `scaled_dot_product_attention`. The last query of each sequence sees its last key.
    causal_offset : (N,) array_like of int, optional
        Query i of a sequence stands at position i + offset. One number, or one for each sequence; the default is the
        number of its keys minus that of its queries.
    window_size : int or tuple of two int, optional
    softcap : float, optional
        As in `scaled_dot_product_attention`.
    alibi_slopes : (H,) or (N, H) array_like, optional
    sinks : (H,) or (N, H) array_like, optional
        For each head, or for each sequence and head.
    relative_bias : (H, T or 1, 2K + 1) or (N, H, T or 1, 2K + 1) array_like of float, optional
        As in `scaled_dot_product_attention`, one row for a head or one for each query row.
    rotary : tuple of two (P, C) array_like of float32 or float64, optional
    rotary_interleaved : bool, default False
    query_positions : (T,) array_like of int, optional
    key_positions : (T',) array_like of int, optional
        As in `scaled_dot_product_attention`. Positions count from the beginning of each sequence.
    rng : numpy.random.Generator or DropoutKey, optional
        Where dropout comes from; its batch number is that of the sequence.
    return_lse : bool, default False
        Also return the log-sum-exp of the scores.
    out : (T, H, D) ndarray, optional
        Where the output goes, of its shape and dtype; with `return_lse` a tuple (output, lse), either of which may be
        None. It may overlap any input, and the result is as if it did not.

    Returns
    -------
    output : (T, H, D) ndarray
        0 in rows that belong to no sequence.
    lse : (H, T) ndarray
        In float32 (float64 where float64 is computed); -inf in rows that belong to no sequence. Only with `return_lse`.

    Raises
    ------
    TypeError
        If an array is complex, a masked array or otherwise not of real numbers, if float16 meets bfloat16, if
        `cu_seqlens_q` or `cu_seqlens_k` is not of integers, or if `rng` is neither Generator nor DropoutKey.
    ValueError
        If shapes do not fit, if query, key or value has other than three axes, if the cumulative lengths are not as
        said above or speak of different numbers of sequences, if a number is out of range, if dropout lacks `rng`, or
        if `out` has another shape or dtype. Nothing is computed then.

    See Also
    --------
    varlen_attention_backward, scaled_dot_product_attention
    attnpy.reference.varlen_attention : the same in float64 NumPy.

    Notes
    -----
    Each sequence has the bits of a call of `scaled_dot_product_attention` of its own, and the time of it; nothing is
    read outside the sequences. The sequences, cut into parts, are spread over the threads, the longest first.

    References
    ----------
    T. Dao, D. Y. Fu, S. Ermon, A. Rudra, C. Ré, "FlashAttention: fast and memory-efficient exact attention with
    IO-awareness", 2022, arXiv:2205.14135; the layout is that of its software's ``flash_attn_varlen_func``.

    Examples
    --------
    Sequences of 3, 0 and 5 tokens, 8 query heads that share 2 key/value heads:

    >>> import numpy as np, attnpy
    >>> rng = np.random.default_rng(0)
    >>> query = rng.standard_normal((8, 8, 16), np.float32)
    >>> key, value = rng.standard_normal((2, 8, 2, 16), np.float32)
    >>> starts = [0, 3, 3, 8]
    >>> output, lse = attnpy.varlen_attention(query, key, value, starts, starts, is_causal=True, return_lse=True)
    >>> output.shape, lse.shape
    ((8, 8, 16), (8, 8))

    The second sequence on its own; heads come before rows there:

    >>> heads_first = [x[3:].swapaxes(0, 1) for x in (query, key, value)]
    >>> alone = attnpy.scaled_dot_product_attention(*heads_first, is_causal=True)
    >>> bool((output[3:].swapaxes(0, 1) == alone).all())
    True
    """
    words = None if rng is None and type(dropout_p) is float and dropout_p == 0 else _words_of(rng, dropout_p)
    cos, sin = (None, None) if rotary is None else _tables(rotary)
    return _core.varlen_attention(
        query, key, value, cu_seqlens_q, cu_seqlens_k, dropout_p, is_causal, scale, causal_offset, window_size, softcap,
        alibi_slopes, sinks, relative_bias, cos, sin, rotary_interleaved, query_positions, key_positions, words,
        return_lse, out,
    )  # fmt: skip


def varlen_attention_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike,
    lse: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    max_seqlen_q: Any = None,
    max_seqlen_k: Any = None,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    causal_offset: ArrayLike | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    relative_bias: ArrayLike | None = None,
    rotary: tuple[ArrayLike, ArrayLike] | None = None,
    rotary_interleaved: bool = False,
    query_positions: ArrayLike | None = None,
    key_positions: ArrayLike | None = None,
    rng: DropoutKey | None = None,
    grad_lse: ArrayLike | None = None,
    needs: Sequence[str] = ("query", "key", "value"),
    out: Mapping[str, NDArray[Any] | None] | None = None,
) -> AttentionGradients:
    r"""Gradients of `varlen_attention`: from that of its output to those of its operands.

    .. math::

        dS_{ij} = P_{ij} (M_{ij}\; dO_i \cdot v_j - \delta_i), \qquad
        \delta_i = dO_i \cdot O_i - d\mathrm{lse}_i

    for query i and key j of the same sequence; from dS to the operands as in `scaled_dot_product_attention_backward`.
    Letters as in `varlen_attention`.

    Parameters
    ----------
    grad_output : (T, H, D) array_like
        Gradient of a scalar with respect to the output.
    query : (T, H, E) array_like
    key : (T', G, E) array_like
    value : (T', G, D) array_like
        As given to the forward.
    output : (T, H, D) array_like
    lse : (H, T) array_like
        What the forward returned with ``return_lse=True``.
    cu_seqlens_q, cu_seqlens_k : (N + 1,) array_like of int
    max_seqlen_q, max_seqlen_k : optional
    dropout_p : float, default 0.0
    is_causal : bool, default False
    scale : float, optional
    causal_offset : (N,) array_like of int, optional
    window_size : int or tuple of two int, optional
    softcap : float, optional
    alibi_slopes : (H,) or (N, H) array_like, optional
    sinks : (H,) or (N, H) array_like, optional
    relative_bias : (H, T or 1, 2K + 1) or (N, H, T or 1, 2K + 1) array_like of float, optional
    rotary : tuple of two (P, C) array_like of float32 or float64, optional
    rotary_interleaved : bool, default False
    query_positions : (T,) array_like of int, optional
    key_positions : (T',) array_like of int, optional
        As given to the forward.
    rng : DropoutKey, optional
        The key of the forward's dropout. A Generator is refused, since it would give another one.
    grad_lse : (H, T) array_like, optional
        Gradient of the scalar with respect to the log-sum-exp.
    needs : sequence of str, default ("query", "key", "value")
        The operands whose gradients to compute: of query, key, value, sinks, alibi_slopes,
        relative_bias.
    out : mapping of str to ndarray, optional
        Where the gradients go, by field: arrays of the shapes and dtypes of the operands, which must be among `needs`.
        They may overlap any input, and the result is as if they did not.

    Returns
    -------
    AttentionGradients
        The gradients in `needs`, in the shape and dtype of the operand; elsewhere None. Rows and keys that belong to no
        sequence get 0, sinks and slopes that all sequences share the sum over them.

    Raises
    ------
    TypeError
        If an array is complex, a masked array or otherwise not of real numbers, if `cu_seqlens_q` or `cu_seqlens_k` is
        not of integers, if `rng` is not a DropoutKey, if `needs` is not a sequence of names, or `out` not a mapping.
    ValueError
        If shapes do not fit, if query, key or value has other than three axes, if the cumulative lengths are not as
        `varlen_attention` wants them, if a number is out of range, if `needs` or `out` names an operand that is absent
        or has no gradient, or if an array of `out` has another shape or dtype. Nothing is computed then.

    See Also
    --------
    varlen_attention, scaled_dot_product_attention_backward, AttentionGradients
    attnpy.reference.varlen_attention_backward : the same in float64 NumPy.

    Notes
    -----
    The gradients of query, key and value have, in each sequence, the bits of a call of
    `scaled_dot_product_attention_backward` of its own.

    References
    ----------
    T. Dao, "FlashAttention-2: faster attention with better parallelism and work partitioning", 2023, arXiv:2307.08691,
    algorithm 2.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> query, key, value, grad_output = np.random.default_rng(0).standard_normal((4, 8, 2, 16))
    >>> starts = [0, 3, 8]
    >>> output, lse = attnpy.varlen_attention(query, key, value, starts, starts, return_lse=True)
    >>> gradients = attnpy.varlen_attention_backward(grad_output, query, key, value, output, lse, starts, starts)
    >>> gradients.query.shape, gradients.sinks is None
    ((8, 2, 16), True)
    """
    if rng is not None and not isinstance(rng, DropoutKey):
        raise TypeError(f"rng is {_kind(rng)}; it must be the DropoutKey of the forward: key = attnpy.dropout_key(rng)")
    words = None if rng is None and type(dropout_p) is float and dropout_p == 0 else _words_of(rng, dropout_p)
    needed = _needed(needs, (query, key, value, None, None, sinks, alibi_slopes, relative_bias))
    cos, sin = (None, None) if rotary is None else _tables(rotary)
    found = _core.varlen_attention_backward(
        grad_output, query, key, value, output, lse, cu_seqlens_q, cu_seqlens_k, dropout_p, is_causal, scale,
        causal_offset, window_size, softcap, alibi_slopes, sinks, relative_bias, cos, sin, rotary_interleaved,
        query_positions, key_positions, words, grad_lse, needed, _places(out, needed),
    )  # fmt: skip
    return AttentionGradients(*found)


varlen_attention.signature = "(l,h,d),(s,g,d),(s,g,e),(n),(n)->(l,h,e)"
varlen_attention_backward.signature = "(l,h,e),(l,h,d),(s,g,d),(s,g,e),(l,h,e),(h,l),(n),(n)->(l,h,d),(s,g,d),(s,g,e)"
