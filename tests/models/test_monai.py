from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from huggingface_hub import constants

from tests.helpers.bundles import FCModel, same_logits, with_statistics
from tests.helpers.hub_cache import cached, torch_bytes
from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier
from wsi_saliency.models.monai import REVISION

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

REPO = "MONAI/pathology_tumor_detection"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(FCModel())


@pytest.fixture
def cache(network: nn.Module, tmp_path: Path) -> Path:
    """A cache after downloading the bundle's weights by their tag."""
    return cached(tmp_path / "hub", REPO, {"models/model.pt": torch_bytes(network.state_dict())}, REVISION)


def test_cached_bundle_loads_and_agrees_with_monai(
    network: nn.Module, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    classifier = load_classifier("camelyon16")
    same_logits(classifier.module, network)
    assert (classifier.uri, classifier.architecture) == (f"monai:{REPO}", "resnet18")
    assert (classifier.patch, classifier.mpp, classifier.output) == (224, 0.25, "sigmoid")
    assert classifier.mean == classifier.std == (0.5, 0.5, 0.5)  # x / 127.5 - 1
    assert (classifier.class_names, classifier.target_index(None)) == (("metastasis",), 0)
    assert (
        classifier.sha256 == next((cache / "models--MONAI--pathology_tumor_detection/blobs").iterdir()).name
    )
    assert len(classifier.notes) == 1
    assert "diagnostic" in classifier.notes[0]


def test_local_copy_of_the_weights(network: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": network.state_dict()}, tmp_path / "model.pt")  # as MONAI's CheckpointSaver nests it
    same_logits(load_classifier(f"monai:{REPO}", tmp_path / "model.pt").module, network)


def test_weights_of_another_network_do_not_fit(network: nn.Module, tmp_path: Path) -> None:
    state = {key: v for key, v in network.state_dict().items() if not key.startswith("features.7.1.")}
    torch.save({**state, "features.8.weight": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"missing layer4\.1\..* unexpected features\.8\.weight"):
        load_classifier("camelyon16", tmp_path / "model.pt")


OFFLINE = """
from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier
from wsi_saliency.models.hub import HubRepo
print(load_classifier("camelyon16").class_names)
try:
    HubRepo("MONAI/pathology_tumor_detection", "0.0.1").file("models/model.pt")
except ModelError as error:
    print(error)
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
    assert "HF_HUB_OFFLINE is set" in failed
