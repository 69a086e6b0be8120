"""When journals are written, and what is kept of a run that fails; on a clock that is moved by hand."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest

from wsi_saliency.errors import OutputError
from wsi_saliency.heatmap.snapshot import Snapshot
from wsi_saliency.workflows import journal as module
from wsi_saliency.workflows.journal import Journal
from wsi_saliency.workflows.record import Stopwatch
from wsi_saliency.working import journal_of


class Clock:
    """A clock that only we move."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now


class Growth:
    """A result of patches only, whose state takes some time to write."""

    def __init__(self, clock, cost=0.0):
        self.clock, self.cost, self.done, self.whole = clock, cost, 0, True

    def facts(self):
        self.clock.now += self.cost
        return {"table": 0, "said": []}

    def state(self):
        return {"done": np.array(self.done)}


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "persist", lambda *args: None)
    return clock


def begun(folder, clock, patches=10_000, writes=True):
    (folder / "new").mkdir()
    plan = SimpleNamespace(
        tiles=range(patches),
        explainer=SimpleNamespace(batch=16),
        maps=(),
        slide=SimpleNamespace(name="a.svs"),
    )
    settings = SimpleNamespace(batch=None)
    journal = Journal(
        folder / "new", plan, settings, Stopwatch(), {}, writes, _last=clock.now, _since=clock.now
    )
    journal.begin()
    return journal, plan


def journals(journal, plan, growth, seconds, batches, patches=16):
    """Do batches; return after how many patches there were journals."""
    seen = []
    with journal.noting(growth, plan) as note:
        for _ in range(batches):
            growth.clock.now += seconds
            growth.done += patches
            note()
            done = _saved(journal)
            if done is not None and done not in seen:
                seen.append(done)
    return seen


def _saved(journal):
    file = journal_of(journal.work)
    return Snapshot.read(file).facts["done"] if file.exists() else None


@pytest.mark.parametrize(
    ("seconds", "patches", "after"),
    [
        (1.0, 16, 16 * 13),  # 2 % of the patches
        (10.0, 16, 16 * 3),  # half a minute
        (0.1, 160, 160 * 50),  # not within five seconds
    ],
)
def test_a_journal_comes_every_two_percent_or_half_a_minute(tmp_path, clock, seconds, patches, after):
    journal, plan = begun(tmp_path, clock)
    seen = journals(journal, plan, Growth(clock), seconds, 52, patches)
    assert seen[0] == after
    assert set(np.diff(seen)) <= {after}


def test_journals_take_a_hundredth_of_the_time(tmp_path, clock):
    journal, plan = begun(tmp_path, clock, 10**6)
    began, growth = clock.now, Growth(clock, cost=3.0)
    written = len(journals(journal, plan, growth, 1.0, 3000))
    assert 9 <= written <= 11
    assert 3.0 * (written - 1) <= 0.01 * (clock.now - began)


def test_the_last_patch_has_a_journal_of_its_own(tmp_path, clock):
    journal, plan = begun(tmp_path, clock, 160)
    assert journals(journal, plan, Growth(clock), 6.0, 10) == [16 * i for i in range(1, 11)]


def test_what_replaces_a_result_writes_none(tmp_path, clock):
    journal, plan = begun(tmp_path, clock, writes=False)
    assert journals(journal, plan, Growth(clock), 60.0, 10) == []


def failing(journal, plan, growth, error, whole=True):
    with journal, journal.noting(growth, plan):
        growth.done += 16
        growth.whole = whole
        raise error


@pytest.mark.parametrize(
    ("first", "whole", "cost", "last"),
    [
        (True, True, 0.5, 32),
        (True, False, 0.5, 16),
        (True, True, 3.0, 16),
        (False, True, 0.5, None),
    ],
)
def test_on_the_way_out_there_is_one_if_it_is_whole_quick_and_not_the_first(
    tmp_path, clock, first, whole, cost, last
):
    journal, plan = begun(tmp_path, clock)
    growth = Growth(clock, cost)
    if first:
        journals(journal, plan, growth, 60.0, 1)
    with pytest.raises(KeyboardInterrupt) as caught:
        failing(journal, plan, growth, KeyboardInterrupt(), whole)
    assert _saved(journal) == last
    expected = ["the same command goes on with a.svs"] if first else []
    assert getattr(caught.value, "__notes__", []) == expected


def test_a_last_one_that_cannot_be_written_hides_no_error(tmp_path, clock, monkeypatch):
    journal, plan = begun(tmp_path, clock)
    growth = Growth(clock)
    journals(journal, plan, growth, 60.0, 1)

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="what was wrong"):
        failing(journal, plan, growth, OutputError("what was wrong"))
    assert _saved(journal) == 16
