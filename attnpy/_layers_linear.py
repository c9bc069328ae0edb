"""The linear layer, its gradients, and weights packed once for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._native import core as _core

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray


def linear(
    x: ArrayLike,
    weight: ArrayLike | PackedWeight,
    bias: ArrayLike | None = None,
    *,
    activation: str | None = None,
    residual: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> Any:
    r"""Linear layer: rows times a matrix of weights, with bias, activation and residual in one pass.

    .. math:: y = f(x W^\mathsf{T} + b) + r

    with K input and N output features, and f the `activation`.

    Parameters
    ----------
    x : (..., K) array_like
        The rows.
    weight : (N, K) array_like or PackedWeight
        The weights W, a row for each output, as PyTorch and weight files have them; ``weight.T`` of a (K, N) array is
        read as well. A `PackedWeight` saves the time of packing in every call.
    bias : (N,) array_like, optional
        b, added to every row.
    activation : {"relu", "gelu", "gelu_tanh", "silu"}, optional
        f. gelu is x Φ(x) by the error function, gelu_tanh its approximation by tanh, silu is x / (1 + exp(-x)).
    residual : (..., N) array_like, optional
        r, added at the end; it broadcasts to the shape of the result.
    out : (..., N) ndarray, optional
        Where the result goes, of its shape and dtype. It may overlap any input.

    Returns
    -------
    (..., N) ndarray
        In the common dtype of `x` and `weight`: float64 if one of them is, or holds integers; float32 if one of them
        is; else the half type of both, computed in float32 and rounded once. Weights packed as int8 have no say.

    Raises
    ------
    TypeError
        If an array is complex, a masked array or otherwise not of real numbers, if float16 meets bfloat16, or if
        `activation` is no string.
    ValueError
        If shapes do not fit, if there is no such activation, or if `out` has another shape. Nothing is computed then.

    See Also
    --------
    PackedWeight, linear_backward, attnpy.reference.linear

    Notes
    -----
    An element is a sum over K in blocks of 384, each a chain of fused multiply-adds, added in order. So its error is at
    most :math:`u\,(c + K/c + 3) (\sum_k |x_k w_k| + |b|)` before the activation, c = min(K, 384), and a row has the
    same bits alone and among others, for any number of threads, any strides, packed weights and plain ones.

    References
    ----------
    K. Goto, R. van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34, 2008,
    doi:10.1145/1356052.1356053.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> weight = np.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.0]])
    >>> attnpy.linear([[1.0, 1.0], [2.0, 3.0]], weight, [0.5, 0.0, 0.0])
    array([[ 3.5, -1. ,  3. ],
           [ 8.5, -3. ,  6. ]])
    >>> attnpy.linear([2.0, 3.0], weight, activation="relu", residual=1.0)
    array([9., 1., 7.])
    """
    return _core.linear(x, weight, bias, activation, residual, out)


class LinearGradients(NamedTuple):
    """Gradients of `linear`, by operand; None where none was asked for.

    Parameters
    ----------
    x : (..., K) ndarray, optional
    weight : (N, K) ndarray, optional
    bias : (N,) ndarray, optional
        In the dtype of the operand.

    Raises
    ------
    TypeError
        If it is made with another name.

    See Also
    --------
    linear_backward

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> attnpy.linear_backward([1.0], [2.0, 3.0], [[4.0, 5.0]], needs=("weight",)).weight
    array([[2., 3.]])
    """

    x: NDArray[Any] | None = None
    weight: NDArray[Any] | None = None
    bias: NDArray[Any] | None = None


_FIELDS = LinearGradients._fields


def linear_backward(
    grad_output: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | PackedWeight,
    bias: ArrayLike | None = None,
    *,
    activation: str | None = None,
    preactivation: ArrayLike | None = None,
    needs: Sequence[str] = ("x", "weight"),
    out: Mapping[str, NDArray[Any] | None] | None = None,
) -> LinearGradients:
    r"""Gradients of a loss with respect to the operands of `linear`, from that with respect to its result.

    .. math::

        dz = g \odot f'(z), \qquad dx = dz\, W, \qquad dW = dz^\mathsf{T} x, \qquad db = \sum_m dz_m

    with :math:`z = x W^\mathsf{T} + b`, the sum over all rows m, and :math:`g` the `grad_output`.

    Parameters
    ----------
    grad_output : (..., N) array_like
        The gradient with respect to the result. It is also that with respect to `residual`, summed where that
        broadcast.
    x : (..., K) array_like
    weight : (N, K) array_like or PackedWeight
        As given to the forward. Packed weights have no gradient themselves.
    bias : (N,) array_like, optional
        As given to the forward; needed with an activation, and for its own gradient.
    activation : {"relu", "gelu", "gelu_tanh", "silu"}, optional
        As given to the forward.
    preactivation : (..., N) array_like, optional
        z, if it was kept: ``linear(x, weight, bias)``. It is computed anew otherwise, as the forward did; without an
        activation it is not read.
    needs : sequence of str, default ("x", "weight")
        The operands whose gradients to compute: fields of `LinearGradients`.
    out : mapping of str to ndarray, optional
        Where the gradients go, by field: arrays of the shapes and dtypes of the operands, which must be among `needs`.
        They may overlap any input.

    Returns
    -------
    LinearGradients
        Each in the dtype and shape of its operand (of integers, bools and lists: float64).

    Raises
    ------
    TypeError
        If an array is complex, a masked array or otherwise not of real numbers, if `needs` is not a sequence of names,
        or `out` not a mapping.
    ValueError
        If shapes do not fit, if there is no such activation, if `needs` or `out` names an operand that is absent or has
        no gradient, or if an array of `out` has another shape or dtype. Nothing is computed then.

    See Also
    --------
    linear, LinearGradients, attnpy.reference.linear_backward

    Notes
    -----
    Sums are made as in `linear`: over N for x, over the rows for the others, in blocks of 384. relu has slope 0 at 0.
    The bits are the same for any number of threads and any strides.

    References
    ----------
    D. E. Rumelhart, G. E. Hinton, R. J. Williams, "Learning representations by back-propagating errors", Nature 323,
    1986, doi:10.1038/323533a0.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> x, weight, bias = np.eye(2), np.array([[1.0, 2.0]]), np.array([-2.0])
    >>> gradients = attnpy.linear_backward([[1.0], [3.0]], x, weight, bias, needs=("x", "weight", "bias"))
    >>> gradients.x, gradients.weight, gradients.bias
    (array([[1., 2.],
           [3., 6.]]), array([[1., 3.]]), array([4.]))
    """
    needed = _needed(needs, (x, weight, bias))
    if needed[1] and isinstance(weight, PackedWeight):
        raise ValueError("needs holds 'weight', but weight is a PackedWeight, which has no gradient")
    found = _core.linear_backward(grad_output, x, weight, bias, activation, preactivation, needed, _places(out, needed))
    return LinearGradients(*found)


def _needed(needs, operands):
    """Which of the operands are named in `needs`."""
    if isinstance(needs, str) or not hasattr(needs, "__iter__"):
        raise TypeError(f"needs is {needs!r}; it must be a sequence of names, as in ('x', 'weight')")
    needs = list(needs)
    for n, name in enumerate(needs):
        if not isinstance(name, str):
            raise TypeError(f"needs holds {type(name).__name__}; it must be a sequence of names, as in ('x', 'weight')")
        if name not in _FIELDS:
            raise ValueError(f"needs holds {name!r}; the names are {', '.join(_FIELDS)}")
        if name in needs[:n]:
            raise ValueError(f"needs holds {name!r} twice")
        if operands[_FIELDS.index(name)] is None:
            raise ValueError(f"needs holds {name!r}, but there is no {name}")
    return tuple([name in needs for name in _FIELDS])


def _places(out, needed):
    """The arrays of `out` in the order of the fields."""
    if out is None:
        return None
    if not hasattr(out, "keys"):
        raise TypeError(f"out is {type(out).__name__}; it must be a mapping of names in needs to arrays")
    for name in out:
        if name not in _FIELDS or not needed[_FIELDS.index(name)]:
            raise ValueError(f"out holds {name!r}, which is not in needs")
    return tuple([out.get(name) for name in _FIELDS])


_TYPES = ("float64", "float32", "float16", "bfloat16")


class PackedWeight:
    r"""Weights of a linear layer, laid out once in the order in which the multiplication reads them.

    .. math:: w_{nk} = s_n\, q_{nk}, \qquad s_n = \max_k |w_{nk}| / 127, \quad q_{nk} = \text{round}(w_{nk} / s_n)

    for int8; the other dtypes hold the weights themselves.

    Parameters
    ----------
    weight : (N, K) array_like
        The weights, a row for each output.
    dtype : dtype, optional
        What they are stored as: float64, float32, float16, bfloat16, or int8 with a scale for each output. By default
        as they are (integers and bools: float64).

    Attributes
    ----------
    shape : tuple of int
        (N, K).
    dtype : dtype
        What they are stored as.
    nbytes : int
        How much memory they take.

    Raises
    ------
    TypeError
        If `weight` is not of real numbers, or `dtype` is none of these.
    ValueError
        If `weight` has not two axes, or holds what int8 cannot: NaN, infinities, numbers beyond float32.

    See Also
    --------
    linear : the function that takes them.

    Notes
    -----
    The weights are copied; later changes of `weight` do not matter. Panels of 64 outputs (float64: 32) lie one behind
    the other, K times 64 numbers each, zeros in the place of outputs past the last. Half types and int8 are converted
    panel by panel as they are multiplied; the scales of int8 are rounded to 17 bits, so that :math:`s q` is exact in
    float32, and applied to the sums. An int8 weight is off by at most :math:`s_n / 2`.

    References
    ----------
    K. Goto, R. van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34, 2008,
    doi:10.1145/1356052.1356053.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> weight = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    >>> packed = attnpy.PackedWeight(weight)
    >>> packed
    PackedWeight(3 outputs of 4 inputs, float32)
    >>> x = np.ones((2, 4), np.float32)
    >>> bool((attnpy.linear(x, packed) == attnpy.linear(x, weight)).all())
    True
    >>> attnpy.PackedWeight(weight, np.int8).unpack().dtype
    dtype('float32')
    """

    __slots__ = ("_core_panels",)

    def __init__(self, weight: ArrayLike, dtype: DTypeLike | None = None) -> None:
        if isinstance(weight, np.ma.MaskedArray):
            raise TypeError("weight is a MaskedArray, whose mask would be ignored: pass its data")
        array = np.asarray(weight)
        if array.dtype.kind in "iub":
            array = array.astype(np.float64)
        if array.dtype.name not in _TYPES:
            raise TypeError(f"weight has dtype {array.dtype}; it must be of real numbers")
        if array.ndim != 2:
            raise ValueError(f"weight has shape {array.shape}; it must have 2 axes, (out_features, in_features)")
        kind = array.dtype if dtype is None else _storage(dtype)
        scale = None
        if kind == np.int8:
            array, scale = _quantised(array)
        self._hold(array.astype(kind), scale)

    def _hold(self, array, scale):
        """Makes the panels: what the compiled module reads."""
        (outputs, inputs), size = array.shape, array.dtype.itemsize
        columns = 32 if size == 8 else 64
        panels = -(-outputs // columns)
        packed = _room(panels * inputs * columns * size).view(array.dtype)
        packed = packed.reshape(panels, inputs, columns)
        for n in range(panels):
            rows = array[n * columns : (n + 1) * columns]
            packed[n, :, : len(rows)] = rows.T
        packed.setflags(write=False)
        self._core_panels = ((outputs, inputs), packed, scale)

    @property
    def shape(self):
        return self._core_panels[0]

    @property
    def dtype(self):
        return self._core_panels[1].dtype

    @property
    def nbytes(self):
        _, panels, scale = self._core_panels
        return panels.nbytes + (0 if scale is None else scale.nbytes)

    def unpack(self) -> NDArray[Any]:
        """The weights as an array of two axes.

        Returns
        -------
        (N, K) ndarray
            A new array in the dtype of the storage; of int8: the products with the scales, in float32, which are exact.

        Examples
        --------
        >>> import numpy as np, attnpy
        >>> attnpy.PackedWeight(np.eye(2)).unpack()
        array([[1., 0.],
               [0., 1.]])
        """
        stored, scale = self._stored()
        return stored if scale is None else stored.astype(np.float32) * scale[:, None]

    def _stored(self):
        (outputs, inputs), panels, scale = self._core_panels
        count, _, columns = panels.shape
        return panels.swapaxes(1, 2).reshape(count * columns, inputs)[:outputs].copy(), scale

    def __reduce__(self):
        return _restored, self._stored()

    def __repr__(self):
        outputs, inputs = self.shape
        return f"PackedWeight({outputs} outputs of {inputs} inputs, {self.dtype.name})"


def _restored(array, scale):
    packed = PackedWeight.__new__(PackedWeight)
    packed._hold(array, scale)
    return packed


def _room(nbytes):
    """Zeros at the beginning of a cache line; many of them at that of a huge page, which NumPy asks for from 4 MB on.

    In pages of 4 KB the panels are read at 0.93 of the speed. What lies around them is never touched, and so takes
    addresses only.
    """
    line, least = (64, 0) if nbytes < 1 << 20 else (1 << 21, 1 << 22)
    room = np.empty(max(nbytes, least) + line, np.uint8)
    first = -room.ctypes.data % line
    room = room[first : first + nbytes]
    room[:] = 0
    return room


def _storage(dtype):
    if isinstance(dtype, str) and dtype == "bfloat16":
        from ml_dtypes import bfloat16

        dtype = bfloat16
    kind = np.dtype(dtype).newbyteorder("=")
    if kind.name not in (*_TYPES, "int8"):
        raise TypeError(f"dtype is {kind}; it must be float64, float32, float16, bfloat16 or int8")
    return kind


def _quantised(array):
    """Integers -127 ... 127, and the scale of each row: a float32 of 17 bits, so that it times an integer is exact."""
    wide = array.astype(np.float64)
    most = np.abs(wide).max(1, initial=0.0)
    if not np.all(most <= np.finfo(np.float32).max):
        raise ValueError("weight holds NaN, infinities or numbers beyond float32, which int8 cannot store")
    fraction, exponent = np.frexp(np.maximum(most / 127, 2.0**-100))  # so that no product is subnormal
    scale = np.ldexp(np.ceil(np.ldexp(fraction, 17)), exponent - 17)
    return np.rint(wide / scale[:, None]), scale.astype(np.float32)
