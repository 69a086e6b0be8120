"""In what a result differs from what is asked for now; free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_saliency.heatmap.result import MAP_SETTINGS, SURROGATE_HASH
from wsi_saliency.settings import RunSettings
from wsi_saliency.slides.store import facts_of
from wsi_saliency.urls import name_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wsi_saliency.heatmap.result import Result
    from wsi_saliency.slides.store import Facts
    from wsi_saliency.urls import Location

_WITHOUT_EFFECT = frozenset(
    {*MAP_SETTINGS, "weights", "batch", "workers", "device", "hotspots", "exports", "sha256"}
)


def differences(
    result: Result,
    slide: Location,
    settings: RunSettings,
    weights: Mapping[str, str | None] | None = None,
    listed: Facts | None = None,
) -> tuple[str, ...]:
    """Say in what an existing result differs from what is asked now, maps apart, a few words each.

    Parameters
    ----------
    result
        What is there.
    slide, settings
        What is asked now.
    weights
        Hashes of the weights that would explain the slide now, by their keys in the record's ``model``; None
        if they are not loaded, and then not compared. A hash that is None is not compared.
    listed
        What is known of a slide at a URL; else its store is asked.

    Raises
    ------
    SlideError
        If the store of a slide cannot be asked.
    """
    if not result.is_current:
        return ("another version of the program",)
    record = result.record
    before, now = RunSettings().to_json() | record["settings"], settings.to_json()
    words = [
        f"{name.replace('_', '-')} {_shown(before[name])} (now {_shown(value)})"
        for name, value in now.items()
        if name not in _WITHOUT_EFFECT and value != before[name]
    ]
    if not result.has_targets(settings):
        words.append(f"target {', '.join(result.targets)} (now {_shown(now['targets'])})")
    wanted = {} if settings.sha256 is None else {"sha256": settings.sha256}
    for name, value in {**(weights or {}), **wanted}.items():
        known = record.get("model", {}).get(name)
        if value != known and not (name == SURROGATE_HASH and None in (value, known)):
            words.append("another surrogate" if name == SURROGATE_HASH else "other weights")
    facts = record.get("slide", {})
    if name_of(slide) != facts.get("name") or _is_other_file(slide, facts, listed):
        words.append("another slide file")
    return tuple(words)


def _is_other_file(slide: Location, known: Mapping[str, Any], listed: Facts | None) -> bool:
    """Whether a slide that is there is not the one that is known."""
    if isinstance(slide, Path):
        return slide.is_file() and slide.stat().st_size != known.get("bytes")
    now = listed or facts_of(slide)
    versions = {now.version, known.get("version")} - {None}
    return now.size not in (None, known.get("bytes")) or len(versions) > 1


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "default"
    if isinstance(value, float):
        return f"{value:g}"
    return "default" if value is None else str(value)
