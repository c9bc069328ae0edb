"""The cross entropy of class scores, and its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._native import core as _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: NDArray[Any] | None = None,
) -> Any:
    r"""How unlikely the right classes are under the softmax of the scores: their negative logarithmic probability.

    .. math:: \ell_i = \log \sum_j \exp(x_{ij}) - (1 - s)\, x_{i t_i} - \frac{s}{V} \sum_j x_{ij}

    with :math:`x` the `logits`, :math:`t` the `targets` and :math:`s` the `label_smoothing`.

    Parameters
    ----------
    logits : (..., V) array_like
        Scores of V classes, of any real dtype.
    targets : (...) array_like of int
        The right class of each row, 0 ... V - 1, or `ignore_index`.
    ignore_index : int, default -100
        Rows with this target do not count, whatever their scores hold.
    label_smoothing : float, default 0.0
        The share of the target that is spread over all classes, 0 ... 1.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over the rows that count, their sum, or the loss of each row, 0 where it does not count.
    out : (...) ndarray, optional
        Where the result goes, of its shape and dtype.

    Returns
    -------
    scalar, or (...) ndarray with ``reduction="none"``
        float32, or float64 where `logits` are float64, integers or bools. The mean over no rows is NaN.

    Raises
    ------
    TypeError
        If `logits` are not real, `targets` are not integers, or `out` has another dtype.
    ValueError
        If a target is no class, if shapes do not fit, or if `label_smoothing` or `reduction` is none of the above.

    See Also
    --------
    cross_entropy_backward, log_softmax, attnpy.reference.cross_entropy

    References
    ----------
    C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the Inception architecture for computer
    vision", 2015, arXiv:1512.00567.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> attnpy.cross_entropy(np.log([[1.0, 3.0], [1.0, 1.0], [9.0, 1.0]]), [1, 0, -100]).round(6)
    np.float64(0.490415)
    """
    return _core.cross_entropy(logits, targets, ignore_index, label_smoothing, reduction, out)


def cross_entropy_backward(
    grad_output: ArrayLike,
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: NDArray[Any] | None = None,
) -> Any:
    r"""Gradient of a loss with respect to the scores given to `cross_entropy`, from that with respect to its result.

    .. math:: \frac{\partial\ell}{\partial x_{ij}} = g_i \Bigl(p_{ij} - (1 - s) [j = t_i] - \frac{s}{V}\Bigr)

    with :math:`p` the softmax of the scores and :math:`g_i` the gradient of the loss of row i: `grad_output` by
    itself, for the mean divided by the number of rows that count.

    Parameters
    ----------
    grad_output : scalar, or (...) array_like with ``reduction="none"``
        Gradient with respect to the result.
    logits : (..., V) array_like
        As they were given to `cross_entropy`.
    targets : (...) array_like of int
        As they were given to `cross_entropy`.
    ignore_index : int, default -100
        As it was given to `cross_entropy`.
    label_smoothing : float, default 0.0
        As it was given to `cross_entropy`.
    reduction : {"mean", "sum", "none"}, default "mean"
        As it was given to `cross_entropy`.
    out : (..., V) ndarray, optional
        Where the gradient goes, of the shape and dtype of `logits`. It may be `logits` itself.

    Returns
    -------
    (..., V) ndarray
        In the dtype of `logits`; 0 in rows that do not count.

    Raises
    ------
    TypeError
        If an operand is not real, `targets` are not integers, or `out` has another dtype.
    ValueError
        If a target is no class, if shapes do not fit, or if `label_smoothing` or `reduction` is none of the above.

    See Also
    --------
    cross_entropy, softmax_backward, attnpy.reference.cross_entropy_backward

    References
    ----------
    C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the Inception architecture for computer
    vision", 2015, arXiv:1512.00567.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> attnpy.cross_entropy_backward(1.0, np.log([[1.0, 3.0], [1.0, 1.0]]), [1, 0])
    array([[ 0.125, -0.125],
           [-0.25 ,  0.25 ]])
    """
    return _core.cross_entropy_backward(
        grad_output, logits, targets, ignore_index, label_smoothing, reduction, out
    )  # fmt: skip


cross_entropy.signature = "(v),()->()"
