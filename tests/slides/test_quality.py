from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tests.helpers.slides import write_svs
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.quality import FOLD_SHARE, SHARPNESS, artefacts_of, folds_in, sharpness
from wsi_saliency.slides.tissue import mask_size
from wsi_saliency.slides.whole import read_whole

SIDE = 320
FOLD = np.s_[100:220, 150:170]
INK = {"blue": (40, 70, 170), "green": (30, 120, 70), "red": (215, 40, 50)}


def stained(seed=0, density=1.0):
    """Tissue of H&E, grainy, of some optical density; bright glass around it. (SIDE, SIDE, 3) uint8."""
    rng = np.random.default_rng(seed)
    picture = np.full((SIDE, SIDE, 3), 244.0) + rng.normal(0, 1, (SIDE, SIDE, 3))
    grain = ndimage.gaussian_filter(rng.normal(0, 1, (SIDE, SIDE)), 1)
    thickness = density * (1 + 0.25 * grain / grain.std())
    ratios = np.array([0.15, 0.32, 0.15])
    inside = np.s_[40:280, 40:280]
    picture[inside] = 244 * 10 ** (-ratios * np.clip(thickness, 0.2, None)[..., None])[inside]
    return picture


def as_bytes(picture):
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def folded(picture, layers=2):
    """The same with a fold, where light goes through tissue several times."""
    picture = picture.copy()
    picture[FOLD] = 244 * (picture[FOLD] / 244) ** layers
    return picture


@pytest.mark.parametrize("density", [0.6, 1.0, 1.4])
def test_a_fold_is_found_and_hardly_more(density):
    planted = np.zeros((SIDE, SIDE), bool)
    planted[FOLD] = True
    found = folds_in(as_bytes(folded(stained(density=density), 3)))
    assert (found & planted).sum() >= 0.7 * planted.sum()
    assert (found & ~ndimage.binary_dilation(planted, iterations=3)).sum() <= 0.02 * planted.sum()


def test_nothing_is_found_where_there_is_no_fold():
    assert folds_in(as_bytes(stained())).mean() < 1e-3
    assert not folds_in(np.full((64, 64, 3), 244, np.uint8)).any()


@pytest.mark.parametrize("colour", INK.values(), ids=INK)
def test_pen_is_found_and_is_no_fold(colour, tmp_path):
    picture = stained()
    picture[60:90, 20:300] = np.array(colour) + np.random.default_rng(1).normal(0, 1, (30, 280, 3))
    slide = np.kron(as_bytes(folded(picture, 3)), np.ones((4, 4, 1), np.uint8))  # 2 µm per pixel
    with open_slide(write_svs(tmp_path / "s.svs", [slide], mpp=2.0)) as opened:
        (seen,) = read_whole(opened, [mask_size(opened)])
        found = artefacts_of(opened, seen)
    assert found.pen.mask[62:88, 24:296].mean() > 0.9
    assert found.pen.mask[110:].mean() < 0.01
    assert found.fold.mask[FOLD].mean() > 0.5
    assert not (found.fold.mask & found.pen.mask).any()
    assert found.fold.fractions(150 * 4, 100 * 4, 80, 480) > FOLD_SHARE


def test_sharpness_is_the_variance_of_the_laplacian():
    patches = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), np.uint8)
    for patch, found in zip(patches, sharpness(patches), strict=True):
        grey = patch.astype(float).mean(axis=2)
        expected = ndimage.laplace(grey)[1:-1, 1:-1].var()
        assert found == pytest.approx(expected, rel=1e-5)


def test_blur_lowers_it_below_the_limit():
    sharp = stained()[60:260, 60:260]
    blurred = ndimage.gaussian_filter(sharp, (3, 3, 0))
    found = sharpness(np.stack([as_bytes(sharp), as_bytes(blurred)]))
    assert found[0] > SHARPNESS > found[1]
    assert sharpness(np.full((1, 16, 16, 3), 200, np.uint8)).tolist() == [0]
