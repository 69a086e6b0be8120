from __future__ import annotations

import json
import logging
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from tests.helpers.results import Planted
from wsi_saliency.geometry import Mpp, Placement, Region, Size
from wsi_saliency.heatmap import hotspots
from wsi_saliency.heatmap.hotspots import HOTSPOTS, find_hotspots, write_hotspots

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.heatmap.result import Result

W, H = 400, 300
PLACE = Placement(-3.5, 7.25, 8.0, 7.5)
WIDTH = 9.0  # of a blob, its standard deviation in cells
GROUND = 1e-6  # computed, and weak


def wanting(count: int, **what: Any) -> Planted:
    settings = (("hotspots", count),)
    return Planted(size=Size(4000, 3000), placement=PLACE, settings=settings, **what)


def bump(x: float, y: float, height: float, width: float = WIDTH) -> np.ndarray:
    """A Gaussian bump, (H, W)."""
    rows, columns = np.mgrid[:H, :W]
    return height * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2))


def ring(x: float, y: float, radius: float, height: float, width: float) -> np.ndarray:
    rows, columns = np.mgrid[:H, :W]
    return height * np.exp(-((np.hypot(columns - x, rows - y) - radius) ** 2) / (2 * width**2))


def written(result: Result) -> list[dict[str, Any]]:
    write_hotspots(result)
    return list(json.loads((result.folder / HOTSPOTS).read_text(encoding="utf-8"))["features"])


def area_of(geometry: dict[str, Any]) -> float:
    """Area of a geometry, by the shoelace formula written out."""
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    total = 0.0
    for polygon in polygons:
        for number, points in enumerate(polygon):
            assert points[0] == points[-1]
            twice = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(points))
            total += abs(twice) / 2 * (1 if number == 0 else -1)
    return total


def test_blobs_are_outlined_in_the_order_of_their_strength(tmp_path: Path) -> None:
    places = [(60, 60, 1.0), (200, 150, 3.0), (330, 240, 2.0)]
    cells = sum(bump(*place) for place in places) + GROUND
    found = written(wanting(5, mpp=Mpp(0.5, 0.25)).write(tmp_path, [cells[None]]))
    assert [f["properties"]["name"] for f in found] == ["Hotspot 1", "Hotspot 2", "Hotspot 3"]
    assert [f["properties"]["measurements"]["Rank"] for f in found] == [1, 2, 3]
    smooth = WIDTH**2 + hotspots.SMOOTHING**2  # a bump smoothed is a wider, lower bump
    threshold = np.percentile(smoothed(cells), 99)
    for feature, (x, y, height) in zip(found, sorted(places, key=lambda p: -p[2]), strict=True):
        peak = height * WIDTH**2 / smooth
        area = 2 * math.pi * smooth * math.log(peak / threshold) * 8 * 7.5
        measured = feature["properties"]["measurements"]
        assert area_of(feature["geometry"]) == pytest.approx(area, rel=0.02)
        assert measured["Area µm^2"] == pytest.approx(area * 0.5 * 0.25, rel=0.02)
        middle = np.mean(feature["geometry"]["coordinates"][0][:-1], axis=0)
        assert middle == pytest.approx(PLACE.centre(x, y), abs=4)  # half a cell
        assert measured["Saliency max"] == pytest.approx(height, rel=1e-3)
        assert threshold < measured["Saliency mean"] < height
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["isLocked"] is True
        assert feature["properties"]["classification"]["name"] == "Saliency hotspot"
        assert len(feature["properties"]["classification"]["color"]) == 3


def test_no_more_than_asked_for(tmp_path: Path) -> None:
    cells = bump(60, 60, 1) + bump(200, 150, 3) + bump(330, 240, 2) + GROUND
    (first,) = written(wanting(1).write(tmp_path, [cells[None]]))
    assert first["properties"]["measurements"]["Saliency max"] == pytest.approx(3, rel=1e-3)


def test_a_ring_keeps_its_hole_and_what_is_in_the_hole_is_a_region_of_its_own(tmp_path: Path) -> None:
    cells = ring(200, 150, 60, 2, 2.0) + bump(200, 150, 1.7, 4) + GROUND
    outer, inner = written(wanting(5).write(tmp_path, [cells[None]]))
    assert outer["geometry"]["type"] == inner["geometry"]["type"] == "Polygon"
    assert [len(f["geometry"]["coordinates"]) for f in (outer, inner)] == [2, 1]
    threshold = np.percentile(smoothed(cells), 99)
    expected = np.count_nonzero(smoothed(cells) > threshold) * 8 * 7.5
    assert area_of(outer["geometry"]) + area_of(inner["geometry"]) == pytest.approx(expected, rel=0.02)
    hole = Outline(outer["geometry"]["coordinates"][1])
    assert hole.contains_points(inner["geometry"]["coordinates"][0]).all()
    assert hole.contains_point(PLACE.centre(200, 150))


def smoothed(cells: np.ndarray) -> np.ndarray:
    """Smooth by the definition: a sum over shifts, weighted by a Gaussian."""
    reach = int(4 * hotspots.SMOOTHING)
    shifts = np.arange(-reach, reach + 1)
    weights = np.exp(-(shifts**2) / (2 * hotspots.SMOOTHING**2))
    weights /= weights.sum()
    padded = np.pad(cells, reach)
    for axis in (0, 1):
        padded = sum(w * np.roll(padded, k, axis) for k, w in zip(shifts, weights, strict=True))
    return np.asarray(padded[reach:-reach, reach:-reach])


def test_cells_above_the_threshold_lie_inside_and_no_others(tmp_path: Path) -> None:
    cells = np.abs(smoothed(np.random.default_rng(3).normal(0, 1, (H, W)))).astype(np.float32)
    result = wanting(10_000).write(tmp_path, [cells[None]])
    smooth = smoothed(cells)
    above = smooth > np.percentile(smooth, 99)
    rows, columns = np.mgrid[:H, :W]
    centres = np.stack(PLACE.centre(columns.ravel(), rows.ravel()), axis=1)
    inside = np.zeros(H * W, int)
    for region in find_hotspots(result.heatmap(), result.maps[0], 10_000):
        for polygon in region.polygons:
            for number, points in enumerate(polygon):
                inside += Outline(points).contains_points(centres) * (1 if number == 0 else -1)
    assert (inside.reshape(H, W) == above).mean() > 0.9999  # cells on the outline itself


def test_a_region_at_the_edge_of_the_map_is_closed(tmp_path: Path) -> None:
    cells = bump(0, 0, 2) + bump(W - 1, H - 1, 1) + GROUND
    first, second = written(wanting(5).write(tmp_path, [cells[None]]))
    for feature, (x, y) in ((first, (0, 0)), (second, (W - 1, H - 1))):
        (points,) = feature["geometry"]["coordinates"]
        assert Outline(points).contains_point(PLACE.centre(x, y))
        assert np.abs(np.min(points, axis=0) - PLACE.centre(0, 0)).min() < 8 or x


def test_only_evidence_for_the_target_counts(tmp_path: Path) -> None:
    cells = bump(60, 60, -5) + bump(200, 150, 1) - GROUND
    (only,) = written(wanting(5).write(tmp_path / "signed", [cells[None]]))
    middle = np.mean(only["geometry"]["coordinates"][0], axis=0)
    assert middle == pytest.approx(PLACE.centre(200, 150), abs=8)
    assert written(wanting(5).write(tmp_path / "against", [-np.abs(cells[None])])) == []
    both = written(wanting(5, signed=False).write(tmp_path / "magnitude", [cells[None]]))
    assert both[0]["properties"]["measurements"]["Saliency max"] == pytest.approx(5, rel=1e-3)


def test_positions_are_those_of_the_slide_as_qupath_shows_it(tmp_path: Path) -> None:
    cells = (bump(200, 150, 1) + GROUND)[None]
    (whole,) = written(wanting(1).write(tmp_path / "a", [cells]))
    (cropped,) = written(wanting(1, bounds=Region(100, 30, 3000, 2000)).write(tmp_path / "b", [cells]))
    moved = np.array(whole["geometry"]["coordinates"][0]) - np.array(cropped["geometry"]["coordinates"][0])
    np.testing.assert_allclose(moved, np.broadcast_to((100, 30), moved.shape), atol=0.011)


def test_a_large_map_is_looked_through_at_a_coarser_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = wanting(1).write(tmp_path, [(bump(200, 150, 1, 25) + GROUND)[None]])
    (fine,) = written(result)
    monkeypatch.setattr(hotspots, "MOST_CELLS", W * H // 2)
    (coarse,) = written(result)
    middles = [np.mean(f["geometry"]["coordinates"][0], axis=0) for f in (fine, coarse)]
    assert middles[0] == pytest.approx(middles[1], abs=8)
    assert area_of(coarse["geometry"]) == pytest.approx(area_of(fine["geometry"]), rel=0.05)
    assert len(coarse["geometry"]["coordinates"][0]) < len(fine["geometry"]["coordinates"][0])


def test_each_map_has_its_own_named_after_it(tmp_path: Path) -> None:
    maps = [(bump(60, 60, 1) + GROUND)[None], (bump(300, 200, 1) + GROUND)[None]]
    result = wanting(2).write(tmp_path, maps)
    found = written(result)
    names = [f"Hotspot 1 ({m.spec.name})" for m in result.maps]
    assert [f["properties"]["name"] for f in found] == names
    assert len({f["id"] for f in found}) == 2


@pytest.mark.parametrize("settings", [(("hotspots", 0),), ()])
def test_nothing_is_written_unless_asked_for(tmp_path: Path, settings: tuple[tuple[str, Any], ...]) -> None:
    result = Planted(settings=settings).write(tmp_path, [np.ones((1, 9, 9), np.float32)])
    assert write_hotspots(result) is None
    assert not (tmp_path / HOTSPOTS).exists()


def test_an_empty_map_has_none_and_a_negative_slide_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = wanting(2).write(tmp_path, [np.zeros((1, 9, 9), np.float32)])
    result.record["targets"][0]["positive"] = 0
    with caplog.at_level(logging.WARNING):
        assert write_hotspots(result) == {"hotspots": 0}
    assert "no patch is predicted as tumour" in caplog.text
