"""Plain and OME-TIFF slides, read with tifffile where OpenSlide refuses or would misread.

Only the tiles or strips under a region are decoded, so memory does not depend on the slide's size.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Size
from wsi_saliency.slides.levels import LevelPixels, level_of
from wsi_saliency.slides.readers.decoding import DecodedTiles, damaged
from wsi_saliency.slides.readers.stored import SlideFile, StoredTiles, Tile, blank_tiles, empty_tiles, is_raw
from wsi_saliency.slides.readers.tiff_pages import (
    WHITE_IS_ZERO,
    check_levels,
    level_pages,
    open_tiff,
    spacing_and_power,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import tifffile
    from numpy.typing import NDArray

    from wsi_saliency.geometry import Region

CACHE_BYTES = 128 * 2**20
"""Decoded tiles or strips kept per slide, so that neighbouring reads do not decode them twice."""

_ASSOCIATED_ALPHA = 1


class _LevelStore(Protocol):
    """Where the pixels of one level come from; safe to use from several threads."""

    def read(self, level_x: int, level_y: int, level_w: int, level_h: int) -> NDArray[np.uint8]:
        """Return a box inside the level as (level_h, level_w, samples) uint8."""


class TiffReader:
    """Reads a TIFF whose structure tifffile knows (a `LevelReader`).

    Data are read under a lock, and decoded outside it. Levels are the SubIFDs of the first large page, or the
    smaller pages of the same shape.

    Parameters
    ----------
    path
        The file.
    mpp
        µm per level-0 pixel, in place of what the file says.

    Raises
    ------
    SlideError
        If the file is damaged, or has other pixels than 8-bit RGB or grey; with nothing but the reason.
    """

    name: ClassVar[str] = "tifffile"
    format: ClassVar[str] = "tiff"
    bounds: ClassVar[Region | None] = None

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        self._file = SlideFile(path)
        try:
            with open_tiff(path) as tiff:
                pages = level_pages(tiff)
                check_levels(tiff, pages)
                self.spacing, self.objective_power = spacing_and_power(tiff, pages[0], mpp)
                self._tiles = [StoredTiles(self._file, page) for page in pages]
                self._stores = _stores(self._tiles, pages)  # decoders look at the file once more
            self._to_rgb = _rgb_converter(pages[0])
            self.notes = empty_tiles(self._tiles)
        # Any exception: which one a damaged file draws from a parser of many formats is its own business.
        except Exception as error:
            self._file.close()
            reason = str(error) if isinstance(error, SlideError) else damaged("the file", "tifffile", error)
            raise SlideError(reason) from error
        sizes = [Size(page.imagewidth, page.imagelength) for page in pages]
        self.levels = tuple(level_of(sizes[0], size) for size in sizes)

    def close(self) -> None:
        """Let go of the file."""
        self._stores = []
        self._file.close()

    def findings(self) -> tuple[str, ...]:
        """Say how many of the tiles read so far are suspiciously black."""
        return blank_tiles(self._tiles)

    def anchor(self, level: int) -> int | None:
        """Return None: reads start at whole level pixels."""

    def decoded(self, level: int) -> DecodedTiles | None:
        """Return the tiles of a level if they are RGB, and compressed."""
        store = self._stores[level] if self._stores else None
        return store.tiles if isinstance(store, _Segmented) and store.tiles.is_rgb else None

    def read_level(self, level: int, level_x: int, level_y: int, level_w: int, level_h: int) -> LevelPixels:
        """Read a box that lies inside a level."""
        if not self._stores:
            raise SlideError("the slide is closed")
        return LevelPixels(self._to_rgb(self._stores[level].read(level_x, level_y, level_w, level_h)))


def _stores(tiles: list[StoredTiles], pages: list[tifffile.TiffPage]) -> list[_LevelStore]:
    cache = _SegmentCache(CACHE_BYTES)
    return [
        _Rows(stored, page) if is_raw(page) else _Segmented(stored, cache, page)
        for stored, page in zip(tiles, pages, strict=True)
    ]


class _Rows:
    """Strips that are not compressed, however long: of each row only the part under a box is read."""

    def __init__(self, stored: StoredTiles, page: tifffile.TiffPage) -> None:
        self._stored = stored
        self._samples = page.samplesperpixel
        self._planar = page.planarconfig == 2
        self._width = page.imagewidth

    def read(self, level_x: int, level_y: int, level_w: int, level_h: int) -> NDArray[np.uint8]:
        """Return a box inside the level as (level_h, level_w, samples) uint8."""
        out = np.full((level_h, level_w, self._samples), 255, np.uint8)
        step = 1 if self._planar else self._samples
        for strip in self._stored.under(level_x, level_y, level_w, level_h):
            top = strip.row * self._stored.tile_h
            first, end = max(level_y, top), min(level_y + level_h, top + self._stored.tile_h)
            data = self._stored.read_rows(
                strip.number, (first - top, end - top), (level_x * step, level_w * step), self._width * step
            )
            if data is not None:
                rows = np.frombuffer(data, np.uint8).reshape(end - first, level_w, step)
                samples = slice(strip.plane, strip.plane + 1) if self._planar else slice(None)
                out[first - level_y : end - level_y, :, samples] = rows
        return out


class _SegmentCache:
    """The latest decoded segments, at most ``limit`` bytes of them; safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._segments: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> NDArray[np.uint8] | None:
        with self._lock:
            if key in self._segments:
                self._segments.move_to_end(key)
            return self._segments.get(key)

    def put(self, key: tuple[int, int], segment: NDArray[np.uint8]) -> None:
        with self._lock:
            if key in self._segments:  # another thread was as fast
                return
            self._segments[key] = segment
            self._bytes += segment.nbytes
            while self._bytes > self._limit:
                self._bytes -= self._segments.popitem(last=False)[1].nbytes


class _Segmented:
    """Pixels in tiles or strips, of which only those under a box are read and decoded."""

    def __init__(self, stored: StoredTiles, cache: _SegmentCache, page: tifffile.TiffPage) -> None:
        self._stored, self._cache = stored, cache
        self.tiles = DecodedTiles(stored, page)
        self._level = page.offset
        self._samples = page.samplesperpixel
        self._planes = page.samplesperpixel if page.planarconfig == 2 else 1

    def read(self, level_x: int, level_y: int, level_w: int, level_h: int) -> NDArray[np.uint8]:
        """Return a box inside the level as (level_h, level_w, samples) uint8."""
        out = np.full((level_h, level_w, self._samples), 255, np.uint8)
        for tile in self._stored.under(level_x, level_y, level_w, level_h):
            self._paste(out, level_x, level_y, tile)
        return out

    def _paste(self, out: NDArray[np.uint8], level_x: int, level_y: int, tile: Tile) -> None:
        """Copy what lies inside a box from one segment; a segment without data stays white."""
        segment = self._segment(tile.number)
        if segment is None:
            return
        x, y = tile.column * self._stored.tile_w - level_x, tile.row * self._stored.tile_h - level_y
        inside = segment[max(-y, 0) : out.shape[0] - y, max(-x, 0) : out.shape[1] - x]
        samples = slice(tile.plane, tile.plane + 1) if self._planes > 1 else slice(None)
        h, w = inside.shape[:2]
        out[max(y, 0) : max(y, 0) + h, max(x, 0) : max(x, 0) + w, samples] = inside

    def _segment(self, index: int) -> NDArray[np.uint8] | None:
        """Read and decode one tile or strip as (h, w, samples) uint8; None if it has no data."""
        key = (self._level, index)
        segment = self._cache.get(key)
        if segment is None:
            segment = self.tiles.read(index)
            if segment is None:
                return None
            self._cache.put(key, segment)
        return segment


def _rgb_converter(page: tifffile.TiffPage) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """Return the function from a page's pixels (h, w, samples) to (h, w, 3) RGB."""
    if page.photometric == WHITE_IS_ZERO:
        return lambda grey: np.repeat(255 - grey, 3, axis=2)
    if page.samplesperpixel == 1:
        return lambda grey: np.repeat(grey, 3, axis=2)
    if page.samplesperpixel == 4:
        premultiplied = _ASSOCIATED_ALPHA in page.extrasamples
        return lambda rgba: _on_white(rgba, premultiplied=premultiplied)
    return lambda rgb: rgb


def _on_white(rgba: NDArray[np.uint8], *, premultiplied: bool) -> NDArray[np.uint8]:
    """Composite (h, w, 4) over white."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    colour = rgba[..., :3] * (1 if premultiplied else alpha)
    return np.rint(np.minimum(colour + 255 * (1 - alpha), 255)).astype(np.uint8)
