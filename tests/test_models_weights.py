from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import pickle
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from wsi_saliency.errors import ModelError
from wsi_saliency.models.weights import Description, read_weights

if TYPE_CHECKING:
    from pathlib import Path

STATE = {"fc.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.tensor([1.0, -1.0])}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in STATE.items()}


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "checkpoint",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE, "optimizer": {"lr": 0.1}},
        {"model_state_dict": STATE},
        {"state_dict": prefixed("model."), "pytorch-lightning_version": "2.4"},
        {
            "state_dict": {**prefixed("model."), "criterion.weight": torch.ones(2)},
            "pytorch-lightning_version": "2.4",
        },
        prefixed("module."),
        prefixed("module.model."),
        prefixed("_orig_mod.module."),
        {"state_dict": {"fc.bias": torch.zeros(9)}, "state_dict_ema": STATE},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_come_down_to_one_state_dict(
    checkpoint: dict[str, Any], zipped: bool, tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    state = read_weights(path).state
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[key], STATE[key]) for key in STATE)


def test_a_prefix_that_not_all_names_have_is_kept(tmp_path: Path) -> None:
    torch.save({**prefixed("model."), "head.bias": torch.ones(1)}, tmp_path / "model.pt")
    assert set(read_weights(tmp_path / "model.pt").state) == {"model.fc.weight", "model.fc.bias", "head.bias"}


def test_timm_checkpoint_says_its_architecture(tmp_path: Path) -> None:
    torch.save({"arch": "resnet18", "state_dict": STATE}, tmp_path / "model.pth")
    assert read_weights(tmp_path / "model.pth").description == Description(architecture="resnet18")


def test_hash_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(STATE, path)
    assert read_weights(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_safetensors_with_all_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    metadata = {
        "architecture": "resnet18",
        "model_args": '{"block_args": {}}',
        "patch": "96",
        "mpp": "0.5",
        "mean": "[0.5, 0.6, 1]",
        "std": "[0.1, 0.2, 0.3]",
        "class_names": '["normal", "tumour"]',
        "note": "for trying",
        "format": "pt",
    }
    save_file(STATE, path, metadata=metadata)
    weights = read_weights(path)
    assert weights.description == Description(
        "resnet18",
        {"block_args": {}},
        96,
        0.5,
        (0.5, 0.6, 1.0),
        (0.1, 0.2, 0.3),
        ("normal", "tumour"),
        "for trying",
    )
    assert torch.equal(weights.state["fc.weight"], STATE["fc.weight"])


def test_safetensors_without_metadata_says_nothing(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    assert read_weights(tmp_path / "model.safetensors").description == Description()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mpp", "half"),
        ("mpp", "0"),
        ("mpp", "nan"),
        ("mpp", "inf"),
        ("patch", "0"),
        ("patch", "96.5"),
        ("mean", "[0.5, 0.5]"),
        ("mean", "0.5"),
        ("std", "[0.5, 0.5, true]"),
        ("class_names", '["a", 2]'),
        ("class_names", "[]"),
        ("class_names", "tumour"),
        ("model_args", "[1]"),
    ],
)
def test_bad_metadata_names_file_and_key(key: str, value: str, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors", metadata={key: value})
    assert f"metadata {key!r} is {value!r}" in refused(tmp_path / "model.safetensors")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nothing.pt")
    assert "is a folder" in refused(tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello world",
        bytes(range(256)),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
    ],
)
def test_what_is_no_weights_file_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    assert "damaged or no" in refused(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    big = {"a": torch.zeros(3000)}
    save_file(big, path) if suffix == ".safetensors" else torch.save(big, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "damaged or no" in refused(path)


@settings(max_examples=60, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
    zipped=st.booleans(),
)
def test_damage_never_shows_a_traceback(
    changes: list[tuple[int, int]], zipped: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[position] = value
    path.write_bytes(content)
    with contextlib.suppress(ModelError):
        assert all(isinstance(value, torch.Tensor) for value in read_weights(path).state.values())


class Malicious:
    ran: list[str] = []  # noqa: RUF012

    def __reduce__(self) -> tuple[Any, ...]:
        return (Malicious.ran.append, ("ran",))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({"args": argparse.Namespace(lr=1), "state_dict": STATE}, "argparse.Namespace"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"weight": Malicious()}, "getattr"),
    ],
)
def test_pickled_code_is_refused_and_named(content: object, code: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    message = refused(tmp_path / "model.pt")
    assert code in message
    assert "state_dict()" in message
    assert Malicious.ran == []


def test_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(pickle.dumps(STATE))
    refused(tmp_path / "model.pt")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; its files are still about
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "model.pt")  # type: ignore[no-untyped-call]
    assert "TorchScript" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}, {"state_dict": {"a": 1}}])
def test_a_file_without_tensors_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert "no state dict" in refused(tmp_path / "model.pt")


def test_a_single_tensor_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "model.pt")
    assert "holds a Tensor" in refused(tmp_path / "model.pt")


def test_metadata_survives_json_of_any_name(tmp_path: Path) -> None:
    names = ['a "b"', "größer", "µ"]
    save_file(STATE, tmp_path / "m.safetensors", metadata={"class_names": json.dumps(names)})
    assert read_weights(tmp_path / "m.safetensors").description.class_names == tuple(names)
