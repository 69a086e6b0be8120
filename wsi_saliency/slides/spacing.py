"""How large a slide's pixels are, and who says so."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wsi_saliency.errors import SettingsError
from wsi_saliency.geometry import Mpp

PLAUSIBLE_MPP = (0.05, 20.0)
"""µm per pixel of anything a slide scanner writes, thumbnails of whole slides included."""

POSSIBLE_MPP = (0.001, 100.0)
"""µm per pixel beyond which a number is no µm per pixel: light shows nothing so small, and a pixel of a tenth
of a millimetre nothing of a tissue. Here lie nanometres and millimetres given as micrometres."""


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


def check_given(mpp: float) -> None:
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
