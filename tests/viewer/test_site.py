"""What is at which address: of pages, tiles and facts; and what is at none."""

from __future__ import annotations

import io
import json
from base64 import b64decode
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.helpers.results import PLACEMENT, SIZE, Planted
from tests.helpers.slides import noise
from tests.helpers.viewed import planted, spot
from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Size
from wsi_saliency.heatmap.colours import ColourScale
from wsi_saliency.heatmap.overview import thumbnail_size, write_overview
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.slide import Slide
from wsi_saliency.viewer.site import Site
from wsi_saliency.viewer.tiles import SlideTiles

SLIDE = noise(SIZE.h, SIZE.w)
TILES = [((100 * k, 0, 64, 64), (0.1 * k,), (0, 0.5 * k)) for k in range(5)]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("slides"), SLIDE, [spot(30, 40, -0.25)], TILES)


@pytest.fixture(scope="module")
def site(result):
    with Site([result]) as site:
        yield site


@pytest.fixture
def site_of():
    """Make sites, and close them at the end."""
    with ExitStack() as stack:
        yield lambda *given: stack.enter_context(Site(*given))


def asked(site, path):
    return site.answer(f"/{site.token}/{path}")


def facts_of(site, number=0):
    return json.loads(asked(site, f"r/{number}/facts.json").body)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/",
        "/wrong/",
        "/wrong/static/view.js",
        "TOKEN/",
        "//TOKEN/",
        "/TOKENx/",
        "/TOKEN/../TOKEN/",
        "/TOKEN/static/../shown.py",
        "/TOKEN/static/%2e%2e/shown.py",
        "/TOKEN/r/0/..%2f..%2frun.json",
        "/TOKEN/static\\..\\shown.py",
        "/TOKEN/static/view.js%00",
        "/%ff%fe/",
    ],
)
def test_strangers_and_ways_out_are_refused(site, address):
    assert site.answer(address.replace("TOKEN", site.token)).status == 403


@pytest.mark.parametrize(
    "path",
    [
        "static/",
        "static/README.md",
        "static/view.html",
        "static//etc/passwd",
        "etc/passwd",
        "run.json",
        "r/0/run.json",
        "r/1/",
        "r/1/facts.json",
        "r/1/thumbnail.jpg",
        "r/-1/",
        "r/0/slide/99/0_0.jpg",
        "r/0/slide/11/9_0.jpg",
        "r/0/map/1/0/0/0_0.f32",
        "r/0/map/0/1/0/0_0.f32",
        "r/0/map/0/0/9/0_0.f32",
        "r/0/map/0/0/0/7_0.f32",
        "r/0/map/0/0/0/0_7.f32",
        "r/0/thumbnail.jpg",  # nobody has drawn an overview
    ],
)
def test_what_is_not_there_is_not_found(site, path):
    assert asked(site, path).status == 404


def test_a_token_is_new_for_each_site_and_long(result, site_of):
    tokens = {site_of([result]).token for _ in range(3)}
    assert len(tokens) == 3
    assert min(map(len, tokens)) >= 32


def test_slide_tiles_are_those_of_the_slide(site, result):
    facts = facts_of(site)["tiles"]
    with open_slide(result.record["slide"]["path"]) as slide:
        expected = SlideTiles(slide)
        for level in range(facts["min_level"], facts["max_level"] + 1):
            answer = asked(site, f"r/0/slide/{level}/0_0.jpg")
            assert (answer.kind, answer.body) == ("jpg", expected.jpeg(level, 0, 0))


def test_map_tiles_are_the_values_of_the_map(site, result):
    heatmap = result.heatmap()
    for level, size in enumerate(facts_of(site)["maps"][0]["levels"]):
        values = np.frombuffer(asked(site, f"r/0/map/0/0/{level}/0_0.f32").body, "<f4")
        np.testing.assert_array_equal(values.reshape(size[::-1]), heatmap.read(level))


def test_a_planted_spot_is_at_its_place(site):
    (found,) = facts_of(site)["maps"]
    assert [found[name] for name in ("x0", "y0", "fx", "fy")] == [
        PLACEMENT.x0,
        PLACEMENT.y0,
        PLACEMENT.fx,
        PLACEMENT.fy,
    ]
    for level, (w, _) in enumerate(found["levels"]):
        values = np.frombuffer(asked(site, f"r/0/map/0/0/{level}/0_0.f32").body, "<f4")
        cell_y, cell_x = divmod(int(np.abs(values).argmax()), w)
        x, y = PLACEMENT.at_level(level).centre(cell_x, cell_y)
        true_x, true_y = PLACEMENT.centre(30, 40)
        assert abs(x - true_x) <= PLACEMENT.fx * 2**level / 2
        assert abs(y - true_y) <= PLACEMENT.fy * 2**level / 2


def test_the_facts_say_what_the_page_needs(site):
    facts = facts_of(site)
    assert facts["slide"] == {"w": SIZE.w, "h": SIZE.h, "mpp_x": 0.5, "mpp_y": 0.25}
    assert facts["notices"] == []
    assert facts["alone"] is True
    assert facts["targets"] == [
        {
            "name": "tumour",
            "summary": "patches predicted as tumour: 2 of 5 · highest probability 0.75",
            "dark": False,
        }
    ]
    (found,) = facts["maps"]
    assert found["signed"] is True
    assert found["windows"][0][:2] == [-0.25, 0]
    (strongest,) = found["strongest"]
    assert [(p["x"], p["value"]) for p in strongest] == [(100 * k, 0.5 * k) for k in (4, 3, 2, 1, 0)]


def test_the_colours_are_those_of_the_overview(site):
    scales = facts_of(site)["scales"]
    for name, scale in (
        ("magnitudes", ColourScale.magnitudes(0, 1)),
        ("diverging", ColourScale.diverging(1)),
    ):
        np.testing.assert_array_equal(
            np.frombuffer(b64decode(scales[name]), np.uint8).reshape(-1, 4), scale.table
        )


def test_one_result_is_shown_at_once_and_several_are_listed(site, result, site_of):
    answer = asked(site, "")
    assert (answer.status, answer.headers) == (302, {"Location": f"/{site.token}/r/0/"})
    several = site_of([result, result])
    assert b"index.js" in asked(several, "").body
    listed = json.loads(asked(several, "results.json").body)
    assert [entry["folder"] for entry in listed] == ["result", "result"]
    assert listed[0]["predictions"] == ["patches predicted as tumour: 2 of 5 · highest probability 0.75"]
    assert facts_of(several, 1)["alone"] is False
    assert site.answer(f"/{site.token}").headers == {"Location": f"/{site.token}/"}


# ------------------------------------------------------------------------------------- slides that moved


def shrunk(rgb):
    size = thumbnail_size(SIZE)
    return np.asarray(Image.fromarray(rgb).resize((size.w, size.h), Image.Resampling.BOX))


def test_where_the_slide_has_gone_the_overview_stands_in(tmp_path, site_of):
    smooth = np.kron(noise(8, 12), np.ones((100, 100, 1), np.uint8))
    result = planted(tmp_path, smooth, [spot(3, 3)])
    write_overview(result.folder / "overview.png", shrunk(smooth), result.heatmap())
    moved = tmp_path / "elsewhere.svs"
    (tmp_path / "slide.svs").rename(moved)
    site = site_of([result])
    facts = facts_of(site)
    assert facts["tiles"] is None
    (notice,) = facts["notices"]
    assert "slide.svs: is not there any more" in notice
    assert "--slide PATH" in notice
    picture = np.asarray(Image.open(io.BytesIO(asked(site, "r/0/slide.jpg").body)))
    expected = shrunk(smooth)
    assert picture.shape == expected.shape
    middle = np.s_[: picture.shape[0] // 2]  # the scale bar is farther below
    assert np.abs(picture[middle].astype(int) - expected[middle]).mean() < 12
    assert asked(site, "r/0/slide/11/0_0.jpg").status == 404
    found = facts_of(site_of([result], moved))
    assert found["tiles"]
    assert found["notices"] == []


def test_another_file_in_the_slide_s_place_is_not_shown(tmp_path, site_of):
    result = planted(tmp_path, SLIDE, [spot(3, 3)])
    with (tmp_path / "slide.svs").open("ab") as file:
        file.write(b"more")
    assert "is another file now" in facts_of(site_of([result]))["notices"][0]
    assert Image.open(io.BytesIO(asked(site_of([result]), "r/0/slide.jpg").body)).size == (480, 320)


def test_another_slide_is_refused(tmp_path, site_of):
    result = planted(tmp_path / "a", SLIDE, [spot(3, 3)])
    how = Planted(size=Size(400, 300))
    other = planted(tmp_path / "b", noise(300, 400), [spot(3, 3)], how=how)
    with pytest.raises(SlideError, match="it has 400 × 300 pixels, not 1200 × 800"):
        site_of([result], other.folder.parent / "slide.svs")


def test_a_result_that_has_gone_says_so_in_one_line(tmp_path, site_of):
    result = planted(tmp_path, SLIDE, [spot(3, 3)])
    (result.folder / "saliency.ome.zarr").rename(tmp_path / "gone")
    answer = asked(site_of([result]), "r/0/facts.json")
    assert answer.status == 500
    assert b"holds no finished heatmap" in answer.body


def test_names_reach_the_page_as_data_only(tmp_path, site_of):
    name = "<img src=x onerror=alert(1)>"
    result = planted(tmp_path, SLIDE, [spot(3, 3)])
    told = result.record | {"slide": result.record["slide"] | {"warnings": [name]}}
    site = site_of([replace(result, record=told)])
    assert facts_of(site)["notices"] == [name]
    assert name.encode() not in asked(site, "r/0/").body


def test_slides_that_were_not_asked_for_lately_are_closed(tmp_path, site_of, monkeypatch):
    results = [planted(tmp_path / str(n), SLIDE, [spot(3, 3)]) for n in range(3)]
    monkeypatch.setattr("wsi_saliency.viewer.site._OPEN", 2)
    closed = []
    close = Slide.close
    monkeypatch.setattr(Slide, "close", lambda self: (closed.append(self.path.parent.name), close(self)))
    site = site_of(results)
    for number in (0, 1, 0, 2, 0):
        assert asked(site, f"r/{number}/slide/11/0_0.jpg").status == 200
    assert closed == ["1"]
    site.close()
    assert sorted(closed) == ["0", "1", "2"]
