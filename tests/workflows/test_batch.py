from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.commands import PICTURE
from tests.helpers.runs import SETTINGS, explainer_for
from tests.helpers.slides import section, write_svs
from wsi_saliency.errors import BusyError, ModelError, SlideError
from wsi_saliency.settings import RunSettings
from wsi_saliency.workflows import batch
from wsi_saliency.workflows.batch import SlideWork
from wsi_saliency.workflows.jobs import Job, Outcome


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Run slides: `b` fails as told, those in `bad` cannot be opened; returns outcomes and calls."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def run(error=None, names="abc", bad="", out="out", no_classifier=None):
        def explain_slide(slide, folder, settings, **how):
            calls.append((slide, folder, how["explainer"]))
            if slide.stem == "b" and error:
                raise error
            return SimpleNamespace(folder=folder)

        def load_explainer(settings):
            calls.append("loaded")
            if no_classifier:
                raise no_classifier
            return "explainer"

        for name in names:
            Path(f"{name}.svs").touch()
            if name not in bad:
                write_svs(Path(f"{name}.svs"), [section(32, 32)])
        monkeypatch.setattr(batch, "load_explainer", load_explainer)
        monkeypatch.setattr(batch, "explain_slide", explain_slide)
        jobs = [Job(Path(f"{name}.svs"), Path(name)) for name in names]
        return list(map(SlideWork(Path(out), RunSettings()), jobs)), calls

    return run


def test_a_failing_slide_does_not_stop_the_others(ran):
    outcomes, calls = ran(SlideError("b.svs: bad tile"))
    assert [outcome.job.slide.stem for outcome in outcomes] == ["a", "b", "c"]
    assert [outcome.failure for outcome in outcomes] == [None, "b.svs: bad tile", None]
    assert [outcome.result.folder for outcome in outcomes[::2]] == [Path("out/a"), Path("out/c")]
    assert outcomes[1].result is None
    assert calls[0] == "loaded"
    assert [call[2] for call in calls[1:]] == ["explainer"] * 3


def test_an_unexpected_error_is_named_with_its_slide_in_one_line(ran):
    outcomes, _ = ran(IndexError("out of\nrange"))
    assert outcomes[1].failure == "b.svs: unexpected IndexError: out of range"
    assert outcomes[1].unexpected
    assert "raise error" in outcomes[1].trace
    assert len(outcomes) == 3


def test_a_result_that_another_run_works_on_is_no_failure(ran):
    outcomes, _ = ran(BusyError("out/b: process 7 is working on it"))
    assert [outcome.busy for outcome in outcomes] == [False, True, False]


def test_interruption_is_no_failure_of_a_slide(ran):
    with pytest.raises(KeyboardInterrupt):
        ran(KeyboardInterrupt())


def test_a_missing_file_is_told_before_a_classifier_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "load_explainer", lambda settings: pytest.fail("loaded"))
    jobs = [Job(tmp_path / "none.svs", Path("none"))]
    outcome = SlideWork(tmp_path / "out", RunSettings())(jobs[0])
    assert replace(outcome, trace=None) == Outcome(jobs[0], failure=f"{tmp_path / 'none.svs'}: no such file")
    assert list(tmp_path.iterdir()) == []


def test_the_classifier_is_loaded_for_the_first_slide_that_opens(ran):
    outcomes, calls = ran(bad="ab")
    failures = [outcome.failure for outcome in outcomes[:2]]
    assert failures == ["a.svs: the file is empty", "b.svs: the file is empty"]
    assert [call if call == "loaded" else call[0].stem for call in calls] == ["loaded", "c"]


def test_without_a_slide_that_opens_no_classifier_is_loaded(ran):
    outcomes, calls = ran(bad="abc", no_classifier=ModelError("no weights"))
    assert [outcome.failure for outcome in outcomes] == [f"{name}.svs: the file is empty" for name in "abc"]
    assert calls == []


def test_without_a_place_for_results_no_classifier_is_loaded(ran, tmp_path):
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / "mine.txt").touch()
    outcomes, calls = ran(names="a")
    assert "out/a: exists and is not a result of this program" in outcomes[0].failure
    assert calls == []


def test_without_a_classifier_nothing_is_tried(ran, tmp_path):
    with pytest.raises(ModelError, match="no weights"):
        ran(no_classifier=ModelError("no weights"))
    assert not (tmp_path / "out").exists()


def test_each_slide_can_have_an_mpp_and_a_target_of_its_own(tmp_path):
    jobs = [
        Job(tmp_path / "a.svs", Path("a"), mpp=0.25, targets=("nix",)),
        Job(tmp_path / "b.svs", Path("b"), mpp=1.0, targets=("normal", "tumour")),
        Job(tmp_path / "c.svs", Path("c")),
    ]
    for job in jobs:
        write_svs(job.slide, [PICTURE])
    loaded = []

    def load(settings):
        loaded.append(settings.targets)
        return explainer_for(settings)

    outcomes = list(map(SlideWork(tmp_path / "out", SETTINGS, load=load), jobs))
    assert loaded == [("0",)]
    assert "no class 'nix'" in outcomes[0].failure
    records = [outcome.result.record for outcome in outcomes[1:]]
    assert [record["slide"]["mpp"]["x"] for record in records] == [1.0, 0.5]
    assert [[target["name"] for target in record["targets"]] for record in records] == [
        *(["normal", "tumour"], ["tumour"])
    ]
    assert records[0]["settings"]["targets"] == ["normal", "tumour"]
    assert records[1]["settings"]["mpp"] is None
