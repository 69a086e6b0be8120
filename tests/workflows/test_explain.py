from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.nets import spot_classifier
from tests.helpers.paths import ROOT
from tests.helpers.runs import (
    OUTPUTS,
    SETTINGS,
    assert_same_values,
    explained,
    explainer_for,
    is_left,
    rows_of,
    strict_json,
    values_of,
    without_pictures,
)
from tests.helpers.slides import pyramid, section, write_svs, write_tiff
from wsi_saliency.errors import OutputError, SettingsError, SlideError
from wsi_saliency.geometry import positions
from wsi_saliency.heatmap.ome_zarr import Heatmap
from wsi_saliency.heatmap.overview import Predictions, write_overview
from wsi_saliency.saliency.engine import Explainer
from wsi_saliency.settings import OME_ZARR_VERSIONS, RunSettings
from wsi_saliency.slides.blocks import PatchReader
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.readers.openslide import OpenSlideReader
from wsi_saliency.slides.tissue import tissue_mask
from wsi_saliency.workflows import explain as pipeline
from wsi_saliency.workflows.explain import explain_slide, load_explainer

W, H, TISSUE = 384, 320, (128, 96, 160, 160)
XS, YS = (positions(side, 64, 40, 8) for side in (W, H))  # of patches of 64 px that overlap by about one half


@pytest.fixture(autouse=True)
def _quick_overview(monkeypatch):
    """Drawing takes most of such a small run; `result` and the empty map have their picture drawn."""
    without_pictures(monkeypatch)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    levels = pyramid(section(W, H, TISSUE), (1, 2))
    return write_svs(tmp_path_factory.mktemp("slides") / "section.svs", levels)


@pytest.fixture(scope="module")
def result(slide, tmp_path_factory):
    return explained(slide, tmp_path_factory.mktemp("out") / "section")


# ------------------------------------------------------------------------------------------- results


def test_a_result_has_all_files_and_nothing_beside_it(result):
    assert {path.name for path in result.folder.iterdir()} == OUTPUTS
    assert is_left(result.folder) == ["section"]
    assert not result.kept


def test_the_record_is_written_last_and_is_strict_json(result):
    record = result.folder / "run.json"
    assert strict_json(record) == result.record
    assert record.stat().st_mtime_ns == max(p.stat().st_mtime_ns for p in result.folder.rglob("*"))


def test_the_record_says_what_was_done(slide, result):
    record = result.record
    assert (record["schema"], record["status"]) == (1, "complete")
    assert record["settings"] == SETTINGS.to_json()
    assert record["model"]["sha256"] == "0" * 64
    assert record["model"]["notes"] == []
    facts = record["slide"]
    assert (facts["name"], facts["bytes"]) == ("section.svs", slide.stat().st_size)
    assert (facts["format"], facts["size"], facts["levels"]) == ("aperio", {"w": W, "h": H}, 2)
    assert (facts["mpp"], facts["mpp_source"]) == ({"x": 0.5, "y": 0.5}, "the file")
    assert facts["path"] == str(slide.resolve())
    assert (facts["reader"], facts["warnings"]) == ("openslide", [])
    said = [float(row["probability_tumour"]) for row in rows_of(result.folder)]
    highest = pytest.approx(max(said), rel=1e-5)
    positive = {"positive": sum(p > 0.5 for p in said), "highest_probability": highest}
    assert record["targets"] == [{"name": "tumour", "index": 1} | positive]
    assert record["patches"] == {"grid": len(XS) * len(YS), "tissue": len(said)}
    stations = {"tissue", "drift", "read", "explain", "stitch", "zarr", "tiff", "overview"}
    stations |= {"exports", "report"}
    assert record["seconds"].keys() == {"total"} | stations
    one_after_another = stations - {"overview"}  # pictures are drawn beside
    assert 0 < sum(record["seconds"][name] for name in one_after_another) <= record["seconds"]["total"] + 0.01
    assert record["seconds"][record["slowest_station"]] == max(record["seconds"][n] for n in stations)
    assert {"wsi-saliency", "torch", "timm", "openslide-python", "python"} <= record["versions"].keys()
    assert record["peak_memory_mb"] is None or record["peak_memory_mb"] > 50


def test_a_classifier_from_python_is_taken_in_place_of_the_settings(slide, tmp_path, caplog):
    own = replace(spot_classifier(64), uri="mine", notes=("of my own",))
    result = explain_slide(slide, tmp_path / "own", SETTINGS, explainer=load_explainer(SETTINGS, own))
    assert (result.record["model"]["uri"], result.record["model"]["notes"]) == ("mine", ["of my own"])
    assert "mine: of my own" in caplog.text


def test_the_record_s_placement_is_the_heatmap_s(result):
    place = Heatmap.open(result.folder / "saliency.ome.zarr").info.placement
    (recorded,) = (facts["placement"] for facts in result.record["maps"])
    assert [recorded[name] for name in ("x0", "y0", "fx", "fy")] == [place.x0, place.y0, place.fx, place.fy]
    assert recorded["cells"] == {"w": W // 8, "h": H // 8}


def test_the_table_against_patches_cut_and_explained_one_by_one(slide, result):
    net = spot_classifier(64).module
    rgb = section(W, H, TISSUE)
    rows = rows_of(result.folder)
    boxes = [(x, y) for y in YS for x in XS]
    with open_slide(slide) as opened:
        mask = np.kron(tissue_mask(opened).mask, np.ones((16, 16)))  # 8 µm per mask pixel, 0.5 per pixel
    shares = {(x, y): mask[y : y + 64, x : x + 64].mean() for x, y in boxes}
    assert [(int(r["x"]), int(r["y"])) for r in rows] == [box for box in boxes if shares[box] >= 0.1]
    for row in rows:
        x, y = int(row["x"]), int(row["y"])
        assert (row["w"], row["h"]) == ("64", "64")
        assert float(row["tissue"]) == pytest.approx(shares[x, y], abs=1e-4)
        image = torch.from_numpy(1 - rgb[y : y + 64, x : x + 64] / 255).permute(2, 0, 1).float()[None]
        a = net.stage3(net.stage2(net.stage1(image))).detach().requires_grad_()
        logits = net.head(net.stage5(net.stage4(a)).square().mean((2, 3)))[0]
        (gradient,) = torch.autograd.grad(logits[1], a)
        values = gradient[0].mean(0)
        expected = [*logits.softmax(0).tolist(), float(values.mean()), float(values.max())]
        names = ("probability_normal", "probability_tumour", "saliency_mean", "saliency_max")
        assert [float(row[name]) for name in names] == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_the_map_is_zero_away_from_tissue_unless_all_patches_are_wanted(slide, tmp_path):
    x, y, w, h = (n // 8 for n in TISSUE)
    reach = int((20 / 0.5 + 16) // 8 + 1)  # near tissue, and a pixel of the mask
    open_gates = explainer_for(SETTINGS, patch=128, gate=0.0)  # a gradient on glass, too
    for threshold, all_wanted in ((0.1, False), (0.0, True)):
        settings = replace(SETTINGS, tissue_threshold=threshold)
        folder = explain_slide(slide, tmp_path / str(threshold), settings, explainer=open_gates).folder
        values = values_of(folder)[0, : H // 8, : W // 8]
        assert values[y : y + h, x : x + w].all()
        away = np.ones(values.shape, bool)
        away[y - reach : y + h + reach, x - reach : x + w + reach] = False
        assert (values[away] != 0).all() if all_wanted else not values[away].any()
        assert min(int(row["x"]) for row in rows_of(folder)) // 8 < x - reach  # patches do reach further


@pytest.mark.parametrize("method", ["none", "backward-hook"])
def test_two_runs_give_identical_arrays(slide, tmp_path, method):
    settings = replace(SETTINGS, methods=(method,), workers=3)
    first, second = (explained(slide, tmp_path / name, settings) for name in "ab")
    assert (first.folder / "tiles.csv").read_bytes() == (second.folder / "tiles.csv").read_bytes()
    stores = [Heatmap.open(r.folder / "saliency.ome.zarr") for r in (first, second)]
    assert len(stores[0].levels) == len(stores[1].levels)
    for level in range(len(stores[0].levels)):
        np.testing.assert_array_equal(stores[0].read(level), stores[1].read(level))


# ------------------------------------------------------------------------------------- unusual slides


def test_a_slide_without_tissue_gives_a_complete_empty_map_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pipeline, "write_overview", write_overview)
    path = write_svs(tmp_path / "glass.svs", [section(300, 200)])
    result = explained(path, tmp_path / "out")
    assert {p.name for p in result.folder.iterdir()} == OUTPUTS
    (target,) = result.record["targets"]
    assert result.record["patches"]["tissue"] == 0
    assert (target["positive"], target["highest_probability"]) == (0, None)
    assert not values_of(result.folder).any()
    assert rows_of(result.folder) == []
    assert "glass.svs: no tissue found; the map is complete and empty" in caplog.text


@pytest.mark.parametrize(
    ("change", "cells"),
    [
        pytest.param({"overlap": 0.0}, (W // 8, H // 8), id="no overlap"),
        pytest.param({"overlap": 0.9}, (W // 8, H // 8), id="most overlap"),
        pytest.param({"layers": ("input",)}, (W, H), id="input"),
        pytest.param({"layers": ("stage4",)}, (W // 16, H // 16), id="module name"),
        pytest.param({"ome_zarr": "0.5"}, (W // 8, H // 8), id="zarr 3"),
        pytest.param({"methods": ("backward-hook",)}, (W // 8, H // 8), id="backward hook"),
    ],
)
def test_runs_with_other_settings(slide, tmp_path, change, cells):
    result = explained(slide, tmp_path / "out", replace(SETTINGS, **change))
    heatmap = Heatmap.open(result.folder / "saliency.ome.zarr")
    assert (heatmap.size.w, heatmap.size.h) == cells
    fx = W / cells[0]
    x, y, w, h = (int(n / fx) for n in TISSUE)
    inside = heatmap.read(0)[y : y + h, x : x + w]
    assert (inside != 0).mean() > 0.6
    assert np.isfinite(heatmap.read(0)).all()


@pytest.mark.parametrize("version", OME_ZARR_VERSIONS)
def test_a_range_is_that_of_the_picture_and_of_viewers_and_changes_no_value(
    slide, result, tmp_path, monkeypatch, version
):
    drawn = {}
    monkeypatch.setattr(
        pipeline, "write_overview", lambda path, *args, **how: drawn.update(how) or path.write_bytes(b"")
    )
    ranged = explained(slide, tmp_path / "out", replace(SETTINGS, range=(0.25, 7.0), ome_zarr=version))
    heatmap = Heatmap.open(ranged.folder / "saliency.ome.zarr")
    np.testing.assert_array_equal(heatmap.read(0)[None], values_of(result.folder))
    (window,) = heatmap.windows
    assert (window.start, window.end) == drawn["value_range"] == (0.25, 7.0)
    assert window.lowest <= values_of(result.folder).min()
    assert window.highest == 7
    assert strict_json(ranged.folder / "run.json")["settings"]["range"] == [0.25, 7.0]
    patches, (target,) = ranged.record["patches"]["tissue"], ranged.record["targets"]
    assert drawn["predictions"] == Predictions(
        "tumour", patches, target["positive"], target["highest_probability"]
    )
    assert (
        explained(slide, ranged.folder, replace(SETTINGS, range=(0.25, 7.0), ome_zarr=version)).differences
        == ()
    )
    other = explained(slide, ranged.folder, replace(SETTINGS, range=(0.0, 1.5), ome_zarr=version))
    assert other.differences == ("range 0.25,7.0 (now 0.0,1.5)",)


def test_a_slide_smaller_than_a_patch_is_one_patch(tmp_path):
    path = write_svs(tmp_path / "small.svs", [section(150, 140, (10, 10, 130, 120))])
    result = explained(path, tmp_path / "out", patch=256)
    assert (result.record["patches"]["grid"], result.record["patches"]["tissue"]) == (1, 1)
    assert [rows_of(result.folder)[0][name] for name in "xywh"] == ["0", "0", "256", "256"]
    (values,) = values_of(result.folder)
    assert values[3:15, 3:15].all()


def test_pixels_that_are_not_square_are_placed_by_their_own_sizes(tmp_path):
    w, h, at_x, at_y = 320, 640, 200, 260  # 0.5 × 0.25 µm
    rgb = np.full((h, w, 3), 255, np.uint8)
    distance = np.hypot(np.arange(w) + 0.5 - at_x, (np.arange(h)[:, None] + 0.5 - at_y) / 2)
    rgb[distance < 12] = 30
    path = write_tiff(
        tmp_path / "oblong.tif", [rgb], resolution=(1e4 / 0.5, 1e4 / 0.25), resolutionunit="CENTIMETER"
    )
    settings = replace(SETTINGS, attributions=("gradient-x-activation",), tissue_threshold=0)
    result = explained(path, tmp_path / "out", settings, patch=128)
    assert result.record["slide"]["mpp"] == pytest.approx({"x": 0.5, "y": 0.25})
    heatmap = Heatmap.open(result.folder / "saliency.ome.zarr")
    place, values = heatmap.info.placement, abs(heatmap.read(0).astype(float))
    assert (place.fx, place.fy) == pytest.approx((8, 16))
    x, y = place.centre(np.arange(values.shape[1]), np.arange(values.shape[0]))
    total = values.sum()
    assert (values.sum(0) * x).sum() / total == pytest.approx(at_x, abs=place.fx / 2)
    assert (values.sum(1) * y).sum() / total == pytest.approx(at_y, abs=place.fy / 2)


# ------------------------------------------------------------------------------------ existing results


def test_a_complete_result_is_kept(slide, tmp_path):
    first = explained(slide, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    second = explained(slide, tmp_path / "out")
    assert (second.kept, second.differences, second.record) == (True, (), first.record)
    other = explained(slide, tmp_path / "out", replace(SETTINGS, overlap=0.25))
    assert (other.kept, other.differences) == (True, ("overlap 0.5 (now 0.25)",))
    assert before == {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}


def test_overwrite_replaces_it(slide, tmp_path):
    explained(slide, tmp_path / "out")
    (tmp_path / "out" / "stale").touch()
    second = explained(slide, tmp_path / "out", replace(SETTINGS, layers=("16",)), overwrite=True)
    assert not second.kept
    assert {path.name for path in second.folder.iterdir()} == OUTPUTS
    assert strict_json(second.folder / "run.json")["settings"]["layers"] == ["16"]
    assert is_left(second.folder) == ["out"]


def test_a_folder_that_somebody_has_put_into_a_result_is_not_deleted_with_it(slide, tmp_path):
    first = explained(slide, tmp_path / "out")
    (first.folder / "mine").mkdir()
    with pytest.raises(OutputError, match=r"out: holds more than a result \(mine\); move that, or .* -o"):
        explained(slide, tmp_path / "out", overwrite=True)
    assert strict_json(first.folder / "run.json") == first.record
    assert is_left(first.folder) == ["out"]


def test_results_of_a_slide_with_a_similar_name_are_left_alone(slide, tmp_path):
    names = ["out", "out.old"]
    for name in names:
        explained(slide, tmp_path / name)
    explained(slide, tmp_path / "out", overwrite=True)
    assert is_left(tmp_path / "out") == sorted(names)


# ------------------------------------------------------------------------------------ runs side by side

PAIRS = 4
SIDE_BY_SIDE = """
import json, os, sys, torch
from tests.helpers.nets import spot_classifier
from wsi_saliency.workflows.explain import explain_slide
from wsi_saliency.saliency.engine import Explainer
from wsi_saliency.settings import RunSettings

torch.set_num_threads(1)
slide, out, pairs = sys.argv[1], sys.argv[2], int(sys.argv[3])
for pair in range(pairs):
    children = []
    for layer in ("8", "16"):
        child = os.fork()
        if not child:
            how = {"layers": [layer], "methods": ["none"], "attributions": ["gradient"], "device": "cpu"}
            settings = RunSettings(model="spots", **how)
            explainer = Explainer.of(spot_classifier(64), **how)
            how = {"explainer": explainer, "overwrite": pair % 2 > 0}
            result = explain_slide(slide, f"{out}/{pair}", settings, **how)
            said = [pair, layer, result.kept, result.differences, [spec.layer for spec in result.added]]
            print(json.dumps(said), flush=True)
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_on_one_folder_leave_one_whole_result(slide, tmp_path):
    """Of different layers: every other pair overwrites, so that both work, and the second result stays.

    Else the second run adds its map, if its layer's cells suit the patches of the first run.
    """
    done = subprocess.run(
        [sys.executable, "-c", SIDE_BY_SIDE, slide, tmp_path, str(PAIRS)],
        stdout=subprocess.PIPE,
        check=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    alone = {
        layers: explained(slide, tmp_path / "".join(layers), replace(SETTINGS, layers=layers)).folder
        for layers in (("8",), ("16",), ("16", "8"))
    }
    refused = "patches 40 px apart, which does not suit the new layers (now 48)"
    for pair in range(PAIRS):
        of_layer = {layer: how for number, layer, *how in said if number == pair}
        folder = tmp_path / str(pair)
        layers = tuple(strict_json(folder / "run.json")["settings"]["layers"])
        if pair % 2:
            assert list(of_layer.values()) == [[False, [], []]] * 2
        elif layers == ("8",):
            assert of_layer == {"8": [False, [], []], "16": [True, [refused], []]}
        else:
            assert (layers, of_layer["16"]) == (("16", "8"), [False, [], []])
            assert of_layer["8"] == [False, [], ["stage3"]]
        assert_same_values(folder, alone[layers])
    assert is_left(tmp_path / "0") == sorted([*map(str, range(PAIRS)), "8", "16", "168"])


# -------------------------------------------------------------------------------------------- failures


def failing_read(monkeypatch, error):
    """Let the third batch of patches of a slide raise, while blocks are being read ahead."""
    batches = PatchReader.batches

    def stopping(self, n):
        for i, batch in enumerate(batches(self, 4)):
            if i == 2:
                raise error
            yield batch

    monkeypatch.setattr(PatchReader, "batches", stopping)


def failing_explainer(monkeypatch, error):
    def explain(self, patches, maps):
        raise error

    monkeypatch.setattr(Explainer, "__call__", explain)


def failing_overview(monkeypatch, error):
    def draw(*args, **how):
        raise error

    monkeypatch.setattr(pipeline, "write_overview", draw)


def failing_record(monkeypatch, error):
    write = Path.write_text

    def write_text(self, *args, **how):
        if self.name == "run.json":
            raise error
        return write(self, *args, **how)

    monkeypatch.setattr(Path, "write_text", write_text)


FAILINGS = [failing_read, failing_explainer, failing_overview, failing_record]


@pytest.mark.parametrize("error", [SlideError("bad tile"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
@pytest.mark.parametrize("failing", FAILINGS, ids=lambda f: f.__name__)
def test_a_run_that_stops_leaves_nothing_behind(slide, tmp_path, monkeypatch, failing, error):
    failing(monkeypatch, error)
    with pytest.raises(type(error)):
        explained(slide, tmp_path / "results" / "out")
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("slide")]


def test_no_thread_reads_from_a_slide_that_is_closed(tmp_path, monkeypatch):
    reading = []
    read, close = OpenSlideReader.read_level, OpenSlideReader.close

    def slow_read(self, *box):
        reading.append(box)
        try:
            time.sleep(0.05)
            return read(self, *box)
        finally:
            reading.remove(box)

    def checked_close(self):
        assert not reading
        close(self)

    path = write_svs(tmp_path / "large.svs", [section(512, 4096, (0, 0, 512, 4096))])
    with open_slide(path) as opened:
        plan = pipeline.plan_slide(opened, explainer_for(SETTINGS), SETTINGS)
    monkeypatch.setattr(pipeline, "plan_slide", lambda slide, *_, **__: replace(plan, slide=slide))
    monkeypatch.setattr(pipeline, "with_drift", lambda plan, _: plan)
    monkeypatch.setattr(OpenSlideReader, "read_level", slow_read)
    monkeypatch.setattr(OpenSlideReader, "close", checked_close)
    in_flight = []

    def interrupted(self, patches, maps):
        in_flight.extend(reading)
        raise KeyboardInterrupt

    monkeypatch.setattr(Explainer, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        explained(path, tmp_path / "out")
    assert in_flight


@pytest.mark.parametrize("failing", FAILINGS, ids=lambda f: f.__name__)
def test_the_older_result_survives_an_overwrite_that_fails(slide, tmp_path, monkeypatch, failing):
    first = explained(slide, tmp_path / "out")
    failing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        explained(slide, tmp_path / "out", overwrite=True)
    assert strict_json(first.folder / "run.json") == first.record
    assert {path.name for path in first.folder.iterdir()} == OUTPUTS
    assert is_left(first.folder) == ["out"]


def test_the_older_result_comes_back_when_the_new_one_cannot_take_its_place(slide, tmp_path, monkeypatch):
    first = explained(slide, tmp_path / "out")
    rename = type(tmp_path).rename

    def stopping(self, target):
        if self.name == "new":
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", stopping)
    with pytest.raises(OutputError, match=r"out: cannot be written \(Permission denied\)"):
        explained(slide, tmp_path / "out", overwrite=True)
    assert strict_json(first.folder / "run.json") == first.record
    assert is_left(first.folder) == ["out"]


def test_a_full_disk_is_named(slide, tmp_path, monkeypatch):
    failing_record(monkeypatch, OSError(28, "No space left on device"))
    with pytest.raises(
        OutputError, match=r"out/run.json: cannot be written \(No space left on device\).* -o"
    ):
        explained(slide, tmp_path / "out")
    assert is_left(tmp_path / "out") == []


def a_file(path):
    path.write_text("mine")
    return path


def below_a_file(path):
    return a_file(path) / "below" / "out"


def a_foreign_folder(path):
    path.mkdir()
    (path / "mine.txt").touch()
    return path


def too_long_a_name(path):
    return path / ("x" * 300)


@pytest.mark.parametrize("place", [a_file, below_a_file, a_foreign_folder, too_long_a_name])
def test_a_place_where_nothing_can_be_written_is_named_and_left_alone(slide, tmp_path, place):
    folder = place(tmp_path / "place")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="choose another folder with -o") as caught:
        explained(slide, folder, overwrite=True)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p for p in sorted(tmp_path.rglob("*")) if p != tmp_path / "place"] == [
        p for p in before if p != tmp_path / "place"
    ]


def test_an_empty_folder_is_filled(slide, tmp_path):
    (tmp_path / "out").mkdir()
    assert {path.name for path in explained(slide, tmp_path / "out").folder.iterdir()} == OUTPUTS


# -------------------------------------------------------------------------------------------- progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "progress", "shown"),
    [(Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False)],
    ids=["terminal", "quiet", "no terminal"],
)
def test_one_bar_a_slide_on_terminals_only(slide, tmp_path, monkeypatch, stream, progress, shown):
    errors = stream()
    monkeypatch.setattr("sys.stderr", errors)
    result = explained(slide, tmp_path / "out", progress=progress)
    last = errors.getvalue().split("\r")[-1]
    assert bool(last) == shown
    if shown:
        n = result.record["patches"]["tissue"]
        assert last.startswith("section.svs: 100%")
        assert f"{n}/{n} [" in last
        assert "patch/s]" in last
        assert "<" in last  # the time left


@pytest.mark.parametrize(
    ("layer", "methods", "said"),
    [
        (
            "last",
            ("none", "backward-hook"),
            ["layer layer4: backward-hook changes nothing there; what helps: an earlier layer"],
        ),
        ("last", ("none",), []),
        ("8", ("backward-hook",), []),
    ],
)
def test_a_method_that_does_nothing_at_the_layer_is_said_to(layer, methods, said, caplog):
    settings = RunSettings(model="demo", layers=(layer,), methods=methods, device="cpu")
    pipeline.load_explainer(settings)
    notices = [record.message for record in caplog.records if "lies behind" in record.message]
    assert len(notices) == len(said)
    assert all(part in notice for part, notice in zip(said, notices, strict=True))


def test_a_url_does_not_become_a_folder_of_that_name(slide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SettingsError, match=r"^s3://bucket/maps: is a URL; give a folder, or"):
        explain_slide(slide, "s3://bucket/maps", SETTINGS)
    assert sorted(tmp_path.iterdir()) == before
