"""Names: a backbone inside of another network, and a head of another name, as the architecture calls them.

Whoever puts a head on a backbone gives both other names: ``backbone.conv1.weight`` and ``head.weight``, say,
or ``fc.1.weight`` behind a dropout. Renaming is exact if the whole backbone is there in all names and shapes,
and what is left is one linear layer that takes its features.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from wsi_saliency.errors import ModelError
from wsi_saliency.models.building import core_shape
from wsi_saliency.models.wording import some

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from wsi_saliency.models.building import Blueprint
    from wsi_saliency.models.weights import Weights

# What only training uses: weights of a loss, and heads that are asked beside the last one.
_OF_TRAINING = ("criterion.", "loss.", "loss_fn.", "AuxLogits.", "aux1.", "aux2.", "aux_logits.")
_COUNTER = ".num_batches_tracked"


class HeadError(ModelError):
    """The backbone fits an architecture, and what stands on it is not one linear layer."""


def renamed(
    blueprint: Blueprint, weights: Weights, wanted: Mapping[str, Tensor]
) -> tuple[Weights, str] | None:
    """Return weights by the names of an architecture, and a note that says what was renamed.

    Parameters
    ----------
    blueprint, weights
        Of the architecture; what is to be renamed.
    wanted
        The architecture's state, names and shapes; its head may have any number of classes.

    Returns
    -------
    tuple or None
        None where the backbone of the architecture is not there, or there is more beside a head of its name.

    Raises
    ------
    HeadError
        If it is there, and what is left is not one linear layer that takes its features.
    """
    if len(blueprint.heads) != 1:
        return None
    head = f"{blueprint.heads[0]}."
    backbone = {name: value for name, value in wanted.items() if not name.startswith(head)}
    for prefix in prefixes(weights.state, next(iter(backbone))):
        if _is_there(weights.state, prefix, backbone):
            try:
                return _with_head(blueprint, weights, prefix, backbone, wanted[f"{head}weight"])
            except HeadError:
                if f"{prefix}{head}weight" not in weights.state:
                    raise
    return None


def prefixes(state: Mapping[str, Tensor], name: str) -> Iterator[str]:
    """Yield what stands in front of a name in a state dict, each time that it is there."""
    for key in state:
        front = key.removesuffix(name)
        if key.endswith(name) and (not front or front.endswith(".")):
            yield front


def _is_there(state: Mapping[str, Tensor], prefix: str, backbone: Mapping[str, Tensor]) -> bool:
    return all(
        name.endswith(_COUNTER) or (prefix + name in state and state[prefix + name].shape == value.shape)
        for name, value in backbone.items()
    )


def _with_head(
    blueprint: Blueprint, weights: Weights, prefix: str, backbone: Mapping[str, Tensor], wanted: Tensor
) -> tuple[Weights, str]:
    """Take the backbone, and the one layer beside it as the head, whose weight is like ``wanted``."""
    state, head = weights.state, blueprint.heads[0]
    renamed = {name: state[prefix + name] for name in backbone if prefix + name in state}
    left = {key: value for key, value in state.items() if key.removeprefix(prefix) not in backbone}
    unused = [key for key in left if key.removeprefix(prefix).startswith(_OF_TRAINING)]
    left = {key: value for key, value in left.items() if key not in unused}
    name = _linear_layer(blueprint, weights, left, core_shape(wanted)[1])
    weight = left[f"{name}.weight"]
    bias = left.get(f"{name}.bias", torch.zeros(len(weight), dtype=weight.dtype))
    renamed |= {f"{head}.weight": weight, f"{head}.bias": bias}
    said = [f"the file calls its head {some([name])}"] if name != f"{prefix}{head}" else []
    said += [f"left out, for only training uses it: {some(unused)}"] if unused else []
    return replace(weights, state=renamed), "; ".join(said)


def _linear_layer(blueprint: Blueprint, weights: Weights, left: Mapping[str, Tensor], features: int) -> str:
    """Return the name of the linear layer that all tensors left over belong to."""
    names = {key.removesuffix(".weight") for key in left if key.endswith(".weight")}
    name = names.pop() if len(names) == 1 else ""
    if left.keys() in ({f"{name}.weight"}, {f"{name}.weight", f"{name}.bias"}):
        shape = core_shape(left[f"{name}.weight"])
        if len(shape) == 2 and shape[1] == features and shape[0]:
            return name
    whose = f"{weights.path} has the backbone of {blueprint.library}'s {blueprint.name}"
    if not left:
        raise HeadError(
            f"{whose} and no head: an encoder, without logits to explain; add its classifier to the file"
        )
    raise HeadError(
        f"{whose}, and its head is not one linear layer of {features} features: {some(_shapes(left), 4)}; "
        "what lies between these no file shows: bring the network, "
        "--model python:MODULE:FUNCTION --allow-code"
    )


def _shapes(left: Mapping[str, Tensor]) -> list[str]:
    return [f"{key} {tuple(value.shape)}" for key, value in left.items() if not key.endswith(_COUNTER)]
