"""How figures and names are written, on the page and in sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from wsi_saliency.mapspec import PLAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsi_saliency.evaluation.measured import MapKind, SanityStage
    from wsi_saliency.evaluation.rivals import Metric, Rival
    from wsi_saliency.evaluation.statistics import Summary

METRIC_NAME: dict[Metric, str] = {
    "insertion": "insertion",
    "deletion": "deletion",
    "faithfulness": "insertion − deletion",
    "phase_stability": "phase stability",
    "total_variation": "total variation",
}
_NAMED = 4  # so many maps are named; of more, some of them and how many there are
RIVAL_NAME: dict[Rival, str] = {
    "none": "the same map without smoothing",
    "blurred-none": "a plain blur as smooth",
    "random": "a random map",
    "centred-gaussian": "a spot in the middle of the patch",
}


def decimals(found: Summary) -> int:
    """Decimals that show the interval's width with two digits; from 3 to 6, and 3 where it has none."""
    width = found.high - found.low
    return min(6, max(3, 1 - math.floor(math.log10(width)))) if 1e-9 < width < math.inf else 3


def number(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """Write a number with a true minus sign; a dash for NaN."""
    if math.isnan(value):
        return "–"
    text = f"{value:{'+' if signed else ''}.{digits}f}".replace("inf", "∞")
    if math.isinf(value):
        return text.replace("-", "−")
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def mean(found: Summary, *, signed: bool = False) -> str:
    """Write a mean with as many digits as its interval warrants."""
    return number(found.mean, decimals(found), signed=signed)


def interval(found: Summary) -> str:
    """Write an interval as ``[low, high]``."""
    digits = decimals(found)
    return f"[{number(found.low, digits)}, {number(found.high, digits)}]"


def method_name(kind: MapKind) -> str:
    """Name of a map's method, or of what it is a control for."""
    if kind.control == "blurred-none":
        return f"blur as smooth as {kind.method}"
    return kind.control or kind.method or ""


def with_method(method: str | None) -> str:
    """Write a method in a sentence; the name ``none`` would be read as "no map"."""
    return "without smoothing" if method == PLAIN else f"with {method}"


def map_name(kind: MapKind) -> str:
    """Name of a map without its method, such as ``deeplift · layer2``."""
    return " · ".join(part for part in (kind.attribution, kind.layer) if part)


def spoken(found: MapKind | SanityStage) -> str:
    """Write a method's map in a sentence, such as ``deeplift at layer2 with backward-hook``."""
    return f"{found.attribution} at {found.layer} {with_method(found.method)}"


def stage_name(stage: SanityStage) -> str:
    """Name of the module down to which a network is random."""
    return stage.module or "intact"


def plural(n: int, noun: str) -> str:
    """Write a number of things."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def listing(names: Sequence[str], last: str = "and") -> str:
    """Join names with commas and a last ``and``, or another word."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def some(names: Sequence[str]) -> str:
    """List names; of many, the first few, and how many more there are."""
    if len(names) <= _NAMED:
        return listing(names)
    return listing([*names[: _NAMED - 1], f"{len(names) - _NAMED + 1} more"])
