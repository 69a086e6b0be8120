"""A weights file alone: it says what it is in its metadata, or is recognised by its tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_saliency.errors import ModelError
from wsi_saliency.models.assembly import assemble
from wsi_saliency.models.recognition import fitting
from wsi_saliency.models.resnets import is_wrapped
from wsi_saliency.models.timm import build
from wsi_saliency.models.weights import read_weights
from wsi_saliency.models.wording import some

if TYPE_CHECKING:
    from wsi_saliency.models.building import Blueprint
    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.models.weights import Weights


def load_file(name: str, weights: Path | None) -> Classifier:
    """Load the weights file ``name``.

    Raises
    ------
    ModelError
        If it neither says which architecture it is for nor is recognised, does not fit what it says, or there
        are ``weights`` besides.
    """
    if weights is not None:
        raise ModelError(f"--model {name} is a file already; --weights goes with --model timm:NAME")
    read = read_weights(Path(name))
    if read.description.architecture is not None:
        return build(read, name)
    found = _recognised(read)
    note = f"recognised as {found.library}'s {found.name} by the names and shapes of its tensors"
    classifier = assemble(found, read, name)
    return replace(classifier, notes=(note, *classifier.notes))


def _recognised(weights: Weights) -> Blueprint:
    """Return the one architecture that a state dict fits."""
    fit = fitting(weights)
    if len(fit) == 1:
        return fit[0]
    if fit:
        named = ", ".join(f"{blueprint.library}:{blueprint.name}" for blueprint in fit)
        raise ModelError(f"{weights.path} fits {named}; choose with --model NAME --weights {weights.path}")
    if is_wrapped(weights.state):
        raise ModelError(
            f"{weights.path} is a network of TIAToolbox; use --model tiatoolbox:NAME --weights {weights.path}"
        )
    raise ModelError(
        f"{weights.path} does not say which architecture it is for, and is none that is recognised (it has "
        f"{some(list(weights.state))}); use --model timm:NAME --weights {weights.path}"
    )
