"""Classifiers with a ``config.json`` beside their weights, in a folder or in a repository of the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from wsi_saliency.errors import ModelError
from wsi_saliency.models.hub import hub_repo
from wsi_saliency.models.json_files import (
    mapping,
    names,
    read_document,
    square_rgb,
    text,
    three_numbers,
    three_positive,
    whole,
)
from wsi_saliency.models.timm import build, described
from wsi_saliency.models.weights import read_weights

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.models.json_files import Document

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What timm calls weights; the first that there is."""


class Files(Protocol):
    """Where the files of one model lie."""

    def file(self, *names: str) -> Path:
        """Return the local path of a file, the first of ``names`` that there is.

        Raises
        ------
        ModelError
            If there is none.
        """
        ...


@dataclass(frozen=True)
class Folder:
    """A folder on this machine."""

    path: Path

    def file(self, *names: str) -> Path:
        """Return the first of the files that there is."""
        found = (path for name in names if (path := self.path / name).is_file())
        if (first := next(found, None)) is None:
            raise ModelError(
                f"{self.path} has no {' or '.join(names)}; it is not the folder of a model, or not all of it"
            )
        return first


def load_hf_hub(name: str, weights: Path | None) -> Classifier:
    """Load ``hf-hub:ORG/NAME``; ``weights`` are taken in place of the repository's.

    Raises
    ------
    ModelError
        If its files are neither cached nor reachable, are not understood, or do not fit each other.
    """
    return load_configured(hub_repo(name, "hf-hub"), f"hf-hub:{name}", weights)


def load_configured(files: Files, uri: str, weights: Path | None) -> Classifier:
    """Load a classifier by its ``config.json``.

    Raises
    ------
    ModelError
        If there is none, it is not understood, or the weights do not fit it.
    """
    config = read_document(files.file(CONFIG))
    if "architecture" not in config.values:
        raise ModelError(
            f"{config.path} says no architecture of timm, so it is not understood; if you know the "
            "architecture: --model timm:NAME --weights FILE"
        )
    return _timm_classifier(config, files, uri, weights)


def _timm_classifier(config: Document, files: Files, uri: str, weights: Path | None) -> Classifier:
    """Build what the configuration describes in timm's way."""
    read = read_weights(weights or files.file(*WEIGHTS))
    said = {key: value for key, value in timm_description(config).items() if value is not None}
    return build(config.need("architecture", text), described(read, **said), uri)


def timm_description(config: Document) -> dict[str, Any]:
    """Return what a configuration of timm says: patch, normalisation, classes, arguments.

    The preprocessing stands below ``pretrained_cfg`` or, in older files, at the top.
    """
    said = config.section("pretrained_cfg") if "pretrained_cfg" in config.values else config
    return {
        "model_args": _arguments(config, said),
        "patch": said.get("input_size", square_rgb),
        "mean": said.get("mean", three_numbers),
        "std": said.get("std", three_positive),
        "classes": config.get("num_classes", _classes) or said.get("num_classes", _classes),
        "class_names": config.get("label_names", names) or said.get("label_names", names),
    }


def _arguments(config: Document, said: Document) -> dict[str, Any]:
    """Arguments that make the architecture the one that was saved, as timm itself would add them."""
    given = dict(config.get("model_args", mapping) or {})
    pool = said.values.get("global_pool")
    if isinstance(pool, str):
        given.setdefault("global_pool", pool)
    if said.values.get("fixed_input_size") is True and (side := said.get("input_size", square_rgb)):
        given.setdefault("img_size", side)
    return given


def _classes(value: Any) -> int:
    if value == 0:
        raise ValueError("features without a classifier, which has no logits to explain")
    return whole(value)
