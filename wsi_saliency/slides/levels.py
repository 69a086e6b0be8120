"""Levels of a slide's pyramid, and pixels read from one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsi_saliency.geometry import Size


@dataclass(frozen=True)
class Level:
    """One level of the pyramid.

    Parameters
    ----------
    size
        Size in pixels of the level.
    downsample_x, downsample_y
        Level-0 pixels per pixel of the level.
    """

    size: Size
    downsample_x: float
    downsample_y: float


@dataclass(frozen=True)
class LevelPixels:
    """Pixels read from a level.

    Parameters
    ----------
    rgb
        (h, w, 3) uint8.
    shift_x, shift_y
        Where the reader placed them, in level pixels right of and below the position that was asked for.
    """

    rgb: NDArray[np.uint8]
    shift_x: float = 0.0
    shift_y: float = 0.0


def level_of(slide_size: Size, level_size: Size, stated_downsample: float | None = None) -> Level:
    """Work out a level's downsample from its size.

    A size that is that of the slide over a whole number, rounded up or down, has exactly this factor: the
    ratio of the sizes would be off by the rounding and move the far end of a slide by pixels.

    Parameters
    ----------
    slide_size, level_size
        Sizes of level 0 and of the level.
    stated_downsample
        What the file itself says, for formats whose levels are padded.
    """
    ratio_x, ratio_y = slide_size.w / level_size.w, slide_size.h / level_size.h
    # Where the file says nothing, OpenSlide states the mean of both ratios, which fits neither axis.
    if stated_downsample and abs(stated_downsample - (ratio_x + ratio_y) / 2) > 1e-9:
        return Level(level_size, stated_downsample, stated_downsample)
    whole = _whole_factor(slide_size, level_size)
    if whole is not None:
        return Level(level_size, whole, whole)
    return Level(level_size, ratio_x, ratio_y)


def _whole_factor(slide_size: Size, level_size: Size) -> int | None:
    """Return the whole number that divides a slide into a level, a power of two before the others.

    ``level`` is ``slide / k`` rounded up or down where ``slide / (level + 1) < k < slide / (level - 1)``.
    """
    pairs = ((slide_size.w, level_size.w), (slide_size.h, level_size.h))
    low = max(whole / (part + 1) for whole, part in pairs)
    high = min(whole / (part - 1) if part > 1 else math.inf for whole, part in pairs)
    ratio = math.sqrt(math.prod(whole / part for whole, part in pairs))
    candidates = [k for k in (2 ** round(math.log2(ratio)), round(ratio)) if low < k < high]
    return candidates[0] if candidates else None
