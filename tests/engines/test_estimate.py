"""What a dry run says is what a run then does."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.commands import PICTURE
from tests.helpers.nets import spot_classifier
from tests.helpers.paths import ROOT
from tests.helpers.runs import SETTINGS, explained, values_of
from tests.helpers.slides import write_svs
from wsi_saliency.engines.estimate import Total, estimates
from wsi_saliency.messages import duration_in_words
from wsi_saliency.models import loading
from wsi_saliency.workflows.jobs import Job


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_load", lambda uri, weights: spot_classifier(64))
    for name in "ab":
        write_svs(tmp_path / f"{name}.svs", [PICTURE])
    (tmp_path / "bad.svs").touch()
    return [Job(tmp_path / f"{name}.svs", Path(name)) for name in ("a", "b", "bad")]


def test_patches_are_those_of_the_run_and_time_and_size_those_of_its_results(jobs, tmp_path):
    out = tmp_path / "out"
    before = list(estimates(jobs, out, SETTINGS))
    assert [estimate.failure for estimate in before] == [None, None, f"{jobs[2].slide}: the file is empty"]
    total = Total.of(before)
    assert (total.slides, total.kept, total.failed, total.seconds) == (3, 0, 1, None)
    assert 5e6 < total.size < 8e6  # of two small slides, most of it is pictures
    result = explained(jobs[0].slide, out / "a")
    assert before[0].patches == before[1].patches == result.record["patches"]["tissue"] > 0
    assert before[0].cells == pytest.approx((values_of(result.folder) != 0).sum(), rel=0.8)

    total = Total.of(list(estimates(jobs, out, SETTINGS)))
    assert (total.slides, total.kept, total.failed) == (3, 1, 1)
    assert total.patches == before[1].patches
    assert total.seconds == pytest.approx(result.record["seconds"]["total"])
    assert total.size == pytest.approx(sum(p.stat().st_size for p in out.rglob("*") if p.is_file()))
    again = Total.of(list(estimates(jobs, out, SETTINGS, overwrite=True)))
    assert (again.kept, again.patches) == (0, 2 * before[0].patches)


def test_more_maps_and_finer_layers_take_more_room(jobs, tmp_path):
    def cells(**changes):
        return next(estimates(jobs, tmp_path, replace(SETTINGS, **changes))).cells

    assert cells(targets=("normal", "tumour")) == 2 * cells()
    assert cells(methods=("none", "centred-hook")) == 2 * cells()
    assert cells(layers=("16",)) < cells() < cells(layers=("8", "16")) < cells(layers=("4", "8"))


def test_a_slide_of_its_own_settings_is_estimated_by_them(jobs, tmp_path):
    coarse = replace(jobs[0], mpp=1.0)
    first, second = estimates([jobs[0], coarse], tmp_path, SETTINGS)
    assert second.patches > first.patches


def test_the_command_says_it_without_torch_and_writes_nothing(tmp_path):
    write_svs(tmp_path / "a.svs", [PICTURE])
    (tmp_path / "bad.svs").touch()
    code = (
        "import sys; from wsi_saliency.cli import cli\n"
        "try: cli(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", ".", "--dry-run", "--overlap", "0"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == "failed: bad.svs: the file is empty\n"
    first, slides, patches, time, space, torch = done.stdout.splitlines()
    assert first.startswith("a.svs: ")
    assert first.endswith(" patches → saliency/a")
    assert slides.split(maxsplit=1) == ["slides", "2: 1 to explain, 0 kept, 1 cannot be read"]
    assert patches.split() == ["patches", first.split()[1]]
    assert time.split(maxsplit=1) == ["time", "unknown until a slide is done"]
    assert space.startswith("space ")
    assert (torch, done.returncode) == ("False", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svs", "bad.svs"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119, "119 s"), (150, "2 min"), (7200, "2 h"), (86400 * 3.4, "3 days")],
)
def test_durations_in_words(seconds, words):
    assert duration_in_words(seconds) == f"about {words}"
