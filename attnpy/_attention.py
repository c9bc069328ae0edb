"""Softmax attention, its weights, their column sums, merging over parts of the keys, and dropout keys."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from ._native import core as _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from ._masks import BlockMask


def scaled_dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    attn_mask: ArrayLike | BlockMask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
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
    return_lse: bool = False,
    enable_gqa: Any = None,
    out: Any = None,
) -> Any:
    r"""Attention: the mean of the values, weighted by the softmax of query-key products.

    .. math::

        O_i = \sum_j P_{ij} v_j, \qquad P_{ij} = \frac{\exp s_{ij}}{\sum_j \exp s_{ij}}, \qquad
        s_{ij} = \mathrm{softcap} \tanh\frac{\mathrm{scale}\; q_i \cdot k_j}{\mathrm{softcap}} + \mathrm{bias}_{ij}
        + \mathrm{attn\_mask}_{ij} - \mathrm{slope}_h\, |i + \mathrm{offset} - j|
        + \mathrm{relative\_bias}_{h, i, \mathrm{clip}(j - i - \mathrm{offset}, -K, K) + K}

    over the visible keys j. The (L, S) array of scores is never formed: memory grows with L and S, not their product.

    Letters: H query heads, G key/value heads (G divides H; query head h reads head h // (H/G)), L queries, S keys,
    E head size of query and key, D of value and output, "..." batch axes, which broadcast as in NumPy.

    Parameters
    ----------
    query : (..., H, L, E) array_like
    key : (..., G, S, E) array_like
    value : (..., G, S, D) array_like
        Any strides: data laid out as (B, L, H, D) is passed as ``x.swapaxes(-2, -3)``, and is not copied. Without a
        head axis (2-D) there is one head. The dtype of the result comes from these three: float64, integers and bools
        compute in float64, float32 in float32; float16 and bfloat16 are read in place, computed in float32, and rounded
        once.
    attn_mask : (..., H, L, S) array_like of bool or float, or BlockMask, optional
        bool: True = attend. float: added to the scores; -inf hides a key exactly as False does. It broadcasts to
        (..., H, L, S) from the right, so a 3-D mask is per head; a mask of keys (B, S) is passed as
        ``mask[:, None, None, :]``. A float mask of zeros and ones warns, since a boolean one was probably meant. A
        `BlockMask` is stored in tiles of 64 × 64, of which hidden ones cost neither time nor memory.
    dropout_p : float, default 0.0
        Probability in [0, 1) with which each weight becomes 0; the others are divided by 1 - `dropout_p`. Needs `rng`.
    is_causal : bool, default False
        Query i sees keys j ≤ i + offset. The offset is `causal_offset` if given, else the number of keys minus the
        number of queries (of valid ones, where lengths are given): the last query sees the last key.
    scale : float, optional
        Any finite number. The default is 1/√E.
    bias : (..., H, L, S) array_like of float, optional
        Added to the scores like a float `attn_mask`; both may be given.
    causal_offset : (...) array_like of int, optional
        Query i stands at position i + offset, key j at j, in the causal rule, the window, ALiBi, `relative_bias` and
        `rotary`. One number, or one per batch element. 0 aligns the first query with the first key.
    window_size : int or tuple of two int, optional
        (left, right): query i sees keys from i + offset - left to i + offset + right. The token itself is not counted;
        -1 is open; an int w means (w, w).
    softcap : float, optional
        Limits scores smoothly to ±softcap, before bias and mask. None or 0: no limit.
    alibi_slopes : (H,) or (..., H) array_like, optional
        Slope of the penalty on distance, for each head.
    sinks : (H,) or (..., H) array_like, optional
        One logit for each query head, not scaled, that takes part in the softmax but has no value: the weights of a row
        then sum to 1 - exp(sink - lse).
    query_lengths, kv_lengths : (...) array_like of int, optional
        Valid queries and keys of each batch element, in 0 … L and 0 … S. What lies beyond is padding: keys are
        invisible, query rows give 0. `kv_lengths` alone together with `is_causal`, a window, ALiBi, `relative_bias`
        or `rotary` is refused where one of them is below L, since the offset would depend on how the queries are
        padded.
    relative_bias : (..., H, L or 1, 2K + 1) array_like of float, optional
        Added to the scores by the distance from query to key, j - i - offset: column K is distance 0, the first and
        the last column are also those of all distances beyond. One row for a head, or one for each query. -inf hides.
    rotary : tuple of two (P, C) array_like of float32 or float64, optional
        Tables (cos, sin): features are rotated, in pairs, by the row of their position, while query and key are loaded;
        both are given unrotated. Query i has row i + offset, key j row j. The first 2 C features rotate; tables of E
        columns hold each number twice, as Hugging Face's do.
    rotary_interleaved : bool, default False
        A pair is features 2n and 2n + 1; by default n and n + half of those that rotate.
    query_positions : (..., L) array_like of int, optional
    key_positions : (..., S) array_like of int, optional
        The rows of the tables, where they are others. Only together with `rotary`.
    rng : numpy.random.Generator or DropoutKey, optional
        Where dropout comes from. A Generator gives up one key in each call with `dropout_p` > 0, and none otherwise.
    return_lse : bool, default False
        Also return the log-sum-exp of the scores.
    enable_gqa : optional
        Accepted for the sake of code written for PyTorch, and ignored: heads are always shared where G < H.
    out : (..., H, L, D) ndarray, optional
        Where the output goes, of its shape and dtype; with `return_lse` a tuple (output, lse), either of which may be
        None. It may overlap any input, and the result is as if it did not.

    Returns
    -------
    output : (..., H, L, D) ndarray
    lse : (..., H, L) ndarray
        Natural logarithm, sinks included, in float32 (float64 where float64 is computed). Only with `return_lse`.

    Raises
    ------
    TypeError
        If an array is complex, a masked array or otherwise not of real numbers, if float16 meets bfloat16, if
        `attn_mask` is of integers, or if `rng` is neither Generator nor DropoutKey.
    ValueError
        If shapes do not fit, if H is not a multiple of G, if a length lies outside its axis, if `scale`, `softcap`,
        `window_size` or `dropout_p` is out of range, if dropout lacks `rng`, or if `out` has another shape or dtype.
        Nothing is computed then.

    See Also
    --------
    attention_weights : the weights P themselves, of all or of some rows.
    attention_received : their sum over the queries.
    merge_attention : joins results over parts of the keys.
    BlockMask : masks of long sequences, in tiles.
    attnpy.reference.scaled_dot_product_attention : the same in float64 NumPy.

    Notes
    -----
    All masks combine by AND. A query that sees no key gives 0, and a log-sum-exp of -inf (with a sink: of the sink).
    A hidden key contributes nothing, whatever is stored there: NaN does not leak. A visible NaN, or a score of +inf,
    gives NaN in its row and in no other; NaN in a visible value reaches only its own column of the rows that see it.

    Sums are made in the compute type, in blocks of at most 64 keys. On one build and CPU level the same inputs give the
    same bits, for any number of threads, any batch size or position (dropout apart), any strides, and with or without
    `return_lse` or `out`. Dropout is a pure function of the key and of (batch number in C order, head, i, j); see
    `dropout_mask`.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762, equation 1.

    T. Dao, "FlashAttention-2: faster attention with better parallelism and work partitioning", 2023, arXiv:2307.08691.

    O. Press, N. Smith, M. Lewis, "Train short, test long: attention with linear biases enables input length
    extrapolation", 2022, arXiv:2108.12409.

    C. Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer", 2020,
    arXiv:1910.10683, section 2.1: a bias for each distance.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> query, key, value = np.eye(2), np.array([[0, 1], [1, 0]]), np.array([[1, 2], [3, 4]])
    >>> attnpy.scaled_dot_product_attention(query, key, value, scale=1).round(6)
    array([[2.462117, 3.462117],
           [1.537883, 2.537883]])

    Two sequences of 3 and 5 valid tokens, 8 query heads that share 2 key/value heads:

    >>> rng = np.random.default_rng(0)
    >>> query = rng.standard_normal((2, 8, 5, 16), np.float32)
    >>> key, value = rng.standard_normal((2, 2, 2, 5, 16), np.float32)
    >>> output, lse = attnpy.scaled_dot_product_attention(
    ...     query, key, value, is_causal=True, query_lengths=[3, 5], kv_lengths=[3, 5], return_lse=True)
    >>> output.shape, output.dtype, lse.shape
    ((2, 8, 5, 16), dtype('float32'), (2, 8, 5))
    >>> lse[0, 0, 3:]
    array([-inf, -inf], dtype=float32)
    """
    words = None if rng is None and type(dropout_p) is float and dropout_p == 0 else _words_of(rng, dropout_p)
    cos, sin = (None, None) if rotary is None else _tables(rotary)
    return _core.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale, bias, causal_offset, window_size, softcap,
        alibi_slopes, sinks, query_lengths, kv_lengths, relative_bias, cos, sin, rotary_interleaved,
        query_positions, key_positions, words, return_lse, out,
    )  # fmt: skip


def attention_weights(
    query: ArrayLike,
    key: ArrayLike,
    attn_mask: ArrayLike | BlockMask | None = None,
    *,
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
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    r"""The weights of attention, of all query rows or of some.

    .. math:: P_{ij} = \exp s_{ij} / \sum_j \exp s_{ij}

    with the scores s of `scaled_dot_product_attention`, over the visible keys j. Letters as there.

    Parameters
    ----------
    query : (..., H, L, E) array_like
    key : (..., G, S, E) array_like
        Their dtypes give that of the result, as in `scaled_dot_product_attention`.
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
        As in `scaled_dot_product_attention`.
    rows : (R,) array_like of int, optional
        Query rows to compute, in any order; repeats and negative numbers are allowed. They are the same for all heads
        and batch elements. Masks, lengths and offset are still those of the full call.
    out : (..., H, L or R, S) ndarray, optional
        Where the result goes, of its shape and dtype.

    Returns
    -------
    (..., H, L, S) ndarray, or (..., H, R, S) with `rows`
        Exactly 0 for hidden keys.

    Raises
    ------
    TypeError
        If an array is complex, a masked array or otherwise not of real numbers, if `attn_mask` is of integers, or
        `rows` not of integers.
    ValueError
        If shapes do not fit, a number is out of range, one of `rows` is not in -L … L - 1, or `out` has another shape
        or dtype.

    See Also
    --------
    scaled_dot_product_attention, attention_received, attnpy.plot.heatmap, attnpy.reference.attention_weights

    Notes
    -----
    The rows have the bits of the same rows of the full call. A row that sees no key is 0. A weight below 2^-126
    (float64: 2^-1022) of its row's largest is 0.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762, equation 1.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> query, key = np.zeros((3, 4)), np.zeros((3, 4))
    >>> attnpy.attention_weights(query, key, is_causal=True).round(3)
    array([[1.   , 0.   , 0.   ],
           [0.5  , 0.5  , 0.   ],
           [0.333, 0.333, 0.333]])
    >>> attnpy.attention_weights(query, key, is_causal=True, rows=[-1]).round(3)
    array([[0.333, 0.333, 0.333]])
    """
    cos, sin = (None, None) if rotary is None else _tables(rotary)
    return _core.attention_weights(
        query, key, attn_mask, is_causal, scale, bias, causal_offset, window_size, softcap, alibi_slopes, sinks,
        query_lengths, kv_lengths, relative_bias, cos, sin, rotary_interleaved, query_positions, key_positions,
        rows, out,
    )  # fmt: skip


def attention_received(
    query: ArrayLike,
    key: ArrayLike,
    attn_mask: ArrayLike | BlockMask | None = None,
    *,
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
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    r"""How much attention each key receives: its weights, summed over the queries.

    .. math:: a_j = \sum_i P_{ij}

    with the weights P of `attention_weights`, which are not formed: memory is O(L + S) for each head. Letters as in
    `scaled_dot_product_attention`.

    Parameters
    ----------
    query : (..., H, L, E) array_like
    key : (..., G, S, E) array_like
        Their dtypes give that of the result, as in `scaled_dot_product_attention`.
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
        As in `scaled_dot_product_attention`. Query rows beyond their length are not counted.
    out : (..., H, S) ndarray, optional
        Where the result goes, of its shape and dtype.

    Returns
    -------
    (..., H, S) ndarray

    Raises
    ------
    TypeError
        If an array is complex, a masked array or otherwise not of real numbers, or if `attn_mask` is of integers.
    ValueError
        If shapes do not fit, a number is out of range, or `out` has another shape or dtype.

    See Also
    --------
    attention_weights, scaled_dot_product_attention, attnpy.reference.attention_received

    Notes
    -----
    Without sinks the result sums to the number of queries that see a key.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762, equation 1.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> attnpy.attention_received(np.zeros((3, 4)), np.zeros((3, 4)), is_causal=True).round(3)
    array([1.833, 0.833, 0.333])
    """
    cos, sin = (None, None) if rotary is None else _tables(rotary)
    return _core.attention_received(
        query, key, attn_mask, is_causal, scale, bias, causal_offset, window_size, softcap, alibi_slopes, sinks,
        query_lengths, kv_lengths, relative_bias, cos, sin, rotary_interleaved, query_positions, key_positions,
        out,
    )  # fmt: skip


def merge_attention(
    outputs: ArrayLike | Sequence[ArrayLike], lses: ArrayLike | Sequence[ArrayLike], *, out: Any = None
) -> tuple[NDArray[Any], NDArray[Any]]:
    r"""Join attention over parts of the keys into attention over all of them.

    .. math::

        O = \sum_t \exp(\mathrm{lse}_t - \mathrm{lse})\, O_t, \qquad \mathrm{lse} = \log \sum_t \exp(\mathrm{lse}_t)

    Parameters
    ----------
    outputs : sequence of n (..., H, L, D) array_like, or one (n, ..., H, L, D) array_like
        Outputs of `scaled_dot_product_attention` for the same queries and for parts of the keys.
    lses : sequence of n (..., H, L) array_like, or one (n, ..., H, L) array_like
        Their log-sum-exps.
    out : tuple of two ndarray, optional
        Where output and log-sum-exp go, of their shapes and dtypes; either may be None.

    Returns
    -------
    output : (..., H, L, D) ndarray
        In the dtype of `outputs`.
    lse : (..., H, L) ndarray

    Raises
    ------
    TypeError
        If an array is complex, a masked array or otherwise not of real numbers.
    ValueError
        If there is no part, if outputs and log-sum-exps differ in number or shape, or if `out` does not fit.

    See Also
    --------
    scaled_dot_product_attention, attnpy.reference.merge_attention

    Notes
    -----
    A part whose log-sum-exp is -inf is ignored, whatever its output holds; where all are, the result is 0 and -inf.
    Sinks belong to exactly one of the parts.

    References
    ----------
    M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 4, 6, 8))
    >>> parts = [attnpy.scaled_dot_product_attention(query, key[:, part], value[:, part], return_lse=True)
    ...          for part in (slice(0, 2), slice(2, 6))]
    >>> output, lse = attnpy.merge_attention(*zip(*parts))
    >>> np.allclose(output, attnpy.scaled_dot_product_attention(query, key, value))
    True
    """
    return _core.merge_attention(outputs, lses, out)


class DropoutKey:
    """128 bits that fix a dropout mask. Immutable; equal keys give equal masks on every machine.

    Parameters
    ----------
    key : int or sequence of four int
        The bits as one number in 0 … 2¹²⁸ - 1, or as four words in 0 … 2³² - 1, the lowest first.

    Attributes
    ----------
    words : tuple of four int

    Raises
    ------
    TypeError
        If `key` is not made of integers.
    ValueError
        If it is out of range, or has not four words.

    See Also
    --------
    dropout_key : draws one from a Generator.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.DropoutKey(1)
    DropoutKey(0x00000000000000000000000000000001)
    >>> attnpy.DropoutKey([0, 1, 0, 0]) == attnpy.DropoutKey(2**32)
    True
    """

    __slots__ = ("words",)
    words: tuple[int, int, int, int]

    def __new__(cls, key: int | Sequence[int]) -> DropoutKey:
        try:
            words = tuple(operator.index(word) for word in key) if hasattr(key, "__iter__") else _split(key)
        except TypeError:
            raise TypeError(f"key is {key!r}; it must be an integer or four of them") from None
        if len(words) != 4 or not all(0 <= word < 2**32 for word in words):
            raise ValueError(f"key is {key!r}; it must be in 0 … 2**128 - 1, or four words in 0 … 2**32 - 1")
        self = object.__new__(cls)
        object.__setattr__(self, "words", words)
        return self

    def __setattr__(self, name: str, value: Any = None) -> None:
        raise AttributeError("a DropoutKey cannot be changed")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __int__(self) -> int:
        return sum(word << 32 * i for i, word in enumerate(self.words))

    def __repr__(self) -> str:
        return f"DropoutKey({int(self):#034x})"

    def __eq__(self, other: object) -> bool:
        return self.words == other.words if isinstance(other, DropoutKey) else NotImplemented

    def __hash__(self) -> int:
        return hash((DropoutKey, self.words))

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return DropoutKey, (int(self),)


def dropout_key(rng: np.random.Generator) -> DropoutKey:
    """Draw a key for dropout, to use the same mask in several calls.

    Parameters
    ----------
    rng : numpy.random.Generator
        It gives up four 32-bit integers.

    Returns
    -------
    DropoutKey

    Raises
    ------
    TypeError
        If `rng` is not a Generator.

    See Also
    --------
    dropout_mask, scaled_dot_product_attention

    Notes
    -----
    Passing the Generator itself to `scaled_dot_product_attention` draws the key that this function would have drawn.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> key = attnpy.dropout_key(np.random.default_rng(0))
    >>> query = np.ones((4, 8))
    >>> once, again = (
    ...     attnpy.scaled_dot_product_attention(query, query, query, dropout_p=0.5, rng=key) for _ in range(2))
    >>> bool((once == again).all())
    True
    """
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng is {_kind(rng)}; it must be a numpy.random.Generator")
    return DropoutKey(rng.integers(0, 2**32, 4, np.uint32).tolist())


def dropout_mask(shape: Sequence[int], dropout_p: float, key: DropoutKey, *, dtype: DTypeLike) -> NDArray[Any]:
    r"""The mask by which dropout multiplies the weights of attention.

    .. math:: M_{ij} = \frac{1}{1 - p} \;\text{where}\; r_{ij} \ge \lfloor 2^{32} p \rfloor \;\text{else}\; 0

    with r word j mod 4 of Threefry-4x32-20 at the counter (j // 4, i, head, batch number in C order).

    Parameters
    ----------
    shape : tuple of int
        (..., H, L, S), or (L, S) for one head.
    dropout_p : float
        The probability p in [0, 1) of being dropped.
    key : DropoutKey
        The one given to `scaled_dot_product_attention` as `rng`. A Generator is refused: it would give another key.
    dtype : dtype
        float64, float32, float16, bfloat16, or bool, which says what is kept.

    Returns
    -------
    (..., H, L, S) ndarray

    Raises
    ------
    TypeError
        If `key` is not a DropoutKey, or `dtype` not one of these.
    ValueError
        If `shape` has less than two axes, or `dropout_p` lies outside [0, 1).

    See Also
    --------
    dropout_key, scaled_dot_product_attention, attnpy.reference.dropout_mask

    References
    ----------
    J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011,
    doi:10.1145/2063384.2063405.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.dropout_mask((2, 5), 0.5, attnpy.DropoutKey(0), dtype=bool)
    array([[ True,  True,  True, False, False],
           [False,  True, False,  True,  True]])
    """
    if not isinstance(key, DropoutKey):
        raise TypeError(f"key is {_kind(key)}; it must be a DropoutKey: key = attnpy.dropout_key(rng)")
    return _core.dropout_mask(shape, dropout_p, key.words, dtype)


def _tables(rotary):
    """cos and sin."""
    try:
        cos, sin = rotary
    except (TypeError, ValueError):
        raise TypeError(f"rotary is {_kind(rotary)}; it must be a pair of tables, (cos, sin)") from None
    return cos, sin


def _split(key):
    """The four words of a 128-bit number, the lowest first; a larger number has a larger last word."""
    key = operator.index(key)
    return key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF, key >> 64 & 0xFFFFFFFF, key >> 96


def _words_of(rng, dropout_p):
    """The words of the dropout key for one call, None where nothing is dropped."""
    try:
        p = math.fabs(dropout_p)
    except TypeError:
        p = None
    if p is None or isinstance(dropout_p, bool):
        raise TypeError(f"dropout_p is {_kind(dropout_p)}; it must be a number in [0, 1)")
    if not (0 <= p < 1 and p == dropout_p):
        raise ValueError(f"dropout_p is {dropout_p}; it must be in [0, 1)")
    if isinstance(rng, DropoutKey):
        return rng.words if p else None
    if isinstance(rng, np.random.Generator):
        return dropout_key(rng).words if p else None
    if rng is not None:
        raise TypeError(f"rng is {_kind(rng)}; it must be a numpy.random.Generator or an attnpy.DropoutKey")
    if p:
        raise ValueError(f"dropout_p is {dropout_p}; dropout needs rng, a numpy.random.Generator or a DropoutKey")
    return None


def _kind(x):
    name = type(x).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


scaled_dot_product_attention.signature = "(h,l,d),(g,s,d),(g,s,e)->(h,l,e)"
attention_weights.signature = "(h,l,d),(g,s,d)->(h,l,s)"
attention_received.signature = "(h,l,d),(g,s,d)->(h,s)"
