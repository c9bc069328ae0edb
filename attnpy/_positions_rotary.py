"""Rotary position embedding: its tables, the rotation, and weights between its two pairings."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from ._native import core as _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray


def rotary_embedding(
    x: ArrayLike,
    cos: ArrayLike | None = None,
    sin: ArrayLike | None = None,
    *,
    positions: ArrayLike | None = None,
    inverse_frequencies: ArrayLike | None = None,
    interleaved: bool = False,
    rotary_dim: int | None = None,
    inverse: bool = False,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    r"""Turns pairs of features by angles that grow with the position of their token.

    .. math::

        y_a = x_a \cos(p\,\omega_i) - x_b \sin(p\,\omega_i), \qquad y_b = x_b \cos(p\,\omega_i) + x_a \sin(p\,\omega_i)

    for a token at position p and pair i of rotary_dim / 2, so that the product of a query and a key depends on
    their distance alone. Pair i is (a, b) = (i, rotary_dim / 2 + i), or with `interleaved` (2 i, 2 i + 1).

    Parameters
    ----------
    x : (..., H, L, D) or (L, D) array_like
        Queries or keys. Half types are computed in float32 and rounded once, integers in float64.
    cos, sin : (..., P, rotary_dim / 2) array_like, optional
        Tables with a row for each position, from `rotary_tables`; leading axes broadcast to the batch axes of `x`.
        Tables of another type than that computed in are copied. With rotary_dim columns they hold each number twice,
        for both features of its pair. The default is made of `inverse_frequencies`.
    positions : (..., L) array_like of int, optional
        The row of the tables for each token; it broadcasts over the batch axes. The default is 0 … L - 1. Without
        tables they may be any real numbers.
    inverse_frequencies : (rotary_dim / 2,) array_like, optional
        In place of tables, from `rotary_frequencies`. The default, where there are no tables, is those of base 10000.
    interleaved : bool, default False
        Whether neighbouring features are a pair (RoFormer, Meta's Llama, GPT-J), not those half of rotary_dim apart
        (Hugging Face's Llama, GPT-NeoX). `permute_rotary_weights` leads from one to the other.
    rotary_dim : int, optional
        The first so many features turn, the others stay. The default is D for tables of D columns, else twice their
        columns.
    inverse : bool, default False
        Turn back, by the transposed rotation: the gradient with respect to `x` is that of the result, turned back.
    out : (..., H, L, D) ndarray, optional
        Where the result goes, of the shape and dtype of `x`. It may be `x` itself.

    Returns
    -------
    (..., H, L, D) ndarray
        In the dtype of `x`.

    Raises
    ------
    TypeError
        If an array is not real, or `positions` are no integers.
    ValueError
        If a shape does not fit, a position has no row, `rotary_dim` is odd or above D, or a table of rotary_dim columns
        holds different numbers for the features of a pair.

    See Also
    --------
    rotary_tables, rotary_frequencies, scaled_dot_product_attention, attnpy.reference.rotary_embedding

    Notes
    -----
    Where cos and sin are multiplied by an attention factor m, turning there and back multiplies by m². A NaN or an
    infinity reaches the other feature of its pair. At position 0 nothing changes. The bits are the same for any number
    of threads, any strides, and with or without `out`. Attention with ``rotary=`` turns queries and keys in the same
    way, with the same bits, while it loads them.

    References
    ----------
    J. Su et al., "RoFormer: Enhanced transformer with rotary position embedding", 2021, arXiv:2104.09864, equation 34.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> cos, sin = attnpy.rotary_tables(4, [np.pi / 2])  # a quarter turn for each position
    >>> attnpy.rotary_embedding(np.float32([[1, 0]] * 4), cos, sin).round(3) + 0
    array([[ 1.,  0.],
           [ 0.,  1.],
           [-1.,  0.],
           [ 0., -1.]], dtype=float32)
    >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 64))
    >>> def product(i, j):
    ...     return attnpy.rotary_embedding(query, positions=[i]) @ attnpy.rotary_embedding(key, positions=[j]).T
    >>> bool(np.allclose(product(7, 3), product(1004, 1000)))
    True
    """
    if cos is None or sin is None or inverse_frequencies is not None:
        cos, sin, rotary_dim = _own_tables(x, cos, sin, positions, inverse_frequencies, rotary_dim)
        positions = None
    return _core.rotary_embedding(x, cos, sin, positions, interleaved, rotary_dim, inverse, out)


def _own_tables(x, cos, sin, positions, inverse_frequencies, rotary_dim):
    """Tables with a row for each token."""
    if (cos is None) != (sin is None):
        raise ValueError(f"{'cos' if cos is None else 'sin'} is missing: the tables go together")
    if cos is not None:
        raise ValueError("inverse_frequencies are given beside cos and sin, which they would be made into")
    shape = tuple(np.shape(x))
    if len(shape) < 2:
        raise ValueError(f"x has shape {shape}; it must have at least 2 axes")
    if inverse_frequencies is None:
        from ._positions_frequencies import rotary_frequencies  # takes time to import, and is seldom asked for here

        frequencies, _ = rotary_frequencies(shape[-1], rotary_dim=rotary_dim)
    else:
        frequencies = _real("inverse_frequencies", inverse_frequencies)
        if frequencies.ndim != 1 or 2 * len(frequencies) > shape[-1]:
            raise ValueError(
                f"inverse_frequencies has shape {frequencies.shape}; it must have one axis, of at most half of the "
                f"{shape[-1]} features"
            )
    wanted = (*shape[:-3], shape[-2])
    places = np.arange(shape[-2]) if positions is None else _real("positions", positions)
    try:
        fits = np.broadcast_shapes(places.shape, wanted) == wanted
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"positions has shape {places.shape}; it must broadcast to {wanted}")
    places = np.broadcast_to(places, (*places.shape[:-1], shape[-2]))
    cos, sin = rotary_tables(places, frequencies, dtype=np.float64)
    return cos, sin, 2 * len(frequencies) if rotary_dim is None else rotary_dim


def rotary_tables(
    positions: ArrayLike,
    inverse_frequencies: ArrayLike,
    attention_factor: float = 1.0,
    *,
    dtype: DTypeLike = np.float32,
) -> tuple[NDArray[Any], NDArray[Any]]:
    r"""The cosines and sines that `rotary_embedding` and attention turn by.

    .. math:: \cos_{p, i} = m \cos(p\,\omega_i), \qquad \sin_{p, i} = m \sin(p\,\omega_i)

    Parameters
    ----------
    positions : int or (...) array_like
        The number of positions 0, 1, 2 …, or the positions themselves, any real numbers.
    inverse_frequencies : (n,) array_like
        From `rotary_frequencies`.
    attention_factor : float, default 1.0
        m, as `rotary_frequencies` returns it.
    dtype : dtype, default float32
        float32 or float64: half types hold too few positions apart.

    Returns
    -------
    cos, sin : (..., n) ndarray

    Raises
    ------
    TypeError
        If an argument is not real, or `dtype` is another.
    ValueError
        If `positions` is a negative number, or `inverse_frequencies` has not one axis.

    See Also
    --------
    rotary_embedding, rotary_frequencies, rotary_tables_2d, attnpy.reference.rotary_tables

    Notes
    -----
    The product of position and frequency is carried in two numbers of float64, so that float32 tables are off by less
    than a unit in the last place for all positions, 2²⁰ and beyond, and those between whole numbers.

    References
    ----------
    J. Su et al., "RoFormer: Enhanced transformer with rotary position embedding", 2021, arXiv:2104.09864.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> cos, sin = attnpy.rotary_tables(3, [np.pi / 2, np.pi / 4])
    >>> sin.round(4)
    array([[0.    , 0.    ],
           [1.    , 0.7071],
           [0.    , 1.    ]], dtype=float32)
    """
    frequencies = _real("inverse_frequencies", inverse_frequencies)
    if frequencies.ndim != 1:
        raise ValueError(f"inverse_frequencies has shape {frequencies.shape}; it must have one axis")
    return _tables(_places("positions", positions)[..., None], frequencies, attention_factor, dtype)


def rotary_tables_2d(
    rows: ArrayLike,
    columns: ArrayLike,
    inverse_frequencies: ArrayLike,
    attention_factor: float = 1.0,
    *,
    dtype: DTypeLike = np.float32,
) -> tuple[NDArray[Any], NDArray[Any]]:
    r"""Tables of rotary embedding for images: half of the pairs turn by a token's row, half by its column.

    .. math:: \cos_{t, i} = m \cos(\mathrm{row}_t\,\omega_i), \qquad
        \cos_{t, n + i} = m \cos(\mathrm{column}_t\,\omega_i), \qquad i = 0 \ldots n - 1

    and sin likewise.

    Parameters
    ----------
    rows, columns : int or (...) array_like
        Two whole numbers: the size of a grid, whose tokens come row by row. Else the row and the column of each token,
        any real numbers, which broadcast with each other.
    inverse_frequencies : (n,) or (2, n) array_like
        Those of both axes, or of rows and of columns; n is a quarter of the features that turn.
    attention_factor : float, default 1.0
        m, which cos and sin are multiplied by.
    dtype : dtype, default float32
        float32 or float64.

    Returns
    -------
    cos, sin : (..., 2 n) ndarray
        For a grid (rows columns, 2 n).

    Raises
    ------
    TypeError
        If an argument is not real, or `dtype` is another.
    ValueError
        If a shape does not fit, or a size is negative.

    See Also
    --------
    rotary_tables, rotary_embedding, attnpy.reference.rotary_tables_2d

    Notes
    -----
    The convention of Qwen2-VL's vision tower, with ``rotary_frequencies(head_dim // 2)`` and half-split pairs. Pixtral
    gives every other frequency of ``rotary_frequencies(head_dim)`` to the rows, the others to the columns:
    ``np.stack([w[0::2], w[1::2]])``. DINOv3 has the positions of patch centres in -1 … 1, times 2 π. EVA-02 is as
    Qwen2-VL, with interleaved pairs.

    References
    ----------
    P. Wang et al., "Qwen2-VL", 2024, arXiv:2409.12191; P. Agrawal et al., "Pixtral 12B", 2024, arXiv:2410.07073;
    Y. Fang et al., "EVA-02", 2023, arXiv:2303.11331.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> cos, sin = attnpy.rotary_tables_2d(2, 3, [np.pi / 2])
    >>> sin.round(4) + 0  # of each token: by its row, by its column
    array([[0., 0.],
           [0., 1.],
           [0., 0.],
           [1., 0.],
           [1., 1.],
           [1., 0.]], dtype=float32)
    """
    frequencies = _real("inverse_frequencies", inverse_frequencies)
    if frequencies.ndim not in (1, 2) or (frequencies.ndim == 2 and len(frequencies) != 2):
        raise ValueError(f"inverse_frequencies has shape {frequencies.shape}; it must be (n,), or (2, n)")
    by_row, by_column = frequencies if frequencies.ndim == 2 else (frequencies, frequencies)
    grid = np.ndim(rows) == np.ndim(columns) == 0 and all(_is_whole(x) for x in (rows, columns))
    rows, columns = _places("rows", rows), _places("columns", columns)
    if grid:
        rows, columns = (x.reshape(-1) for x in np.broadcast_arrays(rows[:, None], columns))
    try:
        rows, columns = np.broadcast_arrays(rows, columns)
    except ValueError:
        raise ValueError(f"rows has shape {rows.shape} and columns {columns.shape}, which do not broadcast") from None
    of_rows = _tables(rows[..., None], by_row, attention_factor, dtype)
    of_columns = _tables(columns[..., None], by_column, attention_factor, dtype)
    return tuple(np.concatenate(both, -1) for both in zip(of_rows, of_columns))


def permute_rotary_weights(
    weight: ArrayLike, num_heads: int, *, to: str, axis: int = 0, rotary_dim: int | None = None
) -> NDArray[Any]:
    """The weight or bias of a projection to queries or keys, for the other pairing of rotary embedding.

    With both projections so permuted and `interleaved` changed, attention has the same weights: within each head,
    feature 2 i of interleaved pairs is feature i of half-split ones, W'[i] = W[2 i], and feature 2 i + 1 is feature
    rotary_dim / 2 + i.

    Parameters
    ----------
    weight : (..., num_heads D, ...) array_like
        Of any dtype.
    num_heads : int
        Heads: for the projection to keys, its own.
    to : {"half_split", "interleaved"}
        The pairing that it is made for.
    axis : int, default 0
        That of the output features: 0 for PyTorch's weights (out, in) and for biases, -1 for weights (in, out).
    rotary_dim : int, optional
        The first so many features of each head turn, and are permuted; the default is all of them.

    Returns
    -------
    (..., num_heads D, ...) ndarray
        A copy.

    Raises
    ------
    TypeError
        If a number is not an integer.
    ValueError
        If `to` is another word, or the sizes do not fit.

    See Also
    --------
    rotary_embedding, attnpy.reference.permute_rotary_weights

    Notes
    -----
    Checkpoints of Meta's Llama are interleaved, those that Hugging Face distributes half-split: this is the permutation
    in between.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> attnpy.permute_rotary_weights(np.arange(8), 2, to="half_split")  # two heads of four features
    array([0, 2, 1, 3, 4, 6, 5, 7])
    """
    weight = np.asarray(weight)
    if to not in ("half_split", "interleaved"):
        raise ValueError(f"to is {to!r}; it must be 'half_split' or 'interleaved'")
    num_heads, axis = _whole("num_heads", num_heads), _whole("axis", axis)
    if not -weight.ndim <= axis < weight.ndim:
        raise ValueError(f"axis is {axis}, but weight has {weight.ndim} axes")
    features = weight.shape[axis]
    if num_heads < 1 or features % num_heads:
        raise ValueError(f"num_heads is {num_heads}; it must divide the {features} features on axis {axis} of weight")
    head_dim = features // num_heads
    dim = head_dim if rotary_dim is None else _whole("rotary_dim", rotary_dim)
    if dim % 2 or not 0 <= dim <= head_dim:
        raise ValueError(f"rotary_dim is {dim}; it must be an even number in 0 … {head_dim}")
    pairs = np.arange(dim).reshape((-1, 2) if to == "half_split" else (2, -1)).T.reshape(-1)
    order = np.concatenate([pairs, np.arange(dim, head_dim)])
    return np.take(weight, (np.arange(num_heads)[:, None] * head_dim + order).reshape(-1), axis)


def _whole(name, x):
    try:
        return operator.index(x)
    except TypeError:
        raise TypeError(f"{name} is {x!r}; it must be an integer") from None


def _is_whole(x):
    return np.asarray(x).dtype.kind in "iu"


def _real(name, x):
    """As float64."""
    x = np.asarray(x)
    if x.dtype.kind not in "fiub" and x.dtype.name != "bfloat16":
        raise TypeError(f"{name} has dtype {x.dtype}; it must be of real numbers")
    return x.astype(np.float64, copy=False)


def _places(name, x):
    """Positions, or for a whole number 0 … x - 1."""
    if np.ndim(x) == 0 and _is_whole(x):
        if x < 0:
            raise ValueError(f"{name} is {x}; a number of them must be 0 or more")
        return np.arange(int(x), dtype=np.float64)
    return _real(name, x)


def _tables(positions, frequencies, factor, dtype):
    """m cos and m sin of positions times frequencies, rounded once."""
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"dtype is {dtype}; it must be float32 or float64")
    try:
        factor = float(factor)
    except (TypeError, ValueError):
        raise TypeError(f"attention_factor is {factor!r}; it must be a number") from None
    with np.errstate(all="ignore"):
        angle, rest = _product(positions, frequencies)
        cos, sin = np.cos(angle), np.sin(angle)
        cos, sin = cos - rest * sin, sin + rest * cos
        return (factor * cos).astype(dtype), (factor * sin).astype(dtype)


def _product(x, y):
    """x y as the unevaluated sum of two numbers, by Dekker and Veltkamp: exact up to 2^996."""
    product = x * y
    (a, b), (c, d) = _split(x), _split(y)
    rest = ((a * c - product) + a * d + b * c) + b * d
    return product, np.where(np.isfinite(rest), rest, 0.0)


def _split(x):
    high = x * 134217729.0  # 2^27 + 1
    high = high - (high - x)
    return high, x - high


rotary_embedding.signature = "(h,l,d),(p,c),(p,c)->(h,l,d)"
