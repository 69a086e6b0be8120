from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.nets import spot_classifier
from tests.helpers.slides import section, write_svs
from wsi_saliency.errors import SettingsError, SlideError
from wsi_saliency.geometry import Canvas, TileGrid
from wsi_saliency.settings import TrainingSettings
from wsi_saliency.slides.tissue import TissueMask
from wsi_saliency.workflows.sampling import (
    ROUNDS,
    Balance,
    areas,
    check_memory,
    sample_located,
    sample_patches,
    with_margins,
)

PATCH, BOX = 64, (64, 64, 512, 512)


def grid_of(w, h, scale=1.0):
    return TileGrid(Canvas(w, h, scale, scale), PATCH, stride=1, reduction=1)


def mask_of(w, h, *boxes, pixel=16):
    """A tissue mask of ``pixel`` level-0 pixels; boxes are x, y, w, h in level-0 pixels."""
    mask = np.zeros((h // pixel, w // pixel), bool)
    for x, y, box_w, box_h in boxes:
        mask[y // pixel : (y + box_h) // pixel, x // pixel : (x + box_w) // pixel] = True
    return TissueMask(mask, pixel, pixel)


def corners(area, n=500, seed=0):
    tiles = area.draw(n, np.random.default_rng(seed))
    return np.array([(tile.canvas_x, tile.canvas_y) for tile in tiles])


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_patches_lie_anywhere_in_tissue_and_never_outside_the_slide(scale):
    grid = grid_of(int(1024 / scale), int(768 / scale), scale)
    tissue = mask_of(1024, 768, (0, 0, 128, 128), (512, 256, 256, 512))
    area, nothing = areas(tissue, grid, 0.0, np.random.default_rng(0))
    assert nothing is None
    found = corners(area)
    assert (found >= 0).all()
    assert (found + PATCH <= (grid.canvas.w, grid.canvas.h)).all()
    middles = (found + PATCH / 2) * scale
    inside = (found > 0).all(1) & (found < (grid.canvas.w - PATCH, grid.canvas.h - PATCH)).all(1)
    x, y = middles[inside].T
    assert (tissue.fractions(x - 8, y - 8, 16, 16) > 0).all()
    assert len(np.unique(found % 16, axis=0)) > 100  # not only on a grid
    in_large = middles[:, 0] > 256
    assert in_large.mean() == pytest.approx(8 / 9, abs=0.05)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_no_held_out_patch_overlaps_another(share):
    tissue = mask_of(1024, 2048, (128, 128, 768, 1792))
    upper, lower = areas(tissue, grid_of(1024, 2048), share, np.random.default_rng(0))
    trained_on, held_out = corners(upper), corners(lower)
    assert trained_on[:, 1].max() + PATCH <= held_out[:, 1].min()
    height = held_out[:, 1].max() - held_out[:, 1].min()
    assert height / 1792 == pytest.approx(share, abs=0.05)


def test_tissue_too_small_to_be_divided_and_no_tissue_at_all():
    rng = np.random.default_rng(0)
    upper, lower = areas(mask_of(512, 512, (256, 256, 32, 32)), grid_of(512, 512), 0.1, rng)
    assert lower is None
    assert len(corners(upper)) == 500
    assert areas(mask_of(512, 512), grid_of(512, 512), 0.1, rng) == (None, None)


def test_a_slide_smaller_than_a_patch_gives_the_patch_at_its_corner():
    upper, _ = areas(mask_of(48, 48, (0, 0, 48, 48)), grid_of(48, 48), 0.0, np.random.default_rng(0))
    assert (corners(upper) == 0).all()


def _slide(folder, name, box, seed):
    return write_svs(folder / name, [section(640, 640, box, seed=seed)])


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampling")
    return [_slide(folder, f"{i}.svs", BOX, i) for i in range(2)]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return write_svs(tmp_path_factory.mktemp("empty") / "empty.svs", [section(640, 640)])


def settings_of(**how):
    return TrainingSettings(**({"patches": 40, "workers": 1} | how))


def test_patches_have_the_pixels_of_the_slides_and_come_evenly_from_them(slides):
    sample = sample_patches(slides, spot_classifier(PATCH), settings_of())
    assert sample.trained_on.shape == (36, PATCH, PATCH, 3)
    assert sample.held_out.shape == (4, PATCH, PATCH, 3)
    pictures = [section(640, 640, BOX, seed=i) for i in range(2)]
    counts = [sum(_lies_in(patch, picture) for patch in sample.trained_on) for picture in pictures]
    assert counts == [18, 18]


def _lies_in(patch, picture):
    """Whether a patch is somewhere in a picture, bit for bit."""
    h, w = (n - PATCH + 1 for n in picture.shape[:2])
    y, x = np.nonzero((picture[:h, :w] == patch[0, 0]).all(-1))
    for i in range(1, PATCH):
        same = (picture[y + i, x + i] == patch[i, i]).all(-1)
        y, x = y[same], x[same]
    return any(
        np.array_equal(picture[j : j + PATCH, i : i + PATCH], patch) for j, i in zip(y, x, strict=True)
    )


def test_the_seed_decides(slides):
    one, again, other = (
        sample_patches(slides, spot_classifier(PATCH), settings_of(patches=10, seed=seed))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one.trained_on, again.trained_on)
    assert not np.array_equal(one.trained_on, other.trained_on)


def test_slides_without_tissue_are_left_out_and_named(slides, empty, caplog):
    sample = sample_patches([empty, slides[0]], spot_classifier(PATCH), settings_of(patches=10))
    assert len(sample.trained_on) == 9
    assert "empty.svs: no tissue found" in caplog.text
    with pytest.raises(SlideError, match=r"empty\.svs: no tissue found"):
        sample_patches([empty], spot_classifier(PATCH), settings_of())


def test_too_little_tissue_to_hold_out(tmp_path, caplog):
    slide = _slide(tmp_path, "small.svs", (256, 256, 160, 80), 0)
    sample = sample_patches([slide], spot_classifier(128), settings_of(patches=10))
    assert (len(sample.trained_on), len(sample.held_out)) == (10, 0)
    assert "not scored" in caplog.text


class Rare:
    """Calls one patch in ``every`` positive."""

    def __init__(self, every):
        self.every, self.seen = every, 0

    def __call__(self, patches):
        numbers = np.arange(self.seen, self.seen + len(patches))
        self.seen += len(patches)
        marks = numbers % self.every == 0
        patches[:, 0, 0, 0] = marks  # to find them again
        return marks


def test_half_positive_half_negative(slides, caplog):
    sample = sample_patches(slides, spot_classifier(PATCH), settings_of(), Balance("tumour", Rare(5)))
    assert len(sample.trained_on) == 36
    assert sample.trained_on[:, 0, 0, 0].mean() == 0.5
    assert sample.held_out[:, 0, 0, 0].mean() == 0.5
    assert not caplog.records


def test_no_slide_is_preferred_where_one_side_has_too_many(slides):
    balance = Balance("tumour", lambda patches: np.arange(len(patches)) % 4 > 0)
    sample = sample_patches(slides, spot_classifier(PATCH), settings_of(), balance)
    first = section(640, 640, BOX, seed=0)
    positive = sample.trained_on[:18]
    assert 6 <= sum(_lies_in(patch, first) for patch in positive) <= 12


def test_a_short_side_sets_the_size_of_both_and_the_log_says_so(slides, caplog):
    sample = sample_patches(slides, spot_classifier(PATCH), settings_of(), Balance("tumour", Rare(36)))
    assert len(sample.trained_on) == 2 * ROUNDS
    assert sample.trained_on[:, 0, 0, 0].mean() == 0.5
    seen = 36 * ROUNDS
    assert (
        f"only 8 of 18 wanted patches are predicted tumour among {seen}; training on 8 of each" in caplog.text
    )


@pytest.mark.parametrize(("answer", "side"), [(False, "predicted"), (True, "not predicted")])
def test_too_few_of_one_side_is_an_error(slides, answer, side):
    balance = Balance("tumour", lambda patches: np.full(len(patches), answer))
    with pytest.raises(
        SettingsError, match=f"only 0 of 18 wanted patches are {side} tumour .* without --balance"
    ):
        sample_patches(slides, spot_classifier(PATCH), settings_of(), balance)


# ------------------------------------------------------------------------------- patches with their places


@pytest.mark.parametrize("mpp", [None, 0.25])
def test_located_patches_are_what_lies_in_their_boxes(slides, mpp):
    found = sample_located(slides, spot_classifier(PATCH), 9, mpp=mpp, workers=1)
    assert found.patches.shape == (9, PATCH, PATCH, 3)
    assert found.patches.dtype == np.uint8
    assert found.slides == [slides[0]] * 4 + [slides[1]] * 5
    side = PATCH if mpp is None else 2 * PATCH
    pictures = dict(zip(slides, (section(640, 640, BOX, seed=i) for i in range(2)), strict=True))
    for patch, path, (x, y, w, h) in zip(*found[:3], strict=True):
        assert (w, h) == (side, side)
        there = pictures[path][y : y + h, x : x + w].astype(float)
        assert there.shape == (side, side, 3)
        if mpp is None:
            assert np.array_equal(patch, there)
        else:
            blocks = there.reshape(PATCH, 2, PATCH, 2, 3).mean((1, 3))
            assert np.corrcoef(blocks.ravel(), patch.ravel())[0, 1] > 0.95
    assert len(set(found.boxes)) == 9


def test_located_patches_and_the_seed(slides):
    one, again, other = (
        sample_located(slides, spot_classifier(PATCH), 6, seed=seed, workers=1) for seed in (1, 1, 2)
    )
    assert np.array_equal(one.patches, again.patches)
    assert one.boxes == again.boxes
    assert one.boxes != other.boxes


def test_only_wanted_patches_are_taken_evenly_and_those_of_a_slide_together(slides, caplog):
    seen = []

    def wanted(patches):
        seen.append(len(patches))
        return patches[:, 0, 0, 0] % 2 == 0

    found = sample_located(slides, spot_classifier(PATCH), 40, wanted, workers=1)
    assert len(found.patches) == 40
    assert (found.patches[:, 0, 0, 0] % 2 == 0).all()
    assert 2 <= len(seen) < ROUNDS
    assert set(seen) == {40}
    assert found.slides == sorted(found.slides)
    assert 10 <= found.slides.count(slides[0]) <= 30
    for patch, path, (x, y, w, h) in zip(*found[:3], strict=True):
        picture = section(640, 640, BOX, seed=slides.index(path))
        assert np.array_equal(patch, picture[y : y + h, x : x + w])
    assert not caplog.records


def test_no_slide_is_preferred_where_more_patches_are_wanted_than_needed(slides):
    calls = []

    def wanted(patches):
        calls.append(len(patches))
        return np.ones(len(patches), bool) if len(calls) > 1 else np.arange(len(patches)) < 20

    found = sample_located(slides, spot_classifier(PATCH), 40, wanted, workers=1)
    assert 20 + 5 <= found.slides.count(slides[0]) <= 20 + 15  # 20 of the first round, half of the second


def test_fewer_wanted_patches_than_asked_for_are_said_to_be(slides, caplog):
    found = sample_located(slides, spot_classifier(PATCH), 10, Rare(20), workers=1)
    assert len(found.patches) == len(found.boxes) == len(found.slides) == 10 * ROUNDS // 20
    assert f"only 4 of 10 wanted patches found among {10 * ROUNDS}" in caplog.text


def test_no_wanted_patch_is_an_error(slides):
    with pytest.raises(SettingsError, match=f"none of {10 * ROUNDS} patches .*--predicted-positive"):
        sample_located(slides, spot_classifier(PATCH), 10, lambda p: np.zeros(len(p), bool), workers=1)


def test_located_patches_of_slides_without_tissue(slides, empty, caplog):
    found = sample_located([empty, slides[1]], spot_classifier(PATCH), 5, workers=1)
    assert found.slides == [slides[1]] * 5
    assert "empty.svs: no tissue found" in caplog.text
    with pytest.raises(SlideError, match=r"empty\.svs: no tissue found"):
        sample_located([empty], spot_classifier(PATCH), 5, workers=1)


@pytest.mark.parametrize("mpp", [None, 0.3])
def test_patches_with_margins_hold_the_patches(slides, mpp):
    found = sample_located(slides, spot_classifier(PATCH), 24, mpp=mpp, workers=1)
    pictures, corners, inside = with_margins(found, 150, mpp=mpp, workers=1)
    assert pictures.shape == (24, PATCH + 150, PATCH + 150, 3)
    assert inside.all()
    assert corners.min() == 0
    assert 0 < corners.max() <= 150  # some picture ends where the slide does
    for patch, picture, (x, y) in zip(found.patches, pictures, corners, strict=True):
        assert np.array_equal(picture[y : y + PATCH, x : x + PATCH], patch)


def test_margins_beyond_the_slide_are_said_to_be(slides):
    found = sample_located(slides[:1], spot_classifier(PATCH), 3, workers=1)
    pictures, corners, inside = with_margins(found, 640 - PATCH + 1, workers=1)
    assert not inside.any()
    for patch, picture, (x, y) in zip(found.patches, pictures, corners, strict=True):
        assert np.array_equal(picture[y : y + PATCH, x : x + PATCH], patch)
    assert with_margins(found, 640 - PATCH, workers=1).inside.all()


def test_patches_that_do_not_fit_into_memory(slides):
    check_memory(5, PATCH, 3, 5 * PATCH * PATCH * 3)
    with pytest.raises(SettingsError, match=f"6 patches of {PATCH} px take more .*--patches 5 or fewer"):
        check_memory(6, PATCH, 3, 5 * PATCH * PATCH * 3)
    with pytest.raises(SettingsError, match="more than 4 GiB"):
        sample_patches(slides, spot_classifier(PATCH), settings_of(patches=10**8))
    with pytest.raises(SettingsError, match="more than 16 GiB"):
        sample_located(slides, spot_classifier(PATCH), 10**8)
