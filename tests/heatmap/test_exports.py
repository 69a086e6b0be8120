from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.helpers.results import Planted
from wsi_saliency.heatmap.exports import export, is_export, wanted_exports
from wsi_saliency.heatmap.result import RUN_JSON, Result

if TYPE_CHECKING:
    from pathlib import Path

TILES = [((0, 0, 224, 224), (0.7,), (0.1, 0.2))]
MAP = np.random.default_rng(0).random((1, 40, 60))


ALWAYS = {"overlay.groovy", "tiles.geojson.gz"}


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ((("hotspots", 0),), set()),
        ((("hotspots", 3),), {"hotspots.geojson"}),
        ((("exports", ["dicom"]),), {"saliency.dcm"}),
        ((("hotspots", 3), ("exports", ["dicom"])), {"hotspots.geojson", "saliency.dcm"}),
    ],
)
def test_what_the_settings_ask_for_is_made_and_told(
    tmp_path: Path, settings: tuple[tuple[str, Any], ...], more: set[str]
) -> None:
    result = Planted(settings=settings).write(tmp_path, [MAP], TILES)
    before = {path.name for path in tmp_path.iterdir()}
    told = export(result)
    assert set(told) == ALWAYS | more == {path.name for path in tmp_path.iterdir()} - before
    assert all(map(is_export, told))
    assert not any(map(is_export, before))
    json.dumps(told, allow_nan=False)


def test_exports_of_a_growing_result_name_the_place_where_it_will_be(tmp_path: Path) -> None:
    record = Planted().write(tmp_path / "work", [MAP], TILES).record
    (tmp_path / "work" / RUN_JSON).unlink()
    del record["schema"], record["status"]
    growing = Result.growing(tmp_path / "work", record, tmp_path / "final")
    assert set(export(growing)) == {"overlay.groovy", "tiles.geojson.gz"}
    assert growing.home == tmp_path / "final"
    assert not (tmp_path / "work" / RUN_JSON).exists()


def test_equal_results_make_equal_exports(tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        result = Planted(settings=(("hotspots", 2),)).write(tmp_path / "a", [MAP], TILES)
        made.append([(result.folder / name).read_bytes() for name in export(result)])
        for path in sorted(result.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert made[0] == made[1]


def test_exports_that_are_there_stay_unless_others_are_asked_for() -> None:
    nothing: dict[str, Any] = {"hotspots": 0, "exports": []}
    both = {"hotspots": 2, "exports": ["dicom"]}
    assert wanted_exports(nothing, {}) == nothing
    assert (
        wanted_exports(nothing, both) == wanted_exports(both, nothing) == wanted_exports(both, both) == both
    )
    assert wanted_exports({"hotspots": 5, "exports": []}, both) == {"hotspots": 5, "exports": ["dicom"]}
