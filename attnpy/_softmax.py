"""Softmax, its logarithm and its normaliser, over any axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._native import core as _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


def softmax(
    x: ArrayLike, axis: int | Sequence[int] = -1, *, where: ArrayLike | None = None, out: NDArray[Any] | None = None
) -> Any:
    r"""Exponentials of `x`, scaled so that they sum to 1 along an axis.

    .. math:: y_i = \exp(x_i) / \sum_j \exp(x_j)

    Parameters
    ----------
    x : (..., n) array_like
        Scores, of any real dtype. float16 and bfloat16 are computed in float32 and rounded once, integers and bools
        in float64.
    axis : int or tuple of int, default -1
        The axes that are summed over.
    where : (..., n) array_like of bool, optional
        Elements that take part (True = keep); it broadcasts to the shape of `x`. The others may hold anything, NaN too.
    out : (..., n) ndarray, optional
        Where the result goes, of its shape and dtype. It may be `x` itself.

    Returns
    -------
    (..., n) ndarray
        In the dtype of `x`. 0 for elements that do not take part; all 0 where none does.

    Raises
    ------
    TypeError
        If `x` is not real, or `where` is not boolean.
    ValueError
        If `axis` does not fit `x`, if `where` does not broadcast to its shape, or if `out` has another shape or dtype.

    See Also
    --------
    log_softmax, logsumexp, attnpy.reference.softmax

    Notes
    -----
    The largest element is subtracted first, so that nothing overflows. A NaN or +inf that takes part makes its
    result NaN. The bits are the same for any number of threads, any strides, and with or without `out`.

    References
    ----------
    M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> attnpy.softmax(np.log([1.0, 2.0, 5.0])).round(6)
    array([0.125, 0.25 , 0.625])
    >>> attnpy.softmax([1000.0, 1000.0, np.nan], where=[True, True, False])
    array([0.5, 0.5, 0. ])
    """
    return _core.softmax(x, axis, where, out)


def log_softmax(
    x: ArrayLike, axis: int | Sequence[int] = -1, *, where: ArrayLike | None = None, out: NDArray[Any] | None = None
) -> Any:
    r"""Logarithm of the softmax, exact where the softmax itself would be 0.

    .. math:: y_i = x_i - \log \sum_j \exp(x_j)

    Parameters
    ----------
    x : (..., n) array_like
        Scores, of any real dtype. float16 and bfloat16 are computed in float32 and rounded once, integers and bools
        in float64.
    axis : int or tuple of int, default -1
        The axes that are summed over.
    where : (..., n) array_like of bool, optional
        Elements that take part (True = keep); it broadcasts to the shape of `x`. The others may hold anything, NaN too.
    out : (..., n) ndarray, optional
        Where the result goes, of its shape and dtype. It may be `x` itself.

    Returns
    -------
    (..., n) ndarray
        In the dtype of `x`. -inf for elements that do not take part.

    Raises
    ------
    TypeError
        If `x` is not real, or `where` is not boolean.
    ValueError
        If `axis` does not fit `x`, if `where` does not broadcast to its shape, or if `out` has another shape or dtype.

    See Also
    --------
    softmax, logsumexp, attnpy.reference.log_softmax

    Notes
    -----
    A NaN or +inf that takes part makes its result NaN.

    References
    ----------
    M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.log_softmax([0.0, 1000.0])
    array([-1000.,     0.])
    """
    return _core.log_softmax(x, axis, where, out)


def logsumexp(
    x: ArrayLike,
    axis: int | Sequence[int] = -1,
    *,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: NDArray[Any] | None = None,
) -> Any:
    r"""Logarithm of the sum of exponentials along an axis, without overflow.

    .. math:: y = \log \sum_i \exp(x_i)

    Parameters
    ----------
    x : (..., n) array_like
        Scores, of any real dtype. float16 and bfloat16 are computed in float32 and rounded once, integers and bools
        in float64.
    axis : int or tuple of int, default -1
        The axes that are summed over.
    where : (..., n) array_like of bool, optional
        Elements that take part (True = keep); it broadcasts to the shape of `x`. The others may hold anything, NaN too.
    keepdims : bool, default False
        Leave the summed axes in the result, with length 1.
    out : (...) ndarray, optional
        Where the result goes, of its shape and dtype.

    Returns
    -------
    (...) ndarray
        In the dtype of `x`; a NumPy scalar where no axis is left. -inf where nothing takes part.

    Raises
    ------
    TypeError
        If `x` is not real, or `where` is not boolean.
    ValueError
        If `axis` does not fit `x`, if `where` does not broadcast to its shape, or if `out` has another shape or dtype.

    See Also
    --------
    softmax, log_softmax, attnpy.reference.logsumexp

    Notes
    -----
    A NaN that takes part gives NaN, else a +inf gives +inf.

    References
    ----------
    M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.logsumexp([1000.0, 1000.0])
    np.float64(1000.6931471805599)
    >>> attnpy.logsumexp([[0.0, 1.0], [2.0, 3.0]], axis=(0, 1), keepdims=True).round(6)
    array([[3.44019]])
    """
    return _core.logsumexp(x, axis, where, keepdims, out)


softmax.signature = log_softmax.signature = "(n)->(n)"
logsumexp.signature = "(n)->()"
