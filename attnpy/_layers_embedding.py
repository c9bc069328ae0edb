"""Rows of a table by their numbers, and the gradient of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._native import core as _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def embedding(indices: ArrayLike, table: ArrayLike, *, out: NDArray[Any] | None = None) -> Any:
    r"""Rows of a table, one for each index.

    .. math:: y_i = t_{\mathrm{indices}_i}

    Parameters
    ----------
    indices : (...) array_like of int
        Numbers of rows, each in 0 ... V - 1; negative ones are refused.
    table : (V, D) array_like
        Of any real dtype; integers and bools become float64.
    out : (..., D) ndarray, optional
        Where the result goes, of its shape and dtype.

    Returns
    -------
    (..., D) ndarray
        In the dtype of `table`, bit by bit.

    Raises
    ------
    TypeError
        If `indices` are not integers, `table` is not real, or `out` has another dtype.
    ValueError
        If an index is outside the table, if `table` has other than two axes, or if `out` has another shape.

    See Also
    --------
    embedding_backward, numpy.take, attnpy.reference.embedding

    References
    ----------
    T. Mikolov, K. Chen, G. Corrado, J. Dean, "Efficient estimation of word representations in vector space", 2013,
    arXiv:1301.3781.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.embedding([2, 0], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    array([[5., 6.],
           [1., 2.]])
    """
    return _core.embedding(indices, table, out)


def embedding_backward(
    grad_output: ArrayLike, indices: ArrayLike, num_embeddings: int, *, out: NDArray[Any] | None = None
) -> Any:
    r"""Gradient of a loss with respect to the table of `embedding`, from that with respect to its result.

    .. math:: \frac{\partial\ell}{\partial t_v} = \sum_{i:\ \mathrm{indices}_i = v} g_i

    Parameters
    ----------
    grad_output : (..., D) array_like
        Gradient with respect to the result.
    indices : (...) array_like of int
        As they were given to `embedding`.
    num_embeddings : int
        Rows of the table, V.
    out : (V, D) ndarray, optional
        Where the gradient goes, of its shape and dtype.

    Returns
    -------
    (V, D) ndarray
        In the dtype of `grad_output`; 0 for rows that no index names.

    Raises
    ------
    TypeError
        If `indices` are not integers, `grad_output` is not real, or `out` has another dtype.
    ValueError
        If an index is outside the table, or if shapes do not fit.

    See Also
    --------
    embedding, attnpy.reference.embedding_backward

    Notes
    -----
    Gradients of a row are added in the order of the indices, for any number of threads; float16 and bfloat16 in
    float32, rounded once.

    References
    ----------
    T. Mikolov, K. Chen, G. Corrado, J. Dean, "Efficient estimation of word representations in vector space", 2013,
    arXiv:1301.3781.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.embedding_backward([[1.0], [2.0], [4.0]], [2, 0, 2], 3)
    array([[2.],
           [0.],
           [5.]])
    """
    return _core.embedding_backward(grad_output, indices, num_embeddings, out)


embedding.signature = "(),(v,d)->(d)"
