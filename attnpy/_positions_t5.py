"""T5's relative position biases: buckets of distances, and a table with a number for each bucket and head."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from ._arguments import integer
from ._native import core as _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_LOOKED_UP = 1 << 16  # distances to which buckets are looked up in a table; where there are more they are searched for


def relative_position_bucket(
    relative_position: ArrayLike,
    bidirectional: bool = True,
    num_buckets: int = 32,
    max_distance: int = 128,
    *,
    out: NDArray[np.int64] | None = None,
) -> Any:
    r"""The bucket of T5 that a distance falls into.

    With n buckets for a direction (half of `num_buckets` where there are two), and m the whole part of n / 2, the
    distances 0 … m - 1 have buckets of their own; those beyond share buckets whose widths grow geometrically:

    .. math::

        \mathrm{bucket}(d) = \min\Bigl(n - 1,\; m + \Bigl\lfloor (n - m)\,
        \frac{\ln (d / m)}{\ln (\mathrm{max\_distance} / m)} \Bigr\rfloor\Bigr)

    Parameters
    ----------
    relative_position : (...) array_like of int
        Position of the key minus that of the query.
    bidirectional : bool, default True
        Whether keys after the query have buckets of their own, the second half of all (encoders). If not, all of them
        fall into bucket 0 (decoders, where they are hidden).
    num_buckets : int, default 32
        Buckets in all: at least 2, with two directions 4.
    max_distance : int, default 128
        From here on all distances are in the last bucket.
    out : (...) ndarray of int64, optional
        Where the result goes.

    Returns
    -------
    (...) ndarray of int64
        In 0 … num_buckets - 1.

    Raises
    ------
    TypeError
        If `relative_position` is not of integers, or a number is not an integer.
    ValueError
        If there are too few buckets, if `max_distance` is not beyond the distances with buckets of their own, or if
        `out` has another shape.

    See Also
    --------
    t5_relative_bias
    attnpy.reference.relative_position_bucket : the same, bucket by bucket.

    Notes
    -----
    The distances where buckets begin are found in whole numbers (the smallest d with
    :math:`d^{n-m} \ge \mathrm{max\_distance}^k m^{n-m-k}`), so every distance is exact, also where the logarithm's
    quotient is a whole number and its last bit would decide. The result is looked up in a table by NumPy, which takes
    the time of reading and writing the arrays: a kernel would gain nothing.

    References
    ----------
    C. Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer", 2020,
    arXiv:1910.10683, section 2.1; the formula is that of the authors' code.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.relative_position_bucket([-200, -16, -8, -1, 0, 1, 8, 200])
    array([15, 10,  8,  1,  0, 17, 24, 31])
    >>> attnpy.relative_position_bucket([-200, -16, -8, -1, 0, 1], bidirectional=False)
    array([31, 16,  8,  1,  0,  0])
    """
    starts = _checked_starts(bidirectional, num_buckets, max_distance)
    x = np.asarray(relative_position)
    if x.size == 0 and not isinstance(relative_position, np.ndarray):
        x = x.astype(np.int64)  # of an empty list
    if x.dtype.kind not in "iu":
        raise TypeError(f"relative_position is {x.dtype}; it must be of integers")
    if out is not None:
        _check_out(out, x.shape)
    farthest = int(starts[-1])
    if x.dtype.kind == "u":
        x = np.minimum(x, np.uint64(farthest))
    x = np.clip(x.astype(np.int64, copy=False), -farthest, farthest if bidirectional else 0)
    if farthest <= _LOOKED_UP:
        x += farthest
        return np.take(_table(bool(bidirectional), num_buckets, max_distance), x, out=out, mode="clip")
    buckets = _search(starts, bidirectional, x)
    if out is None:
        return buckets
    out[...] = buckets
    return out


def t5_relative_bias(
    table: ArrayLike,
    query_length: int,
    key_length: int,
    *,
    offset: int | None = None,
    bidirectional: bool = True,
    max_distance: int = 128,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    r"""T5's relative position bias in the compact form that attention takes as ``relative_bias=``.

    .. math:: \mathrm{bias}_{h, 0, c} = \mathrm{table}_{\mathrm{bucket}(c - K),\, h}, \qquad c = 0 \ldots 2K

    with the buckets of `relative_position_bucket`. Attention adds column
    :math:`\mathrm{clip}(j - i - \mathrm{offset}, -K, K) + K` to the score of query i and key j. K is the smallest
    number for which this says everything: the first distance of the bucket of the farthest of these queries and keys.

    Parameters
    ----------
    table : (num_buckets, H) array_like
        A learned number for each bucket and query head: ``relative_attention_bias.weight`` of the published models.
    query_length, key_length : int
        L and S.
    offset : int, optional
        Query i stands at position i + offset, key j at j. The default is S - L, as in attention. It matters for K
        alone.
    bidirectional : bool, default True
        Whether keys after the query have buckets of their own: True in T5's encoder, False in its decoder.
    max_distance : int, default 128
        From here on all distances are in the last bucket.
    out : (H, 1, 2 K + 1) ndarray, optional
        Where the result goes, of the dtype of `table`.

    Returns
    -------
    (H, 1, 2 K + 1) ndarray
        In the dtype of `table` (float64 for integers, bools and lists).

    Raises
    ------
    TypeError
        If `table` is not of real numbers, or a length or number is not an integer.
    ValueError
        If `table` has other axes or too few buckets, if a length is negative, if `max_distance` is not beyond the
        distances with buckets of their own, or if `out` has another shape.

    See Also
    --------
    t5_relative_bias_backward, relative_position_bucket, scaled_dot_product_attention
    attnpy.reference.t5_relative_bias : the same in float64 NumPy.

    Notes
    -----
    T5 does not scale its scores: give attention ``scale=1.0``. Its first layer's table serves all layers, and its
    cross-attention has no such bias.

    References
    ----------
    C. Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer", 2020,
    arXiv:1910.10683, section 2.1.

    Examples
    --------
    Four buckets, two heads: the same key, another after it, and the key before it.

    >>> import attnpy
    >>> attnpy.t5_relative_bias([[1, 2], [3, 4], [5, 6], [7, 8]], 2, 2)
    array([[[3., 1., 7.]],
    <BLANKLINE>
           [[4., 2., 8.]]])

    However long the sequences, there are no more columns than distances that differ:

    >>> import numpy as np
    >>> attnpy.t5_relative_bias(np.zeros((32, 8), np.float32), 4096, 4096).shape
    (8, 1, 183)
    """
    buckets = _columns(table, query_length, key_length, offset, bidirectional, max_distance)
    return _core.t5_relative_bias(table, buckets, out)


def t5_relative_bias_backward(
    grad_output: ArrayLike,
    table: ArrayLike,
    query_length: int,
    key_length: int,
    *,
    offset: int | None = None,
    bidirectional: bool = True,
    max_distance: int = 128,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    r"""Gradient of `t5_relative_bias`: from that of the compact bias to that of the table.

    .. math:: d\mathrm{table}_{b, h} = \sum_{c:\; \mathrm{bucket}(c - K) = b} d\mathrm{bias}_{h, 0, c}

    Parameters
    ----------
    grad_output : (H, 1, 2 K + 1) array_like
        The gradient with respect to the result of `t5_relative_bias`, as attention's backward pass gives it for
        `relative_bias`.
    table : (num_buckets, H) array_like
    query_length, key_length : int
    offset : int, optional
    bidirectional : bool, default True
    max_distance : int, default 128
        As given to the forward. Of `table` only shape and dtype are used.
    out : (num_buckets, H) ndarray, optional
        Where the result goes, of the dtype of `table`. It may overlap any input.

    Returns
    -------
    (num_buckets, H) ndarray
        In the dtype of `table`; 0 for buckets that no column is in. Half types are summed in float32 and rounded once.

    Raises
    ------
    TypeError
        If an array is not of real numbers, or a length or number is not an integer.
    ValueError
        If `grad_output` has not the shape of the forward's result, and where the forward raises it.

    See Also
    --------
    t5_relative_bias, scaled_dot_product_attention_backward
    attnpy.reference.t5_relative_bias_backward : the same in float64 NumPy.

    References
    ----------
    C. Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer", 2020,
    arXiv:1910.10683, section 2.1.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.t5_relative_bias_backward([[[1, 10, 100]]], [[1], [3], [5], [7]], 2, 2)
    array([[ 10.],
           [  1.],
           [  0.],
           [100.]])
    """
    buckets = _columns(table, query_length, key_length, offset, bidirectional, max_distance)
    return _core.t5_relative_bias_backward(grad_output, table, buckets, out)


def _integer(name: str, x: Any, least: int | None = None, most: int | None = None) -> int:
    number = integer(name, x)
    if least is not None and number < least:
        raise ValueError(f"{name} is {number}; it must be {least} or more")
    if most is not None and number > most:
        raise ValueError(f"{name} is {number}; it must be {most} or less")
    return number


def _checked_starts(bidirectional: Any, num_buckets: Any, max_distance: Any) -> NDArray[np.int64]:
    number = _integer("num_buckets", num_buckets, 4 if bidirectional else 2, 1 << 20)
    number = number // 2 if bidirectional else number
    return _starts(number, _integer("max_distance", max_distance, number // 2 + 1, 1 << 62))


@functools.lru_cache(maxsize=64)
def _starts(number: int, max_distance: int) -> NDArray[np.int64]:
    """The first distance of each bucket of one direction but that of distance 0."""
    alone = number // 2
    shared = number - alone
    starts = list(range(1, alone + 1))
    for k in range(1, shared):
        least = max_distance**k * alone ** (shared - k)  # of d to the power `shared`
        d = max(alone, round(alone * (max_distance / alone) ** (k / shared)))
        while d**shared >= least:
            d -= 1
        while d**shared < least:
            d += 1
        starts.append(d)
    found = np.array(starts, np.int64)
    found.flags.writeable = False
    return found


def _search(starts: NDArray[np.int64], bidirectional: Any, x: NDArray[np.int64]) -> Any:
    """The buckets of distances that lie within the first of the last bucket."""
    buckets = np.searchsorted(starts, np.abs(x), "right")
    return buckets + (len(starts) + 1) * (x > 0) if bidirectional else np.where(x > 0, 0, buckets)


@functools.lru_cache(maxsize=16)
def _table(bidirectional: bool, num_buckets: int, max_distance: int) -> NDArray[np.int64]:
    """The bucket of every distance up to the first of the last bucket, in both directions."""
    starts = _starts(num_buckets // 2 if bidirectional else num_buckets, max_distance)
    found = _search(starts, bidirectional, np.arange(-starts[-1], starts[-1] + 1))
    found.flags.writeable = False
    return found


def _columns(
    table: Any, query_length: Any, key_length: Any, offset: Any, bidirectional: Any, max_distance: Any
) -> NDArray[np.int64]:
    """The bucket of each column of the compact bias."""
    length, keys = _integer("query_length", query_length, 0), _integer("key_length", key_length, 0)
    offset = keys - length if offset is None else _integer("offset", offset)
    shape = np.shape(table)
    if len(shape) != 2:
        return np.empty(0, np.int64)  # what is wrong is said where the table is taken
    starts = _checked_starts(bidirectional, shape[0], max_distance)
    before, after = (
        length - 1 + offset,
        keys - 1 - offset,
    )  # the distances of the last query's first key, the first query's last
    farthest = max(abs(before), abs(after)) if bidirectional else max(before, 0)
    bucket = np.searchsorted(starts, min(farthest, int(starts[-1])), "right") if length and keys else 0
    farthest = starts[bucket - 1] if bucket else 0  # where its bucket begins: beyond that nothing changes
    return _search(starts, bidirectional, np.arange(-farthest, farthest + 1))


def _check_out(out: Any, shape: tuple[int, ...]) -> None:
    if type(out) is not np.ndarray or out.dtype != np.int64:
        kind = out.dtype if isinstance(out, np.ndarray) else type(out).__name__
        raise TypeError(f"out is {kind}; it must be an ndarray of int64")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}; it must be {shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
