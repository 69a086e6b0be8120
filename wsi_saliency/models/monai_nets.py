"""Networks of ``monai.networks.nets`` in two dimensions, as those of timm or torchvision that compute it.

Each is rebuilt from its arguments in a bundle's configuration; arguments that would make it another network
are refused by name. What differs is taken over by the weights or set in the network:

==============  ============================================================================================
network         what is different
==============  ============================================================================================
ResNet          its stem may have a stride of 1 and no pooling; biases of its shortcuts go into their
                normalisation, which subtracts them from its mean; the first stage follows a stem of its width
DenseNet        other names; timm's have one shape each, torchvision's any
EfficientNetBN  TensorFlow's padding, fixed for one size of patch: others are refused where theirs differs
SENet           linear layers in place of 1×1 convolutions
ViT             no position of the class token; patches embedded by a linear layer, or a convolution; tanh
==============  ============================================================================================
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet, make_blocks
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import one_line
from wsi_saliency.models.building import Blueprint
from wsi_saliency.models.bundle_config import arguments_of
from wsi_saliency.models.sources import imported
from wsi_saliency.models.timm import blueprint as timm_blueprint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wsi_saliency.models.bundle_config import Network
    from wsi_saliency.models.weights import Weights


class Rebuilt(NamedTuple):
    """How a network is built, and its state by the names there."""

    blueprint: Blueprint
    state: dict[str, Tensor]


def _own_blueprint(
    weights: Weights, name: str, create: Callable[[int | None], nn.Module], head: str, library: str = "timm"
) -> Blueprint:
    """Return a blueprint of what has no name there; a bundle says its patch and its normalisation."""
    return Blueprint(library, name, create, (head,), weights.description.patch or 224, (0, 0, 0), (1, 1, 1))


def _whole(network: Network, name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 10_000:
        raise _not_understood(network, name, value)
    return value


def _wholes(network: Network, name: str, value: Any, count: int | None = None) -> tuple[int, ...]:
    """Take a list of whole numbers, of ``count`` or of any number of them."""
    if not isinstance(value, list) or not value or count not in (None, len(value)):
        raise _not_understood(network, name, value)
    return tuple(_whole(network, name, each) for each in value)


def _not_understood(network: Network, name: str, value: Any) -> ModelError:
    return ModelError(
        f"{network.named} has {one_line(name)} = {one_line(repr(value))}, which is not understood"
    )


# ------------------------------------------------------------------------------------------------- ResNet

_LAYERS: Mapping[str, tuple[str, list[int]]] = {
    "resnet10": ("basic", [1, 1, 1, 1]),
    "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet34": ("basic", [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]),
    "resnet101": ("bottleneck", [3, 4, 23, 3]),
    "resnet152": ("bottleneck", [3, 8, 36, 3]),
    "resnet200": ("bottleneck", [3, 24, 36, 3]),
}
_BLOCKS: Mapping[str, type[BasicBlock | Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}
_PLANES = [64, 128, 256, 512]
_STEM: Mapping[str, Any] = {"conv1_t_size": 7, "conv1_t_stride": 1, "no_max_pool": False}


def _resnet(network: Network, weights: Weights) -> Rebuilt:
    """``resnet18`` and the like, or ``ResNet`` with its blocks and layers."""
    fixed = {"spatial_dims": 2, "n_input_channels": 3, "shortcut_type": "B", "feed_forward": True}
    plain = {"norm": "batch", "act": "relu", "widen_factor": 1.0}
    own = ("block", "layers", "block_inplanes") if network.target == "ResNet" else ()
    taken = arguments_of(
        network, *own, *_STEM, "num_classes", "bias_downsample", block_inplanes=_PLANES, **fixed, **plain
    )
    kind, layers = _LAYERS.get(network.target) or (str(taken.get("block")), taken.get("layers"))
    if kind not in _BLOCKS:
        raise _not_understood(network, "block", taken.get("block"))
    blocks = _wholes(network, "layers", layers, 4)
    planes = _wholes(network, "block_inplanes", taken.get("block_inplanes", _PLANES), 4)
    size, stride, no_pool = (_side(network, name, taken.get(name, _STEM[name])) for name in _STEM)

    def create(classes: int | None) -> nn.Module:
        module = ResNet(_BLOCKS[kind], blocks, classes or 400, channels=planes)  # type: ignore[arg-type]
        module.add_module("conv1", nn.Conv2d(3, planes[0], size, stride, size // 2, bias=False))
        if planes[0] != _PLANES[0]:  # timm's stem has one width
            module.add_module("bn1", nn.BatchNorm2d(planes[0]))
            module.add_module(*make_blocks((_BLOCKS[kind],), planes[:1], blocks[:1], planes[0])[0][0])
        if no_pool:
            module.add_module("maxpool", nn.Identity())
        return module

    named = network.target if network.target != "ResNet" else f"resnet of {kind} blocks {layers}"
    return Rebuilt(_own_blueprint(weights, named, create, "fc"), _with_shortcuts(weights.state))


def _side(network: Network, name: str, value: Any) -> int:
    """Take a size of the stem, one or the same twice; of a switch, 0 or 1."""
    if isinstance(value, bool):
        return int(value)
    sides = set(value) if isinstance(value, list) and len(value) == 2 else {value}
    return _whole(network, name, sides.pop() if len(sides) == 1 else value)


def _with_shortcuts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let the normalisation of each shortcut subtract what its convolution would have added."""
    kept = dict(state)
    for key in [key for key in state if key.endswith("downsample.0.bias")]:
        mean = key.replace("downsample.0.bias", "downsample.1.running_mean")
        if mean in kept and kept[mean].shape == kept[key].shape:
            kept[mean] = kept[mean] - kept.pop(key)
    return kept


# ------------------------------------------------------------------------------------------------ DenseNet

_DENSENETS: Mapping[str, list[int]] = {
    "densenet": [6, 12, 24, 16],
    "densenet121": [6, 12, 24, 16],
    "densenet169": [6, 12, 32, 32],
    "densenet201": [6, 12, 48, 32],
    "densenet264": [6, 12, 64, 48],
}
_OF_TIMM = ("densenet121", "densenet169", "densenet201")
_WIDTHS = {"init_features": 64, "growth_rate": 32, "bn_size": 4}


def _densenet(network: Network, weights: Weights) -> Rebuilt:
    """``DenseNet121`` and the like, or ``DenseNet`` with its blocks and widths."""
    name, state = network.target.casefold(), _densenet_state(weights.state)
    usual = {"block_config": _DENSENETS[name], **_WIDTHS}
    fixed = {"spatial_dims": 2, "in_channels": 3, "norm": "batch", "act": "relu"}
    taken = arguments_of(network, *usual, "out_channels", "dropout_prob", **fixed)
    layers = _wholes(network, "block_config", taken.get("block_config", usual["block_config"]))
    first, growth, squeeze = (_whole(network, key, taken.get(key, value)) for key, value in _WIDTHS.items())
    as_usual = usual == {key: taken.get(key, value) for key, value in usual.items()}
    if as_usual and name in _OF_TIMM:
        return Rebuilt(timm_blueprint(name), state)
    kind = imported("torchvision.models:DenseNet", "monai:ORG/NAME", "torchvision")

    def create(classes: int | None) -> nn.Module:
        module: nn.Module = kind(growth, layers, first, squeeze, num_classes=classes or 2)
        return module

    named = name if as_usual and name != "densenet" else f"densenet of blocks {list(layers)}"
    return Rebuilt(_own_blueprint(weights, named, create, "classifier", "torchvision"), state)


def _densenet_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    head = "class_layers.out."
    return {
        f"classifier.{key.removeprefix(head)}"
        if key.startswith(head)
        else key.replace(".layers.", "."): value
        for key, value in state.items()
    }


# ------------------------------------------------------------------------------------------ EfficientNetBN

_NOMINAL = (224, 240, 260, 300, 380, 456, 528, 600)  # pixels, of b0 to b7: for these the padding is fixed
_WITH_EXPANSION = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_WITHOUT_EXPANSION = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_AROUND = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_IN_BLOCK = re.compile(r"_blocks\.(\d+)\.(\d+)\.(\w+)\.(.+)")


def _efficientnet(network: Network, weights: Weights) -> Rebuilt:
    """``EfficientNetBN`` with its ``model_name``, ``efficientnet-b0`` to ``-b7``."""
    taken = arguments_of(
        network, "model_name", "num_classes", "adv_prop", spatial_dims=2, in_channels=3, norm=None
    )
    name = str(taken.get("model_name"))
    found = re.fullmatch(r"efficientnet-b([0-7])", name)
    if found is None:
        raise _not_understood(network, "model_name", name)
    nominal, side = _NOMINAL[int(found[1])], weights.description.patch
    if side is None or _odd(side) != _odd(nominal):
        raise ModelError(
            f"{network.named} is {name}, which pads as for patches of {nominal} px; at {side or '?'} px "
            "that is another padding than that of the network that can be rebuilt"
        )
    return Rebuilt(timm_blueprint(f"tf_efficientnet_b{found[1]}"), _efficientnet_state(weights.state))


def _odd(side: int) -> list[bool]:
    """Tell at which of the five strides a side is odd: there the padding is one pixel more."""
    sides = [side]
    for _ in range(4):
        sides.append(-(-sides[-1] // 2))
    return [bool(each % 2) for each in sides]


def _efficientnet_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    firsts: dict[str, int] = {}  # blocks are numbered through, timm's anew in each stage
    for found in filter(None, map(_IN_BLOCK.fullmatch, state)):
        firsts[found[1]] = min(int(found[2]), firsts.get(found[1], int(found[2])))

    def renamed(key: str) -> str:
        found = _IN_BLOCK.fullmatch(key)
        if found is None:
            front, _, rest = key.partition(".")
            return f"{_AROUND.get(front, front)}.{rest}"
        stage, block, part, rest = found.groups()
        expands = f"_blocks.{stage}.{block}._expand_conv.weight" in state
        names = _SQUEEZE | (_WITH_EXPANSION if expands else _WITHOUT_EXPANSION)
        return f"blocks.{stage}.{int(block) - firsts[stage]}.{names.get(part, part)}.{rest}"

    return {renamed(key): value for key, value in state.items()}


# --------------------------------------------------------------------------------------------------- SENet

_SENETS: Mapping[str, str] = {
    "senet154": "legacy_senet154",
    "seresnet50": "legacy_seresnet50",
    "seresnet101": "legacy_seresnet101",
    "seresnet152": "legacy_seresnet152",
    "seresnext50": "legacy_seresnext50_32x4d",
    "seresnext101": "legacy_seresnext101_32x4d",
}
_SE_NAMES = (
    (re.compile(r"\.conv(\d)\.conv\."), r".conv\1."),
    (re.compile(r"\.conv(\d)\.adn\.\w+\."), r".bn\1."),
    (re.compile(r"\.project\.conv\."), ".downsample.0."),
    (re.compile(r"\.project\.adn\.\w+\."), ".downsample.1."),
    (re.compile(r"\.se_layer\.fc\.0\."), ".se_module.fc1."),
    (re.compile(r"\.se_layer\.fc\.2\."), ".se_module.fc2."),
)


def _senet(network: Network, weights: Weights) -> Rebuilt:
    """``SENet154``, ``SEResNet50`` and the like."""
    arguments_of(network, "num_classes", "dropout_prob", spatial_dims=2, in_channels=3)
    state = {}
    for key, value in weights.state.items():
        squeezes = ".se_layer." in key and value.ndim == 2
        for pattern, name in _SE_NAMES:
            key = pattern.sub(name, key)
        state[key] = value[:, :, None, None] if squeezes else value
    return Rebuilt(timm_blueprint(_SENETS[network.target.casefold()]), state)


# ----------------------------------------------------------------------------------------------------- ViT

_VIT = {"hidden_size": 768, "mlp_dim": 3072, "num_layers": 12, "num_heads": 12}
_VIT_NAMES = {
    "attn.out_proj.": "attn.proj.",
    "mlp.linear1.": "mlp.fc1.",
    "mlp.linear2.": "mlp.fc2.",
}
_OF_OTHERS = ("cross_attn.", "norm_cross_attn.")  # in files of older versions, never called


def _vit(network: Network, weights: Weights) -> Rebuilt:
    """``ViT`` with ``classification``: its logits, without the hidden states that it gives as well."""
    sizes = {"img_size": weights.description.patch, "patch_size": None}
    ways = ("proj_type", "pos_embed", "pos_embed_type", "post_activation", "qkv_bias", "dropout_rate")
    fixed = {"in_channels": 3, "spatial_dims": 2, "classification": True}
    taken = arguments_of(network, *sizes, *_VIT, *ways, "num_classes", "save_attn", **fixed)
    if "classification" not in network.arguments:
        raise _not_understood(network, "classification", False)
    width, hidden, depth, heads = (_whole(network, name, taken.get(name, _VIT[name])) for name in _VIT)
    bends = taken.get("post_activation", "Tanh") == "Tanh"
    image, patch = (_side(network, name, taken.get(name, size)) for name, size in sizes.items())

    def create(classes: int | None) -> nn.Module:
        module = VisionTransformer(
            img_size=image,
            patch_size=patch,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=(hidden + 0.5) / width,  # rounded down when it is multiplied
            num_classes=classes or 2,
            qkv_bias=bool(taken.get("qkv_bias", False)),
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
            weight_init="skip",
        )
        if bends:
            module.add_module("head", nn.Sequential(module.head, nn.Tanh()))
        return module

    blueprint = _own_blueprint(weights, f"vit of {depth} blocks", create, "head.0" if bends else "head")
    return Rebuilt(blueprint, _vit_state(weights.state, patch))


def _vit_state(state: Mapping[str, Tensor], patch: int) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    for key, value in state.items():
        if any(f".{other}" in key for other in _OF_OTHERS):
            continue
        for theirs, ours in _VIT_NAMES.items():
            key = key.replace(theirs, ours)
        kept[key.replace("classification_head.", "head.")] = value
    for part in ("weight", "bias"):
        for name in ("patch_embedding.patch_embeddings.1.", "patch_embedding.patch_embeddings."):
            if name + part in kept:
                kept[f"patch_embed.proj.{part}"] = _as_convolution(kept.pop(name + part), patch)
    positions = kept.pop("patch_embedding.position_embeddings", None)
    if positions is not None and positions.ndim == 3:
        kept["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], 1)
    return kept


def _as_convolution(weight: Tensor, patch: int) -> Tensor:
    """Return weights of a linear layer over the pixels of a patch, colours last, as a convolution's."""
    if weight.ndim != 2 or weight.shape[1] != 3 * patch**2:
        return weight
    return weight.reshape(-1, patch, patch, 3).permute(0, 3, 1, 2).contiguous()


NETS: Mapping[str, Callable[[Network, Weights], Rebuilt]] = {
    **dict.fromkeys(("resnet", *_LAYERS), _resnet),
    **dict.fromkeys(_DENSENETS, _densenet),
    "efficientnetbn": _efficientnet,
    **dict.fromkeys(_SENETS, _senet),
    "vit": _vit,
}
"""What rebuilds a network, by the name of its class in lower case."""


def rebuilt(network: Network, weights: Weights) -> tuple[Blueprint, Weights]:
    """Return how a network of MONAI is built, and its weights by the names there.

    Raises
    ------
    ModelError
        If an argument would make it another network than those that can be rebuilt.
    """
    blueprint, state = NETS[network.target.casefold()](network, weights)
    return blueprint, replace(weights, state=state)
