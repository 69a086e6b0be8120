"""Classifiers with their configuration beside their weights, in a folder or in a repository of the Hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_saliency.errors import ModelError
from wsi_saliency.models.files import Folder
from wsi_saliency.models.hub import hub_repo
from wsi_saliency.models.json_files import read_document
from wsi_saliency.models.monai import bundle_classifier
from wsi_saliency.models.timm import build
from wsi_saliency.models.timm_config import timm_description
from wsi_saliency.models.weights import read_weights
from wsi_saliency.models.wsinfer import wsinfer_classifier
from wsi_saliency.models.wsinfer_config import is_wsinfer

if TYPE_CHECKING:
    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.models.files import Files
    from wsi_saliency.models.json_files import Document

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What timm calls weights; the first that there is."""


def load_hf_hub(name: str, weights: Path | None) -> Classifier:
    """Load ``hf-hub:ORG/NAME``; ``weights`` are taken in place of the repository's.

    Raises
    ------
    ModelError
        If its files are neither cached nor reachable, are not understood, or do not fit each other.
    """
    return _load(hub_repo(name, "hf-hub"), f"hf-hub:{name}", weights)


def load_folder(name: str, weights: Path | None) -> Classifier:
    """Load the classifier of a folder; ``weights`` are taken in place of the folder's.

    Raises
    ------
    ModelError
        If its files are not understood, or do not fit each other.
    """
    folder = Folder(Path(name).expanduser())
    if (folder.path / "configs").is_dir():
        return bundle_classifier(folder, name, weights)
    return _load(folder, name, weights)


def _load(files: Files, uri: str, weights: Path | None) -> Classifier:
    config = read_document(files.file("config.json"))
    if is_wsinfer(config):
        return wsinfer_classifier(config, files, uri, weights)
    if "architecture" in config.values:
        return _timm_classifier(config, files, uri, weights)
    raise ModelError(
        f"{config.path} is neither timm's, for it says no architecture, nor WSInfer's, for it says no "
        "spec_version; if you know the architecture: --model timm:NAME --weights FILE"
    )


def _timm_classifier(config: Document, files: Files, uri: str, weights: Path | None) -> Classifier:
    """Build what the configuration describes in timm's way."""
    description = timm_description(config)
    read = read_weights(weights or files.file(*WEIGHTS))
    return build(replace(read, description=description.completed_by(read.description)), uri)
