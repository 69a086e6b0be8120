"""The patches as GeoJSON objects for QuPath, with their measurements and predicted classes.

Positions are pixels of the slide as QuPath shows it: it crops some formats (MRXS) to the bounds of what was
scanned, so the corner of the bounds is subtracted from level-0 positions.
"""

from __future__ import annotations

import gzip
import heapq
import json
import logging
from contextlib import ExitStack, contextmanager
from itertools import compress
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from wsi_saliency.files import writing
from wsi_saliency.heatmap.result import columns_of, probability_column
from wsi_saliency.messages import printable, storable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from wsi_saliency.heatmap.result import Result

log = logging.getLogger(__name__)

TILES_GEOJSON = "tiles.geojson.gz"
MOST_TILES = 100_000
"""Twice as many take QuPath a gigabyte of memory."""

_TARGET_COLOUR = (200, 0, 0)
_COLOURS = (
    (0, 114, 178),
    (0, 158, 115),
    (230, 159, 0),
    (86, 180, 233),
    (204, 121, 167),
    (213, 94, 0),
    (150, 150, 60),
    (120, 120, 120),
)

Colour = tuple[int, int, int]


def write_tiles(result: Result, most: int = MOST_TILES) -> dict[str, Any]:
    """Write ``tiles.geojson.gz``, of the first target's strongest patches if there are more than ``most``.

    A patch's strength is the largest value of the first map in it. Memory: ``most`` numbers.

    Returns
    -------
    How many patches are in the file, and how many were left out.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    total = sum(1 for _ in result.each_tile())
    chosen = _strongest(result, most) if total > most else None
    kept = result.each_tile() if chosen is None else compress(result.each_tile(), chosen)
    feature = _tile_features(result)
    with feature_collection(result.folder / TILES_GEOJSON) as write:
        for row in kept:
            write(feature(row))
    left_out = max(0, total - most)
    if left_out:
        log.warning(
            "%s: %s holds the %d strongest of %d patches, as QuPath cannot show more at ease; "
            "tiles.csv has all of them",
            printable(result.record["slide"]["name"]),
            TILES_GEOJSON,
            most,
            total,
        )
    return {"tiles": total - left_out, "left_out": left_out}


def _strongest(result: Result, most: int) -> Iterator[bool]:
    """Tell of each patch whether it is among the strongest; of equal ones the first are."""
    first, targets = result.maps[0].spec, result.targets
    column = columns_of([found.spec for found in result.maps], targets)[first][0][1]
    strengths = ((float(row[column]), -number) for number, row in enumerate(result.each_tile()))
    numbers = {-number for _, number in heapq.nlargest(most, strengths)}
    return (number in numbers for number, _ in enumerate(result.each_tile()))


def _tile_features(result: Result) -> Callable[[Mapping[str, str]], dict[str, Any]]:
    """Return what makes a feature of a row of the table of patches."""
    left, top = corner(result)
    measured = _measured_columns(result)
    classify, unique = Classes.of(result), unique_ids(result)

    def feature(row: Mapping[str, str]) -> dict[str, Any]:
        x, y, w, h = (int(row[key]) for key in "xywh")
        box = [(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)]
        properties: dict[str, Any] = {"objectType": "tile"}
        if found := classify(row):
            properties["classification"] = found
        properties["measurements"] = {name: float(row[column]) for name, column in measured}
        properties["isLocked"] = True
        ring = [[x - left, y - top] for x, y in box]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        return {
            "type": "Feature",
            "id": unique("tile", x, y, w, h),
            "geometry": geometry,
            "properties": properties,
        }

    return feature


def _measured_columns(result: Result) -> list[tuple[str, str]]:
    """Return the names of measurements, and the columns that they come from and are called after."""
    specs = [found.spec for found in result.maps]
    saliency = [
        column for pairs in columns_of(specs, result.targets).values() for pair in pairs for column in pair
    ]
    columns = [*map(probability_column, result.record["model"]["classes"]), *saliency]
    return [(storable(column), column) for column in columns]


class Classes:
    """Says as what a patch is predicted.

    With softmax that is the most probable class; without, the most probable of those above one half, or none.
    """

    def __init__(self, names: Sequence[str], colours: Sequence[Colour], *, exclusive: bool) -> None:
        self._found = [
            {"name": storable(name) or f"class {number}", "color": list(colour)}
            for number, (name, colour) in enumerate(zip(names, colours, strict=True))
        ]
        self._columns = [probability_column(name) for name in names]
        self._least = 0.0 if exclusive else 0.5

    @classmethod
    def of(cls, result: Result) -> Classes:
        """Return the classes of a result's classifier; the first target is red."""
        model, target = result.record["model"], result.record["targets"][0]["index"]
        others = iter(_COLOURS * (len(model["classes"]) // len(_COLOURS) + 1))
        colours = [_TARGET_COLOUR if k == target else next(others) for k in range(len(model["classes"]))]
        return cls(model["classes"], colours, exclusive=model["output"] == "softmax")

    def __call__(self, row: Mapping[str, str]) -> dict[str, Any] | None:
        """Return the class of a patch as QuPath wants it: a name and a colour."""
        said = [float(row[column]) for column in self._columns]
        best = max(range(len(said)), key=said.__getitem__)
        return self._found[best] if said[best] > self._least else None


def corner(result: Result) -> tuple[int, int]:
    """Return where, in level-0 pixels, the picture begins that QuPath shows of the slide."""
    bounds = result.record["slide"]["bounds"]
    return round(bounds["x"]), round(bounds["y"])


def unique_ids(result: Result) -> Callable[..., str]:
    """Return what makes an id of some facts: always the same for the same slide, map and facts."""
    slide = result.record["slide"]
    of = [storable(slide["name"]), slide["bytes"], result.maps[0].spec.name]

    def unique(*facts: object) -> str:
        return str(uuid5(NAMESPACE_URL, json.dumps(["wsi-saliency", *of, *facts])))

    return unique


@contextmanager
def feature_collection(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Start a GeoJSON file, compressed if its name ends in ``.gz``; yields what writes a feature.

    Features are written one by one, none is kept. Equal features make equal files.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with ExitStack() as stack, writing(path):
        file: Any = stack.enter_context(path.open("wb"))
        if path.suffix == ".gz":
            file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        file.write(b'{"type":"FeatureCollection","features":[')
        before = b"\n"

        def write(feature: Mapping[str, Any]) -> None:
            nonlocal before
            file.write(before + json.dumps(feature, allow_nan=False, separators=(",", ":")).encode())
            before = b",\n"

        yield write
        file.write(b"\n]}\n")


def write_features(path: Path, features: Iterable[Mapping[str, Any]]) -> int:
    """Write a GeoJSON file; returns how many features it has.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    count = 0
    with feature_collection(path) as write:
        for feature in features:
            write(feature)
            count += 1
    return count
