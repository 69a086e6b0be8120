"""Runs over many slides: what is kept, what waits for others, and what is said of failures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers.commands import PICTURE
from tests.helpers.paths import ROOT
from tests.helpers.runs import SETTINGS, explained
from tests.helpers.slides import section, write_svs
from wsi_saliency.engines import folders
from wsi_saliency.engines.direct import DirectEngine
from wsi_saliency.engines.folders import FolderRun, explain_jobs
from wsi_saliency.errors import NoRoomError, OutputError
from wsi_saliency.files import locked
from wsi_saliency.heatmap.result import Result
from wsi_saliency.report.slides import COMPLETE, FAILED, read_summary
from wsi_saliency.settings import BatchSettings, RunSettings
from wsi_saliency.workflows.jobs import Job, Outcome


@dataclass
class Staged:
    """An engine that gives the outcomes that it is told, and notes what it is given."""

    outcomes: dict[str, list] = field(default_factory=dict)
    given: list[list[str]] = field(default_factory=list)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.given.append(["closed"])

    def run(self, jobs, settings):
        self.given.append([job.slide.stem for job in jobs])
        for job in jobs:
            told = self.outcomes.get(job.slide.stem, [])
            yield Outcome(job, **(told.pop(0) if told else {"result": Result(Path("done"), {})}))


BUSY = {"failure": "process 7 is working on it", "busy": True}


def jobs_in(folder, names):
    return [Job(folder / f"{name}.svs", Path("sub", name)) for name in names]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run slides with a staged engine; returns outcomes and the engine."""
    monkeypatch.setattr(folders, "_LOOK_AGAIN", 0.05)

    def run(names, settings=SETTINGS, outcomes=None, **how):
        engine = Staged(outcomes or {})
        folder_run = FolderRun(tmp_path / "out", settings, engine, **how)
        return list(folder_run.outcomes(jobs_in(tmp_path, names))), engine

    return run


@pytest.fixture
def complete(tmp_path):
    """Explain a slide."""

    def explain(name):
        slide = write_svs(tmp_path / f"{name}.svs", [PICTURE])
        return explained(slide, tmp_path / "out" / "sub" / name)

    return explain


def test_complete_results_are_kept_and_come_first_and_the_others_go_to_the_engine(run, complete):
    complete("b")
    outcomes, engine = run("abc")
    assert [outcome.job.slide.stem for outcome in outcomes] == ["b", "a", "c"]
    assert engine.given == [["a", "c"], ["closed"]]
    assert outcomes[0].result.kept
    assert run("b")[1].given == []


def test_a_result_of_other_settings_is_kept_and_says_so(run, complete):
    complete("b")
    (outcome,), _ = run("b", RunSettings(**SETTINGS.to_json() | {"overlap": 0.25, "range": (0.0, 1.0)}))
    assert outcome.result.differences == ("overlap 0.5 (now 0.25)", "range default (now 0.0,1.0)")


def test_what_lacks_a_map_or_is_to_be_replaced_goes_to_the_engine(run, complete, tmp_path):
    complete("b")
    assert run("b", RunSettings(**SETTINGS.to_json() | {"layers": ["8", "16"]}))[1].given[0] == ["b"]
    assert run("b", overwrite=True)[1].given[0] == ["b"]
    (tmp_path / "b.svs").unlink()
    assert run("b")[1].given[0] == ["b"]


def test_the_weights_of_a_file_are_compared_by_their_hash(run, complete, tmp_path):
    complete("b")  # whose record has a hash of zeros
    record = tmp_path / "out" / "sub" / "b" / "run.json"
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"other")
    facts = json.loads(record.read_text())
    facts["settings"]["model"] = str(weights)
    record.write_text(json.dumps(facts))
    (outcome,), _ = run("b", RunSettings(**SETTINGS.to_json() | {"model": str(weights)}))
    assert outcome.result.differences == ("other weights",)


def test_a_damaged_record_costs_its_slide_only(run, complete, tmp_path):
    complete("b")
    record = tmp_path / "out" / "sub" / "b" / "run.json"
    facts = json.loads(record.read_text())
    for damaged in (facts | {"settings": None}, facts | {"maps": [{}]}, facts | {"slide": 3}):
        record.write_text(json.dumps(damaged))
        outcomes, engine = run("ab")
        assert engine.given[0] == ["a", "b"]
        assert len(outcomes) == 2
    record.write_text(json.dumps(facts | {"patches": None}))
    assert run("ab")[0][0].result.kept


def test_what_another_run_works_on_is_looked_at_again_at_the_end(run, complete, tmp_path):
    outcomes, engine = run("abc", outcomes={"a": [BUSY, BUSY]})
    assert [outcome.job.slide.stem for outcome in outcomes] == ["b", "c", "a"]
    assert engine.given == [["a", "b", "c"], ["a"], ["a"], ["closed"]]


def test_what_another_run_has_made_meanwhile_is_kept(run, complete, tmp_path, caplog):
    slide = write_svs(tmp_path / "a.svs", [PICTURE])
    made = explained(slide, tmp_path / "elsewhere")
    held, target = threading.Event(), tmp_path / "out" / "sub" / "a"

    def other_run():
        with locked(target):
            held.set()
            while not caplog.records:  # the run has seen that it has to wait
                threading.Event().wait(0.01)
            made.folder.rename(target)

    other = threading.Thread(target=other_run)
    other.start()
    held.wait()
    outcomes, engine = run("ab", outcomes={"a": [BUSY]})
    other.join()
    assert [outcome.job.slide.stem for outcome in outcomes] == ["b", "a"]
    assert outcomes[1].result.kept
    assert engine.given == [["a", "b"], ["closed"]]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("other runs work on 1 slide; waiting for their end (process 7")


def test_a_failure_has_a_log_beside_its_place_until_the_slide_is_done(run, tmp_path):
    failure = {"failure": "a.svs: unexpected E: x", "trace": "Traceback: E", "unexpected": True}
    log = tmp_path / "out" / "sub" / "a.error.log"
    outcomes, _ = run("ab", outcomes={"a": [failure]})
    assert outcomes[0].failure == f"a.svs: unexpected E: x (the traceback is in {log})"
    assert log.read_text().splitlines()[1:] == ["a.svs: unexpected E: x", "", "Traceback: E"]
    assert [path.name for path in log.parent.iterdir()] == [log.name]
    run("ab")
    assert not log.exists()
    (tmp_path / "out" / "summary.csv").unlink()
    outcomes, _ = run("a", outcomes={"a": [failure]}, logs=False)
    assert outcomes[0].failure == "a.svs: unexpected E: x (run with -v for the traceback)"
    assert not log.exists()
    assert not (tmp_path / "out" / "summary.csv").exists()


def test_a_log_that_cannot_be_written_hides_no_failure(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").touch()
    outcomes, _ = run("a", outcomes={"a": [{"failure": "a.svs: bad"}]})
    assert outcomes[0].failure == "a.svs: bad"


def test_fail_fast_ends_at_the_first_failure(run):
    outcomes, engine = run("abc", outcomes={"b": [{"failure": "b.svs: bad"}]}, fail_fast=True)
    assert [outcome.failure for outcome in outcomes] == [None, "b.svs: bad"]
    assert engine.given[-1] == ["closed"]


LOST = {"failure": "a.svs: the process died", "lost": True}


def test_a_lost_slide_is_tried_again_after_the_others_and_not_more_often_than_is_asked_for(run, caplog):
    outcomes, engine = run("abc", outcomes={"a": [LOST]}, retries=1)
    assert [(outcome.job.slide.stem, outcome.failure) for outcome in outcomes] == [
        *(("b", None), ("c", None), ("a", None))
    ]
    assert engine.given == [["a", "b", "c"], ["a"], ["closed"]]
    assert [record.getMessage() for record in caplog.records] == [
        "a.svs: the process died; it is tried again when the others are done"
    ]
    outcomes, engine = run("ab", outcomes={"a": [LOST] * 3}, retries=2)
    assert [outcome.failure for outcome in outcomes] == [None, "a.svs: the process died"]
    assert engine.given == [["a", "b"], ["a"], ["a"], ["closed"]]


def test_without_retries_a_lost_slide_has_failed_and_other_failures_are_never_tried_again(run):
    assert [outcome.failure for outcome in run("a", outcomes={"a": [LOST]})[0]] == [LOST["failure"]]
    outcomes, engine = run("a", outcomes={"a": [{"failure": "a.svs: bad"}]}, retries=2)
    assert [outcome.failure for outcome in outcomes] == ["a.svs: bad"]
    assert engine.given == [["a"], ["closed"]]


def test_a_lost_slide_is_tried_again_while_another_run_holds_one(run, tmp_path):
    (tmp_path / "out" / "sub").mkdir(parents=True)
    with locked(tmp_path / "out" / "sub" / "b"):
        engine = Staged({"a": [LOST], "b": [BUSY]})
        folder_run = FolderRun(tmp_path / "out", SETTINGS, engine, retries=1)
        outcomes = folder_run.outcomes(jobs_in(tmp_path, "ab"))
        assert next(outcomes).job.slide.stem == "a"
        assert engine.given == [["a", "b"], ["a"]]
    assert [outcome.job.slide.stem for outcome in outcomes] == ["b"]


def test_a_file_in_place_of_the_output_folder_is_told_before_anything_is_run(run, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match=r"out: cannot be written \(it is a file, not a folder\)"):
        run("a")


# --------------------------------------------------------------------------------- with worker processes


def program(folder, *arguments, code=""):
    """Run the command line in a process of its own, which says whether it has imported torch."""
    code = f"""
import sys
from wsi_saliency.cli import cli
{code}
if __name__ == "__main__":
    try:
        cli(sys.argv[1:])
    finally:
        print("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--model", "demo", "--device", "cpu", "--overlap", "0"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def test_several_slides_in_worker_processes_and_again(tmp_path):
    for name in "acd":
        write_svs(tmp_path / f"{name}.svs", [PICTURE])
    (tmp_path / "b.svs").touch()
    code, out, err = program(tmp_path, "run", ".", "-o", "out")
    assert code == 1
    assert out.pop() == "False"
    assert [line.split(":")[0] for line in out] == ["a.svs", "c.svs", "d.svs"]
    assert [line for line in err if "no medical meaning" in line] == [err[0]]
    assert err[1:] == [
        "failed: b.svs: the file is empty",
        "Error: 1 of 4 slides failed:",
        "  b.svs: the file is empty",
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("a", "b.error.log", "c", "d", "index.html", "summary.csv")
    ]
    rows = {row.folder: row for row in read_summary(tmp_path / "out")}
    assert [(name, row.status) for name, row in rows.items()] == [
        *(("a", COMPLETE), ("b", FAILED), ("c", COMPLETE), ("d", COMPLETE))
    ]
    assert (rows["b"].reason, rows["b"].error_log) == ("b.svs: the file is empty", "b.error.log")
    assert "Traceback" in (tmp_path / "out" / "b.error.log").read_text()
    assert Result.read(tmp_path / "out" / "c").record["model"]["device"] == "cpu"

    write_svs(tmp_path / "b.svs", [PICTURE])
    code, out, err = program(tmp_path, "run", "a.svs", "c.svs", "-o", "out")
    assert (code, err, out.pop()) == (0, [], "False")
    assert all(": kept " in line for line in out)
    assert len(out) == 2


def test_a_single_slide_with_a_timeout_has_a_process_too(tmp_path):
    write_svs(tmp_path / "a.svs", [section(2048, 2048)])  # takes long
    code, out, err = program(tmp_path, "run", "a.svs", "--slide-timeout", "0.01")
    assert (code, out) == (1, ["False"])
    assert err[-1] == "Error: a.svs: stopped after 0.01 s (--slide-timeout)"
    assert [path.name for path in tmp_path.iterdir()] == ["a.svs"]


# ------------------------------------------------------------------------------- where nothing can be written


def test_a_run_ends_when_there_is_no_room_for_any_slide(run, tmp_path, caplog):
    full = {"failure": "out/sub/b: cannot be written (No space left on device)", "no_room": True}
    said = []
    engine = Staged({"b": [full]})
    (tmp_path / "out" / "index.html").mkdir(parents=True)  # neither can the page be written
    with pytest.raises(
        NoRoomError, match=r"out: nothing more can be written there, .* the same command does"
    ):
        said.extend(
            outcome.failure
            for outcome in FolderRun(tmp_path / "out", SETTINGS, engine).outcomes(jobs_in(tmp_path, "abc"))
        )
    assert said == [None, full["failure"]]
    assert engine.given == [["a", "b", "c"], ["closed"]]
    assert caplog.records == []


def test_an_output_folder_that_vanishes_is_not_made_anew(tmp_path):
    class Vanishing(Staged):
        def run(self, jobs, settings):
            for outcome in super().run(jobs, settings):
                if outcome.job.slide.stem == "b":
                    shutil.rmtree(tmp_path / "out")
                yield outcome

    (tmp_path / "out").mkdir()
    engine = Vanishing({"b": [{"failure": "out/sub/b: cannot be written (No such file or directory)"}]})
    outcomes = FolderRun(tmp_path / "out", SETTINGS, engine).outcomes(jobs_in(tmp_path, "abc"))
    assert next(outcomes).failure is None
    assert next(outcomes).failure is not None
    with pytest.raises(NoRoomError):
        next(outcomes)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def tiny(tmp_path):
    """A file system with little room."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if not sys.platform.startswith("linux") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_clear_line_and_the_same_command_goes_on_when_there_is_room(tiny, tmp_path):
    for name in "ab":
        write_svs(tmp_path / f"{name}.svs", [PICTURE])
    arguments = ("run", "a.svs", "b.svs", "-o", "tiny", "--quiet")
    code, out, err = program(tmp_path, *arguments)
    assert (code, out) == (1, ["False"])
    assert [line.partition(" ")[0] for line in err] == ["failed:", "Error:"]
    assert "cannot be written (No space left on device)" in err[0]
    assert err[1].startswith(
        "Error: tiny: nothing more can be written there, so other slides are not tried; "
    )
    assert err[1].endswith("the same command does what is left")
    assert [path.name for path in tiny.iterdir() if path.suffix != ".growing"] == []
    subprocess.run(["mount", "-o", "remount,size=64M", tiny], check=True)
    assert program(tmp_path, *arguments) == (0, ["False"], [])
    assert {path.name for path in tiny.iterdir()} == {"a", "b", "summary.csv", "index.html"}


def test_a_single_slide_that_is_a_part_of_many_has_a_process_of_its_own(tmp_path, monkeypatch):
    engines = []
    monkeypatch.setattr(
        folders, "LocalEngine", lambda *_, **__: engines.append("local") or DirectEngine(tmp_path)
    )
    jobs, settings = [Job(tmp_path / "a.svs", Path("a"))], RunSettings(model="demo")
    for batch in (BatchSettings(limit=1), BatchSettings(shard="1/1"), BatchSettings()):
        assert [outcome.failure for outcome in explain_jobs(jobs, tmp_path / "out", settings, batch)]
    assert engines == ["local", "local"]
