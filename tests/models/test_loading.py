from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import timm
import torch
from safetensors.torch import save_file

from wsi_saliency.errors import ModelError
from wsi_saliency.models import loading
from wsi_saliency.models.loading import load_chosen, load_classifier
from wsi_saliency.settings import ModelSettings

if TYPE_CHECKING:
    from pathlib import Path

# Any attempt to reach the network ends the interpreter with an error.
NO_NETWORK = """
import socket
def refuse(*args, **kwargs): raise SystemExit("network")
socket.socket.connect = socket.getaddrinfo = refuse
import sys, wsi_saliency.models.loading, wsi_saliency.models.monai, wsi_saliency.models.demo
assert {"timm", "huggingface_hub"} <= set(sys.modules)
"""


@pytest.mark.parametrize("name", ["missing.pt", "missing.safetensors"])
def test_missing_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{name} does not exist"):
        load_classifier(str(tmp_path / name))


def test_an_empty_folder_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_classifier(str(tmp_path))


def test_a_file_takes_no_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "m.pt")
    with pytest.raises(ModelError, match="--weights goes with"):
        load_classifier(str(tmp_path / "m.pt"), tmp_path / "m.pt")


def test_import_needs_no_network(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def other_than(digest: str) -> str:
    return ("1" if digest[0] == "0" else "0") + digest[1:]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_of_another_hash_are_refused_and_both_hashes_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    state = timm.create_model("test_resnet", num_classes=2).state_dict()
    torch.save(state, path) if suffix == "pt" else save_file(state, path)
    have = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_classifier("timm:test_resnet", path, sha256=have.upper()).sha256 == have
    with pytest.raises(ModelError, match=f"{have}.*--sha256 wants {other_than(have)}") as refusal:
        load_classifier("timm:test_resnet", path, sha256=other_than(have))
    assert "\n" not in str(refusal.value)


def test_the_network_of_other_weights_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "checked", lambda classifier: pytest.fail("it ran"))
    with pytest.raises(ModelError, match="SHA-256"):
        load_chosen(ModelSettings(model="demo", sha256="0" * 64))
