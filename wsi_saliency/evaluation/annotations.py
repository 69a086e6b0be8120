"""Annotations: what people have drawn on a slide, as polygons in level-0 pixels and as a mask on any lattice.

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
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_saliency.errors import SettingsError
from wsi_saliency.geometry import Placement
from wsi_saliency.untrusted_xml import XmlError, parse_xml

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path
    from xml.etree import ElementTree

    from wsi_saliency.geometry import Size

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

_BEYOND = 0.01  # share of the slide's longer side that outlines may reach beyond it: hands are not steady
_BAND_CELLS = 1 << 22  # cells that are filled at once, which bounds the memory beside the mask

_Floats = NDArray[np.float64]
_Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Polygon:
    """One outlined area.

    Parameters
    ----------
    rings
        (n, 2) float64 x, y in level-0 pixels each, the first the outline, all others holes; the last vertex
        is joined to the first and does not repeat it.
    name
        Its class; None if it has none.
    """

    rings: tuple[_Floats, ...]
    name: str | None = None


@dataclass(frozen=True, eq=False)
class Annotations:
    """The areas of one file.

    Parameters
    ----------
    path
        The file they come from.
    polygons
        What is annotated: their union, less ``cut_outs``.
    cut_outs
        What is not, wherever a polygon covers it.
    """

    path: Path
    polygons: tuple[Polygon, ...]
    cut_outs: tuple[Polygon, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in the file, sorted, those of cut-outs included."""
        return tuple(sorted({p.name for p in (*self.polygons, *self.cut_outs) if p.name is not None}))

    def only(self, classes: Collection[str]) -> Annotations:
        """Keep the areas of some classes, whatever the case of their letters; all if ``classes`` is empty.

        Cut-outs stay cut out, unless their own class is asked for: then they count as areas.

        Raises
        ------
        SettingsError
            If the file has no area of one of the classes.
        """
        if not classes:
            return self
        known, wanted = {_folded(name) for name in self.names}, {_folded(name) for name in classes}
        if unknown := [name for name in classes if _folded(name) not in known]:
            there = ", ".join(map(repr, self.names)) or "no names at all: leave --annotation-class out"
            raise SettingsError(
                f"{self.path}: no area is of --annotation-class {unknown[0]!r}; it has {there}"
            )
        chosen = [_folded(p.name or "") in wanted for p in self.cut_outs]
        return replace(
            self,
            polygons=tuple(p for p in self.polygons if _folded(p.name or "") in wanted)
            + tuple(p for p, yes in zip(self.cut_outs, chosen, strict=True) if yes),
            cut_outs=tuple(p for p, yes in zip(self.cut_outs, chosen, strict=True) if not yes),
        )

    def scaled(self, factor: float) -> Annotations:
        """Multiply all coordinates: ``factor`` is level-0 pixels of the slide per pixel of the annotations.

        Raises
        ------
        SettingsError
            If the factor is not a positive number.
        """
        if not (math.isfinite(factor) and factor > 0):
            raise SettingsError(f"--annotation-scale {factor:g}: has to be a positive number")

        def scale(polygons: tuple[Polygon, ...]) -> tuple[Polygon, ...]:
            return tuple(replace(p, rings=tuple(ring * factor for ring in p.rings)) for p in polygons)

        return replace(self, polygons=scale(self.polygons), cut_outs=scale(self.cut_outs))

    def check_on(self, size: Size) -> None:
        """Check that the annotations can belong to a slide of ``size`` level-0 pixels.

        Outlines may reach beyond the slide by 1 % of its longer side. Annotations that are too small for the
        slide cannot be told from a small area.

        Raises
        ------
        SettingsError
            If they reach further.
        """
        vertices = np.concatenate([p.rings[0] for p in (*self.polygons, *self.cut_outs)])
        (left, top), (right, bottom) = vertices.min(axis=0), vertices.max(axis=0)
        margin = _BEYOND * max(size.w, size.h)
        if min(left, top) < -margin or right > size.w + margin or bottom > size.h + margin:
            raise SettingsError(
                f"{self.path}: its areas span x {left:.0f} to {right:.0f} and y {top:.0f} to {bottom:.0f}, "
                f"the slide has {size.w} × {size.h} px; take the annotations of this slide, or give "
                "--annotation-scale if they were drawn at another resolution"
            )

    def mask(self, width: int, height: int, x0: float, y0: float, fx: float, fy: float) -> _Mask:
        """Find the cells of a lattice whose centres lie in an annotation.

        A polygon is filled by the even-odd rule: what an outline that crosses itself encloses twice is
        outside. Its holes follow the same rule, together. A centre exactly on an edge belongs to the area to
        the right of the edge, or below it, so areas that share an edge never share a cell. Beside the mask,
        memory is bounded by a band of `_BAND_CELLS` cells.

        Parameters
        ----------
        width, height
            Cells of the lattice.
        x0, y0, fx, fy
            Cell (i, j) covers level-0 ``[x0 + i*fx, x0 + (i+1)*fx)``, y likewise, as in `Placement`.

        Returns
        -------
        (height, width) bool.
        """
        xs, ys = Placement(x0, y0, fx, fy).centre(np.arange(width), np.arange(height))
        mask = np.zeros((height, width), np.bool_)
        for polygon in self.polygons:
            _fill(mask, polygon, xs, ys, True)
        for polygon in self.cut_outs:
            _fill(mask, polygon, xs, ys, False)
        return mask


def _folded(name: str) -> str:
    return name.strip().casefold()


def _fill(mask: _Mask, polygon: Polygon, xs: _Floats, ys: _Floats, value: bool) -> None:
    """Set the cells whose centres ``xs`` × ``ys`` lie in the polygon, within its bounding box."""
    outline = polygon.rings[0]
    left, right = np.searchsorted(xs, [outline[:, 0].min(), outline[:, 0].max()]).tolist()
    top, bottom = np.searchsorted(ys, [outline[:, 1].min(), outline[:, 1].max()]).tolist()
    if left == right:
        return
    outer, holes = _edges(polygon.rings[:1]), _edges(polygon.rings[1:])
    step = max(1, _BAND_CELLS // (right - left))
    for first in range(top, bottom, step):
        band = slice(first, min(first + step, bottom))
        inside = _inside(outer, xs[left:right], ys[band])
        if len(holes):
            inside &= ~_inside(holes, xs[left:right], ys[band])
        mask[band, left:right][inside] = value


def _edges(rings: Sequence[_Floats]) -> _Floats:
    """Edges of closed rings, (m, 4) x, y of the upper end and of the lower; level ones are left out.

    Going down whichever way the ring goes, two areas that share an edge find the same crossings on it.
    """
    if not rings:
        return np.zeros((0, 4))
    start, end = np.concatenate(rings), np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    down = (start[:, 1] < end[:, 1])[:, None]
    edges = np.hstack([np.where(down, start, end), np.where(down, end, start)])
    return edges[edges[:, 1] < edges[:, 3]]


def _inside(edges: _Floats, xs: _Floats, ys: _Floats) -> _Mask:
    """Which of the points ``xs`` × ``ys`` have an odd number of edges on their left, (len(ys), len(xs)).

    An edge crosses the rows from its upper end on to before its lower end. Where it crosses one, everything
    from the first point at or beyond the crossing changes sides. The product comes before the quotient, so
    that crossings of whole or binary coordinates that fall on a point are exact.
    """
    first = np.searchsorted(ys, edges[:, 1])
    rows = np.searchsorted(ys, edges[:, 3]) - first
    edge = np.repeat(np.arange(len(edges)), rows)
    row = np.arange(len(edge)) + np.repeat(first - np.cumsum(rows) + rows, rows)
    x, y, lower_x, lower_y = edges[edge].T
    column = np.searchsorted(xs, x + (ys[row] - y) * (lower_x - x) / (lower_y - y))
    crossed = np.zeros((len(ys), len(xs) + 1), np.uint8)  # overflow at 256 keeps a count odd or even
    np.add.at(crossed.reshape(-1), row * (len(xs) + 1) + column, np.uint8(1))
    np.add.accumulate(crossed, axis=1, out=crossed)
    return np.asarray(crossed[:, :-1] & 1, np.bool_)


def annotations_for(slide: Path, where: Path) -> Path:
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

    def add(self, rings: Any, name: str | None, cut_out: bool = False) -> None:
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
    groups = {_folded(annotation.get("PartOfGroup", "")) for annotation in areas}
    for annotation in areas:
        group = annotation.get("PartOfGroup", "None")
        cut_out = not groups.isdisjoint(_ASAP_CUT_OUTS.get(_folded(group), ()))
        drawn.add([_asap_vertices(annotation)], _asap_class(annotation), cut_out)
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
