"""Small pictures of a BlockMask: how much of each cell is visible."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._masks_tiles import TILE, Grid, Tiles, dense_rows, pieces, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLUMNS, ROWS = 32, 16  # of text; a letter is about twice as tall as wide
SPELT_OUT = 2**22  # scores; larger masks are drawn by whole tiles
SHADES = "·░▒▓█"  # nothing, up to a third, up to two thirds, less than all, all


def coverage(grid: Grid, tiles: Tiles, rows: int, columns: int) -> tuple[NDArray[np.float64], int, int]:
    """Of one mask the visible share of cells, at most (rows, columns) of them; queries and keys of a cell."""
    if grid.L * grid.S <= SPELT_OUT:
        visible = np.empty((grid.L, grid.S), bool)
        for row in range(grid.R):
            dense_rows(grid, tiles, row, visible[row * TILE : (row + 1) * TILE])
        tall, wide = max(-(-grid.L // rows), 1), max(-(-grid.S // columns), 1)
        counts = np.add.reduceat(visible, np.arange(0, grid.L, tall), axis=0, dtype=np.int64)
        counts = np.add.reduceat(counts, np.arange(0, grid.S, wide), axis=1)
    else:
        down, across = -(-grid.R // rows), -(-grid.C // columns)
        tall, wide = down * TILE, across * TILE
        shape = -(-grid.R // down), -(-grid.C // across)
        counts = np.zeros(shape[0] * shape[1])
        for rows in pieces(tiles.pointers):
            here = tiles[rows]
            cell = (rows.start + here.rows) // down * shape[1] + here.indices // across
            counts += np.bincount(cell, shown(grid, tiles, rows), len(counts))
        counts = counts.reshape(shape)
    heights = np.minimum(grid.L - np.arange(0, grid.L, tall), tall)
    widths = np.minimum(grid.S - np.arange(0, grid.S, wide), wide)
    return counts / (heights[:, None] * widths), tall, wide


def text(grid: Grid, tiles: Tiles) -> list[str]:
    """Lines of letters, at most 32 columns; the darker, the more is visible."""
    if not grid.L * grid.S:
        return []
    share, _, _ = coverage(grid, tiles, ROWS if max(grid.L, grid.S) > COLUMNS else COLUMNS, COLUMNS)
    shade = np.select([share == 0, share >= 1, share <= 1 / 3, share <= 2 / 3], [0, 4, 1, 2], 3)
    return ["".join(SHADES[n] for n in row) for row in shade]


def words(shape: tuple[int, ...], density: float, tiles: int) -> str:
    return f"BlockMask, shape {shape}, {100 * density:.3g} % visible, {tiles} tile{'s' if tiles != 1 else ''}"
