"""What is made from a finished result: a table. Each export reads through `Result` only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wsi_saliency.files import carry, growing
from wsi_saliency.heatmap.geojson import TILES_GEOJSON, write_tiles
from wsi_saliency.heatmap.hotspots import HOTSPOTS, write_hotspots
from wsi_saliency.heatmap.qupath import OVERLAY, write_overlay
from wsi_saliency.heatmap.result import RUN_JSON, Result, write_record

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.settings import RunSettings

Export = Callable[[Result], dict[str, Any] | None]
"""Writes a file into a result's folder; returns what ``run.json`` says of it, None if it was not wanted."""

EXPORTS: dict[str, Export] = {
    OVERLAY: write_overlay,
    TILES_GEOJSON: write_tiles,
    HOTSPOTS: write_hotspots,
}


def export(result: Result) -> dict[str, dict[str, Any]]:
    """Make all exports that a result's settings ask for; returns what is to be said of each, by file name.

    Raises
    ------
    OutputError
        If one cannot be written.
    """
    made = {name: write(result) for name, write in EXPORTS.items()}
    return {name: facts for name, facts in made.items() if facts is not None}


def export_again(
    result: Result,
    settings: RunSettings,
    may_replace: Callable[[Path], bool],
    show: Callable[[Result], None] | None = None,
) -> Result:
    """Make the exports of a finished result anew, as settings want them; everything else stays.

    Enter it inside of `wsi_saliency.files.locked`.

    Parameters
    ----------
    result
        What is there.
    settings
        How exports are wanted.
    may_replace
        As in `wsi_saliency.files.growing`.
    show
        Writes what shows the exports, too, when they are there.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    record = result.record | {"settings": result.record["settings"] | {"hotspots": settings.hotspots}}
    with growing(result.folder, may_replace) as work:
        for path in result.folder.iterdir():
            if path.name != RUN_JSON and path.name not in EXPORTS:
                carry(path, work / path.name)
        grown = Result.growing(work, record, result.folder)
        record["exports"] = export(grown)
        if show:
            show(grown)
        write_record(work, record)
    return replace(result, record=record, kept=True, exported=tuple(record["exports"]))
