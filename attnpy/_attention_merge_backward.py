"""Gradients of joining attention over parts of the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._native import core as _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike


def merge_attention_backward(
    grad_output: ArrayLike,
    outputs: ArrayLike | Sequence[ArrayLike],
    lses: ArrayLike | Sequence[ArrayLike],
    output: ArrayLike,
    lse: ArrayLike,
    *,
    grad_lse: ArrayLike | None = None,
    out: Any = None,
) -> tuple[Any, Any]:
    r"""Gradients of a loss with respect to the parts that `merge_attention` joined, from those of its results.

    .. math::

        w_t = \exp(\mathrm{lse}_t - \mathrm{lse}), \qquad
        \frac{\partial\ell}{\partial O_t} = w_t\, \mathrm{d}O, \qquad
        \frac{\partial\ell}{\partial\,\mathrm{lse}_t}
            = w_t \bigl(\mathrm{d}O \cdot (O_t - O) + \mathrm{d}\,\mathrm{lse}\bigr)

    Parameters
    ----------
    grad_output : (..., H, L, D) array_like
        The gradient with respect to `output`.
    outputs : sequence of n (..., H, L, D) array_like, or one (n, ..., H, L, D) array_like
        The outputs that were joined.
    lses : sequence of n (..., H, L) array_like, or one (n, ..., H, L) array_like
        Their log-sum-exps.
    output : (..., H, L, D) array_like
        What `merge_attention` returned.
    lse : (..., H, L) array_like
        The log-sum-exp that it returned.
    grad_lse : (..., H, L) array_like, optional
        The gradient with respect to `lse`; none counts as 0.
    out : tuple of two, optional
        Where the gradients go: for outputs and for log-sum-exps a tuple of n ndarrays, any of which may be None, or one
        stacked ndarray where they came stacked, or None.

    Returns
    -------
    grad_outputs : tuple of n ndarray, or (n, ..., H, L, D) ndarray
        In the shape and dtype of each output (integers and bools: float64); one array where they came as one ndarray.
    grad_lses : tuple of n ndarray, or (n, ..., H, L) ndarray
        The same of the log-sum-exps.

    Raises
    ------
    TypeError
        If an array is complex, a masked array or otherwise not of real numbers.
    ValueError
        If there is no part, if the shapes or the numbers of arrays do not fit, or if `out` does not fit.

    See Also
    --------
    merge_attention, attnpy.reference.merge_attention_backward

    Notes
    -----
    A part whose log-sum-exp is -inf gets 0, whatever the other arrays hold there. Where a part was broadcast, its
    gradient is the sum over those axes, made in float32 or float64 and rounded once.

    References
    ----------
    M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867.

    Examples
    --------
    Sums 1 and 3: a quarter of the first output, three quarters of the second.

    >>> import numpy as np, attnpy
    >>> outputs, lses = [np.array([[4.0]]), np.array([[8.0]])], np.log([[1.0], [3.0]])
    >>> output, lse = attnpy.merge_attention(outputs, lses)
    >>> grad_outputs, grad_lses = attnpy.merge_attention_backward([[1.0]], outputs, lses, output, lse)
    >>> [x.round(6).tolist() for x in grad_outputs]
    [[[0.25]], [[0.75]]]
    >>> grad_lses.round(6)
    array([[-0.75],
           [ 0.75]])
    """
    return _core.merge_attention_backward(grad_output, outputs, lses, output, lse, grad_lse, out)


merge_attention_backward.signature = "(l,d),(l,d),(l),(l,d),(l)->(l,d),(l)"
