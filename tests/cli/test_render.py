"""Figures for papers: of the sample slide, with its map."""

from __future__ import annotations

import json
import re
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


def spans(svg):
    """Left and right end of the scale bar, and width of the figure, as SVG has them."""
    text = Path(svg).read_text()
    width = float(re.search(r'<svg[^>]* width="([\d.]+)pt"', text)[1])
    ends = re.search(r'd="M ([\d.]+) [\d.]+ *\n?L ([\d.]+) [\d.]+ *\n?" clip-path', text)
    return float(ends[1]), float(ends[2]), width


@pytest.mark.parametrize("scale", [0.4, 0.5, 1.3, 2.0])
@pytest.mark.parametrize("beside", [False, True])
def test_a_pixel_shows_as_many_um_as_are_asked_for(call, result, scale, beside):
    """The slide has 512 pixels of 0.5 µm; the bar is 50 µm long, whatever the scale."""
    how = ["--scale", f"{scale}", "--dpi", "96", *(["--beside"] if beside else [])]
    done = call("render", result, "-o", "figure.png", *how)
    assert done.exit_code == 0, done.output
    panel = round(256 / scale)
    gap = 2 / 25.4 * 96
    assert pixels("figure.png").shape[1] == int(2 * panel + gap if beside else panel)
    call("render", result, "-o", "figure.svg", *how)
    left, right, width = spans("figure.svg")
    panel_pt = panel / 96 * 72
    assert width == pytest.approx(2 * panel_pt + gap / 96 * 72 if beside else panel_pt, abs=0.01)
    assert (right - left) / panel_pt * 256 == pytest.approx(50, abs=0.02)


def test_a_scale_leaves_the_region_what_it_is(call, result):
    call("render", result, "-o", "whole.png", "--scale", "0.5", "--dpi", "96")
    call("render", result, "-o", "part.png", "--scale", "0.5", "--dpi", "96", "--region", "100,60,200,150")
    whole, part = pixels("whole.png"), pixels("part.png")
    assert part.shape[1] == 200
    moved = [np.abs(whole[70 + y : 130 + y, 110:290] - part[10:70, 10:190]) for y in (-1, 0, 1)]
    assert min(map(np.median, moved)) <= 2  # heights are no whole pixels, the figure's are


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scale", "100"], "the region's 256 µm would be 3 pixels, 0.254 mm at 300 dpi"),
        (["--scale", "0.001"], "256000 pixels"),
        (["--scale", "1", "--width", "85"], "width (--width) and scale (--scale) are both given; choose one"),
    ],
)
def test_a_scale_that_makes_no_figure(call, result, arguments, words):
    assert words in only_line(call("render", result, *arguments))


def test_the_narrowest_figure_has_labels_that_fit(call, result):
    call("render", result, "-o", "narrow.svg", "--width", "10")
    assert 2 <= len(re.findall(r'id="xtick_\d', Path("narrow.svg").read_text())) <= 3


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


def test_the_folder_of_a_run_is_not_that_of_a_slide(call, result):
    line = only_line(call("render", result.parent))
    assert line == f"{result.parent}: is not the result of one slide; name one in it, such as {result}"


def test_names_cannot_be_taken_for_formulas(call, result):
    record = json.loads((result / RUN_JSON).read_text())
    record["maps"][0]["channels"] = ["$\\frac{1}$ " * 20]
    (result / RUN_JSON).write_text(json.dumps(record))
    assert call("render", result, "-o", "figure.svg").exit_code == 0
