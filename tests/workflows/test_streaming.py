"""Several maps of a slide in one run: layers, methods and targets, each map as a run of it alone makes it."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pytest
import tifffile

from tests.helpers.runs import (
    OUTPUTS,
    REMADE,
    SETTINGS,
    explained,
    rows_of,
    strict_json,
    values_of,
    without_pictures,
)
from tests.helpers.slides import pyramid, section, write_svs
from wsi_saliency import geometry
from wsi_saliency.heatmap.result import Result
from wsi_saliency.mapspec import MapSpec
from wsi_saliency.workflows import explain as pipeline

W, H, TISSUE = 320, 256, (64, 64, 192, 128)
LAYERS = {"4": "stage2", "8": "stage3", "16": "stage4"}
METHODS, TARGETS = ("none", "centred-hook"), ("normal", "tumour")
MAPS = tuple(
    MapSpec(layer, method, "gradient-x-activation") for layer, method in product(LAYERS.values(), METHODS)
)
MANY = replace(
    SETTINGS,
    layers=tuple(LAYERS),
    methods=METHODS,
    attributions=("gradient-x-activation",),
    targets=TARGETS,
    overlap=0,
    tissue_threshold=0,
)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    levels = pyramid(section(W, H, TISSUE), (1, 2))
    return write_svs(tmp_path_factory.mktemp("slides") / "section.svs", levels)


@pytest.fixture(scope="module")
def drawn():
    """What each picture was drawn from, by its file's name."""
    return {}


@pytest.fixture(scope="module")
def result(slide, tmp_path_factory, drawn):
    def draw(path, thumbnail, heatmap, **how):
        drawn[path.name] = heatmap.path.name, how
        path.write_bytes(b"drawn")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "write_overview", draw)
        return explained(slide, tmp_path_factory.mktemp("out") / "section", MANY)


@pytest.fixture(autouse=True)
def _quick_overview(monkeypatch):
    without_pictures(monkeypatch)


def test_each_map_has_files_of_its_own(result):
    stores = {f"saliency.{spec.name}.ome.zarr" for spec in MAPS}
    tiffs = {f"saliency.{spec.name}.ome.tif" for spec in MAPS}
    pictures = {f"overview.{spec.name}.png" for spec in MAPS}
    found = {path.name for path in result.folder.iterdir()}
    assert found == stores | tiffs | pictures | REMADE
    assert "saliency.stage3.centred-hook.gradient-x-activation.ome.zarr" in found


def test_each_map_has_a_channel_for_each_target(result):
    for spec in MAPS:
        values = values_of(result.folder, f"saliency.{spec.name}.ome.zarr")
        reduction = next(int(text) for text, name in LAYERS.items() if name == spec.layer)
        assert values.shape == (2, H // reduction, W // reduction)
        heatmap = result.heatmap(spec)
        assert heatmap.info.channels == tuple(
            f"gradient-x-activation · {spec.method} · {spec.layer} · {target}" for target in TARGETS
        )
        tiff = tifffile.imread(result.folder / f"saliency.{spec.name}.ome.tif")
        np.testing.assert_array_equal(tiff, values)
        assert abs(values[0] - values[1]).max() > 0


def test_pictures_show_the_first_target_of_their_map(result, drawn):
    for spec in MAPS:
        store, how = drawn[f"overview.{spec.name}.png"]
        assert store == f"saliency.{spec.name}.ome.zarr"
        assert how["predictions"].target == "normal"
        assert how["label"] == "gradient-x-activation, normal logit"


def test_the_table_has_figures_of_every_map_and_target(result):
    rows = rows_of(result.folder)
    names = [
        f"saliency_{what}.{spec.name}.{target}"
        for spec in MAPS
        for target in TARGETS
        for what in ("mean", "max")
    ]
    first = ["x", "y", "w", "h", "tissue", "probability_normal", "probability_tumour"]
    assert list(rows[0]) == first + names
    assert len(rows) == (W // 64) * (H // 64)
    for spec, reduction in zip(MAPS, (4, 4, 8, 8, 16, 16), strict=True):
        for target, values in zip(
            TARGETS, values_of(result.folder, result.files(spec).ome_zarr), strict=True
        ):
            for row in rows:
                x, y, side = (int(row[name]) // reduction for name in "xyw")
                cells = values[y : y + side, x : x + side].astype(float)
                found = [float(row[f"saliency_{what}.{spec.name}.{target}"]) for what in ("mean", "max")]
                assert found == pytest.approx([cells.mean(), cells.max()], rel=1e-4, abs=1e-9)


def test_the_record_names_every_map_and_is_read_back(result):
    record = strict_json(result.folder / "run.json")
    again = Result.read(result.folder)
    assert again.record == record
    assert again.is_current
    assert tuple(found.spec for found in again.maps) == MAPS
    assert (again.targets, again.target_indices) == (TARGETS, (0, 1))
    assert [target["name"] for target in record["targets"]] == list(TARGETS)
    for found, facts in zip(again.maps, record["maps"], strict=True):
        heatmap = again.heatmap(found.spec)
        assert facts["files"] == asdict(again.files(found.spec))
        assert all((again.folder / name).exists() for name in facts["files"].values())
        columns = [name for pair in facts["columns"] for name in pair.values()]
        assert columns == [name for name in rows_of(again.folder)[0] if found.spec.name in name]
        assert {key: facts[key] for key in found.to_json()} == found.to_json()
        assert facts.keys() - found.to_json().keys() == {"files", "columns"}
        assert (found.placement, found.cells) == (heatmap.info.placement, heatmap.size)
        assert (found.channels, found.windows) == (heatmap.info.channels, heatmap.windows)
        assert LAYERS[found.asked_as[0]] == found.spec.layer
        assert found.layer["reduction"] == int(found.asked_as[0])


def test_targets_are_counted_one_by_one(result):
    for target in result.record["targets"]:
        said = [float(row[f"probability_{target['name']}"]) for row in rows_of(result.folder)]
        assert target["positive"] == sum(p > 0.5 for p in said)
        assert target["highest_probability"] == pytest.approx(max(said), rel=1e-5)


@pytest.mark.parametrize("spec", MAPS, ids=lambda spec: spec.name)
def test_each_map_is_that_of_a_run_of_it_alone(slide, result, tmp_path, spec):
    settings = replace(MANY, layers=(spec.layer,), methods=(spec.method,))
    alone = explained(slide, tmp_path / "out", settings)
    assert alone.record["grid"] == result.record["grid"]
    np.testing.assert_array_equal(
        values_of(alone.folder), values_of(result.folder, f"saliency.{spec.name}.ome.zarr")
    )


def test_also_where_patches_overlap_and_each_target_alone(slide, tmp_path, monkeypatch):
    """A finer layer alone would have its patches elsewhere, so they are put where both layers want them."""
    monkeypatch.setattr(geometry, "stride_for", lambda *args: 48)
    settings = replace(MANY, layers=("8", "16"), methods=("none",), overlap=0.5, tissue_threshold=0.1)
    together = explained(slide, tmp_path / "both", settings)
    for text, number in product(settings.layers, range(2)):
        one = replace(settings, layers=(text,), targets=(TARGETS[number],))
        alone = explained(slide, tmp_path / f"{text}-{number}", one)
        assert alone.record["grid"] == together.record["grid"]
        store = f"saliency.{LAYERS[text]}.none.gradient-x-activation.ome.zarr"
        np.testing.assert_array_equal(values_of(alone.folder)[0], values_of(together.folder, store)[number])
        assert rows_of(alone.folder)[0].keys() >= {"saliency_mean", "saliency_max"}


def test_a_single_map_of_several_targets_keeps_the_short_file_names(slide, tmp_path):
    settings = replace(MANY, layers=("16",), methods=("none",), targets=("all",))
    folder = explained(slide, tmp_path / "out", settings).folder
    assert {path.name for path in folder.iterdir()} == OUTPUTS
    assert [name for name in rows_of(folder)[0] if name.startswith("saliency")] == [
        f"saliency_{what}.stage4.none.gradient-x-activation.{target}"
        for target in TARGETS
        for what in ("mean", "max")
    ]


def test_a_slide_without_tissue_has_all_maps_and_they_are_empty(tmp_path):
    path = write_svs(tmp_path / "glass.svs", [section(200, 200)])
    result = explained(path, tmp_path / "out", replace(MANY, tissue_threshold=0.1))
    assert all(not values_of(result.folder, result.files(spec).ome_zarr).any() for spec in MAPS)
    assert rows_of(result.folder) == []
    assert [target["positive"] for target in result.record["targets"]] == [0, 0]
