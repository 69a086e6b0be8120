"""What is made from a finished result: a table. Each export reads through `Result` only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wsi_saliency.heatmap.geojson import TILES_GEOJSON, write_tiles
from wsi_saliency.heatmap.hotspots import HOTSPOTS, write_hotspots
from wsi_saliency.heatmap.qupath import OVERLAY, write_overlay

if TYPE_CHECKING:
    from wsi_saliency.heatmap.result import Result

Export = Callable[["Result"], dict[str, Any] | None]
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
