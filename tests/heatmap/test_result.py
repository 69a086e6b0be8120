from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_saliency.errors import OutputError
from wsi_saliency.geometry import Placement, Size
from wsi_saliency.heatmap.differences import differences
from wsi_saliency.heatmap.pyramid import Window
from wsi_saliency.heatmap.result import (
    COMPLETE,
    RUN_JSON,
    SCHEMA,
    MapFiles,
    MapRecord,
    Result,
    columns_of,
    first_overview,
    is_map_file,
    with_names,
)
from wsi_saliency.mapspec import MapSpec
from wsi_saliency.settings import ATTRIBUTIONS, METHODS, RunSettings

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
        "model": WEIGHTS | {"classes": ["normal", "Tumour"]},
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


def test_a_result_of_other_weights_than_those_wanted_by_hash_is_named(slide):
    had, wanted = "a" * 64, "b" * 64
    result = result_of(model={"sha256": had})
    assert differences(result, slide, replace(SETTINGS, sha256=had)) == ()
    assert differences(result, slide, replace(SETTINGS, sha256=wanted)) == ("other weights",)
    assert differences(result, slide, replace(SETTINGS, sha256=wanted), {"sha256": had}) == ("other weights",)


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


# ------------------------------------------------------------------------------------- maps and names

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(1, 10**6)
SPECS = st.builds(MapSpec, st.text(min_size=1), st.sampled_from(METHODS), st.sampled_from(ATTRIBUTIONS))
RECORDS = st.builds(
    MapRecord,
    SPECS,
    st.lists(st.text()).map(tuple),
    st.booleans(),
    st.lists(st.text(), max_size=4).map(tuple),
    st.dictionaries(st.text(), st.integers() | NUMBERS | st.text() | st.lists(st.text())),
    st.builds(Placement, NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    st.builds(Size, COUNTS, COUNTS),
    st.tuples(NUMBERS, NUMBERS),
    st.lists(st.builds(Window, NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=4).map(tuple),
)


@given(RECORDS)
def test_a_map_s_record_is_read_back_from_json(record):
    text = json.dumps(record.to_json(), allow_nan=False)
    assert MapRecord.from_json(json.loads(text)) == record


@given(st.lists(RECORDS, max_size=3, unique_by=lambda record: record.spec), st.lists(st.text(), max_size=2))
def test_a_result_s_maps_are_read_back_from_its_record(maps, targets):
    facts = with_names(maps, targets)
    assert result_of(maps=facts).maps == tuple(maps)
    files = [name for fact in facts for name in fact["files"].values()]
    if len({spec.name for spec in (found.spec for found in maps)}) == len(maps):
        assert len({*files}) == len(files) == 3 * len(maps)
    assert [len(fact["columns"]) for fact in facts] == [len(targets)] * len(maps)


@pytest.mark.parametrize("damage", [{"schema": None}, {"schema": 2}, {"maps": [{}]}, {"maps": None}])
def test_maps_of_a_record_that_cannot_be_read_are_one_line(damage):
    with pytest.raises(OutputError, match=r"maps/run\.json: not written by this version .* --overwrite"):
        _ = result_of(**damage).maps


def test_files_and_columns_of_one_map_and_of_several():
    one, other = MapSpec("layer3", "none", "gradient"), MapSpec("layer4", "centred-hook", "deeplift")
    assert MapFiles.of([one])[one] == MapFiles("saliency.ome.zarr", "saliency.ome.tif", "overview.png")
    files = MapFiles.of([one, other])
    assert files[one].overview == first_overview([one.name, other.name])
    assert first_overview([one.name]) == "overview.png"
    name = "layer4.centred-hook.deeplift"
    assert files[other] == MapFiles(
        f"saliency.{name}.ome.zarr", f"saliency.{name}.ome.tif", f"overview.{name}.png"
    )
    assert files[one].overview == "overview.layer3.none.gradient.png"
    assert files[one].ome_zarr == "saliency.layer3.none.gradient.ome.zarr"
    assert columns_of([one], ["t"])[one] == [("saliency_mean", "saliency_max")]
    assert columns_of([one], ["t", "u"])[one][1][1] == "saliency_max.layer3.none.gradient.u"
    assert columns_of([one, other], ["t"])[other] == [(f"saliency_mean.{name}.t", f"saliency_max.{name}.t")]


def test_layers_whose_names_are_no_names_of_files_have_files_of_their_own():
    layers = ["a/b", "a_b", "a\\b", "a b", "a:b", "ä", "\udcff", "con|v"]
    names = [MapSpec(layer, "none", "gradient").name for layer in layers]
    assert len({*names}) == len(layers)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in names)
    assert names[1] == "a_b.none.gradient"
    assert names == [MapSpec(layer, "none", "gradient").name for layer in layers]


def test_maps_are_known_by_their_files_names():
    one, other = MapSpec("layer3", "none", "gradient"), MapSpec("input", "none", "gradient")
    names = [files.ome_tiff for maps in ([one], [one, other]) for files in MapFiles.of(maps).values()]
    assert all(map(is_map_file, names))
    assert all(map(is_map_file, ("saliency.dcm", "saliency.layer3.none.gradient.class1.dcm")))
    assert not any(map(is_map_file, ("slide.ome.tif", "saliency.tif", "overview.png", "my saliency.ome.tif")))
    assert not any(map(is_map_file, ("slide.dcm", "saliencydcm", "my saliency.dcm")))


# -------------------------------------------------------------------------------- what is there already

NOWHERE = (Placement(0, 0, 1, 1), Size(1, 1), (0, 0), ())
THERE = [
    MapRecord(MapSpec(layer, method, "gradient"), asked, False, (), {}, *NOWHERE)
    for layer, asked in (("layer2", ("8",)), ("layer3", ("16", "last")))
    for method in ("none", "centred-hook")
]


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ({"layers": ("8",)}, True),
        ({"layers": ("layer3", "8")}, True),
        ({"layers": ("last",), "methods": ("centred-hook", "none")}, True),
        ({}, True),
        ({"layers": ("4",)}, False),
        ({"layers": ("8", "4")}, False),
        ({"methods": ("none", "backward-hook")}, False),
        ({"attributions": ("gradient", "deeplift")}, False),
        ({"attributions": ("gradcam",)}, False),
        ({"targets": ("normal",)}, False),
    ],
    ids=str,
)
def test_maps_are_found_by_every_name_of_their_layer(asked, there):
    """Without a layer it is that of the attribution: 16 for the gradient."""
    settings = replace(SETTINGS, **{"methods": ("none",), "attributions": ("gradient",)} | asked)
    assert result_of(maps=[found.to_json() for found in THERE]).has(settings) == there


@pytest.mark.parametrize(
    ("targets", "there"),
    [
        ((), True),  # as it was asked for
        (("Tumour",), True),
        (("TUMOUR",), True),
        ((" tumour ",), True),
        (("1",), True),
        (("1", "tumour"), True),
        (("0",), False),
        (("tumor",), False),
        (("all",), False),
        (("tumour", "normal"), False),
    ],
)
def test_targets_are_found_by_name_and_index_in_any_case(targets, there):
    assert result_of().has_targets(replace(SETTINGS, targets=targets)) == there
    assert not result_of(settings=SETTINGS.to_json() | {"targets": ["1"]}).has_targets(SETTINGS)


def test_all_targets_are_there_if_each_class_is():
    every = [{"name": "normal", "index": 0}, *TARGETS]
    assert result_of(targets=every).has_targets(replace(SETTINGS, targets=("all",)))
