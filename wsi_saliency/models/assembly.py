"""From weights with a description, and the blueprint of an architecture, to a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_saliency.errors import ModelError
from wsi_saliency.models.building import build_module, outline, shape_fits
from wsi_saliency.models.classifier import Classifier
from wsi_saliency.models.renaming import renamed
from wsi_saliency.models.wording import some

if TYPE_CHECKING:
    from torch import nn

    from wsi_saliency.models.building import Blueprint
    from wsi_saliency.models.weights import Weights


def assemble(blueprint: Blueprint, weights: Weights, uri: str) -> Classifier:
    """Build an architecture, load the weights strictly, and complete their description by the blueprint's.

    The number of classes is that of the weights' head. Where backbone and head have other names, they are
    renamed if that is exact, and a note says so.

    Raises
    ------
    ModelError
        If the weights do not fit the architecture, or their description does not fit them.
    """
    try:
        module, classes = _built(blueprint, weights)
        note = ""
    except ModelError:
        wanted = outline(blueprint, weights, None)
        if wanted is None or (found := renamed(blueprint, weights, wanted)) is None:
            raise
        weights, note = found
        module, classes = _built(blueprint, weights)
    said = weights.description
    if said.classes not in (None, classes):
        raise ModelError(f"{weights.path}: {classes} logits, and its description says {said.classes}")
    return Classifier(
        module=module.eval().requires_grad_(False),
        uri=uri,
        architecture=blueprint.name,
        patch=said.patch or blueprint.patch,
        mpp=said.mpp,
        mean=said.mean or blueprint.mean,
        std=said.std or blueprint.std,
        class_names=_class_names(weights, classes),
        output="sigmoid" if classes == 1 else "softmax",
        sha256=weights.sha256,
        notes=(*([note] if note else []), *_notes(blueprint, weights)),
        named=said.class_names is not None,
    )


def fits(blueprint: Blueprint, weights: Weights) -> bool:
    """Tell whether weights fit an architecture in all names and shapes, or may be renamed; takes no memory.

    Raises
    ------
    HeadError
        If they have its backbone and another head.
    """
    try:
        classes = _head_size(blueprint, weights)
    except ModelError:  # it may have another name
        classes = None
    wanted = outline(blueprint, weights, classes)
    if wanted is None:
        return False
    return shape_fits(blueprint, weights, wanted) or renamed(blueprint, weights, wanted) is not None


def _built(blueprint: Blueprint, weights: Weights) -> tuple[nn.Module, int]:
    """Return the network and the number of its classes."""
    classes = _head_size(blueprint, weights)
    module = build_module(blueprint, weights, classes)
    return module, classes or int(module.num_classes)  # type: ignore[arg-type]


def _head_size(blueprint: Blueprint, weights: Weights) -> int | None:
    """Classes of the weights' head; None where the head of the architecture has no name."""
    heads = blueprint.heads
    if not heads:
        return None
    found = [weight for head in heads if (weight := weights.state.get(f"{head}.weight")) is not None]
    if not found:
        raise ModelError(
            f"{weights.path} has no classifier weights '{heads[0]}.weight' for {blueprint.name} (it has "
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


def _notes(blueprint: Blueprint, weights: Weights) -> tuple[str, ...]:
    said = weights.description
    unsaid = [
        what
        for what, value in (("patch size", said.patch), ("mean", said.mean), ("std", said.std))
        if not value
    ]
    notes = [said.note] if said.note else []
    if unsaid:
        notes.append(f"{', '.join(unsaid)}: not stated, taken from {blueprint.library}'s {blueprint.name}")
    if said.class_names is None:
        notes.append("class names: not stated, classes are numbered")
    return tuple(notes)
