"""Files of annotations: what people have drawn on a slide, read from what programs write.

==================  ================================  ==================================================
file                areas                             class of an area
==================  ================================  ==================================================
QuPath GeoJSON      Polygon, MultiPolygon, alone or   its classification, else its own name
                    in a GeometryCollection
ASAP XML            Polygon, Spline, Rectangle        its group, else its own name
Camelyon JSON       ``positive`` and ``negative``     ``positive``, ``negative``
==================  ================================  ==================================================

Points and lines hold no area and are skipped, as are tiles, TMA cores and the root of a QuPath hierarchy,
which nobody has drawn. A spline is taken by its points, joined by straight lines.

Some classes are cut out of the others: ``negative`` (as in NCRF, which makes it of Camelyon16's ``_2``), and
in ASAP files the groups that the readme files of Camelyon16 and Camelyon17 describe as non-tumour areas cut
out of the tumour: ``_2`` from ``_0`` and ``_1``, ``normal`` from ``metastases``; likewise ``Exclusion`` from
``Tumor``. What they cover is not annotated.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_saliency.errors import SettingsError
from wsi_saliency.evaluation.annotations import Annotations, Polygon, folded
from wsi_saliency.untrusted_xml import XmlError, parse_xml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path, PurePath
    from xml.etree import ElementTree

log = logging.getLogger(__name__)

SUFFIXES = (".geojson", ".json", ".xml")

_TAKES = "--annotations takes QuPath GeoJSON, ASAP XML and Camelyon JSON"

_NO_AREAS = ("Point", "MultiPoint", "LineString", "MultiLineString")
_GEOMETRIES = ("Polygon", "MultiPolygon", "GeometryCollection", *_NO_AREAS)  # RFC 7946
_NOT_DRAWN = frozenset(["tile", "tma_core", "root", "pathtileobject", "tmacoreobject", "pathrootobject"])
_ASAP_AREAS = frozenset(["Polygon", "Spline", "Rectangle"])

_TUMOUR_GROUPS = frozenset(["_0", "_1", "tumor"])
_ASAP_CUT_OUTS = {"_2": _TUMOUR_GROUPS, "exclusion": _TUMOUR_GROUPS, "normal": frozenset(["metastases"])}
"""ASAP groups that are cut out of others, if the file has any of these."""

_Floats = NDArray[np.float64]


def annotations_for(slide: PurePath, where: Path) -> Path:
    """Find the annotations of a slide: ``where`` itself, or the file with the slide's name in that folder.

    Names are compared whatever the case of their letters, but the same case goes first; for the suffixes see
    `SUFFIXES`.

    Raises
    ------
    SettingsError
        If there is no such file, or more than one.
    """
    if not where.is_dir():
        return where
    files = [file for file in sorted(where.iterdir()) if file.suffix.lower() in SUFFIXES and file.is_file()]
    alike = [file for file in files if file.stem.casefold() == slide.stem.casefold()]
    found = [file for file in alike if file.stem == slide.stem] or alike
    if not found:
        wanted = f"{slide.stem}{{{','.join(SUFFIXES)}}}"
        raise SettingsError(
            f"{where}: no annotations of {slide.name}; --annotations looks for {wanted} there"
        )
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        raise SettingsError(f"{where}: {names} are both of {slide.name}; name one file with --annotations")
    return found[0]


def read_annotations(path: Path) -> Annotations:
    """Read QuPath GeoJSON, ASAP XML or Camelyon JSON, recognised by content.

    Returns
    -------
    Polygons with vertices in the pixels of the slide that they were drawn on, level 0.

    Raises
    ------
    SettingsError
        If the file cannot be read, is damaged, of another format, or has no area in it.
    """
    try:
        drawn = _parsed(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); {_TAKES}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: {error}; {_TAKES}") from error
    if drawn.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(drawn.skipped.items()))
        log.warning("%s: skipped what is not a drawn area: %s", path, kinds)
    if not drawn.polygons:
        raise SettingsError(f"{path}: no annotated area in it; --annotations needs polygons")
    return Annotations(path, tuple(drawn.polygons), tuple(drawn.cut_outs))


@dataclass
class _Drawn:
    """What has been read so far; ``skipped`` counts what is no area by its kind."""

    polygons: list[Polygon] = field(default_factory=list)
    cut_outs: list[Polygon] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, rings: Any, name: str | None, *, cut_out: bool = False) -> None:
        """Add an area, less rings without extent; without an outline it is skipped."""
        outline, *holes = [_ring(ring) for ring in _listed(rings)] or [None]
        if outline is None:
            self.skipped["empty"] += 1
            return
        polygon = Polygon((outline, *(hole for hole in holes if hole is not None)), name)
        (self.cut_outs if cut_out else self.polygons).append(polygon)


def _ring(positions: Any) -> _Floats | None:
    """Vertices (n, 2) of a list of positions, which may be closed or not and have a third coordinate."""
    try:
        ring = np.array([position[:2] for position in _listed(positions)], np.float64)
        ring = ring.reshape(len(positions), 2)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError("an area has coordinates that are not pairs of numbers") from error
    if not np.isfinite(ring).all():
        raise ValueError("an area has coordinates that are not finite numbers")
    if len(ring) > 1 and (ring[0] == ring[-1]).all():
        ring = ring[:-1]
    return ring if len(ring) > 2 else None


def _parsed(data: bytes) -> _Drawn:
    """Read a file's content; ValueError and its like say what is wrong with it."""
    start = data.lstrip(b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n")[:1]  # past byte order marks, of UTF-16 too
    if start == b"<":
        return _asap(_xml_root(data))
    if start not in (b"{", b"["):
        raise ValueError("neither JSON nor XML")
    document = json.loads(data)
    if isinstance(document, dict) and not document.keys().isdisjoint(("positive", "negative")):
        return _camelyon(document)
    return _geojson(document)


def _camelyon(document: dict[str, Any]) -> _Drawn:
    drawn = _Drawn()
    for name in ("positive", "negative"):
        for area in _listed(document.get(name)):
            drawn.add([_fields(area).get("vertices")], name, cut_out=name == "negative")
    return drawn


def _geojson(document: Any) -> _Drawn:
    drawn = _Drawn()
    for feature in _features(document):
        properties = _fields(feature.get("properties"))
        kind = str(properties.get("objectType") or properties.get("object_type") or feature.get("id")).lower()
        if kind in _NOT_DRAWN:
            drawn.skipped[kind] += 1
            continue
        for geometry in _geometries(feature.get("geometry")):
            match geometry.get("type"):
                case "Polygon":
                    drawn.add(geometry.get("coordinates"), _class_name(properties))
                case "MultiPolygon":
                    for rings in _listed(geometry.get("coordinates")):
                        drawn.add(rings, _class_name(properties))
                case other:
                    drawn.skipped[str(other)] += 1
    return drawn


def _features(document: Any) -> Iterator[dict[str, Any]]:
    """Features of a collection, a bare list, a single feature or a bare geometry."""
    for part in document if isinstance(document, list) else [document]:
        match _fields(part).get("type"):
            case "FeatureCollection":
                yield from _features(_listed(part.get("features")))
            case "Feature":
                yield part
            case geometry if geometry in _GEOMETRIES:
                yield {"geometry": part}
            case _:
                raise ValueError("JSON of an unknown format")


def _geometries(geometry: Any) -> Iterator[dict[str, Any]]:
    """Take a geometry apart, which may be a collection; none if it is null."""
    parts = _fields(geometry)
    if parts.get("type") == "GeometryCollection":
        for part in _listed(parts.get("geometries")):
            yield from _geometries(part)
    elif parts:
        yield parts


def _listed(value: Any) -> list[Any]:
    """Return a JSON list, empty if it is null or not there."""
    if not isinstance(value, list | None):
        raise ValueError(f"{str(value)[:20]!r} stands where a list should be")
    return value or []


def _fields(value: Any) -> dict[str, Any]:
    """Return a JSON object, empty if it is something else, such as null."""
    return value if isinstance(value, dict) else {}


def _class_name(properties: dict[str, Any]) -> str | None:
    """Name of an object's class, derived ones as QuPath shows them ("Tumor: Positive"), else its own name."""
    classification = properties.get("classification")
    if isinstance(classification, dict):
        names = _listed(classification.get("names"))
        classification = ": ".join(map(str, names)) if names else classification.get("name")
    name = classification or properties.get("name")
    return str(name) if name else None


def _xml_root(data: bytes) -> ElementTree.Element:
    try:
        return parse_xml(data)
    except XmlError as error:
        raise ValueError(f"its XML {error}") from error


def _asap(root: ElementTree.Element) -> _Drawn:
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"XML of an unknown format ({root.tag})")
    drawn, areas = _Drawn(), []
    for annotation in root.findall("Annotations/Annotation"):
        kind = annotation.get("Type", "Polygon")
        if kind in _ASAP_AREAS:
            areas.append(annotation)
        else:
            drawn.skipped[kind] += 1
    groups = {folded(annotation.get("PartOfGroup", "")) for annotation in areas}
    for annotation in areas:
        group = annotation.get("PartOfGroup", "None")
        cut_out = not groups.isdisjoint(_ASAP_CUT_OUTS.get(folded(group), ()))
        drawn.add([_asap_vertices(annotation)], _asap_class(annotation), cut_out=cut_out)
    return drawn


def _asap_class(annotation: ElementTree.Element) -> str | None:
    group = annotation.get("PartOfGroup", "None")
    return annotation.get("Name") or None if group in ("", "None") else group


def _asap_vertices(annotation: ElementTree.Element) -> list[list[float]]:
    coordinates = annotation.findall("Coordinates/Coordinate")
    try:
        coordinates.sort(key=lambda coordinate: float(coordinate.get("Order", 0)))
        return [[float(c.attrib[axis]) for axis in "XY"] for c in coordinates]
    except (KeyError, ValueError) as error:
        name = annotation.get("Name", "")
        raise ValueError(f"annotation {name!r} has a Coordinate whose Order, X or Y is no number") from error
