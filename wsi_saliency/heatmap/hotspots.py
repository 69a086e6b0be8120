"""The strongest regions of a map, outlined, as annotations for QuPath."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from contourpy import FillType, contour_generator
from scipy import ndimage

from wsi_saliency.heatmap.geojson import corner, unique_ids, write_features
from wsi_saliency.heatmap.pyramid import STATISTICS_CELLS
from wsi_saliency.messages import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from wsi_saliency.geometry import Placement
    from wsi_saliency.heatmap.ome_zarr import Heatmap
    from wsi_saliency.heatmap.result import MapRecord, Result

log = logging.getLogger(__name__)

HOTSPOTS = "hotspots.geojson"
PERCENTILE = 99.0
"""Regions hold what is above this percentile of the slide's computed cells."""

SMOOTHING = 2.0
"""Standard deviation in cells: single cells make no region, outlines become round."""

MOST_CELLS = 4 * STATISTICS_CELLS
"""Regions are looked for in the finest level that is not larger, so that memory stays bounded."""

_CLASS = {"name": "Saliency hotspot", "color": [0, 200, 90]}  # a green that no map has


@dataclass(frozen=True)
class Hotspot:
    """A region that a map is strong in.

    Parameters
    ----------
    polygons
        Its parts, each an outer ring and then its holes: (n, 2) level-0 x and y, first and last alike.
    area
        Level-0 pixels.
    mean, highest
        Saliency of its cells.
    """

    polygons: tuple[tuple[NDArray[np.float64], ...], ...]
    area: float
    mean: float
    highest: float


def write_hotspots(result: Result) -> dict[str, Any] | None:
    """Write ``hotspots.geojson`` if the settings ask for hotspots: of each map, of its first target.

    Returns
    -------
    How many regions there are; None if none were asked for.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    count = result.record["settings"].get("hotspots", 0)
    if not count:
        return None
    target = result.record["targets"][0]
    if not target["positive"]:
        log.warning(
            "%s: no patch is predicted as %s; hotspots are where the map is strongest all the same",
            printable(result.record["slide"]["name"]),
            printable(target["name"]),
        )
    return {"hotspots": write_features(result.folder / HOTSPOTS, hotspot_features(result, count))}


def hotspot_features(result: Result, count: int) -> Iterator[dict[str, Any]]:
    """Yield the annotations of the ``count`` strongest regions of each map, strongest first."""
    mpp, unique, several = result.record["slide"]["mpp"], unique_ids(result), len(result.maps) > 1
    for found in result.maps:
        regions = find_hotspots(result.heatmap(found.spec), found, count)
        for rank, region in enumerate(regions, 1):
            name = f"Hotspot {rank} ({found.spec.name})" if several else f"Hotspot {rank}"
            yield {
                "type": "Feature",
                "id": unique("hotspot", found.spec.name, rank),
                "geometry": _geometry(region, *corner(result)),
                "properties": {
                    "objectType": "annotation",
                    "name": name,
                    "classification": _CLASS,
                    "measurements": {
                        "Rank": rank,
                        "Area µm^2": region.area * mpp["x"] * mpp["y"],
                        "Saliency mean": region.mean,
                        "Saliency max": region.highest,
                    },
                    "isLocked": True,
                },
            }


def find_hotspots(heatmap: Heatmap, found: MapRecord, count: int) -> list[Hotspot]:
    """Outline the strongest regions of a map's first target.

    The map is smoothed a little; regions are where it is above a percentile of the computed cells, and
    positive: of signed maps, only evidence for the target counts. A region's strength is the highest smoothed
    value in it.
    """
    level = next(
        (k for k, size in enumerate(heatmap.level_sizes) if size.w * size.h <= MOST_CELLS),
        len(heatmap.levels) - 1,
    )
    values = heatmap.read(level)
    if not found.signed:
        values = np.abs(values)
    smooth = ndimage.gaussian_filter(values, SMOOTHING, mode="constant")
    computed = smooth[values != 0]
    threshold = float(np.percentile(computed, PERCENTILE)) if computed.size else 0.0
    if threshold <= 0:
        return []
    return _strongest(values, smooth, threshold, count, found.placement.at_level(level))


def _strongest(
    values: NDArray[np.float32],
    smooth: NDArray[np.float32],
    threshold: float,
    count: int,
    placement: Placement,
) -> list[Hotspot]:
    """Outline the ``count`` regions with the highest smoothed values that lie above a threshold."""
    labels, _ = ndimage.label(smooth > threshold, np.ones((3, 3)))
    boxes: Sequence[tuple[slice, slice]] = ndimage.find_objects(labels)
    peaks = ndimage.maximum(smooth, labels, np.arange(1, len(boxes) + 1))
    order = np.argsort(-np.asarray(peaks), kind="stable")[:count]
    return [
        _outlined(values, smooth, labels, int(number) + 1, boxes[number], threshold, placement)
        for number in order
    ]


def _outlined(
    values: NDArray[np.float32],
    smooth: NDArray[np.float32],
    labels: NDArray[np.int32],
    label: int,
    box: tuple[slice, slice],
    threshold: float,
    placement: Placement,
) -> Hotspot:
    """Outline one labelled region: linear between the middles of cells, 0 outside of the map."""
    # A cell more on each side holds the outline; regions touch no other one, not even at a corner.
    rows, columns = (slice(max(0, side.start - 1), side.stop + 1) for side in box)
    own, near = labels[rows, columns] == label, smooth[rows, columns]
    # Other regions in the box are flattened; their cells are no neighbours, so the outline stays as it is.
    near = np.where(own | (near <= threshold), near, 0)
    top, left = (int(before.start == side.start) for before, side in zip((rows, columns), box, strict=True))
    near = np.pad(near, ((top, 1), (left, 1)))
    polygons = [
        tuple(_on_slide(ring, columns.start - left, rows.start - top, placement) for ring in rings)
        for rings in _rings(near, threshold)
    ]
    inside = values[rows, columns][own].astype(np.float64)
    area = sum(_area(outer) - sum(map(_area, holes)) for outer, *holes in polygons)
    return Hotspot(tuple(polygons), area, float(inside.mean()), float(inside.max()))


def _rings(cells: NDArray[np.float32], threshold: float) -> Iterator[list[NDArray[np.float64]]]:
    """Yield of each polygon above a threshold its outer ring, then those of its holes, in cells."""
    above_all = 2 * float(cells.max())
    filled = contour_generator(z=cells, fill_type=FillType.OuterOffset).filled(threshold, above_all)
    for points, offsets in zip(*filled, strict=True):
        assert points is not None
        assert offsets is not None
        yield [points[start:stop] for start, stop in pairwise(offsets)]


def _on_slide(
    ring: NDArray[np.float64], first_x: int, first_y: int, placement: Placement
) -> NDArray[np.float64]:
    """Move a ring (n, 2), between the middles of cells, to level-0 pixels."""
    return np.stack(placement.centre(ring[:, 0] + first_x, ring[:, 1] + first_y), axis=1)


def _area(ring: NDArray[np.float64]) -> float:
    """Return the area of a ring (the shoelace formula)."""
    x, y = (ring - ring[0]).T
    return float(abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2)


def _geometry(region: Hotspot, left: int, top: int) -> dict[str, Any]:
    """Return a region in pixels of the picture whose corner is at ``left``, ``top``, to a hundredth."""
    parts = [[np.round(ring - (left, top), 2).tolist() for ring in polygon] for polygon in region.polygons]
    if len(parts) == 1:
        return {"type": "Polygon", "coordinates": parts[0]}
    return {"type": "MultiPolygon", "coordinates": parts}
