from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision import models  # type: ignore[import-untyped]

from tests.helpers.bundles import same_logits, with_statistics
from tests.helpers.paths import ROOT
from wsi_saliency.errors import ModelError
from wsi_saliency.models import recognition
from wsi_saliency.models.description import Description
from wsi_saliency.models.loading import load_classifier
from wsi_saliency.models.recognition import FAMILIES, Family, fitting
from wsi_saliency.models.weights import Weights, read_weights


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_classifier(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def small_state(library: str, name: str, classes: int = 2) -> dict[str, torch.Tensor]:
    """The state dict of an architecture, with shapes and names and without memory."""
    how = {"init_weights": False} if name == "inception_v3" else {}
    with torch.device("meta"):
        net = (
            timm.create_model(name, num_classes=classes)
            if library == "timm"
            else models.get_model(name, weights=None, num_classes=classes, **how)
        )
    state: dict[str, torch.Tensor] = net.state_dict()
    return state


def weights_of(state: dict[str, torch.Tensor]) -> Weights:
    return Weights(Path("m.pt"), state, Description(), "")


@pytest.mark.parametrize(
    ("nest", "prefix"),
    [
        (lambda state: state, ""),
        (lambda state: {"state_dict": state, "pytorch-lightning_version": "2"}, "model."),
        (lambda state: {"model": state}, "module.backbone."),
        (lambda state: state, "encoder."),
    ],
)
def test_one_fit_is_taken_and_said(nest: Any, prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = with_statistics(timm.create_model("resnet18", num_classes=3))
    state = {prefix + name: value for name, value in original.state_dict().items()}
    torch.save(nest(state), tmp_path / "m.ckpt")
    loaded = load_classifier(str(tmp_path / "m.ckpt"))
    same_logits(loaded.module, original)
    assert (loaded.uri, loaded.architecture) == (str(tmp_path / "m.ckpt"), "resnet18")
    assert loaded.notes[0] == "recognised as timm's resnet18 by the names and shapes of its tensors"


def test_networks_of_torchvision_are_recognised(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = with_statistics(models.mobilenet_v3_small(weights=None, num_classes=2))
    torch.save(original.state_dict(), tmp_path / "m.pt")
    loaded = load_classifier(str(tmp_path / "m.pt"))
    same_logits(loaded.module, original)
    assert "recognised as torchvision's mobilenet_v3_small" in loaded.notes[0]


def test_several_fits_are_listed(tmp_path: Path) -> None:
    """They differ in padding, which has no parameters."""
    torch.save(timm.create_model("efficientnet_lite0", num_classes=2).state_dict(), tmp_path / "m.pt")
    said = refused(tmp_path / "m.pt")
    assert "fits timm:efficientnet_lite0, timm:tf_efficientnet_lite0; choose with --model NAME" in said


@pytest.mark.parametrize(
    "state",
    [
        {"fc.weight": torch.zeros(2, 3)},
        {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)},
    ],
)
def test_no_fit_says_what_would_help(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "m.pt")
    assert f"--model timm:NAME --weights {tmp_path / 'm.pt'}" in refused(tmp_path / "m.pt")


def test_one_shape_that_differs_is_no_fit(tmp_path: Path) -> None:
    state = timm.create_model("resnet18", num_classes=2).state_dict()
    torch.save({**state, "layer4.1.bn2.bias": torch.zeros(511)}, tmp_path / "m.pt")
    assert "is none that is recognised" in refused(tmp_path / "m.pt")


def test_tiatoolbox_is_named(tmp_path: Path) -> None:
    torch.save({"feat_extract.0.weight": torch.zeros(2)}, tmp_path / "m.pt")
    assert "--model tiatoolbox:NAME --weights" in refused(tmp_path / "m.pt")


NAMES = [
    (library, name)
    for family in FAMILIES
    for library in ("timm", "torchvision")
    for name in getattr(family, library)[:: max(1, len(getattr(family, library)) - 1)]
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: (family.timm + family.torchvision)[0])
def test_every_name_is_known(family: Family) -> None:
    assert all(timm.is_model(name) for name in family.timm)
    assert set(family.torchvision) <= set(models.list_models(module=models))


@pytest.mark.parametrize(("library", "name"), NAMES)
def test_each_is_found_in_its_family_without_memory(library: str, name: str) -> None:
    """The first and the last of each family."""
    try:
        state = small_state(library, name)
    except NotImplementedError:
        if not torch.__version__.startswith("2.6."):
            raise
        pytest.skip("torch 2.6 cannot build it without memory")
    found = fitting(weights_of(state))
    assert (library, name) in [(blueprint.library, blueprint.name) for blueprint in found]


def test_most_that_do_not_fit_are_soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[bool] = []
    register = nn.Module.register_parameter

    def counted(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        built.append(param is None or param.device.type == "meta")
        register(self, name, param)

    monkeypatch.setattr(nn.Module, "register_parameter", counted)
    weights = weights_of(small_state("timm", "efficientnet_b5"))
    one = len(built)
    assert len(fitting(weights)) == 2
    assert all(built), "memory was taken"
    assert len(built) - one < 4 * one  # of 17 networks


def test_without_torchvision_those_of_timm_are_recognised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(*_: object) -> None:
        raise ModelError("torchvision is not installed")

    monkeypatch.setattr(recognition, "imported", missing)
    torch.save(timm.create_model("inception_v3", num_classes=2).state_dict(), tmp_path / "m.pt")
    assert [b.library for b in fitting(read_weights(tmp_path / "m.pt"))] == ["timm"]


REAL = ROOT.parent / "shared" / "real"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real classifiers are not here")
@pytest.mark.parametrize(
    ("name", "classes", "mean"), [("resnet18", 5, (0.5, 0.5, 0.5)), ("densenet121", 24, (0.0, 0.0, 0.0))]
)
def test_real_classifiers_load_by_their_path_alone(
    name: str, classes: int, mean: tuple[float, float, float]
) -> None:
    loaded = load_classifier(str(REAL / f"{name}_colon.safetensors"))
    assert (loaded.architecture, len(loaded.class_names), loaded.mean) == (name, classes, mean)
    assert loaded.class_names[loaded.target_index(None)] == "tumour"
