"""Gradients of softmax, of its logarithm and of its normaliser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._native import core as _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


def softmax_backward(
    grad_output: ArrayLike,
    output: ArrayLike,
    axis: int | Sequence[int] = -1,
    *,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> Any:
    r"""Gradient of a loss with respect to the operand of `softmax`, from that with respect to its result.

    .. math:: \frac{\partial\ell}{\partial x_i} = y_i \Bigl(g_i - \sum_j g_j y_j\Bigr)

    with :math:`y` the `output` of softmax and :math:`g = \partial\ell / \partial y` the `grad_output`.

    Parameters
    ----------
    grad_output : (..., n) array_like
        The gradient with respect to `output`, of its shape and of any real dtype.
    output : (..., n) array_like
        What `softmax` returned. Half types are computed in float32 and rounded once, integers and bools in float64.
    axis : int or tuple of int, default -1
        The axes that softmax summed over.
    where : (..., n) array_like of bool, optional
        The elements that took part (True); it broadcasts to the shape of `output`. The others may hold anything in
        `output` and `grad_output`, NaN too.
    out : (..., n) ndarray, optional
        Where the result goes, of the shape and dtype of `output`. It may be `output` or `grad_output` itself.

    Returns
    -------
    (..., n) ndarray
        In the dtype of `output`. 0 for elements that do not take part.

    Raises
    ------
    TypeError
        If an array is not real, or `where` is not boolean.
    ValueError
        If the shapes differ, if `axis` does not fit, if `where` does not broadcast to the shape, or if `out` has
        another shape or dtype.

    See Also
    --------
    softmax, log_softmax_backward, attnpy.reference.softmax_backward

    Notes
    -----
    The gradients of a row sum to 0 where its outputs sum to 1: adding a constant to all scores changes nothing. A NaN
    that takes part makes its row NaN. The bits are the same for any number of threads, any strides, and with or
    without `out`.

    References
    ----------
    T. Dao, D. Y. Fu, S. Ermon, A. Rudra, C. Ré, "FlashAttention", 2022, arXiv:2205.14135, appendix B.2.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> y = attnpy.softmax(np.log([1.0, 2.0, 5.0]))  # 1/8, 2/8, 5/8
    >>> attnpy.softmax_backward([8.0, 0.0, 0.0], y).round(6)
    array([ 0.875, -0.25 , -0.625])
    >>> attnpy.softmax_backward([2.0, 4.0, np.nan], [0.5, 0.5, 0.0], where=[True, True, False])
    array([-0.5,  0.5,  0. ])
    """
    return _core.softmax_backward(grad_output, output, axis, where, out)


def log_softmax_backward(
    grad_output: ArrayLike,
    output: ArrayLike,
    axis: int | Sequence[int] = -1,
    *,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> Any:
    r"""Gradient of a loss with respect to the operand of `log_softmax`, from that with respect to its result.

    .. math:: \frac{\partial\ell}{\partial x_i} = g_i - \exp(y_i) \sum_j g_j

    with :math:`y` the `output` of log_softmax and :math:`g = \partial\ell / \partial y` the `grad_output`.

    Parameters
    ----------
    grad_output : (..., n) array_like
        The gradient with respect to `output`, of its shape and of any real dtype.
    output : (..., n) array_like
        What `log_softmax` returned. Half types are computed in float32 and rounded once, integers and bools in
        float64.
    axis : int or tuple of int, default -1
        The axes that log_softmax summed over.
    where : (..., n) array_like of bool, optional
        The elements that took part (True); it broadcasts to the shape of `output`. The others may hold anything in
        `output` and `grad_output`, NaN too.
    out : (..., n) ndarray, optional
        Where the result goes, of the shape and dtype of `output`. It may be `output` or `grad_output` itself.

    Returns
    -------
    (..., n) ndarray
        In the dtype of `output`. 0 for elements that do not take part.

    Raises
    ------
    TypeError
        If an array is not real, or `where` is not boolean.
    ValueError
        If the shapes differ, if `axis` does not fit, if `where` does not broadcast to the shape, or if `out` has
        another shape or dtype.

    See Also
    --------
    log_softmax, softmax_backward, attnpy.reference.log_softmax_backward

    Notes
    -----
    With a `grad_output` of -1 at the right class and 0 elsewhere this is the gradient of the cross entropy: the
    probabilities, less 1 at the right class. An `output` of -inf that takes part passes its gradient on unchanged.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA J.
    Numer. Anal. 41, 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> y = attnpy.log_softmax(np.log([1.0, 2.0, 5.0]))
    >>> attnpy.log_softmax_backward([0.0, -1.0, 0.0], y).round(6)
    array([ 0.125, -0.75 ,  0.625])
    """
    return _core.log_softmax_backward(grad_output, output, axis, where, out)


def logsumexp_backward(
    grad_output: ArrayLike,
    x: ArrayLike,
    output: ArrayLike,
    axis: int | Sequence[int] = -1,
    *,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: NDArray[Any] | None = None,
) -> Any:
    r"""Gradient of a loss with respect to the operand of `logsumexp`, from that with respect to its result.

    .. math:: \frac{\partial\ell}{\partial x_i} = g \exp(x_i - y)

    with :math:`y` the `output` of logsumexp and :math:`g = \partial\ell / \partial y` the `grad_output`.

    Parameters
    ----------
    grad_output : (...) array_like
        The gradient with respect to `output`, of its shape and of any real dtype.
    x : (..., n) array_like
        The operand of `logsumexp`. Half types are computed in float32 and rounded once, integers and bools in float64.
    output : (...) array_like
        What `logsumexp` returned.
    axis : int or tuple of int, default -1
        The axes that logsumexp summed over.
    where : (..., n) array_like of bool, optional
        The elements that took part (True); it broadcasts to the shape of `x`. The others may hold anything in `x`,
        NaN too.
    keepdims : bool, default False
        Whether `output` and `grad_output` have the summed axes, with length 1.
    out : (..., n) ndarray, optional
        Where the result goes, of the shape and dtype of `x`. It may be `x` itself.

    Returns
    -------
    (..., n) ndarray
        In the dtype of `x`. 0 for elements that do not take part, and where `output` is -inf: nothing took part.

    Raises
    ------
    TypeError
        If an array is not real, or `where` is not boolean.
    ValueError
        If the shapes do not fit one another, if `axis` does not fit `x`, if `where` does not broadcast to its shape,
        or if `out` has another shape or dtype.

    See Also
    --------
    logsumexp, softmax, attnpy.reference.logsumexp_backward

    Notes
    -----
    With a `grad_output` of 1 this is the softmax of `x`.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA J.
    Numer. Anal. 41, 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> x = np.log([1.0, 2.0, 5.0])
    >>> attnpy.logsumexp_backward(16.0, x, attnpy.logsumexp(x)).round(6)
    array([ 2.,  4., 10.])
    """
    return _core.logsumexp_backward(grad_output, x, output, axis, where, keepdims, out)


softmax_backward.signature = log_softmax_backward.signature = "(n),(n)->(n)"
logsumexp_backward.signature = "(),(n),()->(n)"
