"""From a model URI to a checked classifier."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wsi_saliency.models.classifier import checked
from wsi_saliency.models.sources import source_of

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.models.classifier import Classifier


def load_classifier(
    uri: str = "camelyon16",
    weights: Path | None = None,
    *,
    mpp: float | None = None,
    patch: int | None = None,
) -> Classifier:
    """Load a classifier and try it on a blank patch.

    Parameters
    ----------
    uri
        A short name, scheme or file of the table `wsi_saliency.models.sources`: ``camelyon16``, ``demo``,
        ``timm:NAME`` or a weights file, say.
    weights
        Weights for ``timm:NAME``, or a local copy of a ``monai:`` bundle's ``model.pt``.
    mpp
        µm per pixel the classifier wants, in place of what its description says.
    patch
        Side of a patch in pixels, in place of what its description says.

    Raises
    ------
    ModelError
        If the URI is not understood, the weights cannot be had or do not fit, or the classifier does not give
        one logit per class and patch.
    """
    classifier = _load(uri, weights)
    return checked(replace(classifier, mpp=mpp or classifier.mpp, patch=patch or classifier.patch))


def _load(uri: str, weights: Path | None) -> Classifier:
    source, name = source_of(uri)
    return source.load(name, weights)
