"""Stitching: the maps of overlapping tiles become rows of the slide's heatmap."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from wsi_saliency.geometry import Tile, TileGrid
    from wsi_saliency.heatmap.snapshot import Snapshot, State

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
    tiles in the order of the grid the memory is one float32 array of ``cell_h`` rows for each channel and one
    for the weights (plus the rows by which a grid row advances): bounded by the slide's width and the patch,
    whatever the slide's height.

    Parameters
    ----------
    grid
        The tile grid.
    tiles
        The tiles that will come, each once.
    reduction
        Canvas pixels per cell.
    cell_w, cell_h
        Size of one tile's map in cells.
    channels
        Maps that are blended alike.
    write_rows
        Called with (first row, rows): float32 (C, n, W), in order, without gaps, until all rows are written.
    """

    def __init__(
        self,
        grid: TileGrid,
        tiles: Iterable[Tile],
        reduction: int,
        cell_w: int,
        cell_h: int,
        channels: int,
        write_rows: Callable[[int, NDArray[np.float32]], None],
    ) -> None:
        self._grid, self._reduction = grid, reduction
        self._size = grid.cell_size(reduction, cell_w, cell_h)
        self._window = hann_window(cell_w, cell_h)
        self._write_rows = write_rows
        self._to_come = Counter(grid.cell_origin(tile, reduction)[1] for tile in tiles)
        self._top = 0  # first row not handed on yet
        self._sum = np.zeros((channels, 0, self._size.w), np.float32)  # rows from _top on
        self._weight = np.zeros((0, self._size.w), np.float32)

    def add(self, tile: Tile, cell_maps: NDArray[np.float32]) -> None:
        """Blend in the maps of one tile, float32 (C, cell_h, cell_w)."""
        expected = (len(self._sum), *self._window.shape)
        if cell_maps.shape != expected:
            raise ValueError(f"maps of {cell_maps.shape} cells came where {expected} were expected")
        cell_x, cell_y = self._grid.cell_origin(tile, self._reduction)
        cell_h, cell_w = self._window.shape
        first = cell_y - self._top
        self._reach(first + cell_h)
        box = np.s_[first : first + cell_h, cell_x : cell_x + cell_w]
        self._sum[:, *box] += self._window * cell_maps
        self._weight[box] += self._window
        self._to_come[cell_y] -= 1
        if not self._to_come[cell_y]:
            del self._to_come[cell_y]
            self._hand_on(min(self._to_come, default=self._top + len(self._weight)))

    def state(self) -> State:
        """Return what `restore` needs: views of the rows that are not handed on yet, and where they begin."""
        return {"top": np.array(self._top), "sum": self._sum, "weight": self._weight}

    def restore(self, saved: Snapshot, added: Iterable[Tile]) -> None:
        """Go on from a `state`, before which the tiles ``added`` had come.

        Raises
        ------
        DamagedSnapshotError
            If it is not a state of this map.
        """
        to_come = self._to_come - Counter(self._grid.cell_origin(tile, self._reduction)[1] for tile in added)
        top = saved.number("top", range(min(to_come, default=self._size.h) + 1))
        weight = saved.array("weight", "<f4", range(self._size.h - top + 1), self._size.w)
        total = saved.array("sum", "<f4", len(self._sum), len(weight), self._size.w)
        self._to_come, self._top, self._sum, self._weight = to_come, top, total, weight

    def finish(self) -> None:
        """Hand on all rows that are left; those that no tile covers are 0."""
        if self._to_come:
            raise ValueError(f"{self._to_come.total()} tiles have not come")
        self._hand_on(self._size.h)

    def _reach(self, rows: int) -> None:
        """Let the arrays hold at least ``rows`` rows."""
        missing = rows - len(self._weight)
        if missing > 0:
            grown = ((0, missing), (0, 0))
            self._sum, self._weight = np.pad(self._sum, ((0, 0), *grown)), np.pad(self._weight, grown)

    def _hand_on(self, end: int) -> None:
        """Hand on all rows before ``end``."""
        done = max(0, min(end - self._top, len(self._weight)))
        if done:
            total, weight = self._sum[:, :done], self._weight[:done]
            rows = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
            self._sum, self._weight = self._sum[:, done:].copy(), self._weight[done:].copy()
            self._write_rows(self._top, rows)
            self._top += done
        while self._top < end:
            empty = min(_EMPTY_ROWS, end - self._top)
            rows = np.zeros((len(self._sum), empty, self._size.w), np.float32)
            self._write_rows(self._top, rows)
            self._top += empty
