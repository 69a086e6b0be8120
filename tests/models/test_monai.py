from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor, nn
from torchvision.models import resnet18  # type: ignore[import-untyped]

from tests.helpers.hub_cache import cached, torch_bytes
from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier
from wsi_saliency.models.monai import REVISION

if TYPE_CHECKING:
    from pathlib import Path

REPO = "MONAI/pathology_tumor_detection"


class MonaiNetwork(nn.Module):
    """MONAI's TorchVisionFCModel("resnet18", num_classes=1, use_conv=True), after its definition."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(resnet18().children())[:-2])
        self.pool = nn.AvgPool2d(kernel_size=7, stride=1)
        self.fc = nn.Conv2d(512, 1, kernel_size=1)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.pool(self.features(x)))


@pytest.fixture(scope="module")
def network() -> MonaiNetwork:
    """The network with random weights and, so that renaming errors show, random BatchNorm statistics."""
    torch.manual_seed(0)
    network = MonaiNetwork().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1)
    return network


@pytest.fixture
def cache(network: MonaiNetwork, tmp_path: Path) -> Path:
    """A cache after downloading the bundle's weights by their tag."""
    return cached(tmp_path / "hub", REPO, {"models/model.pt": torch_bytes(network.state_dict())}, REVISION)


def assert_same_logits(module: nn.Module, network: MonaiNetwork) -> None:
    patches = torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(module(patches), network(patches).flatten(1), rtol=1e-5, atol=1e-5)


def test_cached_bundle_loads_and_agrees_with_monai(
    network: MonaiNetwork, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    classifier = load_classifier("camelyon16")
    assert_same_logits(classifier.module, network)
    assert (classifier.uri, classifier.architecture) == (f"monai:{REPO}", "resnet18")
    assert (classifier.patch, classifier.mpp, classifier.output) == (224, 0.25, "sigmoid")
    assert classifier.mean == classifier.std == (0.5, 0.5, 0.5)  # x / 127.5 - 1
    assert (classifier.class_names, classifier.target_index(None)) == (("metastasis",), 0)
    assert (
        classifier.sha256 == next((cache / "models--MONAI--pathology_tumor_detection/blobs").iterdir()).name
    )
    assert len(classifier.notes) == 1
    assert "diagnostic" in classifier.notes[0]


def test_local_copy_of_the_weights(network: MonaiNetwork, tmp_path: Path) -> None:
    torch.save({"model": network.state_dict()}, tmp_path / "model.pt")  # as MONAI's CheckpointSaver nests it
    assert_same_logits(load_classifier(f"monai:{REPO}", tmp_path / "model.pt").module, network)


def test_weights_of_another_network_do_not_fit(network: MonaiNetwork, tmp_path: Path) -> None:
    state = {key: v for key, v in network.state_dict().items() if not key.startswith("features.7.1.")}
    torch.save({**state, "features.8.weight": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"missing layer4\.1\..* unexpected features\.8\.weight"):
        load_classifier("camelyon16", tmp_path / "model.pt")


def test_another_bundle_is_not_guessed() -> None:
    with pytest.raises(ModelError, match=f"monai:MONAI/spleen is not understood; .*{REPO}"):
        load_classifier("monai:MONAI/spleen")


OFFLINE = """
import time
from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier
from wsi_saliency.models.hub import HubRepo
print(load_classifier("camelyon16").class_names)
start = time.monotonic()
try:
    HubRepo("MONAI/pathology_tumor_detection", "0.0.1").file("models/model.pt")
except ModelError as error:
    print(error)
assert time.monotonic() - start < 2
"""


def test_offline_mode_uses_the_cache_and_says_what_is_missing(cache: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    done = subprocess.run(
        # torch 2.6 leaves the removal of a temporary folder to the garbage collector
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", OFFLINE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    loaded, failed = done.stdout.splitlines()
    assert loaded == "('metastasis',)"
    assert "offline mode is enabled" in failed
