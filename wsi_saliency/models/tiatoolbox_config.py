"""What TIAToolbox's datasets say of the classifiers that were trained on them. Free of torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wsi_saliency.models.description import Description

if TYPE_CHECKING:
    from collections.abc import Mapping

_TO_TENSOR = Description(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

DATASETS: Mapping[str, Description] = {
    "pcam": replace(
        _TO_TENSOR,
        patch=96,
        mpp=1.0,
        classes=2,
        note="sources disagree on which of the two classes of PCam is tumour; see with patches of your own, "
        "and with check-model what glass scores, which --target it is",
    ),
    "kather100k": replace(
        _TO_TENSOR,
        patch=224,
        mpp=0.5,
        class_names=("BACK", "NORM", "DEB", "TUM", "ADI", "MUC", "MUS", "STR", "LYM"),
    ),
}
