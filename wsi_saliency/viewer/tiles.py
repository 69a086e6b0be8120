"""The slide in tiles of JPEG, made when they are asked for, as Deep Zoom lays them out."""

from __future__ import annotations

import io
import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import Condition
from typing import TYPE_CHECKING

from PIL import Image

from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Region, Size

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from wsi_saliency.slides.slide import Slide

TILE = 512
_QUALITY = 85
_KEPT = 400  # tiles of a slide: about 40 MB


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

    def tile(self, level: int, column: int, row: int) -> tuple[Region, Size] | None:
        """Return the level-0 region that a tile shows, and its size in pixels; None if there is none."""
        if not self.min_level <= level <= self.max_level or column < 0 or row < 0:
            return None
        scale: int = 2 ** (self.max_level - level)
        left, top = column * TILE, row * TILE
        w = min(TILE, -(-self.size.w // scale) - left)
        h = min(TILE, -(-self.size.h // scale) - top)
        if w <= 0 or h <= 0:
            return None
        return Region(left * scale, top * scale, w * scale, h * scale), Size(w, h)


class SlideTiles:
    """Tiles of an open slide; the last 400 are kept. Any number of threads may ask at a time."""

    def __init__(self, slide: Slide) -> None:
        self.layout = TileLayout(slide.size)
        self._slide = slide
        self._idle, self._reads, self._closed = Condition(), 0, False
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
            rgb = self._slide.read(*found)
        return as_jpeg(rgb)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._idle:
            if self._closed:
                raise SlideError(f"{self._slide.path}: is closed already")
            self._reads += 1
        try:
            yield
        finally:
            with self._idle:
                self._reads -= 1
                self._idle.notify_all()


def as_jpeg(rgb: NDArray[np.uint8] | Image.Image) -> bytes:
    """Compress a picture, (H, W, 3) uint8 RGB."""
    buffer = io.BytesIO()
    picture = rgb if isinstance(rgb, Image.Image) else Image.fromarray(rgb)
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
