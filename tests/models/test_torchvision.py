from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import torch
from torchvision import models  # type: ignore[import-untyped]

from tests.helpers.bundles import same_logits, with_statistics
from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v2",
        "squeezenet1_1",
        "densenet121",
        "googlenet",
    ],
)
def test_logits_are_those_of_torchvision(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    how = {"init_weights": False} if name == "googlenet" else {}
    original = with_statistics(models.get_model(name, weights=None, num_classes=3, **how))
    torch.save(original.state_dict(), tmp_path / "m.pth")
    loaded = load_classifier(f"torchvision:{name}", tmp_path / "m.pth")
    same_logits(loaded.module, original)
    assert (loaded.uri, loaded.architecture) == (f"torchvision:{name}", name)
    assert (loaded.patch, len(loaded.class_names), loaded.named) == (224, 3, False)
    assert loaded.notes[-2] == f"patch size, mean, std: not stated, taken from torchvision's {name}"


def refused(name: str, weights: Path | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_classifier(f"torchvision:{name}", weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_have_to_be_given_and_to_fit(tmp_path: Path) -> None:
    assert "add --weights FILE" in refused("resnet18")
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "m.pth")
    assert "does not fit resnet34: missing layer1.2." in refused("resnet34", tmp_path / "m.pth")
    assert "choose another --model torchvision:NAME" in refused("resnet34", tmp_path / "m.pth")


def test_an_unknown_name_names_close_ones(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "m.pth")
    assert "close to it: resnet18" in refused("resnet-18", tmp_path / "m.pth")
    assert "no classifier 'fcn_resnet50'" in refused("fcn_resnet50", tmp_path / "m.pth")


def test_without_torchvision_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wsi_saliency.models.torchvision", raising=False)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "pip install 'wsi-saliency[torchvision]'" in refused("resnet18")
