"""TIAToolbox's patch classifiers: a ResNet and the dataset that it was trained on.

Its own forward pass ends in a softmax; here the network ends where the logits are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import one_line
from wsi_saliency.models.description import Description
from wsi_saliency.models.resnets import RESNETS, is_wrapped, unwrapped
from wsi_saliency.models.timm import build
from wsi_saliency.models.weights import read_weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from wsi_saliency.models.classifier import Classifier

_TO_TENSOR = Description(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

DATASETS: Mapping[str, Description] = {
    "pcam": replace(
        _TO_TENSOR,
        patch=96,
        mpp=1.0,
        classes=2,
        note="sources disagree on which of the two classes of PCam is tumour; see with check-model and with "
        "patches of your own which --target answers to it",
    ),
    "kather100k": replace(
        _TO_TENSOR,
        patch=224,
        mpp=0.5,
        class_names=("BACK", "NORM", "DEB", "TUM", "ADI", "MUC", "MUS", "STR", "LYM"),
    ),
}


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
