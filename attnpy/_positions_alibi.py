"""ALiBi: biases that fall linearly with the distance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._arguments import integer
from ._native import core as _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def alibi_slopes(num_heads: int) -> NDArray[np.float64]:
    r"""The slopes of ALiBi, as its authors choose them.

    For a power of two, :math:`n` heads, slope :math:`h` is :math:`2^{-8 (h + 1) / n}`. For other numbers of heads the
    slopes of the power of two below come first, and then the first, third, fifth … of those for twice as many heads.

    Parameters
    ----------
    num_heads : int
        The number of query heads H.

    Returns
    -------
    (H,) ndarray of float64
        For ``alibi_slopes=`` of attention, or for `alibi_bias`.

    Raises
    ------
    TypeError
        If `num_heads` is not an integer.
    ValueError
        If it is negative.

    See Also
    --------
    alibi_bias, scaled_dot_product_attention
    attnpy.reference.alibi_slopes : the same in plain NumPy.

    Notes
    -----
    Made by NumPy, since there is next to nothing to compute. For numbers of heads that are no powers of two the paper's
    formula would give a geometric sequence; this is the rule of the authors' code, which the published models (BLOOM,
    MPT) were trained with.

    References
    ----------
    O. Press, N. Smith, M. Lewis, "Train short, test long: attention with linear biases enables input length
    extrapolation", 2022, arXiv:2108.12409, section 3 and appendix A.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.alibi_slopes(4)
    array([0.25      , 0.0625    , 0.015625  , 0.00390625])
    >>> attnpy.alibi_slopes(3)
    array([0.0625    , 0.00390625, 0.25      ])
    """
    heads = integer("num_heads", num_heads)
    if heads < 0:
        raise ValueError(f"num_heads is {heads}; it must not be negative")
    below = 1 << max(heads.bit_length() - 1, 0)
    exponents = np.arange(1, min(below, heads) + 1) * (-8 / below)
    between = (2 * np.arange(heads - len(exponents)) + 1) * (-4 / below)
    return np.exp2(np.concatenate([exponents, between]))


def alibi_bias(
    slopes: ArrayLike,
    query_length: int,
    key_length: int,
    *,
    offset: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    r"""The bias of ALiBi as an array.

    .. math:: \mathrm{bias}_{hij} = -\mathrm{slope}_h\, |i + \mathrm{offset} - j|

    Attention computes the same from ``alibi_slopes=`` without such an array. This one is for other libraries, and to
    look at.

    Parameters
    ----------
    slopes : (H,) or (..., H) array_like
        One slope for each query head, as from `alibi_slopes`. Their dtype is that of the result (float64 for integers,
        bools and lists); half types are computed in float32 and rounded once.
    query_length, key_length : int
        L and S.
    offset : (...) array_like of int, optional
        Query i stands at position i + offset, key j at j. One number, or one for each element of the batch axes of
        `slopes`. The default is S - L: the last query stands at the last key.
    out : (..., H, L, S) ndarray, optional
        Where the result goes, of the dtype of `slopes`.

    Returns
    -------
    (..., H, L, S) ndarray
        The bias, for ``bias=`` of attention.

    Raises
    ------
    TypeError
        If `slopes` are not real numbers, or a length or offset is not an integer.
    ValueError
        If a length is negative, if `offset` does not fit, or if `out` has another shape.

    See Also
    --------
    alibi_slopes, scaled_dot_product_attention
    attnpy.reference.alibi_bias : the same in float64 NumPy.

    Notes
    -----
    A product of a finite slope that is beyond the type computed in is its largest number: -inf would hide the key.

    References
    ----------
    O. Press, N. Smith, M. Lewis, "Train short, test long: attention with linear biases enables input length
    extrapolation", 2022, arXiv:2108.12409, section 3.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.alibi_bias([0.5], 3, 3)
    array([[[ 0. , -0.5, -1. ],
            [-0.5,  0. , -0.5],
            [-1. , -0.5,  0. ]]])
    >>> attnpy.alibi_bias([0.5], 1, 3)  # the last row of it
    array([[[-1. , -0.5,  0. ]]])
    """
    return _core.alibi_bias(slopes, query_length, key_length, offset, out)
