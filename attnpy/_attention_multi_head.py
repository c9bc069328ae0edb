"""Attention with projections: multi-head attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._attention import _tables, _words_of
from ._native import core as _core

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from ._attention import DropoutKey
    from ._layers_linear import PackedWeight
    from ._masks import BlockMask


def multi_head_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    output_weight: ArrayLike | PackedWeight,
    query_weight: ArrayLike | PackedWeight | None = None,
    key_weight: ArrayLike | PackedWeight | None = None,
    value_weight: ArrayLike | PackedWeight | None = None,
    qkv_weight: ArrayLike | PackedWeight | None = None,
    query_bias: ArrayLike | None = None,
    key_bias: ArrayLike | None = None,
    value_bias: ArrayLike | None = None,
    output_bias: ArrayLike | None = None,
    qkv_bias: ArrayLike | None = None,
    num_heads: int,
    num_kv_heads: int | None = None,
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
    rng: np.random.Generator | DropoutKey | None = None,
    need_weights: bool = False,
    out: Any = None,
) -> Any:
    r"""Multi-head attention: projections, attention of each head, and a projection of what the heads give.

    .. math::

        O = \mathrm{Concat}(O_1, \dots, O_H)\, W_o^\mathsf{T} + b_o, \qquad
        O_h = \mathrm{attention}(X_q W_{q,h}^\mathsf{T} + b_{q,h},\; X_k W_{k,h}^\mathsf{T} + b_{k,h},\;
        X_v W_{v,h}^\mathsf{T} + b_{v,h})

    Letters: N features of query, key or value (each may have its own), M of the output, H heads, G key/value heads, E
    and D head sizes, L queries, S keys. The heads' rows of a weight lie one after the other.

    Parameters
    ----------
    query : (..., L, N) array_like
    key, value : (..., S, N) array_like
        Batch axes broadcast. Self-attention passes one array three times.
    output_weight : (M, H D) array_like or PackedWeight
    query_weight : (H E, N) array_like or PackedWeight, optional
    key_weight : (G E, N) array_like or PackedWeight, optional
    value_weight : (G D, N) array_like or PackedWeight, optional
    qkv_weight : (H E + 2 G E, N) array_like or PackedWeight, optional
        Either the three weights, or this one with their rows in this order, as PyTorch's in_proj_weight has them; with
        it a self-attention makes one product of three. A PackedWeight here is for self-attention.
    query_bias, key_bias, value_bias, output_bias, qkv_bias : array_like, optional
        A number for each row of the weight.
    num_heads : int
        H.
    num_kv_heads : int, optional
        G, a divisor of H; the default is H.
    attn_mask : (..., H, L, S) array_like of bool or float, or BlockMask, optional
        True: attend. PyTorch's MultiheadAttention means the opposite.
    dropout_p : float, default 0.0
    is_causal : bool, default False
    scale : float, optional
    bias : (..., H, L, S) array_like of float, optional
    causal_offset : (...) array_like of int, optional
    window_size : int or tuple of two int, optional
    softcap : float, optional
    alibi_slopes, sinks : (H,) or (..., H) array_like, optional
    query_lengths, kv_lengths : (...) array_like of int, optional
    relative_bias : (..., H, L or 1, 2K + 1) array_like of float, optional
    rotary : tuple of two arrays, optional
    rotary_interleaved : bool, default False
    query_positions, key_positions : array_like of int, optional
    rng : numpy.random.Generator or DropoutKey, optional
        As in `scaled_dot_product_attention`.
    need_weights : bool, default False
        Also return the weights of every head, without dropout.
    out : (..., L, M) ndarray, optional
        Where the output goes, of its shape and dtype; with `need_weights` a tuple (output, weights), either
        or both of which may be None.

    Returns
    -------
    output : (..., L, M) ndarray
        In the common dtype of inputs and weights, as `linear` has it.
    weights : (..., H, L, S) ndarray
        Only with `need_weights`.

    Raises
    ------
    TypeError
        If an array is not of real numbers, or for the reasons of `scaled_dot_product_attention`.
    ValueError
        If shapes do not fit, if heads cannot share the rows of a weight evenly, if weights are missing or given twice,
        or for the reasons of `scaled_dot_product_attention`.

    See Also
    --------
    attnpy.nn.MultiHeadAttention, scaled_dot_product_attention, linear, attnpy.reference.multi_head_attention

    Notes
    -----
    Nothing is transposed or copied between the products: attention reads the projections where they are, and writes
    what the last product reads. A query row that sees no key gives `output_bias`.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762, section 3.2.2.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((2, 5, 8))
    >>> qkv_weight, output_weight = rng.standard_normal((24, 8)), rng.standard_normal((8, 8))
    >>> output, weights = attnpy.multi_head_attention(
    ...     x, x, x, qkv_weight=qkv_weight, output_weight=output_weight, num_heads=2, need_weights=True)
    >>> output.shape, weights.shape
    ((2, 5, 8), (2, 2, 5, 5))
    """
    words = None if rng is None and type(dropout_p) is float and dropout_p == 0 else _words_of(rng, dropout_p)
    cos, sin = (None, None) if rotary is None else _tables(rotary)
    return _core.multi_head_attention(
        query, key, value, query_weight, key_weight, value_weight, output_weight, qkv_weight, query_bias, key_bias,
        value_bias, output_bias, qkv_bias, num_heads, num_kv_heads, attn_mask, dropout_p, is_causal, scale, bias,
        causal_offset, window_size, softcap, alibi_slopes, sinks, query_lengths, kv_lengths, relative_bias, cos, sin,
        rotary_interleaved, query_positions, key_positions, words, need_weights, out,
    )  # fmt: skip
