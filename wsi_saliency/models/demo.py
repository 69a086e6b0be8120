"""The small bundled classifier: for trying the program, without medical meaning."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING

from wsi_saliency.errors import ModelError
from wsi_saliency.models.weights_file import load_file

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.models.classifier import Classifier


def load_demo(name: str, weights: Path | None) -> Classifier:
    """Load the bundled classifier; ``name`` and ``weights`` have to be empty.

    Raises
    ------
    ModelError
        If a name or a weights file is given.
    """
    if name or weights is not None:
        raise ModelError("demo brings its own weights; for others use --model timm:NAME --weights FILE")
    with resources.as_file(resources.files(__package__) / "demo.safetensors") as path:
        return replace(load_file(str(path), None), uri="demo")
