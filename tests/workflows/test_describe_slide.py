from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT, SAMPLE
from tests.helpers.slides import pyramid, section, write_svs, write_tiff
from wsi_saliency.errors import ModelError, SlideError
from wsi_saliency.settings import DEFAULT_MODEL, InspectSettings, RunSettings
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.workflows.describe_slide import describe_slide
from wsi_saliency.workflows.explain import load_explainer
from wsi_saliency.workflows.plan import plan_slide

W, H = 640, 480
PICTURE = section(W, H, (160, 96, 288, 256))


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_svs(tmp_path_factory.mktemp("slides") / "section.svs", pyramid(PICTURE, (1, 4)))


def told(lines):
    return dict(lines)


def test_a_slide_s_facts(slide):
    lines = told(describe_slide(slide, InspectSettings(model="demo")))
    assert lines["file"] == str(slide)
    assert lines["format"] == "aperio"
    assert lines["size"] == f"{W} × {H} px"
    assert lines["levels"] == f"2: {W}×{H} (1/1), {W // 4}×{H // 4} (1/4)"
    assert lines["mpp"] == "0.5 × 0.5 µm/px (the file)"
    assert lines["objective"] == "20×"
    area, share = (
        float(n) for n in re.fullmatch(r"([\d.]+) mm², ([\d.]+)% of the slide", lines["tissue"]).groups()
    )
    assert area == pytest.approx(288 * 256 * 0.25e-6, rel=0.3)  # a mask pixel is 16 level-0 pixels
    assert share == pytest.approx(100 * 288 * 256 / (W * H), rel=0.3)


@pytest.mark.parametrize("overlap", [0, 0.5])
def test_the_patches_are_those_of_a_run(slide, overlap):
    grid = {"model": "demo", "overlap": overlap, "tissue_threshold": 0.3}
    settings = RunSettings(device="cpu", **grid)
    with open_slide(slide) as opened:
        plan = plan_slide(opened, load_explainer(settings), settings)
    expected = (
        f"{len(plan.tiles)} of {len(plan.grid)} (224 px at 0.5 µm/px, overlap {overlap:g}; classifier demo)"
    )
    assert told(describe_slide(slide, InspectSettings(**grid)))["patches"] == expected


def test_without_a_model_the_default_classifier_s_figures_are_used(slide):
    assert told(describe_slide(slide, InspectSettings()))["patches"].endswith(
        "(224 px at 0.25 µm/px, overlap 0.5; classifier camelyon16)"
    )


def test_weights_are_not_ignored_with_the_default_classifier(slide, tmp_path):
    with pytest.raises(ModelError, match=r"w\.pt does not exist"):
        describe_slide(slide, InspectSettings(weights=tmp_path / "w.pt"))


def test_patch_and_mpp_can_be_given(slide):
    for model in (DEFAULT_MODEL, "demo"):
        settings = InspectSettings(model=model, patch=96, model_mpp=1.0)
        assert "(96 px at 1 µm/px, " in told(describe_slide(slide, settings))["patches"]


def test_a_slide_far_too_coarse_is_described_as_it_would_be_run(tmp_path, caplog):
    path = write_tiff(tmp_path / "coarse.tif", [PICTURE], mpp=None)
    lines = told(describe_slide(path, InspectSettings(mpp=8.0, model="demo")))
    assert lines["mpp"] == "8 × 8 µm/px (--mpp)"
    assert "of 20 (224 px at 8 µm/px, " in lines["patches"]
    assert "too coarse" in caplog.text


@pytest.mark.parametrize("model", [DEFAULT_MODEL, "demo"])
def test_a_slide_without_mpp_is_described_as_far_as_that_goes(tmp_path, model):
    path = write_tiff(tmp_path / "plain.tif", [PICTURE], mpp=None)
    lines = told(describe_slide(path, InspectSettings(model=model)))
    assert (lines["mpp"], lines["objective"]) == ("not stated", "not stated")
    assert lines["patches"] == "unknown without the slide's mpp; give --mpp"
    assert lines["tissue"].endswith("% of the slide")


def test_an_estimated_mpp_comes_with_its_warning(tmp_path):
    path = write_svs(tmp_path / "power.svs", [PICTURE], mpp=None, power=40)
    lines = told(describe_slide(path, InspectSettings()))
    assert lines["mpp"] == "0.25 × 0.25 µm/px (estimated from the objective power 40×)"
    assert "--mpp" in lines["warning"]


def test_a_slide_that_is_none_is_refused(tmp_path):
    with pytest.raises(SlideError, match="no such file"):
        describe_slide(tmp_path / "none.svs", InspectSettings())
    with pytest.raises(ModelError, match="'nix' is not understood"):
        describe_slide(write_svs(tmp_path / "a.svs", [PICTURE]), InspectSettings(model="nix"))


@pytest.mark.parametrize(("model", "torch"), [([], False), (["--model", "demo"], True)])
def test_a_slide_is_inspected_without_torch_unless_a_model_is_named(model, torch):
    code = f"""
import sys
from wsi_saliency.cli import cli
cli(["inspect", {str(SAMPLE)!r}, *{model!r}], standalone_mode=False)
sys.exit(10 + ("torch" in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert b"patches" in done.stdout
    assert done.returncode == 10 + torch, done.stderr
