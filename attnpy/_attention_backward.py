"""Gradients of softmax attention and of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._attention import DropoutKey, _kind, _tables, _words_of
from ._native import core as _core

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from ._masks import BlockMask


class AttentionGradients(NamedTuple):
    """The gradients of attention's operands; None where one was not asked for.

    Parameters
    ----------
    query, key, value, attn_mask, bias, sinks, alibi_slopes, relative_bias : ndarray, optional
        Each of the shape and dtype of its operand.

    Raises
    ------
    TypeError
        If a field is named that there is not.

    See Also
    --------
    scaled_dot_product_attention_backward, attention_weights_backward

    Examples
    --------
    >>> import attnpy
    >>> attnpy.AttentionGradients._fields
    ('query', 'key', 'value', 'attn_mask', 'bias', 'sinks', 'alibi_slopes', 'relative_bias')
    """

    query: NDArray[Any] | None = None
    key: NDArray[Any] | None = None
    value: NDArray[Any] | None = None
    attn_mask: NDArray[Any] | None = None
    bias: NDArray[Any] | None = None
    sinks: NDArray[Any] | None = None
    alibi_slopes: NDArray[Any] | None = None
    relative_bias: NDArray[Any] | None = None


_FIELDS = AttentionGradients._fields  # their order is that of _core's needs and out


def scaled_dot_product_attention_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike,
    lse: ArrayLike,
    *,
    attn_mask: ArrayLike | BlockMask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    bias: ArrayLike | None = None,
    causal_offset: ArrayLike | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    query_lengths: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
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
    r"""Gradients of `scaled_dot_product_attention`: from that of its output to those of its operands.

    With the weights :math:`P_{ij} = \exp(s_{ij} - \mathrm{lse}_i)`, and M what dropout multiplies them by (1 without),

    .. math::

        dP_{ij} &= M_{ij}\; dO_i \cdot v_j, \qquad \delta_i = dO_i \cdot O_i - d\mathrm{lse}_i, \qquad
        dS_{ij} = P_{ij} (dP_{ij} - \delta_i) \\
        T_{ij} &= dS_{ij} \left(1 - \tanh^2 \frac{\mathrm{scale}\; q_i \cdot k_j}{\mathrm{softcap}}\right)
        \quad \text{(without softcap } dS_{ij}\text{)} \\
        dv_j &= \sum_i P_{ij} M_{ij}\, dO_i, \qquad dq_i = \mathrm{scale} \sum_j T_{ij} k_j, \qquad
        dk_j = \mathrm{scale} \sum_i T_{ij} q_i \\
        d\mathrm{bias} &= d\mathrm{attn\_mask} = dS, \qquad
        d\mathrm{sink}_h = -\sum_i \exp(\mathrm{sink}_h - \mathrm{lse}_i)\, \delta_i, \qquad
        d\mathrm{slope}_h = -\sum_{ij} dS_{ij}\, |i + \mathrm{offset} - j| \\
        d\mathrm{relative\_bias}_{hic} &= \sum_j dS_{ij} \quad
        \text{over the keys with } \mathrm{clip}(j - i - \mathrm{offset}, -K, K) + K = c

    The (L, S) arrays P and dS are not formed: they are recomputed in blocks from `lse`. Letters as in
    `scaled_dot_product_attention`.

    Parameters
    ----------
    grad_output : (..., H, L, D) array_like
        Gradient of a scalar with respect to the output.
    query : (..., H, L, E) array_like
    key : (..., G, S, E) array_like
    value : (..., G, S, D) array_like
        As given to the forward. Their dtypes say what is computed in, as there.
    output : (..., H, L, D) array_like
    lse : (..., H, L) array_like
        What the forward returned with ``return_lse=True``.
    attn_mask : (..., H, L, S) array_like of bool or float, or BlockMask, optional
    dropout_p : float, default 0.0
    is_causal : bool, default False
    scale : float, optional
    bias : (..., H, L, S) array_like of float, optional
    causal_offset : (...) array_like of int, optional
    window_size : int or tuple of two int, optional
    softcap : float, optional
    alibi_slopes : (H,) or (..., H) array_like, optional
    sinks : (H,) or (..., H) array_like, optional
    query_lengths, kv_lengths : (...) array_like of int, optional
    relative_bias : (..., H, L or 1, 2K + 1) array_like of float, optional
    rotary : tuple of two (P, C) array_like of float32 or float64, optional
    rotary_interleaved : bool, default False
    query_positions : (..., L) array_like of int, optional
    key_positions : (..., S) array_like of int, optional
        As given to the forward.
    rng : DropoutKey, optional
        The key of the forward's dropout. A Generator is refused, since it would give another one: draw the key with
        `dropout_key` and pass it to both.
    grad_lse : (..., H, L) array_like, optional
        Gradient of the scalar with respect to the log-sum-exp.
    needs : sequence of str, default ("query", "key", "value")
        The operands whose gradients to compute: fields of `AttentionGradients`. There is none of a boolean `attn_mask`.
    out : mapping of str to ndarray, optional
        Where the gradients go, by field: arrays of the shapes and dtypes of the operands, which must be among `needs`.
        They may overlap any input, and the result is as if they did not.

    Returns
    -------
    AttentionGradients
        The gradients in `needs`, in the shape and dtype of the operand (float64 for integers, bools and lists);
        elsewhere None. An operand that broadcasts, and a key/value head that several query heads share, gets the sum
        over its places, made in the type computed in and rounded once.

    Raises
    ------
    TypeError
        If an array is complex, a masked array or otherwise not of real numbers, if `attn_mask` is of integers, if `rng`
        is not a DropoutKey, if `needs` is not a sequence of names, or `out` not a mapping.
    ValueError
        If shapes do not fit, if a number is out of range, if `needs` or `out` names an operand that is absent or has no
        gradient, or if an array of `out` has another shape or dtype. Nothing is computed then.

    See Also
    --------
    scaled_dot_product_attention, attention_weights_backward, AttentionGradients, dropout_key
    attnpy.reference.scaled_dot_product_attention_backward : the same in float64 NumPy.

    Notes
    -----
    Hidden keys, query rows beyond their length and rows that see no key have gradients of 0 and add nothing, whatever
    is stored there or in `grad_output`: NaN does not leak. A row that sees only its sink gives the sink its part of
    `grad_lse`.

    With `output` and `lse` of attention over many keys, and a part of these keys as `key` and `value`, the result is
    what this part adds to the gradients.

    The gradient of a `relative_bias` with one row for a head takes memory for min(2K + 1, L + S) numbers for each head
    of each batch element, and for a few blocks of keys a thread.

    The same inputs give the same bits for any number of threads, any batch size or position (dropout and operands that
    broadcast over the batch apart), any strides, any `needs`, and with or without `out`.

    References
    ----------
    T. Dao, "FlashAttention-2: faster attention with better parallelism and work partitioning", 2023, arXiv:2307.08691,
    algorithm 2.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> query, key, value = np.eye(2), np.array([[0, 1], [1, 0]]), np.array([[1, 2], [3, 4]])
    >>> output, lse = attnpy.scaled_dot_product_attention(query, key, value, scale=1, return_lse=True)
    >>> gradients = attnpy.scaled_dot_product_attention_backward(
    ...     [[1, 0], [0, 0]], query, key, value, output, lse, scale=1)
    >>> gradients.query.round(4)
    array([[ 0.3932, -0.3932],
           [ 0.    ,  0.    ]])
    >>> gradients.value.round(4)
    array([[0.2689, 0.    ],
           [0.7311, 0.    ]])

    The gradient of a bias that all batch elements share:

    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 2, 8, 5, 16))
    >>> options = {"bias": np.zeros((8, 5, 5)), "is_causal": True}
    >>> output, lse = attnpy.scaled_dot_product_attention(query, key, value, **options, return_lse=True)
    >>> gradients = attnpy.scaled_dot_product_attention_backward(
    ...     np.ones_like(output), query, key, value, output, lse, **options, needs=["query", "bias"])
    >>> gradients.bias.shape, gradients.key is None
    ((8, 5, 5), True)
    """
    if rng is not None and not isinstance(rng, DropoutKey):
        raise TypeError(f"rng is {_kind(rng)}; it must be the DropoutKey of the forward: key = attnpy.dropout_key(rng)")
    words = None if rng is None and type(dropout_p) is float and dropout_p == 0 else _words_of(rng, dropout_p)
    needed = _needed(needs, (query, key, value, attn_mask, bias, sinks, alibi_slopes, relative_bias))
    cos, sin = (None, None) if rotary is None else _tables(rotary)
    found = _core.scaled_dot_product_attention_backward(
        grad_output, query, key, value, output, lse, attn_mask, dropout_p, is_causal, scale, bias, causal_offset,
        window_size, softcap, alibi_slopes, sinks, query_lengths, kv_lengths, relative_bias, cos, sin,
        rotary_interleaved, query_positions, key_positions, words, grad_lse, needed, _places(out, needed),
    )  # fmt: skip
    return AttentionGradients(*found)


def attention_weights_backward(
    grad_weights: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    *,
    attn_mask: ArrayLike | BlockMask | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    bias: ArrayLike | None = None,
    causal_offset: ArrayLike | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    query_lengths: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    relative_bias: ArrayLike | None = None,
    rotary: tuple[ArrayLike, ArrayLike] | None = None,
    rotary_interleaved: bool = False,
    query_positions: ArrayLike | None = None,
    key_positions: ArrayLike | None = None,
    rows: ArrayLike | None = None,
    needs: Sequence[str] = ("query", "key"),
    out: Mapping[str, NDArray[Any] | None] | None = None,
) -> AttentionGradients:
    r"""Gradients of `attention_weights`: from that of the weights to those of its operands.

    .. math::

        \delta_i = \sum_j P_{ij}\, dP_{ij}, \qquad dS_{ij} = P_{ij} (dP_{ij} - \delta_i)

    with the weights P recomputed from `query` and `key`; from dS to the operands as in
    `scaled_dot_product_attention_backward`. Letters as there.

    Parameters
    ----------
    grad_weights : (..., H, L, S) array_like, or (..., H, R, S) with `rows`
        Gradient dP of a scalar with respect to the weights.
    query : (..., H, L, E) array_like
    key : (..., G, S, E) array_like
        As given to the forward. Their dtypes say what is computed in, as there.
    attn_mask : (..., H, L, S) array_like of bool or float, or BlockMask, optional
    is_causal : bool, default False
    scale : float, optional
    bias : (..., H, L, S) array_like of float, optional
    causal_offset : (...) array_like of int, optional
    window_size : int or tuple of two int, optional
    softcap : float, optional
    alibi_slopes : (H,) or (..., H) array_like, optional
    sinks : (H,) or (..., H) array_like, optional
    query_lengths, kv_lengths : (...) array_like of int, optional
    relative_bias : (..., H, L or 1, 2K + 1) array_like of float, optional
    rotary : tuple of two (P, C) array_like of float32 or float64, optional
    rotary_interleaved : bool, default False
    query_positions : (..., L) array_like of int, optional
    key_positions : (..., S) array_like of int, optional
    rows : (R,) array_like of int, optional
        As given to the forward. Where a row is named more than once, its parts of `grad_weights` add up.
    needs : sequence of str, default ("query", "key")
        The operands whose gradients to compute: fields of `AttentionGradients`, without value. There is none of a
        boolean `attn_mask`.
    out : mapping of str to ndarray, optional
        Where the gradients go, by field: arrays of the shapes and dtypes of the operands, which must be among `needs`.
        They may overlap any input, and the result is as if they did not.

    Returns
    -------
    AttentionGradients
        As from `scaled_dot_product_attention_backward`.

    Raises
    ------
    TypeError
        If an array is complex, a masked array or otherwise not of real numbers, if `attn_mask` or `rows` is of a wrong
        type, if `needs` is not a sequence of names, or `out` not a mapping.
    ValueError
        If shapes do not fit, if a number is out of range, if `needs` or `out` names an operand that is absent or has no
        gradient, or if an array of `out` has another shape or dtype. Nothing is computed then.

    See Also
    --------
    attention_weights, scaled_dot_product_attention_backward, AttentionGradients
    attnpy.reference.attention_weights_backward : the same in float64 NumPy.

    Notes
    -----
    What is hidden, and `grad_weights` there, adds nothing, whatever is stored: NaN does not leak.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762, equation 1.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> query, key = np.eye(2), np.array([[0, 1], [1, 0]])
    >>> gradients = attnpy.attention_weights_backward([[1, 0], [0, 0]], query, key, scale=1)
    >>> gradients.query.round(4)
    array([[-0.1966,  0.1966],
           [ 0.    ,  0.    ]])
    """
    needed = _needed(needs, (query, key, None, attn_mask, bias, sinks, alibi_slopes, relative_bias))
    cos, sin = (None, None) if rotary is None else _tables(rotary)
    found = _core.attention_weights_backward(
        grad_weights, query, key, attn_mask, is_causal, scale, bias, causal_offset, window_size, softcap, alibi_slopes,
        sinks, query_lengths, kv_lengths, relative_bias, cos, sin, rotary_interleaved, query_positions, key_positions,
        rows, needed, _places(out, needed),
    )  # fmt: skip
    return AttentionGradients(*found)


def _needed(needs, operands, fields=_FIELDS):
    """Which of the operands are named in `needs`."""
    if isinstance(needs, str) or not hasattr(needs, "__iter__"):
        raise TypeError(f"needs is {needs!r}; it must be a sequence of names, as in ('query', 'key')")
    needs = list(needs)
    for n, name in enumerate(needs):
        if not isinstance(name, str):
            raise TypeError(f"needs holds {_kind(name)}; it must be a sequence of names, as in ('query', 'key')")
        if name not in fields:
            raise ValueError(f"needs holds {name!r}; the names are {', '.join(fields)}")
        if name in needs[:n]:
            raise ValueError(f"needs holds {name!r} twice")
        operand = operands[fields.index(name)]
        if operand is None:
            raise ValueError(f"needs holds {name!r}, but there is no {name}")
        if name == "attn_mask" and np.asarray(operand).dtype.kind == "b":
            raise ValueError("needs holds 'attn_mask', but attn_mask is boolean, which has no gradient")
    return tuple([name in needs for name in fields])


def _places(out, needed, fields=_FIELDS):
    """The arrays of `out` in the order of the fields."""
    if out is None:
        return None
    if not hasattr(out, "keys"):
        raise TypeError(f"out is {_kind(out)}; it must be a mapping of names in needs to arrays")
    for name in out:
        if name not in fields or not needed[fields.index(name)]:
            raise ValueError(f"out holds {name!r}, which is not in needs")
    return tuple([out.get(name) for name in fields])
