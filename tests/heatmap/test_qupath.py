from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.helpers.qupath import Scene, needs_groovy, play, stand_in
from tests.helpers.results import Planted
from wsi_saliency.geometry import Placement, Region, Size
from wsi_saliency.heatmap.colours import ColourScale
from wsi_saliency.heatmap.geojson import TILES_GEOJSON, write_tiles
from wsi_saliency.heatmap.pyramid import level_sizes
from wsi_saliency.heatmap.qupath import (
    OPEN_ALL,
    OVERLAY,
    PROJECT_OVERLAY,
    display_range,
    overlay_facts,
    overlay_script,
    write_overlay,
    write_project,
)

if TYPE_CHECKING:
    from wsi_saliency.heatmap.result import Result

SPOTS = [(3, 4), (70, 51), (140, 95)]  # column and row of cells
HOSTILE = "bö'se \"$slide\" ${1/0} \\u0027 '''\n*/ \U0001f52c.svs"


def spots(channels: int = 1) -> np.ndarray:
    """Some hot cells, (C, 97, 149), each channel of its own strength."""
    cells = np.zeros((channels, 97, 149), np.float32)
    for channel, (x, y) in enumerate(SPOTS * channels):
        cells[channel % channels, y, x] = 1 + channel % channels
    return cells


def planted(folder: Path, what: Planted | None = None, maps: int = 1) -> Result:
    what = what or Planted()
    result = what.write(folder, [spots(len(what.targets))] * maps)
    write_overlay(result)
    stand_in(result)
    return result


def test_the_facts_are_those_of_the_record(tmp_path: Path) -> None:
    result = planted(tmp_path / "a", Planted(targets=("tumour", "stroma")), maps=2)
    (facts,) = json.loads(json.dumps(overlay_facts([result])))["results"]
    assert facts["folder"] == str((tmp_path / "a").resolve())
    slide = {"name": "slide.svs", "path": "/slides/slide.svs", "w": 1200, "h": 800}
    assert facts["slide"] == slide | {"bounds": [0, 0, 1200, 800]}
    views, maps = iter(facts["views"]), result.record["maps"]
    for found in maps:
        for channel, window in enumerate(found["windows"]):
            view = next(views)
            assert {key: view[key] for key in ("x0", "y0", "fx", "fy")}.items() <= found["placement"].items()
            assert (view["channel"], view["channels"]) == (channel, 2)
            assert view["file"] == found["files"]["ome_tiff"]
            assert view["high"] == max(abs(window["start"]), abs(window["end"])) == -view["low"]
            assert (view["w"], view["h"]) == (150, 98)  # two levels, so padded to even numbers
    assert len({view["label"] for view in facts["views"]}) == 4


def test_magnitudes_span_the_range_of_the_record(tmp_path: Path) -> None:
    (found,) = planted(tmp_path, Planted(signed=False)).maps
    assert display_range(found, 0) == (found.windows[0].start, found.windows[0].end)


def test_no_name_gets_out_of_the_packed_facts(tmp_path: Path) -> None:
    result = planted(tmp_path, Planted(name=HOSTILE, targets=("'; System.exit(1); '",)))
    text = (tmp_path / OVERLAY).read_text(encoding="utf-8")
    assert "System.exit" not in text
    assert "${1/0}" not in text
    assert text == overlay_script([result])


def drawn(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGBA")).astype(int)


def middle(opacity: np.ndarray) -> tuple[float, float]:
    y, x = np.nonzero(opacity)
    return float(x.mean() + 0.5), float(y.mean() + 0.5)


@needs_groovy
@pytest.mark.parametrize("crop", [None, Region(100, 30, 1100, 770)])
def test_planted_spots_are_drawn_on_their_cells(tmp_path: Path, crop: Region | None) -> None:
    result = planted(tmp_path / "a", Planted(bounds=crop))
    seen = Size(int(crop.w), int(crop.h)) if crop else Size(1200, 800)
    picture = tmp_path / "seen.png"
    (played,) = play(tmp_path, [Scene(result.folder / OVERLAY, seen, picture=picture)])
    assert played.failure is None
    assert not played.named("showChoiceDialog")
    opacity = drawn(picture)[..., 3]
    assert np.count_nonzero(opacity) == pytest.approx((2 if crop else 3) * 64, rel=0.05)
    placement, left, top = result.maps[0].placement, *((crop.x, crop.y) if crop else (0, 0))
    for cell in SPOTS[1:]:
        x, y = placement.centre(*cell)
        x, y = x - left, y - top
        around = opacity[int(y) - 20 : int(y) + 20, int(x) - 20 : int(x) + 20]
        found = middle(around)
        assert found[0] + int(x) - 20 == pytest.approx(x, abs=1)
        assert found[1] + int(y) - 20 == pytest.approx(y, abs=1)


@needs_groovy
@pytest.mark.parametrize("crop", [None, Region(100, 30, 1100, 770)])
def test_a_slide_that_is_shown_turned_has_its_map_turned(tmp_path: Path, crop: Region | None) -> None:
    result = planted(tmp_path / "a", Planted(bounds=crop))
    w, h = (int(crop.w), int(crop.h)) if crop else (1200, 800)
    pictures = [tmp_path / f"{turns}.png" for turns in range(4)]
    play(
        tmp_path,
        [
            Scene(result.folder / OVERLAY, Size(h, w) if turns % 2 else Size(w, h), picture=path, turns=turns)
            for turns, path in enumerate(pictures)
        ],
    )
    upright, *others = map(drawn, pictures)
    assert np.count_nonzero(upright[..., 3]) > 100
    for turns, seen in enumerate(others, 1):
        np.testing.assert_array_equal(seen, np.rot90(upright, -turns))


@needs_groovy
def test_an_overlay_is_seen_and_lies_on_no_other_image(tmp_path: Path) -> None:
    script = planted(tmp_path / "a").folder / OVERLAY
    shown, changed, alone = play(
        tmp_path,
        [
            Scene(script, Size(1200, 800)),
            Scene(script, Size(1200, 800), changes=True),
            Scene(script, Size(1200, 800), window=False),
        ],
    )
    assert shown.overlay
    assert shown.named("setShowPixelClassification") == [{"call": "setShowPixelClassification", "show": True}]
    assert not changed.named("overlay")
    assert not changed.named("showErrorMessage")
    assert "no window" in alone.error


@needs_groovy
def test_the_region_is_that_of_all_cells_to_the_nearest_pixel(tmp_path: Path) -> None:
    result = planted(tmp_path / "a")
    (played,) = play(tmp_path, [Scene(result.folder / OVERLAY, Size(1200, 800))])
    place, padded = result.maps[0].placement, level_sizes(result.maps[0].cells)[0]
    box = played.overlay
    assert (box["image_w"], box["image_h"]) == (padded.w, padded.h)
    assert box["x"] == pytest.approx(place.x0, abs=0.5)
    assert box["y"] == pytest.approx(place.y0, abs=0.5)
    assert box["x"] + box["w"] == pytest.approx(place.x0 + padded.w * place.fx, abs=0.5)
    assert box["y"] + box["h"] == pytest.approx(place.y0 + padded.h * place.fy, abs=0.5)
    assert played.named("readRegion")[0]["downsample"] == 1
    assert played.named("close")


@needs_groovy
@pytest.mark.parametrize("signed", [True, False])
def test_the_colours_are_those_of_the_overview(tmp_path: Path, signed: bool) -> None:
    values = np.random.default_rng(0).normal(0, 1, (1, 40, 60)).astype(np.float32)
    values[0, :, 30:40] = 0
    result = Planted(signed=signed, placement=Placement(0, 0, 1, 1)).write(
        tmp_path / "a", [values if signed else np.abs(values)]
    )
    write_overlay(result)
    stand_in(result)
    picture = tmp_path / "seen.png"
    play(tmp_path, [Scene(result.folder / OVERLAY, Size(1200, 800), picture=picture)])
    low, high = display_range(result.maps[0], 0)
    scale = ColourScale.diverging(high) if signed else ColourScale.magnitudes(low, high)
    expected = scale(values[0] if signed else np.abs(values[0])).astype(int)
    seen = drawn(picture)[:40, :60]
    # Transparent pixels have no colour, and Java rounds the colours of pale ones.
    np.testing.assert_allclose(seen[..., 3], expected[..., 3], atol=2)
    opaque = expected[..., 3] > 60
    np.testing.assert_allclose(seen[opaque], expected[opaque], atol=6)
    assert not seen[:, 30:40, 3].any()
    assert opaque.mean() > 0.3


@needs_groovy
def test_a_large_map_is_loaded_coarser(tmp_path: Path) -> None:
    result = planted(tmp_path / "a", maps=1)
    script = result.folder / OVERLAY
    script.write_text(overlay_script([result]).replace("64_000_000L", "4_000L"), encoding="utf-8")
    picture = tmp_path / "seen.png"
    (played,) = play(tmp_path, [Scene(script, Size(1200, 800), picture=picture)])
    assert played.named("readRegion")[0]["downsample"] == 2
    box = played.overlay
    assert (box["image_w"], box["image_h"]) == (75, 49)
    place = result.maps[0].placement
    assert box["x"] + box["w"] == pytest.approx(place.x0 + 150 * place.fx, abs=0.5)
    x, y = place.centre(*SPOTS[1])
    assert drawn(picture)[int(y), int(x), 3] > 0


@needs_groovy
def test_another_image_is_refused_with_both_sizes(tmp_path: Path) -> None:
    whole = planted(tmp_path / "a").folder / OVERLAY
    cropped = planted(tmp_path / "b", Planted(bounds=Region(10, 20, 900, 600))).folder / OVERLAY
    other, cut, none, same, declined, elsewhere = play(
        tmp_path,
        [
            Scene(whole, Size(1200, 801)),
            Scene(cropped, Size(1199, 800)),
            Scene(whole, None),
            Scene(whole, Size(1200, 800), uri="file:/slides/other.svs"),
            Scene(whole, Size(1200, 800), uri="file:/slides/other.svs", confirm=False),
            Scene(whole, Size(1200, 800), uri="file:/elsewhere/slide.svs"),
        ],
    )
    assert "slide.svs, which has 1200 × 800 pixels. The open image has 1200 × 801" in other.error
    assert "(or 900 × 600, cropped" in cut.error
    assert "No image is open" in none.error
    assert "other.svs" in same.named("showConfirmDialog")[0]["text"]
    assert same.overlay
    assert not declined.named("setCustomPixelLayerOverlay")
    assert not elsewhere.named("showConfirmDialog")


@needs_groovy
def test_several_maps_and_targets_are_asked_for_and_none_takes_the_overlay_away(tmp_path: Path) -> None:
    result = planted(tmp_path / "a", Planted(targets=("tumour", "stroma")), maps=2)
    single = planted(tmp_path / "b").folder / OVERLAY
    script, size = result.folder / OVERLAY, Size(1200, 800)
    first, last, none, closed, again = play(
        tmp_path,
        [
            Scene(script, size, answer=0),
            Scene(script, size, answer=3),
            Scene(script, size, answer=4, shown=True),
            Scene(script, size, answer=None),
            Scene(single, size, answer=1, shown=True),
        ],
    )
    labels = first.named("showChoiceDialog")[0]["choices"]
    assert labels[:4] == [channel for found in result.maps for channel in found.channels]
    assert labels[4].startswith("none")
    files = [played.named("buildServer")[0]["uri"].rpartition("/")[2] for played in (first, last)]
    assert files == [result.files(found.spec).ome_tiff for found in result.maps]
    assert labels[3] in last.named("showInfoNotification")[0]["text"]
    for taken in (none, again):
        assert taken.named("setCustomPixelLayerOverlay") == [
            {"call": "setCustomPixelLayerOverlay", "removed": True}
        ]
    assert not closed.named("setCustomPixelLayerOverlay")


@needs_groovy
def test_a_second_target_is_drawn_from_its_own_channel(tmp_path: Path) -> None:
    maps = np.zeros((2, 97, 149), np.float32)
    maps[0, 10, 20], maps[1, 50, 60] = 1, 1
    result = Planted(targets=("tumour", "stroma")).write(tmp_path / "a", [maps])
    write_overlay(result)
    stand_in(result)
    pictures = [tmp_path / f"{k}.png" for k in range(2)]
    size = Size(1200, 800)
    play(
        tmp_path, [Scene(result.folder / OVERLAY, size, answer=k, picture=p) for k, p in enumerate(pictures)]
    )
    for picture, cell in zip(pictures, [(20, 10), (60, 50)], strict=True):
        x, y = middle(drawn(picture)[..., 3])
        assert (x, y) == pytest.approx(result.maps[0].placement.centre(*cell), abs=1)


@needs_groovy
def test_the_map_is_found_beside_the_script_or_where_it_was_written(tmp_path: Path) -> None:
    result = planted(tmp_path / "a")
    shutil.copytree(result.folder, tmp_path / "b c")
    alone = tmp_path / "alone" / "overlay of a.groovy"
    alone.parent.mkdir()
    shutil.copy(result.folder / OVERLAY, alone)
    size = Size(1200, 800)
    moved, copied = play(
        tmp_path,
        [
            Scene(p, size, variables={"scriptPath": str(p), "word": "x.groovy"})
            for p in (tmp_path / "b c" / OVERLAY, alone)
        ],
    )
    assert moved.named("buildServer")[0]["uri"].endswith("/b%20c/saliency.ome.tif")
    assert copied.named("buildServer")[0]["uri"].endswith("/a/saliency.ome.tif")
    shutil.rmtree(result.folder)
    (lost,) = play(tmp_path, [Scene(alone, size, variables={"file": str(alone)})])
    assert str(alone.parent) in lost.error
    assert str(result.folder) in lost.error


@needs_groovy
def test_a_map_of_another_run_is_refused(tmp_path: Path) -> None:
    result = planted(tmp_path / "a")
    (result.folder / "saliency.ome.tif.json").write_text('{"w": 80, "h": 60}')
    (played,) = play(tmp_path, [Scene(result.folder / OVERLAY, Size(1200, 800))])
    assert "not the map that this script was written with" in played.error
    (result.folder / "saliency.ome.tif.json").write_text("damaged")
    (broken,) = play(tmp_path, [Scene(result.folder / OVERLAY, Size(1200, 800))])
    assert "cannot be shown" in broken.error
    assert broken.failure


@needs_groovy
def test_hostile_names_are_shown_as_they_are(tmp_path: Path) -> None:
    target = '\'; System.exit(1); "$x" ${2}'
    result = planted(tmp_path / "a 'b' ${c}", Planted(name=HOSTILE, targets=(target,)))
    (wrong, right) = play(
        tmp_path,
        [
            Scene(result.folder / OVERLAY, Size(5, 5)),
            Scene(result.folder / OVERLAY, Size(1200, 800), uri="file:/x.svs"),
        ],
    )
    assert f"This map is of {HOSTILE}, which" in wrong.error
    assert right.overlay
    assert target in right.named("showInfoNotification")[0]["text"]


# ------------------------------------------------------------------------------------- of several slides


def several(tmp_path: Path) -> list[Result]:
    """Results of two slides of one name, of another slide, and a second result of the last."""
    tile = [((0, 0, 224, 224), (0.7,), (0.1, 0.2))]
    results = []
    for folder, slides, name, size in (
        ("a", "x", "slide.svs", Size(1200, 800)),
        ("b", "y", "slide.svs", Size(1200, 800)),
        ("c", "x", "other.svs", Size(900, 700)),
        ("d", "x", "other.svs", Size(900, 700)),
    ):
        (tmp_path / slides).mkdir(exist_ok=True)
        (tmp_path / slides / name).touch()
        what = Planted(name=name, slides=str(tmp_path / slides), size=size)
        result = what.write(tmp_path / "maps" / folder, [spots()], tile)
        stand_in(result)
        write_tiles(result)
        results.append(result)
    return results


@needs_groovy
def test_the_script_of_a_project_takes_the_maps_of_the_open_slide(tmp_path: Path) -> None:
    results = several(tmp_path)
    write_project(tmp_path / "project", results)
    script = tmp_path / "project" / PROJECT_OVERLAY

    def scene(uri: str, size: Size, answer: int = 0) -> Scene:
        return Scene(script, size, uri=uri, answer=answer)

    second, moved, third, strange, wrong = play(
        tmp_path,
        [
            scene((tmp_path / "y" / "slide.svs").as_uri(), Size(1200, 800)),
            scene("file:/z/slide.svs", Size(1200, 800), answer=1),
            scene((tmp_path / "x" / "other.svs").as_uri(), Size(900, 700), answer=1),
            scene("file:/z/unknown.svs", Size(1200, 800)),
            scene("file:/z/other.svs", Size(1200, 800)),
        ],
    )
    loaded = [played.named("buildServer")[0]["uri"] for played in (second, moved, third)]
    assert loaded == [
        (tmp_path / "maps" / k / "saliency.ome.tif").as_uri().replace("///", "/") for k in "bbd"
    ]
    assert not second.named("showChoiceDialog")
    for played, folders in ((moved, "ab"), (third, "cd")):
        labels = played.named("showChoiceDialog")[0]["choices"]
        assert [str(tmp_path / "maps" / k) in label for k, label in zip(folders, labels, strict=False)] == [
            True
        ] * 2
    assert "unknown.svs is none of the 4 slides" in strange.error
    assert "other.svs, which has 900 × 700 pixels" in wrong.error


@needs_groovy
def test_slides_and_objects_come_into_a_project_once(tmp_path: Path) -> None:
    results = several(tmp_path)[1:3]
    write_project(tmp_path / "project", results)
    script = tmp_path / "project" / OPEN_ALL
    slides = {Path(r.record["slide"]["path"]): Size(**r.record["slide"]["size"]) for r in results}
    first, again = play(
        tmp_path, [Scene(script, slides=slides), Scene(script, slides=slides, project_open=True)]
    )
    assert first.failure is again.failure is None
    assert first.named("createProject") == [
        {"call": "createProject", "folder": str(tmp_path / "project"), "type": "BufferedImage"}
    ]
    assert [call["uri"] for call in first.named("addImage")] == [
        p.as_uri().replace("///", "/") for p in slides
    ]
    assert [call["name"] for call in first.named("setImageName")] == ["slide.svs", "other.svs"]
    for call, result in zip(first.named("saveImageData"), results, strict=True):
        with gzip.open(result.folder / TILES_GEOJSON) as file:
            assert call["ids"] == [feature["id"] for feature in json.load(file)["features"]]
        assert call["type"] == "BRIGHTFIELD_H_E"
    for played in (first, again):
        assert [played.named(name) != [] for name in ("syncChanges", "setProject", "refreshProject")] == [
            True
        ] * 3
        assert not played.named("showErrorMessage")
    assert not again.named("createProject")
    assert not again.named("addImage")
    assert [c["ids"] for c in again.named("saveImageData")] == [
        c["ids"] for c in first.named("saveImageData")
    ]


@needs_groovy
def test_a_project_is_made_without_a_window_and_nothing_is_put_on_turned_slides(tmp_path: Path) -> None:
    results = several(tmp_path)[1:3]
    write_project(tmp_path / "project", results)
    script = tmp_path / "project" / OPEN_ALL
    slides = {Path(r.record["slide"]["path"]): Size(**r.record["slide"]["size"]) for r in results}
    alone, turned = play(
        tmp_path, [Scene(script, slides=slides, window=False), Scene(script, slides=slides, turns=2)]
    )
    assert alone.failure is None
    assert len(alone.named("saveImageData")) == 2
    assert alone.named("syncChanges")
    assert not alone.named("setProject")
    assert not alone.named("showErrorMessage")
    first, second = turned.named("showErrorMessage")[0]["text"].splitlines()
    assert "slide.svs is turned in this project" in first
    assert "other.svs is turned in this project" in second
    assert not turned.named("saveImageData")


@needs_groovy
def test_a_bad_slide_does_not_stop_the_others(tmp_path: Path) -> None:
    results = several(tmp_path)[:3]
    paths = [Path(result.record["slide"]["path"]) for result in results]
    paths[0].unlink()
    cropped = Planted(name="crop.mrxs", slides=str(tmp_path), bounds=Region(100, 30, 900, 600))
    (tmp_path / "crop.mrxs").touch()
    results.append(cropped.write(tmp_path / "maps" / "e", [spots()]))
    write_project(tmp_path / "project", results, tiles=False)
    (tmp_path / "project" / "project.qpproj").touch()
    slides = {paths[1]: Size(1, 1), paths[2]: Size(900, 700), tmp_path / "crop.mrxs": Size(1200, 800)}
    (played,) = play(tmp_path, [Scene(tmp_path / "project" / OPEN_ALL, slides=slides)])
    assert played.named("loadProject")[0]["file"].endswith("project.qpproj")
    lost, other, uncropped = played.named("showErrorMessage")[0]["text"].splitlines()
    assert f"{paths[0]} is not there" in lost
    assert "The open image has 1 × 1" in other
    assert "crop.mrxs: this QuPath does not crop" in uncropped
    (saved,) = played.named("saveImageData")
    assert saved["ids"] == []
    assert "1 of 4" in played.named("showInfoNotification")[0]["text"]


@pytest.mark.slow
@needs_groovy
def test_a_script_of_very_many_views_compiles(tmp_path: Path) -> None:
    """A string of Java has at most 64 kB, and so has a method."""
    script = tmp_path / "many.groovy"
    script.write_text(overlay_script([planted(tmp_path / "a")] * 5000), encoding="utf-8")
    assert script.stat().st_size > 3_000_000
    (played,) = play(tmp_path, [Scene(script, None)])
    assert "No image is open" in played.error
