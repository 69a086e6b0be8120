"""Scripts that show results in QuPath: the maps over their slides to the pixel, the slides in a project.

QuPath has no menu for the first: an image that is opened second is never laid over the first. The scripts are
in the folder ``scripts``; facts go into them as JSON in base64, so that no name of a slide, a class or a
folder can break or change a script.

QuPath's project file is written by QuPath alone, from inside, by the script ``open-all.groovy``: its format
is not documented and changes between versions.
"""

from __future__ import annotations

import json
from base64 import b64encode
from functools import cache
from importlib.resources import files
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from wsi_saliency.files import replacing, writing
from wsi_saliency.heatmap.colours import ColourScale
from wsi_saliency.heatmap.geojson import TILES_GEOJSON
from wsi_saliency.heatmap.hotspots import HOTSPOTS
from wsi_saliency.heatmap.overview import Predictions
from wsi_saliency.heatmap.pyramid import level_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from wsi_saliency.heatmap.result import MapRecord, Result

OVERLAY = "overlay.groovy"
OPEN_ALL = "open-all.groovy"
PROJECT_OVERLAY = f"scripts/{OVERLAY}"
"""In a project: QuPath lists what is in its folder ``scripts`` in a menu."""

_SHARED, _FACTS = "// SLIDES", "'FACTS',"
_LINE = 1000
"""Characters of packed facts in a line: Java takes no string of 64 kB, and not many strings in a method."""


def write_overlay(result: Result) -> dict[str, Any]:
    """Write ``overlay.groovy``; returns how many maps it can show.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with writing(result.folder / OVERLAY):
        (result.folder / OVERLAY).write_text(overlay_script([result]), encoding="utf-8")
    return {"views": len(result.maps) * len(result.targets)}


def write_project(folder: Path, results: Sequence[Result], *, tiles: bool = True) -> None:
    """Write the scripts of a project: one lays maps over slides, one puts the slides into the project.

    Parameters
    ----------
    folder
        The project's.
    results
        Of what slides.
    tiles
        Whether patches are put into the project too; hotspots are, where there are any.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    with writing(folder):
        (folder / PROJECT_OVERLAY).parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "project": str(folder.resolve()),
        "slides": [_slide(result) | {"objects": _objects(result, tiles=tiles)} for result in results],
    }
    texts = {PROJECT_OVERLAY: overlay_script(results), OPEN_ALL: _script("open_all.groovy", facts)}
    for name, text in texts.items():
        with replacing(folder / name) as growing:
            growing.write_text(text, encoding="utf-8")


def overlay_script(results: Sequence[Result]) -> str:
    """Return the script that lays the maps of results over whichever of their slides is open."""
    return _script(OVERLAY, overlay_facts(results))


def overlay_facts(results: Sequence[Result]) -> dict[str, Any]:
    """Return what the script has to know of results, JSON-ready: a view for each target of each map.

    A view has its label, file, channel, range of colours, and where its cells lie: ``w`` × ``h`` cells in the
    file, padding included, cell ``(i, j)`` at level-0 ``(x0 + i * fx, y0 + j * fy)`` of the whole slide.
    """
    return {
        "results": [
            {
                "folder": result.url or str(result.home),
                "slide": _slide(result),
                "views": [view for found in result.maps for view in _views(result, found)],
            }
            for result in results
        ],
        "colours": _colours(),
    }


def _script(name: str, facts: dict[str, Any]) -> str:
    """Return a script with what all share, and the facts, in it."""
    folder = files(__package__).joinpath("scripts")
    text, shared = (folder.joinpath(file).read_text(encoding="utf-8") for file in (name, "slides.groovy"))
    packed = b64encode(json.dumps(facts, allow_nan=False).encode()).decode()
    lines = f"\n{' ' * 12}".join(f"'{line}'," for line in wrap(packed, _LINE))
    return text.replace(_SHARED, shared.strip()).replace(_FACTS, lines)


def _slide(result: Result) -> dict[str, Any]:
    slide = result.record["slide"]
    bounds = [slide["bounds"][key] for key in "xywh"]
    return {"name": slide["name"], "path": slide["path"], **slide["size"], "bounds": bounds}


def _objects(result: Result, *, tiles: bool) -> list[str]:
    """Return the files of objects that there are."""
    wanted = [HOTSPOTS, TILES_GEOJSON] if tiles else [HOTSPOTS]
    return [str(result.home / name) for name in wanted if (result.folder / name).is_file()]


def _views(result: Result, found: MapRecord) -> Iterator[dict[str, Any]]:
    """Yield a view for each target of a map."""
    padded, place = level_sizes(found.cells)[0], found.placement
    patches = result.record["patches"]["tissue"]
    for channel, target in enumerate(result.record["targets"]):
        said = Predictions(target["name"], patches, target["positive"], target["highest_probability"])
        low, high = display_range(found, channel)
        yield {
            "label": found.channels[channel],
            "said": str(said),
            "file": result.files(found.spec).ome_tiff,
            "channel": channel,
            "channels": len(found.channels),
            "signed": found.signed,
            "low": low,
            "high": high,
            "w": padded.w,
            "h": padded.h,
            "x0": place.x0,
            "y0": place.y0,
            "fx": place.fx,
            "fy": place.fy,
        }


def display_range(found: MapRecord, channel: int) -> tuple[float, float]:
    """Return the values of the first and the last colour; as far on both sides of 0 if signed."""
    window = found.windows[channel]
    if not found.signed:
        return window.start, window.end
    limit = max(abs(window.start), abs(window.end))
    return -limit, limit


@cache
def _colours() -> dict[str, list[str]]:
    """Return the colours of the overview, as ``aarrggbb``."""
    scales = {"magnitude": ColourScale.magnitudes(0, 1), "signed": ColourScale.diverging(1)}
    return {
        name: [f"{a:02x}{r:02x}{g:02x}{b:02x}" for r, g, b, a in scale.table.tolist()]
        for name, scale in scales.items()
    }
