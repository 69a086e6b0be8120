from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier

if TYPE_CHECKING:
    from pathlib import Path

METADATA = {
    "architecture": "test_resnet",
    "patch": "64",
    "mpp": "0.5",
    "mean": "[0.1, 0.2, 0.3]",
    "std": "[0.4, 0.5, 0.6]",
    "class_names": '["stroma", "tumour"]',
    "note": "for trying",
}


def model(architecture: str = "test_resnet", classes: int = 2, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    created: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=classes, **arguments)
    return created.eval()


def saved(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(state, path, metadata=metadata)
    return path


def same_outputs(module: nn.Module, other: nn.Module, patch: int = 64) -> None:
    patches = torch.randn(2, 3, patch, patch, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(module(patches), other(patches))


def refused(uri: str, weights: Path | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_classifier(uri, weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_with_metadata_need_nothing_else(tmp_path: Path) -> None:
    original = model()
    path = saved(tmp_path / "m.safetensors", original.state_dict(), METADATA)
    loaded = load_classifier(str(path))
    same_outputs(loaded.module, original)
    assert (loaded.uri, loaded.architecture) == (str(path), "test_resnet")
    assert (loaded.patch, loaded.mpp) == (64, 0.5)
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert loaded.class_names == ("stroma", "tumour")
    assert (loaded.output, loaded.notes) == ("softmax", ("for trying",))


def test_the_module_is_frozen_and_in_eval_mode(tmp_path: Path) -> None:
    loaded = load_classifier(str(saved(tmp_path / "m.safetensors", model().state_dict(), METADATA)))
    assert not any(module.training for module in loaded.module.modules())
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


def test_what_nobody_says_is_timms_and_said(tmp_path: Path) -> None:
    original = model(classes=3)
    torch.save(original.state_dict(), tmp_path / "m.pth")
    loaded = load_classifier("timm:test_resnet", tmp_path / "m.pth")
    same_outputs(loaded.module, original)
    config = timm.get_pretrained_cfg("test_resnet")
    assert config is not None
    assert (loaded.uri, loaded.mpp) == ("timm:test_resnet", None)
    assert (loaded.patch, loaded.mean, loaded.std) == (config.input_size[-1], config.mean, config.std)
    assert loaded.class_names == ("0", "1", "2")
    assert loaded.notes == (
        "patch size, mean, std: not stated, taken from timm's test_resnet",
        "class names: not stated, classes are numbered",
    )


def test_options_override_the_description(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", model().state_dict(), METADATA)
    loaded = load_classifier(str(path), mpp=1.0, patch=96)
    assert (loaded.mpp, loaded.patch) == (1.0, 96)


def test_one_logit_means_sigmoid(tmp_path: Path) -> None:
    torch.save(model(classes=1).state_dict(), tmp_path / "m.pt")
    loaded = load_classifier("timm:test_resnet", tmp_path / "m.pt")
    assert (loaded.output, loaded.class_names, loaded.target_index(None)) == ("sigmoid", ("0",), 0)


@pytest.mark.parametrize(
    "architecture",
    [
        "test_resnet",
        "test_vit",
        "test_convnext",
        "test_efficientnet",
        "test_byobnet",
        "test_nfnet",
        "levit_128s",
    ],
)
def test_classes_are_counted_in_every_kind_of_head(architecture: str, tmp_path: Path) -> None:
    torch.save(model(architecture, 5).state_dict(), tmp_path / "m.pt")
    loaded = load_classifier(f"timm:{architecture}", tmp_path / "m.pt")
    assert len(loaded.class_names) == 5


def test_pretrained_tag_gives_its_preprocessing(tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "m.pt")
    loaded = load_classifier("timm:test_resnet.r160_in1k", tmp_path / "m.pt")
    assert loaded.patch == 160


def test_narrow_variant_through_model_args(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"channels": [16, 16, 24, 32]}
    original = model(**arguments)
    path = saved(
        tmp_path / "m.safetensors", original.state_dict(), {**METADATA, "model_args": json.dumps(arguments)}
    )
    same_outputs(load_classifier(str(path)).module, original)


def test_model_args_cannot_load_anything_else(tmp_path: Path) -> None:
    arguments = {"pretrained": True, "checkpoint_path": str(tmp_path / "other.pt"), "num_classes": 9}
    path = saved(
        tmp_path / "m.safetensors", model().state_dict(), {**METADATA, "model_args": json.dumps(arguments)}
    )
    assert len(load_classifier(str(path)).class_names) == 2


def test_unknown_model_args_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", model().state_dict(), {**METADATA, "model_args": '{"wide": 2}'})
    assert "{'wide': 2}" in refused(str(path))


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what is built: parameters by their device."""
    built: Counter[str] = Counter()
    register = nn.Module.register_parameter

    def counted(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        built[str(param.device) if param is not None else "none"] += 1
        register(self, name, param)

    monkeypatch.setattr(nn.Module, "register_parameter", counted)
    return built


def described(path: Path, architecture: str = "test_resnet", **arguments: Any) -> Path:
    """Weights of the architecture as it is, which say that it is a variant."""
    state = {name: value.contiguous() for name, value in model(architecture).state_dict().items()}
    said = {**METADATA, "architecture": architecture, "model_args": json.dumps(arguments)}
    return saved(path / "m.safetensors", state, said)


@pytest.mark.parametrize(
    ("architecture", "arguments", "said"),
    [
        ("test_resnet", {"features_only": True}, "must not hold features_only"),
        ("test_resnet", {"out_indices": [1], "device": "meta"}, "must not hold device, out_indices"),
        ("test_resnet", {"layers": [10**6] * 4}, "more than any patch classifier"),
        ("test_resnet", {"layers": [1] * 2000}, "more than any patch classifier"),
        ("test_resnet", {"a": float("inf")}, "more than any patch classifier"),
        ("test_resnet", {"layers": [9999] * 4}, "tensors are far too few"),
        ("test_vit", {"depth": 9999}, "tensors are far too few"),
        ("test_resnet", {"channels": [9999] * 4}, "describes a network of 38.0 GB"),
        ("test_vit", {"img_size": 9999}, "of another shape pos_embed"),
        ("test_resnet", {"layers": "abc", "block_args": 5}, "cannot build test_resnet with its model_args"),
    ],
)
def test_what_model_args_ask_for_is_found_out_before_memory_is_taken(
    architecture: str, arguments: dict[str, Any], said: str, parts: Counter[str], tmp_path: Path
) -> None:
    path = described(tmp_path, architecture, **arguments)
    parts.clear()
    assert said in refused(str(path))
    assert parts["cpu"] == 0
    assert parts["meta"] < 1500


@pytest.mark.parametrize("depth", [300, 900, 5000])
def test_model_args_nested_beyond_measure_are_refused(depth: int, tmp_path: Path) -> None:
    said = {**METADATA, "model_args": f'{{"a": {"[" * depth}{"]" * depth}}}'}
    message = refused(str(saved(tmp_path / "m.safetensors", model().state_dict(), said)))
    assert "model_args" in message
    assert len(message) < 1000


def test_another_architecture_is_refused_before_memory_is_taken(parts: Counter[str], tmp_path: Path) -> None:
    torch.save(model("test_vit").state_dict(), tmp_path / "m.pt")
    parts.clear()
    assert "does not fit vit_giant_patch14_224" in refused("timm:vit_giant_patch14_224", tmp_path / "m.pt")
    assert parts["cpu"] == 0


def test_an_architecture_that_has_no_skeleton_is_built_within_the_same_bounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Some versions of timm read values while they build, which the meta device has not."""
    create = timm.create_model

    def reads_values(*args: Any, **how: Any) -> nn.Module:
        assert torch.linspace(0, 1, 4)[2].item() > 0
        return create(*args, **how)  # type: ignore[no-any-return]

    monkeypatch.setattr(timm, "create_model", reads_values)
    torch.save(model().state_dict(), tmp_path / "m.pt")
    same_outputs(load_classifier("timm:test_resnet", tmp_path / "m.pt").module, model())
    assert "far too few" in refused(str(described(tmp_path, layers=[9999] * 4)))
    assert "far too few" in refused(str(described(tmp_path, channels=[9999] * 4)))
    assert "of another shape" in refused(str(described(tmp_path, channels=[48, 48, 48, 64])))


def test_nothing_watches_modules_afterwards(tmp_path: Path) -> None:
    refused(str(described(tmp_path, layers=[9999] * 4)))
    assert not torch.nn.modules.module._global_parameter_registration_hooks
    assert not torch.nn.modules.module._global_module_registration_hooks


@pytest.mark.parametrize("shape", [(), (0, 96), (10**9, 0)])
def test_a_head_of_no_use_is_refused_at_once(shape: tuple[int, ...], tmp_path: Path) -> None:
    state = {**model().state_dict(), "fc.weight": torch.zeros(shape)}
    torch.save(state, tmp_path / "m.pt")
    message = refused("timm:test_resnet", tmp_path / "m.pt")
    assert ("have shape" in message) == (10**9 not in shape)


def test_names_of_parameters_reach_a_message_without_control_characters(tmp_path: Path) -> None:
    torch.save({**model().state_dict(), "\x1b[31mevil\n": torch.zeros(1)}, tmp_path / "m.pt")
    assert r"unexpected \x1b[31mevil;" in refused("timm:test_resnet", tmp_path / "m.pt")


def test_convolutional_head_is_flattened_into_a_linear_one(tmp_path: Path) -> None:
    original = model()
    state = {
        key: v[:, :, None, None] if key == "fc.weight" else v for key, v in original.state_dict().items()
    }
    torch.save(state, tmp_path / "m.pt")
    same_outputs(load_classifier("timm:test_resnet", tmp_path / "m.pt").module, original)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    torch.save(model().half().state_dict(), tmp_path / "m.pt")
    loaded = load_classifier("timm:test_resnet", tmp_path / "m.pt")
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}


def test_batch_norm_counters_may_be_missing(tmp_path: Path) -> None:
    state = {key: v for key, v in model().state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "m.pt")
    load_classifier("timm:test_resnet", tmp_path / "m.pt")


def test_timm_checkpoint_needs_no_name(tmp_path: Path) -> None:
    original = model()
    torch.save({"arch": "test_resnet", "state_dict": original.state_dict()}, tmp_path / "m.pth.tar.ckpt")
    same_outputs(load_classifier(str(tmp_path / "m.pth.tar.ckpt")).module, original)


def test_bare_state_dict_names_the_option(tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "m.pt")
    assert f"--model timm:NAME --weights {tmp_path / 'm.pt'}" in refused(str(tmp_path / "m.pt"))


def test_timm_needs_weights() -> None:
    assert "--weights FILE" in refused("timm:resnet18")


def test_unknown_architecture_names_close_ones(tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "m.pt")
    assert "resnet18" in refused("timm:resnet-18", tmp_path / "m.pt")
    assert "nonsense" in refused("timm:resnet18.nonsense", tmp_path / "m.pt")
    assert "list_models" in refused("timm:", tmp_path / "m.pt")
    assert "hf-hub:timm/resnet18" in refused("timm:hf-hub:timm/resnet18", tmp_path / "m.pt")


def test_features_without_a_head_are_refused(tmp_path: Path) -> None:
    torch.save(model(classes=0).state_dict(), tmp_path / "m.pt")
    message = refused("timm:test_resnet", tmp_path / "m.pt")
    assert "has the backbone of timm's test_resnet and no head" in message


def test_mismatches_name_the_first_parameters(tmp_path: Path) -> None:
    state = model().state_dict()
    renamed = {key.replace("layer1.", "stage1."): v for key, v in state.items()}
    renamed["conv1.0.weight"] = torch.zeros(5, 3, 3, 3)
    torch.save(renamed, tmp_path / "m.pt")
    message = refused("timm:test_resnet", tmp_path / "m.pt")
    first = next(key for key in state if key.startswith("layer1."))
    assert f"missing {first}, " in message
    assert "more; unexpected stage1." in message
    assert "conv1.0.weight (5, 3, 3, 3) for" in message


def test_class_names_have_to_match_the_head(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", model(classes=3).state_dict(), METADATA)
    assert "3 logits but 2 class names (stroma, tumour)" in refused(str(path))


def test_broken_weights_are_seen(tmp_path: Path) -> None:
    state = {key: v * float("nan") if key == "fc.bias" else v for key, v in model().state_dict().items()}
    path = saved(tmp_path / "m.safetensors", state, METADATA)
    assert "NaN" in refused(str(path))


def test_a_patch_that_the_architecture_does_not_take(tmp_path: Path) -> None:
    torch.save(model("test_vit").state_dict(), tmp_path / "m.pt")
    with pytest.raises(ModelError, match=r"100 px .*--patch"):
        load_classifier("timm:test_vit", tmp_path / "m.pt", patch=100)
