from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from tests.helpers.nets import spot_classifier
from wsi_saliency.mapspec import MapSpec
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


def test_only_the_maps_that_may_drift_are_measured_over_all_targets():
    how = {"layers": ["8", "16"], "methods": ["none", "backward-hook"], "device": "cpu"}
    kinds = ["gradient", "gradient-x-activation"]
    e = Explainer.of(spot_classifier(), targets=["all"], attributions=kinds, **how)
    drifting = [MapSpec(layer, "backward-hook", "gradient") for layer in ("stage3", "stage4")]
    assert list(e.may_drift) == drifting
    found = e.drift(noise())
    assert list(found) == drifting
    for spec, drift in found.items():
        plain = e(noise(), [replace(spec, method="none")]).maps[replace(spec, method="none")]
        smooth = e(noise(), [spec]).maps[spec]
        layer = e.geometry(spec)
        most = layer.drift_y / layer.reduction, layer.drift_x / layer.reduction
        both = [torch.cat([maps[:, 0], maps[:, 1]]).numpy() for maps in (plain, smooth)]
        y, x = measure_drift(*both, most)
        assert drift == pytest.approx((x * layer.reduction, y * layer.reduction), abs=1e-6)


def test_the_drift_is_that_of_several_targets_together(monkeypatch):
    """Two targets are twice as many maps."""
    seen = []
    monkeypatch.setattr(
        "wsi_saliency.saliency.network.measure_drift",
        lambda plain, smooth, most: seen.append((plain.shape, smooth.shape)) or (0.5, 0.25),
    )
    how = {"layers": ["8"], "methods": ["backward-hook"], "attributions": ["gradient"], "device": "cpu"}
    e = Explainer.of(spot_classifier(), targets=["all"], **how)
    assert e.drift(noise(n=3)) == {e.maps[0]: (2.0, 4.0)}
    assert seen == [((6, 32, 32), (6, 32, 32))]
