from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from wsi_saliency.settings import RunSettings
from wsi_saliency.workflows.record import COMPLETE, RUN_JSON, Stopwatch, differences, read_record

WEIGHTS = {"sha256": "aa", "surrogate_sha256": None}
SETTINGS = RunSettings(model="demo", method="backward-hook", overlap=0.25)


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "slide.svs"
    path.write_bytes(b"12345")
    return path


@pytest.fixture
def record():
    facts = {"name": "slide.svs", "bytes": 5}
    return {"settings": SETTINGS.to_json(), "model": {"sha256": "aa"}, "slide": facts}


def test_a_stopwatch_adds_up_what_is_spent_at_each_station():
    clock = Stopwatch()
    for _ in range(2):
        with clock.station("slow"):
            time.sleep(0.02)
    with pytest.raises(KeyError), clock.station("failing"):
        raise KeyError
    assert clock.seconds.keys() == {"slow", "failing"}
    assert 0.04 <= clock.seconds["slow"] <= clock.total


def test_iterating_counts_the_wait_and_not_the_work():
    def items():
        for i in range(3):
            time.sleep(0.01)
            yield i

    clock, seen = Stopwatch(), []
    for i in clock.iterate("read", items()):
        seen.append(i)
        time.sleep(0.05)
    assert seen == [0, 1, 2]
    assert 0.03 <= clock.seconds["read"] <= clock.total - 0.15


@pytest.mark.parametrize(
    "text", [None, "", "no json", "[]", "{}", '{"status": "running"}', b"\xff\xfe".decode("latin-1")]
)
def test_a_folder_without_a_complete_record_has_no_result(tmp_path, text):
    if text is not None:
        (tmp_path / RUN_JSON).write_text(text, encoding="latin-1")
    assert read_record(tmp_path) is None


def test_a_complete_record_is_read_back(tmp_path):
    (tmp_path / RUN_JSON).write_text(json.dumps({"status": COMPLETE, "x": 1}))
    assert read_record(tmp_path) == {"status": COMPLETE, "x": 1}


def test_the_same_request_differs_in_nothing(record, slide):
    assert differences(record, slide, SETTINGS, WEIGHTS) == ()
    assert differences(json.loads(json.dumps(record)), slide, SETTINGS) == ()


def test_what_does_not_change_the_values_is_no_difference(record, slide):
    elsewhere = replace(SETTINGS, workers=1, batch=3, device="cpu", weights=Path("copy.safetensors"))
    assert differences(record, slide, elsewhere, WEIGHTS) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer": "16"}, "layer default (now 16)"),
        ({"overlap": 0.5}, "overlap 0.25 (now 0.5)"),
        ({"target": "tumour"}, "target default (now tumour)"),
        ({"method": "none"}, "method backward-hook (now none)"),
        ({"mpp": 0.5}, "mpp default (now 0.5)"),
        ({"ome_zarr": "0.5"}, "ome-zarr 0.4 (now 0.5)"),
        ({"range": (-0.5, 2.0)}, "range default (now -0.5,2.0)"),
    ],
)
def test_each_setting_that_differs_is_named(record, slide, change, words):
    assert differences(record, slide, replace(SETTINGS, **change), WEIGHTS) == (words,)


def test_other_weights_and_another_slide_are_named(record, slide):
    assert differences(record, slide, SETTINGS, {**WEIGHTS, "sha256": "bb"}) == ("other weights",)
    other = {**WEIGHTS, "surrogate_sha256": "cc"}
    assert differences(record, slide, SETTINGS, other) == ("another surrogate",)
    slide.write_bytes(b"123456")
    assert differences(record, slide, SETTINGS, WEIGHTS) == ("another slide file",)
    assert differences(record, slide.with_name("other.svs"), SETTINGS, WEIGHTS) == ("another slide file",)


def test_a_setting_that_an_older_record_lacks_had_its_default(record, slide):
    del record["settings"]["tissue_threshold"]
    assert differences(record, slide, SETTINGS, WEIGHTS) == ()
