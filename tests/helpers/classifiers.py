"""Classifiers of a few weights, with the class names that a test asks for."""

from __future__ import annotations

import torch
from torch import nn

from wsi_saliency.models.classifier import Classifier


def classifier(*class_names: str, module: nn.Module | None = None, patch: int = 16) -> Classifier:
    return Classifier(
        module=module or network(len(class_names)),
        uri="model.pt",
        architecture="resnet18",
        patch=patch,
        mpp=0.5,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        class_names=class_names,
        output="sigmoid" if len(class_names) == 1 else "softmax",
        sha256="",
    )


def network(classes: int, *last: nn.Module) -> nn.Sequential:
    """A small network with a squeeze-and-excitation sigmoid inside, and ``last`` after its head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2),
        nn.Sigmoid(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, classes),
        *last,
    ).eval()
