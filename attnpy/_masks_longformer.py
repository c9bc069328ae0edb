"""Longformer's attention: a window, and global tokens with projections of their own."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ._attention import scaled_dot_product_attention

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ._masks import BlockMask


def longformer_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    global_query: ArrayLike,
    global_key: ArrayLike,
    global_value: ArrayLike,
    *,
    window: int,
    global_tokens: ArrayLike,
    scale: float | None = None,
    kv_lengths: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    r"""Attention to a window and to global tokens, which attend to everything by projections of their own.

    .. math::

        O_i = \sum_{|i - j| \le w \text{ or } j \in g} \mathrm{softmax}_j(\mathrm{scale}\; q_i \cdot k_j)\, v_j
        \quad (i \notin g), \qquad
        O_i = \sum_j \mathrm{softmax}_j(\mathrm{scale}\; q^g_i \cdot k^g_j)\, v^g_j \quad (i \in g)

    Time and memory grow with L, not with its square. Letters as in `scaled_dot_product_attention`; here S = L.

    Parameters
    ----------
    query : (..., H, L, E) array_like
    key : (..., G, L, E) array_like
    value : (..., G, L, D) array_like
        By them tokens attend to their window and to the global tokens.
    global_query : (..., H, L, E) array_like
    global_key : (..., G, L, E) array_like
    global_value : (..., G, L, D) array_like
        By them the global tokens attend to all. Of `global_query` only their rows are read.
    window : int
        Tokens seen on each side; Hugging Face's `attention_window` is twice as much.
    global_tokens : (n,) array_like of int, or (..., L) array_like of bool
        Positions, counted from the end where negative; or for each token whether it is global, also one set for each
        batch element.
    scale : float, optional
        Any finite number. The default is 1/√E.
    kv_lengths : (...) array_like of int, optional
        Valid tokens of each batch element, in 0 … L; what lies beyond is seen by none.
    out : (..., H, L, D) ndarray, optional
        Where the output goes, of its shape and dtype. It may overlap any input.

    Returns
    -------
    (..., H, L, D) ndarray

    Raises
    ------
    TypeError
        If an array is not of real numbers, or `global_tokens` neither of integers nor of bools.
    ValueError
        If shapes do not fit, `window` is below 0, or a position lies outside the length.

    See Also
    --------
    BlockMask.longformer : the pattern where global tokens share the projections of the others.
    attnpy.reference.longformer_attention : the same in float64 NumPy.

    Notes
    -----
    The mask of a length, window and set of tokens is made once and kept for the next calls.

    References
    ----------
    I. Beltagy, M. Peters, A. Cohan, "Longformer: the long-document transformer", 2020, arXiv:2004.05150, section 3.1.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> rng = np.random.default_rng(0)
    >>> query, key, value, global_query, global_key, global_value = rng.standard_normal((6, 2, 4, 300, 16))
    >>> attnpy.longformer_attention(
    ...     query, key, value, global_query, global_key, global_value, window=32, global_tokens=[0]).shape
    (2, 4, 300, 16)
    """
    from . import _masks_arguments as given

    global_query = np.asarray(global_query)
    if global_query.ndim < 2:
        raise ValueError(f"global_query has shape {global_query.shape}; it must have at least two axes")
    length = global_query.shape[-2]
    chosen = given.chosen("global_tokens", global_tokens, length)
    mask = _local_mask(length, given.integer("window", window, 0), chosen.shape, np.packbits(chosen).tobytes())
    options = {"scale": scale, "kv_lengths": kv_lengths}
    operands = global_query, np.asarray(global_key), np.asarray(global_value)
    rows = _one_set(operands, chosen, options) if chosen.ndim == 1 else _many_sets(operands, chosen, options)
    output = scaled_dot_product_attention(query, key, value, mask, **options, out=out)
    for element, tokens, of_global in rows:
        output[element][..., tokens, :] = of_global
    return output


@functools.lru_cache(maxsize=8)
def _local_mask(length: int, window: int, shape: tuple[int, ...], packed: bytes) -> BlockMask:
    """The window, and the global tokens for all to see."""
    from ._masks import BlockMask, seen_by_all

    chosen = np.unpackbits(np.frombuffer(packed, np.uint8), count=math.prod(shape)).astype(bool).reshape(shape)
    return BlockMask.sliding_window(length, length, window, window) | seen_by_all(chosen)


def _one_set(operands: Any, chosen: NDArray[np.bool_], options: dict[str, Any]) -> Any:
    """The rows of the global tokens: of which batch element, which tokens, and what."""
    query, key, value = operands
    tokens = np.flatnonzero(chosen)
    return [((), tokens, scaled_dot_product_attention(query[..., tokens, :], key, value, **options))]


def _many_sets(operands: Any, chosen: NDArray[np.bool_], options: dict[str, Any]) -> Any:
    """Likewise where each batch element has tokens of its own: one call for each, whatever the others have."""
    batch = np.broadcast_shapes(chosen.shape[:-1], *(x.shape[:-3] for x in operands))
    operands = [np.broadcast_to(x, (*batch, *x.shape[-3:])) for x in operands]
    chosen = np.broadcast_to(chosen, (*batch, chosen.shape[-1]))
    lengths = options["kv_lengths"]
    lengths = None if lengths is None else np.broadcast_to(lengths, batch)
    rows = []
    for element in np.ndindex(batch):
        of_element = {**options, "kv_lengths": None if lengths is None else lengths[element]}
        [(_, tokens, result)] = _one_set([x[element] for x in operands], chosen[element], of_element)
        rows.append((element, tokens, result))
    return rows
