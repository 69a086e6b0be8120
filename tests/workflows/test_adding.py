"""Maps added to a result that is there: only they are made, and what was there stays as it was."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.runs import (
    OUTPUTS,
    REMADE,
    SETTINGS,
    assert_same_values,
    explained,
    explainer_for,
    is_left,
    rows_of,
    strict_json,
    without_pictures,
)
from tests.helpers.slides import pyramid, section, write_svs
from wsi_saliency.errors import OutputError, SettingsError
from wsi_saliency.heatmap import dicom
from wsi_saliency.heatmap.exports import EXPORTS
from wsi_saliency.heatmap.result import Result
from wsi_saliency.mapspec import MapSpec
from wsi_saliency.saliency.network import Network
from wsi_saliency.workflows import explain as pipeline
from wsi_saliency.workflows.explain import explain_slide

KIND = "gradient-x-activation"  # of other values for each target
FIRST = replace(SETTINGS, layers=("16",), attributions=(KIND,), targets=("normal", "tumour"))
FINER = replace(FIRST, layers=("8",))
COARSE, FINE = (MapSpec(layer, "none", KIND) for layer in ("stage4", "stage3"))


@pytest.fixture(autouse=True)
def _quick_overview(monkeypatch):
    without_pictures(monkeypatch)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    levels = pyramid(section(320, 256, (64, 64, 160, 128)), (1, 2))
    return write_svs(tmp_path_factory.mktemp("slides") / "section.svs", levels)


@pytest.fixture
def made(monkeypatch):
    """The maps that networks have made, in order, each once."""
    specs = {}
    explain = Network.explain

    def noting(self, images, targets, take, maps=None):
        specs.update(dict.fromkeys(self.maps if maps is None else maps))
        return explain(self, images, targets, take, maps)

    monkeypatch.setattr(Network, "explain", noting)
    return specs


def everything_in(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -------------------------------------------------------------------------------------------- adding


def test_only_the_map_that_is_missing_is_made(slide, tmp_path, made):
    explained(slide, tmp_path / "out", FIRST)
    made.clear()
    result = explained(slide, tmp_path / "out", replace(FIRST, layers=("8", "16")))
    assert list(made) == [FINE]
    assert (result.kept, result.differences, result.added) == (False, (), (FINE,))
    assert [found.spec for found in result.maps] == [COARSE, FINE]
    assert is_left(result.folder) == ["out"]


def test_a_result_with_an_added_map_is_that_of_one_run(slide, tmp_path):
    explained(slide, tmp_path / "out", FIRST)
    added = explained(slide, tmp_path / "out", FINER)
    whole = explained(slide, tmp_path / "whole", replace(FIRST, layers=("16", "8")))
    assert_same_values(added.folder, whole.folder)
    for key in ("maps", "targets", "grid", "patches", "model", "slide", "settings"):
        assert added.record[key] == whole.record[key], key


def test_the_older_files_are_the_same_under_their_new_names(slide, tmp_path):
    before = explained(slide, tmp_path / "out", FIRST)
    files, rows = everything_in(before.folder), rows_of(before.folder)
    after = explained(slide, tmp_path / "out", FINER)
    names = after.files(COARSE)
    now = everything_in(after.folder)
    for path, content in files.items():
        if path.parts[0] in OUTPUTS - REMADE | {"overview.png"}:
            new = re.sub(r"^(saliency|overview)", rf"\1.{COARSE.name}", str(path))
            assert now.pop(type(path)(new)) == content
    left = {path.parts[0] for path in now}
    assert left == {*vars(after.files(FINE)).values(), *REMADE}
    assert names.ome_zarr == f"saliency.{COARSE.name}.ome.zarr"
    assert (after.maps[0], names.overview) == (before.maps[0], f"overview.{COARSE.name}.png")
    for row, joined in zip(rows, rows_of(after.folder), strict=True):
        assert list(row) == list(joined)[: len(row)]
        assert {name: joined[name] for name in row} == row
        assert len(joined) == len(row) + 4


def test_the_columns_of_a_single_map_and_target_get_its_name(slide, tmp_path):
    one = replace(FIRST, targets=("tumour",))
    before = rows_of(explained(slide, tmp_path / "out", one).folder)
    after = rows_of(explained(slide, tmp_path / "out", replace(one, layers=("8",))).folder)
    for what in ("saliency_mean", "saliency_max"):
        assert [row[what] for row in before] == [row[f"{what}.{COARSE.name}.tumour"] for row in after]
        assert what not in after[0]


def test_maps_are_added_again_and_again(slide, tmp_path, made):
    changes = ({}, {"layers": ("8",)}, {"methods": ("centred-hook",)}, {"attributions": ("deeplift",)})
    for change in changes:
        made.clear()
        result = explained(slide, tmp_path / "out", replace(FIRST, **change))
        assert len(made) == 1
    assert [found.spec for found in result.maps] == [
        COARSE,
        FINE,
        replace(COARSE, method="centred-hook"),
        replace(COARSE, attribution="deeplift"),
    ]
    names = [name for found in result.maps for name in vars(result.files(found.spec)).values()]
    assert {path.name for path in result.folder.iterdir()} == {*names, *REMADE}
    settings = strict_json(result.folder / "run.json")["settings"]
    assert settings["methods"] == ["none", "centred-hook"]
    assert settings["attributions"] == [KIND, "deeplift"]


@pytest.mark.parametrize("targets", [("tumour",), ("tumour", "normal"), ("1",), (" TUMOUR ", "0")])
def test_an_added_map_has_all_targets_of_the_result(slide, tmp_path, targets):
    explained(slide, tmp_path / "out", FIRST)
    wanted = replace(FINER, targets=tuple(target.strip().lower() for target in targets))
    settings = replace(wanted, targets=targets)
    added = explain_slide(slide, tmp_path / "out", settings, explainer=explainer_for(wanted))
    assert added.added == (FINE,)
    whole = explained(slide, tmp_path / "whole", replace(FIRST, layers=("16", "8")))
    assert_same_values(added.folder, whole.folder)
    assert added.targets == ("normal", "tumour")


# ------------------------------------------------------------------------------------------- keeping


@pytest.mark.parametrize(
    "asked",
    [
        {"layers": ("16",)},
        {"layers": ("stage4",)},
        {"layers": ("8", "stage4"), "targets": ("TUMOUR",)},
        {"targets": ("1", "0")},
    ],
    ids=str,
)
def test_a_part_of_a_result_is_kept_without_a_classifier(slide, tmp_path, monkeypatch, asked):
    both = replace(FIRST, layers=("8", "16"))
    before = explained(slide, tmp_path / "out", both)
    files = everything_in(before.folder)
    monkeypatch.setattr(pipeline, "load_explainer", lambda settings: pytest.fail("loaded"))
    again = explain_slide(slide, tmp_path / "out", replace(both, **asked))
    assert (again.kept, again.differences, again.added) == (True, (), ())
    assert everything_in(again.folder) == files


def test_a_layer_by_another_name_is_found_to_be_there(slide, tmp_path, made):
    result = explained(slide, tmp_path / "out", replace(FIRST, layers=("last", "stage5")))
    assert [found.asked_as for found in result.maps] == [("last", "stage5")]
    made.clear()
    again = explained(slide, tmp_path / "out", replace(FIRST, layers=("32",)))
    assert (again.kept, again.differences) == (True, ())
    assert not made


def test_a_map_that_wants_patches_elsewhere_is_not_added(slide, tmp_path, made):
    first = explained(slide, tmp_path / "out", FINER)
    files = everything_in(first.folder)
    made.clear()
    other = explained(slide, tmp_path / "out", FIRST)
    words = "patches 40 px apart, which does not suit the new layers (now 48)"
    assert (other.kept, other.differences, other.added) == (True, (words,), ())
    assert not made
    assert everything_in(first.folder) == files


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"overlap": 0.25}, "overlap 0.5 (now 0.25)"),
        ({"targets": ()}, "target tumour (now default)"),
        ({"targets": ("all",)}, "target tumour (now all)"),
        ({"targets": ("normal", "tumour")}, "target tumour (now normal,tumour)"),
        ({"signed": True}, "signed False (now True)"),
    ],
    ids=str,
)
def test_what_else_differs_is_named_and_nothing_added(slide, tmp_path, made, change, words):
    first = explained(slide, tmp_path / "out", replace(FIRST, targets=("tumour",)))
    files = everything_in(first.folder)
    made.clear()
    other = explained(slide, tmp_path / "out", replace(FINER, **{"targets": ("tumour",)} | change))
    assert (other.kept, other.differences) == (True, (words,))
    assert not made
    assert everything_in(first.folder) == files


def test_a_map_of_other_weights_is_not_added(slide, tmp_path, made):
    first = explained(slide, tmp_path / "out", FIRST)
    explainer = explainer_for(FINER)
    made.clear()
    changed = replace(explainer, classifier=replace(explainer.classifier, sha256="1" * 64))
    other = explain_slide(slide, tmp_path / "out", FINER, explainer=changed)
    assert (other.kept, other.differences) == (True, ("other weights",))
    assert not made
    assert strict_json(first.folder / "run.json") == first.record


def test_a_result_of_an_older_version_is_kept_and_named(slide, tmp_path, made):
    first = explained(slide, tmp_path / "out", FIRST)
    older = {key: value for key, value in first.record.items() if key not in ("schema", "maps", "targets")}
    (first.folder / "run.json").write_text(json.dumps(older))
    files = everything_in(first.folder)
    made.clear()
    for settings in (FIRST, FINER):
        other = explained(slide, tmp_path / "out", settings)
        assert (other.kept, other.differences) == (True, ("another version of the program",))
    assert not made
    assert everything_in(first.folder) == files
    with pytest.raises(OutputError, match=r"run\.json: not written by this version .* --overwrite"):
        _ = other.maps
    assert explained(slide, tmp_path / "out", FINER, overwrite=True).maps[0].spec == FINE


def test_overwriting_makes_all_maps_anew_and_no_others(slide, tmp_path, made):
    explained(slide, tmp_path / "out", replace(FIRST, layers=("8", "16")))
    made.clear()
    result = explained(slide, tmp_path / "out", FINER, overwrite=True)
    assert list(made) == [FINE]
    assert (result.kept, result.added) == (False, ())
    assert {path.name for path in result.folder.iterdir()} == OUTPUTS
    assert is_left(result.folder) == ["out"]


# ------------------------------------------------------------------------------------------ failures

STATIONS = [
    "plan_slide",
    "_carry_over",
    "explain_tiles",
    "write_ome_tiff",
    "_write_overview",
    "_write_contact_sheet",
    "run_record",
    "export",
]


@pytest.fixture(scope="module")
def first(slide, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        return explained(slide, tmp_path_factory.mktemp("first") / "out", FIRST).folder


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), KeyboardInterrupt()], ids=["error", "ctrl-c"]
)
@pytest.mark.parametrize("station", STATIONS)
def test_the_older_result_survives_an_addition_that_fails(
    slide, first, tmp_path, monkeypatch, station, error
):
    folder = shutil.copytree(first, tmp_path / "out")
    files = everything_in(folder)
    work = getattr(pipeline, station)

    def failing(*args, **how):
        work(*args, **how)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, station, failing)
        with pytest.raises(type(error)):
            explained(slide, folder, FINER)
    assert everything_in(folder) == files
    assert is_left(folder) == ["out"]
    assert explained(slide, folder, FINER).added == (FINE,)


KILLED = """
import json, os, sys
from tests.helpers.runs import explained
from wsi_saliency.settings import RunSettings
from wsi_saliency.workflows import explain as pipeline

pipeline.write_overview = lambda *args, **how: os._exit(9)  # when the stores and the TIFF are written
explained(sys.argv[1], sys.argv[2], RunSettings(**json.loads(sys.argv[3])))
"""


def test_the_older_result_survives_an_addition_that_is_killed(slide, tmp_path):
    first = explained(slide, tmp_path / "out", FIRST)
    files = everything_in(first.folder)
    command = [sys.executable, "-c", KILLED, slide, first.folder, json.dumps(FINER.to_json())]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False, timeout=600)
    assert done.returncode == 9
    assert everything_in(first.folder) == files
    assert Result.read(first.folder).record == first.record
    assert explained(slide, tmp_path / "out", FINER).added == (FINE,)
    assert is_left(first.folder) == ["out"]


# ------------------------------------------------------------------------------------------ hotspots

OUTLINED = replace(FIRST, hotspots=2)


def test_hotspots_are_added_without_making_a_map(slide, tmp_path, made):
    first = explained(slide, tmp_path / "out", FIRST)
    (first.folder / "note.txt").write_text("mine")
    files = everything_in(first.folder)
    made.clear()
    added = explained(slide, tmp_path / "out", OUTLINED)
    assert not made
    assert (added.kept, added.differences, added.added) == (True, (), ())
    assert "hotspots.geojson" in added.exported
    now = everything_in(first.folder)
    assert now.pop(Path("hotspots.geojson"))
    assert {path for path in files if now[path] != files[path]} == {Path("run.json"), Path("report.html")}
    assert b"hotspots.geojson</a>" in now[Path("report.html")]
    assert b"hotspots.geojson</a>" not in files[Path("report.html")]
    assert now.keys() == files.keys()
    record = strict_json(first.folder / "run.json")
    assert record == added.record
    changed = {key for key in record if record[key] != first.record[key]}
    assert changed == {"settings", "exports"}
    assert record["settings"] == OUTLINED.to_json()
    assert is_left(first.folder) == ["out"]


def test_hotspots_that_are_there_stay_unless_others_are_asked_for(slide, tmp_path, made):
    explained(slide, tmp_path / "out", OUTLINED)
    files = everything_in(tmp_path / "out")
    for settings in (OUTLINED, FIRST):
        assert explained(slide, tmp_path / "out", settings).exported == ()
        assert everything_in(tmp_path / "out") == files
    wider = explained(slide, tmp_path / "out", FINER)
    assert wider.added == (FINE,)
    assert wider.record["settings"]["hotspots"] == 2
    assert "hotspots.geojson" in wider.record["exports"]
    made.clear()
    assert explained(slide, tmp_path / "out", replace(FINER, hotspots=5)).exported
    assert not made


def test_hotspots_of_another_result_are_not_added(slide, tmp_path):
    explained(slide, tmp_path / "out", FIRST)
    other = explained(slide, tmp_path / "out", replace(OUTLINED, overlap=0.25))
    assert other.differences
    assert not (tmp_path / "out" / "hotspots.geojson").exists()


def test_the_older_result_survives_hotspots_that_fail(slide, tmp_path, monkeypatch):
    first = explained(slide, tmp_path / "out", FIRST)
    files = everything_in(first.folder)

    def failing(result):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setitem(EXPORTS, "hotspots.geojson", failing)
        with pytest.raises(OSError, match="No space"):
            explained(slide, tmp_path / "out", OUTLINED)
    assert everything_in(first.folder) == files
    assert is_left(first.folder) == ["out"]


# --------------------------------------------------------------------------------------------- DICOM

AS_DICOM = replace(FIRST, exports=("dicom",))
OF_FIRST = {f"saliency.class{index}.dcm" for index in (0, 1)}  # a file for each target
OF_BOTH = {f"saliency.{spec.name}.class{index}.dcm" for spec in (COARSE, FINE) for index in (0, 1)}


def dicom_files(folder):
    return {path.name for path in folder.glob("*.dcm")}


def said_of_dicom(result):
    return {name for name in result.record["exports"] if name.endswith(".dcm")}


def test_maps_are_written_as_dicom_without_being_made_again(slide, tmp_path, made):
    first = explained(slide, tmp_path / "out", OUTLINED)
    assert not dicom_files(first.folder)
    made.clear()
    added = explained(slide, tmp_path / "out", AS_DICOM)
    assert not made
    assert dicom_files(first.folder) == OF_FIRST == said_of_dicom(added)
    assert set(added.exported) > OF_FIRST
    assert added.record["settings"]["hotspots"] == 2
    assert "hotspots.geojson" in added.record["exports"]
    assert (first.folder / "hotspots.geojson").exists()
    for settings in (FIRST, AS_DICOM):
        assert explained(slide, tmp_path / "out", settings).exported == ()
    assert dicom_files(first.folder) == OF_FIRST


def test_a_map_that_is_added_is_written_as_dicom_too(slide, tmp_path):
    first = explained(slide, tmp_path / "out", AS_DICOM)
    assert dicom_files(first.folder) == OF_FIRST
    instances = {facts["sop_instance_uid"] for facts in first.record["exports"].values() if "map" in facts}
    both = explained(slide, tmp_path / "out", FINER)
    assert both.added == (FINE,)
    assert dicom_files(both.folder) == OF_BOTH == said_of_dicom(both)
    assert both.record["settings"]["exports"] == ["dicom"]
    facts = [said for said in both.record["exports"].values() if "map" in said]
    assert instances == {said["sop_instance_uid"] for said in facts if said["map"] == COARSE.name}
    assert explained(slide, tmp_path / "out", replace(FINER, hotspots=1)).exported
    assert dicom_files(both.folder) == OF_BOTH


def test_a_missing_package_is_said_before_a_slide_is_explained(slide, tmp_path, monkeypatch):
    first = explained(slide, tmp_path / "out", FIRST)
    monkeypatch.setattr(dicom, "find_spec", lambda name: None)
    for folder in ("new", "out"):
        with pytest.raises(SettingsError, match=r"pip install 'wsi-saliency\[dicom\]'"):
            explained(slide, tmp_path / folder, AS_DICOM)
    assert is_left(first.folder) == ["out"]
    assert not dicom_files(first.folder)


def test_a_slide_that_was_moved_is_looked_for_where_it_is(slide, tmp_path):
    first = explained(slide, tmp_path / "out", FIRST)
    moved = tmp_path / "elsewhere" / slide.name
    moved.parent.mkdir()
    moved.write_bytes(slide.read_bytes())
    assert explained(moved, tmp_path / "out", AS_DICOM).record["slide"]["path"] == str(moved.resolve())
    assert first.record["slide"]["path"] == str(slide.resolve())
