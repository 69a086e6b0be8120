from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from torch import Tensor, nn

from tests.helpers.hub_cache import cached, json_bytes, safetensors_bytes
from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier
from wsi_saliency.slides.levels import LevelPixels
from wsi_saliency.slides.resampling import Axis, resample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MEAN, STD = [0.7, 0.6, 0.5], [0.2, 0.3, 0.4]
NORMALIZE = {"name": "Normalize", "arguments": {"mean": MEAN, "std": STD}}
RESIZE = {"name": "Resize", "arguments": {"size": 96}}
TO_TENSOR = {"name": "ToTensor"}
CONFIG: dict[str, Any] = {
    "spec_version": "1.0",
    "architecture": "test_resnet",
    "num_classes": 2,
    "class_names": ["other", "tumor"],
    "patch_size_pixels": 150,
    "spacing_um_px": 0.25,
    "transform": [RESIZE, TO_TENSOR, NORMALIZE],
}
REGISTRY = {"models": {"tiny": {"description": "Tiny", "hf_repo_id": "ORG/tiny", "hf_revision": "v2"}}}


def net(architecture: str = "test_resnet", classes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    created: nn.Module = timm.create_model(architecture, num_classes=classes)
    for module in created.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return created.eval()


def scripted(module: nn.Module) -> Any:
    return torch.jit.script(module)


def traced(module: nn.Module) -> Any:
    return torch.jit.trace(module, torch.zeros(1, 3, 96, 96))  # type: ignore[no-untyped-call]


def program_bytes(program: Any) -> bytes:
    written = BytesIO()
    torch.jit.save(program, written)
    return written.getvalue()


def folder(path: Path, config: object = CONFIG, **files: bytes) -> str:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_bytes(json_bytes(config))
    for name, content in files.items():
        (path / name.replace("__", ".")).write_bytes(content)
    return str(path)


def refused(config: object, path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_classifier(folder(path, config, model__safetensors=safetensors_bytes(net().state_dict())))
    assert "\n" not in str(caught.value)
    assert str(path / "config.json") in str(caught.value)
    return str(caught.value)


def picture(side: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)


def as_wsinfer(rgb: np.ndarray[Any, np.dtype[np.uint8]], side: int) -> Tensor:
    """The transforms, as torchvision does them with a picture of Pillow."""
    resized = Image.fromarray(rgb).resize((side, side), Image.Resampling.BILINEAR)
    chw = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
    return ((chw - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])[None]


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning"
)  # TorchScript itself is deprecated
@pytest.mark.parametrize("program", [scripted, traced])
def test_logits_are_those_of_the_program(program: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    script = program(net())
    loaded = load_classifier(folder(tmp_path / "m", torchscript_model__pt=program_bytes(script)))
    patch = picture(150)
    seen = as_wsinfer(patch, 96)
    ours = loaded.normalised(
        np.array(Image.fromarray(patch).resize((96, 96), Image.Resampling.BILINEAR))[None],
        torch.device("cpu"),
    )
    torch.testing.assert_close(ours, seen, rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(ours), script(seen), rtol=0, atol=1e-4)
    assert not isinstance(loaded.module, torch.jit.ScriptModule)


def test_all_that_the_configuration_says_is_taken(tmp_path: Path) -> None:
    uri = folder(tmp_path / "m", model__safetensors=safetensors_bytes(net().state_dict()))
    loaded = load_classifier(uri)
    assert (loaded.uri, loaded.architecture, loaded.output) == (uri, "test_resnet", "softmax")
    assert (loaded.class_names, loaded.target_index(None)) == (("other", "tumor"), 1)
    assert (loaded.mean, loaded.std) == (tuple(MEAN), tuple(STD))
    assert loaded.notes == ()


def test_what_the_specification_does_not_have_is_named(tmp_path: Path) -> None:
    config = CONFIG | {"stain_normalization": True, "halo_size_pixels": 8}
    state = safetensors_bytes(net().state_dict())
    loaded = load_classifier(folder(tmp_path / "m", config, model__safetensors=state))
    unused = "config.json says more, which is not used: halo_size_pixels, stain_normalization"
    assert loaded.notes == (unused,)


@pytest.mark.parametrize("slide_mpp", [0.25, 0.2527, 0.5, 0.121])
def test_the_box_on_the_slide_is_wsinfers(slide_mpp: float, tmp_path: Path) -> None:
    loaded = load_classifier(folder(tmp_path / "m", model__safetensors=safetensors_bytes(net().state_dict())))
    assert loaded.mpp is not None
    assert round(loaded.patch * loaded.mpp / slide_mpp) == round(150 * 0.25 / slide_mpp)


def test_the_pixels_are_those_of_the_resize(tmp_path: Path) -> None:
    """The slide is read at the mpp of what the network sees; inside, where no neighbour comes in."""
    loaded = load_classifier(folder(tmp_path / "m", model__safetensors=safetensors_bytes(net().state_dict())))
    slide = picture(450)
    step = loaded.mpp / 0.25 if loaded.mpp else 0.0  # level-0 pixels of a slide of 0.25 µm/px

    def read(x: int, y: int, w: int, h: int) -> LevelPixels:
        return LevelPixels(slide[y : y + h, x : x + w], 0.0, 0.0)

    read_patch = resample(read, Axis(150, step, loaded.patch), Axis(150, step, loaded.patch))
    ours = loaded.normalised(read_patch[None], torch.device("cpu"))
    theirs = as_wsinfer(slide[150:300, 150:300], 96)
    torch.testing.assert_close(ours[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2], rtol=0, atol=1e-3)


def test_without_resize_and_normalize_patches_go_in_as_they_are(tmp_path: Path) -> None:
    config = CONFIG | {"transform": [TO_TENSOR], "num_classes": 1, "class_names": ["tumor"]}
    state = safetensors_bytes(net(classes=1).state_dict())
    loaded = load_classifier(folder(tmp_path / "m", config, model__safetensors=state))
    assert (loaded.patch, loaded.mpp, loaded.output) == (150, 0.25, "sigmoid")
    patches = picture(150)[None]
    inside = loaded.normalised(patches, torch.device("cpu"))
    torch.testing.assert_close(inside, torch.from_numpy(patches).permute(0, 3, 1, 2) / 255)


def test_weights_of_tiatoolbox_inside(tmp_path: Path) -> None:
    original = net("resnet18", 2)
    children = [name for name, _ in original.named_children()]
    wrapped = {}
    for name, value in original.state_dict().items():
        child, _, rest = name.partition(".")
        index = children.index(child)
        wrapped[f"classifier.{rest}" if child == "fc" else f"feat_extract.{index}.{rest}"] = value
    config = CONFIG | {"architecture": "resnet18"}
    uri = folder(tmp_path / "m", config, model__safetensors=safetensors_bytes(wrapped))
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(load_classifier(uri).module(images), original(images))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spec_version": "2.0"}, "spec_version is 2.0; only 1.0 is understood"),
        ({"spec_version": 1.0}, "spec_version is 1.0 (has to be a text)"),
        ({"architecture": None}, "architecture is missing"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"class_names": None}, "class_names is missing"),
        ({"patch_size_pixels": 1.5}, "patch_size_pixels is 1.5"),
        ({"spacing_um_px": 0}, "spacing_um_px is 0"),
        ({"transform": [TO_TENSOR, {"name": "CenterCrop"}]}, "transform[1].name is CenterCrop; only Resize"),
        ({"transform": [NORMALIZE, TO_TENSOR]}, "the order has to be Resize, ToTensor, Normalize"),
        ({"transform": []}, "transform is empty"),
        ({"transform": [TO_TENSOR, TO_TENSOR]}, "ToTensor once more"),
        ({"transform": [{"name": "Resize"}, TO_TENSOR]}, "transform[0].arguments.size is missing"),
        ({"transform": [{"name": "Resize", "arguments": {"size": [96, 64]}}, TO_TENSOR]}, "only square"),
        (
            {"transform": [{"name": "Resize", "arguments": {"size": 96, "interpolation": 3}}, TO_TENSOR]},
            "transform[0].arguments.interpolation is not understood; Resize takes size",
        ),
        ({"transform": "ToTensor"}, "has to be a list of objects"),
        ({"patch_size_pixels": 10**400}, "has to be a whole number"),
        ({"spacing_um_px": 10**400}, "too large"),
    ],
)
def test_a_configuration_is_read_strictly(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in refused(CONFIG | changes, tmp_path / "m")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = {k: v for k, v in net().state_dict().items() if not k.startswith("layer4.")}
    uri = folder(tmp_path / "m", model__safetensors=safetensors_bytes(state))
    with pytest.raises(ModelError, match="does not fit test_resnet: missing layer4"):
        load_classifier(uri)


def test_a_folder_without_weights_says_which_files_there_should_be(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no model\.safetensors or torchscript_model\.pt"):
        load_classifier(folder(tmp_path / "m"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    files = {
        "config.json": json_bytes(CONFIG),
        "model.safetensors": safetensors_bytes(net().state_dict()),
    }
    cached(tmp_path / "hub", "ORG/tiny", files, "v2")
    registry = {"wsinfer-zoo-registry.json": json_bytes(REGISTRY)}
    return cached(tmp_path / "hub", "kaczmarj/wsinfer-model-zoo-json", registry, kind="datasets")


@pytest.mark.usefixtures("cache")
def test_a_name_of_the_registry_at_its_revision() -> None:
    loaded = load_classifier("wsinfer:tiny")
    assert (loaded.uri, loaded.class_names) == ("wsinfer:tiny", ("other", "tumor"))
    assert load_classifier("hf-hub:ORG/tiny@v2").mean == loaded.mean


@pytest.mark.usefixtures("cache")
def test_a_name_that_is_not_in_the_registry_lists_those_that_are() -> None:
    with pytest.raises(ModelError, match="registry has no 'other'; it has tiny"):
        load_classifier("wsinfer:other")


def test_without_the_registry_the_ways_out_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"wsinfer-zoo-registry\.json .*--model hf-hub:ORG/NAME, or a folder"
    ):
        load_classifier("wsinfer:tiny")
