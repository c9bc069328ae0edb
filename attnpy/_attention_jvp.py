"""The derivative of softmax attention along a direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._attention import DropoutKey, _kind, _tables, _words_of
from ._native import core as _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ._masks import BlockMask


def scaled_dot_product_attention_jvp(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    query_tangent: ArrayLike | None,
    key_tangent: ArrayLike | None,
    value_tangent: ArrayLike | None,
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
    bias_tangent: ArrayLike | None = None,
    sinks_tangent: ArrayLike | None = None,
    relative_bias_tangent: ArrayLike | None = None,
    return_lse: bool = False,
    out: Any = None,
) -> Any:
    r"""Attention and its derivative along a direction: the Jacobian-vector product of the forward mode.

    How the output moves when each operand moves along its tangent (:math:`q_i` along :math:`dq_i`, and so on). With the
    weights P of `attention_weights`, and M what dropout multiplies them by (1 without),

    .. math::

        ds_{ij} &= \mathrm{scale}\, (dq_i \cdot k_j + q_i \cdot dk_j)
        \left(1 - \tanh^2 \frac{\mathrm{scale}\; q_i \cdot k_j}{\mathrm{softcap}}\right) + d\mathrm{bias}_{ij}
        + d\mathrm{relative\_bias}_{h, i, \mathrm{clip}(j - i - \mathrm{offset}, -K, K) + K} \\
        \mu_i &= \sum_j P_{ij}\, ds_{ij} + \exp(\mathrm{sink}_h - \mathrm{lse}_i)\, d\mathrm{sink}_h \\
        dO_i &= \sum_j M_{ij} P_{ij} \left(dv_j + (ds_{ij} - \mu_i)\, v_j\right), \qquad d\mathrm{lse}_i = \mu_i

    over the visible keys j; without softcap its factor is 1. It is one pass over the keys, and no (L, S) array is
    formed. Letters as in `scaled_dot_product_attention`.

    Parameters
    ----------
    query : (..., H, L, E) array_like
    key : (..., G, S, E) array_like
    value : (..., G, S, D) array_like
        As in `scaled_dot_product_attention`. Their dtypes give those of the results.
    query_tangent : (..., H, L, E) array_like or None
    key_tangent : (..., G, S, E) array_like or None
    value_tangent : (..., G, S, D) array_like or None
        The direction, of numbers of any real dtype; each broadcasts to the shape given here. None is a direction of
        zeros, whose products are left out.
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
        As in `scaled_dot_product_attention`.
    rng : DropoutKey, optional
        The key of dropout, from `dropout_key`. A Generator is refused: the derivative is that of one mask.
    bias_tangent : (..., H, L, S) array_like, optional
        The direction of `bias`, to which an additive `attn_mask` is the same; only together with `bias`.
    sinks_tangent : (H,) or (..., H) array_like, optional
        The direction of `sinks`; only together with them.
    relative_bias_tangent : (..., H, L or 1, 2K + 1) array_like, optional
        The direction of `relative_bias`, whose K it shares; only together with it.
    return_lse : bool, default False
        Also return the log-sum-exp and its derivative.
    out : tuple of ndarray, optional
        Where the results go, of their shapes and dtypes: as many as there are, each of which may be None. They may
        overlap any input, and the results are as if they did not.

    Returns
    -------
    output, output_tangent : (..., H, L, D) ndarray
        `output` is that of `scaled_dot_product_attention`; bits may differ where that has few query rows.
    lse, lse_tangent : (..., H, L) ndarray
        In float32 (float64 where float64 is computed). Only with `return_lse`.

    Raises
    ------
    TypeError
        If an array is complex, a masked array or otherwise not of real numbers, if float16 meets bfloat16, if
        `attn_mask` is of integers, or if `rng` is not a DropoutKey.
    ValueError
        If shapes do not fit, if a number is out of range, if a tangent is given of an operand that is absent, or if
        `out` has another shape or dtype. Nothing is computed then.

    See Also
    --------
    scaled_dot_product_attention, dropout_key
    scaled_dot_product_attention_backward : the reverse mode.
    attnpy.reference.scaled_dot_product_attention_jvp : the same in float64 NumPy.

    Notes
    -----
    A query that sees no key has tangents of 0 (with a sink the log-sum-exp is the sink, and moves with it). A hidden
    key contributes nothing, whatever is stored there or in its tangents: NaN does not leak.

    The same inputs give the same bits for any number of threads, any batch size or position (dropout apart), any
    strides, and with or without `return_lse` or `out`.

    References
    ----------
    A. Baydin, B. Pearlmutter, A. Radul, J. Siskind, "Automatic differentiation in machine learning: a survey", 2018,
    arXiv:1502.05767, section 3.1.

    T. Dao, "FlashAttention-2: faster attention with better parallelism and work partitioning", 2023, arXiv:2307.08691,
    algorithm 1.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> query, key, value = np.eye(2), np.array([[0, 1], [1, 0]]), np.array([[1, 2], [3, 4]])
    >>> output, output_tangent = attnpy.scaled_dot_product_attention_jvp(
    ...     query, key, value, [[1, 0], [0, 0]], None, None, scale=1)
    >>> output_tangent.round(4)
    array([[0.3932, 0.3932],
           [0.    , 0.    ]])

    It is the slope of the output along the direction:

    >>> rng = np.random.default_rng(0)
    >>> operands, direction = rng.standard_normal((2, 3, 4, 6, 8))
    >>> _, slope = attnpy.scaled_dot_product_attention_jvp(*operands, *direction, is_causal=True)
    >>> ahead, behind = (attnpy.scaled_dot_product_attention(*(operands + step * direction), is_causal=True)
    ...                  for step in (1e-5, -1e-5))
    >>> np.allclose(slope, (ahead - behind) / 2e-5)
    True
    """
    if rng is not None and not isinstance(rng, DropoutKey):
        raise TypeError(f"rng is {_kind(rng)}; it must be a DropoutKey: key = attnpy.dropout_key(rng)")
    words = None if rng is None and type(dropout_p) is float and dropout_p == 0 else _words_of(rng, dropout_p)
    cos, sin = (None, None) if rotary is None else _tables(rotary)
    return _core.scaled_dot_product_attention_jvp(
        query, key, value, query_tangent, key_tangent, value_tangent, attn_mask, dropout_p, is_causal, scale, bias,
        causal_offset, window_size, softcap, alibi_slopes, sinks, query_lengths, kv_lengths, relative_bias, cos, sin,
        rotary_interleaved, query_positions, key_positions, words, bias_tangent, sinks_tangent, relative_bias_tangent,
        return_lse, out,
    )  # fmt: skip


scaled_dot_product_attention_jvp.signature = "(h,l,d),(g,s,d),(g,s,e),(h,l,d),(g,s,d),(g,s,e)->(h,l,e),(h,l,e)"
