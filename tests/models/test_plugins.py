from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_classifier
from wsi_saliency.models.plugins import package_of, plugins
from wsi_saliency.models.sources import source_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CODE = """
from torch import nn
from wsi_saliency import ClassifierSpec

LOADED = []

def load(name, weights):
    LOADED.append((name, weights))
    net = nn.Sequential(nn.Conv2d(3, 2, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    spec = ClassifierSpec(patch=32, mpp=1.0, mean=(0,) * 3, std=(1,) * 3, class_names=("a", "tumour"))
    return net, spec
"""


def package(folder: Path, name: str, scheme: str, value: str) -> None:
    """Install a package as pip would."""
    (folder / f"{name}.py").write_text(CODE)
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[wsi_saliency.models]\n{scheme} = {value}\n")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    package(tmp_path, "plug_in_of_a_test", "ours", "plug_in_of_a_test:load")
    yield tmp_path
    sys.modules.pop("plug_in_of_a_test", None)


@pytest.mark.usefixtures("installed")
def test_a_package_brings_a_scheme() -> None:
    loaded = load_classifier("ours:some/name")
    assert (loaded.uri, loaded.patch, loaded.class_names) == ("ours:some/name", 32, ("a", "tumour"))
    assert sys.modules["plug_in_of_a_test"].LOADED == [("some/name", None)]


@pytest.mark.usefixtures("installed")
def test_it_is_imported_when_it_is_used() -> None:
    source, name = source_of("ours:x")
    assert (name, source.written, source.package) == ("x", "ours:NAME", "plug_in_of_a_test 1.2")
    assert package_of(plugins()["ours"]) == "plug_in_of_a_test 1.2"
    assert "plug_in_of_a_test" not in sys.modules


def test_none_is_needed() -> None:
    assert "ours" not in plugins()
    with pytest.raises(ModelError, match="is not understood"):
        source_of("ours:x")


def test_a_scheme_of_this_package_cannot_be_taken_over(installed: Path) -> None:
    package(installed, "thief", "timm", "thief:load")
    assert source_of("timm:resnet18")[0].package is None


def test_two_packages_with_one_scheme_are_named(installed: Path) -> None:
    package(installed, "another", "ours", "another:load")
    with pytest.raises(ModelError, match=r"brought by another 1\.2 and plug_in_of_a_test 1\.2"):
        source_of("ours:x")


@pytest.mark.parametrize("value", ["no_such_module_at_all:load", "broken:missing"])
def test_a_broken_package_is_named(value: str, installed: Path) -> None:
    package(installed, "broken", "broken", value)
    with pytest.raises(ModelError, match=r"of the package broken 1\.2 cannot be loaded"):
        load_classifier("broken:x")
