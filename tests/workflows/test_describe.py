from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import nn

from tests.helpers.slides import pyramid, section, write_svs, write_tiff
from wsi_saliency.errors import ModelError, SlideError
from wsi_saliency.models.loading import load_classifier
from wsi_saliency.settings import RunSettings
from wsi_saliency.slides.slide import open_slide
from wsi_saliency.workflows.describe import describe_model, describe_slide
from wsi_saliency.workflows.explain import load_explainer
from wsi_saliency.workflows.plan import plan_slide

W, H = 640, 480
PICTURE = section(W, H, (160, 96, 288, 256))
DEMO = RunSettings(model="demo", device="cpu")


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_svs(tmp_path_factory.mktemp("slides") / "section.svs", pyramid(PICTURE, (1, 4)))


def told(lines):
    return dict(lines)


def test_a_slide_s_facts(slide):
    lines = told(describe_slide(slide, RunSettings(), "demo"))
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
    settings = RunSettings(model="demo", device="cpu", overlap=overlap, tissue_threshold=0.3)
    with open_slide(slide) as opened:
        plan = plan_slide(opened, load_explainer(settings), settings)
    expected = (
        f"{len(plan.tiles)} of {len(plan.grid)} (224 px at 0.5 µm/px, overlap {overlap:g}; classifier demo)"
    )
    assert told(describe_slide(slide, settings, "demo"))["patches"] == expected


def test_without_a_model_the_default_classifier_s_figures_are_used(slide):
    assert told(describe_slide(slide, RunSettings()))["patches"].endswith(
        "(224 px at 0.25 µm/px, overlap 0.5; classifier camelyon16)"
    )


def test_patch_and_mpp_can_be_given(slide):
    settings = RunSettings(patch=96, model_mpp=1.0)
    for model in (None, "demo"):
        assert "(96 px at 1 µm/px, " in told(describe_slide(slide, settings, model))["patches"]


def test_a_slide_far_too_coarse_is_described_as_it_would_be_run(tmp_path, caplog):
    path = write_tiff(tmp_path / "coarse.tif", [PICTURE], mpp=None)
    lines = told(describe_slide(path, RunSettings(mpp=8.0), "demo"))
    assert lines["mpp"] == "8 × 8 µm/px (--mpp)"
    assert "of 20 (224 px at 8 µm/px, " in lines["patches"]
    assert "too coarse" in caplog.text


@pytest.mark.parametrize("model", [None, "demo"])
def test_a_slide_without_mpp_is_described_as_far_as_that_goes(tmp_path, model):
    path = write_tiff(tmp_path / "plain.tif", [PICTURE], mpp=None)
    lines = told(describe_slide(path, RunSettings(), model))
    assert (lines["mpp"], lines["objective"]) == ("not stated", "not stated")
    assert lines["patches"] == "unknown without the slide's mpp; give --mpp"
    assert lines["tissue"].endswith("% of the slide")


def test_an_estimated_mpp_comes_with_its_warning(tmp_path):
    path = write_svs(tmp_path / "power.svs", [PICTURE], mpp=None, power=40)
    lines = told(describe_slide(path, RunSettings()))
    assert lines["mpp"] == "0.25 × 0.25 µm/px (estimated from the objective power 40×)"
    assert "--mpp" in lines["warning"]


def test_a_slide_that_is_none_is_refused(tmp_path):
    with pytest.raises(SlideError, match="no such file"):
        describe_slide(tmp_path / "none.svs", RunSettings())
    with pytest.raises(ModelError, match="'nix' is not understood"):
        describe_slide(write_svs(tmp_path / "a.svs", [PICTURE]), RunSettings(), "nix")


def test_a_model_s_facts():
    demo = load_classifier("demo")
    lines = describe_model("demo", RunSettings())
    facts = told(lines)
    assert facts["model"] == "demo"
    assert re.fullmatch(rf"{demo.architecture}, [\d.]+ M parameters", facts["architecture"])
    assert facts["input"] == "224 × 224 px"
    assert facts["mpp"] == f"{demo.mpp:g} µm/px"
    assert facts["normalisation"] == "(pixel / 255 − (0.5, 0.5, 0.5)) / (0.5, 0.5, 0.5)"
    assert facts["classes"] == "0: tumour"
    assert facts["output"] == "one logit, sigmoid"
    assert facts["target"] == "tumour (default)"
    assert facts["sha256"] == demo.sha256
    assert "no medical meaning" in facts["note"]
    convolutions = [m for m in demo.module.modules() if isinstance(m, nn.Conv2d)]
    strided = [m for m in convolutions if max(m.stride) > 1]
    assert facts["strided"].startswith(f"{len(strided)} convolutions: conv1")
    assert "layer2.0.downsample.0 (1×1/2)" in facts["strided"]
    layers = [text for label, text in lines if label == "layer"]
    assert [text.split(",")[0] for text in layers] == [
        "input: 1/1",
        "act1: 1/2",
        "layer1: 1/4",
        "layer2: 1/8",
        "layer3: 1/16",
        "layer4: 1/32",
    ]
    assert "28 × 28 cells; smoothed by all methods" in layers[3]
    assert layers[-1].endswith(
        "; smoothed by no method; forward-hook, surrogate only change activations and predictions"
    )


def test_what_a_model_does_not_say_is_told(tmp_path):
    path = tmp_path / "resnet.pt"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), path)
    facts = told(describe_model("timm:test_resnet", RunSettings(weights=path)))
    assert facts["mpp"] == "not stated; 0.5 µm/px is assumed (--model-mpp)"
    assert facts["target"] == "a run needs --target, a class's index"
    assert facts["output"] == "3 logits, softmax"
    assert facts["classes"] == "not named (3 logits)"
    given = told(describe_model("timm:test_resnet", RunSettings(weights=path, patch=96, model_mpp=1.5)))
    assert (given["input"], given["mpp"]) == ("96 × 96 px", "1.5 µm/px")


def layers_of(architecture, tmp_path, patch=None):
    path = tmp_path / "weights.pt"
    torch.manual_seed(0)
    torch.save(timm.create_model(architecture, num_classes=2).state_dict(), path)
    lines = describe_model(f"timm:{architecture}", RunSettings(weights=path, patch=patch))
    return [text for label, text in lines if label == "layer"], [t for label, t in lines if label == "note"]


def test_where_only_the_stem_is_strided_no_hidden_layer_is_smoothed(tmp_path):
    layers, _ = layers_of("densenet121", tmp_path, patch=64)
    assert layers[0].endswith("; smoothed by backward-hook, centred-hook")
    assert all(text.endswith("; smoothed by no method") for text in layers[1:])


def test_of_a_vision_transformer_the_layers_that_can_be_explained_are_shown(tmp_path):
    layers, notes = layers_of("test_vit", tmp_path)
    assert [text.split(":")[0] for text in layers] == ["input", "patch_embed.proj"]
    assert any("blocks.0" in note and "not supported yet" in note for note in notes)
