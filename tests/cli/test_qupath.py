from __future__ import annotations

import gzip
import json

import pytest

from tests.helpers.commands import left, only_line
from tests.helpers.qupath import Scene, needs_groovy, play, stand_in
from wsi_saliency.geometry import Size
from wsi_saliency.heatmap.result import Result

RUN = (
    "run",
    "slide.svs",
    "-o",
    "maps",
    "--model",
    "spots",
    "--device",
    "cpu",
    "--layer",
    "8",
    "--method",
    "none",
)


@pytest.fixture
def result(call, slide, tmp_path):
    done = call(*RUN, "--hotspots", "2", "--tissue-threshold", "0")
    assert done.exit_code == 0, done.output
    result = Result.read(tmp_path / "maps" / "slide")
    assert result is not None
    return result


@pytest.mark.usefixtures("spots")
def test_a_run_leaves_what_qupath_reads(result):
    assert set(result.record["exports"]) == {"overlay.groovy", "tiles.geojson.gz", "hotspots.geojson"}
    assert all((result.folder / name).is_file() for name in result.record["exports"])
    with gzip.open(result.folder / "tiles.geojson.gz") as file:
        tiles = json.load(file)["features"]
    assert len(tiles) == len(result.tiles()) == result.record["exports"]["tiles.geojson.gz"]["tiles"] > 0
    for feature, row in zip(tiles, result.tiles(), strict=True):
        assert feature["geometry"]["coordinates"][0][0] == [int(row["x"]), int(row["y"])]
        assert all(float(row[k]) == v for k, v in feature["properties"]["measurements"].items())
    hotspots = json.loads((result.folder / "hotspots.geojson").read_text(encoding="utf-8"))["features"]
    assert len(hotspots) == result.record["exports"]["hotspots.geojson"]["hotspots"]


@pytest.mark.usefixtures("spots", "result")
def test_other_hotspots_of_a_finished_slide_are_made_and_named(call):
    line = call(*RUN, "--hotspots", "1", "--tissue-threshold", "0").stdout
    assert line.startswith(
        "slide.svs: kept the maps in maps/slide (stage3.none.deeplift); made overlay.groovy, "
    )
    assert line.endswith("hotspots.geojson\n")
    assert ": kept " in call(*RUN, "--tissue-threshold", "0").stdout


@needs_groovy
@pytest.mark.usefixtures("spots")
def test_the_script_of_a_run_finds_its_map_where_the_result_was_put(result, slide, tmp_path):
    stand_in(result)
    size = Size(**result.record["slide"]["size"])
    (played,) = play(tmp_path, [Scene(result.folder / "overlay.groovy", size, uri=slide.as_uri())])
    assert played.named("buildServer")[0]["uri"].endswith("/maps/slide/saliency.ome.tif")
    assert played.overlay


@pytest.mark.usefixtures("spots")
def test_results_are_put_into_a_project(call, result, tmp_path):
    done = call("qupath", "maps", "-p", "project")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == "project: 1 slide"
    assert "project/open-all.groovy" in done.stdout
    assert left(tmp_path / "project") == ["open-all.groovy", "scripts/overlay.groovy", "wsi-saliency.json"]


def test_a_folder_without_a_result_is_named(call, tmp_path):
    (tmp_path / "maps").mkdir()
    line = only_line(call("qupath", "maps", "-p", "project"))
    assert line == "maps: holds no complete result; make one with wsi-saliency run"
    assert left(tmp_path) == []
    assert call("qupath", "maps").exit_code == 2
    assert call("qupath", "-p", "project").exit_code == 2


def test_a_project_is_a_folder_and_no_url(call, tmp_path):
    refused = call("qupath", "maps", "-p", "s3://bucket/project")
    assert refused.exit_code == 2
    assert "'s3://bucket/project' is a URL" in refused.stderr
    assert left(tmp_path) == []


@pytest.mark.usefixtures("spots")
def test_a_project_that_cannot_be_made_is_refused_with_its_own_option(call, result, tmp_path):
    (tmp_path / "file").write_text("here")
    for place in ("file", "file/project"):
        assert only_line(call("qupath", "maps", "-p", place)).endswith("; choose another folder with -p")
