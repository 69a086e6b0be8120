"""From a model URI to a checked classifier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_saliency.errors import ModelError
from wsi_saliency.models.classifier import Classifier, checked
from wsi_saliency.models.demo import load_demo
from wsi_saliency.models.monai import PATHOLOGY_TUMOR_DETECTION, load_monai
from wsi_saliency.models.timm import load_file, load_timm
from wsi_saliency.models.weights import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Source:
    """One kind of model URI: how it is written, and the function that loads what follows its colon."""

    written: str
    load: Callable[[str, Path | None], Classifier]


SOURCES: Mapping[str, Source] = {
    "demo": Source("demo", load_demo),
    "timm": Source("timm:NAME with --weights FILE", load_timm),
    "monai": Source(f"monai:{PATHOLOGY_TUMOR_DETECTION}", load_monai),
}
ALIASES: Mapping[str, str] = {"camelyon16": f"monai:{PATHOLOGY_TUMOR_DETECTION}"}


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
        ``demo``, ``camelyon16``, ``timm:NAME``, ``monai:ORG/NAME``, or the path of a ``.safetensors``,
        ``.pt``, ``.pth`` or ``.ckpt`` file.
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
    classifier = _load(ALIASES.get(uri, uri), weights)
    return checked(replace(classifier, mpp=mpp or classifier.mpp, patch=patch or classifier.patch))


def model_sources() -> str:
    """List the model URIs that are understood, for messages and help."""
    return ", ".join(
        [*ALIASES, *(source.written for source in SOURCES.values()), f"a {'/'.join(SUFFIXES)} file"]
    )


def _load(uri: str, weights: Path | None) -> Classifier:
    scheme, _, name = uri.partition(":")
    if scheme in SOURCES:
        return SOURCES[scheme].load(name, weights)
    path = Path(uri)
    if path.suffix not in SUFFIXES and not path.expanduser().is_file():
        raise ModelError(f"--model {uri!r} is not understood; it can be {model_sources()}")
    if weights is not None:
        raise ModelError(f"--model {uri} is a file already; --weights goes with --model timm:NAME")
    return load_file(path)
