"""Attention for serving: keys and values in a cache that grows, or in pages that sequences share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._arguments import integer
from ._attention import _tables
from ._native import core as _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

_STORED = ("float32", "float64", "float16", "bfloat16", "int8")
_PAGE = 64  # rows at most of a page of a ring: a block of keys
_UNIT = 1024  # positions of a ring count from a multiple of this: see attention_cache.c


class CacheView(NamedTuple):
    """What a KVCache holds of one layer, not copied and read-only. S: rows of the longest sequence, or of the ring."""

    key: NDArray[Any]  # (B, G, S, E)
    value: NDArray[Any]  # (B, G, S, D)
    key_scale: NDArray[np.float32] | None  # (B, G, S), of int8: what each row is multiplied by
    value_scale: NDArray[np.float32] | None
    position: NDArray[np.int64]  # (B, S): the position in its sequence that a row belongs to; -1: none


class KVCache:
    r"""Keys and values of the tokens so far, for each layer of a model, in memory that is reserved once.

    A model appends the keys and values of new tokens, and then attends to all: see `attention_with_cache`. With int8
    each row x of a head is stored as

    .. math:: \mathrm{round}(x / s), \qquad s = \max |x| / 127

    Parameters
    ----------
    num_layers, batch, num_kv_heads : int
        Layers, sequences B and key/value heads G.
    max_length : int
        Rows of each sequence. With `window` they are a ring: the newest overwrite the oldest.
    head_dim : int
        E, the head size of the keys.
    value_head_dim : int, optional
        D, that of the values. The default is `head_dim`.
    dtype : dtype, default float32
        float32, float64, float16, bfloat16 (of `ml_dtypes`), or int8.
    window : int, optional
        How many keys before its own a query sees at most: ``window_size=(window, -1)`` in `attention_with_cache`,
        unless another is passed there. `max_length` must be larger: ``window`` and as many rows as are appended at
        once. Positions go on without end. Not with int8.

    Attributes
    ----------
    num_layers, batch, num_kv_heads, max_length, head_dim, value_head_dim, dtype, window
        As given.
    nbytes : int
        Of everything stored. The operating system provides memory as it is first written.

    Raises
    ------
    TypeError
        If a size is not an integer, or `dtype` another one.
    ValueError
        If a size is below 1, or `window` negative, not below `max_length`, or given with int8.

    See Also
    --------
    attention_with_cache : attends to what is stored.
    paged_attention : attends to pages, whose use is managed elsewhere.

    Notes
    -----
    ``append`` stores rows, ``lengths`` tells how many there are, ``truncate`` forgets the last, ``reorder`` moves whole
    sequences, ``view`` shows what is stored.

    Of int8, a stored number lies within half a step s of the one appended, apart from the rounding of float32; a row
    that holds NaN or infinity becomes NaN.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> rng = np.random.default_rng(0)
    >>> cache = attnpy.KVCache(num_layers=1, batch=2, num_kv_heads=4, max_length=100, head_dim=16)
    >>> key, value = rng.standard_normal((2, 2, 4, 10, 16), np.float32)
    >>> cache.append(0, key, value, lengths=[10, 7])
    >>> cache.lengths(0)
    array([10,  7])
    >>> cache.view(0).key.shape
    (2, 4, 10, 16)
    """

    def __init__(
        self,
        num_layers: int,
        batch: int,
        num_kv_heads: int,
        max_length: int,
        head_dim: int,
        *,
        value_head_dim: int | None = None,
        dtype: DTypeLike = np.float32,
        window: int | None = None,
    ) -> None:
        self.num_layers = _size("num_layers", num_layers, 1)
        self.batch = _size("batch", batch, 1)
        self.num_kv_heads = _size("num_kv_heads", num_kv_heads, 1)
        self.max_length = _size("max_length", max_length, 1)
        self.head_dim = _size("head_dim", head_dim, 1)
        self.value_head_dim = self.head_dim if value_head_dim is None else _size("value_head_dim", value_head_dim, 1)
        self.window = None if window is None else _size("window", window, 0)
        self.dtype = np.dtype(dtype)
        if self.dtype.name not in _STORED or not self.dtype.isnative:
            raise TypeError(f"dtype is {self.dtype}; it must be one of {', '.join(_STORED)}")
        if self.window is not None and self.dtype == np.int8:
            raise ValueError("window needs a floating dtype, not int8")
        if self.window is not None and self.window >= self.max_length:
            raise ValueError(f"window is {window}; max_length, {max_length}, must be larger: it counts the query's own")
        self._lengths = np.zeros((self.num_layers, self.batch), np.int64)
        self._first = np.zeros_like(self._lengths)  # the oldest position that is still stored
        self._key, self._value = self._rows(self.head_dim), self._rows(self.value_head_dim)
        self._scales = np.zeros((2, *self._key.shape[:-1]), np.float32) if self.dtype == np.int8 else None
        if self.window is not None:  # pages as large as a power of two can be that divides the ring, going round
            self._page = min(_PAGE, self.max_length & -self.max_length)
            pages = self.max_length // self._page
            turns = np.arange(2 * pages + _UNIT // self._page) % pages
            self._pages = turns + pages * np.arange(self.batch)[:, None]

    def _rows(self, size):
        """(layers, B, G, S, size). Of a ring (layers, B, S, G, size) in memory, so that the rows of B follow B's."""
        if self.window is None:
            return np.zeros((self.num_layers, self.batch, self.num_kv_heads, self.max_length, size), self.dtype)
        shape = (self.num_layers, self.batch, self.max_length, self.num_kv_heads, size)
        return np.zeros(shape, self.dtype).swapaxes(2, 3)

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored."""
        return self._key.nbytes + self._value.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def __repr__(self) -> str:
        ring = "" if self.window is None else f", window={self.window}"
        return (
            f"KVCache({self.num_layers} layers, batch {self.batch}, {self.num_kv_heads} heads, max_length "
            f"{self.max_length}, head sizes {self.head_dim} and {self.value_head_dim}, {self.dtype}{ring})"
        )

    def lengths(self, layer: int) -> NDArray[np.int64]:
        """Tokens so far, of each sequence: the position of the next one.

        Parameters
        ----------
        layer : int

        Returns
        -------
        (B,) ndarray of int64

        Raises
        ------
        ValueError
            If there is no such layer.

        Examples
        --------
        >>> import attnpy
        >>> attnpy.KVCache(num_layers=1, batch=2, num_kv_heads=1, max_length=10, head_dim=4).lengths(0)
        array([0, 0])
        """
        return self._lengths[self._layer(layer)].copy()

    def append(self, layer: int, key: ArrayLike, value: ArrayLike, lengths: ArrayLike | None = None) -> None:
        """Store the keys and values of new tokens, rounded to the stored type.

        Parameters
        ----------
        layer : int
        key : (B, G, L, E) array_like
        value : (B, G, L, D) array_like
        lengths : (B,) array_like of int, optional
            How many of the L rows belong to each sequence; the others are not stored. The default is all.

        Returns
        -------
        None

        Raises
        ------
        TypeError
            If an array is not of real numbers, or `lengths` not of integers.
        ValueError
            If shapes do not fit, a number is out of range, or a sequence has no room for its rows. Nothing has changed
            then, of no sequence.

        Examples
        --------
        >>> import numpy as np, attnpy
        >>> cache = attnpy.KVCache(num_layers=1, batch=2, num_kv_heads=1, max_length=10, head_dim=4)
        >>> cache.append(0, np.ones((2, 1, 3, 4)), np.ones((2, 1, 3, 4)), lengths=[3, 1])
        >>> cache.lengths(0)
        array([3, 1])
        """
        layer = self._layer(layer)
        shape = np.shape(key)
        rows = shape[2] if len(shape) == 4 else 0
        key = self._checked("key", key, rows, self.head_dim)
        value = self._checked("value", value, rows, self.value_head_dim)
        counts = np.full(self.batch, rows) if lengths is None else self._counts("lengths", lengths, np.int64(rows))
        start = self._lengths[layer]
        if self.window is None and (full := start + counts > self.max_length).any():
            b = int(np.argmax(full))
            raise ValueError(
                f"key has {counts[b]} rows for sequence {b}, which has {start[b]} of max_length {self.max_length}"
            )
        if self._scales is None:
            self._write(layer, [(self._key, key), (self._value, value)], counts)
        else:
            (key, key_scale), (value, value_scale) = _quantised(key), _quantised(value)
            stored = [
                (self._key, key),
                (self._value, value),
                (self._scales[0], key_scale),
                (self._scales[1], value_scale),
            ]
            self._write(layer, stored, counts)
        self._lengths[layer] += counts
        np.maximum(self._first[layer], self._lengths[layer] - self.max_length, out=self._first[layer])

    def truncate(self, lengths: ArrayLike, layer: int | None = None) -> None:
        """Forget what lies behind the first tokens of each sequence.

        Parameters
        ----------
        lengths : int or (B,) array_like of int
            How many tokens stay. Of a ring those that were overwritten do not come back: attention that would need them
            is refused.
        layer : int, optional
            The default is all layers.

        Returns
        -------
        None

        Raises
        ------
        TypeError
            If `lengths` is not of integers.
        ValueError
            If a number is negative, or above what is stored in a layer.

        Examples
        --------
        >>> import numpy as np, attnpy
        >>> cache = attnpy.KVCache(num_layers=1, batch=2, num_kv_heads=1, max_length=10, head_dim=4)
        >>> cache.append(0, np.ones((2, 1, 3, 4)), np.ones((2, 1, 3, 4)))
        >>> cache.truncate([2, 3])
        >>> cache.lengths(0)
        array([2, 3])
        """
        chosen = slice(None) if layer is None else slice(self._layer(layer), self._layer(layer) + 1)
        kept = self._counts("lengths", lengths, self._lengths[chosen].min(0))
        self._lengths[chosen] = kept
        np.minimum(self._first[chosen], kept, out=self._first[chosen])

    def reorder(self, indices: ArrayLike) -> None:
        """Put sequences in another order, with repeats, in all layers: beam search.

        Parameters
        ----------
        indices : (B,) array_like of int
            Sequence ``indices[b]`` becomes sequence b.

        Returns
        -------
        None

        Raises
        ------
        TypeError
            If `indices` is not of integers.
        ValueError
            If it has another shape, or holds a number outside 0 … B - 1.

        Examples
        --------
        >>> import numpy as np, attnpy
        >>> cache = attnpy.KVCache(num_layers=1, batch=2, num_kv_heads=1, max_length=10, head_dim=4)
        >>> cache.append(0, np.ones((2, 1, 3, 4)), np.ones((2, 1, 3, 4)), lengths=[3, 1])
        >>> cache.reorder([1, 1])
        >>> cache.lengths(0)
        array([1, 1])
        """
        chosen = _integers("indices", indices)
        if chosen.shape != (self.batch,) or ((chosen < 0) | (chosen >= self.batch)).any():
            raise ValueError(f"indices is {indices!r}; it must hold {self.batch} numbers in 0 … {self.batch - 1}")
        moved = np.nonzero(chosen != np.arange(self.batch))[0]
        for layer in range(self.num_layers):
            used = self._used(layer)
            for rows in (self._key, self._value, *(() if self._scales is None else self._scales)):
                rows[layer][moved, :, :used] = rows[layer][chosen[moved], :, :used]
        self._lengths[:] = self._lengths[:, chosen]
        self._first[:] = self._first[:, chosen]

    def view(self, layer: int) -> CacheView:
        """What is stored, as read-only arrays on the same memory.

        Parameters
        ----------
        layer : int

        Returns
        -------
        key : (B, G, S, E) ndarray
            Rows of the longest sequence, or of the whole ring, S.
        value : (B, G, S, D) ndarray
        key_scale, value_scale : (B, G, S) ndarray of float32
            What each row of int8 is multiplied by; None for other types.
        position : (B, S) ndarray of int64
            The position in its sequence that a row belongs to; -1 where there is none.

        Raises
        ------
        ValueError
            If there is no such layer.

        Examples
        --------
        >>> import numpy as np, attnpy
        >>> cache = attnpy.KVCache(num_layers=1, batch=2, num_kv_heads=1, max_length=10, head_dim=4)
        >>> cache.append(0, np.ones((2, 1, 3, 4)), np.ones((2, 1, 3, 4)), lengths=[3, 1])
        >>> cache.view(0).position
        array([[ 0,  1,  2],
               [ 0, -1, -1]])
        """
        layer = self._layer(layer)
        used = self._used(layer)
        arrays = [x[layer][:, :, :used] for x in (self._key, self._value)]
        arrays += [None, None] if self._scales is None else [x[layer][:, :, :used] for x in self._scales]
        for x in arrays:
            if x is not None:
                x.flags.writeable = False
        last = self._lengths[layer][:, None] - 1
        position = last - (last - np.arange(used)) % self.max_length
        return CacheView(*arrays, np.where(position >= self._first[layer][:, None], position, -1))

    def _stored(self, layer):
        """key, value, their scales, lengths, and of a ring the table of its pages, the oldest positions and what
        lengths count from. No arithmetic of NumPy's, which would clear the floating-point flags.
        """
        lengths = self._lengths[layer]
        if self.window is None:
            used = self._used(layer)
            scales = (None, None) if self._scales is None else self._scales[:, layer, :, :, :used]
            return self._key[layer][:, :, :used], self._value[layer][:, :, :used], scales, lengths, None, None, None
        page, pages = self._page, self.max_length // self._page
        shape = (self.batch * pages, page, self.num_kv_heads, -1)
        key, value = (x[layer].swapaxes(1, 2).reshape(shape) for x in (self._key, self._value))
        oldest, lengths = self._first[layer].tolist(), lengths.tolist()
        first = [n // _UNIT * (_UNIT // page) for n in oldest]
        count = max(-(-n // page) - f for n, f in zip(lengths, first, strict=True))
        table = np.stack([row[f % pages :][:count] for row, f in zip(self._pages, first, strict=True)])
        base = [f * page for f in first]
        lengths = [n - f for n, f in zip(lengths, base, strict=True)]
        return key, value, (None, None), lengths, table, oldest, base

    def _used(self, layer):
        """Rows in which there is anything."""
        longest = max(self._lengths[layer].tolist())
        return longest if self.window is None else min(longest, self.max_length)

    def _write(self, layer, stored, counts):
        """Rows to their places: those of all sequences at once where they are the same."""
        start = self._lengths[layer]
        alike = (start == start[0]).all() and (counts == counts[0]).all()
        for b in [slice(None)] if alike else range(self.batch):
            n, first = (int(x[0] if alike else x[b]) for x in (counts, start))
            skipped = max(0, n - self.max_length)  # rows of a ring that the same call would overwrite
            place, rows = slice(first, first + n), slice(skipped, n)
            if self.window is not None:
                place = np.arange(first + skipped, first + n) % self.max_length
            axes = (slice(None),) * (2 if alike else 1)  # those before the rows'
            for to, new in stored:
                with np.errstate(over="ignore", invalid="ignore"):
                    to[layer][b][(*axes, place)] = new[b][(*axes, rows)]

    def _layer(self, layer):
        number = integer("layer", layer)
        if not 0 <= number < self.num_layers:
            raise ValueError(f"layer is {layer}; it must be in 0 … {self.num_layers - 1}")
        return number

    def _checked(self, name, x, rows, size):
        """An array (B, G, rows, size) of real numbers."""
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{name} is a MaskedArray, whose mask would be ignored: pass its data, and lengths")
        x = np.asarray(x)
        if x.dtype.kind not in "fiub" and x.dtype.name != "bfloat16":
            raise TypeError(f"{name} has dtype {x.dtype}; it must be of real numbers")
        wanted = (self.batch, self.num_kv_heads, rows, size)
        if x.shape != wanted:
            raise ValueError(f"{name} has shape {x.shape}; it must be {wanted}, (B, G, L, head size)")
        return x

    def _counts(self, name, x, most):
        """(B,) integers in 0 … most."""
        counts = _integers(name, x)
        if counts.shape not in ((), (self.batch,)):
            raise ValueError(f"{name} has shape {counts.shape}; it must be one number or ({self.batch},)")
        counts, most = np.broadcast_to(counts, self.batch), np.broadcast_to(most, self.batch)
        if (wrong := (counts < 0) | (counts > most)).any():
            b = int(np.argmax(wrong))
            raise ValueError(f"{name} holds {counts[b]} for sequence {b}; it must be in 0 … {most[b]}")
        return counts


def attention_with_cache(
    query: ArrayLike,
    cache: KVCache,
    layer: int,
    *,
    is_causal: bool = True,
    scale: float | None = None,
    causal_offset: ArrayLike | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    query_lengths: ArrayLike | None = None,
    relative_bias: ArrayLike | None = None,
    rotary: tuple[ArrayLike, ArrayLike] | None = None,
    rotary_interleaved: bool = False,
    return_lse: bool = False,
    out: Any = None,
) -> Any:
    r"""Attention of new tokens to everything that a cache holds, their own keys included.

    .. math:: O_i = \sum_j P_{ij} v_j

    with the weights of `scaled_dot_product_attention`, over the keys j of the cache. Append first: nothing is stored
    here.

    Parameters
    ----------
    query : (B, H, L, E) array_like
        The newest L tokens of each sequence; query head h reads key/value head h // (H/G). Its dtype and the cache's
        give that of the result; of an int8 cache the query's alone.
    cache : KVCache
    layer : int
    is_causal : bool, default True
        A token sees those before it and itself: the last query the last key.
    scale : float, optional
    causal_offset : (B,) array_like of int, optional
        The position of the first query of each sequence. The default is the sequence's length less L, or less
        `query_lengths`.
    window_size : int or tuple of two int, optional
        The default is (cache.window, -1) where the cache has a window, else none.
    softcap : float, optional
    alibi_slopes : (H,) or (B, H) array_like, optional
    sinks : (H,) or (B, H) array_like, optional
    query_lengths : (B,) array_like of int, optional
        Valid queries of each sequence, where they differ.
    relative_bias : (H, L or 1, 2K + 1) or (B, H, L or 1, 2K + 1) array_like of float, optional
    rotary : tuple of two (P, C) array_like of float32 or float64, optional
    rotary_interleaved : bool, default False
    return_lse : bool, default False
        As in `scaled_dot_product_attention`.
    out : (B, H, L, D) ndarray, optional
        Where the result goes; with `return_lse` a tuple (output, lse).

    Returns
    -------
    output : (B, H, L, D) ndarray
    lse : (B, H, L) ndarray
        Only with `return_lse`.

    Raises
    ------
    TypeError
        If `cache` is not a KVCache, or an array not of real numbers.
    ValueError
        If shapes do not fit, a number is out of range, a sequence has fewer keys than queries and `query_lengths` or
        `causal_offset` do not say where they stand, or if the window reaches back to a position that a ring has
        overwritten.

    See Also
    --------
    KVCache, paged_attention, scaled_dot_product_attention, attnpy.reference.attention_with_cache

    Notes
    -----
    Keys and values are read where they are stored. A step of decoding gives the row that one causal call over the whole
    sequence gives, within the bound on rounding stated there, for the keys and values as they are stored. A ring gives
    the bits of a cache that has kept everything.

    An int8 cache gives what unrounded keys and values would give, apart from the rounding of float32, to within

    .. math::

        \max_j s_j / 2 + (\exp 2\epsilon_i - 1) \sum_j P_{ij} |v_j|, \qquad
        \epsilon_i = |\mathrm{scale}| \sum_d |q_{id}| \max_j t_j / 2

    where s and t are the scales of the rows of visible values and keys: no score is off by more than epsilon.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762, equation 1.

    Examples
    --------
    >>> import numpy as np, attnpy
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.standard_normal((3, 1, 2, 5, 8))
    >>> cache = attnpy.KVCache(1, 1, 2, 100, 8, dtype=np.float64)
    >>> steps = []
    >>> for t in range(5):
    ...     cache.append(0, key[:, :, t : t + 1], value[:, :, t : t + 1])
    ...     steps.append(attnpy.attention_with_cache(query[:, :, t : t + 1], cache, 0))
    >>> whole = attnpy.scaled_dot_product_attention(query, key, value, is_causal=True)
    >>> bool(np.allclose(np.concatenate(steps, 2), whole))
    True
    """
    if not isinstance(cache, KVCache):
        raise TypeError(f"cache is a {type(cache).__name__}; it must be a KVCache")
    key, value, scales, lengths, table, oldest, base = cache._stored(cache._layer(layer))
    if cache.window is not None:
        window_size = (cache.window, -1) if window_size is None else window_size
        if causal_offset is not None:
            offset = np.broadcast_to(_integers("causal_offset", causal_offset), cache.batch).tolist()
            causal_offset = [n - f for n, f in zip(offset, base, strict=True)]
    cos, sin = (None, None) if rotary is None else _tables(rotary)
    return _core.attention_with_cache(
        query, key, value, *scales, table, oldest, is_causal, scale, causal_offset, window_size, softcap, alibi_slopes,
        sinks, query_lengths, lengths, relative_bias, cos, sin, rotary_interleaved, return_lse, out,
    )  # fmt: skip


def paged_attention(
    query: ArrayLike,
    key_pages: ArrayLike,
    value_pages: ArrayLike,
    block_table: ArrayLike,
    kv_lengths: ArrayLike,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    causal_offset: ArrayLike | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    query_lengths: ArrayLike | None = None,
    relative_bias: ArrayLike | None = None,
    rotary: tuple[ArrayLike, ArrayLike] | None = None,
    rotary_interleaved: bool = False,
    return_lse: bool = False,
    out: Any = None,
) -> Any:
    r"""Attention to keys and values that lie in pages, which a table assigns to sequences.

    .. math::

        O_{bi} = \sum_j P_{bij} v_{bj}, \qquad
        v_{bj} = \mathrm{value\_pages}[\mathrm{block\_table}[b, j \operatorname{div} n], \; j \bmod n]

    for pages of n rows, with the weights of `scaled_dot_product_attention`; the keys likewise. Decoding, prefill, and
    both in one batch (`query_lengths`) are the same call.

    Parameters
    ----------
    query : (B, H, L, E) array_like
        The newest tokens of each sequence, whose keys are stored already. Query head h reads key/value head h // (H/G).
        More batch axes, or none, are as good.
    key_pages : (pages, page_size, G, E) array_like
    value_pages : (pages, page_size, G, D) array_like
        Any strides; pages of any size. The dtype of the result comes from these and `query`, as in
        `scaled_dot_product_attention`.
    block_table : (B, M) array_like of int
        The pages of each sequence, in order. Sequences may share pages. Entries for keys past a sequence's length are
        not used, and may hold anything.
    kv_lengths : (B,) array_like of int
        Keys of each sequence, the new ones included.
    is_causal : bool, default False
        The last query sees the last key.
    scale : float, optional
    causal_offset : (B,) array_like of int, optional
    window_size : int or tuple of two int, optional
    softcap : float, optional
    alibi_slopes : (H,) or (B, H) array_like, optional
    sinks : (H,) or (B, H) array_like, optional
    query_lengths : (B,) array_like of int, optional
    relative_bias : (H, L or 1, 2K + 1) or (B, H, L or 1, 2K + 1) array_like of float, optional
    rotary : tuple of two (P, C) array_like of float32 or float64, optional
    rotary_interleaved : bool, default False
    return_lse : bool, default False
        As in `scaled_dot_product_attention`.
    out : (B, H, L, D) ndarray, optional
        Where the result goes; with `return_lse` a tuple (output, lse).

    Returns
    -------
    output : (B, H, L, D) ndarray
    lse : (B, H, L) ndarray
        Only with `return_lse`.

    Raises
    ------
    TypeError
        If an array is not of real numbers, or table or lengths not of integers.
    ValueError
        If shapes do not fit, if an entry of the table that is needed is not a page, or a number is out of range. No
        page has been read then.

    See Also
    --------
    scaled_dot_product_attention, attention_with_cache, attnpy.reference.paged_attention

    Notes
    -----
    The result has the bits of `scaled_dot_product_attention` on the same keys and values one after another. Pages are
    read where they lie; rows that no table assigns, and those past a sequence's length, are not.

    References
    ----------
    W. Kwon et al., "Efficient memory management for large language model serving with PagedAttention", 2023,
    arXiv:2309.06180.

    Examples
    --------
    Two sequences of 5 and 3 keys that share their first page of 2:

    >>> import numpy as np, attnpy
    >>> rng = np.random.default_rng(0)
    >>> key_pages, value_pages = rng.standard_normal((2, 6, 2, 1, 8))
    >>> query = rng.standard_normal((2, 4, 1, 8))
    >>> output = attnpy.paged_attention(query, key_pages, value_pages, [[4, 0, 3], [4, 1, -1]], [5, 3], is_causal=True)
    >>> key, value = (x[[4, 1]].reshape(1, 4, 8)[:, :3] for x in (key_pages, value_pages))
    >>> dense = attnpy.scaled_dot_product_attention(query[1], key, value)
    >>> bool((output[1] == dense).all())
    True
    """
    cos, sin = (None, None) if rotary is None else _tables(rotary)
    return _core.paged_attention(
        query, key_pages, value_pages, block_table, kv_lengths, is_causal, scale, causal_offset, window_size, softcap,
        alibi_slopes, sinks, query_lengths, relative_bias, cos, sin, rotary_interleaved, return_lse, out,
    )  # fmt: skip


def _quantised(x):
    """int8 and the scale of each row, float32: NaN for a row that is not finite."""
    x = np.asarray(x, np.float32)
    with np.errstate(all="ignore"):
        scale = np.abs(x).max(-1, initial=0) / np.float32(127)
        steps = np.rint(x / scale[..., None])
        steps = np.where(np.isfinite(steps), np.clip(steps, -127, 127), 0)
    return steps.astype(np.int8), np.where(np.isfinite(scale), scale, np.float32(np.nan))


def _size(name, x, least):
    size = integer(name, x)
    if size < least:
        raise ValueError(f"{name} is {size}; it must be at least {least}")
    return size


def _integers(name, x):
    x = np.asarray(x)
    if x.dtype.kind not in "iu" and x.size:
        raise TypeError(f"{name} has dtype {x.dtype}; it must hold integers")
    return x.astype(np.int64)


paged_attention.signature = "(h,l,d),(n,p,g,d),(n,p,g,e),(m),()->(h,l,e)"
