"""Patterns of a BlockMask that take a search: documents, blocks of any size, blocks drawn at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._masks_tiles import ONES, STRIP, TILE, Collector, Grid, Tiles, pack, pointers_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = STRIP // TILE**2  # tiles spelt out at a time


def documents(query_ids: NDArray[Any], key_ids: NDArray[Any]) -> Tiles:
    """Queries (N, L) see the keys (N, S) with their own number."""
    grid = Grid(query_ids.shape[0], query_ids.shape[1], key_ids.shape[1])
    found = Collector(grid)
    for n in range(grid.N):
        _, codes = np.unique(np.concatenate([query_ids[n], key_ids[n]]), return_inverse=True)
        queries, keys = _tiled(codes[: grid.L], -1), _tiled(codes[grid.L :], -2)  # the rest of a tile equals nothing
        for rows, columns in _meetings(queries, keys, len(codes)):
            first = queries[rows, 0]
            full = (first == keys[columns, 0]) & _uniform(queries)[rows] & _uniform(keys)[columns]
            found.full(n * grid.R + rows[full], columns[full])
            rows, columns = rows[~full], columns[~full]
            for at in range(0, len(rows), BATCH):
                r, c = rows[at : at + BATCH], columns[at : at + BATCH]
                found.add(n * grid.R + r, c, pack(queries[r][:, :, None] == keys[c][:, None, :]))
    return found.tiles()


def _tiled(codes: NDArray[Any], filler: int) -> NDArray[Any]:
    padded = np.full(-(-len(codes) // TILE) * TILE, filler)
    padded[: len(codes)] = codes
    return padded.reshape(-1, TILE)


def _uniform(tiles: NDArray[Any]) -> NDArray[np.bool_]:
    return (tiles == tiles[:, :1]).all(1)


def _meetings(queries: NDArray[Any], keys: NDArray[Any], limit: int) -> Any:
    """Batches of (tile rows, tile columns) that have a number in common, each pair once."""
    row, row_code = _members(queries)
    column, column_code = _members(keys)
    order = np.argsort(column_code, kind="stable")
    column, column_code = column[order], column_code[order]
    start = np.searchsorted(column_code, row_code, "left")
    count = np.searchsorted(column_code, row_code, "right") - start
    total = pointers_of(count)
    C = len(keys)
    first_of_row = np.searchsorted(row, np.arange(len(queries) + 1))
    at = 0
    while at < len(queries):
        begin = first_of_row[at]
        most = np.searchsorted(total[first_of_row], total[begin] + STRIP, "right") - 1
        end = min(max(int(most), at + 1), len(queries))
        here = slice(begin, first_of_row[end])
        place = np.arange(total[here.start], total[here.stop])
        place += np.repeat(start[here] - total[here], count[here])
        pairs = np.unique(np.repeat(row[here], count[here]) * C + column[place])
        yield np.divmod(pairs, max(C, 1))
        at = end


def _members(tiles: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The different numbers ≥ 0 of each tile: tile, number; tiles ascending."""
    ascending = np.sort(tiles, axis=1)
    new = ascending >= 0
    new[:, 1:] &= ascending[:, 1:] != ascending[:, :-1]
    return np.nonzero(new)[0], ascending[new]


def blocks(grid: Grid, indptr: NDArray[Any], indices: NDArray[Any], tall: int, wide: int) -> Tiles:
    """Block row b of mask n sees the key blocks indices[indptr[n, b] : indptr[n, b + 1]]; blocks of tall × wide."""
    found = Collector(grid)
    each = max(1, min(tall, BATCH * TILE) // TILE)  # tile rows a block row reaches into, about
    for n in range(grid.N):
        weight = pointers_of(np.diff(indptr[n]) * ((wide - 1) // TILE + 2) * each)
        row = 0
        while row < grid.R:  # as many tile rows as a batch holds
            here = weight[min(row * TILE // tall, len(weight) - 1)]
            last = int(np.searchsorted(weight, here + BATCH, "right")) - 1
            end = min(max(last * tall // TILE, row + 1), row + BATCH, grid.R)
            _block_rows(found, n, row, end, indptr[n], indices, tall, wide)
            row = end
    return found.tiles()


def _block_rows(
    found: Collector, n: int, row: int, end: int, indptr: NDArray[Any], indices: NDArray[Any], tall: int, wide: int
) -> None:
    """Tile rows row … end - 1: every block row with the words of its keys goes into the tile rows it reaches."""
    grid = found.grid
    first, last = row * TILE // tall, (min(end * TILE, grid.L) - 1) // tall
    words_of, column, words = _key_words(indptr[first : last + 2], indices, wide, grid)
    block = np.arange(first, last + 1)
    # pairs of a block row and a tile row that it reaches: queries from … to - 1 of the tile
    low = np.maximum(block * tall // TILE, row)
    high = np.minimum(((block + 1) * tall - 1) // TILE, end - 1)
    reach = high - low + 1
    which = np.repeat(np.arange(len(block)), reach)
    tile_row = np.arange(len(which)) + np.repeat(low - pointers_of(reach)[:-1], reach)
    start = np.clip(block[which] * tall - tile_row * TILE, 0, TILE)
    stop = np.clip((block[which] + 1) * tall - tile_row * TILE, 0, TILE)
    # each pair with each word of its block row
    count = np.diff(words_of)[which]
    at = np.arange(count.sum()) + np.repeat(words_of[which] - pointers_of(count)[:-1], count)
    start, stop, keys = (np.repeat(x, count) for x in (start, stop, tile_row))
    column, words = column[at], words[at]
    keys = keys * grid.C + column
    full = (start == 0) & (stop == TILE) & (words == ONES)
    found.full(n * grid.R + keys[full] // max(grid.C, 1), column[full])
    keys, start, stop, words = (x[~full] for x in (keys, start, stop, words))
    unique, place = np.unique(keys, return_inverse=True)
    bits = np.zeros((len(unique), TILE), np.uint64)
    for query in range(TILE):
        sees = (start <= query) & (query < stop)
        bits[place[sees], query] = words[sees]
    rows, columns = np.divmod(unique, max(grid.C, 1))
    found.add(n * grid.R + rows, columns, bits)


def _key_words(
    indptr: NDArray[Any], indices: NDArray[Any], wide: int, grid: Grid
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.uint64]]:
    """For each block row the tile columns that its blocks reach, ascending, with the word of keys seen there: CSR."""
    count = np.diff(indptr)
    block_row = np.repeat(np.arange(len(count)), count)
    start = indices[indptr[0] : indptr[-1]].astype(np.int64) * wide
    stop = np.minimum(start + wide, grid.S)
    low, reach = start // TILE, (stop - 1) // TILE - start // TILE + 1
    of = np.repeat(np.arange(len(start)), reach)
    column = np.arange(len(of)) + np.repeat(low - pointers_of(reach)[:-1], reach)
    begin = np.clip(start[of] - column * TILE, 0, TILE).astype(np.uint64)
    end = np.clip(stop[of] - column * TILE, 0, TILE).astype(np.uint64)
    words = (ONES >> (np.uint64(TILE) - (end - begin))) << begin
    keys = block_row[of] * grid.C + column
    order = np.argsort(keys, kind="stable")
    keys, words = keys[order], words[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
    words = np.bitwise_or.reduceat(words, first) if len(first) else words
    rows, column = np.divmod(keys[first], max(grid.C, 1))
    return pointers_of(np.bincount(rows, minlength=len(count))), column, words


def drawn_blocks(
    count: int, num_random: int, window: int, num_global: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """BigBird's blocks of `count` block rows as (indptr, indices)."""
    head = min(-(-num_global // 2), count)
    tail = max(count - num_global // 2, head)  # the first of the last global blocks
    globals_ = np.concatenate([np.arange(head), np.arange(tail, count)])
    rows = []
    for row in range(count):
        if row < head or row >= tail:
            rows.append(np.arange(count))
            continue
        low, high = max(row - window // 2, head), min(row + window // 2 + 1, tail)
        free = tail - head - (high - low)
        drawn = head + rng.choice(free, min(num_random, free), replace=False) if free else np.empty(0, np.int64)
        drawn = np.where(drawn < low, drawn, drawn + (high - low))
        rows.append(np.sort(np.concatenate([globals_, np.arange(low, high), drawn])))
    return pointers_of([len(row) for row in rows]), np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64)
