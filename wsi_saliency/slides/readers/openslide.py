"""Slides that OpenSlide reads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import openslide
from PIL import Image

from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Mpp, Region, Size
from wsi_saliency.slides.levels import Level, LevelPixels, level_of
from wsi_saliency.slides.readers.decoding import DecodedTiles
from wsi_saliency.slides.readers.directories import is_tiff
from wsi_saliency.slides.readers.stored import (
    MAX_SIDE,
    SlideFile,
    StoredTiles,
    blank_tiles,
    empty_tiles,
)
from wsi_saliency.slides.readers.tiff_pages import open_tiff, pages_of
from wsi_saliency.slides.spacing import Spacing, spacing_of, spacing_of_plain_tiff
from wsi_saliency.slides.wording import library_says

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import tifffile
    from numpy.typing import NDArray

CACHE_BYTES = 128 * 2**20
"""Decoded tiles kept per slide: 32 million pixels, several rows of the blocks that are read ahead."""

ANCHOR = 512
"""Side of a cell, in level pixels, on levels where OpenSlide cannot start at a whole pixel."""

_AS_STORED = ("aperio", "generic-tiff")
"""Formats whose levels are the tiles of a directory side by side; elsewhere tiles may overlap."""

_NO_DRIFT = 1e-3
"""Level pixels that a downsample may be off a whole number at the far end of a level without being seen."""


class OpenSlideRefusal(SlideError):
    """OpenSlide cannot open a file; holds nothing but its reason."""


class OpenSlideReader:
    """Reads a slide with OpenSlide (a `LevelReader`); its handle may be used by several threads at once.

    `OpenSlide.read_region` starts at a whole level-0 pixel and divides by its own downsample. Where this is
    not a whole number, the read starts at a fraction of a level pixel and comes back interpolated; which
    fraction is told to the resampling as a shift, and is made a property of the place by `ANCHOR`.

    In a TIFF, tiles are looked at before OpenSlide decodes them, where a level is a directory as it stands.

    Parameters
    ----------
    path
        The file.
    mpp
        µm per level-0 pixel, in place of what the file says.

    Raises
    ------
    OpenSlideRefusal
        If OpenSlide cannot open the file.
    SlideError
        If the file is damaged in a way that OpenSlide does not see; with nothing but the reason.
    """

    name: ClassVar[str] = "openslide"

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        self._path = path
        self._handle: openslide.OpenSlide | None = None
        self._file: SlideFile | None = None
        try:
            self._handle = handle = openslide.OpenSlide(path)
            self.levels = _levels(handle)
            properties = handle.properties
            self.format = properties[openslide.PROPERTY_NAME_VENDOR]
            self._file, self._tiles = _stored_tiles(path, self.format, self.levels)
            self.notes = empty_tiles(self._tiles, filled=self.format == "aperio")
        except BaseException as error:
            self.close()
            if isinstance(error, (openslide.OpenSlideError, OSError)):
                raise OpenSlideRefusal(library_says("OpenSlide", error, path)) from error
            raise
        self.spacing = _spacing(properties, self.format, mpp)
        self.objective_power = _number(properties, openslide.PROPERTY_NAME_OBJECTIVE_POWER)
        self.bounds = _bounds(properties)
        self._downsamples: tuple[float, ...] = handle.level_downsamples
        handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))

    def close(self) -> None:
        """Let go of the file."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()
        if self._file is not None:
            self._file.close()

    def findings(self) -> tuple[str, ...]:
        """Say how many of the tiles read so far are suspiciously black."""
        return blank_tiles(self._tiles)

    def anchor(self, level: int) -> int | None:
        """Return `ANCHOR` for a level where reads start at a fraction of a level pixel."""
        downsample = self._downsamples[level]
        size = self.levels[level].size
        drift = abs(downsample - round(downsample)) / downsample * max(size.w, size.h)
        return ANCHOR if drift > _NO_DRIFT else None

    def decoded(self, level: int) -> DecodedTiles | None:
        """Return the tiles of a level that are plain JPEG, all there, and laid out as the level is."""
        stored = self._tiles[level]
        if self._handle is None or stored is None or stored.empty or self.format not in _AS_STORED:
            return None
        with open_tiff(self._path) as tiff:
            page = _only_one_of_size(_tiled(tiff), self.levels[level].size)
            tiles = None if page is None else DecodedTiles(stored, page)
        return tiles if tiles and tiles.is_rgb and tiles.is_jpeg else None

    def read_level(self, level: int, level_x: int, level_y: int, level_w: int, level_h: int) -> LevelPixels:
        """Read a box that lies inside a level; `LevelPixels` says where it came to lie."""
        if self._handle is None:
            raise SlideError("the slide is closed")
        stored = self._tiles[level]
        if stored is not None:
            stored.check(level_x, level_y, level_w, level_h)
        downsample = self._downsamples[level]
        x, y = round(level_x * downsample), round(level_y * downsample)
        try:
            image = self._handle.read_region((x, y), level, (level_w, level_h))
        except openslide.OpenSlideError as error:
            words = library_says("OpenSlide", error, self._path)
            raise SlideError(f"the data there are damaged, or the copy is incomplete ({words})") from error
        return LevelPixels(_on_white(image), x / downsample - level_x, y / downsample - level_y)


def detect_format(path: Path) -> str | None:
    """Vendor in OpenSlide's spelling, None if OpenSlide does not know the file."""
    vendor: str | None = openslide.OpenSlide.detect_format(path)
    return vendor


def _levels(handle: openslide.OpenSlide) -> tuple[Level, ...]:
    sizes = [Size(w, h) for w, h in handle.level_dimensions]
    for size in sizes:
        if not (0 < size.w <= MAX_SIDE and 0 < size.h <= MAX_SIDE):
            raise SlideError(f"a picture of {size.w} × {size.h} pixels; the file is damaged")
    return tuple(
        level_of(sizes[0], size, downsample)
        for size, downsample in zip(sizes, handle.level_downsamples, strict=True)
    )


def _stored_tiles(
    path: Path, file_format: str, levels: tuple[Level, ...]
) -> tuple[SlideFile | None, tuple[StoredTiles | None, ...]]:
    """Find the tiles of a TIFF's levels; None for a level that is not one directory of the same size."""
    nothing = (None,) * len(levels)
    if not is_tiff(path) or file_format == "hamamatsu":  # NDPI has no tiles
        return None, nothing
    try:
        with open_tiff(path) as tiff:
            pages = _tiled(tiff)
    except SlideError:
        raise
    except Exception:  # what OpenSlide reads need not please tifffile
        return None, nothing
    found = [_only_one_of_size(pages, level.size) for level in levels]
    file = SlideFile(path)
    return file, tuple(StoredTiles(file, page, checksums=True) if page else None for page in found)


def _tiled(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    return [page for page in pages_of(tiff.pages) if page.is_tiled]


def _only_one_of_size(pages: list[tifffile.TiffPage], size: Size) -> tifffile.TiffPage | None:
    found = [page for page in pages if (page.imagewidth, page.imagelength) == (size.w, size.h)]
    return found[0] if len(found) == 1 else None


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
    x, y, w, h = (_number(properties, name) for name in names)
    return None if x is None or y is None or not w or not h else Region(x, y, w, h)


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
