"""What a slide is to the rest of the program, and opening one."""

from __future__ import annotations

import abc
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from wsi_saliency.errors import SettingsError, SlideError
from wsi_saliency.geometry import Mpp, Region, Size
from wsi_saliency.slides.resampling import CELL, Axis, LevelPixels, resample

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".dicom"}
)

PLAUSIBLE_MPP = (0.05, 20.0)
"""µm per pixel of anything a slide scanner writes, thumbnails of whole slides included."""

POSSIBLE_MPP = (0.001, 100.0)
"""µm per pixel beyond which a number is no µm per pixel: light shows nothing so small, and a pixel of a tenth
of a millimetre nothing of a tissue. Here lie nanometres and millimetres given as micrometres."""

_LEVEL_TOLERANCE = 2e-3
"""A level this much too coarse is still taken: it spares a read four times as large, and nobody sees it."""


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
class Spacing:
    """How large level-0 pixels are, and who says so.

    Parameters
    ----------
    mpp
        µm per level-0 pixel; None if nobody says.
    source
        Where the figure comes from, in words.
    warnings
        What a user should know about it, a line each.
    """

    mpp: Mpp | None
    source: str
    warnings: tuple[str, ...] = ()


class Slide(abc.ABC):
    """A whole-slide image, read at any place and resolution; a context manager.

    Positions are level-0 pixels. Any number of threads may read from one slide at a time; a slide is not
    handed to another process. A read holds about 5 million source pixels at most, whatever it covers.

    Parameters
    ----------
    path
        The file.
    file_format
        Vendor in OpenSlide's spelling (``aperio``, ``generic-tiff``, ``dicom``…), or ``tiff``.
    levels
        Finest first; the first is level 0.
    spacing
        Size of the level-0 pixels.
    objective_power
        Magnification of the objective, if the file says.
    bounds
        Where the scanner found something, level-0 pixels; the whole slide if the file does not say.
    notes
        What else a user should know about the slide, a line each.
    doubt
        Why the file is probably damaged, though it can be read.

    Attributes
    ----------
    reader : str
        Library that reads the file.
    path, format, levels, objective_power, bounds
        As given.
    size : Size
        Level-0 pixels.
    stated_mpp : Mpp or None
        µm per level-0 pixel, None if nobody says; `mpp` is the same without the None.
    mpp_source : str
        Where the mpp comes from, in words.
    """

    reader: ClassVar[str] = "none"

    def __init__(
        self,
        path: Path,
        file_format: str,
        levels: tuple[Level, ...],
        spacing: Spacing,
        objective_power: float | None = None,
        bounds: Region | None = None,
        notes: tuple[str, ...] = (),
        doubt: str | None = None,
    ) -> None:
        self.path = path
        self.format = file_format
        self.levels = levels
        self.size = levels[0].size
        self.stated_mpp = spacing.mpp
        self.mpp_source = spacing.source
        self._spacing, self._notes, self._doubt = spacing, notes, doubt
        self._closed = False
        self.objective_power = objective_power
        self.bounds = bounds or Region(0, 0, self.size.w, self.size.h)

    @property
    def mpp(self) -> Mpp:
        """µm per level-0 pixel.

        Raises
        ------
        SlideError
            If neither the file nor ``--mpp`` says.
        """
        if self.stated_mpp is None:
            raise SlideError(f"{self.path}: {self._why_no_mpp()}")
        return self.stated_mpp

    def _why_no_mpp(self) -> str:
        reasons = "".join(f" ({warning})" for warning in self._spacing.warnings)
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
        return (*doubt, *self._spacing.warnings, *self._notes, *self._findings())

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
        number = self._best_level(region.w / out.w, region.h / out.h)
        level = self.levels[number]
        x = Axis(region.x / level.downsample_x, region.w / level.downsample_x / out.w, out.w)
        y = Axis(region.y / level.downsample_y, region.h / level.downsample_y / out.h, out.h)
        anchor = self._anchor(number)
        try:
            return resample(lambda *box: self._padded(number, *box), x, y, anchor or CELL, anchor is not None)
        except SlideError as error:
            raise SlideError(f"{self.path}: cannot read {_described(region)}: {error}") from error

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

    def close(self) -> None:
        """Release the file, and log what reading has found; reading afterwards raises `SlideError`."""
        if not self._closed:
            self._closed = True
            for finding in self._findings():
                log.warning("%s: %s", self.path.name, finding)
            self._release()

    @abc.abstractmethod
    def _release(self) -> None:
        """Let go of the file."""

    def _findings(self) -> tuple[str, ...]:
        """Say what reading has found so far that a user should know."""
        return ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abc.abstractmethod
    def _read_level(self, level: int, level_x: int, level_y: int, level_w: int, level_h: int) -> LevelPixels:
        """Read a box that lies inside a level; raise `SlideError` with nothing but the reason."""

    def _anchor(self, level: int) -> int | None:
        """Side of the level's cells if where a read starts decides about its shift (see `resample`)."""
        return None

    def _best_level(self, scale_x: float, scale_y: float) -> int:
        """Coarsest level not above ``scale`` level-0 pixels per output pixel; level 0 if there is none."""
        fitting = [
            number
            for number, level in enumerate(self.levels)
            if level.downsample_x <= scale_x * (1 + _LEVEL_TOLERANCE)
            and level.downsample_y <= scale_y * (1 + _LEVEL_TOLERANCE)
        ]
        return max(fitting, key=lambda number: self.levels[number].downsample_x, default=0)

    def _padded(self, number: int, level_x: int, level_y: int, level_w: int, level_h: int) -> LevelPixels:
        """Read a box that may reach outside a level, which is white."""
        size = self.levels[number].size
        left, top = max(level_x, 0), max(level_y, 0)
        w = min(level_x + level_w, size.w) - left
        h = min(level_y + level_h, size.h) - top
        if (w, h) == (level_w, level_h):
            return self._read_level(number, left, top, w, h)
        rgb = np.full((level_h, level_w, 3), 255, np.uint8)
        if w <= 0 or h <= 0:
            return LevelPixels(rgb)
        inside = self._read_level(number, left, top, w, h)
        rgb[top - level_y :, left - level_x :][:h, :w] = inside.rgb
        return LevelPixels(rgb, inside.shift_x, inside.shift_y)


def open_slide(path: Path | str, mpp: float | None = None, mpp_required: bool = True) -> Slide:
    """Open a slide with OpenSlide, or with tifffile where OpenSlide refuses or would misread.

    Parameters
    ----------
    path
        The file.
    mpp
        µm per level-0 pixel, in place of what the file says.
    mpp_required
        Whether a slide without mpp is an error; if not, its `Slide.stated_mpp` is None.

    Raises
    ------
    SlideError
        If there is no such file, if it is no slide or damaged, or if nobody says how large its pixels are.
    SettingsError
        If ``mpp`` is not a possible number of µm per pixel.
    """
    # Imported here because the readers build on this module.
    from wsi_saliency.slides.opening import check_file, opened

    path = Path(path)
    if mpp is not None:
        _check_given(mpp)
    check_file(path)
    slide = opened(path, mpp)
    try:
        if mpp_required:
            _ = slide.mpp
    except SlideError:
        slide.close()
        raise
    return slide


def is_slide_name(path: Path | str) -> bool:
    """Whether a file found in a folder has a slide's suffix, and is not hidden."""
    path = Path(path)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def spacing_of(given: float | None, stated: Mpp | None, objective_power: float | None) -> Spacing:
    """Decide on the size of level-0 pixels: ``--mpp``, else the file, else 10 µm over the objective power.

    Parameters
    ----------
    given
        µm per pixel from the user.
    stated
        µm per pixel from the file.
    objective_power
        Magnification from the file; scanners write 10 µm over it, give or take a few per cent.
    """
    if given is not None:
        return _checked(Mpp(given, given), "--mpp")
    if stated is not None and not (math.isnan(stated.x) or math.isnan(stated.y)) and stated.x and stated.y:
        return _checked(stated, "the file")
    if objective_power is not None and _is_length(objective_power):
        return _estimated(objective_power)
    return Spacing(None, "unknown")


def _estimated(objective_power: float) -> Spacing:
    mpp = 10 / objective_power
    source = f"estimated from the objective power {objective_power:g}×"
    if not _is_possible(mpp):
        return Spacing(None, "unknown", (f"an objective power of {objective_power:g}× is not believed",))
    return Spacing(
        Mpp(mpp, mpp), source, (f"{mpp:g} µm per pixel is {source}; give the exact value with --mpp",)
    )


def _checked(mpp: Mpp, source: str) -> Spacing:
    """Warn about pixels of a size that slides do not have; do not believe in what nothing can have."""
    size = f"{mpp.x:g} × {mpp.y:g} µm per pixel"
    if is_plausible(mpp):
        return Spacing(mpp, source)
    if not (_is_possible(mpp.x) and _is_possible(mpp.y)):
        return Spacing(None, "unknown", (f"{size} ({source}) is not believed{_meant(mpp.x)}",))
    warning = f"{size} ({source}) is outside {_range_of(PLAUSIBLE_MPP)}; correct it with --mpp"
    return Spacing(mpp, source, (warning,))


def _check_given(mpp: float) -> None:
    """Raise `SettingsError` if ``--mpp`` is no number of µm per pixel, and say what may be meant."""
    if not _is_length(mpp):
        raise SettingsError(f"--mpp {mpp:g}: µm per pixel must be a positive number")
    if not _is_possible(mpp):
        raise SettingsError(f"--mpp {mpp:g}: µm per pixel lie within {_range_of(POSSIBLE_MPP)}{_meant(mpp)}")


def _meant(mpp: float) -> str:
    """Say what a number would be if it were nanometres or millimetres."""
    for unit, factor in (("nm", 1e-3), ("mm", 1e3)):
        if PLAUSIBLE_MPP[0] <= mpp * factor <= PLAUSIBLE_MPP[1]:
            return f"; {mpp:g} {unit} are {mpp * factor:g} µm: --mpp {mpp * factor:g}"
    return ""


def spacing_of_plain_tiff(given: float | None, tagged: Mpp | None) -> Spacing:
    """Decide on the size of pixels where only TIFF resolution tags speak.

    Many programs write 72, 96 or 300 dpi there without knowing anything, which would be 353, 265 or 85 µm per
    pixel: a value no slide has is not believed, and a warning says so.
    """
    if given is not None or tagged is None or is_plausible(tagged):
        return spacing_of(given, tagged, None)
    size = f"{tagged.x:.4g} × {tagged.y:.4g} µm"
    warning = f"its resolution tags say {size}, outside {_range_of(PLAUSIBLE_MPP)}, not believed"
    return Spacing(None, "unknown", (warning,))


def is_plausible(mpp: Mpp) -> bool:
    """Whether both values lie within `PLAUSIBLE_MPP`."""
    low, high = PLAUSIBLE_MPP
    return low <= mpp.x <= high and low <= mpp.y <= high


def _range_of(limits: tuple[float, float]) -> str:
    return f"{limits[0]:g}–{limits[1]:g}"


def _is_possible(mpp: float) -> bool:
    return POSSIBLE_MPP[0] <= mpp <= POSSIBLE_MPP[1]


def _is_length(value: float) -> bool:
    return math.isfinite(value) and value > 0


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


def _described(region: Region) -> str:
    return f"the region x={region.x:g}, y={region.y:g}, w={region.w:g}, h={region.h:g} (level-0 pixels)"
