"""ResNets inside of other modules: their parameters by the names that timm and torchvision give them.

MONAI (``features``) and TIAToolbox (``feat_extract``) hold the network as a sequence of its children: 0 is
the first convolution, 1 its normalisation, 2 and 3 are ReLU and max pooling, 4 to 7 the stages. Newer
versions of MONAI hold the whole network there, if its pooling stays.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

RESNETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"),
)
"""Those that have the same name and the same parameters in torchvision and timm."""

_CHILDREN: Mapping[str, str] = {
    "0": "conv1",
    "1": "bn1",
    "4": "layer1",
    "5": "layer2",
    "6": "layer3",
    "7": "layer4",
}
_CHILD = re.compile(r"(?:features|feat_extract)\.(\w+)\.")


def is_wrapped(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict is that of TIAToolbox, which nothing else is named like."""
    return any(key.startswith("feat_extract.") for key in state)


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters to those of a ResNet; a ``classifier`` is its ``fc``."""
    return {_name(key): value for key, value in state.items()}


def _name(key: str) -> str:
    found = _CHILD.match(key)
    if found and (child := _CHILDREN.get(found[1], found[1])) in _CHILDREN.values():
        return f"{child}.{key[found.end() :]}"
    return f"fc.{key.removeprefix('classifier.')}" if key.startswith("classifier.") else key
