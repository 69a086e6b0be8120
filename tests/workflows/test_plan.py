from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers.nets import spot_classifier
from tests.helpers.slides import section, write_svs
from wsi_saliency.geometry import Placement, Size
from wsi_saliency.saliency.drift import DRIFT_PATCHES
from wsi_saliency.saliency.engine import Explainer
from wsi_saliency.settings import RunSettings
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.tissue import TissueMask
from wsi_saliency.workflows.canvas import tissue_shares
from wsi_saliency.workflows.plan import NEAR_TISSUE_UM, plan_slide, with_drift

W, H, TISSUE = 640, 480, (160, 96, 288, 256)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = write_svs(tmp_path_factory.mktemp("plan") / "section.svs", [section(W, H, TISSUE)])
    with open_slide(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def explainer():
    return Explainer.of(spot_classifier(64), layers=["8"], methods=["none"], device="cpu")


@pytest.fixture(scope="module")
def plan(slide, explainer):
    return plan_slide(slide, explainer, RunSettings())


@pytest.mark.parametrize("threshold", [0, 0.1, 0.6, 1])
def test_tiles_are_the_patches_with_tissue_in_the_grid_s_order(slide, explainer, threshold):
    plan = plan_slide(slide, explainer, RunSettings(tissue_threshold=threshold))
    shares = tissue_shares(plan.grid, plan.tissue)
    mask = np.kron(plan.tissue.mask, np.ones((16, 16)))  # 8 µm per mask pixel, 0.5 per pixel
    found = [mask[t.canvas_y : t.canvas_y + 64, t.canvas_x : t.canvas_x + 64].mean() for t in plan.grid]
    np.testing.assert_allclose(shares, found, atol=1e-9)
    wanted = [i for i, share in enumerate(shares) if share >= threshold]
    assert list(plan.tiles) == [plan.grid[i] for i in wanted]
    assert plan.tissue_shares.tolist() == [shares[i] for i in wanted]
    assert 0 < len(plan.tiles) <= len(plan.grid)


def test_the_map_is_placed_at_the_layer_s_centres_less_the_drift(plan):
    (spec,) = plan.maps
    layer, canvas = plan.explainer.geometry(spec), plan.grid.canvas
    moved = replace(plan, drifts={spec: (3.0, 1.0)})
    expected = Placement.of(canvas, layer.reduction, layer.centre_x - 3, layer.centre_y - 1)
    assert moved.placement(spec) == expected
    assert plan.placement(spec) == Placement.of(canvas, layer.reduction, layer.centre_x, layer.centre_y)
    assert plan.cells(spec) == Size(W // 8, H // 8)


def test_near_tissue_is_within_twenty_micrometres_of_it(plan):
    mask = np.zeros((H, W), bool)
    mask[200, 300] = True
    (spec,) = plan.maps
    seen = replace(plan.seen, tissue=TissueMask(mask, 1, 1))
    near = replace(plan, seen=seen).near_tissue(spec, 10, 40)
    x, y = plan.placement(spec).centre(np.arange(W // 8), np.arange(10, 50)[:, None])
    reach = NEAR_TISSUE_UM / 0.5
    expected = (abs(x - 300.5) < reach + 0.5) & (abs(y - 200.5) < reach + 0.5)
    np.testing.assert_array_equal(near, expected)
    assert near.any()
    assert not near.all()


def test_drift_is_measured_on_patches_from_all_over_the_slide(slide, explainer):
    seen = []

    def drift(patches):
        seen.append(patches)
        return {spec: (2.0, -1.0)}

    dense = plan_slide(slide, explainer, RunSettings(overlap=0.75))
    assert len(dense.tiles) > 3 * DRIFT_PATCHES
    (spec,) = dense.maps
    stub = SimpleNamespace(drift=drift, may_drift=(spec,), geometry=explainer.geometry)
    plan = with_drift(replace(dense, explainer=stub), 2)
    assert plan.drift(spec) == (2.0, -1.0)
    assert DRIFT_PATCHES / 2 < len(seen[0]) <= DRIFT_PATCHES
    rgb = section(W, H, TISSUE)
    for patch, tile in zip(seen[0], dense.tiles[:: -(-len(dense.tiles) // DRIFT_PATCHES)], strict=True):
        np.testing.assert_array_equal(
            patch, rgb[tile.canvas_y : tile.canvas_y + 64, tile.canvas_x : tile.canvas_x + 64]
        )


def test_a_plan_without_tiles_drifts_nowhere(slide):
    drifting = Explainer.of(
        spot_classifier(64), layers=["8"], methods=["backward-hook"], attributions=["gradient"], device="cpu"
    )
    assert drifting.may_drift == drifting.maps
    empty = replace(plan_slide(slide, drifting, RunSettings()), tiles=[], tissue_shares=np.zeros(0))
    assert with_drift(empty, 1).drift(drifting.maps[0]) == (0.0, 0.0)
