"""The page of a slide's result: what it holds, what a browser makes of it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from tests.helpers.pages import HOSTILE, WIDTHS, Structure, browsed, measured, watched
from tests.helpers.runs import SETTINGS, explained, rows_of
from tests.helpers.slides import pyramid, section, write_svs
from wsi_saliency.geometry import Region, Size
from wsi_saliency.heatmap.overview import map_on_region, map_on_thumbnail
from wsi_saliency.report import slide_pictures
from wsi_saliency.report.slide_page import command, slide_page
from wsi_saliency.report.slide_pictures import jpeg, scale_of
from wsi_saliency.slides.opening import open_slide

W, H, LIMIT = 512, 384, 0.02
SEVERAL = replace(
    SETTINGS,
    layers=("8", "16"),
    attributions=("gradient-x-activation",),
    targets=("normal", "tumour"),
    range=(0, LIMIT),
)

ACT = """<script>
addEventListener("load", () => {
  const layers = () => [...document.querySelectorAll(".layer")];
  const seen = () => layers().filter((layer) => layer.getClientRects().length).map((layer) => layer.id);
  const set = (id, value, event) => {
    const control = document.getElementById(id);
    control.value = value;
    control.dispatchEvent(new Event(event));
  };
  const found = { first: seen() };
  const boxes = [".tissue", ".layer"].map((name) => document.querySelector(name).getBoundingClientRect());
  found.boxes = boxes.map((box) => [box.left, box.top, box.width, box.height].map(Math.round));
  set("choice", "3", "change");
  found.fourth = seen();
  const legends = [...document.querySelectorAll(".legend")];
  found.legends = legends.filter((legend) => legend.getClientRects().length).map((legend) => legend.id);
  set("opacity", "25", "input");
  found.opacity = getComputedStyle(layers()[3]).opacity;
  found.pale = document.querySelector(".tissue").classList.contains("pale");
  set("opacity", "0", "input");
  found.plain = document.querySelector(".tissue").classList.contains("pale");
  found.images = [...document.images].map((image) => image.naturalWidth);
  found.failures = failures;
  const outcome = document.body.appendChild(document.createElement("pre"));
  outcome.id = "outcome";
  outcome.textContent = JSON.stringify(found);
});
</script>"""


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    levels = pyramid(section(W, H, (64, 96, 300, 200)), (1, 2))
    path = write_svs(tmp_path_factory.mktemp("slides") / "section.svs", levels)
    with open_slide(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def result(slide, tmp_path_factory):
    return explained(slide.path, tmp_path_factory.mktemp("out") / "section", SEVERAL)


@pytest.fixture(scope="module")
def page(result):
    return (result.folder / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def structure(page):
    return Structure.of(page)


def thumbnail():
    return section(W, H, (64, 96, 300, 200))


def pictures(page, kind):
    """Pictures of a kind that stand in a page, in order."""
    found = re.findall(rf'src="data:image/{kind};base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found]


def test_the_markup_is_sound(structure):
    assert not structure.open
    assert max(Counter(structure.ids).values()) == 1
    assert structure.references <= set(structure.ids)
    assert structure.tags["h1"] == structure.tags["main"] == 1


def test_nothing_is_fetched(page, structure, result):
    linked = {a for a in structure.addresses if not a.startswith(("data:image/", "#"))}
    names = {path.name for path in result.folder.iterdir()} - {"report.html"}
    assert {unquote(a).removeprefix("./") for a in linked} == names
    assert {a[1:] for a in structure.addresses if a.startswith("#")} <= set(structure.ids)
    assert not re.search("https?://|@import", page)
    assert "default-src 'none'" in page
    assert len(page) < 3_000_000


def hostile(value, name):
    """Put a name in the place of every text of a record."""
    if isinstance(value, dict):
        return {key: hostile(inner, name) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner, name) for inner in value]
    return name if isinstance(value, str) else value


def test_whatever_names_hold_the_page_is_built_the_same(result, slide):
    record = result.record
    record = record | {
        "slide": record["slide"] | {"warnings": ["a"]},
        "model": record["model"] | {"notes": ["b"]},
    }
    changed = ("settings", "slide", "model", "versions")
    built = []
    for name in ("benign", HOSTILE):
        told = record | {key: hostile(record[key], name) for key in changed}
        built.append(Structure.of(slide_page(replace(result, record=told), slide, thumbnail())))
    benign, bad = built
    assert not bad.open
    assert bad.tags == benign.tags
    assert bad.ids == benign.ids
    cleaned = HOSTILE.replace("\x01", "\ufffd").replace("\udcff", "\ufffd")
    assert sum(cleaned in words for words in bad.words) >= 6


def test_layers_are_the_maps_in_their_colours(page, result):
    shown = pictures(page, "png")
    assert len(shown) == 4
    size = Size(*shown[0].size)
    for i, (found, channel) in enumerate((m, c) for m in result.maps for c in range(2)):
        heatmap, scale = result.heatmap(found.spec), scale_of(found, channel)
        values = map_on_thumbnail(heatmap, size, channel)
        got = np.asarray(shown[i].convert("RGBA")).astype(int)
        expected = scale(values).astype(int)
        visible = expected[..., 3] > 0
        assert visible.mean() > 0.1
        assert np.abs(got - expected)[visible].max() <= 12  # every other colour of the scale
        assert (got[values == 0, 3] == 0).all()
        assert (scale.low, scale.high) == (-LIMIT, LIMIT)  # as far on both sides of 0


def test_the_strongest_patches_are_those_of_the_table(page, result, slide):
    rows = rows_of(result.folder)
    column = result.record["maps"][0]["columns"][0]["max"]
    strongest = max(rows, key=lambda row: float(row[column]))
    box = [int(strongest[key]) for key in "xywh"]
    assert f"x {box[0]}, y {box[1]}, {box[2]} × {box[3]} pixels" in page
    tissue, overlaid = pictures(page, "jpeg")[1:3]
    expected = slide.read(Region(*box), Size(224, 224))
    assert np.abs(np.asarray(tissue).astype(int) - expected).mean() < 8
    values = map_on_region(result.heatmap(), Region(*box), Size(224, 224))
    coloured = np.abs(np.asarray(overlaid).astype(int) - np.asarray(tissue)).sum(axis=-1)
    opaque = scale_of(result.maps[0], 0)(values)[..., 3].astype(float)
    assert np.corrcoef(coloured.ravel(), opaque.ravel())[0, 1] > 0.5


def test_busy_pictures_fit_into_their_bytes():
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    assert len(jpeg(noise, slide_pictures.THUMBNAIL_BYTES)) <= slide_pictures.THUMBNAIL_BYTES
    assert len(jpeg(noise[:224, :224], slide_pictures.CROP_BYTES)) <= slide_pictures.CROP_BYTES


def test_histograms_count_all_patches(page, result):
    rows = rows_of(result.folder)
    for number, svg in enumerate(re.findall(r"<svg viewBox.*?</svg>", page, re.DOTALL)):
        counts = [int(n) for n in re.findall(r"<title>[^<]*: (\d+)</title>", svg)]
        said = [float(row[f"probability_{result.targets[number]}"]) for row in rows]
        assert counts == np.histogram(said, 20, (0, 1))[0].tolist()
        assert sum(counts) == len(rows)


def test_the_command_has_what_differs_from_the_defaults(result):
    words = (
        "wsi-saliency run section.svs --model spots --method none --attribution gradient-x-activation "
        "--layer 8,16 --target normal,tumour --device cpu --range 0,0.02"
    )
    assert command(result.record) == words


def test_a_target_without_positive_patches_stays_dark(result, slide):
    targets = [target | {"positive": 0} for target in result.record["targets"]]
    settings = result.record["settings"] | {"range": None}
    dark = replace(result, record=result.record | {"targets": targets, "settings": settings})
    shown = slide_page(dark, slide, thumbnail())
    assert pictures(shown, "png") == []
    assert shown.count("The map stays dark") == 4


def test_a_slide_without_tissue_has_a_page(tmp_path):
    path = write_svs(tmp_path / "glass.svs", [section(300, 200)])
    shown = (explained(path, tmp_path / "out").folder / "report.html").read_text("utf-8")
    assert "nothing on this slide was explained" in shown
    assert "Strongest patches" not in shown


def test_the_page_works_in_a_browser(page, tmp_path):
    found = browsed(watched(page, ACT), tmp_path)
    assert found["failures"] == []
    assert found["first"] == ["layer-0"]
    assert found["boxes"][0] == found["boxes"][1]
    assert found["fourth"] == ["layer-3"]
    assert found["legends"] == ["legend-3"]
    assert float(found["opacity"]) == 0.25
    assert (found["pale"], found["plain"]) == (True, False)
    assert min(found["images"]) > 0


def test_the_page_does_not_scroll_sideways(result, slide, tmp_path):
    long = result.record["slide"] | {"name": "x" * 200, "warnings": ["y" * 300]}
    shown = slide_page(replace(result, record=result.record | {"slide": long}), slide, thumbnail())
    found = measured(shown, tmp_path)
    assert sorted(found) == sorted(WIDTHS)
    assert {width: size for width, size in found.items() if size["scroll"] > size["client"]} == {}


def test_a_part_of_a_map_is_what_the_whole_has_there(result):
    heatmap = result.heatmap()
    whole = map_on_region(heatmap, Region(0, 0, W, H), Size(W, H))
    part = map_on_region(heatmap, Region(120, 80, 200, 150), Size(200, 150))
    np.testing.assert_allclose(part, whole[80:230, 120:320], atol=1e-6 * np.abs(whole).max())
    assert not map_on_region(heatmap, Region(5000, 5000, 64, 64), Size(64, 64)).any()


def test_the_record_of_the_page_is_that_of_the_result(page, result):
    assert json.dumps(result.record["model"]["sha256"]).strip('"') in page
    assert f"{result.record['patches']['tissue']} explained" in page


def test_a_classifier_that_states_no_resolution_has_a_page(result, slide):
    record = result.record | {"model": result.record["model"] | {"mpp": None}}
    words = slide_page(replace(result, record=record), slide, thumbnail())
    assert "µm per pixel (assumed: the classifier does not say), patches of" in words
    assert "assumed: the classifier" not in slide_page(result, slide, thumbnail())
