"""Slides that OpenSlide reads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import openslide
from PIL import Image

from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Mpp, Region, Size
from wsi_saliency.slides.resampling import LevelPixels
from wsi_saliency.slides.slide import Level, Slide, Spacing, level_of, spacing_of, spacing_of_plain_tiff

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

CACHE_BYTES = 128 * 2**20
"""Decoded tiles kept per slide: 32 million pixels, several rows of the blocks that are read ahead."""

ANCHOR = 512
"""Side of a cell, in level pixels, on levels where OpenSlide cannot start at a whole pixel."""

_NO_DRIFT = 1e-3
"""Level pixels that a downsample may be off a whole number at the far end of a level without being seen."""


class OpenSlideSlide(Slide):
    """A slide read by OpenSlide; its handle may be used by several threads at once.

    `OpenSlide.read_region` starts at a whole level-0 pixel and divides by its own downsample. Where this is
    not a whole number, the read starts at a fraction of a level pixel and comes back interpolated; which
    fraction is told to the resampling as a shift, and is made a property of the place by `ANCHOR`.

    Parameters
    ----------
    path
        The file.
    mpp
        µm per level-0 pixel, in place of what the file says.

    Raises
    ------
    SlideError
        If OpenSlide cannot open the file.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        try:
            handle = openslide.OpenSlide(path)
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(f"{path}: OpenSlide cannot open it: {_one_line(error)}") from error
        properties = handle.properties
        file_format = properties[openslide.PROPERTY_NAME_VENDOR]
        super().__init__(
            path,
            file_format,
            _levels(handle),
            _spacing(properties, file_format, mpp),
            _number(properties, openslide.PROPERTY_NAME_OBJECTIVE_POWER),
            _bounds(properties),
        )
        self._downsamples: tuple[float, ...] = handle.level_downsamples
        handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
        self._handle: openslide.OpenSlide | None = handle

    def close(self) -> None:
        """Close OpenSlide's handle."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()

    def _anchor(self, level: int) -> int | None:
        downsample = self._downsamples[level]
        size = self.levels[level].size
        drift = abs(downsample - round(downsample)) / downsample * max(size.w, size.h)
        return ANCHOR if drift > _NO_DRIFT else None

    def _read_level(self, level: int, level_x: int, level_y: int, level_w: int, level_h: int) -> LevelPixels:
        if self._handle is None:
            raise SlideError("the slide is closed")
        downsample = self._downsamples[level]
        x, y = round(level_x * downsample), round(level_y * downsample)
        try:
            image = self._handle.read_region((x, y), level, (level_w, level_h))
        except openslide.OpenSlideError as error:
            raise SlideError(_one_line(error)) from error
        return LevelPixels(_on_white(image), x / downsample - level_x, y / downsample - level_y)


def detect_format(path: Path) -> str | None:
    """Vendor in OpenSlide's spelling, None if OpenSlide does not know the file."""
    vendor: str | None = openslide.OpenSlide.detect_format(path)
    return vendor


def _levels(handle: openslide.OpenSlide) -> tuple[Level, ...]:
    sizes = [Size(w, h) for w, h in handle.level_dimensions]
    return tuple(
        level_of(sizes[0], size, downsample)
        for size, downsample in zip(sizes, handle.level_downsamples, strict=True)
    )


def _spacing(properties: Mapping[str, str], file_format: str, given: float | None) -> Spacing:
    x = _number(properties, openslide.PROPERTY_NAME_MPP_X)
    y = _number(properties, openslide.PROPERTY_NAME_MPP_Y)
    stated = None if x is None or y is None else Mpp(x, y)
    if file_format == "generic-tiff":
        return spacing_of_plain_tiff(given, stated)
    return spacing_of(given, stated, _number(properties, openslide.PROPERTY_NAME_OBJECTIVE_POWER))


def _bounds(properties: Mapping[str, str]) -> Region | None:
    names = (
        openslide.PROPERTY_NAME_BOUNDS_X,
        openslide.PROPERTY_NAME_BOUNDS_Y,
        openslide.PROPERTY_NAME_BOUNDS_WIDTH,
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
    )
    if not all(name in properties for name in names):
        return None
    return Region(*(int(properties[name]) for name in names))


def _number(properties: Mapping[str, str], name: str) -> float | None:
    """Return a property as a number; None if the file lacks it or has something else there."""
    try:
        value = float(properties[name])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    """Composite an RGBA image over white."""
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return np.asarray(image.convert("RGB"))
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=alpha)
    return np.asarray(white)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
