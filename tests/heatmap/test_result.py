from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from wsi_saliency.heatmap.result import COMPLETE, RUN_JSON, SCHEMA, Result, differences
from wsi_saliency.settings import RunSettings

WEIGHTS = {"sha256": "aa", "surrogate_sha256": None}
SETTINGS = RunSettings(model="demo", methods=("backward-hook",), overlap=0.25)
TARGETS = [{"name": "Tumour", "index": 1}]


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "slide.svs"
    path.write_bytes(b"12345")
    return path


def result_of(**changed):
    """A result as far as its record says what was asked for."""
    record = {
        "schema": SCHEMA,
        "settings": SETTINGS.to_json(),
        "model": dict(WEIGHTS),
        "slide": {"name": "slide.svs", "bytes": 5},
        "targets": TARGETS,
    }
    return Result(Path("maps"), json.loads(json.dumps(record | changed)))


# ------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "text", [None, "", "no json", "[]", "{}", '{"status": "running"}', b"\xff\xfe".decode("latin-1")]
)
def test_a_folder_without_a_complete_record_has_no_result(tmp_path, text):
    if text is not None:
        (tmp_path / RUN_JSON).write_text(text, encoding="latin-1")
    assert Result.read(tmp_path) is None


def test_a_complete_record_is_read_back(tmp_path):
    (tmp_path / RUN_JSON).write_text(json.dumps({"status": COMPLETE, "x": 1}))
    assert Result.read(tmp_path) == Result(tmp_path, {"status": COMPLETE, "x": 1})


# --------------------------------------------------------------------------------------- differences


def test_the_same_request_differs_in_nothing(slide):
    assert differences(result_of(), slide, SETTINGS, WEIGHTS) == ()
    assert differences(result_of(), slide, SETTINGS) == ()


def test_what_does_not_change_the_values_is_no_difference(slide):
    elsewhere = replace(SETTINGS, workers=1, batch=3, device="cpu", weights=Path("copy.safetensors"))
    assert differences(result_of(), slide, elsewhere, WEIGHTS) == ()


def test_other_maps_are_no_difference_but_may_be_added(slide):
    others = replace(SETTINGS, layers=("16",), methods=("none",), attributions=("gradient",))
    assert differences(result_of(), slide, others, WEIGHTS) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"overlap": 0.5}, "overlap 0.25 (now 0.5)"),
        ({"targets": ("normal",)}, "target Tumour (now normal)"),
        ({"targets": ("tumour", "normal")}, "target Tumour (now tumour,normal)"),
        ({"mpp": 0.5}, "mpp default (now 0.5)"),
        ({"ome_zarr": "0.5"}, "ome-zarr 0.4 (now 0.5)"),
        ({"range": (-0.5, 2.0)}, "range default (now -0.5,2.0)"),
        ({"signed": True}, "signed False (now True)"),
    ],
)
def test_each_setting_that_differs_is_named(slide, change, words):
    assert differences(result_of(), slide, replace(SETTINGS, **change), WEIGHTS) == (words,)


def test_other_weights_and_another_slide_are_named(slide):
    result = result_of()
    assert differences(result, slide, SETTINGS, {**WEIGHTS, "sha256": "bb"}) == ("other weights",)
    slide.write_bytes(b"123456")
    assert differences(result, slide, SETTINGS, WEIGHTS) == ("another slide file",)
    assert differences(result, slide.with_name("other.svs"), SETTINGS, WEIGHTS) == ("another slide file",)


def test_another_surrogate_is_named_where_both_have_one(slide):
    without, with_one = result_of(), result_of(model={"sha256": "aa", "surrogate_sha256": "bb"})
    asked = {**WEIGHTS, "surrogate_sha256": "cc"}
    assert differences(with_one, slide, SETTINGS, asked) == ("another surrogate",)
    assert differences(without, slide, SETTINGS, asked) == ()
    assert differences(with_one, slide, SETTINGS, WEIGHTS) == ()


def test_a_setting_that_an_older_record_lacks_had_its_default(slide):
    settings = SETTINGS.to_json()
    del settings["tissue_threshold"]
    assert differences(result_of(settings=settings), slide, SETTINGS, WEIGHTS) == ()


def test_a_record_of_another_version_is_another_version_and_nothing_more(slide):
    older = result_of(schema=None, settings={"layer": "8"})
    assert differences(older, slide, SETTINGS, WEIGHTS) == ("another version of the program",)
