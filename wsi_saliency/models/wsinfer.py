"""WSInfer's model zoo: a registry of repositories, each with a ``config.json`` and weights.

Where the weights are a TorchScript program only, their state dict is taken out of it and loaded into timm's
architecture of that name: scripted modules have no hooks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wsi_saliency.models.hub import HubRepo, hub_repo
from wsi_saliency.models.json_files import read_document
from wsi_saliency.models.resnets import is_wrapped, unwrapped
from wsi_saliency.models.timm import build
from wsi_saliency.models.weights import read_weights
from wsi_saliency.models.wsinfer_config import REGISTRY_FILE, registered, wsinfer_description

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.models.files import Files
    from wsi_saliency.models.json_files import Document

REGISTRY = HubRepo(
    "kaczmarj/wsinfer-model-zoo-json",
    kind="dataset",
    otherwise="give the model's own repository, --model hf-hub:ORG/NAME, or a folder with its files",
)
WEIGHTS = ("model.safetensors", "torchscript_model.pt")


def load_wsinfer(name: str, weights: Path | None) -> Classifier:
    """Load ``wsinfer:NAME``, a name of the registry; ``weights`` are taken in place of the repository's.

    Raises
    ------
    ModelError
        If the registry or the files are neither cached nor reachable, there is no such name, or the files are
        not understood or do not fit each other.
    """
    repo, revision = registered(read_document(REGISTRY.file(REGISTRY_FILE)), name)
    files = hub_repo(f"{repo}@{revision}", "hf-hub")
    return wsinfer_classifier(read_document(files.file("config.json")), files, f"wsinfer:{name}", weights)


def wsinfer_classifier(config: Document, files: Files, uri: str, weights: Path | None) -> Classifier:
    """Build what WSInfer's configuration describes.

    Raises
    ------
    ModelError
        As `load_wsinfer`.
    """
    description = wsinfer_description(config)
    read = read_weights(weights or files.file(*WEIGHTS))
    state = unwrapped(read.state) if is_wrapped(read.state) else read.state
    return build(replace(read, state=state, description=description), uri)
