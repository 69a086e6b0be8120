from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torchvision import models  # type: ignore[import-untyped]

from tests.helpers.bundles import with_statistics
from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier

if TYPE_CHECKING:
    from pathlib import Path


class CNNModel(nn.Module):
    """TIAToolbox's patch classifier, after its definition."""

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        network = models.get_model(name, weights=None)
        self.feat_extract = nn.Sequential(*list(network.children())[:-2])
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Linear(network.fc.in_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.logits(x), -1)

    def logits(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.pool(self.feat_extract(x)).flatten(1))
        return out


def saved(path: Path, name: str = "resnet18", classes: int = 2) -> CNNModel:
    torch.manual_seed(0)
    network = CNNModel(name, classes)
    with_statistics(network)
    torch.save(network.state_dict(), path)
    return network


@pytest.mark.parametrize(
    ("name", "dataset", "classes", "side", "mpp"),
    [("resnet18", "pcam", 2, 96, 1.0), ("resnet50", "kather100k", 9, 224, 0.5)],
)
def test_it_gives_the_logits_in_front_of_the_softmax(
    name: str, dataset: str, classes: int, side: int, mpp: float, tmp_path: Path
) -> None:
    original = saved(tmp_path / "m.pth", name, classes)
    loaded = load_classifier(f"tiatoolbox:{name}-{dataset}", tmp_path / "m.pth")
    patches = torch.rand(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(patches), original.logits(patches), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loaded.module(patches).softmax(1), original(patches))
    assert (loaded.patch, loaded.mpp, loaded.output) == (side, mpp, "softmax")
    assert (loaded.mean, loaded.std) == ((0, 0, 0), (1, 1, 1))


def test_kathers_classes_are_named(tmp_path: Path) -> None:
    saved(tmp_path / "m.pth", classes=9)
    loaded = load_classifier("tiatoolbox:resnet18-kather100k", tmp_path / "m.pth")
    assert loaded.target_index("tum") == 3
    assert loaded.notes == ()


def test_pcams_classes_are_not_guessed(tmp_path: Path) -> None:
    saved(tmp_path / "m.pth")
    loaded = load_classifier("tiatoolbox:resnet18-pcam", tmp_path / "m.pth")
    with pytest.raises(ModelError, match="choose --target from the indices 0 to 1"):
        loaded.target_index(None)
    assert "sources disagree" in loaded.notes[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet18-pcam", "add --weights FILE"),
        ("resnet18", "is not understood; it can be ARCHITECTURE-DATASET"),
        ("googlenet-pcam", "is not understood"),
        ("resnet18-idars", "one of pcam, kather100k"),
    ],
)
def test_names_and_weights_have_to_be_given(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load_classifier(f"tiatoolbox:{name}")


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    torch.save(models.resnet18(weights=None, num_classes=2).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(ModelError, match=r"no network of TIAToolbox.*--model timm:resnet18"):
        load_classifier("tiatoolbox:resnet18-pcam", tmp_path / "plain.pth")
    saved(tmp_path / "nine.pth", classes=9)
    with pytest.raises(ModelError, match="9 logits, and its description says 2"):
        load_classifier("tiatoolbox:resnet18-pcam", tmp_path / "nine.pth")
