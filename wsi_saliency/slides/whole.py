"""The whole slide as small pictures: from a small level, or from one quick pass over all pixels.

A slide without a small level has to be decoded from one end to the other. That is done once for all pictures
that are wanted, in threads, and, where tiles can be had one by one, without the library that reads boxes:
every tile is decoded once and averaged at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Region, Size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from wsi_saliency.slides.readers.decoding import DecodedTiles
    from wsi_saliency.slides.slide import Slide

    _Box = tuple[int, int, int, int]
    _ReadBox = Callable[[_Box], NDArray[np.uint8]]
    _Sums = NDArray[np.integer[Any]]

Watch = Callable[[int], AbstractContextManager[Callable[[int], object]]]
"""Begins to show so many pieces of a slide; what it gives is told how many more are done."""

SMALL = 2**24
"""Level pixels that are read like any other region, in well under a second; 48 MiB where they are held."""

MUCH = 8
"""Level pixels per pixel of a picture, along a side, below which a level is small enough for it."""

REDUCED = 2**24
"""Pixels of the largest reduced picture, which takes 48 MiB while the slide is looked at."""

_PIECE = 2048  # level pixels
_THREADS = 4


def read_whole(
    slide: Slide, sizes: Sequence[Size], threads: int = _THREADS, watch: Watch | None = None
) -> list[NDArray[np.uint8]]:
    """Read the whole slide in several sizes.

    Where a level is small, pictures are what `Slide.read` gives. Where none is, all of them come from one
    reduced picture, whose pixels are means of 2ⁿ × 2ⁿ level pixels, by the same antialiased bilinear filter.

    Parameters
    ----------
    slide
        The slide.
    sizes
        Sizes of the pictures in pixels.
    threads
        Reading threads, where no level is small.
    watch
        Shows how far it is, where no level is small.

    Returns
    -------
    For each size (h, w, 3) uint8 RGB.

    Raises
    ------
    SlideError
        If the slide cannot be decoded somewhere; names the file.
    """
    whole = Region(0, 0, slide.size.w, slide.size.h)
    finest = max(sizes, key=lambda size: size.w * size.h)
    number = slide.best_level(whole.w / finest.w, whole.h / finest.h)
    level = slide.levels[number].size
    step = math.sqrt(level.w * level.h / (finest.w * finest.h))
    if level.w * level.h <= SMALL:
        return slide.read_each(whole, sizes)
    if step < MUCH:
        return [slide.read(whole, size) for size in sizes]
    step = _reduction(level, step)
    picture = Image.fromarray(_reduced(slide, number, step, threads, watch))
    box = (0, 0, level.w / step, level.h / step)
    return [
        np.asarray(picture.resize((size.w, size.h), Image.Resampling.BILINEAR, box=box)) for size in sizes
    ]


def _reduction(level: Size, step: float) -> int:
    """Level pixels per reduced pixel, a power of 2: at most half a picture's, if that is small enough."""
    needed = math.ceil(math.log2(math.sqrt(level.w * level.h / REDUCED)))
    return int(2 ** max(needed, math.floor(math.log2(step / 2))))


def _reduced(slide: Slide, number: int, step: int, threads: int, watch: Watch | None) -> NDArray[np.uint8]:
    """Read a level with one pixel for each ``step`` × ``step`` of its own."""
    level = slide.levels[number].size
    out = np.empty((-(-level.h // step), -(-level.w // step), 3), np.uint8)
    tiles = slide.decoded(number)
    boxes, read = list(_boxes(level, step, tiles)), _reader(slide, number, step, tiles)

    def fill(box: _Box) -> None:
        pixels = read(box)
        x, y = box[0] // step, box[1] // step
        out[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels

    watching = watch(len(boxes)) if watch else nullcontext(lambda done: None)
    with watching as advance, ThreadPoolExecutor(threads, thread_name_prefix="slide") as pool:
        try:
            reading: list[Future[None]] = [pool.submit(fill, box) for box in boxes]
            for each in reading:
                each.result()
                advance(1)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return out


def _boxes(level: Size, step: int, tiles: DecodedTiles | None) -> Iterator[_Box]:
    """Cut a level into boxes (x, y, w, h) that begin at whole reduced pixels."""
    w = h = _PIECE
    if tiles and _fit(tiles, step):
        w, h = level.w, tiles.stored.tile_h
    elif tiles and tiles.stored.tile_w >= level.w:  # of strips, each is decoded for the whole width
        w, h = level.w, max(step, _PIECE * _PIECE // level.w // step * step)
    for y in range(0, level.h, h):
        for x in range(0, level.w, w):
            yield x, y, min(w, level.w - x), min(h, level.h - y)


def _fit(tiles: DecodedTiles, step: int) -> bool:
    return tiles.stored.tile_w % step == 0 == tiles.stored.tile_h % step


def _reader(slide: Slide, number: int, step: int, tiles: DecodedTiles | None) -> _ReadBox:
    """Return what reads a box of level pixels, reduced."""
    level = slide.levels[number]

    def read(box: _Box) -> NDArray[np.uint8]:
        x, y, w, h = box
        out = Size(-(-w // step), -(-h // step))
        across, down = level.downsample_x, level.downsample_y
        return slide.read(Region(x * across, y * down, out.w * step * across, out.h * step * down), out)

    def read_tiles(box: _Box) -> NDArray[np.uint8]:
        assert tiles is not None
        try:
            return _tiles_reduced(tiles, box, step)
        except SlideError as error:
            raise SlideError(f"{slide.shown}: cannot read the slide as a whole: {error}") from error

    return read_tiles if tiles and _fit(tiles, step) else read


def _tiles_reduced(tiles: DecodedTiles, box: _Box, step: int) -> NDArray[np.uint8]:
    """Decode the tiles of a box that begins with a tile, and average them; tiles without data are white."""
    left, top, w, h = box
    stored = tiles.stored
    out = np.full((-(-h // step), -(-w // step), 3), 255, np.uint8)
    for tile in stored.under(*box):
        pixels = tiles.read(tile.number)
        if pixels is not None:
            x, y = tile.column * stored.tile_w - left, tile.row * stored.tile_h - top
            inside = np.ascontiguousarray(pixels[: h - y, : w - x])
            small = _means(inside, step)
            out[y // step :, x // step :][: small.shape[0], : small.shape[1]] = small
    return out


def _means(pixels: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Return the means of ``step`` × ``step`` pixels, a power of 2, rounded as Pillow does, a half up.

    Whole tiles, which most are, are not brought into Pillow's form; that takes as long as the means.
    """
    h, w = pixels.shape[:2]
    if h % step or w % step:
        return np.asarray(Image.fromarray(pixels).reduce(step))
    wide = np.uint16 if 255 * step * step < 2**16 else np.uint32
    sums: _Sums = pixels.astype(wide)
    sums = _added_up(sums.reshape(h // step, step, w * 3))
    sums = _added_up(sums.reshape(h // step, w // step, step, 3).swapaxes(1, 2))
    return ((sums + np.uint32(step * step // 2)) // (step * step)).astype(np.uint8)


def _added_up(values: _Sums) -> _Sums:
    """Sum over the second axis, 2ⁿ long: one half is added to the other, in whole rows, until one is left."""
    while (length := values.shape[1]) > 1:
        values = values[:, : length // 2] + values[:, length // 2 :]
    return values[:, 0]
