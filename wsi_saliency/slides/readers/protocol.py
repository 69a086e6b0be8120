"""What a reader is to a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from wsi_saliency.geometry import Region
    from wsi_saliency.slides.levels import Level, LevelPixels
    from wsi_saliency.slides.readers.decoding import DecodedTiles
    from wsi_saliency.slides.spacing import Spacing


class LevelReader(Protocol):
    """Reads the levels of one file, as they are stored; any number of threads may do so at a time.

    A reader holds the open file. It is not handed to another process.
    """

    @property
    def name(self) -> str:
        """Library that reads the file."""

    @property
    def format(self) -> str:
        """Vendor in OpenSlide's spelling (``aperio``, ``generic-tiff``, ``dicom``…), or ``tiff``."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """Finest first; the first is level 0."""

    @property
    def spacing(self) -> Spacing:
        """Size of the level-0 pixels."""

    @property
    def objective_power(self) -> float | None:
        """Magnification of the objective, None if the file does not say."""

    @property
    def bounds(self) -> Region | None:
        """Where the scanner found something, level-0 pixels; None if the file does not say."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the file, known since it was opened; a line each."""

    def findings(self) -> tuple[str, ...]:
        """Say what reading has found so far that a user should know, a line each."""

    def anchor(self, level: int) -> int | None:
        """Side of the level's cells if where a read starts decides about its shift (see `resample`)."""

    def decoded(self, level: int) -> DecodedTiles | None:
        """Return the tiles of a level for those who want each of them once; None if there is no such way.

        They are RGB, cover the level from its upper left corner, and show the same as `read_level`.
        """

    def read_level(self, level: int, level_x: int, level_y: int, level_w: int, level_h: int) -> LevelPixels:
        """Read a box that lies inside a level.

        Raises
        ------
        SlideError
            If the data there are damaged, or the reader is closed; with nothing but the reason.
        """

    def close(self) -> None:
        """Let go of the file; may be called twice."""
