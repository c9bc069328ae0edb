"""Sines and cosines of positions, along one axis or two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._native import core as _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

_LAYOUTS = {"interleaved": False, "concatenated": True}
_DENOMINATORS = {"dim": False, "half_minus_one": True}
_ORDERS = {"rows_first": False, "columns_first": True}


def sinusoidal_encoding(
    positions: int | ArrayLike,
    dim: int,
    *,
    base: float = 10000.0,
    layout: str = "interleaved",
    denominator: str = "dim",
    dtype: DTypeLike | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    r"""Sines and cosines of positions, at frequencies that fall geometrically from 1 to about 1 / base.

    .. math:: y_{p,2i} = \sin(p\, b^{-2i/d}), \quad y_{p,2i+1} = \cos(p\, b^{-2i/d})

    with d = `dim` and b = `base`.

    Parameters
    ----------
    positions : int or (...) array_like
        Positions, also fractional or negative, of any real dtype; an integer n stands for 0, 1, ..., n - 1.
    dim : int
        Features d of a position, at least 1.
    base : float, default 10000.0
        How far the frequencies reach, within 1e-100 ... 1e100.
    layout : {"interleaved", "concatenated"}
        Whether sine and cosine of a frequency are neighbours, as in the paper, or all sines come before all cosines, as
        in tensor2tensor, Transformer-XL and MAE.
    denominator : {"dim", "half_minus_one"}
        Frequency i of F is base ** (-2 i / dim), or base ** (-i / (F - 1)), which ends at 1 / base exactly, as in
        tensor2tensor and fairseq.
    dtype : dtype, optional
        float32, float64, float16 or bfloat16. The default is that of `out`, else float32.
    out : (..., d) ndarray, optional
        Where the result goes, of its shape and dtype.

    Returns
    -------
    (..., d) ndarray
        An odd d has no last cosine if interleaved, and a last feature of 0 if concatenated.

    Raises
    ------
    TypeError
        If `positions` is not real, or `dtype` or that of `out` is none of these.
    ValueError
        If `positions` is a negative integer, if `dim`, `base`, `layout` or `denominator` is none of those above, or if
        `out` has another shape.

    See Also
    --------
    sinusoidal_encoding_2d, add_positions, attnpy.plot.positions, attnpy.reference.sinusoidal_encoding

    Notes
    -----
    Angles are computed and reduced as sums of two doubles: in float32 each number is within one unit in the last place
    of the true value, nearly always within half of one, for any position below 2**50; in float64 within 2.5 units. Half
    types round the float32 number. An infinite or NaN position gives NaN.

    The last bit of a float32 number may depend on its neighbours: where 64 positions grow evenly, all but the first are
    made by rotations of the row before, in float64.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762, section 3.5.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.sinusoidal_encoding(3, 4).round(4)
    array([[ 0.    ,  1.    ,  0.    ,  1.    ],
           [ 0.8415,  0.5403,  0.01  ,  1.    ],
           [ 0.9093, -0.4161,  0.02  ,  0.9998]], dtype=float32)
    >>> attnpy.sinusoidal_encoding([0.5, 1e6], 4, layout="concatenated", dtype=float).round(4)
    array([[ 0.4794,  0.005 ,  0.8776,  1.    ],
           [-0.35  , -0.3056,  0.9368, -0.9522]])
    """
    return _core.sinusoidal_encoding(
        positions,
        dim,
        base,
        _choice("layout", layout, _LAYOUTS),
        _choice("denominator", denominator, _DENOMINATORS),
        dtype,
        out,
    )


def sinusoidal_encoding_2d(
    rows: int | ArrayLike,
    columns: int | ArrayLike,
    dim: int,
    *,
    base: float = 10000.0,
    layout: str = "interleaved",
    denominator: str = "dim",
    order: str = "rows_first",
    dtype: DTypeLike | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    r"""Sinusoidal encoding of the patches of an image: half of the features for the row, half for the column.

    .. math:: y_{r,c} = (\mathrm{enc}_{d/2}(r), \mathrm{enc}_{d/2}(c))

    where :math:`\mathrm{enc}_{d/2}` is `sinusoidal_encoding` with d/2 features.

    Letters: R rows, C columns.

    Parameters
    ----------
    rows, columns : int or (R,), (C,) array_like
        Positions along the two axes, also fractional; an integer n stands for 0, 1, ..., n - 1.
    dim : int
        Features d of a patch, even.
    base : float, default 10000.0
        How far the frequencies reach, within 1e-100 ... 1e100.
    layout : {"interleaved", "concatenated"}
        Of each half.
    denominator : {"dim", "half_minus_one"}
        Frequency i of F is base ** (-4 i / dim), or base ** (-i / (F - 1)).
    order : {"rows_first", "columns_first"}
        Which half comes first.
    dtype : dtype, optional
        float32, float64, float16 or bfloat16. The default is that of `out`, else float32.
    out : (R, C, d) ndarray, optional
        Where the result goes, of its shape and dtype.

    Returns
    -------
    (R, C, d) ndarray
        Reshape to (R C, d) for a sequence of patches.

    Raises
    ------
    TypeError
        If positions are not real, or `dtype` or that of `out` is none of these.
    ValueError
        If `rows` or `columns` is negative or has several axes, if `dim`, `base`, `layout`, `denominator` or `order` is
        none of those above, or if `out` has another shape.

    See Also
    --------
    sinusoidal_encoding, interpolate_positions_2d, attnpy.reference.sinusoidal_encoding_2d

    Notes
    -----
    The defaults are DETR's, which counts from 1 and, normalised, scales to 2 pi:
    ``rows=numpy.arange(1, R + 1) / R * 2 * numpy.pi``. MAE's tables are
    ``layout="concatenated", order="columns_first"``; those of big_vision's ViT also ``denominator="half_minus_one"``.

    References
    ----------
    N. Carion et al., "End-to-end object detection with transformers", 2020, arXiv:2005.12872.
    K. He et al., "Masked autoencoders are scalable vision learners", 2021, arXiv:2111.06377.

    Examples
    --------
    >>> import attnpy
    >>> table = attnpy.sinusoidal_encoding_2d(2, 3, 8)
    >>> table.shape
    (2, 3, 8)
    >>> bool((table[1, 2, :4] == attnpy.sinusoidal_encoding(2, 4)[1]).all())
    True
    """
    return _core.sinusoidal_encoding_2d(
        rows,
        columns,
        dim,
        base,
        _choice("layout", layout, _LAYOUTS),
        _choice("denominator", denominator, _DENOMINATORS),
        _choice("order", order, _ORDERS),
        dtype,
        out,
    )


def _choice(name, value, choices):
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be {' or '.join(map(repr, choices))}")
    return choices[value]


sinusoidal_encoding.signature = "()->(d)"
sinusoidal_encoding_2d.signature = "(h),(w)->(h,w,d)"
