"""What a heatmap is: its sizes from level to level, where they lie on the slide, and its range of values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_saliency.geometry import Mpp, Placement, Size
from wsi_saliency.messages import storable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

TILE = 512
"""Side of a chunk or tile in cells, at every level and in every format."""

COARSEST = 512
"""The coarsest level is at most this long, in cells."""

STATISTICS_CELLS = 4_000_000
"""Percentiles are taken from about this many cells of the finest level, spread evenly."""


@dataclass(frozen=True)
class HeatmapInfo:
    """What a heatmap's files say about themselves.

    Texts are made `storable`.

    Parameters
    ----------
    slide_name
        File name of the slide.
    slide_size
        Level-0 pixels of the slide.
    slide_mpp
        µm per level-0 pixel.
    placement
        Where the cells of the finest level lie, level-0 pixels.
    channels
        Names of the channels, one for each target, such as ``gradient · backward-hook · layer2 · tumour``.
    details
        Further facts in words: model, method, layer.
    """

    slide_name: str
    slide_size: Size
    slide_mpp: Mpp
    placement: Placement
    channels: tuple[str, ...]
    details: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        details = {storable(key): storable(text) for key, text in self.details.items()}
        object.__setattr__(self, "slide_name", storable(self.slide_name))
        object.__setattr__(self, "channels", tuple(map(storable, self.channels)))
        object.__setattr__(self, "details", details)

    def cell_mpp(self, level: int) -> Mpp:
        """Return the µm per cell of a pyramid level."""
        placement = self.placement.at_level(level)
        return Mpp(self.slide_mpp.x * placement.fx, self.slide_mpp.y * placement.fy)

    def first_centre_um(self, level: int) -> tuple[float, float]:
        """Return x and y in µm of the middle of a level's first cell.

        The origin is the middle of the slide's first level-0 pixel, which is where viewers put the 0 of a
        slide that has no translation (NGFF's pixel-centre convention). In x that is
        ``mpp.x * (x0 + (fx * 2**level - 1) / 2)``.
        """
        x, y = self.placement.at_level(level).centre(0, 0)
        return self.slide_mpp.x * (x - 0.5), self.slide_mpp.y * (y - 0.5)

    def facts(self, size: Size) -> dict[str, str | int | float]:
        """Return the placement of a map of ``size`` cells (without padding) as flat keys and values.

        Cell ``(i, j)`` covers level-0 pixels ``[x0 + i*fx, x0 + (i+1)*fx) × [y0 + j*fy, y0 + (j+1)*fy)``.
        """
        return {
            "slide_name": self.slide_name,
            "slide_width": int(self.slide_size.w),
            "slide_height": int(self.slide_size.h),
            "slide_mpp_x": float(self.slide_mpp.x),
            "slide_mpp_y": float(self.slide_mpp.y),
            "x0": float(self.placement.x0),
            "y0": float(self.placement.y0),
            "fx": float(self.placement.fx),
            "fy": float(self.placement.fy),
            "width": int(size.w),
            "height": int(size.h),
        }

    @classmethod
    def from_facts(
        cls, facts: Mapping[str, Any], channels: Sequence[str], details: Mapping[str, str]
    ) -> HeatmapInfo:
        """Undo `facts`."""
        return cls(
            facts["slide_name"],
            Size(facts["slide_width"], facts["slide_height"]),
            Mpp(facts["slide_mpp_x"], facts["slide_mpp_y"]),
            Placement(facts["x0"], facts["y0"], facts["fx"], facts["fy"]),
            tuple(channels),
            dict(details),
        )


@dataclass(frozen=True)
class Window:
    """Range of a map's values, and the part of it that is displayed.

    Parameters
    ----------
    lowest, highest
        Range of all values, 0 included.
    start, end
        1st and 99th percentile of the computed (non-zero) cells, see `window_of`, or what was asked for.
    """

    lowest: float
    highest: float
    start: float
    end: float

    def showing(self, start: float, end: float) -> Window:
        """Display the values from ``start`` to ``end`` instead; the range is widened to hold them."""
        return Window(min(self.lowest, start), max(self.highest, end), start, end)


def level_count(size: Size) -> int:
    """Levels of a map of ``size`` cells: the coarsest is at most `COARSEST` cells long, and two at least.

    Even tiny maps have a second level, because some readers take a file without SubIFDs for no pyramid.
    """
    if size.w < 1 or size.h < 1:
        raise ValueError(f"a map of {size.w} × {size.h} cells is empty")
    return max(2, 1 + math.ceil(math.log2(max(1, math.ceil(max(size.w, size.h) / COARSEST)))))


def padded_size(size: Size, levels: int) -> Size:
    """Round ``size`` up to a multiple of ``2**(levels - 1)``, so that each level is half the one before."""
    step = 2 ** (levels - 1)
    return Size(-(-size.w // step) * step, -(-size.h // step) * step)


def level_sizes(size: Size) -> list[Size]:
    """Cells of each level, finest first, of a map of ``size`` cells; padded."""
    levels = level_count(size)
    padded = padded_size(size, levels)
    return [Size(padded.w >> level, padded.h >> level) for level in range(levels)]


def halve(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over 2×2 cells: (…, 2h, 2w) float32 in, (…, h, w) float32 out; summed in float64, rounded once."""
    columns = cells[..., 0::2].astype(np.float64)
    columns += cells[..., 1::2]
    mean: NDArray[np.float64] = (columns[..., 0::2, :] + columns[..., 1::2, :]) * 0.25
    return mean.astype(np.float32)


def sample_step(size: Size) -> int:
    """Return n such that every n-th cell of every n-th row makes about `STATISTICS_CELLS` cells at most.

    It is odd, because the gradient's checkerboard has an even period, of which an even step sees one phase.
    """
    return math.ceil(math.sqrt(size.w * size.h / STATISTICS_CELLS)) | 1


def window_of(cells: NDArray[np.float32], lowest: float, highest: float) -> Window:
    """Window of a map whose values lie in ``lowest``–``highest``, from some of its ``cells`` of any shape.

    Cells of exactly 0 were not computed and do not count. An empty or constant map gets a window that
    contains 0 and is not empty, because readers divide by its length.
    """
    lowest, highest = _not_empty(min(lowest, 0.0), max(highest, 0.0))
    computed = cells[cells != 0]
    if not computed.size:
        return Window(lowest, highest, lowest, highest)
    start, end = (float(value) for value in np.percentile(computed, (1, 99)))
    return Window(lowest, highest, *_not_empty(start, end))


def _not_empty(start: float, end: float) -> tuple[float, float]:
    """Widen an interval of no length to contain 0, and 1 too if it is all 0."""
    if start < end:
        return start, end
    return (min(start, 0.0), max(end, 0.0)) if start != 0 else (0.0, 1.0)
