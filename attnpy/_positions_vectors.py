"""Attention with a vector for each distance: Shaw's relative positions, and those of Transformer-XL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ._attention_backward import _needed, _places
from ._native import core as _core

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from ._masks import BlockMask


class RelativeAttentionGradients(NamedTuple):
    """The gradients of the operands of relative attention; None where one was not asked for, or there is none such.

    Parameters
    ----------
    query, key, value, attn_mask, bias : ndarray, optional
    key_table, value_table : ndarray, optional
        Of `relative_attention_shaw`.
    position_keys, content_bias, position_bias : ndarray, optional
        Of `relative_attention_xl`. Each of the shape and dtype of its operand.

    Raises
    ------
    TypeError
        If a field is named that there is not.

    See Also
    --------
    relative_attention_shaw_backward, relative_attention_xl_backward

    Examples
    --------
    >>> import attnpy
    >>> attnpy.RelativeAttentionGradients._fields[:5]
    ('query', 'key', 'value', 'attn_mask', 'bias')
    """

    query: NDArray[Any] | None = None
    key: NDArray[Any] | None = None
    value: NDArray[Any] | None = None
    attn_mask: NDArray[Any] | None = None
    bias: NDArray[Any] | None = None
    key_table: NDArray[Any] | None = None
    value_table: NDArray[Any] | None = None
    position_keys: NDArray[Any] | None = None
    content_bias: NDArray[Any] | None = None
    position_bias: NDArray[Any] | None = None


# The order of _core's needs and out.
_SHAW = ("query", "key", "value", "attn_mask", "bias", "key_table", "value_table")
_XL = ("query", "key", "value", "attn_mask", "bias", "position_keys", "content_bias", "position_bias")


def relative_attention_shaw(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    key_table: ArrayLike,
    value_table: ArrayLike | None = None,
    *,
    attn_mask: ArrayLike | BlockMask | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    bias: ArrayLike | None = None,
    causal_offset: ArrayLike | None = None,
    window_size: int | tuple[int, int] | None = None,
    query_lengths: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    return_lse: bool = False,
    out: Any = None,
) -> Any:
    r"""Attention with learned vectors of clipped distances, added to keys and, if given, to values (Shaw et al.).

    .. math::

        O_i = \sum_j P_{ij} (v_j + w_n), \qquad P_{ij} = \frac{\exp s_{ij}}{\sum_j \exp s_{ij}}, \qquad
        s_{ij} = \mathrm{scale}\; q_i \cdot (k_j + r_n) + \mathrm{bias}_{ij} + \mathrm{attn\_mask}_{ij}, \qquad
        n = \mathrm{clip}(j - i - \mathrm{offset}, -K, K) + K

    over the visible keys j, with r = `key_table` and w = `value_table`. No array (L, S), nor (L, S, E), is formed.
    Letters as in `scaled_dot_product_attention`.

    Parameters
    ----------
    query : (..., H, L, E) array_like
    key : (..., G, S, E) array_like
    value : (..., G, S, D) array_like
        As in `scaled_dot_product_attention`. Their dtypes say what is computed in.
    key_table : (..., H, 2K+1, E) array_like
        Row n is the vector of distance n - K, key less query. It broadcasts: (2K+1, E) is one for all heads.
    value_table : (..., H, 2K+1, D) array_like, optional
        Likewise, of values. None: nothing is added to them.
    attn_mask : (..., H, L, S) array_like of bool or float, or BlockMask, optional
    is_causal : bool, default False
    scale : float, optional
        The default is 1/√E.
    bias : (..., H, L, S) array_like of float, optional
    causal_offset : (...) array_like of int, optional
        Query i stands at position i + offset; the default is that of the last query at the last key.
    window_size : int or tuple of two int, optional
    query_lengths, kv_lengths : (...) array_like of int, optional
        As in `scaled_dot_product_attention`; `kv_lengths` alone is refused where one of them is below L.
    return_lse : bool, default False
        Also return the log-sum-exp of the scores.
    out : (..., H, L, D) ndarray, optional
        Where the output goes; with `return_lse` a tuple (output, lse), either of which may be None.

    Returns
    -------
    output : (..., H, L, D) ndarray
    lse : (..., H, L) ndarray
        Only with `return_lse`.

    Raises
    ------
    TypeError
        If an array is complex, a masked array or otherwise not of real numbers, or if `attn_mask` is of integers.
    ValueError
        If shapes do not fit, if `key_table` has an even number of rows, or if a number is out of range. Nothing is
        computed then.

    See Also
    --------
    relative_attention_xl : vectors of all distances, not clipped.
    relative_attention_shaw_backward : the gradients.
    attnpy.reference.relative_attention_shaw : the same in float64 NumPy.

    Notes
    -----
    What `scaled_dot_product_attention` promises holds: hidden elements never leak, a vector that no visible pair meets
    is never used, and the same inputs give the same bits for any number of threads, any batch and any strides.

    References
    ----------
    P. Shaw, J. Uszkoreit, A. Vaswani, "Self-attention with relative position representations", 2018, arXiv:1803.02155,
    equations 3 and 4.

    Examples
    --------
    A table that favours the key before the query, K = 1:

    >>> import numpy as np, attnpy
    >>> query, key, value = np.ones((3, 1)), np.zeros((3, 1)), np.eye(3)
    >>> attnpy.relative_attention_shaw(query, key, value, [[9.0], [0.0], [0.0]], scale=1).round(3)
    array([[0.333, 0.333, 0.333],
           [1.   , 0.   , 0.   ],
           [0.5  , 0.5  , 0.   ]])
    """
    return _core.relative_attention_shaw(
        query, key, value, key_table, value_table, attn_mask, is_causal, scale, bias, causal_offset, window_size,
        query_lengths, kv_lengths, return_lse, out,
    )  # fmt: skip


def relative_attention_xl(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    position_keys: ArrayLike,
    content_bias: ArrayLike | None,
    position_bias: ArrayLike | None,
    *,
    attn_mask: ArrayLike | BlockMask | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    bias: ArrayLike | None = None,
    causal_offset: ArrayLike | None = None,
    window_size: int | tuple[int, int] | None = None,
    query_lengths: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    return_lse: bool = False,
    out: Any = None,
) -> Any:
    r"""Attention of Transformer-XL and XLNet: scores by content and by distance, each with a bias of the query.

    .. math::

        s_{ij} = \mathrm{scale}\; \left((q_i + u_h) \cdot k_j + (q_i + v_h) \cdot r_t\right) + \mathrm{bias}_{ij}
        + \mathrm{attn\_mask}_{ij}, \qquad t = S - 1 - (i + \mathrm{offset} - j)

    with r = `position_keys`, u = `content_bias` and v = `position_bias`; then as in `scaled_dot_product_attention`. The
    products with r are made in blocks and shifted in registers: there is no array (L, S), and no shifted copy.

    Parameters
    ----------
    query : (..., H, L, E) array_like
    key : (..., G, S, E) array_like
    value : (..., G, S, D) array_like
        As in `scaled_dot_product_attention`; the keys begin with those of the memory. Their dtypes say what is
        computed in.
    position_keys : (..., H, T, E) array_like
        Row t belongs to distance S - 1 - t, query less key: the rows descend, as those papers write them. S rows
        serve causal attention, S + L - 1 attention to both sides. (T, E) is one for all heads.
    content_bias, position_bias : (..., H, E) array_like or None
        None: 0. (The biases that XLNet calls r_w_bias and r_r_bias.)
    attn_mask : (..., H, L, S) array_like of bool or float, or BlockMask, optional
    is_causal : bool, default False
    scale : float, optional
        The default is 1/√E.
    bias : (..., H, L, S) array_like of float, optional
    causal_offset : (...) array_like of int, optional
        Query i stands at position i + offset; the default is that of the last query at the last key.
    window_size : int or tuple of two int, optional
    query_lengths, kv_lengths : (...) array_like of int, optional
        As in `scaled_dot_product_attention`; `kv_lengths` alone is refused where one of them is below L.
    return_lse : bool, default False
        Also return the log-sum-exp of the scores.
    out : (..., H, L, D) ndarray, optional
        Where the output goes; with `return_lse` a tuple (output, lse), either of which may be None.

    Returns
    -------
    output : (..., H, L, D) ndarray
    lse : (..., H, L) ndarray
        Only with `return_lse`.

    Raises
    ------
    TypeError
        If an array is complex, a masked array or otherwise not of real numbers, or if `attn_mask` is of integers.
    ValueError
        If shapes do not fit, if `position_keys` has no row for a pair that lengths, window and causal rule leave
        visible, or if a number is out of range. Nothing is computed then.

    See Also
    --------
    relative_attention_shaw : few vectors, of clipped distances.
    relative_attention_xl_backward : the gradients.
    attnpy.reference.relative_attention_xl : the same in float64 NumPy.

    Notes
    -----
    What `scaled_dot_product_attention` promises holds: hidden elements never leak, a vector that no visible pair meets
    is never used, and the same inputs give the same bits for any number of threads, any batch and any strides.

    References
    ----------
    Z. Dai et al., "Transformer-XL: attentive language models beyond a fixed-length context", 2019, arXiv:1901.02860,
    section 3.3.

    Z. Yang et al., "XLNet: generalized autoregressive pretraining for language understanding", 2019, arXiv:1906.08237.

    Examples
    --------
    Rows that grow with t favour near keys, since the last row belongs to distance 0:

    >>> import numpy as np, attnpy
    >>> query, key, value = np.zeros((3, 1)), np.zeros((3, 1)), np.eye(3)
    >>> rows = [[0.0], [1.0], [2.0]]
    >>> attnpy.relative_attention_xl(query, key, value, rows, None, [1.0], is_causal=True, scale=1).round(3)
    array([[1.   , 0.   , 0.   ],
           [0.269, 0.731, 0.   ],
           [0.09 , 0.245, 0.665]])
    """
    return _core.relative_attention_xl(
        query, key, value, position_keys, content_bias, position_bias, attn_mask, is_causal, scale, bias,
        causal_offset, window_size, query_lengths, kv_lengths, return_lse, out,
    )  # fmt: skip


def relative_attention_shaw_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    key_table: ArrayLike,
    value_table: ArrayLike | None,
    output: ArrayLike,
    lse: ArrayLike,
    *,
    attn_mask: ArrayLike | BlockMask | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    bias: ArrayLike | None = None,
    causal_offset: ArrayLike | None = None,
    window_size: int | tuple[int, int] | None = None,
    query_lengths: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    grad_lse: ArrayLike | None = None,
    needs: Sequence[str] = ("query", "key", "value", "key_table"),
    out: Mapping[str, NDArray[Any] | None] | None = None,
) -> RelativeAttentionGradients:
    r"""Gradients of `relative_attention_shaw`: from that of its output to those of its operands.

    With :math:`P_{ij} = \exp(s_{ij} - \mathrm{lse}_i)` and the sums of a vector n over the pairs that meet it,

    .. math::

        dS_{ij} &= P_{ij} \left(dO_i \cdot (v_j + w_n) - dO_i \cdot O_i + d\mathrm{lse}_i\right), \qquad
        d\mathrm{bias} = d\mathrm{attn\_mask} = dS \\
        dv_j &= \sum_i P_{ij}\, dO_i, \qquad dw_n = \sum_{ij} P_{ij}\, dO_i, \qquad
        dr_n = \mathrm{scale} \sum_{ij} dS_{ij}\, q_i \\
        dk_j &= \mathrm{scale} \sum_i dS_{ij}\, q_i, \qquad dq_i = \mathrm{scale} \sum_j dS_{ij} (k_j + r_n)

    Parameters
    ----------
    grad_output : (..., H, L, D) array_like
        Gradient of a scalar with respect to the output.
    query : (..., H, L, E) array_like
    key : (..., G, S, E) array_like
    value : (..., G, S, D) array_like
    key_table : (..., H, 2K+1, E) array_like
    value_table : (..., H, 2K+1, D) array_like or None
        As given to the forward.
    output : (..., H, L, D) array_like
    lse : (..., H, L) array_like
        What the forward returned with ``return_lse=True``.
    attn_mask : (..., H, L, S) array_like of bool or float, or BlockMask, optional
    is_causal : bool, default False
    scale : float, optional
    bias : (..., H, L, S) array_like of float, optional
    causal_offset : (...) array_like of int, optional
    window_size : int or tuple of two int, optional
    query_lengths, kv_lengths : (...) array_like of int, optional
        As given to the forward.
    grad_lse : (..., H, L) array_like, optional
        Gradient of the scalar with respect to the log-sum-exp.
    needs : sequence of str, default ("query", "key", "value", "key_table")
        The operands whose gradients to compute: fields of `RelativeAttentionGradients`.
    out : mapping of str to ndarray, optional
        Where the gradients go, by field: arrays of the shapes and dtypes of the operands.

    Returns
    -------
    RelativeAttentionGradients
        The gradients in `needs`, in the shape and dtype of the operand; elsewhere None. What broadcasts gets the sum.

    Raises
    ------
    TypeError
        As from `relative_attention_shaw`, and if `needs` is not a sequence of names, or `out` not a mapping.
    ValueError
        As from `relative_attention_shaw`, and if `needs` or `out` names an operand that is absent or has no gradient.

    See Also
    --------
    relative_attention_shaw, RelativeAttentionGradients
    attnpy.reference.relative_attention_shaw_backward : the same in float64 NumPy.

    References
    ----------
    P. Shaw, J. Uszkoreit, A. Vaswani, "Self-attention with relative position representations", 2018, arXiv:1803.02155.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> query, key, value = np.ones((3, 1)), np.zeros((3, 1)), np.eye(3)
    >>> table = np.zeros((3, 1))
    >>> output, lse = attnpy.relative_attention_shaw(query, key, value, table, scale=1, return_lse=True)
    >>> gradients = attnpy.relative_attention_shaw_backward(
    ...     [[1, 0, 0], [1, 0, 0], [1, 0, 0]], query, key, value, table, None, output, lse, scale=1)
    >>> gradients.key_table.round(4)
    array([[ 0.3333],
           [ 0.    ],
           [-0.3333]])
    """
    needed = _needed(needs, (query, key, value, attn_mask, bias, key_table, value_table), _SHAW)
    found = _core.relative_attention_shaw_backward(
        grad_output, query, key, value, key_table, value_table, output, lse, attn_mask, is_causal, scale, bias,
        causal_offset, window_size, query_lengths, kv_lengths, grad_lse, needed, _places(out, needed, _SHAW),
    )  # fmt: skip
    return RelativeAttentionGradients(**dict(zip(_SHAW, found, strict=True)))


def relative_attention_xl_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    position_keys: ArrayLike,
    content_bias: ArrayLike | None,
    position_bias: ArrayLike | None,
    output: ArrayLike,
    lse: ArrayLike,
    *,
    attn_mask: ArrayLike | BlockMask | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    bias: ArrayLike | None = None,
    causal_offset: ArrayLike | None = None,
    window_size: int | tuple[int, int] | None = None,
    query_lengths: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    grad_lse: ArrayLike | None = None,
    needs: Sequence[str] = ("query", "key", "value", "position_keys"),
    out: Mapping[str, NDArray[Any] | None] | None = None,
) -> RelativeAttentionGradients:
    r"""Gradients of `relative_attention_xl`: from that of its output to those of its operands.

    With :math:`P_{ij} = \exp(s_{ij} - \mathrm{lse}_i)` and the sums of row t over the pairs that meet it,

    .. math::

        dS_{ij} &= P_{ij} \left(dO_i \cdot (v_j - O_i) + d\mathrm{lse}_i\right), \qquad
        d\mathrm{bias} = d\mathrm{attn\_mask} = dS, \qquad dv_j = \sum_i P_{ij}\, dO_i \\
        dk_j &= \mathrm{scale} \sum_i dS_{ij} (q_i + u_h), \qquad
        dr_t = \mathrm{scale} \sum_{ij} dS_{ij} (q_i + v_h) \\
        du_h &= \mathrm{scale} \sum_{ij} dS_{ij}\, k_j, \qquad dv_h = \mathrm{scale} \sum_{ij} dS_{ij}\, r_t, \qquad
        dq_i = \mathrm{scale} \sum_j dS_{ij} (k_j + r_t)

    Parameters
    ----------
    grad_output : (..., H, L, D) array_like
        Gradient of a scalar with respect to the output.
    query : (..., H, L, E) array_like
    key : (..., G, S, E) array_like
    value : (..., G, S, D) array_like
    position_keys : (..., H, T, E) array_like
    content_bias, position_bias : (..., H, E) array_like or None
        As given to the forward.
    output : (..., H, L, D) array_like
    lse : (..., H, L) array_like
        What the forward returned with ``return_lse=True``.
    attn_mask : (..., H, L, S) array_like of bool or float, or BlockMask, optional
    is_causal : bool, default False
    scale : float, optional
    bias : (..., H, L, S) array_like of float, optional
    causal_offset : (...) array_like of int, optional
    window_size : int or tuple of two int, optional
    query_lengths, kv_lengths : (...) array_like of int, optional
        As given to the forward.
    grad_lse : (..., H, L) array_like, optional
        Gradient of the scalar with respect to the log-sum-exp.
    needs : sequence of str, default ("query", "key", "value", "position_keys")
        The operands whose gradients to compute: fields of `RelativeAttentionGradients`.
    out : mapping of str to ndarray, optional
        Where the gradients go, by field: arrays of the shapes and dtypes of the operands.

    Returns
    -------
    RelativeAttentionGradients
        The gradients in `needs`, in the shape and dtype of the operand; elsewhere None. What broadcasts gets the sum.

    Raises
    ------
    TypeError
        As from `relative_attention_xl`, and if `needs` is not a sequence of names, or `out` not a mapping.
    ValueError
        As from `relative_attention_xl`, and if `needs` or `out` names an operand that is absent or has no gradient.

    See Also
    --------
    relative_attention_xl, RelativeAttentionGradients
    attnpy.reference.relative_attention_xl_backward : the same in float64 NumPy.

    References
    ----------
    Z. Dai et al., "Transformer-XL: attentive language models beyond a fixed-length context", 2019, arXiv:1901.02860.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> query, key, value, rows = np.ones((3, 1)), np.zeros((3, 1)), np.eye(3), np.zeros((3, 1))
    >>> output, lse = attnpy.relative_attention_xl(
    ...     query, key, value, rows, None, [1.0], is_causal=True, scale=1, return_lse=True)
    >>> gradients = attnpy.relative_attention_xl_backward(
    ...     [[1, 0, 0], [1, 0, 0], [1, 0, 0]], query, key, value, rows, None, [1.0], output, lse,
    ...     is_causal=True, scale=1, needs=["position_keys"])
    >>> gradients.position_keys.round(4)
    array([[ 0.4444],
           [ 0.2778],
           [-0.7222]])
    """
    needed = _needed(needs, (query, key, value, attn_mask, bias, position_keys, content_bias, position_bias), _XL)
    found = _core.relative_attention_xl_backward(
        grad_output, query, key, value, position_keys, content_bias, position_bias, output, lse, attn_mask, is_causal,
        scale, bias, causal_offset, window_size, query_lengths, kv_lengths, grad_lse, needed, _places(out, needed, _XL),
    )  # fmt: skip
    return RelativeAttentionGradients(**dict(zip(_XL, found, strict=True)))
