from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.runs import SETTINGS, assert_same_values, explainer_for
from tests.helpers.slides import section, write_svs
from wsi_saliency.slides.slide import Slide
from wsi_saliency.workflows import ahead
from wsi_saliency.workflows import explain as pipeline
from wsi_saliency.workflows.ahead import LookAhead
from wsi_saliency.workflows.batch import SlideWork
from wsi_saliency.workflows.first_look import look_at
from wsi_saliency.workflows.jobs import Job


@pytest.fixture
def jobs(tmp_path):
    for i, name in enumerate("ab"):
        write_svs(tmp_path / f"{name}.svs", [section(320, 256, (32, 32, 160, 160), seed=i)])
    return [Job(tmp_path / f"{name}.svs", Path(name)) for name in "ab"]


@pytest.fixture
def work(tmp_path):
    return SlideWork(tmp_path / "out", SETTINGS, load=explainer_for)


@pytest.fixture
def looked(work):
    """Look at a slide ahead, and wait until that is over."""

    def look(job):
        over = threading.Event()
        work.look_ahead(job, over.set)
        assert over.wait(60)

    return look


@pytest.fixture
def closed(monkeypatch):
    """Slides that were closed."""
    closed, close = [], Slide.close
    monkeypatch.setattr(Slide, "close", lambda slide: closed.append(slide.path.name) or close(slide))
    return closed


def test_results_are_the_same_and_the_slide_is_read_no_second_time(jobs, work, looked, tmp_path, monkeypatch):
    plain = SlideWork(tmp_path / "plain", SETTINGS, load=explainer_for)
    assert all(plain(job).failure is None for job in jobs)
    assert work(jobs[0]).failure is None
    looked(jobs[1])
    monkeypatch.setattr(pipeline, "look_at", lambda *_: pytest.fail("looked at twice"))
    monkeypatch.setattr(pipeline, "open_slide", lambda *_: pytest.fail("opened twice"))
    assert work(jobs[1]).failure is None
    for name in "ab":
        assert_same_values(tmp_path / "out" / name, tmp_path / "plain" / name)


def test_the_first_patches_are_read(jobs, work, looked, monkeypatch):
    read, blocks = Slide.read, []
    work(jobs[0])
    monkeypatch.setattr(Slide, "read", lambda slide, *box: blocks.append(box) or read(slide, *box))
    looked(jobs[1])
    assert any(out.w == 256 for _, out in blocks)
    work(jobs[1])


@pytest.mark.parametrize("what", ["open_slide", "look_at", "plan_slide"])
def test_what_fails_ahead_is_done_in_its_turn(jobs, work, looked, monkeypatch, what, closed):
    def failing(*args, **how):
        raise MemoryError

    work(jobs[0])
    del closed[:]
    with monkeypatch.context() as patch:
        patch.setattr(ahead, what, failing)
        looked(jobs[1])
    assert len(closed) == (what != "open_slide")
    assert work(jobs[1]).failure is None


def test_a_slide_that_has_changed_since_is_opened_anew(jobs, work, looked, closed):
    work(jobs[0])
    looked(jobs[1])
    del closed[:]
    write_svs(jobs[1].slide, [section(640, 256, (32, 32, 160, 160))])
    outcome = work(jobs[1])
    assert outcome.result.record["slide"]["size"]["w"] == 640
    assert closed.count("b.svs") == 2


def test_a_slide_that_does_not_come_is_closed(jobs, work, looked, closed):
    other = Job(write_svs(jobs[0].slide.with_name("c.svs"), [section(320, 256)]), Path("c"))
    looked(jobs[1])
    looked(jobs[1])
    looked(jobs[0])
    assert closed == []
    looked(other)
    assert closed == ["b.svs"]
    work(jobs[0])
    work(other)
    assert {"a.svs", "c.svs"} <= set(closed)


def test_what_is_found_is_what_a_look_finds(jobs):
    over = threading.Event()
    looking = LookAhead(jobs[0], SETTINGS, None, over.set)
    found = looking.take(jobs[0])
    assert over.is_set()
    np.testing.assert_array_equal(found.seen.tissue.mask, look_at(found.slide, 1).tissue.mask)
    found.slide.close()
    assert looking.take(jobs[0]) is None
