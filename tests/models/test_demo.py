from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import pytest
import timm
import torch
from safetensors.torch import save_file

from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier

if TYPE_CHECKING:
    from pathlib import Path

BUNDLED = resources.files("wsi_saliency.models") / "demo.safetensors"
CARD = resources.files("wsi_saliency.models") / "DEMO_MODEL_CARD.md"


def test_demo_is_the_packaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    state = timm.create_model("test_resnet", num_classes=1).state_dict()
    metadata = {"architecture": "test_resnet", "patch": "64", "class_names": '["tumour"]'}
    save_file(state, tmp_path / "demo.safetensors", metadata=metadata)
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    demo = load_classifier("demo")
    assert (demo.uri, demo.architecture, demo.patch) == ("demo", "test_resnet", 64)
    assert demo.class_names == ("tumour",)


def test_demo_takes_neither_weights_nor_a_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="demo brings its own weights"):
        load_classifier("demo", tmp_path / "m.pt")
    with pytest.raises(ModelError, match="demo brings its own weights"):
        load_classifier("demo:large")


@pytest.mark.skipif(not BUNDLED.is_file(), reason="the bundled weights are not there")
def test_bundled_classifier_describes_itself() -> None:
    demo = load_classifier("demo")
    assert demo.mpp is not None
    demo.target_index(None)
    assert any("no medical meaning" in note for note in demo.notes)
    assert not any("not stated" in note for note in demo.notes)
    assert len(BUNDLED.read_bytes()) <= 2_500_000
    assert "no medical meaning" in CARD.read_text(encoding="utf-8")
