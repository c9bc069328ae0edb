"""Activations, the gates made of them, and their gradients: functions of single elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._native import core as _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def gelu(x: ArrayLike, *, approximate: str = "none", out: NDArray[Any] | None = None) -> Any:
    r"""Gaussian error linear unit: `x`, weighted by how much of a normal distribution lies below it.

    .. math:: y_i = x_i\, \Phi(x_i), \qquad \Phi(x) = \tfrac12\Bigl(1 + \operatorname{erf}\frac{x}{\sqrt2}\Bigr)

    Parameters
    ----------
    x : (...) array_like
        Of any real dtype. float16 and bfloat16 are computed in float32 and rounded once, integers and bools in float64.
    approximate : {"none", "tanh"}, default "none"
        The function itself, or the approximation by tanh that GPT-2 and others were trained with.
    out : (...) ndarray, optional
        Where the result goes, of its shape and dtype. It may be `x` itself.

    Returns
    -------
    (...) ndarray
        In the dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is not real, or `out` has another dtype.
    ValueError
        If `out` has another shape, or if `approximate` is neither.

    See Also
    --------
    gelu_backward, attnpy.reference.gelu

    Notes
    -----
    The tail of the distribution is computed as such, not as the difference of 1 and an error function: for large
    negative `x` the result keeps its accuracy as a share of itself. -inf gives -0. With ``approximate="tanh"``
    :math:`y = x (1 + \tanh(\sqrt{2 / \pi}\,(x + 0.044715\,x^3))) / 2`.

    References
    ----------
    D. Hendrycks, K. Gimpel, "Gaussian error linear units (GELUs)", 2016, arXiv:1606.08415.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.gelu([-1.0, 0.0, 1.0]).round(6)
    array([-0.158655,  0.      ,  0.841345])
    """
    return _core.gelu(x, approximate, out)


def gelu_backward(
    grad_output: ArrayLike, x: ArrayLike, *, approximate: str = "none", out: NDArray[Any] | None = None
) -> Any:
    r"""Gradient of a loss with respect to the operand of `gelu`, from that by its result.

    .. math:: \frac{\partial\ell}{\partial x_i} = g_i \bigl(\Phi(x_i) + x_i\, e^{-x_i^2 / 2} / \sqrt{2 \pi}\bigr)

    Parameters
    ----------
    grad_output : (...) array_like
        Gradient with respect to the result, of the shape of `x`.
    x : (...) array_like
        What `gelu` was given.
    approximate : {"none", "tanh"}, default "none"
        The function itself, or the approximation by tanh that GPT-2 and others were trained with.
    out : (...) ndarray, optional
        Where the gradient goes, of the shape and dtype of `x`. It may be an operand itself.

    Returns
    -------
    (...) ndarray
        In the dtype of `x`.

    Raises
    ------
    TypeError
        If an operand is not real, or `out` has another dtype.
    ValueError
        If shapes differ, or if `approximate` is neither.

    See Also
    --------
    gelu, attnpy.reference.gelu_backward

    References
    ----------
    D. Hendrycks, K. Gimpel, "Gaussian error linear units (GELUs)", 2016, arXiv:1606.08415.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.gelu_backward([1.0, 1.0], [0.0, 1.0]).round(6)
    array([0.5     , 1.083315])
    """
    return _core.gelu_backward(grad_output, x, approximate, out)


def silu(x: ArrayLike, *, out: NDArray[Any] | None = None) -> Any:
    r"""Sigmoid linear unit, also called swish: `x` times its logistic function.

    .. math:: y_i = x_i / (1 + e^{-x_i})

    Parameters
    ----------
    x : (...) array_like
        Of any real dtype. float16 and bfloat16 are computed in float32 and rounded once, integers and bools in float64.
    out : (...) ndarray, optional
        Where the result goes, of its shape and dtype. It may be `x` itself.

    Returns
    -------
    (...) ndarray
        In the dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is not real, or `out` has another dtype.
    ValueError
        If `out` has another shape.

    See Also
    --------
    silu_backward, attnpy.reference.silu

    Notes
    -----
    -inf gives -0. Accurate as a share of the result, however small that is.

    References
    ----------
    S. Elfwing, E. Uchibe, K. Doya, "Sigmoid-weighted linear units for neural network function approximation in
    reinforcement learning", 2017, arXiv:1702.03118.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.silu([-1.0, 0.0, 1.0]).round(6)
    array([-0.268941,  0.      ,  0.731059])
    """
    return _core.silu(x, out)


def silu_backward(grad_output: ArrayLike, x: ArrayLike, *, out: NDArray[Any] | None = None) -> Any:
    r"""Gradient of a loss with respect to the operand of `silu`, from that by its result.

    .. math::

        \frac{\partial\ell}{\partial x_i} = g_i \bigl(s_i + x_i s_i (1 - s_i)\bigr), \qquad s_i = 1 / (1 + e^{-x_i})

    Parameters
    ----------
    grad_output : (...) array_like
        Gradient with respect to the result, of the shape of `x`.
    x : (...) array_like
        What `silu` was given.
    out : (...) ndarray, optional
        Where the gradient goes, of the shape and dtype of `x`. It may be an operand itself.

    Returns
    -------
    (...) ndarray
        In the dtype of `x`.

    Raises
    ------
    TypeError
        If an operand is not real, or `out` has another dtype.
    ValueError
        If shapes differ.

    See Also
    --------
    silu, attnpy.reference.silu_backward

    References
    ----------
    S. Elfwing, E. Uchibe, K. Doya, "Sigmoid-weighted linear units for neural network function approximation in
    reinforcement learning", 2017, arXiv:1702.03118.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.silu_backward([1.0, 1.0], [0.0, 1.0]).round(6)
    array([0.5     , 0.927671])
    """
    return _core.silu_backward(grad_output, x, out)


def relu(x: ArrayLike, *, out: NDArray[Any] | None = None) -> Any:
    r"""Rectified linear unit: `x` where it is positive, else 0.

    .. math:: y_i = \max(x_i, 0)

    Parameters
    ----------
    x : (...) array_like
        Of any real dtype. float16 and bfloat16 are computed in float32 and rounded once, integers and bools in float64.
    out : (...) ndarray, optional
        Where the result goes, of its shape and dtype. It may be `x` itself.

    Returns
    -------
    (...) ndarray
        In the dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is not real, or `out` has another dtype.
    ValueError
        If `out` has another shape.

    See Also
    --------
    relu_backward, attnpy.reference.relu

    Notes
    -----
    NaN stays NaN.

    References
    ----------
    X. Glorot, A. Bordes, Y. Bengio, "Deep sparse rectifier neural networks", AISTATS 2011; A. F. Agarap, "Deep
    learning using rectified linear units (ReLU)", 2018, arXiv:1803.08375.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.relu([-1.0, 0.0, 1.0])
    array([0., 0., 1.])
    """
    return _core.relu(x, out)


def relu_backward(grad_output: ArrayLike, x: ArrayLike, *, out: NDArray[Any] | None = None) -> Any:
    r"""Gradient of a loss with respect to the operand of `relu`: 0 where that is not positive.

    .. math:: \frac{\partial\ell}{\partial x_i} = g_i [x_i > 0]

    Parameters
    ----------
    grad_output : (...) array_like
        Gradient with respect to the result, of the shape of `x`.
    x : (...) array_like
        What `relu` was given.
    out : (...) ndarray, optional
        Where the gradient goes, of the shape and dtype of `x`. It may be an operand itself.

    Returns
    -------
    (...) ndarray
        In the dtype of `x`.

    Raises
    ------
    TypeError
        If an operand is not real, or `out` has another dtype.
    ValueError
        If shapes differ.

    See Also
    --------
    relu, attnpy.reference.relu_backward

    References
    ----------
    X. Glorot, A. Bordes, Y. Bengio, "Deep sparse rectifier neural networks", AISTATS 2011; A. F. Agarap, "Deep
    learning using rectified linear units (ReLU)", 2018, arXiv:1803.08375.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.relu_backward([5.0, 5.0, 5.0], [-1.0, 0.0, 1.0])
    array([0., 0., 5.])
    """
    return _core.relu_backward(grad_output, x, out)


def swiglu(x: ArrayLike, gate: ArrayLike | None = None, *, out: NDArray[Any] | None = None) -> Any:
    r"""`x` times silu of a gate; of one array, its second half times silu of its first.

    .. math:: y_i = x_i\, \operatorname{silu}(\mathrm{gate}_i)

    Parameters
    ----------
    x : (..., n) array_like
        Of any real dtype. float16 and bfloat16 are computed in float32 and rounded once, integers and bools in float64.
        Without a `gate`, (..., 2 m): the gate and then what it opens, side by side along the last axis, as one
        projection gives both.
    gate : (..., n) array_like, optional
        It broadcasts with `x`.
    out : (..., n) ndarray, optional
        Where the result goes, of its shape and dtype. It may be an operand itself.

    Returns
    -------
    (..., n) ndarray
        Without a `gate`, (..., m).

    Raises
    ------
    TypeError
        If an operand is not real, or `out` has another dtype.
    ValueError
        If the operands do not broadcast, if there is no `gate` and the last axis of `x` is odd, or if `out` has another
        shape.

    See Also
    --------
    swiglu_backward, silu, attnpy.reference.swiglu

    Notes
    -----
    The halves stand as in the merged weights of Llama and of T5's gated layers: the gate first. PyTorch's ``glu``
    has it last.

    References
    ----------
    N. Shazeer, "GLU variants improve transformer", 2020, arXiv:2002.05202.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> attnpy.swiglu([3.0], [1.0]).round(6)
    array([2.193176])
    >>> attnpy.swiglu([1.0, 3.0]).round(6)   # the gate first
    array([2.193176])
    """
    return _core.swiglu(x, gate, out)


def swiglu_backward(grad_output: ArrayLike, x: ArrayLike, gate: ArrayLike | None = None, *, out: Any = None) -> Any:
    r"""Gradients of a loss with respect to the operands of `swiglu`, from that with respect to its result.

    .. math::

        \frac{\partial\ell}{\partial x_i} = g_i\, \operatorname{silu}(\mathrm{gate}_i), \qquad
        \frac{\partial\ell}{\partial\,\mathrm{gate}_i} = g_i\, x_i\, \operatorname{silu}'(\mathrm{gate}_i)

    Parameters
    ----------
    grad_output : (..., n) array_like
        Gradient with respect to the result.
    x : (..., n) array_like
        What `swiglu` was given: of the shape of `grad_output`, or without a `gate` twice as long.
    gate : (..., n) array_like, optional
        Likewise. An operand that was broadcast is given as ``np.broadcast_to`` makes it, and the gradient summed.
    out : ndarray or tuple of two ndarrays, optional
        Where the gradients go, of the shape and dtype of their operands. Each may be an operand itself.

    Returns
    -------
    ndarray or tuple of two ndarrays
        The gradient of `x`; with a `gate` those of `x` and `gate`.

    Raises
    ------
    TypeError
        If an operand is not real, or `out` has another dtype.
    ValueError
        If shapes do not fit.

    See Also
    --------
    swiglu, attnpy.reference.swiglu_backward

    References
    ----------
    N. Shazeer, "GLU variants improve transformer", 2020, arXiv:2002.05202.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.swiglu_backward([1.0], [3.0], [0.0])
    (array([0.]), array([1.5]))
    """
    return _core.swiglu_backward(grad_output, x, gate, out)


def geglu(
    x: ArrayLike, gate: ArrayLike | None = None, *, approximate: str = "none", out: NDArray[Any] | None = None
) -> Any:
    r"""`x` times gelu of a gate; of one array, its second half times gelu of its first.

    .. math:: y_i = x_i\, \operatorname{gelu}(\mathrm{gate}_i)

    Parameters
    ----------
    x : (..., n) array_like
        Of any real dtype. float16 and bfloat16 are computed in float32 and rounded once, integers and bools in float64.
        Without a `gate`, (..., 2 m): the gate and then what it opens, side by side along the last axis, as one
        projection gives both.
    gate : (..., n) array_like, optional
        It broadcasts with `x`.
    approximate : {"none", "tanh"}, default "none"
        The function itself, or the approximation by tanh that GPT-2 and others were trained with.
    out : (..., n) ndarray, optional
        Where the result goes, of its shape and dtype. It may be an operand itself.

    Returns
    -------
    (..., n) ndarray
        Without a `gate`, (..., m).

    Raises
    ------
    TypeError
        If an operand is not real, or `out` has another dtype.
    ValueError
        If the operands do not broadcast, if there is no `gate` and the last axis of `x` is odd, if `out` has
        another shape, or if `approximate` is neither.

    See Also
    --------
    geglu_backward, gelu, attnpy.reference.geglu

    Notes
    -----
    The halves stand as in the merged weights of Llama and of T5's gated layers: the gate first. PyTorch's ``glu``
    has it last.

    References
    ----------
    N. Shazeer, "GLU variants improve transformer", 2020, arXiv:2002.05202.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> attnpy.geglu([3.0], [1.0]).round(6)
    array([2.524034])
    >>> attnpy.geglu([1.0, 3.0]).round(6)   # the gate first
    array([2.524034])
    """
    return _core.geglu(x, gate, approximate, out)


def geglu_backward(
    grad_output: ArrayLike, x: ArrayLike, gate: ArrayLike | None = None, *, approximate: str = "none", out: Any = None
) -> Any:
    r"""Gradients of a loss with respect to the operands of `geglu`, from that with respect to its result.

    .. math::

        \frac{\partial\ell}{\partial x_i} = g_i\, \operatorname{gelu}(\mathrm{gate}_i), \qquad
        \frac{\partial\ell}{\partial\,\mathrm{gate}_i} = g_i\, x_i\, \operatorname{gelu}'(\mathrm{gate}_i)

    Parameters
    ----------
    grad_output : (..., n) array_like
        Gradient with respect to the result.
    x : (..., n) array_like
        What `geglu` was given: of the shape of `grad_output`, or without a `gate` twice as long.
    gate : (..., n) array_like, optional
        Likewise. An operand that was broadcast is given as ``np.broadcast_to`` makes it, and the gradient summed.
    approximate : {"none", "tanh"}, default "none"
        The function itself, or the approximation by tanh that GPT-2 and others were trained with.
    out : ndarray or tuple of two ndarrays, optional
        Where the gradients go, of the shape and dtype of their operands. Each may be an operand itself.

    Returns
    -------
    ndarray or tuple of two ndarrays
        The gradient of `x`; with a `gate` those of `x` and `gate`.

    Raises
    ------
    TypeError
        If an operand is not real, or `out` has another dtype.
    ValueError
        If shapes do not fit, or if `approximate` is neither.

    See Also
    --------
    geglu, attnpy.reference.geglu_backward

    References
    ----------
    N. Shazeer, "GLU variants improve transformer", 2020, arXiv:2002.05202.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.geglu_backward([1.0], [3.0], [0.0])
    (array([0.]), array([1.5]))
    """
    return _core.geglu_backward(grad_output, x, gate, approximate, out)


gelu.signature = silu.signature = relu.signature = "()->()"
gelu_backward.signature = silu_backward.signature = relu_backward.signature = "(),()->()"
