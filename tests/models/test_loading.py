from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier

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
