from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from tests.helpers.bundles import INFERENCE, METADATA
from tests.helpers.hub_cache import COMMIT, cached, json_bytes
from wsi_saliency.models.listing import facts, listed_models
from wsi_saliency.models.sources import ALIASES, SOURCES
from wsi_saliency.models.tiatoolbox_config import DATASETS

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = bytes(12_300_000)
TIMM = {
    "architecture": "resnet18",
    "num_classes": 2,
    "label_names": ["stroma", "tumour"],
    "pretrained_cfg": {"input_size": [3, 96, 96]},
}
WSINFER = {
    "spec_version": "1.0",
    "architecture": "resnet34",
    "num_classes": 1,
    "class_names": ["tumor"],
    "patch_size_pixels": 350,
    "spacing_um_px": 0.25,
    "transform": [{"name": "Resize", "arguments": {"size": 224}}, {"name": "ToTensor"}],
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def downloaded() -> list[str]:
    return [text for label, text in listed_models() if label == "downloaded"]


def test_all_sources_and_short_names_are_listed(cache: Path) -> None:
    lines = listed_models()
    assert [text.split(":")[0] for label, text in lines if label == "short name"] == list(ALIASES)
    written = [text for label, text in lines if label == "source"]
    assert all(any(text.startswith(source.written) for text in written) for source in SOURCES.values())
    camelyon16 = dict(lines)["short name"]
    assert "licence Apache-2.0; 224 px at 0.25 µm/px; metastasis" in camelyon16
    assert lines[-1] == ("downloaded", "nothing yet")


def test_the_facts_of_tiatoolbox_are_those_that_it_loads(cache: Path) -> None:
    listed = [text for label, text in listed_models() if label == "tiatoolbox"]
    assert listed == [f"ARCHITECTURE-{name}: {facts(d)}" for name, d in DATASETS.items()]
    assert listed[0] == "ARCHITECTURE-pcam: 96 px, 1 µm/px, classes not named"


def test_what_is_downloaded_is_listed_as_it_is_written_behind_model(cache: Path) -> None:
    cached(cache, "A/timm", {"config.json": json_bytes(TIMM), "model.safetensors": WEIGHTS})
    cached(cache, "B/zoo", {"config.json": json_bytes(WSINFER), "torchscript_model.pt": WEIGHTS}, "v2")
    bundle = {"configs/inference.json": json_bytes(INFERENCE), "configs/metadata.json": json_bytes(METADATA)}
    cached(cache, "C/bundle", {**bundle, "models/model.pt": WEIGHTS}, "0.2.0")
    cached(cache, "MONAI/pathology_tumor_detection", {"models/model.pt": WEIGHTS}, "0.6.3")
    cached(cache, "Z/text", {"README.md": b"no model"})
    assert downloaded() == [
        "hf-hub:A/timm: 12.3 MB; resnet18, 96 px, classes stroma, tumour",
        "hf-hub:B/zoo@v2: 12.3 MB; resnet34, 224 px, 0.390625 µm/px, classes tumor",
        "monai:C/bundle@0.2.0: 12.3 MB; 224 px, classes metastasis",
        "camelyon16: 12.3 MB; weights without a configuration",
    ]


def test_names_of_a_downloaded_registry_are_used(cache: Path) -> None:
    cached(cache, "B/zoo", {"config.json": json_bytes(WSINFER), "torchscript_model.pt": WEIGHTS}, "v2")
    registry = {"models": {"breast": {"hf_repo_id": "B/zoo", "hf_revision": "v2"}}}
    file = {"wsinfer-zoo-registry.json": json_bytes(registry)}
    cached(cache, "kaczmarj/wsinfer-model-zoo-json", file, kind="datasets")
    assert [line.split(": ")[0] for line in downloaded()] == ["wsinfer:breast"]


def test_a_damaged_registry_and_configuration_spoil_nothing(cache: Path) -> None:
    cached(cache, "A/timm", {"config.json": b"{", "model.safetensors": WEIGHTS})
    file = {"wsinfer-zoo-registry.json": b"[]"}
    cached(cache, "kaczmarj/wsinfer-model-zoo-json", file, kind="datasets")
    (line,) = downloaded()
    assert line.startswith("hf-hub:A/timm: 12.3 MB; not understood: ")
    assert "\n" not in line


def test_a_revision_without_a_name_is_its_commit(cache: Path) -> None:
    cached(cache, "A/timm", {"config.json": json_bytes(TIMM), "model.safetensors": WEIGHTS})
    (cache / "models--A--timm" / "refs" / "main").unlink()
    (line,) = downloaded()
    assert line.startswith(f"hf-hub:A/timm@{COMMIT}: ")
