from __future__ import annotations

import re

import timm
import torch
from torch import nn

from wsi_saliency.models.loading import load_chosen, load_classifier
from wsi_saliency.settings import ModelSettings
from wsi_saliency.workflows.describe_model import describe_model, patch_mpp_stride
from wsi_saliency.workflows.facts import lines_of


def described(**named):
    return lines_of(describe_model(load_chosen(ModelSettings(**named)), named["model"]))


def told(lines):
    return dict(lines)


def test_a_model_s_facts():
    demo = load_classifier("demo")
    lines = described(model="demo")
    facts = told(lines)
    assert facts["model"] == "demo"
    assert re.fullmatch(rf"{demo.architecture}, [\d.]+ M parameters", facts["architecture"])
    assert facts["input"] == "224 × 224 px"
    assert facts["mpp"] == f"{demo.mpp:g} µm/px"
    assert facts["normalisation"] == "(pixel / 255 − (0.5, 0.5, 0.5)) / (0.5, 0.5, 0.5)"
    assert facts["classes"] == "0: tumour"
    assert facts["output"] == "one logit, not squashed by the network; sigmoid gives probabilities"
    assert facts["target"] == "0: tumour, the only logit"
    assert facts["sha256"] == demo.sha256
    with torch.no_grad():
        glass = demo.module(torch.ones(1, 3, 224, 224)).sigmoid()  # (255 / 255 − 0.5) / 0.5
    assert facts["glass"] == f"a white patch scores tumour {glass.item():.3f}"
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
        "; smoothed by shift-average; forward-hook, surrogate only change activations and predictions"
    )


def test_what_a_model_does_not_say_is_told(tmp_path):
    path = tmp_path / "resnet.pt"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), path)
    named = {"model": "timm:test_resnet", "weights": path}
    facts = told(described(**named))
    assert facts["mpp"] == "not stated; 0.5 µm/px is assumed (--model-mpp)"
    assert facts["target"] == "a run needs --target, a class's index: the classes are not named"
    assert facts["output"] == "3 logits, not squashed by the network; softmax gives probabilities"
    assert facts["classes"] == "not named (3 logits)"
    assert re.fullmatch(
        r"a white patch scores class 0 0\.\d+, class 1 0\.\d+, class 2 0\.\d+", facts["glass"]
    )
    given = told(described(**named, patch=96, model_mpp=1.5))
    assert (given["input"], given["mpp"]) == ("96 × 96 px", "1.5 µm/px")


def layers_of(architecture, tmp_path, patch=None):
    path = tmp_path / "weights.pt"
    torch.manual_seed(0)
    torch.save(timm.create_model(architecture, num_classes=2).state_dict(), path)
    lines = described(model=f"timm:{architecture}", weights=path, patch=patch)
    return [text for label, text in lines if label == "layer"], [t for label, t in lines if label == "note"]


def test_where_only_the_stem_is_strided_no_hidden_layer_is_smoothed(tmp_path):
    layers, _ = layers_of("densenet121", tmp_path, patch=64)
    assert layers[0].endswith("; smoothed by backward-hook, centred-hook, shift-average")
    assert all(text.endswith("; smoothed by shift-average") for text in layers[1:])


def test_of_a_vision_transformer_the_blocks_that_can_be_explained_are_shown(tmp_path):
    layers, notes = layers_of("test_vit", tmp_path)
    assert [text.split(":")[0] for text in layers] == ["input", *(f"blocks.{i}" for i in range(5))]
    assert "1/16, 64 channels, 10 × 10 cells; smoothed by shift-average" in layers[1]
    assert any(note.startswith("blocks.5: no grid of cells") for note in notes)


def test_the_figures_of_a_grid_are_the_classifier_s_or_those_given():
    demo = load_classifier("demo")
    assert patch_mpp_stride(ModelSettings(model="demo")) == (demo.patch, demo.mpp, 32)
    assert patch_mpp_stride(ModelSettings(model="demo", patch=96, model_mpp=1.5)) == (96, 1.5, 32)
