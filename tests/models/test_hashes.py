from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from wsi_saliency.models.hashes import weights_hash
from wsi_saliency.models.loading import load_classifier


def test_the_hash_is_that_of_the_classifier_that_is_loaded():
    assert weights_hash("demo", None) == load_classifier("demo").sha256


@pytest.mark.parametrize("uri", ["timm:resnet18", "torchvision:resnet18", "{}"])
def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path, uri):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"weights")
    uri, weights = (str(file), None) if uri == "{}" else (uri, file)
    assert weights_hash(uri, weights) == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("uri", ["camelyon16", "hf-hub:org/name", "nix", "none.safetensors", "{}"])
def test_what_is_not_known_without_a_look_has_no_hash(tmp_path, uri):
    assert weights_hash(uri.format(tmp_path), None) is None
    assert weights_hash("timm:resnet18", Path("none.pt")) is None
    assert weights_hash("python:module:function", Path(__file__)) is None
