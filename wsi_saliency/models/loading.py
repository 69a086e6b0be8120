"""From a model URI to a checked classifier."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import one_line
from wsi_saliency.models.classifier import checked
from wsi_saliency.models.own import as_classifier
from wsi_saliency.models.sources import SOURCES, source_of

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.settings import ModelSettings


def load_classifier(
    uri: str = "camelyon16",
    weights: Path | None = None,
    *,
    mpp: float | None = None,
    patch: int | None = None,
    allow_code: bool = False,
    sha256: str | None = None,
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
    allow_code
        Whether ``python:module:function`` may run the code that it names.
    sha256
        Hash that the weights have to have, 64 hexadecimal digits: that of `Classifier.sha256`.

    Raises
    ------
    ModelError
        If the URI is not understood or would run code, the weights are missing, do not fit or have another
        hash, or the classifier does not give one logit per class and patch.
    """
    if not allow_code:
        _refuse_code(uri)
    classifier = _load(uri, weights)
    _check_hash(classifier, sha256)
    return checked(replace(classifier, mpp=mpp or classifier.mpp, patch=patch or classifier.patch))


def load_chosen(settings: ModelSettings) -> Classifier:
    """Load the classifier that settings name.

    Raises
    ------
    ModelError
        As `load_classifier`.
    """
    return load_classifier(
        settings.model,
        settings.weights,
        mpp=settings.model_mpp,
        patch=settings.patch,
        allow_code=settings.allow_code,
        sha256=settings.sha256,
    )


def _load(uri: str, weights: Path | None) -> Classifier:
    source, name = source_of(uri)
    return as_classifier(source.load(name, weights), uri)


def _check_hash(classifier: Classifier, wanted: str | None) -> None:
    """Refuse other weights than those that are wanted, before the network runs."""
    if wanted is not None and classifier.sha256 != wanted.strip().lower():
        raise ModelError(
            f"--model {one_line(classifier.uri)}: the weights have SHA-256 {classifier.sha256}, and --sha256 "
            f"wants {one_line(wanted)}; they are others, or changed: download them again, or look why"
        )


def _refuse_code(uri: str) -> None:
    scheme, _, name = uri.partition(":")
    if scheme in SOURCES and SOURCES[scheme].runs_code:
        raise ModelError(
            f"--model {one_line(uri)} would run the code of {one_line(name)}, with all your rights: it could "
            "read, change and send whatever you can; if you trust it, add --allow-code"
        )
