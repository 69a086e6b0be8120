from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.helpers.nets import spot_classifier
from wsi_saliency.geometry import Canvas, Mpp, Size
from wsi_saliency.workflows.canvas import canvas_for, wanted_mpp


def a_slide(mpp):
    return SimpleNamespace(size=Size(1000, 800), mpp=Mpp(mpp, mpp), path=SimpleNamespace(name="s.svs"))


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
