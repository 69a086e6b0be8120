"""Stitching: the maps of overlapping tiles become rows of the slide's heatmap."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from wsi_saliency.geometry import Tile, TileGrid

_EMPTY_ROWS = 512  # rows without tissue are handed on in pieces of this height


def hann_window(cell_w: int, cell_h: int) -> NDArray[np.float32]:
    r"""Blending weights of one tile's map, (cell_h, cell_w) float32, all above zero.

    .. math:: w[i, j] = \sin^2(\pi (i + ½) / h) \, \sin^2(\pi (j + ½) / w)
    """
    rows, columns = (np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (cell_h, cell_w))
    return np.outer(rows, columns).astype(np.float32)


class Stitcher:
    """Blends tiles' maps into the slide's heatmap and hands its rows on, from the top, as they are finished.

    A cell is the weighted mean of all maps that cover it, float32, signed, unnormalised; 0 where there is
    none. Tiles may come in any order. A row is finished when the last tile that covers it has come, so with
    tiles in the order of the grid the memory is two float32 arrays of ``cell_h`` rows (plus the rows by which
    a grid row advances): bounded by the slide's width and the patch, whatever the slide's height.

    Parameters
    ----------
    grid
        The tile grid.
    tiles
        The tiles that will come, each once.
    cell_w, cell_h
        Size of one tile's map in cells.
    write_rows
        Called with (first row, rows): float32 (n, W), in order, without gaps, until all H rows are written.
    """

    def __init__(
        self,
        grid: TileGrid,
        tiles: Iterable[Tile],
        cell_w: int,
        cell_h: int,
        write_rows: Callable[[int, NDArray[np.float32]], None],
    ) -> None:
        self._grid = grid
        self._size = grid.cell_size(cell_w, cell_h)
        self._window = hann_window(cell_w, cell_h)
        self._write_rows = write_rows
        self._to_come = Counter(grid.cell_origin(tile)[1] for tile in tiles)
        self._top = 0  # first row not handed on yet
        self._sum = np.zeros((0, self._size.w), np.float32)  # rows from _top on
        self._weight = np.zeros((0, self._size.w), np.float32)

    def add(self, tile: Tile, cell_map: NDArray[np.float32]) -> None:
        """Blend in the map of one tile, float32 (cell_h, cell_w)."""
        if cell_map.shape != self._window.shape:
            raise ValueError(f"a map of {cell_map.shape} cells came where {self._window.shape} were expected")
        cell_x, cell_y = self._grid.cell_origin(tile)
        cell_h, cell_w = cell_map.shape
        first = cell_y - self._top
        self._reach(first + cell_h)
        box = np.s_[first : first + cell_h, cell_x : cell_x + cell_w]
        self._sum[box] += self._window * cell_map
        self._weight[box] += self._window
        self._to_come[cell_y] -= 1
        if not self._to_come[cell_y]:
            del self._to_come[cell_y]
            self._hand_on(min(self._to_come, default=self._top + len(self._sum)))

    def finish(self) -> None:
        """Hand on all rows that are left; those that no tile covers are 0."""
        if self._to_come:
            raise ValueError(f"{self._to_come.total()} tiles have not come")
        self._hand_on(self._size.h)

    def _reach(self, rows: int) -> None:
        """Let the arrays hold at least ``rows`` rows."""
        missing = rows - len(self._sum)
        if missing > 0:
            grown = ((0, missing), (0, 0))
            self._sum, self._weight = np.pad(self._sum, grown), np.pad(self._weight, grown)

    def _hand_on(self, end: int) -> None:
        """Hand on all rows before ``end``."""
        done = max(0, min(end - self._top, len(self._sum)))
        if done:
            weight = self._weight[:done]
            rows = np.divide(self._sum[:done], weight, out=np.zeros_like(weight), where=weight > 0)
            self._sum, self._weight = self._sum[done:].copy(), self._weight[done:].copy()
            self._write_rows(self._top, rows)
            self._top += done
        while self._top < end:
            rows = np.zeros((min(_EMPTY_ROWS, end - self._top), self._size.w), np.float32)
            self._write_rows(self._top, rows)
            self._top += len(rows)
