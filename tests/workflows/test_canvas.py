from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers.nets import spot_classifier
from wsi_saliency.geometry import Canvas, Mpp, Size, TileGrid
from wsi_saliency.slides.tissue import TissueMask
from wsi_saliency.workflows.canvas import canvas_for, tissue_shares, wanted_mpp


def a_slide(mpp):
    return SimpleNamespace(size=Size(1000, 800), mpp=Mpp(mpp, mpp), name="s.svs")


@pytest.mark.parametrize("mpp", [0.1, 0.5, 2.0])
def test_the_canvas_has_the_wanted_mpp_up_to_four_times_enlargement(mpp, caplog):
    assert canvas_for(a_slide(mpp), 0.5) == Canvas.of(Size(1000, 800), Mpp(mpp, mpp), 0.5)
    assert not caplog.records


def test_a_slide_far_too_coarse_is_not_enlarged_and_the_run_says_so(caplog):
    assert canvas_for(a_slide(7.8), 0.5) == Canvas(1000, 800, 1.0, 1.0)
    assert "7.8 µm/px is too coarse" in caplog.text


def test_a_classifier_without_mpp_is_taken_for_a_20x_one_and_the_run_says_so(caplog):
    assert wanted_mpp(spot_classifier(mpp=0.25)) == 0.25
    assert wanted_mpp(spot_classifier(mpp=None)) == 0.5
    assert "spots does not say" in caplog.text
    assert "--model-mpp" in caplog.text


def test_shares_of_tissue_take_little_more_memory_than_they_are_and_do_not_depend_on_the_way():
    grid = TileGrid(Canvas(20_000, 10_000, 1.1, 0.9), 64, 16, 16)
    tissue = TissueMask(np.random.default_rng(0).random((90, 220)) < 0.5, 100.0, 100.0)
    at_once = tissue.fractions(*grid.level0_boxes()).ravel()
    tracemalloc.start()
    try:
        shares = tissue_shares(grid, tissue)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(shares, at_once)
    assert peak <= 10 * len(grid)
