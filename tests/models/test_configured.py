from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from huggingface_hub import constants

from tests.helpers.hub_cache import cached, json_bytes, safetensors_bytes, torch_bytes
from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

CONFIG: dict[str, Any] = {
    "architecture": "test_resnet",
    "num_classes": 2,
    "label_names": ["stroma", "tumour"],
    "pretrained_cfg": {
        "input_size": [3, 96, 96],
        "mean": [0.7, 0.6, 0.5],
        "std": [0.2, 0.3, 0.4],
        "num_classes": 9,
        "global_pool": "avg",
        "url": "https://example.org/other.pth",
    },
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def net(classes: int = 2, architecture: str = "test_resnet", **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    created: nn.Module = timm.create_model(architecture, num_classes=classes, **arguments)
    return created.eval()


def same(module: nn.Module, original: nn.Module, side: int = 96) -> None:
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(module(images), original(images))


def with_config(cache: Path, config: object, state: Any = None, name: str = "model.safetensors") -> str:
    state = state or net().state_dict()
    content = safetensors_bytes(state) if name.endswith("safetensors") else torch_bytes(state)
    cached(cache, "ORG/net", {"config.json": json_bytes(config), name: content})
    return "hf-hub:ORG/net"


def refused(uri: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_classifier(uri)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_all_that_the_configuration_says_is_taken(cache: Path, name: str) -> None:
    loaded = load_classifier(with_config(cache, CONFIG, name=name))
    same(loaded.module, net())
    assert (loaded.uri, loaded.architecture) == ("hf-hub:ORG/net", "test_resnet")
    assert (loaded.mean, loaded.std) == ((0.7, 0.6, 0.5), (0.2, 0.3, 0.4))
    assert (loaded.patch, loaded.mpp) == (96, None)
    assert (loaded.class_names, loaded.named) == (("stroma", "tumour"), True)
    assert loaded.notes == ()


def test_older_configurations_say_it_at_the_top(cache: Path) -> None:
    flat = {"architecture": "test_resnet", "num_classes": 2, **CONFIG["pretrained_cfg"], "num_features": 8}
    loaded = load_classifier(with_config(cache, flat | {"num_classes": 2}))
    assert (loaded.mean, loaded.patch) == ((0.7, 0.6, 0.5), 96)
    assert not loaded.named


def test_what_the_configuration_leaves_open_is_said(cache: Path) -> None:
    loaded = load_classifier(with_config(cache, {"architecture": "test_resnet", "num_classes": 2}))
    config = timm.get_pretrained_cfg("test_resnet")
    assert config is not None
    assert (loaded.mean, loaded.patch) == (config.mean, config.input_size[-1])
    assert loaded.notes[0] == "patch size, mean, std: not stated, taken from timm's test_resnet"


def test_a_variant_is_built_as_it_was_saved(cache: Path) -> None:
    variant = net(channels=[16, 16, 24, 32], global_pool="max")
    config = json.loads(json.dumps(CONFIG)) | {"model_args": {"channels": [16, 16, 24, 32]}}
    config["pretrained_cfg"]["global_pool"] = "max"
    same(load_classifier(with_config(cache, config, variant.state_dict())).module, variant)


def test_a_fixed_input_size_is_that_of_the_positions(cache: Path) -> None:
    variant = net(architecture="test_vit", img_size=96)
    config = json.loads(json.dumps(CONFIG)) | {"architecture": "test_vit"}
    config["pretrained_cfg"] |= {"fixed_input_size": True, "global_pool": "token"}
    same(load_classifier(with_config(cache, config, variant.state_dict())).module, variant)


def test_a_revision_is_its_own(cache: Path) -> None:
    with_config(cache, CONFIG)
    assert "revision v2" in refused("hf-hub:ORG/net@v2")


def test_own_weights_in_place_of_the_repositorys(cache: Path, tmp_path: Path) -> None:
    cached(cache, "ORG/net", {"config.json": json_bytes(CONFIG)})
    torch.save(net().state_dict(), tmp_path / "m.pt")
    same(load_classifier("hf-hub:ORG/net", tmp_path / "m.pt").module, net())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": None}, "architecture is missing"),
        ({"architecture": "no_such_net"}, "timm has no architecture"),
        ({"num_classes": 0}, "features without a classifier"),
        ({"num_classes": 3}, "2 logits, and its description says 3"),
        ({"num_classes": "2"}, "num_classes is '2'"),
        ({"label_names": ["one"]}, "2 logits but 1 class names"),
        ({"label_names": {"0": "one"}}, "has to be a list of names"),
        ({"pretrained_cfg": {"mean": [0.5, 0.5]}}, "pretrained_cfg.mean is [0.5, 0.5]"),
        (
            {"pretrained_cfg": {"std": [0.5, 0.5, 0]}},
            "pretrained_cfg.std is [0.5, 0.5, 0] (has to be positive)",
        ),
        ({"pretrained_cfg": {"input_size": [3, 96, 64]}}, "only square RGB"),
        ({"pretrained_cfg": {"input_size": [4, 96, 96]}}, "only square RGB"),
        ({"pretrained_cfg": []}, "has to be an object"),
        ({"model_args": {"features_only": True}}, "must not hold features_only"),
    ],
)
def test_a_configuration_is_read_strictly(cache: Path, changes: dict[str, Any], said: str) -> None:
    message = refused(with_config(cache, CONFIG | changes))
    assert said in message
    assert "ORG--net" in message or "architecture" in said


def test_another_kind_of_configuration_names_the_way_out(cache: Path) -> None:
    assert "--model timm:NAME --weights FILE" in refused(with_config(cache, {"model_type": "vit"}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no JSON"),
        (b"[1]", "is no JSON object"),
        (b"[" * 10**6, "is no JSON"),
        (b"\xff\xfe{", "is no JSON"),
        (b'{"a": "' + b"b" * 2**23 + b'"}', "so large"),
    ],
)
def test_a_file_that_is_no_configuration(cache: Path, content: bytes, said: str) -> None:
    cached(cache, "ORG/net", {"config.json": content})
    message = refused("hf-hub:ORG/net")
    assert said in message
    assert len(message) < 800


def test_what_is_not_cached_names_the_way_to_have_it(cache: Path) -> None:
    message = refused("hf-hub:ORG/net")
    assert "config.json of ORG/net (revision main) is not in the cache" in message
    assert "hf download ORG/net --revision main --local-dir FOLDER" in message
