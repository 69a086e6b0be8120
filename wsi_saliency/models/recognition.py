"""Which architecture a state dict is of, by the names and shapes of its tensors.

Those of the family that names of parameters point to are tried, on the meta device, as far as the file has
their shapes. One is taken only if all names and shapes fit, but for the names of backbone and head, and no
other of the list fits as well: networks may differ in what has no parameters (padding, activation), which no
file shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi_saliency.errors import ModelError
from wsi_saliency.models.assembly import fits
from wsi_saliency.models.renaming import HeadError, prefixes
from wsi_saliency.models.sources import imported
from wsi_saliency.models.timm import blueprint as timm_blueprint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsi_saliency.models.building import Blueprint
    from wsi_saliency.models.weights import Weights


@dataclass(frozen=True)
class Family:
    """Architectures with parameters named alike.

    Parameters
    ----------
    has
        Names that all of them have, not those of a head; something may stand in front of them.
    lacks
        Names that none of them has.
    timm, torchvision
        Their names there.
    """

    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    timm: tuple[str, ...] = ()
    torchvision: tuple[str, ...] = ()

    def may_be(self, weights: Weights) -> bool:
        """Tell whether a state dict may be of the family."""
        state = weights.state
        return any(
            all(prefix + name in state for name in self.has)
            and not any(prefix + name in state for name in self.lacks)
            for prefix in prefixes(state, self.has[0])
        )


_BLOCK, _BOTTLENECK = "layer1.0.conv1.weight", "layer1.0.conv3.weight"
_INCEPTION, _AUXILIARY = "Conv2d_1a_3x3.conv.weight", "AuxLogits.fc.weight"
_EFFICIENTNETS = tuple(f"efficientnet_b{i}" for i in range(6))
_VGGS = ("vgg11", "vgg13", "vgg16", "vgg19")
_VGGS_BN = tuple(f"{name}_bn" for name in _VGGS)

FAMILIES = (
    Family(
        ("conv1.weight", _BLOCK), (_BOTTLENECK,), timm=("resnet18", "resnet34", "seresnet18", "seresnet34")
    ),
    Family(
        ("conv1.weight", _BOTTLENECK),
        timm=(
            *("resnet26", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
            *("resnext50_32x4d", "resnext101_32x8d", "seresnet50", "seresnext50_32x4d"),
        ),
    ),
    Family(
        ("conv1.0.weight", _BLOCK),
        timm=("resnet18d", "resnet34d", "resnet26d", "resnet50d", "resnet101d", "seresnext50_32x4d"),
    ),
    Family(
        ("features.denseblock1.denselayer1.norm1.weight",),
        timm=("densenet121", "densenet161", "densenet169", "densenet201"),
    ),
    Family(
        ("conv_stem.weight", "blocks.0.0.conv_dw.weight"),
        timm=(
            *_EFFICIENTNETS,
            *(f"tf_{name}" for name in _EFFICIENTNETS),
            *("efficientnet_lite0", "tf_efficientnet_lite0", "mobilenetv2_100"),
            *("mobilenetv3_small_100", "mobilenetv3_large_100"),
        ),
    ),
    Family(
        ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
        timm=tuple(f"convnext_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base")),
    ),
    Family(
        ("cls_token", "blocks.0.attn.qkv.weight"),
        timm=(
            *("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_small_patch32_224"),
            *("vit_base_patch16_224", "vit_base_patch32_224", "vit_large_patch16_224"),
        ),
    ),
    Family(
        ("layers.0.blocks.0.attn.relative_position_bias_table",),
        timm=tuple(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")),
    ),
    Family(
        ("s1.b1.conv1.conv.weight",),
        timm=tuple(f"regnet{kind}_{size}" for kind in "xy" for size in ("002", "004", "008", "016", "032")),
    ),
    Family(("pre_logits.fc1.weight",), timm=(*_VGGS, *_VGGS_BN)),
    Family((_INCEPTION,), (_AUXILIARY,), timm=("inception_v3",)),
    Family((_INCEPTION, _AUXILIARY), torchvision=("inception_v3",)),
    Family(("features.0.conv.weight",), timm=("inception_v4",)),
    Family(("features.0.weight",), ("pre_logits.fc1.weight",), torchvision=("alexnet", *_VGGS, *_VGGS_BN)),
    Family(("features.1.conv.0.0.weight",), torchvision=("mobilenet_v2",)),
    Family(
        ("features.0.0.weight", "features.1.block.0.0.weight"),
        torchvision=("mobilenet_v3_small", "mobilenet_v3_large"),
    ),
    Family(("features.1.0.block.0.0.weight",), torchvision=_EFFICIENTNETS),
    Family(
        ("features.1.0.layer_scale",),
        torchvision=("convnext_tiny", "convnext_small", "convnext_base"),
    ),
    Family(("conv_proj.weight", "class_token"), torchvision=("vit_b_16", "vit_b_32", "vit_l_16")),
)


def fitting(weights: Weights) -> list[Blueprint]:
    """Return the architectures that all names and shapes of a state dict fit.

    Raises
    ------
    HeadError
        If none fits, and it has the backbone of one with another head.
    """
    found: list[Blueprint] = []
    problem: HeadError | None = None
    for blueprint in _candidates(weights):
        try:
            found += [blueprint] if fits(blueprint, weights) else []
        except HeadError as error:
            problem = problem or error
    if problem is not None and not found:
        raise problem
    return found


def _candidates(weights: Weights) -> Iterator[Blueprint]:
    for family in FAMILIES:
        if not family.may_be(weights):
            continue
        yield from map(timm_blueprint, family.timm)
        if family.torchvision:
            yield from _of_torchvision(family.torchvision)


def _of_torchvision(names: tuple[str, ...]) -> Iterator[Blueprint]:
    """Those of torchvision, if it is installed."""
    try:
        blueprint = imported("wsi_saliency.models.torchvision:blueprint", "torchvision:NAME", "torchvision")
    except ModelError:
        return
    yield from map(blueprint, names)
