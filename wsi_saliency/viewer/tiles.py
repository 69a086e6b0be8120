"""The slide in tiles of JPEG, made when they are asked for, as Deep Zoom lays them out."""

from __future__ import annotations

import io
import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import Condition, Lock
from typing import TYPE_CHECKING

from PIL import Image

from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Region, Size
from wsi_saliency.slides.whole import MUCH, SMALL, read_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from wsi_saliency.slides.slide import Slide

TILE = 512
_QUALITY = 85
_KEPT = 400  # tiles of a slide: about 40 MB
_LARGEST = 2**23
"""Pixels of the picture from which tiles of coarse levels are cut, at most: 24 MiB."""


@dataclass(frozen=True)
class TileLayout:
    """Where tiles lie: a level has twice the pixels, along each side, of the level with the number below.

    Parameters
    ----------
    size
        Level-0 pixels of the slide: those of the level with the highest number.
    """

    size: Size

    @property
    def max_level(self) -> int:
        """Number of the finest level; level 0 is one pixel."""
        return math.ceil(math.log2(max(self.size.w, self.size.h, 2)))

    @property
    def min_level(self) -> int:
        """Number of the finest level that is a single tile."""
        return min(self.max_level, TILE.bit_length() - 1)

    def level_size(self, level: int) -> Size:
        """Return the pixels of a level."""
        scale: int = 2 ** (self.max_level - level)
        return Size(-(-self.size.w // scale), -(-self.size.h // scale))

    def tile(self, level: int, column: int, row: int) -> tuple[Region, Size] | None:
        """Return the level-0 region that a tile shows, and its size in pixels; None if there is none."""
        if not self.min_level <= level <= self.max_level or column < 0 or row < 0:
            return None
        scale: int = 2 ** (self.max_level - level)
        left, top, whole = column * TILE, row * TILE, self.level_size(level)
        w, h = min(TILE, whole.w - left), min(TILE, whole.h - top)
        if w <= 0 or h <= 0:
            return None
        return Region(left * scale, top * scale, w * scale, h * scale), Size(w, h)


class SlideTiles:
    """Tiles of an open slide; the last 400 are kept. Any number of threads may ask at a time.

    Where the slide has no small level, each tile of a coarse level would take a look at a large part of it,
    and a whole view has many. So it is looked at once, and tiles of coarse levels are cut from that picture.
    """

    def __init__(self, slide: Slide) -> None:
        self.layout = TileLayout(slide.size)
        self._slide = slide
        self._idle, self._reads, self._closed = Condition(), 0, False
        self._seen, self._looking = _seen_at(slide, self.layout), Lock()
        self._picture: Image.Image | None = None
        self.jpeg = lru_cache(_KEPT)(self._make)

    def close(self) -> None:
        """Close the slide when nobody reads it any more: OpenSlide ends the program otherwise."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: not self._reads)
            self._slide.close()
        self.jpeg.cache_clear()

    def _make(self, level: int, column: int, row: int) -> bytes | None:
        found = self.layout.tile(level, column, row)
        if found is None:
            return None
        with self._reading():
            if self._seen is not None and level <= self._seen:
                return as_jpeg(self._cut(self._seen, level, column, row, found[1]))
            rgb = self._slide.read(*found)
        return as_jpeg(rgb)

    def _cut(self, seen: int, level: int, column: int, row: int, size: Size) -> Image.Image:
        """Cut a tile from the whole slide as it is on the level ``seen``; white beyond the slide."""
        with self._looking:
            if self._picture is None:
                (rgb,) = read_whole(self._slide, [self.layout.level_size(seen)])
                self._picture = Image.fromarray(rgb)
        factor: int = 2 ** (seen - level)
        piece = Image.new("RGB", (size.w * factor, size.h * factor), "white")
        left, top = column * TILE * factor, row * TILE * factor
        piece.paste(self._picture.crop((left, top, *self._end(left + piece.width, top + piece.height))))
        return piece.reduce(factor)

    def _end(self, right: int, bottom: int) -> tuple[int, int]:
        assert self._picture is not None
        return min(right, self._picture.width), min(bottom, self._picture.height)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._idle:
            if self._closed:
                raise SlideError(f"{self._slide.shown}: is closed already")
            self._reads += 1
        try:
            yield
        finally:
            with self._idle:
                self._reads -= 1
                self._idle.notify_all()


def _seen_at(slide: Slide, layout: TileLayout) -> int | None:
    """Return the finest level whose tiles are cut from a picture of the whole slide, if there is one."""
    for level in range(layout.max_level, layout.min_level - 1, -1):
        scale, size = 2 ** (layout.max_level - level), layout.level_size(level)
        stored = slide.levels[slide.best_level(scale, scale)]
        is_far = scale >= MUCH * stored.downsample_x and stored.size.w * stored.size.h > SMALL
        if is_far and size.w * size.h <= _LARGEST:
            return level
    return None


def as_jpeg(rgb: NDArray[np.uint8] | Image.Image) -> bytes:
    """Compress a picture, (H, W, 3) uint8 RGB."""
    buffer = io.BytesIO()
    picture = rgb if isinstance(rgb, Image.Image) else Image.fromarray(rgb)
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
