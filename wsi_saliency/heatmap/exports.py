"""What is made from a finished result: a table. Each export reads through `Result` only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from wsi_saliency.files import carry, growing
from wsi_saliency.heatmap.dicom import DICOM, write_dicom
from wsi_saliency.heatmap.geojson import TILES_GEOJSON, write_tiles
from wsi_saliency.heatmap.hotspots import HOTSPOTS, write_hotspots
from wsi_saliency.heatmap.qupath import OVERLAY, write_overlay
from wsi_saliency.heatmap.result import RUN_JSON, Result, write_record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from wsi_saliency.settings import RunSettings

Export = Callable[[Result], dict[str, Any] | None]
"""Writes a file into a result's folder; returns what ``run.json`` says of it, None if it was not wanted.

What writes several files, and has a ``*`` in its name, returns what is said of each, by file name.
"""

EXPORTS: dict[str, Export] = {
    OVERLAY: write_overlay,
    TILES_GEOJSON: write_tiles,
    HOTSPOTS: write_hotspots,
    DICOM: write_dicom,
}


def export(result: Result) -> dict[str, dict[str, Any]]:
    """Make all exports that a result's settings ask for; returns what is to be said of each, by file name.

    Raises
    ------
    OutputError
        If one cannot be written.
    """
    made: dict[str, dict[str, Any]] = {}
    for name, write in EXPORTS.items():
        facts = write(result)
        if facts is not None:
            made |= facts if "*" in name else {name: facts}
    return made


def is_export(name: str) -> bool:
    """Whether a file of this name, in the folder of a result, is an export."""
    return any(fnmatchcase(name, pattern) for pattern in EXPORTS)


def wanted_exports(settings: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of exports, JSON-ready: those of a result stay, unless others are asked for."""
    return {
        "hotspots": settings["hotspots"] or earlier.get("hotspots", 0),
        "exports": list(dict.fromkeys([*earlier.get("exports", ()), *settings["exports"]])),
    }


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
    earlier = result.record["settings"]
    record = result.record | {"settings": earlier | wanted_exports(settings.to_json(), earlier)}
    with growing(result.folder, may_replace) as work:
        for path in result.folder.iterdir():
            if path.name != RUN_JSON and not is_export(path.name):
                carry(path, work / path.name)
        growing_result = Result.growing(work, record, result.folder)
        grown = replace(growing_result, slide_file=result.slide_file, url=result.url)
        record["exports"] = export(grown)
        if show:
            show(grown)
        write_record(work, record)
    return replace(result, record=record, kept=True, exported=tuple(record["exports"]))
