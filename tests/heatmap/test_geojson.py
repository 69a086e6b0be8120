from __future__ import annotations

import gzip
import json
import logging
import tracemalloc
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import pytest

from tests.helpers.results import SPECS, Planted
from wsi_saliency.errors import OutputError
from wsi_saliency.geometry import Region
from wsi_saliency.heatmap.geojson import TILES_GEOJSON, feature_collection, write_tiles

if TYPE_CHECKING:
    from pathlib import Path

MAP = np.ones((1, 10, 15), np.float32)
BOXES = [(0, 0, 224, 224), (112, 0, 224, 224), (1100, 700, 224, 224)]
TILES = [(box, (p,), (s / 2, s)) for box, p, s in zip(BOXES, (0.9, 0.2, 0.5), (0.3, -0.1, 0.7), strict=True)]


def features(folder: Path) -> list[dict[str, Any]]:
    with gzip.open(folder / TILES_GEOJSON) as file:
        collection = json.load(file)
    assert collection.keys() == {"type", "features"}
    assert collection["type"] == "FeatureCollection"
    return list(collection["features"])


def box_of(feature: dict[str, Any]) -> tuple[float, ...]:
    """Corner and size of a feature that is a closed rectangle."""
    assert feature["geometry"]["type"] == "Polygon"
    (ring,) = np.array(feature["geometry"]["coordinates"])
    assert ring.shape == (5, 2)
    assert (ring[0] == ring[4]).all()
    x, y = ring[:4].T
    # The shoelace formula: only a rectangle whose corners are in order has this area.
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area == np.ptp(x) * np.ptp(y)
    return x.min(), y.min(), np.ptp(x), np.ptp(y)


def test_each_patch_is_a_locked_tile_with_its_measurements(tmp_path: Path) -> None:
    told = write_tiles(Planted().write(tmp_path, [MAP], TILES))
    assert told == {"tiles": 3, "left_out": 0}
    for feature, (box, (p,), (mean, most)) in zip(features(tmp_path), TILES, strict=True):
        assert feature["type"] == "Feature"
        assert box_of(feature) == box
        properties = feature["properties"]
        assert properties["objectType"] == "tile"
        assert properties["isLocked"] is True
        assert properties["measurements"] == {
            "probability_tumour": p,
            "saliency_mean": mean,
            "saliency_max": most,
        }


def test_nothing_in_the_file_stops_qupath_from_reading_all_of_it(tmp_path: Path) -> None:
    what = Planted(classes=("", "tum\x00our"), targets=("tum\x00our",), output="softmax")
    write_tiles(what.write(tmp_path, [MAP], [(BOXES[0], p, (1, 2)) for p in ((0.7, 0.3), (0.3, 0.7))]))
    for feature in features(tmp_path):
        found = feature["properties"]["classification"]
        assert found["name"]
        assert len(found["color"]) == 3
        assert all(0 <= channel <= 255 for channel in found["color"])
        assert "\x00" not in json.dumps(feature).encode().decode("unicode_escape")


def test_the_class_is_the_predicted_one(tmp_path: Path) -> None:
    write_tiles(Planted().write(tmp_path / "one", [MAP], TILES))
    found = [feature["properties"].get("classification") for feature in features(tmp_path / "one")]
    assert found == [{"name": "tumour", "color": [200, 0, 0]}, None, None]
    what = Planted(classes=("stroma", "tumour", "fat"), targets=("tumour",), output="softmax")
    tiles = [(BOXES[0], p, (1, 2)) for p in ((0.4, 0.3, 0.3), (0.2, 0.45, 0.35), (0.1, 0.2, 0.7))]
    write_tiles(what.write(tmp_path / "three", [MAP], tiles))
    names = [feature["properties"]["classification"]["name"] for feature in features(tmp_path / "three")]
    assert names == ["stroma", "tumour", "fat"]
    colours = {
        tuple(feature["properties"]["classification"]["color"]) for feature in features(tmp_path / "three")
    }
    assert len(colours) == 3


def test_every_map_and_target_has_its_measurements(tmp_path: Path) -> None:
    what = Planted(classes=("a", "b"), targets=("a", "b"), output="softmax")
    saliency = tuple(float(k) for k in range(8))
    write_tiles(
        what.write(tmp_path, [np.ones((2, 10, 15), np.float32)] * 2, [(BOXES[0], (0.4, 0.6), saliency)])
    )
    (feature,) = features(tmp_path)
    names = [
        f"saliency_{kind}.{spec.name}.{target}"
        for spec in SPECS
        for target in "ab"
        for kind in ("mean", "max")
    ]
    expected = {"probability_a": 0.4, "probability_b": 0.6, **dict(zip(names, saliency, strict=True))}
    assert feature["properties"]["measurements"] == expected


def test_boxes_lie_where_qupath_shows_a_cropped_slide(tmp_path: Path) -> None:
    write_tiles(Planted(bounds=Region(100, 30, 900, 600)).write(tmp_path, [MAP], TILES))
    assert [box_of(feature) for feature in features(tmp_path)] == [
        (x - 100, y - 30, w, h) for x, y, w, h in BOXES
    ]


def test_ids_are_stable_and_of_the_slide_map_and_place(tmp_path: Path) -> None:
    def ids(folder: str, maps: int = 1, **what: Any) -> list[str]:
        tiles = [(box, p, s * maps) for box, p, s in TILES]
        write_tiles(Planted(**what).write(tmp_path / folder, [MAP] * maps, tiles))
        return [feature["id"] for feature in features(tmp_path / folder)]

    first = ids("first")
    assert len({*map(UUID, first)}) == 3
    assert {UUID(one).version for one in first} == {5}
    assert ids("again", bounds=Region(5, 5, 900, 600)) == first  # the slide's pixels, wherever they are shown
    assert ids("another map more", maps=2) == first
    assert not {*ids("other", name="other.svs")} & {*first}
    assert ids("undecodable", name="\udcff.svs")


def test_of_too_many_the_strongest_are_kept_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    strengths = rng.permutation(np.repeat(np.arange(20), 2) - 5).tolist()
    tiles = [((k, 0, 8, 8), (0.5,), (0, s)) for k, s in enumerate(strengths)]
    result = Planted(name="big\x1b.svs").write(tmp_path, [MAP], tiles)
    with caplog.at_level(logging.WARNING):
        assert write_tiles(result, most=13) == {"tiles": 13, "left_out": 27}
    order = sorted(range(40), key=lambda k: (-strengths[k], k))[:13]
    assert [box_of(feature)[0] for feature in features(tmp_path)] == sorted(order)
    assert "13 strongest of 40" in caplog.text
    assert "\x1b" not in caplog.text
    caplog.clear()
    assert write_tiles(result, most=40) == {"tiles": 40, "left_out": 0}
    assert not caplog.records


def test_memory_does_not_grow_with_the_number_of_patches(tmp_path: Path) -> None:
    peaks = []
    for count in (300, 6000):
        tiles = [((k, 0, 8, 8), (0.5,), (0, 1)) for k in range(count)]
        result = Planted().write(tmp_path / str(count), [MAP], tiles)
        assert result.maps  # read before
        tracemalloc.start()
        write_tiles(result, most=200)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(features(result.folder)) == 200
    assert peaks[1] < peaks[0] + 100_000


def test_equal_results_make_equal_files(tmp_path: Path) -> None:
    for name in "ab":
        write_tiles(Planted().write(tmp_path / name, [MAP], TILES))
    assert (tmp_path / "a" / TILES_GEOJSON).read_bytes() == (tmp_path / "b" / TILES_GEOJSON).read_bytes()


def test_a_slide_without_patches_has_an_empty_collection(tmp_path: Path) -> None:
    assert write_tiles(Planted().write(tmp_path, [MAP])) == {"tiles": 0, "left_out": 0}
    assert features(tmp_path) == []


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"nowhere/a\.geojson: cannot be written"):  # noqa: SIM117
        with feature_collection(tmp_path / "nowhere" / "a.geojson"):
            pass
