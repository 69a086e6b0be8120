"""Figures for papers: of the sample slide, with its map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from tests.helpers.commands import only_line
from tests.helpers.slides import section, write_svs
from wsi_saliency.heatmap.result import RUN_JSON, Result


@pytest.fixture
def slide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_svs(tmp_path / "slide.svs", [section(512, 384, (96, 64, 256, 224))])


@pytest.fixture
def result(call, slide, spots):
    call(
        "run",
        slide,
        "--layer",
        "8",
        "--method",
        "none",
        "--device",
        "cpu",
        "--tissue-threshold",
        "0",
        "-o",
        "maps",
    )
    return slide.parent / "maps" / "slide"


def pixels(name):
    """RGB of a picture, (H, W, 3)."""
    with Image.open(name) as picture:
        return np.asarray(picture.convert("RGB"), int)


@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg", ".PNG"])
def test_a_figure_of_the_whole_slide(call, result, tmp_path, ending):
    done = call("render", result, "-o", f"figure{ending}")
    assert (done.exit_code, done.stdout) == (0, f"→ figure{ending}\n"), done.output
    start = (tmp_path / f"figure{ending}").read_bytes()[:16]
    assert start.startswith({".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[ending.lower()])


def test_a_figure_is_as_wide_as_it_is_to_be_printed(call, result):
    call("render", result, "-o", "figure.png", "--width", "50.8", "--dpi", "100")
    alone = pixels("figure.png")
    assert alone.shape[1] == 200
    call("render", result, "-o", "twice.png", "--width", "50.8", "--dpi", "100", "--beside")
    both = pixels("twice.png")
    assert both.shape[1] == 200
    assert len(both) < len(alone)


def test_the_map_lies_where_its_values_are(call, result):
    """One planted cell: what is coloured in the figure has its middle where the cell has it."""
    found = Result.read(result).maps[0]
    store = zarr.open_group(result / "saliency.ome.zarr", mode="r+")
    for name in store.array_keys():
        store[name][:] = 0
    store["0"][0, 20, 30] = found.windows[0].end
    region = (160, 80, 160, 160)
    call(
        "render",
        result,
        "-o",
        "figure.png",
        "--width",
        "50.8",
        "--dpi",
        "80",
        "--region",
        ",".join(map(str, region)),
    )
    rgb = pixels("figure.png")[:160]
    strong = np.abs(rgb - rgb.mean(axis=2, keepdims=True)).sum(axis=2)
    y, x = (axis.mean() for axis in np.nonzero(strong > 0.8 * strong.max()))
    place = found.placement
    middle = place.centre(30, 20)
    assert (region[0] + x + 0.5, region[1] + y + 0.5) == pytest.approx(middle, abs=place.fx / 2)


def test_the_same_figure_is_the_same_file(call, result):
    for name in ("one", "two"):
        call("render", result, "-o", f"{name}.pdf")
    assert Path("one.pdf").read_bytes() == Path("two.pdf").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "figure.tif"], "out (-o) is figure.tif; it has to end in .pdf, .png, .svg"),
        (["--map", "layer9"], "map (--map) is 'layer9'; "),
        (["--target", "stroma"], "target (--target) is 'stroma'; the maps are of "),
        (["--region", "5000,0,10,10"], "on the slide, which has 512 × 384 pixels"),
        (["--region", "0,0,0,10"], "region (--region) is 0,0,0,10"),
        (["--slide", "elsewhere.svs"], "elsewhere.svs: the slide is not there"),
    ],
)
def test_what_is_not_there_is_named(call, result, arguments, words):
    assert words in only_line(call("render", result, *arguments))


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "0,0,nan,1", "0,0,inf,1"])
def test_a_region_that_is_none(call, result, text):
    assert call("render", result, "--region", text).exit_code == 2


def test_a_slide_that_is_another_one(call, result, tmp_path):
    write_svs(tmp_path / "other.svs", [section(400, 384, seed=1)])
    line = only_line(call("render", result, "--slide", "other.svs"))
    assert "400 × 384 pixels, and the slide of this result 512 × 384" in line


def test_a_folder_without_a_result(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no complete result" in only_line(call("render", tmp_path))


def test_names_cannot_be_taken_for_formulas(call, result):
    record = json.loads((result / RUN_JSON).read_text())
    record["maps"][0]["channels"] = ["$\\frac{1}$ " * 20]
    (result / RUN_JSON).write_text(json.dumps(record))
    assert call("render", result, "-o", "figure.svg").exit_code == 0
