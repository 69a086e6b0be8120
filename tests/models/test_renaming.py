from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import timm
import torch
from torchvision import models  # type: ignore[import-untyped]

from tests.helpers.bundles import same_logits, with_statistics
from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

State = dict[str, "Tensor"]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(timm.create_model("resnet18", num_classes=3))


def named(network: nn.Module, backbone: str, head: str, own_head: str = "fc") -> State:
    """A state with something in front of its backbone's names, and another name for its head."""
    return {
        f"{head}.{name.removeprefix(f'{own_head}.')}"
        if name.startswith(f"{own_head}.")
        else backbone + name: value
        for name, value in network.state_dict().items()
    }


def saved(path: Path, state: Mapping[str, object]) -> str:
    torch.save(dict(state), path / "m.pt")
    return str(path / "m.pt")


def refused(uri: str, weights: Path | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_classifier(uri, weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "head"),
    [("backbone.", "head"), ("", "fc.1"), ("model.encoder.", "model.classifier"), ("features_of.", "fc")],
)
def test_other_names_of_backbone_and_head(
    network: nn.Module, backbone: str, head: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, named(network, backbone, head))
    loaded = load_classifier(path)
    same_logits(loaded.module, network)
    assert loaded.notes[0].startswith("recognised as timm's resnet18")
    assert loaded.notes[1] == f"the file calls its head {head.removeprefix('model.')}"
    same_logits(load_classifier("timm:resnet18", tmp_path / "m.pt").module, network)


def test_a_head_beside_lightnings_model_and_the_weights_of_a_loss(network: nn.Module, tmp_path: Path) -> None:
    state = {**named(network, "model.", "classifier"), "criterion.weight": torch.ones(3)}
    path = saved(tmp_path, {"state_dict": state, "pytorch-lightning_version": "2.4"})
    same_logits(load_classifier(path).module, network)
    plain = saved(tmp_path, state)
    loaded = load_classifier(plain)
    same_logits(loaded.module, network)
    assert "left out, for only training uses it: criterion.weight" in loaded.notes[1]


def test_a_head_without_bias(network: nn.Module, tmp_path: Path) -> None:
    state = named(network, "", "linear")
    bias = state.pop("linear.bias")
    loaded = load_classifier(saved(tmp_path, state))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images) + bias, network(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "head"), [("mobilenet_v3_small", "classifier.3"), ("vgg11_bn", "classifier.6")]
)
def test_networks_of_torchvision(name: str, head: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = with_statistics(models.get_model(name, weights=None, num_classes=2))
    loaded = load_classifier(saved(tmp_path, named(original, "enc.", "last", head)))
    same_logits(loaded.module, original, 64)
    assert loaded.architecture == name


@pytest.mark.parametrize(("name", "side"), [("googlenet", 64), ("inception_v3", 96)])
def test_heads_of_training_have_a_size_of_their_own(name: str, side: int, tmp_path: Path) -> None:
    """Who replaces the last layer of torchvision's leaves the others as they are."""
    torch.manual_seed(0)
    original = with_statistics(models.get_model(name, weights=None, init_weights=False))
    original.fc = torch.nn.Linear(original.fc.in_features, 2)
    path = saved(tmp_path, original.state_dict())
    loaded = load_classifier(f"torchvision:{name}", tmp_path / "m.pt")
    same_logits(loaded.module, original, side)
    assert "left out, for only training uses it: " in loaded.notes[0]
    if name == "inception_v3":
        assert load_classifier(path).notes[0].startswith("recognised as torchvision's inception_v3")


ODD_HEADS: dict[str, State] = {
    "several": {"fc.0.weight": torch.zeros(4, 512), "fc.3.weight": torch.zeros(2, 4)},
    "normalised": {"head.weight": torch.zeros(2, 512), "bn.weight": torch.zeros(512)},
    "two": {"a.weight": torch.zeros(2, 512), "b.weight": torch.zeros(2, 512)},
    "wider": {"head.weight": torch.zeros(2, 1024)},
    "empty": {"head.weight": torch.zeros(0, 512)},
    "bare": {"prototypes": torch.zeros(2, 512)},
}


@pytest.mark.parametrize("odd", ODD_HEADS)
def test_a_head_that_is_not_one_linear_layer_is_refused(network: nn.Module, odd: str, tmp_path: Path) -> None:
    backbone = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    path = saved(tmp_path, {**backbone, **ODD_HEADS[odd]})
    for message in (refused(path), refused("timm:resnet18", tmp_path / "m.pt")):
        assert f"{path} has the backbone of timm's resnet18, and its head is not one linear layer" in message
        assert f"{next(reversed(ODD_HEADS[odd]))} (" in message
        assert message.endswith("bring the network, --model python:MODULE:FUNCTION --allow-code")


def test_an_encoder_is_called_one(network: nn.Module, tmp_path: Path) -> None:
    backbone = {f"enc.{k}": v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    path = saved(tmp_path, backbone)
    assert "no head: an encoder, without logits to explain" in refused(path)
    assert "no head: an encoder, without logits to explain" in refused("timm:resnet18", tmp_path / "m.pt")


def test_a_backbone_that_lacks_a_tensor_is_none(network: nn.Module, tmp_path: Path) -> None:
    state = named(network, "backbone.", "head")
    del state["backbone.layer3.1.bn2.running_var"]
    assert "is none that is recognised" in refused(saved(tmp_path, state))
