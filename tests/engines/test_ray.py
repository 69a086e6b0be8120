"""Slides on a cluster: what the engine makes of what it hears, without Ray; and what a machine does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.clusters import StagedCluster
from tests.helpers.paths import ROOT
from tests.helpers.workers import jobs_for, notes, staged, unable
from wsi_saliency.engines import ray as ray_engine
from wsi_saliency.engines import ray_cluster
from wsi_saliency.engines.messages import Begun, Done, Loaded, Logged, Lost, Order, Unable
from wsi_saliency.engines.ray import RayEngine, Share
from wsi_saliency.engines.ray_task import Errand, Keeper
from wsi_saliency.errors import ModelError, OutputError, SettingsError
from wsi_saliency.files import growing, locked
from wsi_saliency.settings import BatchSettings, RunSettings
from wsi_saliency.workflows.jobs import Outcome

SETTINGS = RunSettings(device="cpu")
LOST = Lost("the machine was lost", "all that Ray says")


def ran(tmp_path, cluster, *names, settings=SETTINGS, **how):
    """What is said of slides, and whether they are lost."""
    with RayEngine(tmp_path / "new" / "out", connect=lambda address: cluster, **how) as engine:
        outcomes = list(engine.run(jobs_for(*names), settings))
    assert list(tmp_path.iterdir()) == []
    return [(outcome.failure, outcome.lost) for outcome in outcomes]


def test_slides_are_done_and_lost_as_the_cluster_says(tmp_path):
    cluster = StagedCluster({"b": [LOST]})
    assert ran(tmp_path, cluster, "a", "b", "c") == [
        *(("a.svs: done", False), ("b.svs: the machine was lost", True), ("c.svs: done", False))
    ]
    assert (cluster.forgotten, cluster.closed) == (3, True)


def test_the_trace_of_a_lost_slide_is_what_ray_says(tmp_path):
    with RayEngine(tmp_path / "out", connect=lambda address: StagedCluster({"a": [LOST]})) as engine:
        (outcome,) = engine.run(jobs_for("a"), SETTINGS)
    assert outcome.trace == "all that Ray says"


def test_what_a_lost_machine_has_left_is_cleared_away(tmp_path):
    def leave(errand, job):
        with locked(errand.order.out / job.name), growing(errand.order.out / job.name) as work:
            os.rename(work.parent, work.parent.with_name(".a.00000000.growing"))
            (work.parent.with_name(".a.00000000.growing") / "wsi-saliency.lock").touch()
            raise KeyboardInterrupt

    def lost(errand, job):
        with pytest.raises(KeyboardInterrupt):
            leave(errand, job)
        assert [path.name for path in errand.order.out.iterdir() if path.suffix == ".growing"]
        return [LOST]

    ran(tmp_path, StagedCluster({"a": lost}), "a")


def test_a_machine_is_told_where_the_command_was_given_and_knows_the_output_folder_by_a_sign(tmp_path):
    cluster = StagedCluster()
    ran(tmp_path, cluster, "a", "b", overwrite=True, timeout=3.0)
    first, second = cluster.errands
    assert (first.cwd, first.timeout, first.order.overwrite) == (Path.cwd(), 3.0, True)
    assert first.sign == second.sign
    assert cluster.signs_seen == [True, True]


def test_from_when_on_the_classifier_is_known_to_load(tmp_path):
    cluster = StagedCluster({"a": [Loaded(1), LOST]}, at_once=1)
    with RayEngine(tmp_path / "out", connect=lambda address: cluster) as engine:
        list(engine.run(jobs_for("a"), SETTINGS))
        list(engine.run(jobs_for("b"), SETTINGS))
    assert [errand.proven for errand in cluster.errands] == [False, True]


def test_what_no_slide_can_be_done_for_ends_the_run(tmp_path):
    cluster = StagedCluster({"a": [Unable(ModelError("one: no such classifier"))]})
    with pytest.raises(ModelError, match="one: no such classifier"):
        ran(tmp_path, cluster, "a", "b")
    assert cluster.closed
    assert list(tmp_path.iterdir()) == []


def test_a_signal_ends_the_cluster_and_clears_away(tmp_path):
    def interrupted(errand, job):
        raise KeyboardInterrupt

    cluster = StagedCluster({"b": interrupted})
    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path, cluster, "a", "b", "c")
    assert cluster.closed
    assert list(tmp_path.iterdir()) == []


def test_progress_is_shown_for_each_slide(tmp_path):
    shown = []

    class Bars:
        def begin(self, *what):
            shown.append(what)

        def end(self, place):
            shown.append(place)

    cluster = StagedCluster({"a": [Begun("a.svs", 7, "patch"), Done(Outcome(jobs_for("a")[0]))]})
    ran(tmp_path, cluster, "a", bars=Bars())
    assert shown == [("a", "a.svs", 7, "patch"), "a"]


def test_that_no_machine_has_room_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(ray_engine, "_PATIENCE", -1.0)
    cluster = StagedCluster(silent=3)
    ran(tmp_path, cluster, "a", settings=RunSettings(device="cuda"))
    assert [record.getMessage() for record in caplog.records] == [
        "no machine of the Ray cluster has room for a slide yet (CPU: 1, GPU: 1); waiting"
    ]


def test_a_cluster_is_not_told_of_all_slides_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "_AT_ONCE", 2)
    cluster = StagedCluster()
    assert len(ran(tmp_path, cluster, *"abcde")) == 5
    assert cluster.most == 2


@pytest.mark.parametrize(
    ("machines", "device", "side_by_side", "share"),
    [
        ([{"CPU": 8.0}, {"CPU": 4.0}], "auto", 1, Share("cpu", 4, 0)),
        ([{"CPU": 8.0}, {"CPU": 4.0}], "cpu", 3, Share("cpu", 1, 0)),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}], "auto", 1, Share("cuda", 4, 1)),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 4.0}], "cuda", 1, Share("cuda", 1, 1)),
        ([{"CPU": 1.0, "GPU": 2.0}], "cuda", 1, Share("cuda", 0, 1)),
        ([{"CPU": 8.0, "GPU": 2.0}], "cpu", 1, Share("cpu", 8, 0)),
        ([{"GPU": 1.0}, {"CPU": 6.0}], "mps", 1, Share("mps", 6, 0)),
        ([], "auto", 2, Share("cpu", 1, 0)),
        ([], "cuda", 1, Share("cuda", 1, 1)),
    ],
)
def test_a_slide_takes_a_share_of_a_machine(machines, device, side_by_side, share):
    assert Share.of(machines, device, side_by_side) == share


@pytest.mark.parametrize("side_by_side", range(1, 50))
def test_so_many_slides_as_are_asked_for_fit_on_a_gpu(side_by_side):
    gpus = Share.of([{"CPU": 64.0, "GPU": 1.0}], "cuda", side_by_side).gpus
    assert round(gpus * 10_000) * side_by_side <= 10_000 < round(gpus * 10_000) * (side_by_side + 1) + 50 * 50


def test_devices_are_dealt_out_by_ray(tmp_path):
    with pytest.raises(SettingsError, match=r"device \(--device\) is 'cuda:0'; with --engine ray"):
        ran(tmp_path, StagedCluster(), "a", settings=RunSettings(device="cuda:0"))


def test_an_address_is_for_ray():
    with pytest.raises(SettingsError, match=r"address \(--address\) is 'auto', for --engine ray"):
        BatchSettings(address="auto")
    assert BatchSettings(address="auto", engine="ray").times_again == 2
    assert BatchSettings().times_again == 0
    assert BatchSettings(retries=1).times_again == BatchSettings(retries=1, engine="ray").times_again == 1


def test_without_ray_there_is_one_line_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r"--engine ray needs Ray: pip install 'wsi-saliency\[ray\]'"):
        ray_cluster.connect(None)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ray://head:1", "it is neither auto nor HOST:PORT"),
        ("head", "it is neither"),
        ("127.0.0.1:9", "refused"),
    ],
)
def test_an_address_where_nobody_answers_is_one_line_soon(monkeypatch, address, reason):
    with pytest.raises(SettingsError, match=rf"address \(--address\) is '{address}': no Ray .*{reason}"):
        ray_cluster._start(None, address)


def named(*names):
    """An error whose classes have these names, as Ray's have, with the words of the last line last."""
    kind = Exception
    for name in names:
        kind = type(name, (kind,), {})
    return kind("A long story\nby Ray\nModuleNotFoundError: No module named 'x'")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["RayError", "NodeDiedError"], "the machine was lost"),
        (["RayError", "LocalRayletDiedError"], "the machine was lost"),
        (["RayError", "OutOfMemoryError"], "the memory of the machine was used up"),
        (["RayError", "WorkerCrashedError"], "the process or its machine was lost"),
        (["RayError", "TaskCancelledError", "RayTaskError"], "the process or its machine was lost"),
    ],
)
def test_what_ray_says_in_many_lines_is_a_few_words(names, reason):
    lost = ray_cluster._lost(named(*names))
    assert (lost.reason, lost.trace.splitlines()[0]) == (reason, "A long story")


def test_a_machine_without_the_program_ends_the_run():
    told = ray_cluster._lost(named("RayError", "RayTaskError"))
    assert str(told.error).startswith(
        "a machine of the Ray cluster cannot work (ModuleNotFoundError: No module named 'x')"
    )


def test_a_run_without_ray_does_not_import_it():
    code = "import sys, wsi_saliency.engines.folders; print('ray' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# ------------------------------------------------------------------------------------- what a machine does


@pytest.fixture
def errand(tmp_path, monkeypatch):
    """Return what is to be done in a folder."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "out").mkdir(parents=True)
    (tmp_path / "in" / "out" / "sign").touch()

    def errand(make_work=staged, sign=Path("in", "out", "sign"), **how):
        order = Order(Path("in", "out"), SETTINGS, False, 30)
        return Errand(order, make_work, how.pop("timeout", None), tmp_path, sign, **how)

    return errand


@pytest.fixture
def keeper():
    """Keeps a worker until the test is over."""
    keeper = Keeper()
    yield keeper
    keeper.end()


def last(messages):
    """The outcome of a slide."""
    return list(messages)[-1].outcome


def test_one_worker_does_all_slides_of_a_process_until_it_dies(errand, keeper, tmp_path):
    said = [last(keeper.messages(errand(), job)) for job in jobs_for("a", "b", "segfault", "c")]
    assert [(outcome.failure, outcome.lost) for outcome in said] == [
        ("a.svs: done", False),
        ("b.svs: done", False),
        ("segfault.svs: the process died (signal 11, SIGSEGV)", True),
        ("c.svs: done", False),
    ]
    assert notes(tmp_path / "in").count("started cpu") == 2


def test_a_worker_is_for_one_gpu_and_one_errand(errand, keeper, tmp_path, monkeypatch):
    for gpus in ("0", "0", "1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        list(keeper.messages(errand(), jobs_for("a")[0]))
    assert notes(tmp_path / "in").count("started cpu") == 2


def test_a_slide_that_takes_too_long_is_stopped(errand, keeper):
    outcome = last(keeper.messages(errand(timeout=0.5), jobs_for("hangs")[0]))
    assert (outcome.failure, outcome.lost) == ("hangs.svs: stopped after 0.5 s (--slide-timeout)", False)


def test_a_task_that_is_to_end_leaves_nothing(errand, keeper, tmp_path):
    messages = keeper.messages(errand(), jobs_for("hangs")[0])
    while not (isinstance(message := next(messages), Logged) and "of the slide" in message.record.msg):
        pass
    while not list((tmp_path / "in" / "out").glob(".hangs.*.growing")):
        time.sleep(0.02)
    with pytest.raises(KeyboardInterrupt):
        messages.throw(KeyboardInterrupt)
    assert sorted(path.name for path in (tmp_path / "in" / "out").iterdir()) == ["sign"]


def test_a_worker_without_slides_gives_its_memory_back(errand, tmp_path):
    keeper = Keeper(idle=0.0)
    for name in "ab":
        list(keeper.messages(errand(), jobs_for(name)[0]))
        until = time.monotonic() + 60
        while keeper._place and time.monotonic() < until:
            time.sleep(0.02)
    assert notes(tmp_path / "in").count("started cpu") == 2


def test_who_has_no_classifier_says_on_which_machine(errand, keeper):
    (message,) = keeper.messages(errand(unable), jobs_for("a")[0])
    assert isinstance(message.error, ModelError)
    assert str(message.error).endswith(": no such classifier")
    assert str(message.error) != ": no such classifier"


def test_a_machine_that_does_not_see_the_output_folder_writes_nothing(errand, keeper, tmp_path):
    (message,) = keeper.messages(errand(sign=Path("in", "out", "other")), jobs_for("a")[0])
    assert isinstance(message.error, OutputError)
    assert "all machines have to see slides and results under the same paths" in str(message.error)
    assert not (tmp_path / "in" / "notes").exists()
