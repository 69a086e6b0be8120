"""What a slide is to the rest of the program: pixels of any place, at any resolution."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np

from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Mpp, Region, Size
from wsi_saliency.slides.levels import LevelPixels
from wsi_saliency.slides.resampling import CELL, Axis, resample
from wsi_saliency.urls import name_of, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from wsi_saliency.slides.readers.decoding import DecodedTiles
    from wsi_saliency.slides.readers.protocol import LevelReader
    from wsi_saliency.slides.resampling import ReadLevel
    from wsi_saliency.urls import Location

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Source:
    """Where a slide comes from.

    Parameters
    ----------
    place
        As given: a file, or a URL.
    file
        What is read: that file, or a copy of what is at the URL.
    version
        What a store calls these very bytes; None of a file.
    release
        To be called when the slide is read no more.
    """

    place: Location
    file: Path
    version: str | None = None
    release: Callable[[], object] = bool

    @property
    def size(self) -> int:
        """Bytes, as long as the slide is read."""
        return self.file.stat().st_size


_LEVEL_TOLERANCE = 2e-3
"""A level this much too coarse is still taken: it spares a read four times as large, and nobody sees it."""

_STRIP = 1024  # rows of a level that are read at a time where all of it is wanted


class Slide:
    """A whole-slide image, read at any place and resolution; a context manager.

    Positions are level-0 pixels. Any number of threads may read from one slide at a time; a slide is not
    handed to another process. A read holds about 5 million source pixels at most, whatever it covers.

    Parameters
    ----------
    source
        Where it comes from, or the path of a file; the slide releases it.
    reader
        Reads the file's levels; the slide closes it.
    doubt
        Why the file is probably damaged, though it can be read.

    Attributes
    ----------
    path : Path or UPath
        As given: a file or a URL.
    name : str
        The last name of the path, or of the URL without what stands behind ``?``.
    shown : str
        The path or the URL as messages name it.
    source : Source
        Where it comes from: its size, and the file that is read.
    reader : str
        Library that reads the file.
    format : str
        Vendor in OpenSlide's spelling (``aperio``, ``generic-tiff``, ``dicom``…), or ``tiff``.
    levels : tuple of Level
        Finest first; the first is level 0.
    size : Size
        Level-0 pixels.
    stated_mpp : Mpp or None
        µm per level-0 pixel, None if nobody says; `mpp` is the same without the None.
    mpp_source : str
        Where the mpp comes from, in words.
    objective_power : float or None
        Magnification of the objective, if the file says.
    bounds : Region
        Where the scanner found something, level-0 pixels; the whole slide if the file does not say.
    """

    def __init__(self, source: Source | Path, reader: LevelReader, doubt: str | None = None) -> None:
        self.source = source if isinstance(source, Source) else Source(source, source)
        self.path = self.source.place
        self.name, self.shown = name_of(self.path), shown(self.path)
        self.reader, self.format = reader.name, reader.format
        self.levels = reader.levels
        self.size = reader.levels[0].size
        self.stated_mpp, self.mpp_source = reader.spacing.mpp, reader.spacing.source
        self.objective_power = reader.objective_power
        self.bounds = reader.bounds or Region(0, 0, self.size.w, self.size.h)
        self._reader, self._doubt = reader, doubt
        self._closed = False

    @property
    def mpp(self) -> Mpp:
        """µm per level-0 pixel.

        Raises
        ------
        SlideError
            If neither the file nor ``--mpp`` says.
        """
        if self.stated_mpp is None:
            raise SlideError(f"{self.shown}: {self._why_no_mpp()}")
        return self.stated_mpp

    def _why_no_mpp(self) -> str:
        reasons = "".join(f" ({warning})" for warning in self._reader.spacing.warnings)
        if self._doubt is None:
            return f"the file does not say how many µm a pixel is{reasons}; give it with --mpp"
        return (
            f"{self._doubt}, which does not say how many µm a pixel is{reasons}; "
            "copy the file again, or give --mpp to read it as it is"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about the slide, a line each; reading may find more."""
        doubt = () if self._doubt is None else (self._doubt,)
        reader = self._reader
        return (*doubt, *reader.spacing.warnings, *reader.notes, *reader.findings())

    def read(self, region: Region, out: Size) -> NDArray[np.uint8]:
        """Read a region, resampled from the best level.

        The best level is the coarsest that is not coarser than the output. It is resampled with an
        antialiased bilinear filter at sub-pixel precision, and not at all where output pixels are level
        pixels. A region read in parts has the pixels it has when read whole.

        Parameters
        ----------
        region
            Level-0 pixels; edges may be fractional and may lie outside the slide.
        out
            Size of the result in pixels.

        Returns
        -------
        (out.h, out.w, 3) uint8 RGB; white outside the slide and where it is transparent.

        Raises
        ------
        SlideError
            If the file cannot be decoded there; names the file and the region.
        """
        number = self.best_level(region.w / out.w, region.h / out.h)
        return self._read(number, region, out, partial(self._reader.read_level, number))

    def read_each(self, region: Region, outs: Sequence[Size]) -> list[NDArray[np.uint8]]:
        """Read a region in several sizes, each as `read` does; a level that all are made of is decoded once.

        That level is held meanwhile, three bytes a pixel.

        Parameters
        ----------
        region
            Level-0 pixels, as `read` takes them; most of the slide.
        outs
            Sizes of the results in pixels.

        Raises
        ------
        SlideError
            As `read`.
        """
        numbers = {self.best_level(region.w / out.w, region.h / out.h) for out in outs}
        if len(outs) < 2 or len(numbers) > 1:
            return [self.read(region, out) for out in outs]
        (number,) = numbers
        try:
            inside = self._held(number)
        except SlideError as error:
            raise self._unreadable(region, error) from error
        if inside is None:
            return [self.read(region, out) for out in outs]
        return [self._read(number, region, out, inside) for out in outs]

    def _read(self, number: int, region: Region, out: Size, inside: ReadLevel) -> NDArray[np.uint8]:
        """Resample a region of a level, of which ``inside`` reads boxes that lie inside it."""
        level = self.levels[number]
        x = Axis(region.x / level.downsample_x, region.w / level.downsample_x / out.w, out.w)
        y = Axis(region.y / level.downsample_y, region.h / level.downsample_y / out.h, out.h)
        anchor = self._reader.anchor(number)
        try:
            anchored = anchor is not None
            return resample(
                lambda *box: _padded(level.size, inside, *box), x, y, anchor or CELL, anchored=anchored
            )
        except SlideError as error:
            raise self._unreadable(region, error) from error

    def _held(self, number: int) -> ReadLevel | None:
        """Read a level once; return what cuts boxes out of it, None if where a read starts moves pixels."""
        if self._reader.anchor(number) is not None:
            return None
        size = self.levels[number].size
        pixels = np.empty((size.h, size.w, 3), np.uint8)
        for y in range(0, size.h, _STRIP):
            strip = self._reader.read_level(number, 0, y, size.w, min(_STRIP, size.h - y))
            if strip.shift_x or strip.shift_y:
                return None
            pixels[y : y + _STRIP] = strip.rgb
        return lambda x, y, w, h: LevelPixels(pixels[y : y + h, x : x + w])

    def _unreadable(self, region: Region, error: SlideError) -> SlideError:
        where = f"x={region.x:g}, y={region.y:g}, w={region.w:g}, h={region.h:g} (level-0 pixels)"
        return SlideError(f"{self.shown}: cannot read the region {where}: {error}")

    def read_at(self, region: Region, mpp: float) -> NDArray[np.uint8]:
        """Read a region at ``mpp`` µm per pixel, to the nearest whole number of pixels.

        Returns
        -------
        (round(h · slide mpp y / mpp), round(w · slide mpp x / mpp), 3) uint8 RGB, at least one pixel.

        Raises
        ------
        SlideError
            As `read`, and if the slide's own mpp is not known.
        """
        w, h = round(region.w * self.mpp.x / mpp), round(region.h * self.mpp.y / mpp)
        return self.read(region, Size(max(1, w), max(1, h)))

    def best_level(self, scale_x: float, scale_y: float) -> int:
        """Coarsest level not above ``scale`` level-0 pixels per output pixel; level 0 if there is none."""
        fitting = [
            number
            for number, level in enumerate(self.levels)
            if level.downsample_x <= scale_x * (1 + _LEVEL_TOLERANCE)
            and level.downsample_y <= scale_y * (1 + _LEVEL_TOLERANCE)
        ]
        return max(fitting, key=lambda number: self.levels[number].downsample_x, default=0)

    def decoded(self, number: int) -> DecodedTiles | None:
        """Return the tiles of a level for those who want all of them; None if they cannot be had one by one.

        Raises
        ------
        SlideError
            If the file cannot be read any more; names the file.
        """
        try:
            return self._reader.decoded(number)
        except (SlideError, OSError) as error:
            raise SlideError(f"{self.shown}: {error}") from error

    def close(self) -> None:
        """Release the file, and log what reading has found; reading afterwards raises `SlideError`."""
        if not self._closed:
            self._closed = True
            for finding in self._reader.findings():
                log.warning("%s: %s", self.name, finding)
            self._reader.close()
            self.source.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _padded(
    size: Size, inside: ReadLevel, level_x: int, level_y: int, level_w: int, level_h: int
) -> LevelPixels:
    """Read a box that may reach outside a level of a size, which is white; ``inside`` reads the rest."""
    left, top = max(level_x, 0), max(level_y, 0)
    w = min(level_x + level_w, size.w) - left
    h = min(level_y + level_h, size.h) - top
    if (w, h) == (level_w, level_h):
        return inside(left, top, w, h)
    rgb = np.full((level_h, level_w, 3), 255, np.uint8)
    if w <= 0 or h <= 0:
        return LevelPixels(rgb)
    there = inside(left, top, w, h)
    rgb[top - level_y :, left - level_x :][:h, :w] = there.rgb
    return LevelPixels(rgb, there.shift_x, there.shift_y)
