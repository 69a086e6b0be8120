"""A figure of a result: its map, its target and its slide found, the region checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsi_saliency.errors import OutputError, SettingsError, SlideError
from wsi_saliency.geometry import Region
from wsi_saliency.heatmap.result import Result
from wsi_saliency.report.figure import FORMATS, WIDTH_MM, View, width_at, write_figure
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.urls import located, name_of
from wsi_saliency.workflows.progress import bar, download
from wsi_saliency.workflows.project import find_results

if TYPE_CHECKING:
    from wsi_saliency.geometry import Size
    from wsi_saliency.heatmap.result import MapRecord
    from wsi_saliency.settings import CacheSettings
    from wsi_saliency.slides.slide import Slide
    from wsi_saliency.urls import Location


def render(
    folder: Path,
    out: Path,
    *,
    region: tuple[float, float, float, float] | None = None,
    map_name: str | None = None,
    target: str | None = None,
    slide: Location | str | None = None,
    width_mm: float | None = None,
    scale: float | None = None,
    dpi: int = 300,
    beside: bool = False,
    cache: CacheSettings | None = None,
) -> None:
    """Draw a region of a slide with its map, for a paper.

    Parameters
    ----------
    folder
        Folder of a result.
    out
        File to write: PDF, PNG or SVG, by its suffix.
    region
        ``x, y, w, h``, level-0 pixels; the whole slide if left out.
    map_name, target
        Which map and which class; the first ones if left out.
    slide
        The slide, where it is not where the run found it.
    width_mm
        Width of the printed figure; `WIDTH_MM` if left out, unless ``scale`` decides it.
    scale
        µm of tissue that a pixel of slide and map shows.
    dpi, beside
        As in `View`.
    cache
        Settings that name the cache of slides from URLs.

    Raises
    ------
    OutputError, SlideError, SettingsError
        If there is no result or no slide, or the result has no such map, target or region.
    """
    if out.suffix.lower() not in FORMATS:
        raise SettingsError(f"out (-o) is {out}; it has to end in {', '.join(FORMATS)}")
    if width_mm is not None and scale is not None:
        raise SettingsError("width (--width) and scale (--scale) are both given; choose one")
    result = _result_in(folder)
    found, channel = _map_of(result, map_name), _channel_of(result, target)
    path = located(slide or result.record["slide"]["path"])
    if isinstance(path, Path) and not path.exists():
        raise SlideError(f"{path}: the slide is not there; say where it is now with --slide")
    mpp = result.record["slide"]["mpp"]["x"]
    with open_slide(path, mpp, cache=cache, watch=download(bar, name_of(path))) as opened:
        _check_slide(opened, result)
        box = _region_on(opened.size, region)
        if scale is not None:
            width_mm = width_at(scale, box.w * opened.mpp.x, dpi, beside=beside)
        view = View(found, channel, box, width_mm or WIDTH_MM, dpi, beside)
        write_figure(out, result, opened, view)


def _result_in(folder: Path) -> Result:
    """Return the result that a folder is, and not those that it holds."""
    if (result := Result.read(folder)) is not None:
        return result
    inside = find_results(folder)
    raise OutputError(f"{folder}: is not the result of one slide; name one in it, such as {inside[0].folder}")


def _check_slide(slide: Slide, result: Result) -> None:
    size, known = slide.size, result.record["slide"]["size"]
    if (size.w, size.h) != (known["w"], known["h"]):
        raise SlideError(
            f"{slide.shown} has {size.w} × {size.h} pixels, and the slide of this result {known['w']} × "
            f"{known['h']}; name the right one with --slide"
        )


def _region_on(size: Size, region: tuple[float, float, float, float] | None) -> Region:
    """Return the region that is asked for, or the whole slide."""
    box = Region(*(region or (0, 0, size.w, size.h)))
    beyond = box.x >= size.w or box.y >= size.h or box.x + box.w <= 0 or box.y + box.h <= 0
    if beyond or min(box.w, box.h) < 1:
        raise SettingsError(
            f"region (--region) is {box.x:g},{box.y:g},{box.w:g},{box.h:g}; it has to be X,Y,W,H on the "
            f"slide, which has {size.w} × {size.h} pixels"
        )
    return box


def _map_of(result: Result, name: str | None) -> MapRecord:
    there = {found.spec.name: found for found in result.maps}
    if name is None:
        return result.maps[0]
    if name not in there:
        raise SettingsError(f"map (--map) is {name!r}; {result.folder} has {', '.join(there)}")
    return there[name]


def _channel_of(result: Result, target: str | None) -> int:
    names = [name.casefold() for name in result.targets]
    if target is None:
        return 0
    if target.strip().casefold() not in names:
        raise SettingsError(f"target (--target) is {target!r}; the maps are of {', '.join(result.targets)}")
    return names.index(target.strip().casefold())
