"""Classifiers whose architecture is timm's and whose weights are a file."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import timm

from wsi_saliency.errors import ModelError
from wsi_saliency.models.classifier import Classifier
from wsi_saliency.models.weights import Weights, read_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn


def load_timm(name: str, weights: Path | None) -> Classifier:
    """Load ``timm:NAME`` with the weights of a local file.

    Raises
    ------
    ModelError
        If no file is given, timm does not know the name, or the file does not fit it.
    """
    if weights is None:
        raise ModelError(f"timm:{name} needs a weights file; add --weights FILE")
    return build(name, read_weights(weights), f"timm:{name}")


def load_file(path: Path) -> Classifier:
    """Load a weights file that says itself which architecture it is for.

    Raises
    ------
    ModelError
        If it does not say, or does not fit what it says.
    """
    weights = read_weights(path)
    if weights.description.architecture is None:
        raise ModelError(
            f"{path} does not say which architecture it is for; use --model timm:NAME --weights {path}"
        )
    return build(weights.description.architecture, weights, str(path))


def build(architecture: str, weights: Weights, uri: str) -> Classifier:
    """Build timm's ``architecture``, load the weights strictly, and complete their description.

    What the weights do not say of patch size and normalisation is taken from timm's ``pretrained_cfg``; the
    number of classes is that of the weights' head.

    Raises
    ------
    ModelError
        If timm does not know the architecture, or the weights do not fit it.
    """
    config = _config(architecture)
    heads = (config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ())
    module, classes = _create(architecture, weights, _head_size(heads, weights, architecture))
    _load_strictly(module, _with_linear_heads(weights.state, module, heads), weights.path, architecture)
    said = weights.description
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
        raise ModelError(f"timm has no architecture {architecture!r}{_close_matches(architecture)}")
    try:
        return timm.get_pretrained_cfg(architecture)
    except RuntimeError as error:  # "resnet18.nonsense": the architecture exists, the tag does not
        raise ModelError(f"timm has no {architecture!r}: {error}") from error


def _close_matches(architecture: str) -> str:
    names = difflib.get_close_matches(architecture, timm.list_models(), n=3)
    return f"; close to it: {', '.join(names)}" if names else "; timm.list_models() in Python lists them"


def _head_size(heads: Sequence[str], weights: Weights, architecture: str) -> int | None:
    """Classes of the weights' head; None where timm does not name the head of the architecture."""
    sizes = [weights.state[f"{head}.weight"].shape[0] for head in heads if f"{head}.weight" in weights.state]
    if sizes:
        return sizes[0]
    if not heads:
        return None
    raise ModelError(
        f"{weights.path} has no classifier weights '{heads[0]}.weight' for {architecture} "
        f"(it has {_some(list(weights.state))}): features without a head, or weights of another architecture"
    )


def _create(architecture: str, weights: Weights, classes: int | None) -> tuple[nn.Module, int]:
    """Return the architecture with random weights, and its number of classes."""
    # Whatever the file's model_args say, nothing else is loaded, neither from the network nor from disk.
    fixed: dict[str, Any] = {"pretrained": False, "checkpoint_path": "", "pretrained_cfg": None}
    if classes is not None:
        fixed["num_classes"] = classes
    try:
        module: Any = timm.create_model(architecture, **{**weights.description.model_args, **fixed})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(
            f"{weights.path}: timm cannot build {architecture} with its model_args "
            f"{dict(weights.description.model_args)} ({error})"
        ) from error
    return module, int(module.num_classes)


def _with_linear_heads(
    state: Mapping[str, Tensor], module: nn.Module, heads: Sequence[str]
) -> Mapping[str, Tensor]:
    """Reshape 1×1-convolution heads (K, C, 1, 1) to linear ones (K, C), or back, as the module wants."""
    wanted = module.state_dict()
    fitted = dict(state)
    for key in (f"{head}.weight" for head in heads):
        if key in state and key in wanted and _core(state[key]) == _core(wanted[key]):
            fitted[key] = state[key].reshape(wanted[key].shape)
    return fitted


def _core(weight: Tensor) -> tuple[int, ...]:
    """Shape without the trailing 1×1."""
    shape = tuple(weight.shape)
    return shape[:2] if shape[2:] == (1, 1) else shape


def _load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path, architecture: str) -> None:
    wanted = module.state_dict()
    # Only training reads BatchNorm's counter, and old files lack it.
    missing = [key for key in wanted if key not in state and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    unlike = [
        f"{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": unlike}
    found = [f"{what} {_some(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise ModelError(
            f"{path} does not fit {architecture}: {'; '.join(found)}; choose another --model timm:NAME"
        )
    module.load_state_dict(dict(state), strict=False)


def _some(keys: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + more


def _class_names(weights: Weights, classes: int) -> tuple[str, ...]:
    names = weights.description.class_names
    if names is None:
        return tuple(str(i) for i in range(classes))
    if len(names) != classes:
        raise ModelError(
            f"{weights.path}: {classes} logits but {len(names)} class names ({', '.join(names)})"
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
        notes.append(f"{', '.join(unsaid)}: not in the weights file, taken from timm's {architecture}")
    if said.class_names is None:
        notes.append("class names: not in the weights file, classes are numbered")
    return tuple(notes)


def described(weights: Weights, **said: Any) -> Weights:
    """Return the weights with a description known from elsewhere, field by field."""
    return replace(weights, description=replace(weights.description, **said))
