"""The page that shows the result of a slide: one file beside the others, without a network."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from wsi_saliency.files import writing
from wsi_saliency.geometry import Size
from wsi_saliency.heatmap.overview import Predictions
from wsi_saliency.heatmap.result import REPORT, RUN_JSON, probability_column
from wsi_saliency.report.rendering import rendered
from wsi_saliency.report.slide_pictures import layers, strongest, thumbnail_address
from wsi_saliency.settings import RunSettings, options_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from wsi_saliency.heatmap.result import Result
    from wsi_saliency.slides.slide import Slide

_BINS = 20
_FILES = {
    "ome.zarr": "the map for napari, viv and neuroglancer",
    "ome.tif": "the map for QuPath, Bio-Formats and OMERO",
    "dcm": "the map for what reads DICOM",
    "png": "slide and map as a picture",
    "csv": "a row for each patch",
    "groovy": "lays the maps over the slide in QuPath",
    "geojson.gz": "the patches as objects for QuPath",
    "geojson": "outlines of the strongest regions for QuPath",
    "json": "everything about the run",
}


@dataclass(frozen=True)
class Histogram:
    """How many patches have which probability of a target, in equal bins from 0 to 1."""

    target: str
    summary: str
    counts: tuple[int, ...]

    @property
    def bars(self) -> list[tuple[float, float, str]]:
        """Height of each bar as a share of the highest, the position of its left edge, and words."""
        highest, bins = max(self.counts, default=0) or 1, len(self.counts)
        return [
            (n / highest, k / bins, f"{k / bins:.2f} to {(k + 1) / bins:.2f}: {n}")
            for k, n in enumerate(self.counts)
        ]


@dataclass(frozen=True)
class Neighbour:
    """A file or folder beside the page: its name, its address and what it is."""

    name: str
    address: str
    purpose: str


def write_slide_page(
    result: Result, slide: Slide, thumbnail: NDArray[np.uint8], coming: Collection[str] = ()
) -> None:
    """Write ``report.html`` into the folder of a result, which may lack its ``run.json`` still.

    Parameters
    ----------
    result
        What is shown, with all files that are to be named.
    slide
        The slide, open; the strongest patches are read from it.
    thumbnail
        The whole slide, (H, W, 3) uint8 RGB.
    coming
        Files that are to be named, too, and are still being written.

    Raises
    ------
    OutputError, SlideError
        If the page cannot be written, or the slide not be read.
    """
    page = slide_page(result, slide, thumbnail, coming)
    with writing(result.folder / REPORT):
        # One that was carried over from an older result may be the same file as the older result's.
        (result.folder / REPORT).unlink(missing_ok=True)
        (result.folder / REPORT).write_text(page, encoding="utf-8")


def slide_page(
    result: Result, slide: Slide, thumbnail: NDArray[np.uint8], coming: Collection[str] = ()
) -> str:
    """Return the page; the parameters are those of `write_slide_page`."""
    record = result.record
    size = Size(thumbnail.shape[1], thumbnail.shape[0])
    neighbours = _neighbours(result.folder, coming)
    return rendered(
        "slide.html",
        subject=" · ".join([record["slide"]["name"], record["model"]["uri"], ", ".join(result.targets)]),
        notices=[*record["slide"]["warnings"], *record["model"]["notes"]],
        thumbnail=thumbnail_address(thumbnail),
        size=size,
        layers=list(layers(result, size)),
        histograms=_histograms(result),
        patches=strongest(result, slide),
        coloured=not result.is_dark(0),
        first=result.maps[0].channels[0],
        command=command(record),
        asked=_asked(record["settings"]),
        classifier=_classifier_facts(record),
        slide_facts=_slide_facts(record),
        neighbours=neighbours,
        folder=shlex.quote(result.home.name),
        script=next((n.name for n in neighbours if n.name.endswith(".groovy")), ""),
        stores=[result.files(found.spec).ome_zarr for found in result.maps],
        tiffs=[result.files(found.spec).ome_tiff for found in result.maps],
    )


def command(record: Mapping[str, Any]) -> str:
    """Write what was asked as a command line: the options that differ from their defaults."""
    defaults = RunSettings().to_json()
    words = ["wsi-saliency", "run", record["slide"]["name"]]
    for name, known in options_of(RunSettings).items():
        value = record["settings"].get(name, defaults.get(name))
        if value == defaults.get(name):
            continue
        words.append(known.name(name))
        if value is not True:
            words.append(_written(value))
    return shlex.join(words)


def _written(value: object) -> str:
    if isinstance(value, list):
        return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _asked(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say every setting by its option, defaults in their own words."""
    rows = []
    for name, known in options_of(RunSettings).items():
        if name in settings:
            value = settings[name]
            empty = value is None or value in ([], False)
            shown = (known.wording(None) or "–") if empty else "yes" if value is True else _written(value)
            rows.append((known.name(name), shown))
    return rows


def _histograms(result: Result) -> list[Histogram]:
    """Count the patches by their probability of each target, and say how many are positive."""
    values = result.tile_values([probability_column(target) for target in result.targets])
    found = []
    for target, said, column in zip(result.targets, result.record["targets"], values.T, strict=True):
        counts, _ = np.histogram(column, _BINS, (0, 1))
        words = Predictions(target, len(column), said["positive"], said["highest_probability"])
        found.append(Histogram(target, str(words), tuple(counts.tolist())))
    return found


def _classifier_facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, patches = record["model"], record["patches"]
    return [
        ("Classifier", f"{model['uri']} ({model['architecture']})"),
        ("Classes", ", ".join(model["classes"])),
        ("Resolution", f"{_resolution(record)}, patches of {model['patch']} pixels"),
        ("Patches", f"{patches['tissue']} explained, of {patches['grid']} on the slide"),
        ("Device", f"{model['device']}, {model['precision']}"),
        ("Weights (SHA-256)", str(model["sha256"] or "–")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())),
    ]


def _resolution(record: Mapping[str, Any]) -> str:
    """Say at which µm per pixel patches were read, and whether the classifier asks for that."""
    taken = record["slide"]["mpp"]["x"] * record["grid"]["level0_per_canvas_pixel"]["x"]
    asked = "" if record["model"]["mpp"] is not None else " (assumed: the classifier does not say)"
    return f"{taken:.4g} µm per pixel{asked}"


def _slide_facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    slide = record["slide"]
    size, mpp, power = slide["size"], slide["mpp"], slide["objective_power"]
    mm = f"{size['w'] * mpp['x'] / 1000:.2f} × {size['h'] * mpp['y'] / 1000:.2f} mm"
    return [
        ("File", f"{slide['name']} ({slide['bytes'] / 1e6:.1f} MB)"),
        ("Format", f"{slide['format']}, read with {slide['reader']}, {slide['levels']} levels"),
        ("Size", f"{size['w']} × {size['h']} pixels, {mm}"),
        ("Resolution", f"{mpp['x']:.4g} × {mpp['y']:.4g} µm per pixel, from {slide['mpp_source']}"),
        ("Objective", f"{power:g}×" if power else "the file does not say"),
        ("Tissue", f"{slide['tissue_mm2']:.2f} mm²"),
        *_quality_facts(record),
    ]


def _quality_facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say how many patches have pen, folds or blur, if that was looked for."""
    found = record.get("quality")
    if not found:
        return []
    counts = ", ".join(f"{found[what]} with {what}" for what in ("pen", "fold", "blur"))
    return [
        ("Patches that may be spoilt", f"{counts}, of {record['patches']['tissue']}; tiles.csv says which")
    ]


def _neighbours(folder: Path, coming: Collection[str]) -> list[Neighbour]:
    """Name the files that lie beside the page, ``run.json`` among them, which is written last."""
    there = {path.name for path in folder.iterdir()} - {REPORT}
    names = sorted({*there, *coming, RUN_JSON}, key=_order)
    return [Neighbour(name, quote(f"./{name}"), _FILES.get(_ending(name), "")) for name in names]


def _order(name: str) -> tuple[int, str]:
    endings = list(_FILES)
    return (endings.index(_ending(name)) if _ending(name) in endings else len(endings)), name


def _ending(name: str) -> str:
    return next((ending for ending in _FILES if name.endswith(f".{ending}")), "")
