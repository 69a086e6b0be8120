"""A result: its maps, record and table of patches. File names, keys and columns stand here, nowhere else.

``run.json`` is written last: a folder without a complete one is unfinished. docs/results-folder.md explains
every key to those who read it.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_saliency.errors import OutputError
from wsi_saliency.files import writing
from wsi_saliency.geometry import Placement, Size
from wsi_saliency.heatmap.ome_zarr import Heatmap
from wsi_saliency.heatmap.pyramid import Window
from wsi_saliency.mapspec import MapSpec
from wsi_saliency.settings import ALL_TARGETS, RunSettings, default_layer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray


SCHEMA = 1
COMPLETE = "complete"
RUN_JSON = "run.json"
TILES = "tiles.csv"
REPORT = "report.html"
MAP = "saliency"
ZARR, TIFF, OVERVIEW = f"{MAP}.ome.zarr", f"{MAP}.ome.tif", "overview.png"
BOX_COLUMNS = ("x", "y", "w", "h", "tissue")
QUALITY_COLUMNS = ("qc_pen", "qc_fold", "qc_sharpness")
MAP_SETTINGS = ("layers", "methods", "attributions", "targets", "surrogate")
"""Settings that say which maps are asked for; of the surrogate, the weights' hash is compared."""
SURROGATE_HASH = "surrogate_sha256"


@dataclass(frozen=True)
class MapFiles:
    """Names of a map's files, in the result's folder."""

    ome_zarr: str
    ome_tiff: str
    overview: str

    @classmethod
    def of(cls, maps: Sequence[MapSpec]) -> dict[MapSpec, MapFiles]:
        """Name the files of all maps of a result: a single map needs no name of its own.

        Of several maps, ``overview.png`` shows all, and belongs to none.
        """
        if len(maps) == 1:
            return {maps[0]: cls(ZARR, TIFF, OVERVIEW)}
        return {
            spec: cls(
                f"{MAP}.{spec.name}.ome.zarr",
                f"{MAP}.{spec.name}.ome.tif",
                f"overview.{spec.name}.png",
            )
            for spec in maps
        }


def first_overview(maps: Sequence[str]) -> str:
    """Return the name of the picture of the first map of a result, from the names of all its maps."""
    return f"overview.{maps[0]}.png" if len(maps) > 1 else OVERVIEW


def is_map_file(name: str) -> bool:
    """Whether a file of this name, in the folder of a result, is a map: its suffix is that of slides."""
    return name.startswith(f"{MAP}.") and name.endswith((".ome.tif", ".dcm"))


def columns_of(maps: Sequence[MapSpec], targets: Sequence[str]) -> dict[MapSpec, list[tuple[str, str]]]:
    """Name the columns of mean and largest saliency of each map, a pair for each target."""
    alone = len(maps) == len(targets) == 1
    return {
        spec: [
            (f"saliency_mean{ending}", f"saliency_max{ending}")
            for target in targets
            for ending in ["" if alone else f".{spec.name}.{target}"]
        ]
        for spec in maps
    }


def probability_column(class_name: str) -> str:
    """Name the column with the probability of a class."""
    return f"probability_{class_name}"


@dataclass(frozen=True)
class MapRecord:
    """What ``run.json`` says of one map.

    Parameters
    ----------
    spec
        Layer, method and attribution.
    asked_as
        Texts by which the layer was asked for, such as ``"16"``.
    signed
        Whether values are signed evidence; else magnitudes.
    channels
        Names of its channels in the files, one for each target, in the order of the record's targets.
    layer
        Facts of the layer, such as ``reduction``: canvas pixels per cell.
    placement, cells
        Where cells lie, level-0 pixels; and how many there are without padding.
    drift
        By how much the method had moved the map, (x, y) in canvas pixels; it is taken out of the placement.
    windows
        Range of the values of each channel, and what of it is displayed.
    """

    spec: MapSpec
    asked_as: tuple[str, ...]
    signed: bool
    channels: tuple[str, ...]
    layer: Mapping[str, Any]
    placement: Placement
    cells: Size
    drift: tuple[float, float]
    windows: tuple[Window, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the facts, JSON-ready; names of files and columns are added by `with_names`."""
        return {
            "name": self.spec.name,
            **asdict(self.spec),
            "asked_as": list(self.asked_as),
            "values": "signed" if self.signed else "magnitude",
            "channels": list(self.channels),
            "layer_facts": dict(self.layer),
            "placement": asdict(self.placement) | {"unit": "level-0 pixels", "cells": asdict(self.cells)},
            "drift": {
                "x": self.drift[0],
                "y": self.drift[1],
                "unit": "canvas pixels, taken out of the placement",
            },
            "windows": [asdict(window) for window in self.windows],
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> MapRecord:
        """Undo `to_json`."""
        place = facts["placement"]
        return cls(
            MapSpec(facts["layer"], facts["method"], facts["attribution"]),
            tuple(facts["asked_as"]),
            facts["values"] == "signed",
            tuple(facts["channels"]),
            facts["layer_facts"],
            Placement(place["x0"], place["y0"], place["fx"], place["fy"]),
            Size(**place["cells"]),
            (facts["drift"]["x"], facts["drift"]["y"]),
            tuple(Window(**window) for window in facts["windows"]),
        )


def with_names(maps: Sequence[MapRecord], targets: Sequence[str]) -> list[dict[str, Any]]:
    """Return the facts of all maps of a result with the names of their files and columns, JSON-ready."""
    specs = [found.spec for found in maps]
    files, columns = MapFiles.of(specs), columns_of(specs, targets)
    return [
        found.to_json()
        | {
            "files": asdict(files[found.spec]),
            "columns": [{"mean": mean, "max": most} for mean, most in columns[found.spec]],
        }
        for found in maps
    ]


@dataclass(frozen=True)
class Result:
    """What a run left behind: the folder and its ``run.json``.

    Parameters
    ----------
    folder
        The slide's folder.
    record
        Contents of ``run.json``.
    kept
        Whether all of it was there already.
    differences
        In what a kept result differs from what was asked for.
    added
        Maps that were added to a result that was there already.
    exported
        Exports that were made anew from a result that was there already.
    place
        Where the folder will be, while it still grows elsewhere.
    url
        Where it stands, if that is no folder of this machine.
    slide_file
        The file of the slide that is read, while it is, if the slide comes from a URL.
    """

    folder: Path
    record: dict[str, Any]
    kept: bool = False
    differences: tuple[str, ...] = ()
    added: tuple[MapSpec, ...] = ()
    exported: tuple[str, ...] = ()
    place: Path | None = None
    url: str = ""
    slide_file: Path | None = None

    @classmethod
    def growing(cls, folder: Path, record: Mapping[str, Any], place: Path) -> Result:
        """Return a result whose ``run.json`` is not written yet: what exports read."""
        return cls(folder, {"schema": SCHEMA, **record}, place=place)

    @property
    def home(self) -> Path:
        """Absolute path of the folder, when it is complete."""
        return (self.place or self.folder).resolve()

    @classmethod
    def read(cls, folder: Path | str) -> Result | None:
        """Return the complete result in a folder, or None where there is none."""
        folder = Path(folder)
        try:
            return cls.parsed(folder, (folder / RUN_JSON).read_bytes())
        except OSError:
            return None

    @classmethod
    def parsed(cls, folder: Path, content: bytes, url: str = "") -> Result | None:
        """Return the complete result that the content of ``run.json`` tells of; None if it does not."""
        try:
            record = json.loads(content.decode("utf-8"))
        except ValueError:
            return None
        complete = isinstance(record, dict) and record.get("status") == COMPLETE
        return cls(folder, record, url=url) if complete else None

    @property
    def where(self) -> str:
        """Show where it stands."""
        return self.url or str(self.folder)

    @property
    def is_current(self) -> bool:
        """Whether this version can read its record."""
        return bool(self.record.get("schema") == SCHEMA)

    @cached_property
    def maps(self) -> tuple[MapRecord, ...]:
        """Its maps, in the order in which they were asked for.

        Raises
        ------
        OutputError
            If the record is not of this version, or damaged.
        """
        try:
            if not self.is_current:
                raise KeyError("schema")
            return tuple(MapRecord.from_json(facts) for facts in self.record["maps"])
        except (KeyError, TypeError, ValueError) as error:
            raise OutputError(
                f"{self.folder / RUN_JSON}: not written by this version of the program (schema {SCHEMA}); "
                "run the slide again with --overwrite"
            ) from error

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets: the channels of each map."""
        return tuple(target["name"] for target in self.record["targets"])

    @property
    def target_indices(self) -> tuple[int, ...]:
        """Indices of the targets among the classifier's logits."""
        return tuple(target["index"] for target in self.record["targets"])

    def is_dark(self, channel: int) -> bool:
        """Whether a channel stays dark at first: no patch is predicted as its target, and no range is given.

        Colours by percentiles would make it look like a slide full of it.
        """
        positive = self.record["targets"][channel]["positive"]
        patches = self.record["patches"]["tissue"]
        return bool(positive == 0 < patches) and self.record["settings"].get("range") is None

    def files(self, spec: MapSpec | None = None) -> MapFiles:
        """Return the names of a map's files; of the first map if none is named."""
        specs = [found.spec for found in self.maps]
        return MapFiles.of(specs)[spec or specs[0]]

    def heatmap(self, spec: MapSpec | None = None) -> Heatmap:
        """Open a map, or the first one.

        Raises
        ------
        OutputError
            If it is not there.
        """
        return Heatmap.open(self.folder / self.files(spec).ome_zarr)

    def each_tile(self) -> Iterator[dict[str, str]]:
        """Read ``tiles.csv`` row by row: a row for each patch, by columns."""
        with (self.folder / TILES).open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)

    def tiles(self) -> list[dict[str, str]]:
        """Read all rows of ``tiles.csv``."""
        return list(self.each_tile())

    def tile_values(self, columns: Sequence[str]) -> NDArray[np.float64]:
        """Read columns of numbers of ``tiles.csv``: (patches, columns) float64."""
        with (self.folder / TILES).open(newline="", encoding="utf-8") as file:
            names = next(csv.reader(file))
            wanted = [names.index(column) for column in columns]
            if not self.record["patches"]["tissue"]:
                return np.empty((0, len(columns)))
            return np.loadtxt(file, delimiter=",", usecols=wanted, ndmin=2)

    def tile_probabilities(self, class_name: str) -> tuple[list[list[float]], list[float]]:
        """Read the boxes ``x, y, w, h`` of all patches, level-0 pixels, and the probabilities of a class."""
        rows, column = self.tiles(), probability_column(class_name)
        return [[float(row[key]) for key in "xywh"] for row in rows], [float(row[column]) for row in rows]

    def has(self, settings: RunSettings) -> bool:
        """Whether the maps and targets that settings ask for are all there, as far as names can tell."""
        wanted = asked_maps(settings)
        there = {
            (name, found.spec.method, found.spec.attribution)
            for found in self.maps
            for name in (found.spec.layer, *found.asked_as)
        }
        return self.has_targets(settings) and there.issuperset(wanted)

    def lacks_exports(self, settings: RunSettings) -> bool:
        """Whether settings ask for other exports than there are; not asking for any is content with them."""
        before = self.record["settings"]
        others = bool(settings.hotspots) and settings.hotspots != before.get("hotspots", 0)
        return others or not set(settings.exports) <= set(before.get("exports", ()))

    def has_targets(self, settings: RunSettings) -> bool:
        """Whether the targets that settings ask for are those of the result."""
        if list(settings.targets) == self.record["settings"].get("targets"):
            return True
        if settings.targets == (ALL_TARGETS,):
            return set(self.targets) == set(self.record["model"]["classes"])
        known = {str(target[k]).casefold() for target in self.record["targets"] for k in ("name", "index")}
        return bool(settings.targets) and known.issuperset(t.strip().casefold() for t in settings.targets)


def asked_maps(settings: RunSettings) -> set[tuple[str, str, str]]:
    """Return the maps that settings ask for: layer as it was named, method, attribution."""
    return {
        (layer, method, attribution)
        for attribution in settings.attributions
        for method in settings.methods
        for layer in settings.layers or [default_layer(attribution)]
    }


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``; it comes last.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    text = json.dumps({"schema": SCHEMA, "status": COMPLETE, **record}, indent=2, allow_nan=False)
    with writing(folder / RUN_JSON):
        (folder / RUN_JSON).write_text(text + "\n", encoding="utf-8")
