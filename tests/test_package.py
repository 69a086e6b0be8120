"""What is shipped: the wheel, built and installed, does the main job away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.helpers.paths import ROOT, SAMPLE

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
MADE = {
    *("overview.png", "saliency.ome.tif", "saliency.ome.zarr", "tiles.csv", "run.json"),
    *("overlay.groovy", "tiles.geojson.gz", "report.html"),
}


def run(*command, cwd):
    """Run a command that sees neither the checkout nor a network."""
    environment = {**os.environ, "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1", "PYTHONNOUSERSITE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_of(folder):
    """Paths of all files of a folder of the checkout, as an archive names them."""
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(ROOT).as_posix() for path in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What ``make dist`` builds: the sdist, and from it the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The ``bin`` of an environment with the wheel; what the wheel needs is that of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    where = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # Paths out of a .pth come last, and the .pth files that lie there are not read: no editable checkout.
    needed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (Path(where) / "needed.pth").write_text("\n".join(needed))
    (wheel,) = built.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return python.parent


def test_the_wheel_is_the_package_and_its_licence_and_no_more(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"wsi_saliency-{PROJECT['version']}.dist-info"
    files = files_of("wsi_saliency")
    assert {name for name in names if not name.startswith(f"{info}/")} == files
    needed = ("py.typed", "models/demo.safetensors", "heatmap/scripts/overlay.groovy")
    assert {f"wsi_saliency/{name}" for name in needed} <= files
    assert f"{info}/licenses/LICENSE" in names


def test_the_sdist_has_what_its_documents_link_to_and_what_its_tests_look_at(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("tests", "docs", "benchmarks", "sample_data"):
        assert files_of(folder) <= names
    assert {"Makefile", "Dockerfile", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "cli.py"} <= names


def test_the_installed_command_explains_a_slide_away_from_the_checkout(installed, tmp_path):
    shutil.copy(SAMPLE, tmp_path / "slide.svs")
    used = run(installed / "python", "-c", "import wsi_saliency; print(wsi_saliency.__file__)", cwd=tmp_path)
    assert Path(used.strip()).is_relative_to(installed.parent)
    command = ("run", "slide.svs", "--model", "demo", "--layer", "layer3", "--overlap", "0", "-o", "maps")
    run(installed / "wsi-saliency", *command, cwd=tmp_path)
    made = {path.name for path in (tmp_path / "maps" / "slide").iterdir()}
    assert made == MADE


def test_the_citation_is_of_this_version_and_of_the_paper():
    assert CITATION["cff-version"] == "1.2.0"
    assert (CITATION["title"], CITATION["version"]) == (PROJECT["name"], PROJECT["version"])
    assert CITATION["license"] == PROJECT["license"]
    assert all(CITATION[key] for key in ("message", "authors"))
    (paper,) = CITATION["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert f"[{paper['title']}]({paper['url']})" in (ROOT / "README.md").read_text()
    names = ", ".join(author["family-names"] for author in paper["authors"])
    assert f"({names})" in (ROOT / "README.md").read_text()
