"""MONAI bundles: the Camelyon16 metastasis classifier ``MONAI/pathology_tumor_detection``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wsi_saliency.errors import ModelError
from wsi_saliency.models.hub import HubRepo
from wsi_saliency.models.resnets import unwrapped
from wsi_saliency.models.sources import PATHOLOGY_TUMOR_DETECTION
from wsi_saliency.models.timm import build, described
from wsi_saliency.models.weights import read_weights

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.models.classifier import Classifier

REVISION = "0.6.3"  # MONAI tags each bundle version on the Hub; 0.6.4 has the same weights
WEIGHTS_FILE = "models/model.pt"
_OTHERWISE = (
    "give a copy of it with --weights FILE (elsewhere: hf download "
    f"{PATHOLOGY_TUMOR_DETECTION} {WEIGHTS_FILE} --revision {REVISION}), or use "
    "--model timm:NAME --weights FILE"
)


def load_monai(repo: str, weights: Path | None) -> Classifier:
    """Load a MONAI bundle of the Hub into timm's ResNet-18; ``weights`` is a local copy of its ``model.pt``.

    The description is that of the bundle's ``metadata.json`` and ``inference.json``: patches of 224 pixels of
    Camelyon16's finest level (about 0.25 µm), x / 127.5 − 1, one logit, metastasis. timm averages the last
    feature map over its whole extent where the bundle averages 7 × 7 cells: the same at 224 pixels only.

    Raises
    ------
    ModelError
        If it is another bundle, or the weights are neither cached nor reachable, or do not fit.
    """
    if repo != PATHOLOGY_TUMOR_DETECTION:
        raise ModelError(
            f"monai:{repo} is not understood; of MONAI's bundles monai:{PATHOLOGY_TUMOR_DETECTION} is"
        )
    read = read_weights(weights or HubRepo(repo, REVISION, otherwise=_OTHERWISE).file(WEIGHTS_FILE))
    renamed = described(
        replace(read, state=unwrapped(read.state)),
        architecture="resnet18",
        patch=224,
        mpp=0.25,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        class_names=("metastasis",),
        note="MONAI calls this model an example, not to be used for diagnostic purposes",
    )
    return build(renamed, f"monai:{repo}")
