"""Where things are: level-0 pixels, the canvas, tiles and heatmap cells.

Frames, named once here and carried in names everywhere else:

- **level-0**: pixels of the slide's finest level; plain ``x, y, w, h``.
- **canvas**: the slide resampled to the classifier's mpp, a virtual image of integer pixels; prefix
  ``canvas_``. Canvas pixel ``i`` covers level-0 ``[i * scale, (i + 1) * scale)``. The tile grid lives here.
- **cells**: values of the explained layer; prefix ``cell_``. Cell ``i`` of a tile at canvas position ``p``
  is cell ``p / reduction + i`` of the slide, because every tile position is a multiple of the reduction.

All positions are continuous with pixel ``i`` covering ``[i, i + 1)``, so its centre is ``i + 0.5``.
Everything is computed from an index, never accumulated; nothing here reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from wsi_saliency.errors import SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    _Number = TypeVar("_Number", float, NDArray[Any])


@dataclass(frozen=True)
class Size:
    """Width and height in pixels of one frame."""

    w: int
    h: int


@dataclass(frozen=True)
class Mpp:
    """Micrometres per level-0 pixel; x and y may differ."""

    x: float
    y: float


@dataclass(frozen=True)
class Region:
    """A box in level-0 pixels; may lie partly outside the slide, may have fractional edges."""

    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True)
class Tile:
    """One patch of the grid: its column and row in the grid and its upper left corner in canvas pixels."""

    column: int
    row: int
    canvas_x: int
    canvas_y: int


@dataclass(frozen=True)
class Canvas:
    """The slide resampled to one resolution, without being read.

    Parameters
    ----------
    w, h
        Size in canvas pixels, rounded up: the last pixel may reach past the slide's edge.
    scale_x, scale_y
        Level-0 pixels per canvas pixel.
    """

    w: int
    h: int
    scale_x: float
    scale_y: float

    @classmethod
    def of(cls, slide_size: Size, slide_mpp: Mpp, mpp: float) -> Canvas:
        """Lay a canvas of ``mpp`` µm per pixel over a slide of ``slide_size`` level-0 pixels."""
        scale_x, scale_y = mpp / slide_mpp.x, mpp / slide_mpp.y
        return cls(_covering(slide_size.w, scale_x), _covering(slide_size.h, scale_y), scale_x, scale_y)

    def region(self, canvas_x: float, canvas_y: float, canvas_w: float, canvas_h: float) -> Region:
        """Level-0 region under a canvas box."""
        return Region(
            canvas_x * self.scale_x, canvas_y * self.scale_y, canvas_w * self.scale_x, canvas_h * self.scale_y
        )


def _covering(length: int, scale: float) -> int:
    """Canvas pixels that cover ``length`` level-0 pixels; a sliver below 1e-6 pixel is rounding."""
    return max(1, math.ceil(length / scale - 1e-6))


@dataclass(frozen=True)
class TileGrid(Sequence[Tile]):
    """All patches of a slide, row by row, on the canvas.

    The stride is a multiple of ``reduction``, so all patches' maps of a layer share one cell grid. Position
    ``k`` is ``k * stride``; the last column and row are moved inwards to the first multiple of ``reduction``
    that still covers the canvas' edge (at most ``reduction - 1`` canvas pixels beyond it are read as white).
    A canvas smaller than a patch gets one patch at 0, filled up with white.

    Parameters
    ----------
    canvas
        The canvas the grid lies on.
    patch
        Side of a patch, canvas pixels.
    stride
        Distance of neighbouring patches, canvas pixels; a multiple of ``reduction``.
    reduction
        Canvas pixels per cell of the explained layer; of several, the least common multiple.
    """

    canvas: Canvas
    patch: int
    stride: int
    reduction: int

    @classmethod
    def over(
        cls, canvas: Canvas, patch: int, overlap: float, reduction: int, total_stride: int = 1
    ) -> TileGrid:
        """Lay patches with ``overlap`` (0 to 0.9 of a patch) over a canvas, as `stride_for` says.

        Raises
        ------
        SettingsError
            If a patch is smaller than one cell of the layer.
        """
        if patch < reduction:
            raise SettingsError(
                f"a patch of {patch} px is smaller than one cell of the layer ({reduction} px); "
                "choose a larger --patch or an earlier --layer"
            )
        return cls(canvas, patch, stride_for(patch, overlap, reduction, total_stride), reduction)

    def __post_init__(self) -> None:
        if self.stride < 1 or self.stride % self.reduction:
            raise ValueError(f"stride {self.stride} is not a multiple of the reduction {self.reduction}")

    @cached_property
    def canvas_xs(self) -> tuple[int, ...]:
        """Canvas position of each column."""
        return positions(self.canvas.w, self.patch, self.stride, self.reduction)

    @cached_property
    def canvas_ys(self) -> tuple[int, ...]:
        """Canvas position of each row."""
        return positions(self.canvas.h, self.patch, self.stride, self.reduction)

    def __len__(self) -> int:
        return len(self.canvas_xs) * len(self.canvas_ys)

    @overload
    def __getitem__(self, index: int) -> Tile: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tile]: ...
    def __getitem__(self, index: int | slice) -> Tile | list[Tile]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row, column = divmod(range(len(self))[index], len(self.canvas_xs))
        return Tile(column, row, self.canvas_xs[column], self.canvas_ys[row])

    def level0_box(self, tile: Tile) -> tuple[int, int, int, int]:
        """Return the tile as ``x, y, w, h`` in whole level-0 pixels; all tiles have one size."""
        region = self.canvas.region(tile.canvas_x, tile.canvas_y, self.patch, self.patch)
        return round(region.x), round(region.y), round(region.w), round(region.h)

    def level0_boxes(self) -> tuple[NDArray[np.int64], NDArray[np.int64], int, int]:
        """Return what `level0_box` says of all tiles: x of each column (1, C), y of each row (R, 1), w, h."""
        canvas = self.canvas
        x = np.rint(np.array([self.canvas_xs], float) * canvas.scale_x).astype(np.int64)
        y = np.rint(np.array([self.canvas_ys], float).T * canvas.scale_y).astype(np.int64)
        return x, y, round(self.patch * canvas.scale_x), round(self.patch * canvas.scale_y)

    def cell_origin(self, tile: Tile, reduction: int) -> tuple[int, int]:
        """Column and row of the tile's first cell, in slide cells of ``reduction`` canvas pixels."""
        return tile.canvas_x // reduction, tile.canvas_y // reduction

    def cell_size(self, reduction: int, cell_w: int, cell_h: int) -> Size:
        """Cells of the whole slide when each tile's map is ``cell_w`` × ``cell_h`` cells."""
        return Size(self.canvas_xs[-1] // reduction + cell_w, self.canvas_ys[-1] // reduction + cell_h)


@dataclass(frozen=True, eq=False)
class TileSelection(Sequence[Tile]):
    """Some tiles of a grid; of each only its number is held, so that a million of them take 8 MB.

    Parameters
    ----------
    grid
        The grid.
    numbers
        (n,) int: which tiles of it.
    """

    grid: TileGrid
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Tile: ...
    @overload
    def __getitem__(self, index: slice) -> TileSelection: ...
    def __getitem__(self, index: int | slice) -> Tile | TileSelection:
        if isinstance(index, slice):
            return TileSelection(self.grid, self.numbers[index])
        return self.grid[int(self.numbers[index])]


def stride_for(patch: int, overlap: float, reduction: int, total_stride: int = 1) -> int:
    """Return the stride nearest to ``patch * (1 - overlap)`` at which patches take all phases in turn.

    A layer's map depends on where the picture lies modulo the network's total stride, its phase. If patches
    advance by a multiple of that, all have the same phase, and the map shows where the grid lies. So the
    stride is a multiple of ``reduction`` at which they have different ones, the larger of two, and blending
    averages over them. (A ResNet-18 of total stride 32, DeepLift under the backward hook at 1/8: moved to any
    other place, a grid of stride 96 or 128 gives a map that correlates with the first by 0.68 or more, one of
    112 by 0.72, of 120 by 0.80, of 104 by 0.87.) Without overlap nothing is blended: the nearest multiple.

    Parameters
    ----------
    patch, reduction, total_stride
        Canvas pixels; a total stride of 1 says that nothing is known of it.
    overlap
        Share of a patch that it has in common with the next.
    """
    wanted, most = patch * (1 - overlap) / reduction, max(1, patch // reduction)
    phases = total_stride // reduction if overlap else 1
    if phases <= 1:
        return max(1, round(wanted)) * reduction
    cells = [k for k in range(1, most + 1) if math.gcd(k, phases) == 1]
    return min(cells, key=lambda k: (abs(k - wanted), -k)) * reduction


def positions(length: int, patch: int, stride: int, reduction: int) -> tuple[int, ...]:
    """Positions of the patches along one axis of ``length`` canvas pixels (see `TileGrid`)."""
    last = max(0, -(-(length - patch) // reduction) * reduction)
    return tuple(min(k * stride, last) for k in range(-(-last // stride) + 1))


@dataclass(frozen=True)
class Placement:
    """Where the heatmap lies on the slide: cell ``(i, j)`` covers level-0 ``[x0 + i*fx, x0 + (i+1)*fx)``.

    Parameters
    ----------
    x0, y0
        Level-0 position of the heatmap's upper left corner; usually not 0, often negative.
    fx, fy
        Level-0 pixels per cell.
    """

    x0: float
    y0: float
    fx: float
    fy: float

    @classmethod
    def of(cls, canvas: Canvas, reduction: int, centre_x: float, centre_y: float) -> Placement:
        """Place cells so that the middle of cell 0 lies at canvas position ``(centre_x, centre_y)``."""
        half = reduction / 2
        corner = canvas.region(centre_x - half, centre_y - half, reduction, reduction)
        return cls(corner.x, corner.y, corner.w, corner.h)

    def at_level(self, level: int) -> Placement:
        """Return the same corner with cells ``2**level`` times as large."""
        return Placement(self.x0, self.y0, self.fx * 2**level, self.fy * 2**level)

    def centre(self, cell_x: _Number, cell_y: _Number) -> tuple[_Number, _Number]:
        """Level-0 position of the middle of a cell, or of many (arrays)."""
        return self.x0 + (cell_x + 0.5) * self.fx, self.y0 + (cell_y + 0.5) * self.fy
