"""What the documentation shows is run as it stands, on a part of the sample slide, with the demo classifier.

Where a block takes the classifier that has to be downloaded, the bundled one stands in for it. Options that
decide how long a command takes are added behind it; all that is written stays.
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from functools import partial
from importlib import resources
from itertools import pairwise
from pathlib import Path

import pytest
import tifffile
import torch
from click.testing import CliRunner

import wsi_saliency
from tests.helpers.documents import RUN, blocks, to_run
from tests.helpers.nets import narrow_net
from tests.helpers.paths import SAMPLE, SAMPLE_DATA
from tests.helpers.slides import write_svs, write_tiff
from wsi_saliency import EvaluationSettings
from wsi_saliency.cli import cli
from wsi_saliency.models import sources

X, Y, SIDE = 1400, 1100, 800  # a nest and what is around it, in level-0 pixels of the sample slide
QUICK_EVALUATION = {"patches": 2, "phase_moves": 1, "stability_mpx": 0, "step": 25088}
QUICK = {
    "run": "--overlap 0",
    "evaluate": " ".join(
        [
            *(f"--{name.replace('_', '-')} {value}" for name, value in QUICK_EVALUATION.items()),
            "--layer 8 --method none,centred-hook --attribution gradient",
        ]
    ),
    "train-surrogate": "--patches 4 --epochs 1",
    "qupath": "",
    "render": "",
}
BEFORE = {
    "qupath": "run slides/ -o maps --model demo --overlap 0",
    "render": "run slide.svs --model demo --overlap 0",
}
"""What has to be run first, of a command that takes what another has made."""
COMMANDS = [command for block in to_run("console") for command in block.commands]


def nests():
    """The outlines of the nests that lie in the part, moved to where they lie there."""
    outlines = json.loads((SAMPLE_DATA / "tumour_nests.geojson").read_text())
    inside = []
    for feature in outlines["features"]:
        (ring,) = feature["geometry"]["coordinates"]
        moved = [[x - X, y - Y] for x, y in ring]
        if all(0 <= value < SIDE for point in moved for value in point):
            inside.append(feature | {"geometry": {"type": "Polygon", "coordinates": [moved]}})
    assert inside
    return outlines | {"features": inside}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with all files that the pages name."""
    folder = tmp_path_factory.mktemp("files")
    picture = tifffile.imread(SAMPLE)[Y : Y + SIDE, X : X + SIDE]
    write_svs(folder / "slide.svs", [picture])
    write_tiff(folder / "slide.tif", [picture], mpp=None)
    for name in ("slides", "sample_data"):
        (folder / name).mkdir()
    shutil.copy(folder / "slide.svs", folder / "sample_data" / SAMPLE.name)
    shutil.copy(folder / "slide.svs", folder / "slides" / "one.svs")
    (folder / "slide.geojson").write_text(json.dumps(nests()))
    with resources.as_file(resources.files("wsi_saliency.models") / "demo.safetensors") as weights:
        shutil.copy(weights, folder / "weights.safetensors")
    return folder


@pytest.fixture
def here(files, tmp_path, monkeypatch):
    """A copy of the folder, as the current one, where ``camelyon16`` is the demo classifier."""
    folder = tmp_path / "here"
    shutil.copytree(files, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sources.ALIASES, "camelyon16", sources.Alias("demo", "stands in"))
    monkeypatch.setattr(logging.root, "handlers", [])
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_run(command, here):
    program, name, *arguments = shlex.split(command)
    assert program == "wsi-saliency", "mark the block, and say why it is not run"
    if name in BEFORE:
        assert CliRunner().invoke(cli, BEFORE[name].split(), prog_name=program).exit_code == 0
    before = set(here.rglob("*"))
    done = CliRunner().invoke(cli, [name, *arguments, *QUICK.get(name, "").split()], prog_name=program)
    assert done.exit_code == 0, done.output
    assert done.output
    made = {path.relative_to(here) for path in here.rglob("*") if path not in before}
    if name in QUICK and "--dry-run" not in arguments:
        named = next((after for flag, after in pairwise(arguments) if flag in ("-o", "-p")), "")
        assert any(str(path).startswith(named) for path in made)
    else:
        assert not made


@pytest.mark.parametrize("page", [p for p in RUN if to_run("python", p)], ids=lambda page: page.name)
def test_python_of_a_page_is_run_in_order(page, here, monkeypatch):
    kinds = {"methods": ("none", "centred-hook"), "attributions": ("gradient",)}
    quick = partial(EvaluationSettings, **QUICK_EVALUATION, **kinds)
    monkeypatch.setattr(wsi_saliency, "EvaluationSettings", quick)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    names = {"model": narrow_net(torch.float32).eval(), "images": images[..., :64, :64]}
    names |= {"larger": images, "batches": [names["images"]]}  # 64 px, and the network's stride of 32
    for block in to_run("python", page):
        exec(compile(block.text, str(page), "exec"), names)
    assert Path("maps/slide/run.json").exists()


def test_every_block_is_of_a_kind_that_is_run():
    assert {block.language for block in blocks(pages=RUN) if not block.not_run} == {"console", "python"}
    assert COMMANDS
    assert all(block.commands for block in to_run("console"))
