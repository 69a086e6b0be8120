"""Networks of MONAI, each built another way after its definition, with its names in a bundle."""

from __future__ import annotations

import re
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models  # type: ignore[import-untyped]

from tests.helpers.bundles import (
    INFERENCE,
    METADATA,
    bundle_files,
    bundle_folder,
    same_logits,
    with_statistics,
)
from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from wsi_saliency.models.classifier import Classifier

RESNET = {"spatial_dims": 2, "n_input_channels": 3, "num_classes": 2}
BASIC = {**RESNET, "block": "basic", "layers": [1, 1, 1, 1]}
DENSENET = {"spatial_dims": 2, "in_channels": 3, "out_channels": 2}
OTHERS = {"spatial_dims": 2, "in_channels": 3, "num_classes": 2}
VIT = {
    **OTHERS,
    **{"img_size": [64, 64], "patch_size": [16, 16], "hidden_size": 48, "mlp_dim": 100},
    **{"num_layers": 2, "num_heads": 4, "classification": True},
}


def loaded(path: Path, state: Mapping[str, Tensor], definition: dict[str, Any], side: int = 64) -> Classifier:
    image = {"type": "image", "num_channels": 3, "spatial_shape": [side, side]}
    pred = {"channel_def": {"0": "normal", "1": "tumor"}}
    metadata = METADATA | {"network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}}}
    files = bundle_files(state, INFERENCE | {"network_def": definition}, metadata)
    return load_classifier(bundle_folder(path, files))


def refused(path: Path, definition: dict[str, Any], side: int = 64) -> str:
    with pytest.raises(ModelError) as caught:
        loaded(path, {"fc.bias": torch.zeros(1)}, definition, side)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def renamed(state: Mapping[str, Tensor], *rules: tuple[str, str]) -> dict[str, Tensor]:
    """Rename by the first rule that fits a name from its beginning."""

    def name(key: str) -> str:
        return next((re.sub(f"^{old}", new, key) for old, new in rules if re.match(old, key)), key)

    return {name(key): value for key, value in state.items()}


@pytest.mark.parametrize(
    ("target", "arguments", "stride", "pool", "bias"),
    [
        ("resnet18", {}, 1, True, True),
        ("monai.networks.nets.resnet18", {"conv1_t_stride": 2, "bias_downsample": False}, 2, True, False),
        ("resnet18", {"conv1_t_stride": [2, 2], "no_max_pool": True, "pretrained": False}, 2, False, True),
        ("ResNet", {"block": "basic", "layers": [2, 2, 2, 2], "norm": "batch"}, 1, True, True),
    ],
)
def test_resnet(
    target: str, arguments: dict[str, Any], stride: int, pool: bool, bias: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    original = models.resnet18(weights=None, num_classes=2)
    original.conv1.stride = (stride, stride)
    if not pool:
        original.maxpool = nn.Identity()
    for layer in (original.layer2, original.layer3, original.layer4):
        shortcut = layer[0].downsample[0]
        width = shortcut.in_channels, shortcut.out_channels
        layer[0].downsample[0] = nn.Conv2d(*width, kernel_size=1, stride=2, bias=bias)
    with_statistics(original)
    classifier = loaded(tmp_path, original.state_dict(), {"_target_": target, **RESNET, **arguments})
    same_logits(classifier.module, original, 64)
    assert classifier.class_names == ("normal", "tumor")


def batch_normed(*layers: nn.Module) -> nn.Sequential:
    """Return convolutions, each with a normalisation and, between them, ReLU, by the names in a ResNet."""
    parts: dict[str, nn.Module] = {}
    for i, layer in enumerate(layers, 1):
        assert isinstance(layer, nn.Conv2d)
        parts |= {f"conv{i}": layer, f"bn{i}": nn.BatchNorm2d(layer.out_channels), f"relu{i}": nn.ReLU()}
    parts.popitem()
    return nn.Sequential(OrderedDict(parts))


class Residual(nn.Module):
    """What is added to a shortcut, and the shortcut if it is not the input itself."""

    def __init__(self, before: int, width: int, stride: int, deep: bool) -> None:
        super().__init__()
        after = width * (4 if deep else 1)
        if deep:
            first, second = nn.Conv2d(before, width, 1, bias=False), nn.Conv2d(width, after, 1, bias=False)
            middle = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.way = batch_normed(first, middle, second)
        else:
            first = nn.Conv2d(before, width, 3, stride, 1, bias=False)
            self.way = batch_normed(first, nn.Conv2d(width, width, 3, 1, 1, bias=False))
        self.downsample = nn.Sequential()
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.way(x) + self.downsample(x))


@pytest.mark.parametrize("planes", [[16, 24, 40, 56], [64, 24, 24, 24]])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_resnet_of_other_widths(kind: str, planes: list[int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers, width = [2, 1, 1, 2], planes[0]
    stem = batch_normed(nn.Conv2d(3, width, 7, 1, 3, bias=False))
    stages: list[nn.Module] = []
    for i, (plane, count) in enumerate(zip(planes, layers, strict=True)):
        blocks = []
        for n in range(count):
            blocks.append(Residual(width, plane, 2 if i and not n else 1, kind == "bottleneck"))
            width = plane * (4 if kind == "bottleneck" else 1)
        stages.append(nn.Sequential(*blocks))
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)
    original = with_statistics(nn.Sequential(stem, nn.ReLU(), nn.MaxPool2d(3, 2, 1), *stages, *ends))
    numbered = [(rf"{i + 2}\.(\d)\.(way\.)?", rf"layer{i}.\1.") for i in range(1, 5)]
    state = renamed(original.state_dict(), (r"0\.", ""), (r"9\.", "fc."), *numbered)
    definition = {"_target_": "ResNet", **RESNET, "block": kind, "layers": layers, "block_inplanes": planes}
    same_logits(loaded(tmp_path, state, definition).module, original, 64)


class Dense(nn.Module):
    """Adds channels to those that it is given."""

    def __init__(self, before: int, between: int, added: int) -> None:
        super().__init__()
        parts = {"norm1": nn.BatchNorm2d(before), "relu1": nn.ReLU()}
        parts |= {"conv1": nn.Conv2d(before, between, 1, bias=False)}
        parts |= {"norm2": nn.BatchNorm2d(between), "relu2": nn.ReLU()}
        parts |= {"conv2": nn.Conv2d(between, added, 3, padding=1, bias=False)}
        self.layers = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


def densenet(blocks: list[int], width: int = 64, growth: int = 32, squeeze: int = 4) -> nn.Module:
    """Build one with its names in a bundle."""
    parts: dict[str, nn.Module] = {"conv0": nn.Conv2d(3, width, 7, 2, 3, bias=False)}
    parts |= {"norm0": nn.BatchNorm2d(width), "relu0": nn.ReLU(), "pool0": nn.MaxPool2d(3, 2, 1)}
    for i, count in enumerate(blocks, 1):
        dense = {
            f"denselayer{n + 1}": Dense(width + n * growth, squeeze * growth, growth) for n in range(count)
        }
        parts[f"denseblock{i}"] = nn.Sequential(OrderedDict(dense))
        width += count * growth
        if i < len(blocks):
            halved = {"norm": nn.BatchNorm2d(width), "relu": nn.ReLU()}
            halved |= {"conv": nn.Conv2d(width, width // 2, 1, bias=False), "pool": nn.AvgPool2d(2)}
            parts[f"transition{i}"] = nn.Sequential(OrderedDict(halved))
            width //= 2
    parts["norm5"] = nn.BatchNorm2d(width)
    ends = {"relu": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    ends |= {"out": nn.Linear(width, 2)}
    whole = {"features": nn.Sequential(OrderedDict(parts)), "class_layers": nn.Sequential(OrderedDict(ends))}
    return with_statistics(nn.Sequential(OrderedDict(whole)))


@pytest.mark.parametrize(
    ("target", "arguments", "blocks", "widths"),
    [
        ("DenseNet121", {}, [6, 12, 24, 16], ()),
        ("DenseNet121", {"block_config": [1, 1, 1, 1], "act": "relu", "norm": "batch"}, [1, 1, 1, 1], ()),
        ("monai.networks.nets.DenseNet264", {}, [6, 12, 64, 48], ()),
        ("DenseNet", {"bn_size": 2, "dropout_prob": 0.2}, [6, 12, 24, 16], (64, 32, 2)),
        (
            "DenseNet",
            {"block_config": [2, 3, 1], "init_features": 20, "growth_rate": 7, "bn_size": 3},
            [2, 3, 1],
            (20, 7, 3),
        ),
    ],
)
def test_densenet(
    target: str, arguments: dict[str, Any], blocks: list[int], widths: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    original = densenet(blocks, *widths)
    definition = {"_target_": target, **DENSENET, **arguments}
    classifier = loaded(tmp_path, original.state_dict(), definition)
    same_logits(classifier.module, original, 64)
    assert classifier.class_names == ("normal", "tumor")


class PaddedAsTensorFlow(nn.Conv2d):
    """Pads so that the output has a stride-th of the side, rounded up; what is odd goes to the right."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        side, kernel, stride = x.shape[-1], self.kernel_size[0], self.stride[0]
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        before = total // 2
        padded = F.pad(x, [before, total - before] * 2)
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def efficientnet(name: str) -> nn.Module:
    network: nn.Module = with_statistics(models.get_model(name, weights=None, num_classes=2))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
        elif isinstance(module, nn.Conv2d):
            module.__class__ = PaddedAsTensorFlow
    return network


def efficientnet_state(network: nn.Module) -> dict[str, Tensor]:
    """Rename from torchvision's to MONAI's; blocks are numbered through."""
    numbers: dict[str, int] = {}
    for name, _ in network.named_modules():
        if re.fullmatch(r"features\.[1-7]\.\d+", name):
            numbers[name] = len(numbers)
    parts = {"0.0": "_expand_conv", "0.1": "_bn0", "1.0": "_depthwise_conv", "1.1": "_bn1"}
    parts |= {"2.fc1": "_se_reduce", "2.fc2": "_se_expand", "3.0": "_project_conv", "3.1": "_bn2"}
    first = {"0.0": "_depthwise_conv", "0.1": "_bn1", "1.fc1": "_se_reduce", "1.fc2": "_se_expand"}
    first |= {"2.0": "_project_conv", "2.1": "_bn2"}
    rules = [
        (rf"features\.{stage}\.{block}\.block\.{re.escape(part)}\.", f"_blocks.{int(stage) - 1}.{n}.{name}.")
        for key, n in numbers.items()
        for stage, block in [key.split(".")[1:]]
        for part, name in (first if stage == "1" else parts).items()
    ]
    around = {"features.0.0": "_conv_stem", "features.0.1": "_bn0", "features.8.0": "_conv_head"}
    around |= {"features.8.1": "_bn1", "classifier.1": "_fc"}
    return renamed(
        network.state_dict(), *rules, *((re.escape(k) + r"\.", f"{v}.") for k, v in around.items())
    )


@pytest.mark.parametrize(("size", "side"), [(0, 64), (0, 224), (1, 240)])
def test_efficientnet(size: int, side: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = efficientnet(f"efficientnet_b{size}")
    definition = {"_target_": "EfficientNetBN", "model_name": f"efficientnet-b{size}", **OTHERS}
    same_logits(loaded(tmp_path, efficientnet_state(original), definition, side).module, original, side)


def test_efficientnet_at_a_patch_that_would_be_padded_in_another_way(tmp_path: Path) -> None:
    definition = {"_target_": "EfficientNetBN", "model_name": "efficientnet-b1", **OTHERS}
    assert "pads as for patches of 240 px; at 224 px" in refused(tmp_path, definition, 224)


class SqueezeAndExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        few = channels // 16
        self.fc = nn.Sequential(nn.Linear(channels, few), nn.ReLU(), nn.Linear(few, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


def test_seresnet(tmp_path: Path) -> None:
    """A ResNet that pools without padding, strides in the first convolution of a block, and squeezes."""
    torch.manual_seed(0)
    original = models.resnet50(weights=None, num_classes=2)
    original.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
    for module in original.modules():
        if hasattr(module, "bn3"):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
            parts = {"norm": module.bn3, "se": SqueezeAndExcitation(module.bn3.num_features)}
            module.bn3 = nn.Sequential(OrderedDict(parts))
    with_statistics(original)
    state = renamed(
        original.state_dict(),
        (r"conv1\.", "layer0.conv1."),
        (r"bn1\.", "layer0.bn1."),
        (r"fc\.", "last_linear."),
        (r"(layer\d\.\d+)\.conv(\d)\.", r"\1.conv\2.conv."),
        (r"(layer\d\.\d+)\.bn3\.norm\.", r"\1.conv3.adn.N."),
        (r"(layer\d\.\d+)\.bn3\.se\.", r"\1.se_layer."),
        (r"(layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.adn.N."),
        (r"(layer\d\.\d+)\.downsample\.0\.", r"\1.project.conv."),
        (r"(layer\d\.\d+)\.downsample\.1\.", r"\1.project.adn.N."),
    )
    same_logits(loaded(tmp_path, state, {"_target_": "SEResNet50", **OTHERS}).module, original, 64)


class Bent(nn.Module):
    """A vision transformer without a position of the class token and without biases of its queries."""

    def __init__(self, bends: bool) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-5)
        self.net = models.VisionTransformer(64, 16, 2, 4, 48, 100, num_classes=2, norm_layer=norm)
        nn.init.normal_(self.net.heads.head.weight)
        nn.init.zeros_(self.net.encoder.pos_embedding[:, 0])
        self.bends = bends

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits.tanh() if self.bends else logits


def vit_state(network: nn.Module, head: str) -> dict[str, Tensor]:
    state = renamed(
        network.state_dict(),
        (r"class_token", "cls_token"),
        (r"conv_proj\.", "patch_embedding.patch_embeddings."),
        (r"encoder\.pos_embedding", "patch_embedding.position_embeddings"),
        (r"encoder\.layers\.encoder_layer_(\d)\.ln_(\d)", r"blocks.\1.norm\2"),
        (r"encoder\.layers\.encoder_layer_(\d)\.self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
        (r"encoder\.layers\.encoder_layer_(\d)\.self_attention\.", r"blocks.\1.attn."),
        (r"encoder\.layers\.encoder_layer_(\d)\.mlp\.0", r"blocks.\1.mlp.linear1"),
        (r"encoder\.layers\.encoder_layer_(\d)\.mlp\.3", r"blocks.\1.mlp.linear2"),
        (r"encoder\.ln", "norm"),
        (r"heads\.head", head),
    )
    positions = "patch_embedding.position_embeddings"
    return {k: v[:, 1:] if k == positions else v for k, v in state.items() if not k.endswith("qkv.bias")}


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("bends", [True, False])
def test_vit(bends: bool, linear: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        original = Bent(bends).eval()
    state = vit_state(original.net, "classification_head.0" if bends else "classification_head")
    embedding = "patch_embedding.patch_embeddings"
    if linear:  # over rows, columns and colours of a patch
        weight = state.pop(f"{embedding}.weight").permute(0, 2, 3, 1).flatten(1)
        state |= {f"{embedding}.1.weight": weight, f"{embedding}.1.bias": state.pop(f"{embedding}.bias")}
    state["blocks.0.norm_cross_attn.weight"] = torch.ones(48)  # of older versions
    arguments = {"proj_type": "perceptron" if linear else "conv"} | ({} if bends else {"post_activation": ""})
    same_logits(loaded(tmp_path, state, {"_target_": "ViT", **VIT, **arguments}).module, original, 64)


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ({"_target_": "resnet18", **RESNET, "spatial_dims": 3}, "has spatial_dims = 3"),
        ({"_target_": "resnet18", **RESNET, "shortcut_type": "A"}, "has shortcut_type = 'A'"),
        ({"_target_": "resnet18", **RESNET, "conv1_t_stride": [1, 2]}, "has conv1_t_stride = [1, 2]"),
        ({"_target_": "resnet18", **RESNET, "conv1_t_size": 10**9}, "has conv1_t_size = 1000000000"),
        ({"_target_": "ResNet", **RESNET, "block": "odd", "layers": [1, 1, 1, 1]}, "has block = 'odd'"),
        ({"_target_": "ResNet", **RESNET, "block": "basic", "layers": [1]}, "has layers = [1]"),
        ({"_target_": "ResNet", **RESNET, "block": "basic", "layers": [1, 1, 1, 10**9]}, "has layers = "),
        ({"_target_": "ResNet", **BASIC, "block_inplanes": [64, 128]}, "has block_inplanes = [64, 128]"),
        ({"_target_": "ResNet", **BASIC, "block_inplanes": [1, 1, 1, 0.5]}, "has block_inplanes = 0.5"),
        ({"_target_": "resnet18", **RESNET, "block_inplanes": [8] * 4}, "has block_inplanes = [8, 8, 8, 8]"),
        ({"_target_": "DenseNet", **DENSENET, "act": "prelu"}, "has act = 'prelu'"),
        ({"_target_": "DenseNet", **DENSENET, "norm": "instance"}, "has norm = 'instance'"),
        ({"_target_": "DenseNet", **DENSENET, "block_config": []}, "has block_config = []"),
        ({"_target_": "DenseNet264", **DENSENET, "growth_rate": 1.5}, "has growth_rate = 1.5"),
        ({"_target_": "DenseNet121", **DENSENET, "in_channels": 1}, "has in_channels = 1"),
        ({"_target_": "EfficientNetBN", **OTHERS, "model_name": "efficientnet-b9"}, "has model_name = "),
        ({"_target_": "EfficientNetBN", **OTHERS, "norm": "instance"}, "has norm = 'instance'"),
        ({"_target_": "SENet154", **OTHERS, "layers": [1, 1, 1, 1]}, "has layers = [1, 1, 1, 1]"),
        ({"_target_": "ViT", **VIT, "classification": False}, "has classification = False"),
        ({k: v for k, v in VIT.items() if k != "classification"} | {"_target_": "ViT"}, "has classification"),
        ({"_target_": "ViT", **VIT, "patch_size": None}, "has patch_size = None"),
    ],
)
def test_arguments_of_another_network_are_refused(
    definition: dict[str, Any], said: str, tmp_path: Path
) -> None:
    assert said in refused(tmp_path, definition)


@pytest.mark.parametrize(
    ("definition", "head"),
    [
        ({"_target_": "ResNet", **RESNET, "block": "basic", "layers": [9999] * 4}, "fc"),
        ({"_target_": "DenseNet", **DENSENET, "block_config": [9999] * 4}, "class_layers.out"),
        ({"_target_": "ViT", **VIT, "num_layers": 9999}, "head.0"),
    ],
)
def test_a_network_far_larger_than_its_file_is_refused_at_once(
    definition: dict[str, Any], head: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="far too few"):
        loaded(tmp_path, {f"{head}.weight": torch.zeros(2, 512)}, definition)
