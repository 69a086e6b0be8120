from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tests.helpers.nets import spot_classifier
from wsi_saliency.saliency.drift import measure_drift
from wsi_saliency.saliency.engine import Explainer


def blobs(n=8, side=28, seed=0):
    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.normal(size=(n, side, side)), (0, 1, 1)).astype(np.float32)


@pytest.mark.parametrize("drift", [(0, 0), (0.5, 0.5), (1.5, 0.75), (0.3, 1.2)])
def test_a_known_shift_is_found(drift):
    plain = blobs()
    smooth = np.stack([ndimage.shift(m, drift, order=5, mode="nearest") for m in plain])
    assert measure_drift(plain, smooth, (1.5, 1.5)) == pytest.approx(drift, abs=0.08)


def test_never_more_than_the_drift_of_a_linear_network():
    plain = blobs()
    smooth = np.roll(plain, (2, 2), (1, 2))
    assert measure_drift(plain, smooth, (0.5, 1.0)) == (0.5, 1.0)


def test_scale_and_sign_do_not_matter():
    plain = blobs()
    assert measure_drift(plain, -7 * plain, (1.5, 1.5)) == (0, 0)


@pytest.mark.parametrize(
    "smooth", [blobs(seed=9), np.zeros((8, 28, 28), np.float32)], ids=["unlike", "empty"]
)
def test_maps_without_anything_in_common(smooth):
    assert measure_drift(blobs(), smooth, (1.5, 0.5)) == (1.0, 0.5)


def test_small_maps_of_an_unusual_shape():
    assert measure_drift(blobs(side=3)[:, :, :2], blobs(side=3)[:, :, :2], (0.5, 0.5)) == (0, 0)


def noise(n=6, side=256):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8)


def test_plain_method_and_last_layer_do_not_drift():
    for layer, method in (("8", "none"), ("32", "backward-hook")):
        e = Explainer.of(spot_classifier(), layers=[layer], methods=[method], device="cpu")
        assert not e.may_drift
        assert e.drift(noise()) == {}


def test_no_patches_no_drift():
    e = Explainer.of(
        spot_classifier(), layers=["8"], methods=["backward-hook"], attributions=["gradient"], device="cpu"
    )
    assert e.drift(noise()[:0]) == {e.maps[0]: (0, 0)}


def test_drift_of_a_gated_stage_is_half_a_cell():
    """Behind the layer, one strided convolution and a gate: the average moves the gradient by half a cell."""
    e = Explainer.of(
        spot_classifier(gate=0.5),
        layers=["16"],
        methods=["backward-hook"],
        attributions=["gradient"],
        device="cpu",
    )
    spots = np.full((8, 256, 256, 3), 255, np.uint8)
    rng = np.random.default_rng(1)
    for patch in spots:
        for y, x in rng.integers(60, 200, (3, 2)):
            patch[y - 20 : y + 20, x - 20 : x + 20] = 0
    assert e.drift(spots)[e.maps[0]] == pytest.approx((8, 8), abs=2)
