"""Classifiers whose architecture is torchvision's and whose weights are a file."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchvision import models  # type: ignore[import-untyped]

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import one_line
from wsi_saliency.models.assembly import assemble
from wsi_saliency.models.building import Blueprint
from wsi_saliency.models.weights import read_weights

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.models.classifier import Classifier

# Those that warn if nobody says how their weights are made, which are replaced anyway. They have further
# heads, of a size of their own, that only training uses.
_WITH_AUXILIARY = {"googlenet", "inception_v3"}


def load_torchvision(name: str, weights: Path | None) -> Classifier:
    """Load ``torchvision:NAME`` with the weights of a local file.

    Raises
    ------
    ModelError
        If no file is given, torchvision does not know the name, or the file does not fit it.
    """
    if weights is None:
        raise ModelError(f"torchvision:{name} needs a weights file; add --weights FILE")
    return assemble(blueprint(name), read_weights(weights), f"torchvision:{name}")


def blueprint(architecture: str) -> Blueprint:
    """Return how torchvision builds an architecture.

    Raises
    ------
    ModelError
        If torchvision does not know it; the message names close ones.
    """
    known = models.list_models(module=models)  # the classifiers, without those of segmentation and the like
    if architecture not in known:
        close = ", ".join(difflib.get_close_matches(architecture, known, n=3)) or "none"
        raise ModelError(f"torchvision has no classifier {one_line(architecture)!r}; close to it: {close}")
    auxiliary = architecture in _WITH_AUXILIARY
    how: dict[str, Any] = {"init_weights": False, "aux_logits": False} if auxiliary else {}

    def create(classes: int | None) -> nn.Module:
        given = how if classes is None else {**how, "num_classes": classes}
        module: nn.Module = models.get_model(architecture, weights=None, **given)
        return module

    seen = models.get_model_weights(architecture).DEFAULT.transforms()
    return Blueprint(
        library="torchvision",
        name=architecture,
        create=create,
        heads=(_head(create),),
        patch=seen.crop_size[0],
        mean=tuple(seen.mean),
        std=tuple(seen.std),
    )


def _head(create: Any) -> str:
    """Return the name of an architecture's last layer with weights."""
    with torch.device("meta"):
        modules = create(None).named_modules()
    named: list[str] = [name for name, module in modules if isinstance(module, nn.Linear | nn.Conv2d)]
    return named[-1]
