"""Classifiers whose architecture is timm's and whose weights are a file."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import timm
from torch.utils._pytree import tree_leaves

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import one_line
from wsi_saliency.models.assembly import assemble
from wsi_saliency.models.building import Blueprint
from wsi_saliency.models.weights import Weights, read_weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from wsi_saliency.models.classifier import Classifier

# Whatever a file's model_args say, nothing else is loaded, neither from the network nor from disk.
_FIXED: Mapping[str, Any] = {"pretrained": False, "checkpoint_path": "", "pretrained_cfg": None}

# Arguments of timm.create_model that make something else than a classifier, or say how weights are loaded.
_REFUSED = frozenset(
    {"features_only", "out_indices", "feature_cfg", "feature_cls", "model_name", "scriptable", "exportable"}
    | {"no_jit", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn", "cache_dir"}
    | {"kwargs_filter", "device", "dtype"}
)
_LARGEST_ARGUMENT, _MOST_ARGUMENTS = 10_000, 1000  # a width or a depth; numbers in all


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


def build(weights: Weights, uri: str) -> Classifier:
    """Build timm's architecture that the weights' description names, and load them strictly.

    What the weights do not say of patch size and normalisation is taken from timm's ``pretrained_cfg``; the
    number of classes is that of the weights' head.

    Raises
    ------
    ModelError
        If timm does not know the architecture, or the weights do not fit it.
    """
    said = weights.description
    _check_arguments(said.model_args, weights.path)
    try:
        how = blueprint(said.architecture or "", said.model_args)
    except ModelError as error:
        named = uri.startswith("timm:")  # by the user, and not by a file
        raise error if named else ModelError(f"{uri}: {error}") from error
    return assemble(how, weights, uri)


def blueprint(architecture: str, arguments: Mapping[str, Any] | None = None) -> Blueprint:
    """Return how timm builds an architecture.

    Raises
    ------
    ModelError
        If timm does not know it; the message names close ones.
    """
    config, arguments = _config(architecture), dict(arguments or {})

    def create(classes: int | None) -> nn.Module:
        given = {**arguments, **_FIXED} | ({} if classes is None else {"num_classes": classes})
        module: nn.Module = timm.create_model(architecture, **given)
        return module

    return Blueprint(
        library="timm",
        name=architecture,
        create=create,
        heads=(config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ()),
        patch=config.input_size[-1],
        mean=config.mean,
        std=config.std,
        varied=f" with its model_args {one_line(str(arguments))}" if arguments else "",
    )


def _check_arguments(arguments: Mapping[str, Any], path: Path) -> None:
    """Refuse arguments that do not describe a classifier, and numbers that only fill memory or time."""
    refused = sorted(_REFUSED & arguments.keys())
    if refused:
        raise ModelError(f"{path}: model_args must not hold {', '.join(refused)}; they make no classifier")
    if not _is_modest(arguments):
        raise ModelError(
            f"{path}: its model_args ask for more than any patch classifier has (numbers up to "
            f"{_LARGEST_ARGUMENT}, {_MOST_ARGUMENTS} of them)"
        )


def _is_modest(arguments: Mapping[str, Any]) -> bool:
    try:
        leaves = tree_leaves(dict(arguments))
    except RecursionError:
        return False
    numbers = [leaf for leaf in leaves if isinstance(leaf, int | float)]
    return len(leaves) <= _MOST_ARGUMENTS and all(abs(number) <= _LARGEST_ARGUMENT for number in numbers)


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


def described(weights: Weights, **said: Any) -> Weights:
    """Return the weights with a description known from elsewhere, field by field."""
    return replace(weights, description=replace(weights.description, **said))
