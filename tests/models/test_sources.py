from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.helpers.paths import ROOT
from wsi_saliency.errors import ModelError
from wsi_saliency.models.sources import (
    ALIASES,
    FILE,
    FOLDER,
    SOURCES,
    SUFFIXES,
    Source,
    described_sources,
    model_sources,
    source_of,
)
from wsi_saliency.settings import DEFAULT_MODEL, ModelSettings, options_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("uri", ["keras:resnet18", "resnet18", "no/model", "", ":"])
def test_unknown_uri_lists_what_is_understood(uri: str) -> None:
    with pytest.raises(ModelError) as caught:
        source_of(uri)
    assert str(caught.value) == f"--model {uri!r} is not understood; it can be {model_sources()}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", SOURCES)
def test_what_follows_the_scheme_is_the_sources(scheme: str) -> None:
    assert source_of(f"{scheme}:a/b:c") == (SOURCES[scheme], "a/b:c")
    assert source_of(scheme) == (SOURCES[scheme], "")


@pytest.mark.parametrize("written", [written.split()[0] for written, _ in described_sources()[:-2]])
def test_what_is_listed_is_understood(written: str) -> None:
    source, name = source_of(written)
    assert source in SOURCES.values()
    if written in ALIASES:
        assert ALIASES[written].uri.partition(":")[2] == name
    else:
        assert source.written.split()[0] == written
        assert written.endswith(name)


def test_the_default_is_listed() -> None:
    source_of(DEFAULT_MODEL)
    assert DEFAULT_MODEL in model_sources().split(", ")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_known_by_its_suffix_or_by_being_there(suffix: str, tmp_path: Path) -> None:
    missing = str(tmp_path / f"missing{suffix}")
    assert source_of(missing) == (FILE, missing)
    there = tmp_path / "weights.bin"
    there.touch()
    assert source_of(str(there)) == (FILE, str(there))


def test_a_folder_is_known_by_being_there(tmp_path: Path) -> None:
    assert source_of(str(tmp_path)) == (FOLDER, str(tmp_path))
    with pytest.raises(ModelError, match="is not understood"):
        source_of(str(tmp_path / "missing"))


@pytest.mark.parametrize("source", [*SOURCES.values(), FOLDER, FILE], ids=lambda source: source.loader)
def test_a_loader_is_there_and_refuses_with_one_line(source: Source, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        source.load("no such model", tmp_path / "missing.pt")
    assert "\n" not in str(caught.value)


def test_a_source_whose_library_is_missing_names_the_extra() -> None:
    source = replace(SOURCES["timm"], loader="no_such_library.module:load", extra="hub")
    with pytest.raises(ModelError, match=r"needs no_such_library.*pip install 'wsi-saliency\[hub\]'"):
        source.load("resnet18", None)


def test_every_extra_can_be_installed() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {source.extra for source in SOURCES.values() if source.extra} <= extras.keys()


def test_a_broken_installation_is_not_called_a_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        replace(FILE, loader="no_such_library:load").load("x.pt", None)


def test_help_lists_what_is_understood() -> None:
    assert options_of(ModelSettings)["model"].help == f"Classifier, one of: {model_sources()}."


def test_readme_has_the_table() -> None:
    text = (ROOT / "README.md").read_text().replace("`", "")
    assert "\n".join(f"| {written} | {what} |" for written, what in described_sources()) in text


def test_table_needs_neither_torch_nor_the_sources() -> None:
    code = "import sys, wsi_saliency.models.sources; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "wsi_saliency.models.sources" in loaded
    assert not loaded & {"torch", "timm", "huggingface_hub", "safetensors"}
    assert not any(source.loader.split(":")[0] in loaded for source in (*SOURCES.values(), FOLDER, FILE))
