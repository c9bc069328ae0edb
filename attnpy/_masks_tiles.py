"""Sets of 64 × 64 tiles: how a BlockMask is built, joined and cut without its (L, S) array.

N masks of L queries and S keys lie one below the other: R tile rows each, N·R in all, of C tile columns. A tile that
shows something has a pattern: FULL, or the number of 64 words (one per query; bit = key).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

TILE = 64
FULL, EMPTY = -1, -2
ONES = np.uint64(2**64 - 1)
PIECE = 2**14  # tiles
STRIP = 2**22  # scores that are spelt out at a time: 4 MB of bools, 32 MB of int64


class Grid(NamedTuple):
    N: int
    L: int
    S: int

    @property
    def R(self) -> int:
        return -(-self.L // TILE)

    @property
    def C(self) -> int:
        return -(-self.S // TILE)


class Tiles(NamedTuple):
    """CSR over tile rows: the columns indices[pointers[r] : pointers[r + 1]] of tile row r, with a pattern each."""

    pointers: NDArray[np.int64]  # (N·R + 1,)
    indices: NDArray[np.int32]
    pattern: NDArray[np.int32]
    bits: NDArray[np.uint64]  # (patterns, 64)

    def __getitem__(self, rows: slice) -> Tiles:  # type: ignore[override]
        """Some tile rows."""
        pointers = self.pointers[rows.start : rows.stop + 1]
        here = slice(pointers[0], pointers[-1])
        return Tiles(pointers - pointers[0], self.indices[here], self.pattern[here], self.bits)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The tile row of each tile."""
        return np.repeat(np.arange(len(self.pointers) - 1), np.diff(self.pointers))


def pieces(*pointers: NDArray[np.int64]) -> Iterator[slice]:
    """Runs of tile rows with at most PIECE tiles (or one row): what is computed of them stays in the cache."""
    total = sum(pointers)
    row = 0
    while row < len(total) - 1:
        end = int(np.searchsorted(total, total[row] + PIECE, "right")) - 1
        end = min(max(end, row + 1), row + PIECE)
        yield slice(row, end)
        row = end


def pointers_of(counts: NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def pack(visible: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """(..., 64) bools → words, the first bool in the lowest bit."""
    return np.packbits(visible, axis=-1, bitorder="little").view("<u8")[..., 0].astype(np.uint64)


def unpack(words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """(..., n) words → (..., 64 n) bools."""
    return np.unpackbits(words.astype("<u8").view(np.uint8), axis=-1, bitorder="little").view(np.bool_)


def unique_rows(bits: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
    """Each pattern once, in an order that depends on the set of patterns only; and the place of each.

    Sorted by a hash of 64 bits; where two patterns share one, by themselves.
    """
    odd = (np.arange(TILE, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
    mixed = (bits ^ (bits >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    mixed = ((mixed ^ (mixed >> np.uint64(29))) * odd).sum(1, dtype=np.uint64)
    _, first, place = np.unique(mixed, return_index=True, return_inverse=True)
    if (bits[first][place] == bits).all():
        return bits[first], place
    unique, place = np.unique(bits, axis=0, return_inverse=True)
    return unique, place.ravel()


def compact(codes: NDArray[np.int64], limit: int) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """The different ones among codes in 0 … limit - 1, ascending, and the place of each."""
    if limit > max(2**20, 4 * codes.size):
        return np.unique(codes, return_inverse=True)
    seen = np.zeros(limit, bool)
    seen[codes] = True
    return np.flatnonzero(seen), (np.cumsum(seen) - 1)[codes]


def edges(grid: Grid) -> NDArray[np.uint64]:
    """What lies within L and S of an inner tile, one of the last tile row, of the last column, of both: (4, 64)."""
    inside = np.arange(TILE)
    rows = np.where(inside < (grid.L - 1) % TILE + 1, ONES, np.uint64(0))
    columns = pack((inside < (grid.S - 1) % TILE + 1)[None])
    return np.stack([np.full(TILE, ONES), rows, np.broadcast_to(columns, TILE), rows & columns])


def canonical(grid: Grid, counts: NDArray[Any], indices: Any, pattern: Any, bits: NDArray[np.uint64]) -> Tiles:
    """The one form of a mask: nothing past L and S, no empty tiles, full ones marked, each pattern once, in one order.

    counts: tiles of each tile row; indices ascending in each; bits of partial tiles may go past L and S. `pattern` is
    written to.
    """
    pointers = pointers_of(counts)
    indices, pattern = np.ascontiguousarray(indices, np.int32), np.ascontiguousarray(pattern, np.int32)
    bits, whole = _clipped(grid, pointers, indices, pattern, bits)
    used = np.zeros(len(bits) + 1, bool)  # the last: FULL
    for at in range(0, len(pattern), PIECE):
        used[pattern[at : at + PIECE]] = True
    final = np.full(len(bits) + 1, FULL, np.int32)
    final[:-1][~bits.any(1)] = EMPTY
    partial = np.flatnonzero(used[:-1] & (final[:-1] != EMPTY) & (bits != whole).any(1))
    bits, place = unique_rows(bits[partial])
    final[partial] = place
    for at in range(0, len(pattern), PIECE):
        pattern[at : at + PIECE] = final[pattern[at : at + PIECE]]
    if (used & (final == EMPTY)).any():
        shown = pattern != EMPTY
        pointers = np.concatenate([[0], np.cumsum(shown)])[pointers]
        indices, pattern = indices[shown], pattern[shown]
    return Tiles(pointers, indices, pattern, np.ascontiguousarray(bits))


def _clipped(
    grid: Grid, pointers: NDArray[np.int64], indices: NDArray[np.int32], pattern: NDArray[np.int32], bits: Any
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Gives partial tiles at the ends of L and S patterns of their own; the bits of all, and what is full there."""
    within = edges(grid)
    edge = np.zeros(len(indices) if grid.L % TILE or grid.S % TILE else 0, np.int8)
    if grid.L % TILE and grid.N:
        edge[_gathered(pointers, np.arange(grid.N) * grid.R + grid.R - 1)] = 1
    if grid.S % TILE:
        edge[indices == grid.C - 1] += 2
    at_edge = np.flatnonzero(edge)
    at_edge = at_edge[pattern[at_edge] >= 0]
    codes, place = compact(4 * pattern[at_edge].astype(np.int64) + edge[at_edge], 4 * len(bits))
    pattern[at_edge] = len(bits) + place
    whole = np.concatenate([np.broadcast_to(ONES, (len(bits), TILE)), within[codes % 4]])
    return np.concatenate([bits, bits[codes // 4] & within[codes % 4]]), whole


def _gathered(pointers: NDArray[np.int64], rows: NDArray[Any]) -> NDArray[np.int64]:
    """The places of all tiles of these tile rows, in their order."""
    counts = pointers[rows + 1] - pointers[rows]
    start = pointers_of(counts)
    return np.repeat(pointers[rows] - start[:-1], counts) + np.arange(start[-1])


def select(tiles: Tiles, rows: NDArray[Any]) -> Tiles:
    """These tile rows, in this order; -1: an empty one."""
    absent = rows < 0
    present = rows[~absent]
    counts = np.zeros(len(rows), np.int64)
    counts[~absent] = tiles.pointers[present + 1] - tiles.pointers[present]
    places = _gathered(tiles.pointers, present)
    return Tiles(pointers_of(counts), tiles.indices[places], tiles.pattern[places], tiles.bits)


def everything(grid: Grid) -> Tiles:
    rows = grid.N * grid.R
    indices = np.tile(np.arange(grid.C, dtype=np.int32), rows)
    return Tiles(
        np.arange(rows + 1) * grid.C, indices, np.full(indices.shape, FULL, np.int32), np.empty((0, TILE), np.uint64)
    )


def joined(grid: Grid, a: Tiles, b: Tiles, rule: Callable[[Any, Any], Any]) -> Tiles:
    """rule(words of a, words of b) for all tiles that one of the two has; a tile that neither has stays empty."""
    counts, indices, codes = [np.empty(0, int)], [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    for rows in pieces(a.pointers, b.pointers):
        keys, code = _met(grid.C, rows.stop - rows.start, a[rows], b[rows])
        row = keys // max(grid.C, 1)
        counts.append(np.bincount(row, minlength=rows.stop - rows.start))
        indices.append((keys - row * grid.C).astype(np.int32))
        codes.append(code)
    pairs, pattern = compact(np.concatenate(codes), (len(a.bits) + 2) * (len(b.bits) + 2))
    first_of, second_of = np.divmod(pairs, len(b.bits) + 2)
    words = [np.concatenate([np.zeros((1, TILE), np.uint64), np.full((1, TILE), ONES), t.bits]) for t in (a, b)]
    bits = rule(words[0][first_of], words[1][second_of])
    return canonical(grid, np.concatenate(counts), np.concatenate(indices), pattern, bits)


def _met(C: int, rows: int, a: Tiles, b: Tiles) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ascending row · C + column of the tiles of a or b, and the pattern in a and in b as one number."""
    keys = [t.rows * C + t.indices for t in (a, b)]
    first = (a.pattern.astype(np.int64) - EMPTY) * (len(b.bits) + 2)
    if rows * C <= 16 * (len(keys[0]) + len(keys[1])):
        code = np.zeros(rows * C, np.int64)
        code[keys[0]] = first
        code[keys[1]] += b.pattern - EMPTY
        found = np.flatnonzero(code)
        return found, code[found]
    both = np.concatenate(keys)
    order = np.argsort(both, kind="stable")  # two ascending runs: merged, not sorted
    ascending = both[order]
    new = np.ones(len(both), bool)
    new[1:] = ascending[1:] != ascending[:-1]
    places = np.empty(len(both), np.int64)
    places[order] = np.cumsum(new) - 1
    code = np.zeros(np.count_nonzero(new), np.int64)
    code[places[: len(first)]] = first
    code[places[len(first) :]] += b.pattern - EMPTY
    return ascending[new], code


def cut_rows(grid: Grid, tiles: Tiles, start: int, stop: int) -> tuple[Grid, Tiles]:
    """Queries start … stop - 1 of every mask."""
    smaller = Grid(grid.N, stop - start, grid.S)
    above = start // TILE + np.arange(smaller.R)
    first = np.arange(grid.N)[:, None] * grid.R

    def of(rows: NDArray[Any]) -> Tiles:
        return select(tiles, np.where(rows < grid.R, first + rows, -1).ravel())

    shift = start % TILE
    if shift == 0:
        upper = of(above)
        return smaller, canonical(smaller, np.diff(upper.pointers), upper.indices, upper.pattern, upper.bits)
    return smaller, joined(
        smaller, of(above), of(above + 1), lambda a, b: np.concatenate([a[:, shift:], b[:, :shift]], axis=1)
    )


# --- patterns that need no search


def band(L: int, S: int, low: int, high: int, dilation: int = 1, phase: int = 0) -> Tiles:
    """low ≤ j - i ≤ high, and j - i = phase modulo dilation."""
    grid = Grid(1, L, S)
    low, high = min(max(low, -L), S), max(min(high, S), -L)
    nearest, farthest = -((TILE - 1 - low) // TILE), (high + TILE - 1) // TILE  # column less row of a tile
    rows = np.arange(grid.R)
    first = np.clip(rows + nearest, 0, grid.C)
    counts = np.maximum(np.clip(rows + farthest + 1, 0, grid.C) - first, 0)
    pointers = pointers_of(counts)
    apart = np.arange(max(nearest, 1 - grid.R), min(farthest, grid.C - 1) + 1)
    number, bits = _by_distance(apart, low, high, dilation, phase)
    indices, pattern = np.empty((2, pointers[-1]), np.int32)
    for part in pieces(pointers):
        here, count = slice(*pointers[[part.start, part.stop]]), counts[part]
        columns = np.arange(here.start, here.stop) - np.repeat(pointers[:-1][part] - first[part], count)
        indices[here] = columns
        pattern[here] = number[columns - np.repeat(rows[part] + (apart[0] if len(apart) else 0), count)]
    return canonical(grid, counts, indices, pattern, bits)


def _by_distance(
    apart: NDArray[Any], low: int, high: int, dilation: int, phase: int
) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """The pattern of tiles whose column less row is apart[n], and the bits."""
    inside = (TILE * apart - (TILE - 1) >= low) & (TILE * apart + (TILE - 1) <= high)
    if dilation == 1:
        number = np.full(len(apart), FULL, np.int32)
        number[~inside] = np.arange(np.count_nonzero(~inside))
        chosen = apart[~inside]
    else:  # inside, only the distance modulo the dilation counts
        _, first, place = np.unique(
            np.where(inside, TILE * apart % dilation, dilation + np.arange(len(apart))),
            return_index=True, return_inverse=True,
        )  # fmt: skip
        number, chosen = place.astype(np.int32), apart[first]
    within = np.arange(TILE) - np.arange(TILE)[:, None]
    bits = np.empty((len(chosen), TILE), np.uint64)
    step = STRIP // TILE**2
    for at in range(0, len(chosen), step):
        distance = TILE * chosen[at : at + step, None, None] + within
        visible = (low <= distance) & (distance <= high)
        if dilation > 1:
            visible &= (distance - phase) % dilation == 0
        bits[at : at + step] = pack(visible)
    return number, bits


def by_keys(shown: NDArray[np.bool_], L: int) -> Tiles:
    """Every query sees the keys of `shown` (N, S)."""
    grid = Grid(shown.shape[0], L, shown.shape[1])
    padded = np.zeros((grid.N, grid.C * TILE), bool)
    padded[:, : grid.S] = shown
    words = pack(padded.reshape(grid.N, grid.C, TILE))
    different, place = np.unique(words, return_inverse=True)
    place = place.reshape(words.shape)
    columns = [np.flatnonzero(row) for row in words]
    indices = [np.tile(column.astype(np.int32), grid.R) for column in columns]
    pattern = [np.tile(place[n, column].astype(np.int32), grid.R) for n, column in enumerate(columns)]
    counts = np.repeat(np.count_nonzero(words, axis=1), grid.R)
    none = [np.empty(0, np.int32)]
    return canonical(
        grid, counts, np.concatenate(indices + none), np.concatenate(pattern + none),
        np.repeat(different[:, None], TILE, axis=1),
    )  # fmt: skip


def by_queries(shown: NDArray[np.bool_], S: int) -> Tiles:
    """The queries of `shown` (N, L) see every key."""
    grid = Grid(shown.shape[0], shown.shape[1], S)
    padded = np.zeros((grid.N, grid.R * TILE), bool)
    padded[:, : grid.L] = shown
    rows = padded.reshape(grid.N * grid.R, TILE)
    counts = np.where(rows.any(1), grid.C, 0)
    seeing = np.flatnonzero(counts)
    indices = np.tile(np.arange(grid.C, dtype=np.int32), len(seeing))
    pattern = np.repeat(np.arange(len(seeing), dtype=np.int32), grid.C)
    return canonical(grid, counts, indices, pattern, np.where(rows[seeing], ONES, np.uint64(0)))


# --- patterns that come piece by piece


class Collector:
    """Takes tiles in any order, each once, and keeps of every batch the different patterns only."""

    def __init__(self, grid: Grid) -> None:
        self.grid, self.patterns = grid, 0
        self.parts: list[Sequence[NDArray[Any]]] = []

    def add(self, rows: NDArray[Any], columns: NDArray[Any], bits: NDArray[np.uint64]) -> None:
        full = (bits == ONES).all(1)
        self.full(rows[full], columns[full])
        partial = bits.any(1) & ~full
        bits, place = unique_rows(bits[partial])
        self._keep(rows[partial], columns[partial], self.patterns + place, bits)
        self.patterns += len(bits)

    def full(self, rows: NDArray[Any], columns: NDArray[Any]) -> None:
        self._keep(rows, columns, np.full(len(rows), FULL), np.empty((0, TILE), np.uint64))

    def _keep(self, rows: Any, columns: Any, pattern: Any, bits: NDArray[np.uint64]) -> None:
        self.parts.append((rows.astype(np.int64) * self.grid.C + columns, pattern.astype(np.int32), bits))

    def tiles(self) -> Tiles:
        grid = self.grid
        self._keep(*np.empty((3, 0), int), np.empty((0, TILE), np.uint64))
        keys, pattern, bits = (np.concatenate(part) for part in zip(*self.parts, strict=True))
        order = np.argsort(keys, kind="stable")
        rows, columns = np.divmod(keys[order], max(grid.C, 1))
        return canonical(grid, np.bincount(rows, minlength=grid.N * grid.R), columns, pattern[order], bits)


def from_strips(grid: Grid, strip: Callable[[int, int, int, int, int], NDArray[np.bool_]]) -> Tiles:
    """strip(n, i, k, j, l): queries i … k - 1 and keys j … l - 1 of mask n, (k - i, l - j) bools, at most STRIP."""
    found = Collector(grid)
    wide = min(max(grid.S, 1), STRIP // TILE)
    tall = max(STRIP // (wide * TILE), 1) * TILE
    for n in range(grid.N):
        for i in range(0, grid.L, tall):
            for j in range(0, grid.S, wide):
                visible = strip(n, i, min(i + tall, grid.L), j, min(j + wide, grid.S))
                rows, columns, bits = _tiled(visible)
                found.add(n * grid.R + i // TILE + rows, j // TILE + columns, bits)
    return found.tiles()


def _tiled(visible: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.uint64]]:
    """The tiles of an array of bools that show something: row, column, bits."""
    R, C = (-(-length // TILE) for length in visible.shape)
    packed = np.packbits(visible, axis=1, bitorder="little")
    padded = np.zeros((R * TILE, C * 8), np.uint8)
    padded[: packed.shape[0], : packed.shape[1]] = packed
    words = padded.view("<u8").astype(np.uint64, copy=False).reshape(R, TILE, C)
    rows, columns = np.nonzero(words.any(1))
    return rows, columns, words[rows, :, columns]


def dense_rows(grid: Grid, tiles: Tiles, row: int, out: NDArray[np.bool_]) -> None:
    """Spells a tile row out: (queries of it, S)."""
    here = slice(tiles.pointers[row], tiles.pointers[row + 1])
    columns, pattern = tiles.indices[here], tiles.pattern[here]
    words = np.zeros((TILE, grid.C), np.uint64)
    words[:, columns[pattern == FULL]] = ONES
    partial = pattern >= 0
    words[:, columns[partial]] = tiles.bits[pattern[partial]].T
    out[...] = unpack(words)[: len(out), : grid.S]


def shown(grid: Grid, tiles: Tiles, rows: slice) -> NDArray[np.int64]:
    """How many places each tile of these tile rows shows."""
    here = tiles[rows]
    tall = np.minimum(grid.L - TILE * (np.arange(rows.start, rows.stop) % max(grid.R, 1)), TILE)
    wide = np.minimum(grid.S - TILE * np.arange(grid.C), TILE)
    counts = np.append(np.bitwise_count(tiles.bits).sum(1, dtype=np.int64), 0)
    return np.where(here.pattern == FULL, tall[here.rows] * wide[here.indices], counts[here.pattern])
