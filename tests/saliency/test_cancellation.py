"""In front of a normalisation over channels, what has no baseline is rounding noise, and is refused."""

from __future__ import annotations

import logging

import pytest
import torch
from timm.layers import LayerNorm2d
from torch import nn

from wsi_saliency import explain_patches
from wsi_saliency.errors import ModelError
from wsi_saliency.models.classifier import Classifier
from wsi_saliency.saliency.cancellation import cancels, vanishing
from wsi_saliency.saliency.engine import Explainer
from wsi_saliency.saliency.network import Network
from wsi_saliency.settings import ATTRIBUTIONS

VANISH = ("gradient", "gradient-x-activation")
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def normalised_net():
    """A stage in front of a normalisation over channels, and one behind it."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 4),
        LayerNorm2d(16, eps=1e-6),
        nn.Conv2d(16, 32, 2, 2),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 2),
    ).eval()


def test_only_what_has_no_baseline_vanishes_and_only_in_front_of_the_normalisation():
    net = normalised_net()
    assert vanishing(net, "0", X[:1])[:2] == VANISH
    assert vanishing(net, "2", X[:1]) == vanishing(net, "input", X[:1]) == ()


def test_the_mean_over_channels_is_rounding_there():
    values = explain_patches(normalised_net(), X, "0", 1, "gradient", "none", reduce=None)
    assert cancels(values)
    assert not cancels(values[:, :1])
    assert not cancels(torch.zeros(1, 4, 3, 3))


@pytest.mark.parametrize("attribution", VANISH)
def test_patches_are_refused_with_what_works(attribution):
    with pytest.raises(ModelError, match=r"rounding noise.*--attribution deeplift or integrated-gradients"):
        explain_patches(normalised_net(), X, "0", 1, attribution)
    assert explain_patches(normalised_net(), X, "0", 1, attribution, reduce=None).shape == (2, 16, 16, 16)


@pytest.mark.parametrize("attribution", ["deeplift", "integrated-gradients"])
def test_what_compares_with_a_baseline_works(attribution):
    assert not cancels(explain_patches(normalised_net(), X, "0", 1, attribution, reduce=None, steps=8))


@pytest.mark.parametrize("attribution", ATTRIBUTIONS[:3])
def test_a_run_is_refused_before_any_slide_is_read(attribution):
    half = (0.5, 0.5, 0.5)
    classifier = Classifier(
        normalised_net(), "test", "test", 64, 0.5, half, half, ("stroma", "tumour"), "softmax", "0"
    )
    if attribution not in VANISH:
        Explainer.of(classifier, layers=["0"], attributions=[attribution], device="cpu")
        return
    with pytest.raises(ModelError, match="rounding noise"):
        Explainer.of(classifier, layers=["0"], attributions=[attribution], device="cpu")


def test_an_evaluation_leaves_it_out_unless_it_is_asked_for(caplog):
    from wsi_saliency.evaluation.maps import compared_maps
    from wsi_saliency.workflows.evaluated import without_noise

    maps = compared_maps(["none"], ["gradient", "deeplift"], ["0", "2"])
    network = Network.of(normalised_net(), maps, X[:1])
    with caplog.at_level(logging.WARNING):
        kept = [(spec.attribution, spec.layer) for spec in without_noise(network, asked=()).maps]
    assert kept == [("gradient", "2"), ("deeplift", "0"), ("deeplift", "2")]
    assert "gradient at layer '0' is left out" in caplog.text
    with pytest.raises(ModelError, match="gradient at layer '0'"):
        without_noise(network, asked=("gradient", "deeplift"))
