"""Learned tables of positions: added to tokens, and made longer or shorter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._native import core as _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def add_positions(
    x: ArrayLike, table: ArrayLike, offset: int | ArrayLike = 0, *, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    r"""Tokens plus the rows of a table that belong to their positions.

    .. math:: y_{b,i} = x_{b,i} + t_{b,o_b+i}

    Letters: L tokens, N rows of the table, D features.

    Parameters
    ----------
    x : (..., L, D) array_like
        Tokens, of any real dtype. float16 and bfloat16 are computed in float32 and rounded once, integers and bools in
        float64.
    table : (..., N, D) array_like
        One row a position, learned or from `sinusoidal_encoding`; its batch axes broadcast to those of `x`. It does not
        change the dtype of the result.
    offset : int or (...) array_like of int, default 0
        The position of the first token, one number or one for each batch element: 0 <= offset <= N - L.
    out : (..., L, D) ndarray, optional
        Where the result goes, of its shape and dtype. It may be `x` itself.

    Returns
    -------
    (..., L, D) ndarray
        In the dtype of `x`.

    Raises
    ------
    TypeError
        If `x` or `table` is not real, or `offset` does not hold integers.
    ValueError
        If shapes do not fit, if a token would lie outside the table, or if `out` has another shape or dtype.

    See Also
    --------
    add_positions_backward, interpolate_positions, attnpy.reference.add_positions

    Notes
    -----
    Rows of the table that no token takes are not read: they may hold anything.

    References
    ----------
    J. Gehring et al., "Convolutional sequence to sequence learning", 2017, arXiv:1705.03122, section 3.1.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> table = np.array([[0.0, 0.0], [1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    >>> attnpy.add_positions(np.ones((2, 2)), table, 2)
    array([[ 3., 21.],
           [ 4., 31.]])
    """
    return _core.add_positions(x, table, offset, out)


def add_positions_backward(
    grad_output: ArrayLike, table: ArrayLike, offset: int | ArrayLike = 0, *, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    r"""The gradient of `add_positions` for its table; that for x is `grad_output` itself.

    .. math:: \mathrm{d}t_n = \sum_{b} \mathrm{d}y_{b,n-o_b}

    over the batch elements b that share the table and have a token at position n.

    Parameters
    ----------
    grad_output : (..., L, D) array_like
        The gradient of the sum.
    table : (..., N, D) array_like
        As given to `add_positions`; only its shape and dtype count.
    offset : int or (...) array_like of int, default 0
        As given to `add_positions`.
    out : (..., N, D) ndarray, optional
        Where the result goes, of the shape and dtype of `table`.

    Returns
    -------
    (..., N, D) ndarray
        In the shape and dtype of `table` (float64 for integers). 0 in rows that no token took.

    Raises
    ------
    TypeError
        If `grad_output` or `table` is not real, or `offset` does not hold integers.
    ValueError
        If shapes do not fit, if a token would lie outside the table, or if `out` has another shape or dtype.

    See Also
    --------
    add_positions, attnpy.reference.add_positions_backward

    Notes
    -----
    Summed in float32, or float64 where `grad_output` is float64, in one order for any number of threads.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> attnpy.add_positions_backward(np.ones((3, 2, 1)), np.zeros((4, 1)), [0, 1, 1])
    array([[1.],
           [3.],
           [2.],
           [0.]])
    """
    return _core.add_positions_backward(grad_output, table, offset, out)


def interpolate_positions(table: ArrayLike, length: int, *, out: NDArray[Any] | None = None) -> NDArray[Any]:
    r"""A table of positions stretched or shrunk to another length, by linear interpolation.

    .. math:: y_n = (1 - f)\, t_m + f\, t_{m+1}, \quad m + f = \max(0, (n + 1/2)\, N / M - 1/2)

    and the last row beyond the last row. M is `length`.

    Parameters
    ----------
    table : (..., N, D) array_like
        One row a position, of any real dtype.
    length : int
        The rows M of the result.
    out : (..., M, D) ndarray, optional
        Where the result goes, of its shape and dtype.

    Returns
    -------
    (..., M, D) ndarray
        In the dtype of `table`; for M = N its very numbers.

    Raises
    ------
    TypeError
        If `table` is not real, or `length` not an integer.
    ValueError
        If `length` is negative, if there is nothing to interpolate from, or if `out` has another shape or dtype.

    See Also
    --------
    interpolate_positions_2d, interpolate_positions_backward, attnpy.reference.interpolate_positions

    Notes
    -----
    As ``torch.nn.functional.interpolate(mode="linear", align_corners=False)``: rows are cells whose centres count, and
    a table is shrunk without smoothing it first.

    References
    ----------
    A. Dosovitskiy et al., "An image is worth 16x16 words", 2020, arXiv:2010.11929, section 3.2.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.interpolate_positions([[0.0], [4.0]], 4)
    array([[0.],
           [1.],
           [3.],
           [4.]])
    """
    return _core.interpolate_positions(table, length, out)


def interpolate_positions_backward(
    grad_output: ArrayLike, length: int, *, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    r"""The gradient of `interpolate_positions` for its table.

    .. math:: \mathrm{d}t_m = \sum_n w_{nm}\, \mathrm{d}y_n

    with the weights of the forward function.

    Parameters
    ----------
    grad_output : (..., M, D) array_like
        The gradient of the interpolated table.
    length : int
        The rows N of the table.
    out : (..., N, D) ndarray, optional
        Where the result goes, of its shape and dtype.

    Returns
    -------
    (..., N, D) ndarray
        In the dtype of `grad_output`.

    Raises
    ------
    TypeError
        If `grad_output` is not real, or `length` not an integer.
    ValueError
        If `length` is negative, or 0 where there is a gradient, or if `out` has another shape or dtype.

    See Also
    --------
    interpolate_positions, attnpy.reference.interpolate_positions_backward

    Examples
    --------
    >>> import attnpy
    >>> attnpy.interpolate_positions_backward([[1.0], [0.0], [0.0], [8.0]], 2)
    array([[1.],
           [8.]])
    """
    return _core.interpolate_positions_backward(grad_output, length, out)


def interpolate_positions_2d(
    table: ArrayLike,
    from_grid: tuple[int, int],
    to_grid: tuple[int, int],
    *,
    num_prefix_tokens: int = 0,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    r"""A table of image patches for a grid of another size, by bicubic interpolation, as ViT and DeiT checkpoints need.

    .. math:: y_{(v,u)} = \sum_a w_{va} \sum_b w'_{ub}\, t_{(a,b)}

    with the cubic kernel of Keys, a = -3/4, on four neighbours along each axis.

    Letters: N = P + rows x columns of `from_grid`, M the same of `to_grid`, P prefix tokens.

    Parameters
    ----------
    table : (..., N, D) array_like
        One row for each prefix token, then one for each patch, row by row; of any real dtype.
    from_grid, to_grid : tuple of int
        (rows, columns) of patches, before and after.
    num_prefix_tokens : int, default 0
        Rows P at the start that are copied: 1 for a class token (ViT), 2 with a distillation token (DeiT).
    out : (..., M, D) ndarray, optional
        Where the result goes, of its shape and dtype.

    Returns
    -------
    (..., M, D) ndarray
        In the dtype of `table`; for a grid that stays as it is its very numbers.

    Raises
    ------
    TypeError
        If `table` is not real, or grids do not hold integers.
    ValueError
        If the rows of `table` are not those of `from_grid` and the prefix, if there is nothing to interpolate from, or
        if `out` has another shape or dtype.

    See Also
    --------
    interpolate_positions, interpolate_positions_2d_backward, sinusoidal_encoding_2d,
    attnpy.reference.interpolate_positions_2d

    Notes
    -----
    As ``torch.nn.functional.interpolate(size=to_grid, mode="bicubic", align_corners=False)``, without antialias, which
    is what Hugging Face's ViT does with ``interpolate_pos_encoding=True``. timm smooths before it shrinks (antialias),
    and DINOv2 passes a scale factor that is not quite the ratio of the sizes: both give other numbers.

    References
    ----------
    A. Dosovitskiy et al., "An image is worth 16x16 words", 2020, arXiv:2010.11929, section 3.2.
    R. Keys, "Cubic convolution interpolation for digital image processing", 1981, doi:10.1109/TASSP.1981.1163711.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> table = np.array([[7.0], [0.0], [1.0], [2.0], [3.0]])  # a class token and 2 x 2 patches
    >>> attnpy.interpolate_positions_2d(table, (2, 2), (1, 2), num_prefix_tokens=1).ravel()
    array([7., 1., 2.])
    """
    return _core.interpolate_positions_2d(table, from_grid, to_grid, num_prefix_tokens, out)


def interpolate_positions_2d_backward(
    grad_output: ArrayLike,
    from_grid: tuple[int, int],
    to_grid: tuple[int, int],
    *,
    num_prefix_tokens: int = 0,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    r"""The gradient of `interpolate_positions_2d` for its table.

    .. math:: \mathrm{d}t_{(a,b)} = \sum_v w_{va} \sum_u w'_{ub}\, \mathrm{d}y_{(v,u)}

    with the weights of the forward function.

    Parameters
    ----------
    grad_output : (..., M, D) array_like
        The gradient of the interpolated table.
    from_grid, to_grid : tuple of int
        As in the forward call: (rows, columns) of the table's patches and of the result's.
    num_prefix_tokens : int, default 0
        As in the forward call.
    out : (..., N, D) ndarray, optional
        Where the result goes, of its shape and dtype.

    Returns
    -------
    (..., N, D) ndarray
        In the dtype of `grad_output`.

    Raises
    ------
    TypeError
        If `grad_output` is not real, or grids do not hold integers.
    ValueError
        If the rows of `grad_output` are not those of `to_grid` and the prefix, or if `out` has another shape or dtype.

    See Also
    --------
    interpolate_positions_2d, attnpy.reference.interpolate_positions_2d_backward

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> gradient = np.array([[7.0], [1.0], [2.0]])
    >>> attnpy.interpolate_positions_2d_backward(gradient, (2, 2), (1, 2), num_prefix_tokens=1).ravel()
    array([7. , 0.5, 1. , 0.5, 1. ])
    """
    return _core.interpolate_positions_2d_backward(grad_output, from_grid, to_grid, num_prefix_tokens, out)


add_positions.signature = "(l,d),(n,d)->(l,d)"
add_positions_backward.signature = "(l,d),(n,d)->(n,d)"
interpolate_positions.signature = interpolate_positions_backward.signature = "(n,d)->(m,d)"
interpolate_positions_2d.signature = interpolate_positions_2d_backward.signature = "(n,d)->(m,d)"
