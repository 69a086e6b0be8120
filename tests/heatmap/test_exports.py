from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.helpers.results import Planted
from wsi_saliency.heatmap.exports import EXPORTS, export
from wsi_saliency.heatmap.result import RUN_JSON, Result

if TYPE_CHECKING:
    from pathlib import Path

TILES = [((0, 0, 224, 224), (0.7,), (0.1, 0.2))]
MAP = np.random.default_rng(0).random((1, 40, 60))


@pytest.mark.parametrize("hotspots", [0, 3])
def test_what_the_settings_ask_for_is_made_and_told(tmp_path: Path, hotspots: int) -> None:
    result = Planted(settings=(("hotspots", hotspots),)).write(tmp_path, [MAP], TILES)
    before = {path.name for path in tmp_path.iterdir()}
    told = export(result)
    wanted = set(EXPORTS) if hotspots else set(EXPORTS) - {"hotspots.geojson"}
    assert set(told) == wanted == {path.name for path in tmp_path.iterdir()} - before
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
        export(result)
        made.append([(result.folder / name).read_bytes() for name in EXPORTS])
        for path in sorted(result.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert made[0] == made[1]
