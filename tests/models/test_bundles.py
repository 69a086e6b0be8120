from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import constants
from torchvision import models  # type: ignore[import-untyped]

from tests.helpers.bundles import (
    INFERENCE,
    METADATA,
    FCModel,
    bundle_files,
    bundle_folder,
    same_logits,
    with_statistics,
)
from tests.helpers.hub_cache import cached
from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from wsi_saliency.models.classifier import Classifier


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(FCModel())


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of a document with another value at a dotted path."""
    copied = copy.deepcopy(document)
    *sections, key = path.split(".")
    node: Any = copied
    for section in sections:
        node = node[int(section)] if section.isdigit() else node[section]
    node[key] = value
    return copied


def with_network(definition: dict[str, Any]) -> dict[str, Any]:
    return changed(INFERENCE, "network_def", definition)


def loaded(path: Path, state: Any, inference: Any = INFERENCE, metadata: Any = METADATA) -> Classifier:
    return load_classifier(bundle_folder(path, bundle_files(state, inference, metadata)))


def refused(path: Path, inference: Any = INFERENCE, metadata: Any = METADATA) -> str:
    with pytest.raises(ModelError) as caught:
        loaded(path, {"fc.bias": torch.zeros(1)}, inference, metadata)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_all_that_its_configuration_says(network: nn.Module, tmp_path: Path) -> None:
    classifier = loaded(tmp_path, network.state_dict())
    same_logits(classifier.module, network)
    assert (classifier.uri, classifier.architecture, classifier.output) == (
        str(tmp_path),
        "resnet18",
        "sigmoid",
    )
    assert (classifier.patch, classifier.mpp, classifier.class_names) == (224, None, ("metastasis",))
    assert classifier.mean == classifier.std == (0.5, 0.5, 0.5)
    assert classifier.notes == ("its makers say: an example",)


@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_a_configuration_in_yaml(network: nn.Module, suffix: str, tmp_path: Path) -> None:
    inference = changed(INFERENCE, "network_def.num_classes", "@net::classes") | {"net": {"classes": 1}}
    files = bundle_files(network.state_dict(), inference)
    del files["configs/inference.json"]
    files[f"configs/inference.{suffix}"] = yaml.safe_dump(inference).encode()
    classifier = load_classifier(bundle_folder(tmp_path, files))
    same_logits(classifier.module, network)
    assert classifier.class_names == ("metastasis",)


def test_the_default_classifier_as_a_folder_has_its_mpp(network: nn.Module, tmp_path: Path) -> None:
    metadata = METADATA | {"name": "Pathology tumor detection"}
    assert loaded(tmp_path, network.state_dict(), metadata=metadata).mpp == 0.25


def test_a_bundle_of_the_hub(network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached(tmp_path, "ORG/bundle", bundle_files(network.state_dict()), "0.2.0")
    classifier = load_classifier("monai:ORG/bundle@0.2.0")
    same_logits(classifier.module, network)
    assert classifier.uri == "monai:ORG/bundle@0.2.0"
    with pytest.raises(
        ModelError, match=r"inference\.json of ORG/bundle \(revision main\) is not in the cache"
    ):
        load_classifier("monai:ORG/bundle")


def test_a_deeper_resnet_with_several_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = with_statistics(FCModel("resnet50", 2))
    inference = changed(INFERENCE, "network_def.model_name", "resnet50")
    metadata = changed(
        METADATA, "network_data_format.outputs.pred.channel_def", {"1": "tumor", "0": "normal"}
    )
    classifier = loaded(tmp_path, original.state_dict(), inference, metadata)
    same_logits(classifier.module, original)
    assert (classifier.class_names, classifier.output) == (("normal", "tumor"), "softmax")


def test_a_network_of_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = with_statistics(models.mobilenet_v3_small(weights=None, num_classes=1))
    definition = {"_target_": "torchvision.models.mobilenet_v3_small", "num_classes": 1, "weights": None}
    same_logits(loaded(tmp_path, original.state_dict(), with_network(definition)).module, original)


def test_a_network_of_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = with_statistics(timm.create_model("test_resnet", num_classes=1, channels=[16, 16, 24, 32]))
    definition = {
        "_target_": "timm.create_model",
        "model_name": "test_resnet",
        "num_classes": 1,
        "pretrained": True,
        "channels": [16, 16, 24, 32],
    }
    same_logits(loaded(tmp_path, original.state_dict(), with_network(definition)).module, original)


@pytest.mark.parametrize("whole", [True, False])
def test_all_cells_are_averaged_at_any_size(whole: bool, tmp_path: Path) -> None:
    """MONAI then holds the whole network, in older versions its children."""
    torch.manual_seed(0)
    original = with_statistics(models.resnet18(weights=None, num_classes=1))
    state = {}
    children = [name for name, _ in original.named_children()]
    for name, value in original.state_dict().items():
        child, _, rest = name.partition(".")
        inner = child if whole else children.index(child)
        state[name if child == "fc" else f"features.{inner}.{rest}"] = value
    inference = changed(changed(INFERENCE, "network_def.pool", None), "network_def.use_conv", False)
    metadata = changed(METADATA, "network_data_format.inputs.image.spatial_shape", [96, 96])
    same_logits(loaded(tmp_path, state, inference, metadata).module, original, 96)


@pytest.mark.parametrize(
    ("transforms", "mean", "std"),
    [
        (
            [{"_target_": "NormalizeIntensityd", "subtrahend": [0, 51, 102], "divisor": 255}],
            (0, 0.2, 0.4),
            (1, 1, 1),
        ),
        (
            [
                {"_target_": "monai.transforms.ScaleIntensityRangeD", "a_min": 0, "a_max": 255, "clip": True},
                {"_target_": "NormalizeIntensity", "subtrahend": [0.7, 0.6, 0.5], "divisor": [0.2, 0.3, 0.4]},
                {"_target_": "EnsureTyped"},
            ],
            (0.7, 0.6, 0.5),
            (0.2, 0.3, 0.4),
        ),
        ([], (0, 0, 0), (1 / 255,) * 3),
    ],
)
def test_transforms_become_one_mean_and_std(
    network: nn.Module, transforms: list[Any], mean: Any, std: Any, tmp_path: Path
) -> None:
    inference = changed(INFERENCE, "preprocessing.transforms", transforms)
    classifier = loaded(tmp_path, network.state_dict(), inference)
    assert classifier.mean == pytest.approx(mean)
    assert classifier.std == pytest.approx(std)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("network_def", {}, "network_def._target_ is missing"),
        (
            "network_def._target_",
            "UNet",
            "is UNet, which cannot be rebuilt; those that can: TorchVisionFCModel",
        ),
        ("network_def._target_", "timm.models.ResNet", "which cannot be rebuilt"),
        ("network_def._target_", "os.system", "is system, which cannot be rebuilt"),
        ("network_def.model_name", "inception_v3", "has model_name 'inception_v3'; understood are resnet18"),
        ("network_def.num_classes", "$int('1')", "has to be run as Python and is refused"),
        ("network_def.num_classes", "@nowhere", "has to be run as Python and is refused"),
        ("network_def.dim", 3, "has dim = 3, which is not understood"),
        ("network_def.node_name", "layer4", "has node_name = 'layer4', which is not understood"),
        ("network_def.pool", ["max", {"kernel_size": 7}], "only the average over 7 × 7 cells"),
        ("preprocessing", {}, "preprocessing.transforms is missing"),
        ("preprocessing", "$x", "has to be an object"),
        ("preprocessing.transforms.1._target_", "RandFlipd", "transforms[1]._target_ is RandFlipd"),
        ("preprocessing.transforms.1.a_max", 0, "does not span"),
        ("preprocessing.transforms.1.b_max", -2.0, "turn light into dark"),
    ],
)
def test_a_configuration_is_read_strictly(path: str, value: Any, said: str, tmp_path: Path) -> None:
    message = refused(tmp_path, changed(INFERENCE, path, value))
    assert said in message
    assert str(tmp_path / "configs" / "inference.json") in message


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("inputs.image.num_channels", 1, "only RGB patches"),
        ("inputs.image.spatial_shape", [224, 256], "only square patches"),
        ("outputs.pred.channel_def", {"1": "a"}, "has to number its channels from 0 on"),
    ],
)
def test_metadata_is_read_strictly(path: str, value: Any, said: str, tmp_path: Path) -> None:
    message = refused(tmp_path, metadata=changed(METADATA, f"network_data_format.{path}", value))
    assert said in message
    assert str(tmp_path / "configs" / "metadata.json") in message


def test_without_torchvision_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "wsi_saliency.models.torchvision", raising=False)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    definition = {"_target_": "torchvision.models.resnet18"}
    assert "pip install 'wsi-saliency[torchvision]'" in refused(tmp_path, with_network(definition))
