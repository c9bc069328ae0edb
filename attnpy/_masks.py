"""BlockMask: which keys each query may see, in tiles of 64 × 64."""

from __future__ import annotations

import inspect
import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _masks_arguments as given
from . import _masks_patterns as patterns
from . import _masks_picture as picture
from . import _masks_tiles as tiling
from ._masks_tiles import TILE, Grid, Tiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

_CELLS = 256  # rows and columns of a plot, at most


class BlockMask:
    r"""Which keys each query may see, stored as tiles of 64 × 64: what is hidden costs neither time nor memory.

    .. math:: M_{ij} \in \{0, 1\}, \qquad \text{query } i \text{ sees key } j \iff M_{ij} = 1

    An immutable mask of shape (..., L, S) for L queries and S keys, made by one of its constructors. It is passed as
    `attn_mask` and means what the dense array `to_dense` means there: its leading axes (batch, heads) broadcast, it
    combines with causal rule, window and lengths by AND, and it never follows lengths or offsets of the call. For every
    64 × 64 tile with something visible it holds a column number, and whether the tile is full or which of the different
    patterns it shows; equal tiles share a pattern.

    Attributes
    ----------
    shape : tuple of int
        (..., L, S)

    See Also
    --------
    scaled_dot_product_attention, attnpy.reference.BlockMask

    Notes
    -----
    Constructors: `from_dense`, `from_function`, `from_blocks`, `causal`, `sliding_window`, `global_tokens`,
    `longformer`, `bigbird`, `documents`, `prefix`, `lengths`. None but `from_dense` holds an (L, S) array at any time.

    Masks are joined by ``&``, ``|`` and ``~``; leading axes broadcast. ``mask[..., a:b, :]`` takes queries, ``mask[0]``
    or ``mask[:, None]`` index leading axes; keys cannot be sliced. Equal masks compare equal however they were made.
    Masks can be hashed and pickled.

    Its text is a small picture, of the first mask where there are leading axes: ``·`` nothing, ``░`` up to a third,
    ``▒`` up to two thirds, ``▓`` more, ``█`` everything visible.

    References
    ----------
    I. Beltagy, M. E. Peters, A. Cohan, "Longformer: the long-document transformer", 2020, arXiv:2004.05150.
    M. Zaheer et al., "Big Bird: transformers for longer sequences", NeurIPS 2020, arXiv:2007.14062.
    J. Dong et al., "Flex Attention: a programming model for generating optimized attention kernels", 2024,
    arXiv:2412.05496.

    Examples
    --------
    >>> import attnpy
    >>> mask = attnpy.BlockMask.sliding_window(8, 8, 2, 0) | attnpy.BlockMask.global_tokens(8, [0])
    >>> mask
    BlockMask, shape (8, 8), 51.6 % visible, 1 tile
    ████████
    ██······
    ███·····
    ████····
    █·███···
    █··███··
    █···███·
    █····███
    >>> (mask & ~mask).density
    0.0
    """

    __slots__ = ("_bits", "_core_arrays", "_indices", "_indptr", "_pattern", "shape")
    __array_ufunc__ = None  # array & mask: TypeError
    __signature__ = inspect.Signature()  # there are constructors instead
    shape: tuple[int, ...]
    _indptr: NDArray[np.int64]  # (product of leading axes, R + 1)
    _indices: NDArray[np.int32]
    _pattern: NDArray[np.int32]
    _bits: NDArray[np.uint64]
    _core_arrays: tuple[Any, ...]

    def __new__(cls, *_: Any, **__: Any) -> BlockMask:
        raise TypeError("a BlockMask is made by a constructor: BlockMask.from_dense(mask), BlockMask.causal(L, S), …")

    # --- constructors

    @classmethod
    def from_dense(cls, mask: ArrayLike) -> BlockMask:
        """The tiles of a boolean array.

        Parameters
        ----------
        mask : (..., L, S) array_like of bool
            True = attend. Any strides; it is read strip by strip and not copied.

        Returns
        -------
        (..., L, S) BlockMask

        Raises
        ------
        TypeError
            If `mask` is not boolean.
        ValueError
            If it has fewer than two axes.

        Examples
        --------
        >>> import numpy as np, attnpy
        >>> attnpy.BlockMask.from_dense(np.eye(3, dtype=bool))
        BlockMask, shape (3, 3), 33.3 % visible, 1 tile
        █··
        ·█·
        ··█
        """
        if isinstance(mask, np.ma.MaskedArray):
            raise TypeError("mask is a MaskedArray; pass an array of bool")
        mask = np.asarray(mask)
        if mask.dtype != bool:
            raise TypeError(f"mask is {mask.dtype}; it must be bool: use .astype(bool)")
        if mask.ndim < 2:
            raise ValueError(f"mask has shape {mask.shape}; it must have at least two axes, (..., L, S)")
        lead = mask.shape[:-2]
        for length in mask.shape:
            given.integer("an axis of mask", length, 0, given.LONGEST)

        def strip(n: int, i: int, k: int, j: int, l: int) -> NDArray[np.bool_]:
            return mask[np.unravel_index(n, lead)][i:k, j:l] if lead else mask[i:k, j:l]

        grid = Grid(math.prod(lead), *mask.shape[-2:])
        return _made(lead, grid, tiling.from_strips(grid, strip))

    @classmethod
    def from_function(
        cls,
        mask_mod: Callable[[Any, Any, Any, Any], Any],
        query_length: int,
        key_length: int,
        *,
        batch: int | None = None,
        heads: int | None = None,
    ) -> BlockMask:
        """The tiles of a rule on indices, of any kind.

        Parameters
        ----------
        mask_mod : callable
            ``mask_mod(b, h, q, k)`` says what is visible for index arrays of batch element, head, query and key. It is
            called with int64 arrays of shapes (1, 1), (1, 1), (n, 1) and (1, m), and returns bools that broadcast to
            (n, m): written with ``&``, ``|`` and indexing, not with ``and``, ``or`` and ``if``.
        query_length, key_length : int
            L and S.
        batch : int, optional
            Number of batch elements, where the rule depends on b.
        heads : int, optional
            Number of heads, where the rule depends on h.

        Returns
        -------
        (L, S), (heads, L, S), (batch, 1, L, S) or (batch, heads, L, S) BlockMask

        Raises
        ------
        TypeError
            If `mask_mod` returns no bools, or a size is not an integer.
        ValueError
            If what it returns does not broadcast to (n, m), or a size is negative.

        Notes
        -----
        Every one of the batch · heads · L · S places is asked for: the time grows with that product, unlike that of the
        other constructors. The memory does not: n · m is at most 2²², so that an int64 array in `mask_mod` holds 32 MB.

        Examples
        --------
        >>> import attnpy
        >>> attnpy.BlockMask.from_function(lambda b, h, q, k: (k <= q) & (k % 2 == h), 4, 4, heads=2).shape
        (2, 4, 4)
        """
        if not callable(mask_mod):
            raise TypeError(f"mask_mod is {type(mask_mod).__name__}; it must be a function of b, h, q, k")
        grid = Grid(1, given.length("query_length", query_length), given.length("key_length", key_length))
        sizes = {"batch": batch, "heads": heads}
        lead = tuple(given.length(name, size) for name, size in sizes.items() if size is not None)
        lead = (*lead, 1) if batch is not None and heads is None else lead
        grid = grid._replace(N=math.prod(lead))
        columns = 1 if heads is None else lead[-1]

        def strip(n: int, i: int, k: int, j: int, l: int) -> NDArray[np.bool_]:
            b, h = (np.full((1, 1), x) for x in divmod(n, columns))
            visible = np.asarray(mask_mod(b, h, np.arange(i, k)[:, None], np.arange(j, l)[None]))
            if visible.dtype != bool:
                raise TypeError(f"mask_mod returned {visible.dtype}; it must return bool")
            try:
                return np.broadcast_to(visible, (k - i, l - j))
            except ValueError:
                raise ValueError(
                    f"mask_mod returned shape {visible.shape}; it must broadcast to {(k - i, l - j)}"
                ) from None

        return _made(lead, grid, tiling.from_strips(grid, strip))

    @classmethod
    def from_blocks(
        cls, *, indices: ArrayLike, indptr: ArrayLike, block_size: int | tuple[int, int], shape: tuple[int, ...]
    ) -> BlockMask:
        """Blocks of any size, in the terms of SciPy's BSR arrays.

        Parameters
        ----------
        indices : (n,) array_like of int
            Numbers of key blocks, in any order; a block given twice counts once.
        indptr : (..., rows + 1) array_like of int
            The queries of block row b see the keys of the blocks ``indices[indptr[..., b]:indptr[..., b + 1]]``; rows
            is ⌈L / block_size⌉.
        block_size : int or tuple of two int
            Queries and keys of a block, at least 1. The last blocks may be cut by the end of the mask.
        shape : tuple of int
            (..., L, S), with the leading axes of `indptr`.

        Returns
        -------
        (..., L, S) BlockMask

        Raises
        ------
        TypeError
            If something is not of integers.
        ValueError
            If `indptr` has another shape, decreases or leaves `indices`, or if a block lies outside `shape`.

        Examples
        --------
        >>> import attnpy
        >>> attnpy.BlockMask.from_blocks(indices=[0, 0, 2], indptr=[0, 1, 3], block_size=2, shape=(4, 6))
        BlockMask, shape (4, 6), 50 % visible, 1 tile
        ██····
        ██····
        ██··██
        ██··██
        """
        lead, grid = given.grid("shape", shape)
        tall, wide = given.pair("block_size", block_size)
        blocks_of = given.array("indices", indices, 1, 0, -(-grid.S // wide) - 1)
        pointers = given.array("indptr", indptr, None, 0, len(blocks_of))
        if pointers.shape != (*lead, -(-grid.L // tall) + 1):
            raise ValueError(
                f"indptr has shape {pointers.shape}; wanted {(*lead, -(-grid.L // tall) + 1)} for blocks of "
                f"{tall} queries in shape {tuple(shape)}"
            )
        if (np.diff(pointers, axis=-1) < 0).any():
            raise ValueError("indptr decreases; wanted each block row's end at or behind its start")
        pointers = pointers.reshape(grid.N, -1)
        return _made(lead, grid, patterns.blocks(grid, pointers, blocks_of, tall, wide))

    @classmethod
    def causal(cls, query_length: int, key_length: int, offset: int | None = None) -> BlockMask:
        """Query i sees keys j ≤ i + offset.

        Parameters
        ----------
        query_length, key_length : int
            L and S.
        offset : int, optional
            The default is S - L: the last query sees the last key. 0 aligns the first query with the first key.

        Returns
        -------
        (L, S) BlockMask

        Raises
        ------
        TypeError
            If something is not an integer.
        ValueError
            If a length is negative.

        Examples
        --------
        >>> import attnpy
        >>> attnpy.BlockMask.causal(3, 5)
        BlockMask, shape (3, 5), 80 % visible, 1 tile
        ███··
        ████·
        █████
        """
        L, S = given.length("query_length", query_length), given.length("key_length", key_length)
        offset = S - L if offset is None else given.integer("offset", offset)
        return _made((), Grid(1, L, S), tiling.band(L, S, -L, offset))

    @classmethod
    def sliding_window(
        cls, query_length: int, key_length: int, left: int, right: int, *, dilation: int = 1, offset: int | None = None
    ) -> BlockMask:
        """Query i sees keys around i + offset: `left` before it, `right` behind it, and the one there.

        Parameters
        ----------
        query_length, key_length : int
            L and S.
        left, right : int
            Numbers of keys; -1 is open. The key at i + offset itself is not counted.
        dilation : int, default 1
            Every `dilation`-th key counts, so that the reach is left · dilation and right · dilation positions.
        offset : int, optional
            The default is S - L: the last query stands at the last key.

        Returns
        -------
        (L, S) BlockMask

        Raises
        ------
        TypeError
            If something is not an integer.
        ValueError
            If a length is negative, `left` or `right` below -1, or `dilation` below 1.

        Examples
        --------
        >>> import attnpy
        >>> attnpy.BlockMask.sliding_window(5, 5, 1, 1, dilation=2)
        BlockMask, shape (5, 5), 44 % visible, 1 tile
        █·█··
        ·█·█·
        █·█·█
        ·█·█·
        ··█·█
        """
        L, S = given.length("query_length", query_length), given.length("key_length", key_length)
        left, right = given.integer("left", left, -1), given.integer("right", right, -1)
        dilation = given.integer("dilation", dilation, 1)
        offset = S - L if offset is None else given.integer("offset", offset)
        low = -L if left < 0 else offset - left * dilation
        high = S if right < 0 else offset + right * dilation
        if dilation >= L + S:  # one value of j - i fits, if any
            only = (offset + L) % dilation - L
            low, high, dilation = max(low, only), min(high, only), 1
        return _made((), Grid(1, L, S), tiling.band(L, S, low, high, dilation, offset % dilation))

    @classmethod
    def global_tokens(cls, length: int, tokens: ArrayLike) -> BlockMask:
        """Some tokens see all, and are seen by all.

        Parameters
        ----------
        length : int
            L = S.
        tokens : (n,) array_like of int, or (..., L) array_like of bool
            Positions, counted from the end where negative; or for each token whether it is one of them. Leading axes
            are batch axes; the mask then has a head axis of length 1 behind them.

        Returns
        -------
        (L, L) or (..., 1, L, L) BlockMask

        Raises
        ------
        TypeError
            If `tokens` is neither of integers nor of bools.
        ValueError
            If a position lies outside the length, or the shape does not fit.

        Examples
        --------
        >>> import attnpy
        >>> attnpy.BlockMask.global_tokens(4, [0, -1])
        BlockMask, shape (4, 4), 75 % visible, 1 tile
        ████
        █··█
        █··█
        ████
        """
        length = given.length("length", length)
        chosen = given.chosen("tokens", tokens, length)
        lead = _batch(chosen.shape[:-1])
        chosen = chosen.reshape(math.prod(lead), length)
        grid = Grid(len(chosen), length, length)
        either = tiling.joined(grid, tiling.by_queries(chosen, length), tiling.by_keys(chosen, length), operator.or_)
        return _made(lead, grid, either)

    @classmethod
    def longformer(cls, length: int, window: int, global_tokens: ArrayLike) -> BlockMask:
        """Longformer's pattern: a window on both sides of each token, and global tokens.

        Parameters
        ----------
        length : int
            L = S.
        window : int
            Tokens seen on each side, as `left` and `right` of `sliding_window`: half of the `attention_window` of
            Hugging Face's LongformerConfig.
        global_tokens : (n,) array_like of int, or (..., L) array_like of bool
            As the `tokens` of the constructor `global_tokens`.

        Returns
        -------
        (L, L) or (..., 1, L, L) BlockMask

        Raises
        ------
        TypeError
            If `global_tokens` is neither of integers nor of bools.
        ValueError
            If `window` is below -1, a position lies outside the length, or a shape does not fit.

        Examples
        --------
        >>> import attnpy
        >>> attnpy.BlockMask.longformer(6, 1, [0])
        BlockMask, shape (6, 6), 66.7 % visible, 1 tile
        ██████
        ███···
        ████··
        █·███·
        █··███
        █···██
        """
        length, window = given.length("length", length), given.integer("window", window, -1)
        chosen = given.chosen("global_tokens", global_tokens, length)
        return cls.sliding_window(length, length, window, window) | cls.global_tokens(length, chosen)

    @classmethod
    def bigbird(
        cls,
        length: int,
        *,
        block_size: int = 64,
        num_random: int = 3,
        window: int = 3,
        num_global: int = 2,
        rng: np.random.Generator,
    ) -> BlockMask:
        """BigBird's pattern in blocks: a window of blocks, global blocks, and blocks drawn at random.

        Parameters
        ----------
        length : int
            L = S. The last block may be shorter.
        block_size : int, default 64
            Tokens of a block.
        num_random : int, default 3
            Blocks drawn for each block of queries, without repetition, among those that are neither global nor in its
            window; all of those where there are fewer.
        window : int, default 3
            Blocks of the window, an odd number: (window - 1) / 2 on each side of the block itself.
        num_global : int, default 2
            Blocks that see all and are seen by all: the first, the last, the second, the last but one …
        rng : numpy.random.Generator
            What draws: one ``rng.choice`` for each block that is not global, in order.

        Returns
        -------
        (L, L) BlockMask

        Raises
        ------
        TypeError
            If `rng` is no Generator, or something is not an integer.
        ValueError
            If `window` is even, or a number is out of range.

        Notes
        -----
        Every admissible block is equally likely, as the paper has it. Hugging Face's class draws from a part of the
        blocks that its plan for the length allows; the mask of the blocks it drew is made by `from_blocks`.

        Examples
        --------
        >>> import numpy as np, attnpy
        >>> attnpy.BlockMask.bigbird(8, block_size=1, num_random=1, rng=np.random.default_rng(0))
        BlockMask, shape (8, 8), 78.1 % visible, 1 tile
        ████████
        ███···██
        ████·█·█
        █·████·█
        ██·███·█
        ██··████
        ██···███
        ████████
        """
        length = given.length("length", length)
        block_size = given.integer("block_size", block_size, 1, given.LONGEST)
        num_random, num_global = given.integer("num_random", num_random, 0), given.integer("num_global", num_global, 0)
        window = given.integer("window", window, 1)
        if window % 2 == 0:
            raise ValueError(f"window is {window}; it must be odd: the block itself and as many on either side")
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng is {type(rng).__name__}; it must be a numpy.random.Generator")
        indptr, indices = patterns.drawn_blocks(-(-length // block_size), num_random, window, num_global, rng)
        return cls.from_blocks(indices=indices, indptr=indptr, block_size=block_size, shape=(length, length))

    @classmethod
    def documents(cls, query_ids: ArrayLike, key_ids: ArrayLike | None = None) -> BlockMask:
        """Queries see the keys of their own document.

        Parameters
        ----------
        query_ids : (..., L) array_like of int
            The number of the document that each query belongs to, in any order. Leading axes are batch axes; the mask
            then has a head axis of length 1 behind them.
        key_ids : (..., S) array_like of int, optional
            Those of the keys. The default is `query_ids`.

        Returns
        -------
        (L, S) or (..., 1, L, S) BlockMask

        Raises
        ------
        TypeError
            If an array is not of integers.
        ValueError
            If an array has no axis, or the leading axes do not broadcast.

        Examples
        --------
        >>> import attnpy
        >>> attnpy.BlockMask.documents([0, 0, 0, 1, 1, 2])
        BlockMask, shape (6, 6), 38.9 % visible, 1 tile
        ███···
        ███···
        ███···
        ···██·
        ···██·
        ·····█
        """
        queries = given.ids("query_ids", query_ids)
        keys = queries if key_ids is None else given.ids("key_ids", key_ids)
        try:
            batch = np.broadcast_shapes(queries.shape[:-1], keys.shape[:-1])
        except ValueError:
            raise ValueError(
                f"key_ids has shape {keys.shape}; its leading axes must broadcast with those of query_ids, "
                f"{queries.shape}"
            ) from None
        lead = _batch(batch)
        queries, keys = (
            np.broadcast_to(x, (*batch, x.shape[-1])).reshape(math.prod(lead), x.shape[-1]) for x in (queries, keys)
        )
        grid = Grid(math.prod(lead), queries.shape[1], keys.shape[1])
        return _made(lead, grid, patterns.documents(queries, keys))

    @classmethod
    def prefix(cls, length: int, prefix_length: ArrayLike) -> BlockMask:
        """Causal, but all see the first `prefix_length` keys.

        Parameters
        ----------
        length : int
            L = S.
        prefix_length : int or (...) array_like of int
            In 0 … L: one number, or one for each batch element; the mask then has a head axis of length 1.

        Returns
        -------
        (L, L) or (..., 1, L, L) BlockMask

        Raises
        ------
        TypeError
            If `prefix_length` is not of integers.
        ValueError
            If it lies outside 0 … L.

        Examples
        --------
        >>> import attnpy
        >>> attnpy.BlockMask.prefix(5, 3)
        BlockMask, shape (5, 5), 72 % visible, 1 tile
        ███··
        ███··
        ███··
        ████·
        █████
        """
        length = given.length("length", length)
        prefix = given.array("prefix_length", prefix_length, None, 0, length)
        return cls.causal(length, length) | cls.lengths(length, length, prefix)

    @classmethod
    def lengths(cls, query_length: int, key_length: int, key_lengths: ArrayLike) -> BlockMask:
        """All queries see the first keys, as many as are not padding.

        Parameters
        ----------
        query_length, key_length : int
            L and S.
        key_lengths : int or (...) array_like of int
            In 0 … S: one number, or one for each batch element; the mask then has a head axis of length 1.

        Returns
        -------
        (L, S) or (..., 1, L, S) BlockMask

        Raises
        ------
        TypeError
            If `key_lengths` is not of integers.
        ValueError
            If it lies outside 0 … S.

        Examples
        --------
        >>> import attnpy
        >>> attnpy.BlockMask.lengths(2, 4, [3, 1]).to_dense()[:, 0, 0]
        array([[ True,  True,  True, False],
               [ True, False, False, False]])
        """
        L, S = given.length("query_length", query_length), given.length("key_length", key_length)
        valid = given.array("key_lengths", key_lengths, None, 0, S)
        lead = _batch(valid.shape)
        grid = Grid(math.prod(lead), L, S)
        return _made(lead, grid, tiling.by_keys(np.arange(S) < valid.reshape(-1, 1), L))

    # --- joining and cutting

    def __and__(self, other: BlockMask) -> BlockMask:
        return self._joined(other, operator.and_)

    def __or__(self, other: BlockMask) -> BlockMask:
        return self._joined(other, operator.or_)

    def __invert__(self) -> BlockMask:
        grid = self._grid
        hidden = tiling.joined(grid, tiling.everything(grid), self._tiles, lambda all_, seen: all_ & ~seen)
        return _made(self.shape[:-2], grid, hidden)

    def _joined(self, other: Any, rule: Callable[[Any, Any], Any]) -> Any:
        if not isinstance(other, BlockMask):
            return NotImplemented
        try:
            if self.shape[-2:] != other.shape[-2:]:
                raise ValueError
            lead = np.broadcast_shapes(self.shape[:-2], other.shape[:-2])
        except ValueError:
            raise ValueError(
                f"masks of shapes {self.shape} and {other.shape} cannot be joined: L and S must be equal, leading axes "
                "broadcast"
            ) from None
        grid = self._grid._replace(N=math.prod(lead))
        return _made(lead, grid, tiling.joined(grid, self._spread(lead), other._spread(lead), rule))

    def _spread(self, lead: tuple[int, ...]) -> Tiles:
        """The tiles with leading axes broadcast."""
        if lead == self.shape[:-2]:
            return self._tiles
        own = np.arange(self._grid.N).reshape(self.shape[:-2])
        return self._of(np.broadcast_to(own, lead))

    def _of(self, chosen: NDArray[Any]) -> Tiles:
        """The tiles of these masks, by their number in C order."""
        rows = chosen.reshape(-1, 1) * self._grid.R + np.arange(self._grid.R)
        return tiling.select(self._tiles, rows.ravel())

    def __getitem__(self, index: Any) -> BlockMask:
        leading, queries = given.split_index(index, self.shape)
        chosen = np.asarray(np.arange(self._grid.N).reshape(self.shape[:-2])[leading])
        grid, tiles = self._grid._replace(N=chosen.size), self._of(chosen)
        start, stop, step = queries.indices(grid.L)
        if step == 1:
            cut = tiling.cut_rows(grid, tiles, start, max(start, stop))
        else:
            cut = _stepped(grid, tiles, np.arange(start, stop, step))
        return _made(chosen.shape, *cut)

    # --- what it holds

    @property
    def _grid(self) -> Grid:
        return Grid(len(self._indptr), *self.shape[-2:])

    @property
    def _tiles(self) -> Tiles:
        pointers = np.append(self._indptr[:, :-1], len(self._indices))
        return Tiles(pointers, self._indices, self._pattern, self._bits)

    @property
    def density(self) -> float:
        """The visible share of all places; 0 where there is none."""
        places = math.prod(self.shape)
        tiles = self._tiles
        visible = sum(int(tiling.shown(self._grid, tiles, rows).sum()) for rows in tiling.pieces(tiles.pointers))
        return visible / places if places else 0.0

    @property
    def nbytes(self) -> int:
        """Memory of the tiles, in bytes."""
        return sum(x.nbytes for x in self._core_arrays[1:])

    def to_dense(self) -> NDArray[np.bool_]:
        """The mask as an array: True = attend.

        Returns
        -------
        (..., L, S) ndarray of bool

        Examples
        --------
        >>> import attnpy
        >>> attnpy.BlockMask.causal(2, 2).to_dense()
        array([[ True, False],
               [ True,  True]])
        """
        grid, tiles = self._grid, self._tiles
        dense = np.empty(grid, np.bool_)
        for n in range(grid.N):
            for r in range(grid.R):
                tiling.dense_rows(grid, tiles, n * grid.R + r, dense[n, r * TILE : (r + 1) * TILE])
        return dense.reshape(self.shape)

    def plot(self, *, ax: Any = None, titles: Any = None, cmap: Any = "Blues", max_columns: int = 4) -> Any:
        """Draw how much of each cell is visible, with matplotlib; one picture for each index of the leading axes.

        Parameters
        ----------
        ax, titles, cmap, max_columns
            As those of `attnpy.plot.heatmap`.

        Returns
        -------
        Axes, or (rows, columns) ndarray of Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If the mask is empty, or `titles` or `ax` does not fit.

        Examples
        --------
        >>> import attnpy
        >>> ax = attnpy.BlockMask.causal(4096, 4096).plot()
        >>> ax.get_xlabel()
        'key'
        """
        from .plot import heatmap

        grid, lead = self._grid, self.shape[:-2]
        if math.prod(self.shape) == 0:
            raise ValueError(f"a mask of shape {self.shape} has nothing to draw")
        drawn = [picture.coverage(grid._replace(N=1), self._of(np.asarray(n)), _CELLS, _CELLS) for n in range(grid.N)]
        shares = np.stack([share for share, _, _ in drawn])
        _, tall, wide = drawn[0]
        queries = [str(tall * cell) for cell in range(shares.shape[1])]
        keys = [str(wide * cell) for cell in range(shares.shape[2])]
        if titles is None and len(lead) > 1:
            titles = [str(index) for index in np.ndindex(lead)]
        return heatmap(
            shares if lead else shares[0], queries, keys, titles=titles, ax=ax, cmap=cmap, vmin=0, vmax=1,
            annotate=False, max_columns=max_columns,
        )  # fmt: skip

    def __repr__(self) -> str:
        grid = self._grid
        said = picture.words(self.shape, self.density, len(self._indices))
        lines = picture.text(grid._replace(N=1), self._of(np.asarray(0))) if grid.N else []
        said += f"; the first of {grid.N}:" if grid.N > 1 and lines else ""
        return "\n".join([said, *lines])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockMask):
            return NotImplemented
        return self.shape == other.shape and all(
            np.array_equal(ours, theirs)
            for ours, theirs in zip(self._core_arrays[1:], other._core_arrays[1:], strict=True)
        )

    def __hash__(self) -> int:
        some = self._indices[:: max(1, len(self._indices) // 1024)]
        return hash((self.shape, len(self._indices), len(self._bits), some.tobytes()))

    def __setattr__(self, name: str, value: Any = None) -> None:
        raise AttributeError("a BlockMask cannot be changed")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, self._core_arrays


def _made(lead: tuple[int, ...], grid: Grid, tiles: Tiles) -> BlockMask:
    first = np.arange(grid.N)[:, None] * grid.R
    indptr = tiles.pointers[first + np.arange(grid.R + 1)]
    return _restored((*lead, grid.L, grid.S), indptr, tiles.indices, tiles.pattern, tiles.bits)


def _restored(shape: tuple[int, ...], *arrays: NDArray[Any]) -> BlockMask:
    """The arrays lie in bytes objects: nobody can write to them, so that kernels need no copy."""
    self = object.__new__(BlockMask)
    fixed = [np.ndarray(x.shape, x.dtype.newbyteorder("="), x.astype(x.dtype.newbyteorder("="), copy=False).tobytes())
             for x in arrays]  # fmt: skip
    fields = {"shape": shape, **dict(zip(("_indptr", "_indices", "_pattern", "_bits"), fixed, strict=True))}
    for name, value in {**fields, "_core_arrays": (shape, *fixed)}.items():
        object.__setattr__(self, name, value)
    return self


def seen_by_all(chosen: NDArray[np.bool_]) -> BlockMask:
    """Every query sees the chosen keys: (..., L) → (L, L) or (..., 1, L, L)."""
    lead, length = _batch(chosen.shape[:-1]), chosen.shape[-1]
    chosen = chosen.reshape(math.prod(lead), length)
    return _made(lead, Grid(len(chosen), length, length), tiling.by_keys(chosen, length))


def _stepped(grid: Grid, tiles: Tiles, queries: NDArray[Any]) -> tuple[Grid, Tiles]:
    """These queries of every mask, spelt out strip by strip."""

    def strip(n: int, i: int, k: int, j: int, l: int) -> NDArray[np.bool_]:
        wanted = queries[i:k]
        visible = np.empty((k - i, l - j), np.bool_)
        for row in np.unique(wanted // TILE):
            here = np.empty((min(TILE, grid.L - row * TILE), grid.S), np.bool_)
            tiling.dense_rows(grid, tiles, n * grid.R + row, here)
            of_row = wanted // TILE == row
            visible[of_row] = here[wanted[of_row] % TILE, j:l]
        return visible

    fewer = grid._replace(L=len(queries))
    return fewer, tiling.from_strips(fewer, strip)


def _batch(batch: tuple[int, ...]) -> tuple[int, ...]:
    """Leading axes of a mask with these batch axes: a head axis behind them."""
    return (*batch, 1) if batch else ()
