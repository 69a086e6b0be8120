"""Slides laid out from labelled patches, and the truth beside them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn
from PIL import Image
from scipy import ndimage

from tests.helpers.paths import SAMPLE_DATA
from wsi_saliency import open_slide
from wsi_saliency.evaluation.annotation_files import read_annotations
from wsi_saliency.geometry import Region, Size

sys.path.insert(0, str(SAMPLE_DATA))  # the scripts are no package

from typing import TYPE_CHECKING

import make_mosaic

if TYPE_CHECKING:
    from pathlib import Path

PATCH = 20
SHADES = {"fat": 60, "stroma": 120, "tumour": 180}
COUNTS = {"fat": 5, "stroma": 15, "tumour": 4}


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches without any symmetry, of which no two are alike."""
    folder, rng = tmp_path_factory.mktemp("patches"), np.random.default_rng(0)
    for name, shade in SHADES.items():
        (folder / name).mkdir()
        for number in range(COUNTS[name]):
            pixels = shade + rng.integers(0, 50, (PATCH, PATCH, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
        (folder / name / "notes.txt").write_text("no picture")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="module")
def files(patches: Path) -> dict[str, list[Path]]:
    return make_mosaic.patch_files(patches)


@pytest.fixture(scope="module")
def mosaic(files: dict[str, list[Path]]) -> make_mosaic.Mosaic:
    return make_mosaic.make_mosaic(files, 9, 6, seed=1, positive="tumour")


def cells(mosaic):
    """Yield class and pixels (2P, 2P, 3) of each cell."""
    for (row, column), label in np.ndenumerate(mosaic.labels):
        y, x = (make_mosaic.MARGIN + i * mosaic.side for i in (row, column))
        yield mosaic.classes[label], mosaic.image[y : y + mosaic.side, x : x + mosaic.side]


# ---------------------------------------------------------------------------------------------- pixels


def test_every_cell_is_a_patch_of_its_class_and_its_mirror_images(mosaic, files):
    known = {
        name: {np.asarray(Image.open(path)).tobytes(): path for path in paths}
        for name, paths in files.items()
    }
    taken = []
    for name, pixels in cells(mosaic):
        patch = pixels[:PATCH, :PATCH]
        taken.append(known[name][patch.tobytes()])
        np.testing.assert_array_equal(pixels, pixels[::-1])
        np.testing.assert_array_equal(pixels, pixels[:, ::-1])
    assert {taken.count(path) for path in files["tumour"]} <= {4, 5}  # 18 cells, four pictures, all in turn
    assert len(set(taken) - set(files["tumour"])) == 20  # more cells than pictures here too


def test_glass_is_around_the_cells(mosaic):
    h, w = (n * mosaic.side for n in mosaic.labels.shape)
    margin = make_mosaic.MARGIN
    assert mosaic.image.shape == (h + 2 * margin, w + 2 * margin, 3)
    inside = np.zeros(mosaic.image.shape[:2], bool)
    inside[margin : margin + h, margin : margin + w] = True
    assert (mosaic.image[~inside] == make_mosaic.GLASS).all()


def test_same_seed_same_mosaic(mosaic, files):
    again = make_mosaic.make_mosaic(files, 9, 6, seed=1, positive="tumour")
    np.testing.assert_array_equal(again.image, mosaic.image)
    assert again.annotations() == mosaic.annotations()
    other = make_mosaic.make_mosaic(files, 9, 6, seed=2, positive="tumour")
    assert (other.labels != mosaic.labels).any()


# ---------------------------------------------------------------------------------------------- layout


def test_positive_class_has_a_third_and_the_others_share_the_rest_by_their_pictures(mosaic):
    counts = np.bincount(mosaic.labels.ravel())
    assert dict(zip(mosaic.classes, counts.tolist(), strict=True)) == {"tumour": 18, "fat": 9, "stroma": 27}


def test_without_a_positive_class_all_have_the_same(files):
    labels = make_mosaic.make_mosaic(files, 4, 6).labels
    assert np.bincount(labels.ravel()).tolist() == [8, 8, 8]


def test_cells_of_a_class_lie_together():
    for seed in range(10):
        labels = make_mosaic.regions(np.random.default_rng(seed), 16, 16, [1 / 3, 1 / 3, 1 / 3])
        alike = [(labels[:, 1:] == labels[:, :-1]).mean(), (labels[1:] == labels[:-1]).mean()]
        assert min(alike) > 0.6  # a third if they were strewn


# ----------------------------------------------------------------------------------------------- truth


def test_truth_is_the_cells_of_each_class(mosaic, tmp_path):
    path = tmp_path / "mosaic.svs"
    make_mosaic.write_mosaic(path, mosaic, 0.5, 95)
    truth = read_annotations(path.with_suffix(".geojson"))
    height, width = mosaic.image.shape[:2]
    for index, name in enumerate(mosaic.classes):
        expected = np.zeros((height, width), bool)
        for row, column in np.argwhere(mosaic.labels == index):
            y, x = (make_mosaic.MARGIN + i * mosaic.side for i in (row, column))
            expected[y : y + mosaic.side, x : x + mosaic.side] = True
        np.testing.assert_array_equal(truth.only([name]).mask(width, height, 0, 0, 1, 1), expected)


def test_annotations_are_what_qupath_reads(mosaic):
    features = mosaic.annotations()
    assert len({feature["id"] for feature in features}) == len(features)
    for feature in features:
        assert (feature["type"], feature["geometry"]["type"]) == ("Feature", "Polygon")
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["classification"]["name"] in SHADES
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
    json.dumps(features)


masks = drawn.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.booleans())


@given(masks)
def test_outlines_hold_their_cells_and_no_others(inside):
    regions = list(make_mosaic.outlines(inside))
    assert len(regions) == ndimage.label(inside)[1]
    centres = np.argwhere(np.ones_like(inside))[:, ::-1] + 0.5
    covered = np.zeros(len(centres), int)
    for outline, *holes in regions:
        inner = within(outline, centres)
        for hole in holes:
            assert not (within(hole, centres) & ~inner).any()
            inner &= ~within(hole, centres)
        covered += inner
    np.testing.assert_array_equal(covered, inside.ravel())


def within(ring, points):
    """Even-odd rule: count the upright sides to the left of each point."""
    ends = np.roll(ring, -1, axis=0)
    odd = np.zeros(len(points), bool)
    for (x, y0), (_, y1) in zip(ring, ends, strict=True):
        odd ^= (points[:, 0] > x) & (points[:, 1] > min(y0, y1)) & (points[:, 1] < max(y0, y1))
    return odd


@given(masks)
def test_rings_turn_at_each_vertex_and_touch_themselves_nowhere(inside):
    for rings in make_mosaic.outlines(inside):
        for ring in rings:
            ahead = np.roll(ring, -1, axis=0) - ring
            upright = ahead[:, 0] == 0
            assert (upright != np.roll(upright, 1)).all()
            assert (np.count_nonzero(ahead, axis=1) == 1).all()
            assert len(np.unique(ring, axis=0)) == len(ring)


def test_region_around_a_hole_that_reaches_a_corner_has_two_rings():
    inside = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1]], bool)
    ((outline, hole),) = make_mosaic.outlines(inside)
    assert sorted(map(tuple, hole.tolist())) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    corners = {(0, 0), (2, 0), (2, 1), (3, 1), (3, 3), (0, 3)}
    assert set(map(tuple, outline.tolist())) == corners


# ----------------------------------------------------------------------------------------------- files


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["make_mosaic.py", *map(str, arguments)])
    make_mosaic.main()


def test_slide_reads_back(patches, mosaic, tmp_path, monkeypatch, capsys):
    path = tmp_path / "mosaic.svs"
    options = ("--columns", 9, "--rows", 6, "--seed", 1, "--positive", "tumour", "--mpp", 0.25)
    run(monkeypatch, patches, "-o", path, *options)
    assert "tumour: 18 cells, 4 of 4 patches" in capsys.readouterr().out
    height, width = mosaic.image.shape[:2]
    with open_slide(path) as slide:
        assert (slide.size, slide.mpp.x, slide.mpp.y) == (Size(width, height), 0.25, 0.25)
        assert [level.size for level in slide.levels] == [Size(width // f, height // f) for f in (1, 4, 16)]
        back = slide.read(Region(0, 0, width, height), slide.size)
    smooth, wanted = (ndimage.uniform_filter(p.astype(float), (9, 9, 0)) for p in (back, mosaic.image))
    assert abs(smooth - wanted).mean() < 1
    assert abs(np.roll(smooth, 3, axis=1) - wanted).mean() > 1


def test_wrong_input_is_one_line(patches, tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    few, odd, broken = tmp_path / "few", tmp_path / "odd", tmp_path / "broken"
    for folder in (few, odd, broken):
        for name in ("a", "b")[: 1 if folder is few else 2]:
            (folder / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / name / "p.png")
    Image.new("RGB", (8, 9)).save(odd / "b/p.png")
    (broken / "b/p.png").write_bytes(b"no picture")
    for arguments, told in {
        (few,): "1 sub-folders with pictures",
        (tmp_path / "none",): "0 sub-folders with pictures",
        (odd,): r"p.png: 8 × 9 px; all patches have to be as large and square \(8 × 8 px\)",
        (broken,): "p.png: cannot be read as a picture",
        (patches, "--positive", "bone"): "no class 'bone'; --positive takes one of fat, stroma, tumour",
        (patches, "-o", tmp_path / "nowhere/m.svs"): "nowhere",
    }.items():
        with pytest.raises(SystemExit, match=told):
            run(monkeypatch, *arguments, *(() if "-o" in arguments else ("-o", tmp_path / "m.svs")))
    assert not (tmp_path / "m.svs").exists()


def test_numbers_have_to_be_above_0(patches, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, patches, "--columns", "0")
    assert "invalid int above 0 value: '0'" in capsys.readouterr().err
