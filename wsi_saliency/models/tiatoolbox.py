"""TIAToolbox's patch classifiers: a ResNet and the dataset that it was trained on.

Its own forward pass ends in a softmax; here the network ends where the logits are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import one_line
from wsi_saliency.models.resnets import RESNETS, is_wrapped, unwrapped
from wsi_saliency.models.tiatoolbox_config import DATASETS
from wsi_saliency.models.timm import build
from wsi_saliency.models.weights import read_weights

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.models.classifier import Classifier


def load_tiatoolbox(name: str, weights: Path | None) -> Classifier:
    """Load ``tiatoolbox:ARCHITECTURE-DATASET`` with the weights of a local file.

    Raises
    ------
    ModelError
        If no file is given, the name is not understood, or the file does not fit it.
    """
    architecture, _, dataset = name.rpartition("-")
    if architecture not in RESNETS or dataset not in DATASETS:
        raise ModelError(
            f"tiatoolbox:{one_line(name)} is not understood; it can be ARCHITECTURE-DATASET with one of "
            f"{', '.join(RESNETS)} and one of {', '.join(DATASETS)}"
        )
    if weights is None:
        raise ModelError(f"tiatoolbox:{name} needs its weights file; add --weights FILE")
    read = read_weights(weights)
    if not is_wrapped(read.state):
        raise ModelError(
            f"{weights} holds no network of TIAToolbox, whose parameters begin with feat_extract; use "
            f"--model timm:{architecture} --weights FILE"
        )
    description = replace(DATASETS[dataset], architecture=architecture)
    return build(replace(read, state=unwrapped(read.state), description=description), f"tiatoolbox:{name}")
