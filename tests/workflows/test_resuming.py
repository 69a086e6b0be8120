"""Runs that are cut short and gone on with: in the end, every file is that of a run without interruption."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch

from tests.helpers.paths import ROOT
from tests.helpers.runs import SETTINGS, explainer_for, is_left, strict_json, without_pictures
from tests.helpers.slides import pyramid, section, write_svs
from wsi_saliency import working
from wsi_saliency.errors import OutputError, SlideError
from wsi_saliency.heatmap.snapshot import Snapshot, write_snapshot
from wsi_saliency.saliency.engine import Explainer
from wsi_saliency.workflows import explain as pipeline
from wsi_saliency.workflows import journal, record
from wsi_saliency.workflows.explain import explain_slide
from wsi_saliency.workflows.streaming import MapSink

W, H = 192, 1216  # 57 patches without overlap; the map of the input has three rows of chunks
TWO = replace(
    SETTINGS,
    layers=("input", "8"),
    methods=("backward-hook",),
    attributions=("gradient", "gradient-x-activation"),
    targets=("normal", "tumour"),
    overlap=0,
    batch=4,
)
ONE = replace(TWO, layers=("8",))
TIMES = ("started", "seconds", "slowest_station", "peak_memory_mb", "resumed")
BATCHES = 15
EAGER = {"SHORTEST": 0.0, "LONGEST": 1e9, "COST": 1e9, "SHARE": 0.2, "QUICK": 1e9}


@pytest.fixture(autouse=True)
def _quick_overview(monkeypatch):
    without_pictures(monkeypatch)


@pytest.fixture(autouse=True)
def _eager(monkeypatch):
    """Journals after each fifth of the patches, however quickly or slowly they are done."""
    for name, value in EAGER.items():
        monkeypatch.setattr(journal, name, value)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    levels = pyramid(section(W, H, (20, 16, 150, 1150)), (1, 2))
    return write_svs(tmp_path_factory.mktemp("slides") / "section.svs", levels)


def run(slide, folder, settings=TWO, **how):
    chosen = {"explainer": replace(explainer_for(settings), batch=settings.batch)} | how
    return explain_slide(slide, folder, settings, **chosen)


@pytest.fixture(scope="module")
def whole(slide, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        return run(slide, tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture(scope="module")
def one(slide, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        return run(slide, tmp_path_factory.mktemp("one") / "out", ONE)


def contents(folder):
    """All files of a result: but the page, which says when, QuPath's script, which says where, and times."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".html", ".groovy")]
    record = strict_json(folder / "run.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files} | {
        "run.json": {key: value for key, value in record.items() if key not in TIMES}
    }


def assert_same(result, expected, resumed):
    assert result.record["resumed"] == resumed
    assert is_left(result.folder) == [result.folder.name]
    found, wanted = contents(result.folder), contents(expected.folder)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def failing_at(monkeypatch, number, error, owner=Explainer, name="__call__"):
    """Let a call fail, that of a number; drift is measured by the first call of an explainer."""
    calls, call = [0], getattr(owner, name)

    def counted(*args, **how):
        calls[0] += 1
        if calls[0] == number:
            raise error
        return call(*args, **how)

    monkeypatch.setattr(owner, name, counted)
    return calls


def cut_short(slide, folder, number, error=None, settings=TWO, where=(Explainer, "__call__")):
    """Start a run, and stop it at the call of a number."""
    error = error or KeyboardInterrupt()
    with pytest.MonkeyPatch.context() as patch:
        failing_at(patch, number, error, *where)
        with pytest.raises(type(error)):
            run(slide, folder, settings)


# ----------------------------------------------------------------------------------------- exceptions


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SlideError("bad tile")], ids=["ctrl-c", "error"])
@pytest.mark.parametrize("batch", [5, 15])
def test_a_run_goes_on_where_it_ended(slide, whole, tmp_path, monkeypatch, batch, error):
    """Not a patch is explained again: a last journal is written on the way out."""
    cut_short(slide, tmp_path / "out", 1 + batch, error)
    assert not (tmp_path / "out").exists()
    calls = failing_at(monkeypatch, 0, error)
    assert_same(run(slide, tmp_path / "out"), whole, 1)
    assert calls == [BATCHES - (batch - 1)]  # without the drift's


@pytest.mark.parametrize("batch", [1, 3])
def test_before_the_first_journal_nothing_is_left(slide, whole, tmp_path, batch):
    cut_short(slide, tmp_path / "new" / "out", 1 + batch)
    assert list(tmp_path.iterdir()) == []
    assert_same(run(slide, tmp_path / "out"), whole, 0)


def test_a_run_is_cut_short_again_and_again(slide, whole, tmp_path):
    for batch in (1 + 5, 2, 3, 1):
        cut_short(slide, tmp_path / "out", batch)
    assert_same(run(slide, tmp_path / "out"), whole, 3)  # the last one has done nothing


@pytest.mark.parametrize("add", [26, 43, 58])
def test_what_is_half_stitched_is_done_again_from_the_last_journal(slide, whole, tmp_path, add):
    """Two of four maps have the batch, and rows of chunks may have been written since the journal."""
    cut_short(slide, tmp_path / "out", add, where=(MapSink, "add"))
    (left,) = tmp_path.glob("*.growing")
    done = Snapshot.read(left / working._JOURNAL).facts["done"]
    assert done == (add - 1) // 4 * 4 // 12 * 12  # journals come every twelve patches
    assert_same(run(slide, tmp_path / "out"), whole, 1)


STATIONS = ["write_ome_tiff", "_write_overview", "run_record", "export", "write_slide_page", "write_record"]


@pytest.mark.parametrize("station", STATIONS)
def test_a_run_that_fails_after_the_last_patch_explains_none_again(
    slide, one, tmp_path, monkeypatch, station
):
    work = getattr(pipeline, station)

    def failing(*args, **how):
        work(*args, **how)
        raise OutputError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, station, failing)
        for _ in range(2):
            with pytest.raises(OutputError):
                run(slide, tmp_path / "out", ONE)
    calls = failing_at(monkeypatch, 0, ValueError())
    assert_same(run(slide, tmp_path / "out", ONE), one, 1)
    assert calls == [0]


def test_what_fails_again_at_once_and_unexpectedly_is_not_kept_for_ever(slide, whole, tmp_path, caplog):
    """Such as a store that is damaged; an error that has a reason to be named may have gone the next time."""
    cut_short(slide, tmp_path / "out", 1 + 8, ValueError("a bug"))
    assert "section.svs: 28 of 57 patches kept; the next run goes on there" in caplog.messages
    cut_short(slide, tmp_path / "out", 1, SlideError("disk away"))
    cut_short(slide, tmp_path / "out", 1, ValueError("a bug"))
    assert is_left(tmp_path / "out") == []
    assert_same(run(slide, tmp_path / "out"), whole, 0)


def test_a_batch_that_did_not_fit_stays_halved(slide, tmp_path, monkeypatch):
    def run_with_little_memory(folder, stop):
        """Memory is short from the eighth pass on, as long as passes are of more than two patches."""
        calls, explain = [0], Explainer._explain

        def short(self, patches, maps):
            calls[0] += 1
            if calls[0] >= 8 and len(patches) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            if calls[0] == stop:
                raise KeyboardInterrupt
            return explain(self, patches, maps)

        with monkeypatch.context() as patch:
            patch.setattr(Explainer, "_explain", short)
            return run(slide, folder, ONE)

    expected = run_with_little_memory(tmp_path / "whole" / "out", 0)
    with pytest.raises(KeyboardInterrupt):
        run_with_little_memory(tmp_path / "new" / "out", 17)
    explainer = replace(explainer_for(ONE), batch=4)
    result = run(slide, tmp_path / "new" / "out", ONE, explainer=explainer)
    assert (explainer.batch, result.record["model"]["batch"]) == (2, 2)
    assert_same(result, expected, 1)


# ------------------------------------------------------------------------------------- killed processes


def test_a_killed_run_goes_on(slide, whole, tmp_path):
    """Of several processes, each is killed at a time of its own, without any tidying up."""
    points = [
        "explain:2",
        "explain:9",
        "add:43",
        "flush:2",
        "flush:7",
        "journal:2",
        "tiff",
        "record",
        "move",
    ]
    told = [json.dumps(facts) for facts in (TWO.to_json(), EAGER)]
    command = [sys.executable, "-c", KILL, slide, tmp_path, *told, *points]
    subprocess.run(command, check=True, timeout=900, env=os.environ | {"PYTHONPATH": str(ROOT)})
    resumed = dict.fromkeys(points, 1) | {"explain:2": 0}
    for point in points:
        folder = tmp_path / point / "out"
        assert not folder.exists()
        assert len(is_left(folder)) == 2
        assert_same(run(slide, folder), whole, resumed[point])


KILL = """
import json, os, pytest, signal, sys, torch
from dataclasses import replace
from pathlib import Path
from tests.helpers.runs import explainer_for, without_pictures
from wsi_saliency import files
from wsi_saliency.heatmap import ome_zarr
from wsi_saliency.saliency.engine import Explainer
from wsi_saliency.settings import RunSettings
from wsi_saliency.workflows import explain, journal, streaming

torch.set_num_threads(1)
without_pictures(pytest.MonkeyPatch())
WHERE = {
    "explain": (Explainer, "__call__"),
    "add": (streaming.MapSink, "add"),
    "flush": (ome_zarr._LevelWriter, "_flush"),
    "journal": (os, "replace"),
    "tiff": (explain, "write_ome_tiff"),
    "record": (explain, "write_record"),
    "move": (files, "_take_place"),
}

def kill_at(point):
    name, _, number = point.partition(":")
    owner, function = WHERE[name]
    left, work = [int(number or 1)], getattr(owner, function)
    def counted(*args, **how):
        left[0] -= name != "journal" or str(args[-1]).endswith(".journal")
        dies = not left[0]
        if name == "flush" and dies:
            work(*args, **how)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*args, **how)
    setattr(owner, function, counted)

slide, out, settings, eager, *points = sys.argv[1:]
vars(journal).update(json.loads(eager))
settings = RunSettings(**json.loads(settings))
for point in points:
    child = os.fork()
    if not child:
        kill_at(point)
        explainer = replace(explainer_for(settings), batch=settings.batch)
        explain.explain_slide(slide, Path(out, point, "out"), settings, explainer=explainer)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, point
"""


# ------------------------------------------------------------------------------------ from the start


def others(slide, folder):
    """Changes after which a run is another one: of settings, of the classifier, of the slide."""
    explainer = replace(explainer_for(ONE), batch=4)
    classifier = explainer.classifier
    return {
        "settings": ({"overlap": 0.25}, None),
        "maps": ({"layers": ("16",)}, None),
        "targets": ({"targets": ("tumour",)}, None),
        "model": ({}, replace(explainer, classifier=replace(classifier, sha256="1" * 64))),
        "slide file": ({}, explainer),
        "versions": ({}, explainer),
    }


@pytest.mark.parametrize("what", others(None, None))
def test_another_run_begins_anew_and_says_so(slide, tmp_path, monkeypatch, caplog, what):
    own = tmp_path / "section.svs"
    own.write_bytes(slide.read_bytes())
    cut_short(own, tmp_path / "out" / "a", 8, settings=ONE)
    change, explainer = others(own, tmp_path)[what]
    settings = replace(ONE, **change)
    if what == "slide file":
        os.utime(own, (1, 1))
    if what == "versions":
        monkeypatch.setattr(record, "_version", lambda name: "0.0.0")
    how = {"explainer": explainer} if explainer else {}
    result = run(own, tmp_path / "out" / "a", settings, **how)
    (said,) = [text for text in caplog.messages if "from the start" in text]
    assert said.startswith("section.svs: an unfinished run cannot be gone on with: it was of other ")
    assert what in said
    assert_same(result, run(own, tmp_path / "whole" / "a", settings, **how), 0)


def test_overwrite_starts_anew(slide, whole, tmp_path):
    cut_short(slide, tmp_path / "out", 1 + 8)
    assert_same(run(slide, tmp_path / "out", overwrite=True), whole, 0)


def test_an_overwrite_that_is_cut_short_keeps_the_older_result_only(slide, tmp_path):
    first = run(slide, tmp_path / "out", ONE)
    with pytest.MonkeyPatch.context() as patch:
        failing_at(patch, 8, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(slide, tmp_path / "out", ONE, overwrite=True)
    assert is_left(first.folder) == ["out"]
    assert strict_json(first.folder / "run.json") == first.record


def harmed(name):
    def harm(left):
        file = left / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return harm


def without_store(left):
    shutil.rmtree(next((left / "new").glob("*.zarr")))


def forged(**facts):
    """Let a journal say something else, with checksums that are right."""

    def harm(left):
        file = left / working._JOURNAL
        saved = Snapshot.read(file)
        arrays = {
            name: saved.array(name, stored.dtype, *stored.shape) for name, stored in saved._arrays.items()
        }
        write_snapshot(file, {**saved.facts, **facts}, arrays)

    return harm


HARMS = {
    "cut journal": harmed(working._JOURNAL),
    "cut table": harmed("new/tiles.csv"),
    "no store": without_store,
    "beyond the end": forged(done=58),
    "nothing done": forged(done=0),
    "a fraction": forged(done=8.0),
    "other targets": forged(said=[[0, 0.5]]),
    "no drifts": forged(drifts=None),
    "endless time": forged(clock={"started": "2020-01-01", "total": 10**400, "seconds": {}, "resumed": 0}),
    "no date": forged(clock={"started": "now", "total": 1.0, "seconds": {}, "resumed": 0}),
    "a list": forged(asked=[]),
    "negative table": forged(table=-1),
    "a longer table": forged(table=10**9),
}


@pytest.fixture(scope="module")
def unfinished(slide, tmp_path_factory):
    """The folder in which a run was cut short."""
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        for name, value in EAGER.items():
            patch.setattr(journal, name, value)
        cut_short(slide, folder / "out", 8, settings=ONE)
    return folder


def test_an_unfinished_run_can_be_gone_on_with_elsewhere(slide, one, tmp_path, unfinished):
    shutil.copytree(unfinished, tmp_path / "new")
    assert_same(run(slide, tmp_path / "new" / "out", ONE), one, 1)


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_damaged_or_hostile_journal_is_one_line(slide, tmp_path, caplog, one, unfinished, harm):
    shutil.copytree(unfinished, tmp_path, dirs_exist_ok=True)
    (left,) = tmp_path.glob("*.growing")
    harm(left)
    result = run(slide, tmp_path / "out", ONE)
    (said,) = caplog.messages
    assert said.startswith("section.svs: an unfinished run cannot be gone on with: ")
    assert said.endswith("; done from the start")
    assert "\n" not in said
    assert_same(result, one, 0)


# ------------------------------------------------------------------------------------------ added maps


def test_an_addition_goes_on_and_the_older_result_stays_meanwhile(slide, tmp_path):
    """Another run of the older maps in between keeps them, and the addition too."""
    added = replace(ONE, methods=("none",))
    for name in ("whole", "out"):
        run(slide, tmp_path / name / "out", ONE)
    expected = run(slide, tmp_path / "whole" / "out", added)
    before = strict_json(tmp_path / "out" / "out" / "run.json")
    cut_short(slide, tmp_path / "out" / "out", 8, settings=added)
    assert strict_json(tmp_path / "out" / "out" / "run.json") == before
    assert run(slide, tmp_path / "out" / "out", ONE).kept
    result = run(slide, tmp_path / "out" / "out", added)
    assert [spec.method for spec in result.added] == ["none"] * 2
    assert_same(result, expected, 1)


def test_of_two_runs_at_once_one_goes_on_and_the_other_keeps_the_result(slide, one, tmp_path):
    cut_short(slide, tmp_path / "out", 8, settings=ONE)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(run(slide, tmp_path / "out", ONE))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.kept for result in results) == [False, True]
    assert_same(results[0], one, 1)
