"""Slides in worker processes: whatever one of them does, the others are done, and nothing is left behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.paths import ROOT
from tests.helpers.slides import section, write_svs
from tests.helpers.workers import content, dying, jobs_for, measured, notes, staged, unable, watchful
from wsi_saliency.engines.local import LocalEngine
from wsi_saliency.engines.messages import Order
from wsi_saliency.engines.worker import TIDYING, slide_work
from wsi_saliency.errors import ModelError
from wsi_saliency.settings import RunSettings
from wsi_saliency.workflows.jobs import Job

SETTINGS = RunSettings(device="cpu")


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Run slides of these names; returns what is said of each."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(*names, settings=SETTINGS, work=staged, **how):
        with LocalEngine(tmp_path / "new" / "out", make_work=work, **how) as engine:
            (tmp_path / "new").mkdir(exist_ok=True)
            outcomes = list(engine.run(jobs_for(*names), settings))
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["notes"]
        return [outcome.failure for outcome in outcomes]

    return run


def workers_of(folder):
    """The process of each slide."""
    return {line.split()[0]: line.split()[2] for line in notes(folder) if not line.startswith("started")}


def gone(process, seconds=120.0):
    """Whether a process ends; what does not by itself hangs for longer than that."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.kill(process, 0)
            there = Path(f"/proc/{process}")
            unasked = there.exists() and ") Z" in (there / "stat").read_text()  # nobody took its exit code
            if unasked and len(list((there / "task").iterdir())) == 1:  # its other threads have ended too
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("segfault", "the process died (signal 11, SIGSEGV)"),
        ("killed", "the process died (signal 9, SIGKILL; often the memory was used up)"),
        ("exits", "the process died (exit code 7)"),
        ("terminated", "the process died (signal 15, SIGTERM)"),
    ],
)
def test_a_worker_that_dies_costs_its_slide_only(ran, tmp_path, name, reason):
    assert ran("a", name, "b") == ["a.svs: done", f"{name}.svs: {reason}", "b.svs: done"]
    assert notes(tmp_path / "new").count("started cpu") == 2
    workers = workers_of(tmp_path / "new")
    assert workers["a"] == workers[name] != workers["b"]


def test_a_worker_starts_once_for_all_slides_and_its_warnings_are_shown_here(ran, tmp_path, caplog):
    assert ran("a", "b", "broken", "c") == [
        *("a.svs: done", "b.svs: done", "broken.svs: failed", "c.svs: done")
    ]
    assert notes(tmp_path / "new").count("started cpu") == 1
    assert len(set(workers_of(tmp_path / "new").values()) - {str(os.getpid())}) == 1
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        *("of the classifier", "a.svs: of the slide", "b.svs: of the slide"),
        *("broken.svs: of the slide", "c.svs: of the slide"),
    ]


def test_a_worker_is_at_the_next_slide_while_somebody_deals_with_the_last(tmp_path):
    with LocalEngine(tmp_path / "new" / "out", make_work=content) as engine:
        (tmp_path / "new").mkdir()
        outcomes = engine.run(jobs_for("a", "b"), SETTINGS)
        first = next(outcomes)
        until = time.monotonic() + 120
        while "b" not in workers_of(tmp_path / "new"):
            assert time.monotonic() < until
            time.sleep(0.02)
        assert [str(outcome.job.name) for outcome in (first, *outcomes)] == ["a", "b"]


def test_after_a_failure_the_next_slide_is_begun_when_somebody_has_dealt_with_it(tmp_path):
    with LocalEngine(tmp_path / "new" / "out", make_work=staged) as engine:
        (tmp_path / "new").mkdir()
        outcomes = engine.run(jobs_for("broken", "b"), SETTINGS)
        assert next(outcomes).failure == "broken.svs: failed"
    assert "b" not in workers_of(tmp_path / "new")  # the run was ended before


def test_a_worker_that_dies_between_two_slides_costs_none(tmp_path):
    with LocalEngine(tmp_path / "new" / "out", make_work=staged) as engine:
        (tmp_path / "new").mkdir()
        said = [outcome.failure for outcome in engine.run(jobs_for("a"), SETTINGS)]
        worker = int(workers_of(tmp_path / "new")["a"])
        os.kill(worker, signal.SIGKILL)
        assert gone(worker)
        said += [outcome.failure for outcome in engine.run(jobs_for("b"), SETTINGS)]
    assert said == ["a.svs: done", "b.svs: done"]


def test_what_the_classifier_notes_is_said_once_whatever_dies(ran, caplog):
    ran("exits", "a")
    assert [r.getMessage() for r in caplog.records].count("of the classifier") == 1


@pytest.mark.parametrize(("name", "function"), [("segfault", "string_at"), ("deaf", "_hang")])
def test_where_a_worker_died_is_in_the_trace(tmp_path, name, function):
    with LocalEngine(tmp_path / "out", timeout=3.0, make_work=staged) as engine:
        (outcome,) = engine.run(jobs_for(name), SETTINGS)
    assert f" in {function}" in outcome.trace
    assert 'workers.py", line ' in outcome.trace


def test_what_a_dead_worker_has_written_elsewhere_is_removed(ran, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    ran("killed", "a", "segfault", "b")
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("name", ["hangs", "deaf"])
def test_a_slide_that_takes_too_long_is_stopped(tmp_path, monkeypatch, name):
    """The others have no time limit here: how long they take is a matter of the machine."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    said = []
    with LocalEngine(tmp_path / "in" / "out", make_work=staged) as engine:
        (tmp_path / "in").mkdir()
        for job, timeout in zip(jobs_for("a", name, "b"), (None, 1.0, None), strict=True):
            engine.timeout = timeout
            said += [outcome.failure for outcome in engine.run([job], SETTINGS)]
    assert said == ["a.svs: done", f"{name}.svs: stopped after 1 s (--slide-timeout)", "b.svs: done"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["notes"]


def test_each_of_several_devices_has_a_worker_and_slides_go_in_turn(ran, tmp_path):
    said = ran(*"abcd", settings=RunSettings(device="cuda:1, cuda:3"))
    assert sorted(said) == [f"{name}.svs: done" for name in "abcd"]
    started = [line for line in notes(tmp_path / "new") if line.startswith("started")]
    assert sorted(started) == ["started cuda:1", "started cuda:3"]


def test_cuda_is_all_gpus_that_the_first_worker_finds(ran, tmp_path):
    said = ran("a", "waits", "b", settings=RunSettings(device="cuda"))
    assert sorted(said) == ["a.svs: done", "b.svs: done", "waits.svs: done"]
    assert {"started cuda", "started cuda:1"} <= set(notes(tmp_path / "new"))


def test_on_each_device_slides_go_side_by_side_in_processes_of_their_own(ran, tmp_path):
    said = ran("waits", "b", "c", side_by_side=2)
    assert sorted(said) == [f"{name}.svs: done" for name in ("b", "c", "waits")]
    assert notes(tmp_path / "new").count("started cpu") == 2


def test_all_gpus_have_as_many_slides_as_the_first(ran, tmp_path):
    ran("waits", "waits", "waits", "b", settings=RunSettings(device="all"), side_by_side=2)
    started = [line for line in notes(tmp_path / "new") if line.startswith("started")]
    assert sorted(started) == ["started cuda", "started cuda", "started cuda:1", "started cuda:1"]


@pytest.mark.parametrize(("side_by_side", "threads"), [(1, 5), (2, 2), (9, 1)])
def test_workers_side_by_side_share_the_threads(tmp_path, side_by_side, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        slide_work(Order(tmp_path, SETTINGS, False, 0, side_by_side), lambda message: None)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_only_of_a_slide_whose_process_died_it_is_said_that_it_was_lost(tmp_path):
    with LocalEngine(tmp_path / "out", make_work=staged) as engine:
        outcomes = list(engine.run(jobs_for("a", "broken", "exits"), SETTINGS))
        engine.timeout = 1.0
        outcomes += engine.run(jobs_for("hangs"), SETTINGS)
    assert [outcome.lost for outcome in outcomes] == [False, False, True, False]


def test_without_a_classifier_no_slide_is_tried(ran):
    with pytest.raises(ModelError, match="no such classifier"):
        ran("a", "b", work=unable)
    with pytest.raises(ModelError, match=r"died \(exit code 3\) while the classifier was loaded"):
        ran("a", "b", work=dying)


PROGRAM = """
import sys
from pathlib import Path
from tests.helpers.workers import jobs_for, staged
from wsi_saliency.engines import place
from wsi_saliency.engines.local import LocalEngine
from wsi_saliency.interruption import interruptible
from wsi_saliency.settings import RunSettings
from wsi_saliency.workflows.jobs import Job
if sys.argv[2] == "endless":
    place.TIDYING = 600.0
try:
    with interruptible(), LocalEngine(Path(sys.argv[1], "out"), make_work=staged) as engine:
        for outcome in engine.run(jobs_for("a", sys.argv[2]), RunSettings(device="cpu")):
            print(outcome.failure, flush=True)
except KeyboardInterrupt as e:
    sys.exit(e.exit_code)
"""


@pytest.fixture
def hanging(tmp_path):
    """Start a program whose second slide hangs; returns it and its worker."""
    programs = []

    def start(name):
        (tmp_path / "in").mkdir()
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, tmp_path / "in", name],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        programs.append(program)
        while not list((tmp_path / "in").glob(f"out/.{name}.*.growing")):
            assert program.poll() is None
            time.sleep(0.02)
        return program, int(workers_of(tmp_path / "in")[name])

    yield start
    for program in programs:
        program.kill()
        program.communicate()


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("to", ["program", "all"])
def test_a_signal_ends_the_workers_and_leaves_nothing(hanging, tmp_path, sent, code, to):
    program, worker = hanging("hangs")
    (os.killpg if to == "all" else os.kill)(program.pid, getattr(signal, sent))
    assert program.wait(120) == code
    assert gone(worker)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["notes"]


def test_a_worker_that_hears_no_signal_is_killed_within_five_seconds(hanging, tmp_path):
    assert TIDYING < 5
    program, worker = hanging("deaf")
    program.send_signal(signal.SIGINT)
    assert program.wait(120) == 130
    assert gone(worker)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["notes"]


def test_a_second_signal_kills_the_workers_at_once(hanging, tmp_path):
    """Without it, the program would wait for ten minutes; one that comes within a second is not heard."""
    program, worker = hanging("endless")
    program.send_signal(signal.SIGINT)
    until = time.monotonic() + 120
    while program.poll() is None and time.monotonic() < until:
        time.sleep(1.5)
        program.send_signal(signal.SIGINT)
    assert program.wait(0) == 130
    assert gone(worker)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["notes"]


def test_of_what_a_killed_worker_held_nothing_is_said(tmp_path):
    (tmp_path / "in").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "in", "semaphore"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines()[1].startswith("semaphore.svs: the process died (signal 9")
    assert "resource_tracker" not in done.stderr


@pytest.mark.parametrize("name", ["hangs", "deaf"])
def test_workers_end_when_their_parent_is_killed(hanging, name):
    program, worker = hanging(name)
    program.kill()
    assert gone(worker)


# ---------------------------------------------------------------------------------------- looking ahead


def test_the_next_slide_is_looked_at_while_one_is_at_work(ran, tmp_path):
    names = ["a-b", "b-c", "c"]
    assert ran(*names, work=watchful) == [f"{name}.svs: done" for name in names]
    said = [line.split()[:2] for line in notes(tmp_path / "new")]
    steps = [" ".join(words) if words[0].startswith("look") else words[0] for words in said]
    assert steps.index("looks b-c") < steps.index("a-b")
    assert steps.index("looks c") < steps.index("b-c")
    assert "looks a-b" not in steps


def test_a_slide_that_kills_while_it_is_looked_at_costs_no_other(ran, tmp_path):
    said = ran("a-killed", "killed", "b", work=watchful)
    assert said[0] == "a-killed.svs: done"
    assert said[1].startswith("killed.svs: the process died (signal 9")
    assert said[2] == "b.svs: done"
    lines = notes(tmp_path / "new")
    assert sum(line == "looks killed" for line in lines) == 1  # not a second time


def test_a_slide_that_hangs_has_all_its_time_although_it_was_looked_at(ran):
    said = ran("a-hangs", "hangs", "b", work=watchful, timeout=3.0)
    assert said == ["a-hangs.svs: done", "hangs.svs: stopped after 3 s (--slide-timeout)", "b.svs: done"]


def test_several_places_share_the_slides_that_they_look_at(ran, tmp_path):
    names = [f"s{i}" for i in range(9)]
    said = ran(*names, work=watchful, settings=RunSettings(device="cpu,cpu"))
    assert sorted(said) == [f"{name}.svs: done" for name in names]
    looked = [line for line in notes(tmp_path / "new") if line.startswith("looks")]
    assert len(looked) == len(set(looked))  # no slide in two places


# ------------------------------------------------------------------------------------ over many slides


def figures(tmp_path, monkeypatch, n):
    """Threads, handles and memory of a worker process after each of some small slides."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    slides = [
        write_svs(tmp_path / f"s{i}.svs", [section(400, 300, (0, 0, 300, 300), seed=i)], quality=80)
        for i in range(n)
    ]
    settings = RunSettings(model="demo", device="cpu")
    jobs = [Job(path, Path(path.stem)) for path in slides]
    with LocalEngine(tmp_path / "new" / "out", make_work=measured) as engine:
        outcomes = list(engine.run(jobs, settings))
    assert all(outcome.failure is None for outcome in outcomes)
    return [tuple(map(int, line.split())) for line in notes(tmp_path / "new")]


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
WARM = 4  # slides after which everything has been loaded
AT_ONCE = 12  # threads and handles of a slide that is just looked at, which may be there or not


@linux
def test_threads_and_handles_stay_the_same(tmp_path, monkeypatch):
    threads, handles, _ = zip(*figures(tmp_path, monkeypatch, 15), strict=True)
    for counts in (threads, handles):
        assert max(counts[WARM:]) <= min(counts[WARM:]) + AT_ONCE
        assert min(counts[-WARM:]) <= min(counts[WARM:-WARM]) + 3  # one a slide would be seven


@linux
@pytest.mark.slow
def test_memory_stays_the_same_over_two_hundred_slides(tmp_path, monkeypatch):
    threads, handles, memory = zip(*figures(tmp_path, monkeypatch, 200), strict=True)
    for counts in (threads, handles):
        assert max(counts[WARM:]) <= min(counts[WARM:]) + AT_ONCE
    early, late = sorted(memory[20:60]), sorted(memory[-40:])
    assert late[20] <= 1.03 * early[20]  # the medians
