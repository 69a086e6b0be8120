"""From the pixels of one pyramid level to output pixels: exact, seamless, with bounded memory.

Frames: ``level_`` positions are pixels of one pyramid level, continuous, pixel ``i`` covering ``[i, i + 1)``.
Output pixels are plain indices. Both axes are treated alike, so most of this module knows one axis only.

The output is computed in pieces, and which piece an output pixel belongs to depends on its own level
position, not on the read it is part of. So a region read in parts has the same pixels as when read whole,
and a read never holds more level pixels than one piece needs, about `CELL` squared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from wsi_saliency.slides.levels import LevelPixels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CELL = 2048
"""Side of a piece in level pixels."""

MAX_STEP = 32
"""Level pixels per output pixel above which a finer picture is averaged; bounds what a piece reads."""

_ALIGNED = 1e-3
"""A shift of a thousandth of a pixel changes no grey level by more than 0.26: not worth resampling for."""

_BORDER = 0.3183
"""Pieces change at this fraction of a level pixel, where the centres of regular output pixels do not lie."""


@dataclass(frozen=True)
class Axis:
    """Output pixels along one axis of a level: pixel ``i`` covers ``[start + i*step, start + (i+1)*step)``.

    Parameters
    ----------
    start
        Level position of the first output pixel's near edge.
    step
        Level pixels per output pixel.
    count
        Number of output pixels.
    """

    start: float
    step: float
    count: int

    @property
    def aligned(self) -> bool:
        """Whether every output pixel is one level pixel."""
        drift = abs(self.step - 1) * self.count
        return drift < _ALIGNED and abs(self.start - round(self.start)) < _ALIGNED

    @property
    def reach(self) -> int:
        """Level pixels that the bilinear filter touches on either side of an output pixel's centre."""
        return math.ceil(max(self.step, 1) - 1e-6) + 1

    def centre(self, i: int) -> float:
        """Level position of the middle of output pixel ``i``."""
        return self.start + (i + 0.5) * self.step

    def part(self, first: int, end: int) -> Axis:
        """Return the output pixels ``first`` to ``end`` (excluded) as an axis of their own."""
        return Axis(self.start + first * self.step, self.step, end - first)

    def divided(self, k: int) -> Axis:
        """Return the axis with ``k`` output pixels in place of each."""
        return Axis(self.start, self.step / k, self.count * k)


ReadLevel = Callable[[int, int, int, int], LevelPixels]
"""Reads ``level_x, level_y, level_w, level_h``; the box may reach outside the level, which is white."""


@dataclass(frozen=True)
class _Piece:
    """Output pixels ``first`` to ``end`` (excluded), with centres in the cell from level ``cell`` on."""

    first: int
    end: int
    cell: int


def resample(
    read: ReadLevel, x: Axis, y: Axis, cell: int = CELL, *, anchored: bool = False
) -> NDArray[np.uint8]:
    """Resample level pixels with an antialiased bilinear filter; copy them where the axes are aligned.

    Parameters
    ----------
    read
        Reads a box of level pixels.
    x, y
        Output pixels in level positions.
    cell
        Side of a piece in level pixels.
    anchored
        Whether the reader's shift depends on where a read starts. Then every piece is read from the corner of
        its cell, so that the shift is a property of the place and not of the request.

    Returns
    -------
    (y.count, x.count, 3) uint8.
    """
    out = np.empty((y.count, x.count, 3), np.uint8)
    copy = x.aligned and y.aligned and not anchored
    for row in _pieces(y, cell):
        for column in _pieces(x, cell):
            part_x, part_y = x.part(column.first, column.end), y.part(row.first, row.end)
            corner = (column.cell, row.cell) if anchored else None
            pixels = _copied(read, part_x, part_y) if copy else _resampled(read, part_x, part_y, corner)
            out[row.first : row.end, column.first : column.end] = pixels
    return out


def _pieces(axis: Axis, cell: int) -> Iterator[_Piece]:
    """Split output pixels by the cell of the level their centres lie in."""
    centres = axis.start + (np.arange(axis.count) + 0.5) * axis.step
    cells = np.floor((centres - _BORDER) / cell).astype(np.int64)
    cuts = [0, *(np.flatnonzero(np.diff(cells)) + 1).tolist(), axis.count]
    for first, end in itertools.pairwise(cuts):
        yield _Piece(first, end, int(cells[first]) * cell)


def _copied(read: ReadLevel, x: Axis, y: Axis) -> NDArray[np.uint8]:
    return read(round(x.start), round(y.start), x.count, y.count).rgb


def _resampled(read: ReadLevel, x: Axis, y: Axis, corner: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Resample one piece; a very coarse one through an intermediate picture that is averaged exactly."""
    kx, ky = _division(x), _division(y)
    if kx == ky == 1:
        return _filtered(read, x, y, corner)
    fine = resample(read, x.divided(kx), y.divided(ky), anchored=corner is not None)
    blocks = fine.reshape(y.count, ky, x.count, kx, 3)
    averaged: NDArray[np.uint8] = np.rint(blocks.mean(axis=(1, 3), dtype=np.float64)).astype(np.uint8)
    return averaged


def _division(axis: Axis) -> int:
    return max(1, math.ceil(axis.step / MAX_STEP - 1e-6))


def _filtered(read: ReadLevel, x: Axis, y: Axis, corner: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Read one piece with the margin its filter needs and resample it with sub-pixel precision."""
    left, right = _extent(x, None if corner is None else corner[0])
    top, bottom = _extent(y, None if corner is None else corner[1])
    pixels = read(left, top, right - left, bottom - top)
    near_x, near_y = x.start - left - pixels.shift_x, y.start - top - pixels.shift_y
    box = (near_x, near_y, near_x + x.count * x.step, near_y + y.count * y.step)
    image = Image.fromarray(pixels.rgb).resize((x.count, y.count), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image)


def _extent(axis: Axis, cell: int | None) -> tuple[int, int]:
    """First and last (excluded) level pixel that an axis' filter touches, from its cell's corner if given."""
    first = math.floor(axis.centre(0)) if cell is None else cell
    return first - axis.reach, math.ceil(axis.centre(axis.count - 1)) + axis.reach
