"""Whatever has happened to the files of a model, there is a classifier or one line, soon."""

from __future__ import annotations

import json
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.bundles import INFERENCE, METADATA
from tests.helpers.hub_cache import json_bytes, safetensors_bytes, torch_bytes
from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLOW = 10.0  # seconds; memory that is claimed, or a network far too large, would take longer
ARCHITECTURE = "test_resnet"


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = timm.create_model(ARCHITECTURE, num_classes=2)
    return net.state_dict()


def scripted() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = timm.create_model(ARCHITECTURE, num_classes=2).eval()
        return torch.jit.script(net).save_to_buffer()  # type: ignore[no-any-return]


WEIGHTS = {
    "safetensors": lambda: safetensors_bytes(state()),
    "zipped": lambda: torch_bytes(state()),
    "nested": lambda: torch_bytes({"state_dict": state(), "epoch": 3}),
    "torchscript": scripted,
}
PRETRAINED = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
TIMM: dict[str, Any] = {"architecture": ARCHITECTURE, "num_classes": 2, "label_names": ["a", "tumor"]}
TIMM |= {"model_args": {"drop_rate": 0.1}, "pretrained_cfg": PRETRAINED}
WSINFER: dict[str, Any] = {
    **{"spec_version": "1.0", "architecture": ARCHITECTURE, "num_classes": 2, "class_names": ["a", "b"]},
    **{"patch_size_pixels": 64, "spacing_um_px": 0.5, "transform": [{"name": "ToTensor"}]},
}
BUNDLE = INFERENCE | {"network_def": {"_target_": "timm.create_model", "model_name": ARCHITECTURE}}
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "timm": (TIMM, "config.json"),
    "wsinfer": (WSINFER, "config.json"),
    "monai": (BUNDLE, "configs/inference.json"),
    "monai's yaml": (BUNDLE, "configs/inference.yaml"),
    "monai's metadata": (METADATA, "configs/metadata.json"),
}


def ends_well(uri: str) -> None:
    """Load a model; what is wrong with it is said in one line, which names a file."""
    start = time.monotonic()
    try:
        load_classifier(uri)
    except ModelError as error:
        said = str(error)
        assert "\n" not in said
        assert uri in said
        assert len(said) < 2000
    assert time.monotonic() - start < SLOW


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that are cut, overwritten, taken out or put in at a place, near the ends as often as not."""
    ends = st.integers(0, 400) | st.integers(len(content) - 400, len(content) - 1)
    at = draw(ends | st.integers(0, len(content) - 1)) % len(content)
    some = draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, b"9" * 8, b"\0" * 64]))
    how = draw(st.sampled_from(["cut", "overwritten", "taken out", "put in"]))
    if how == "cut":
        return content[:at]
    behind = at + (0 if how == "put in" else len(some))
    return content[:at] + (b"" if how == "taken out" else some) + content[behind:]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", WEIGHTS)
def test_damaged_weights(kind: str, tmp_path: Path) -> None:
    content = WEIGHTS[kind]()
    path = tmp_path / ("m.safetensors" if kind == "safetensors" else "m.pt")

    @settings(max_examples=30, deadline=None)
    @given(damaged(content))
    def try_out(some: bytes) -> None:
        path.write_bytes(some)
        ends_well(str(path))

    try_out()


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all values below a node."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


ABSURD = st.sampled_from(
    [
        *(10**5, 10**9, 10**18, -1, 0, 1e308, "1e9", True, None, "", "x" * 10_000, [], {}, [[]] * 1000),
        *([3, 10**6, 10**6], ["a"] * 10_000, {"a": {"a": {"a": 1}}}, "$__import__('os')", "@network_def"),
        *("../../etc/passwd", "resnet152", "vit_giant_patch14_224", "create_model"),
    ]
)


@st.composite
def odd(draw: st.DrawFn, document: dict[str, Any], suffix: str) -> bytes:
    """A configuration with an absurd value in place of another, or one more, or with damaged bytes."""
    copied = json.loads(json_bytes(document))
    *front, key = draw(st.sampled_from(list(places(copied))))
    node: Any = copied
    for step in front:
        node = node[step]
    node[key] = draw(ABSURD)
    if isinstance(node, dict):
        more = st.sampled_from(["img_size", "channels", "layers", "num_classes", "depth", "width", "x"])
        node |= draw(st.dictionaries(more, ABSURD, max_size=1))
    written = yaml.safe_dump(copied).encode() if suffix == "yaml" else json_bytes(copied)
    return draw(damaged(written)) if draw(st.booleans()) else written


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", CONFIGS)
def test_odd_configurations(kind: str, tmp_path: Path) -> None:
    document, file = CONFIGS[kind]
    (tmp_path / "configs").mkdir() if file.startswith("configs") else None
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").write_bytes(torch_bytes(state()))
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(state()))
    if file.startswith("configs"):
        (tmp_path / "configs" / "inference.json").write_bytes(json_bytes(BUNDLE))
        (tmp_path / "configs" / "metadata.json").write_bytes(json_bytes(METADATA))
    if file.endswith("yaml"):
        (tmp_path / "configs" / "inference.json").unlink()

    @settings(max_examples=30, deadline=None)
    @given(odd(document, file.rpartition(".")[2]))
    def try_out(some: bytes) -> None:
        (tmp_path / file).write_bytes(some)
        ends_well(str(tmp_path))

    try_out()
