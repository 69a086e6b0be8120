"""Grid stability: whether the map of a slide depends on where the grid of patches happens to lie.

A part of the slide is mapped twice, the second time with the grid moved by half a stride, and the two maps
are correlated in the tissue. A map that changes with the grid says little about the tissue.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from wsi_saliency.evaluation.correlation import pearson
from wsi_saliency.geometry import Canvas, Placement, Tile, TileGrid, stride_for
from wsi_saliency.heatmap.stitching import Stitcher
from wsi_saliency.slides.blocks import PatchReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from wsi_saliency.saliency.layers import LayerGeometry
    from wsi_saliency.slides.slide import Slide
    from wsi_saliency.slides.tissue import TissueMask

MOST_PIXELS = 16_000_000
"""Canvas pixels of the region that is mapped twice."""

FEWEST_CELLS = 100
"""Cells that a correlation needs."""

_TISSUE = 0.5  # share of a cell from which on it counts as tissue
_BATCH = 32  # patches explained at a time
_CELLS_AT_ONCE = 2**20  # cells looked at at a time for tissue

Key = TypeVar("Key", bound=Hashable)


class CanvasBox(NamedTuple):
    """A box in whole canvas pixels."""

    canvas_x: int
    canvas_y: int
    canvas_w: int
    canvas_h: int


def busiest_region(tissue: TissueMask, canvas: Canvas, most_pixels: int, patch: int) -> CanvasBox:
    """Return the box of at most ``most_pixels`` with the most tissue at least a patch away from its border.

    Near the border, fewer patches overlap than elsewhere, and nothing can be compared. The boxes looked at
    are as square as the canvas allows and a patch apart; of equal ones the uppermost is taken, then the one
    furthest left.

    Parameters
    ----------
    tissue
        Where there is tissue.
    canvas
        The slide at the classifier's resolution.
    most_pixels, patch
        Size of the box and side of a patch, canvas pixels.
    """
    w = min(canvas.w, max(math.isqrt(most_pixels), most_pixels // canvas.h))
    h = min(canvas.h, most_pixels // w)
    xs, ys = _corners(canvas.w, w, patch), _corners(canvas.h, h, patch)
    margin_x, margin_y = min(patch, w // 4), min(patch, h // 4)
    shares = tissue.fractions(
        (xs + margin_x) * canvas.scale_x,
        (ys[:, None] + margin_y) * canvas.scale_y,
        (w - 2 * margin_x) * canvas.scale_x,
        (h - 2 * margin_y) * canvas.scale_y,
    )
    row, column = divmod(int(shares.round(9).argmax()), len(xs))  # equal is equal, whatever the rounding
    return CanvasBox(int(xs[column]), int(ys[row]), w, h)


def _corners(length: int, side: int, step: int) -> NDArray[np.int64]:
    """Positions of boxes along one axis, the last flush with its end."""
    return np.append(np.arange(0, length - side, step), length - side)


@dataclass(frozen=True)
class _Lattice:
    """The cells of a layer and the grid its patches lie on.

    ``stride`` is that of a run with the same overlap, and by ``shift`` the grid is moved; canvas pixels.
    """

    patch: int
    stride: int
    shift: int
    reduction: int
    cell_w: int
    cell_h: int
    centre_x: float
    centre_y: float

    @classmethod
    def of(cls, layer: LayerGeometry, patch: int, overlap: float, move: int | None) -> _Lattice:
        r, w, h = layer.reduction, layer.cell_w, layer.cell_h
        stride = stride_for(patch, overlap, r, layer.total_stride)
        shift = (stride // 2 if move is None else move) // r * r
        if move is None and shift and shift % layer.total_stride == 0 and layer.total_stride > r:
            shift -= r  # or every map would look stable
        return cls(patch, stride, shift, r, w, h, layer.centre_x, layer.centre_y)

    def grid(self, region: CanvasBox, canvas: Canvas) -> TileGrid:
        """Return a grid whose cells are those of the region alone."""
        part = Canvas(region.canvas_w, region.canvas_h, canvas.scale_x, canvas.scale_y)
        return TileGrid(part, self.patch, self.stride, self.reduction)

    def covered(self, n: int, cells: int, tiles: int, offset: int) -> NDArray[np.bool_]:
        """Tell which of ``n`` cells along an axis have all patches over them that an endless grid would have.

        ``tiles`` patches of ``cells`` cells lie there, the first at ``offset`` canvas pixels.
        """
        step = self.stride // self.reduction
        i = np.arange(n) - offset // self.reduction
        first, last = -((cells - 1 - i) // step), i // step
        return np.asarray((first >= 0) & (first <= last) & (last < tiles))


class _Pass(NamedTuple):
    """One reading of the region: patches ``stride`` apart, the first at ``offset``, in canvas pixels.

    ``tiles`` are (column, row), row by row.
    """

    stride: int
    offset: int
    tiles: list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class GridStability(Generic[Key]):
    """The correlation, in tissue, of a region's map with that of the same region on a moved grid.

    Both maps are blended from patches as in a run with that overlap. The grid is moved to the right and down
    by half its stride, in whole cells, so that the two maps have the same cells. Cells count if they are more
    than half tissue and all patches lie over them, in both grids, that would in the map of the whole slide;
    patches without such cells are not explained.

    The pattern that strides leave in a gradient repeats every so many pixels, often 32. A grid that is moved
    by a multiple of that shows the same pattern, and every map looks stable. So methods compare at one
    overlap and layer; to compare overlaps, take the least over several ``move``.

    Memory holds two float32 values for each such cell and map: 1 GB for eight maps of the input, where all of
    16 million pixels is tissue.

    Parameters
    ----------
    tissue
        Where there is tissue.
    canvas
        The slide at the classifier's resolution.
    layers
        What is compared: maps by any name, each with the layer that it is made at.
    explain
        Takes patches (n, P, P, 3) uint8 RGB and names of maps, and gives their maps (n, h, w) float32.
    patch
        Side of a patch, canvas pixels.
    overlap
        Share of a patch that it has in common with the next, 0 to 0.9.
    most_pixels
        Canvas pixels of the region; it is the `busiest_region`.
    move
        Canvas pixels by which the grid is moved, less what is no whole cell; None is half its stride, or a
        cell less where that is a multiple of the network's.
    """

    tissue: TissueMask
    canvas: Canvas
    layers: Mapping[Key, LayerGeometry]
    explain: Callable[[NDArray[np.uint8], Sequence[Key]], Mapping[Key, NDArray[np.float32]]]
    patch: int
    overlap: float
    most_pixels: int = MOST_PIXELS
    move: int | None = None

    @property
    def cost(self) -> int:
        """Maps to make of patches, over all names and both grids."""
        return sum(len(p.tiles) for p in self._passes for key in self.layers if self._takes_part(key, p))

    def measure(
        self, slide: Slide, workers: int = 4, progress: Callable[[int], object] | None = None
    ) -> dict[Key, float]:
        """Read and explain the patches, each once for all maps on the same grid, and correlate.

        Parameters
        ----------
        slide
            The slide under ``canvas``.
        workers
            Threads that read it.
        progress
            Called with the number of maps made since the last call; `cost` in all.

        Returns
        -------
        Pearson's correlation, by name. It is nan, not a number, where nothing can be said: a map is constant,
        fewer than 100 cells count, or the grid would be moved by less than a cell, as where patches advance
        by a single one.

        Raises
        ------
        SlideError
            If the slide cannot be read.
        """
        values: dict[Key, list[NDArray[np.float32]]] = {key: [] for key in self.layers}
        for one in self._passes:
            for key, seen in self._run(one, slide, workers, progress).items():
                values[key].append(seen)
        return {key: pearson(*pair) if pair else math.nan for key, pair in values.items()}

    @cached_property
    def region(self) -> CanvasBox:
        """What is mapped twice."""
        return busiest_region(self.tissue, self.canvas, self.most_pixels, self.patch)

    @cached_property
    def _lattices(self) -> dict[Key, _Lattice]:
        return {
            key: _Lattice.of(layer, self.patch, self.overlap, self.move) for key, layer in self.layers.items()
        }

    @cached_property
    def _compared(self) -> dict[_Lattice, NDArray[np.bool_]]:
        """Which cells (H, W) of the region are compared, for each lattice on which there are enough."""
        masks = {lattice: self._cells(lattice) for lattice in set(self._lattices.values()) if lattice.shift}
        return {lattice: mask for lattice, mask in masks.items() if mask.sum() >= FEWEST_CELLS}

    def _cells(self, lattice: _Lattice) -> NDArray[np.bool_]:
        size = lattice.grid(self.region, self.canvas).cell_size(
            lattice.reduction, lattice.cell_w, lattice.cell_h
        )
        inside_x, inside_y = np.ones(size.w, bool), np.ones(size.h, bool)
        for offset in (0, lattice.shift):
            columns, rows = self._tiles(lattice.stride, offset)
            inside_x &= lattice.covered(size.w, lattice.cell_w, columns, offset)
            inside_y &= lattice.covered(size.h, lattice.cell_h, rows, offset)
        return self._in_tissue(lattice, inside_x, inside_y)

    def _in_tissue(
        self, lattice: _Lattice, inside_x: NDArray[np.bool_], inside_y: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        x, y = self.region.canvas_x + lattice.centre_x, self.region.canvas_y + lattice.centre_y
        place = Placement.of(self.canvas, lattice.reduction, x, y)
        mask = np.zeros((len(inside_y), len(inside_x)), bool)
        columns, rows = np.flatnonzero(inside_x), np.flatnonzero(inside_y)
        for some in np.array_split(rows, len(rows) * len(columns) // _CELLS_AT_ONCE + 1):
            centre_x, centre_y = place.centre(columns, some[:, None])
            left, top = centre_x - place.fx / 2, centre_y - place.fy / 2
            mask[np.ix_(some, columns)] = self.tissue.fractions(left, top, place.fx, place.fy) > _TISSUE
        return mask

    def _tiles(self, stride: int, offset: int) -> tuple[int, int]:
        """Columns and rows of patches that lie wholly in the region."""
        w, h = self.region.canvas_w, self.region.canvas_h
        columns, rows = ((side - self.patch - offset) // stride + 1 for side in (w, h))
        return max(0, columns), max(0, rows)

    @cached_property
    def _passes(self) -> list[_Pass]:
        grids = sorted({(lat.stride, offset) for lat in self._compared for offset in (0, lat.shift)})
        return [_Pass(stride, offset, self._wanted(stride, offset)) for stride, offset in grids]

    def _wanted(self, stride: int, offset: int) -> list[tuple[int, int]]:
        """Columns and rows of the patches that lie over compared cells of any map on this grid."""
        columns, rows = self._tiles(stride, offset)
        compared = [(lat, self._compared[lat]) for lat in self._compared if _lies_on(lat, stride, offset)]
        return [
            (column, row)
            for row in range(rows)
            for column in range(columns)
            if any(_holds_any(lat, mask, column, row, offset) for lat, mask in compared)
        ]

    def _takes_part(self, key: Key, one: _Pass) -> bool:
        lattice = self._lattices[key]
        return lattice in self._compared and _lies_on(lattice, one.stride, one.offset)

    def _run(
        self, one: _Pass, slide: Slide, workers: int, progress: Callable[[int], object] | None
    ) -> dict[Key, NDArray[np.float32]]:
        """Map the region and return the values of the compared cells."""
        local = [Tile(c, r, one.offset + c * one.stride, one.offset + r * one.stride) for c, r in one.tiles]
        x, y = self.region.canvas_x, self.region.canvas_y
        tiles = [Tile(t.column, t.row, x + t.canvas_x, y + t.canvas_y) for t in local]
        in_region = dict(zip(tiles, local, strict=True))
        # patches may lie anywhere: a grid of single pixels
        reader = PatchReader(slide, TileGrid(self.canvas, self.patch, 1, 1), tiles, workers)
        sinks = {key: self._sink(key, local) for key in self.layers if self._takes_part(key, one)}
        for some, patches in reader.batches(_BATCH):
            for key, maps in self.explain(patches, list(sinks)).items():
                for tile, cell_map in zip(some, maps, strict=True):
                    sinks[key].stitcher.add(in_region[tile], cell_map[np.newaxis])
            if progress is not None:
                progress(len(some) * len(sinks))
        return {key: sink.finish() for key, sink in sinks.items()}

    def _sink(self, key: Key, tiles: list[Tile]) -> _Sink:
        lattice = self._lattices[key]
        grid = lattice.grid(self.region, self.canvas)
        return _Sink(grid, tiles, self.layers[key], self._compared[lattice])


class _Sink:
    """Stitches the maps of the region and keeps the compared cells only."""

    def __init__(
        self, grid: TileGrid, tiles: list[Tile], layer: LayerGeometry, compared: NDArray[np.bool_]
    ) -> None:
        self._compared = compared
        self._kept: list[NDArray[np.float32]] = []
        self.stitcher = Stitcher(grid, tiles, layer.reduction, layer.cell_w, layer.cell_h, 1, self._keep)

    def finish(self) -> NDArray[np.float32]:
        self.stitcher.finish()
        return np.concatenate(self._kept)

    def _keep(self, cell_y: int, rows: NDArray[np.float32]) -> None:
        self._kept.append(rows[0][self._compared[cell_y : cell_y + rows.shape[1]]])


def _lies_on(lattice: _Lattice, stride: int, offset: int) -> bool:
    return lattice.stride == stride and offset in (0, lattice.shift)


def _holds_any(lattice: _Lattice, mask: NDArray[np.bool_], column: int, row: int, offset: int) -> bool:
    """Whether a patch lies over any of the cells in ``mask``."""
    x, y = ((offset + i * lattice.stride) // lattice.reduction for i in (column, row))
    return bool(mask[y : y + lattice.cell_h, x : x + lattice.cell_w].any())
