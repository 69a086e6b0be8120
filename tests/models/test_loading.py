from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from wsi_saliency.errors import ModelError
from wsi_saliency.models import load_classifier, loading, model_sources
from wsi_saliency.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from pathlib import Path

# Any attempt to reach the network ends the interpreter with an error.
NO_NETWORK = """
import socket
def refuse(*args, **kwargs): raise SystemExit("network")
socket.socket.connect = socket.getaddrinfo = refuse
import sys, wsi_saliency.models
assert {"timm", "huggingface_hub"} <= set(sys.modules)
"""


@pytest.mark.parametrize("uri", ["hf-hub:timm/resnet18", "wsinfer:breast", "resnet18", "nowhere/model", ""])
def test_unknown_uri_lists_what_is_understood(uri: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_classifier(uri)
    assert repr(uri) in str(caught.value)
    assert model_sources() in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_source_is_listed() -> None:
    listed = model_sources()
    assert all(
        name in listed for name in ["demo", "camelyon16", "timm:NAME", "monai:", ".safetensors", ".ckpt"]
    )
    assert DEFAULT_MODEL in listed
    assert all(source.written.startswith(scheme) for scheme, source in loading.SOURCES.items())


@pytest.mark.parametrize("name", ["missing.pt", "missing.safetensors"])
def test_missing_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{name} does not exist"):
        load_classifier(str(tmp_path / name))


def test_a_folder_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not understood"):
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
