"""Classifiers whose architecture is timm's and whose weights are a file."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import one_line
from wsi_saliency.models.building import build_module
from wsi_saliency.models.classifier import Classifier
from wsi_saliency.models.weights import Weights, read_weights
from wsi_saliency.models.wording import some

if TYPE_CHECKING:
    from collections.abc import Sequence


def load_timm(name: str, weights: Path | None) -> Classifier:
    """Load ``timm:NAME`` with the weights of a local file.

    Raises
    ------
    ModelError
        If no file is given, timm does not know the name, or the file does not fit it.
    """
    if weights is None:
        raise ModelError(f"timm:{name} needs a weights file; add --weights FILE")
    read = read_weights(weights)
    return build(described(read, architecture=name), f"timm:{name}")


def load_file(name: str, weights: Path | None) -> Classifier:
    """Load the weights file ``name``, which says itself which architecture it is for.

    Raises
    ------
    ModelError
        If it does not say, or does not fit what it says, or there are ``weights`` besides.
    """
    if weights is not None:
        raise ModelError(f"--model {name} is a file already; --weights goes with --model timm:NAME")
    path = Path(name)
    read = read_weights(path)
    if read.description.architecture is None:
        raise ModelError(
            f"{path} does not say which architecture it is for; use --model timm:NAME --weights {path}"
        )
    return build(read, str(path))


def build(weights: Weights, uri: str) -> Classifier:
    """Build the architecture that the weights say, load them strictly, and complete their description.

    What the weights do not say of patch size and normalisation is taken from timm's ``pretrained_cfg``; the
    number of classes is that of the weights' head.

    Raises
    ------
    ModelError
        If timm does not know the architecture, or the weights do not fit it.
    """
    architecture = weights.description.architecture or ""
    config = _config(architecture)
    heads = (config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ())
    classes = _head_size(heads, weights, architecture)
    module = build_module(architecture, weights, classes, heads)
    classes = classes or int(module.num_classes)  # type: ignore[arg-type]
    said = weights.description
    if said.classes not in (None, classes):
        raise ModelError(f"{weights.path}: {classes} logits, and its description says {said.classes}")
    return Classifier(
        module=module.eval().requires_grad_(False),
        uri=uri,
        architecture=architecture,
        patch=said.patch or config.input_size[-1],
        mpp=said.mpp,
        mean=said.mean or config.mean,
        std=said.std or config.std,
        class_names=_class_names(weights, classes),
        output="sigmoid" if classes == 1 else "softmax",
        sha256=weights.sha256,
        notes=_notes(weights, architecture),
        named=said.class_names is not None,
    )


def _config(architecture: str) -> Any:
    """Return timm's description of the architecture."""
    if not timm.is_model(architecture):
        raise ModelError(f"timm has no architecture {one_line(architecture)!r}{_close_matches(architecture)}")
    try:
        return timm.get_pretrained_cfg(architecture)
    except RuntimeError as error:  # "resnet18.nonsense": the architecture exists, the tag does not
        raise ModelError(f"timm has no {architecture!r}: {error}") from error


def _close_matches(architecture: str) -> str:
    names = difflib.get_close_matches(architecture, timm.list_models(), n=3)
    return f"; close to it: {', '.join(names)}" if names else "; timm.list_models() in Python lists them"


def _head_size(heads: Sequence[str], weights: Weights, architecture: str) -> int | None:
    """Classes of the weights' head; None where timm does not name the head of the architecture."""
    if not heads:
        return None
    found = [weight for head in heads if (weight := weights.state.get(f"{head}.weight")) is not None]
    if not found:
        raise ModelError(
            f"{weights.path} has no classifier weights '{heads[0]}.weight' for {architecture} (it has "
            f"{some(list(weights.state))}): features without a head, or weights of another architecture"
        )
    if not found[0].ndim or not found[0].shape[0]:
        raise ModelError(
            f"{weights.path}: its classifier weights '{heads[0]}.weight' have shape {tuple(found[0].shape)}; "
            "they have to be (classes, features)"
        )
    return found[0].shape[0]


def _class_names(weights: Weights, classes: int) -> tuple[str, ...]:
    names = weights.description.class_names
    if names is None:
        return tuple(str(i) for i in range(classes))
    if len(names) != classes:
        raise ModelError(
            f"{weights.path}: {classes} logits but {len(names)} class names ({some(list(names))})"
        )
    return names


def _notes(weights: Weights, architecture: str) -> tuple[str, ...]:
    said = weights.description
    unsaid = [
        what
        for what, value in (("patch size", said.patch), ("mean", said.mean), ("std", said.std))
        if not value
    ]
    notes = [said.note] if said.note else []
    if unsaid:
        notes.append(f"{', '.join(unsaid)}: not stated, taken from timm's {architecture}")
    if said.class_names is None:
        notes.append("class names: not stated, classes are numbered")
    return tuple(notes)


def described(weights: Weights, **said: Any) -> Weights:
    """Return the weights with a description known from elsewhere, field by field."""
    return replace(weights, description=replace(weights.description, **said))
