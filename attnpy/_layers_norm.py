"""Normalisation of rows, and its gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._native import core as _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


def layer_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: int | Sequence[int] = -1,
    eps: float = 1e-5,
    residual: ArrayLike | None = None,
    return_sum: bool = False,
    out: NDArray[Any] | tuple[NDArray[Any] | None, ...] | None = None,
) -> Any:
    r"""`x` shifted and scaled along an axis to mean 0 and variance 1, then by `weight` and `bias`.

    .. math::

        y_i = w_i \frac{s_i - m}{\sqrt{v + \varepsilon}} + b_i, \qquad
        s = x + \mathrm{residual}, \quad m = \frac1n \sum_j s_j, \quad v = \frac1n \sum_j (s_j - m)^2

    Parameters
    ----------
    x : (..., n) array_like
        Of any real dtype. float16 and bfloat16 are computed in float32 and rounded once, integers and bools in float64.
    weight, bias : (n,) array_like, optional
        Of the shape of the normalised axes; 1 and 0 by default. They do not change the dtype of the result.
    axis : int or tuple of int, default -1
        The axes that mean and variance are taken over.
    eps : float, default 1e-5
        Added to the variance; not negative.
    residual : (..., n) array_like, optional
        Added to `x` first, of its shape.
    return_sum : bool, default False
        Return the sum of `x` and `residual` too, which goes on past the layer.
    out : (..., n) ndarray, or a tuple of two with `return_sum`, optional
        Where the results go, of their shape and dtype. Each may be an operand itself.

    Returns
    -------
    (..., n) ndarray, or a tuple of two
        The result, in the dtype of `x` and `residual`; with `return_sum` also their sum.

    Raises
    ------
    TypeError
        If an operand is not real, or `out` has another dtype.
    ValueError
        If `axis` does not fit `x`, if `weight`, `bias`, `residual` or `out` has another shape, or if `eps` is negative.

    See Also
    --------
    rms_norm, layer_norm_backward, attnpy.reference.layer_norm

    Notes
    -----
    Mean and variance take two passes over a row, and what the mean was rounded by is made good, so that a mean far from
    0 costs no accuracy. A row with a NaN or an infinity becomes NaN; so does a constant row where `eps` is 0.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer normalization", 2016, arXiv:1607.06450.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> attnpy.layer_norm([1.0, 2.0, 3.0], [1.0, 1.0, 2.0], [0.0, 1.0, 0.0], eps=0).round(6)
    array([-1.224745,  1.      ,  2.44949 ])
    >>> attnpy.layer_norm([1e6, 1e6 + 2], residual=[1.0, 1.0], eps=0, return_sum=True)
    (array([-1.,  1.]), array([1000001., 1000003.]))
    """
    return _core.layer_norm(x, weight, bias, axis, eps, residual, return_sum, out)


def rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    axis: int | Sequence[int] = -1,
    eps: float = 1e-5,
    residual: ArrayLike | None = None,
    return_sum: bool = False,
    out: NDArray[Any] | tuple[NDArray[Any] | None, ...] | None = None,
) -> Any:
    r"""`x` scaled along an axis to mean square 1, then by `weight`.

    .. math::

        y_i = w_i \frac{s_i}{\sqrt{v + \varepsilon}}, \qquad s = x + \mathrm{residual}, \quad v = \frac1n \sum_j s_j^2

    Parameters
    ----------
    x : (..., n) array_like
        Of any real dtype. float16 and bfloat16 are computed in float32 and rounded once, integers and bools in float64.
    weight : (n,) array_like, optional
        Of the shape of the normalised axes; 1 by default. It does not change the dtype of the result.
    axis : int or tuple of int, default -1
        The axes that the mean is taken over.
    eps : float, default 1e-5
        Added to the mean square; not negative.
    residual : (..., n) array_like, optional
        Added to `x` first, of its shape.
    return_sum : bool, default False
        Return the sum of `x` and `residual` too, which goes on past the layer.
    out : (..., n) ndarray, or a tuple of two with `return_sum`, optional
        Where the results go, of their shape and dtype. Each may be an operand itself.

    Returns
    -------
    (..., n) ndarray, or a tuple of two
        The result, in the dtype of `x` and `residual`; with `return_sum` also their sum.

    Raises
    ------
    TypeError
        If an operand is not real, or `out` has another dtype.
    ValueError
        If `axis` does not fit `x`, if `weight`, `residual` or `out` has another shape, or if `eps` is negative.

    See Also
    --------
    layer_norm, rms_norm_backward, attnpy.reference.rms_norm

    Notes
    -----
    A row with a NaN becomes NaN; so does a row of zeros where `eps` is 0.

    References
    ----------
    B. Zhang, R. Sennrich, "Root mean square layer normalization", 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.rms_norm([3.0, 4.0, 0.0, 0.0], eps=0)
    array([1.2, 1.6, 0. , 0. ])
    """
    return _core.rms_norm(x, weight, axis, eps, residual, return_sum, out)


def layer_norm_backward(
    grad_output: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    axis: int | Sequence[int] = -1,
    eps: float = 1e-5,
    grad_sum: ArrayLike | None = None,
    out: tuple[NDArray[Any] | None, ...] | None = None,
) -> Any:
    r"""Gradients of a loss with respect to the operands of `layer_norm`, from that with respect to its result.

    .. math::

        \frac{\partial\ell}{\partial x_i} = \frac{1}{\sqrt{v + \varepsilon}}
        \Bigl(p_i - \frac1n \sum_j p_j - h_i \frac1n \sum_j p_j h_j\Bigr), \qquad
        \frac{\partial\ell}{\partial w_i} = \sum g_i h_i, \quad \frac{\partial\ell}{\partial b_i} = \sum g_i

    with :math:`h_i = (x_i - m) / \sqrt{v + \varepsilon}`, :math:`p = g w`, and the last two sums over all rows.

    Parameters
    ----------
    grad_output : (..., n) array_like
        Gradient with respect to the result, of the shape of `x`.
    x : (..., n) array_like
        What was normalised: with a residual, the sum.
    weight : (n,) array_like, optional
        As it was given to `layer_norm`.
    axis : int or tuple of int, default -1
        As it was given to `layer_norm`.
    eps : float, default 1e-5
        As it was given to `layer_norm`.
    grad_sum : (..., n) array_like, optional
        Gradient with respect to the sum that `return_sum` returned; it is added to that of `x`.
    out : tuple of three ndarrays or None, optional
        Where the gradients go, of the shape and dtype of their operands. The first may be an operand itself.

    Returns
    -------
    tuple of three ndarrays
        The gradients of `x` (and of the residual: it is the same), (..., n), of the weight and of the bias, (n,). The
        last two have the dtype of `weight`; without one that of `x`, and the weight counts as 1.

    Raises
    ------
    TypeError
        If an operand is not real, or an `out` has another dtype.
    ValueError
        If `axis` does not fit `x`, if shapes differ, or if `eps` is negative.

    See Also
    --------
    layer_norm, rms_norm_backward, attnpy.reference.layer_norm_backward

    Notes
    -----
    Sums over rows are made of chunks of at most 64 rows, added in ascending order: the same bits for any number of
    threads.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer normalization", 2016, arXiv:1607.06450.

    Examples
    --------
    >>> import attnpy
    >>> grad_x, grad_weight, grad_bias = attnpy.layer_norm_backward([[1.0, 0.0], [0.0, 0.0]], [[1.0, 3.0], [0.0, 2.0]])
    >>> grad_weight.round(4), grad_bias
    (array([-1.,  0.]), array([1., 0.]))
    """
    return _core.layer_norm_backward(grad_output, x, weight, axis, eps, grad_sum, out)


def rms_norm_backward(
    grad_output: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    axis: int | Sequence[int] = -1,
    eps: float = 1e-5,
    grad_sum: ArrayLike | None = None,
    out: tuple[NDArray[Any] | None, ...] | None = None,
) -> Any:
    r"""Gradients of a loss with respect to the operands of `rms_norm`, from that with respect to its result.

    .. math::

        \frac{\partial\ell}{\partial x_i} = \frac{1}{\sqrt{v + \varepsilon}}
        \Bigl(p_i - h_i \frac1n \sum_j p_j h_j\Bigr), \qquad \frac{\partial\ell}{\partial w_i} = \sum g_i h_i

    with :math:`h_i = x_i / \sqrt{v + \varepsilon}`, :math:`p = g w`, and the last sum over all rows.

    Parameters
    ----------
    grad_output : (..., n) array_like
        Gradient with respect to the result, of the shape of `x`.
    x : (..., n) array_like
        What was normalised: with a residual, the sum.
    weight : (n,) array_like, optional
        As it was given to `rms_norm`.
    axis : int or tuple of int, default -1
        As it was given to `rms_norm`.
    eps : float, default 1e-5
        As it was given to `rms_norm`.
    grad_sum : (..., n) array_like, optional
        Gradient with respect to the sum that `return_sum` returned; it is added to that of `x`.
    out : tuple of two ndarrays or None, optional
        Where the gradients go, of the shape and dtype of their operands. The first may be an operand itself.

    Returns
    -------
    tuple of two ndarrays
        The gradients of `x` (and of the residual: it is the same), (..., n), and of the weight, (n,), in the dtype of
        `weight`; without one in that of `x`, and the weight counts as 1.

    Raises
    ------
    TypeError
        If an operand is not real, or an `out` has another dtype.
    ValueError
        If `axis` does not fit `x`, if shapes differ, or if `eps` is negative.

    See Also
    --------
    rms_norm, layer_norm_backward, attnpy.reference.rms_norm_backward

    References
    ----------
    B. Zhang, R. Sennrich, "Root mean square layer normalization", 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.rms_norm_backward([1.0, 0.0], [3.0, 3.0], eps=0)
    (array([ 0.16666667, -0.16666667]), array([1., 0.]))
    """
    return _core.rms_norm_backward(grad_output, x, weight, axis, eps, grad_sum, out)


layer_norm.signature = rms_norm.signature = "(n)->(n)"
layer_norm_backward.signature = "(n),(n)->(n),(n),(n)"
rms_norm_backward.signature = "(n),(n)->(n),(n)"
