"""The script that lays a result's maps over the slide in QuPath, to the pixel.

QuPath has no menu for it: an image that is opened second is never laid over the first. The script's text is
``overlay.groovy`` of this package; the facts of a result go into it as JSON in base64, so that no name of a
slide, a class or a folder can break or change the script.
"""

from __future__ import annotations

import json
from base64 import b64encode
from functools import cache
from importlib.resources import files
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from wsi_saliency.files import writing
from wsi_saliency.heatmap.colours import ColourScale
from wsi_saliency.heatmap.overview import Predictions
from wsi_saliency.heatmap.pyramid import level_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsi_saliency.heatmap.result import MapRecord, Result

OVERLAY = "overlay.groovy"
_FACTS = "'FACTS',"
_LINE = 96
"""Characters of the packed facts in a line; Java takes no string of 64 kB."""


def write_overlay(result: Result) -> dict[str, Any]:
    """Write ``overlay.groovy``; returns how many maps it can show.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    facts = overlay_facts(result)
    with writing(result.folder / OVERLAY):
        (result.folder / OVERLAY).write_text(overlay_script(facts), encoding="utf-8")
    return {"views": len(facts["views"])}


def overlay_script(facts: dict[str, Any]) -> str:
    """Return the script with facts in it."""
    template = files(__package__).joinpath(OVERLAY).read_text(encoding="utf-8")
    before, after = template.split(_FACTS)
    packed = b64encode(json.dumps(facts, allow_nan=False).encode()).decode()
    lines = (f"'{line}'," for line in wrap(packed, _LINE))
    return before + f"\n{' ' * 12}".join(lines) + after


def overlay_facts(result: Result) -> dict[str, Any]:
    """Return what the script has to know of a result, JSON-ready: a view for each target of each map.

    A view has its label, file, channel, range of colours, and where its cells lie: ``w`` × ``h`` cells in the
    file, padding included, cell ``(i, j)`` at level-0 ``(x0 + i * fx, y0 + j * fy)`` of the whole slide.
    """
    slide = result.record["slide"]
    bounds = slide["bounds"]
    return {
        "folder": str(result.home),
        "slide": {"name": slide["name"], **slide["size"], "bounds": [bounds[key] for key in "xywh"]},
        "views": [view for found in result.maps for view in _views(result, found)],
        "colours": _colours(),
    }


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
