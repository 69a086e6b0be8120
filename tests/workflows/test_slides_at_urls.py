"""Slides at URLs from the command to the result: as from a disk, but for the name that is recorded."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from tests.helpers.nets import spot_classifier
from tests.helpers.paths import ROOT
from tests.helpers.runs import SETTINGS, assert_same_values, explained, explainer_for
from tests.helpers.slides import section, write_svs
from tests.helpers.workers import opening
from wsi_saliency.engines.estimate import Total, estimates
from wsi_saliency.engines.folders import FolderRun
from wsi_saliency.engines.kept import KeptResults
from wsi_saliency.engines.local import LocalEngine
from wsi_saliency.errors import SlideError
from wsi_saliency.heatmap.shelves import shelved
from wsi_saliency.settings import InspectSettings, RunSettings
from wsi_saliency.slides import store
from wsi_saliency.slides.cache import SlideCache
from wsi_saliency.urls import located
from wsi_saliency.viewer.shown import Shown
from wsi_saliency.workflows.batch import SlideWork
from wsi_saliency.workflows.describe_slide import describe_slide
from wsi_saliency.workflows.discovery import find_slides
from wsi_saliency.workflows.evaluate import distinct_names
from wsi_saliency.workflows.render import render
from wsi_saliency.workflows.sampling import sample_located

PICTURE = section(320, 256, (32, 32, 160, 160))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(store, "WAITS", (0.0,))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache, as this process and others find it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return SlideCache.of(None)


@pytest.fixture
def slide(tmp_path):
    return write_svs(tmp_path / "a b.svs", [PICTURE])


@pytest.fixture
def local(slide):
    return slide.rename(slide.with_name("local.svs"))


@pytest.fixture
def url(slide, web):
    web.files["/s/a%20b.svs"] = slide.read_bytes()
    return f"{web.url}/s/a%20b.svs?X-Amz-Signature=secret"


def texts_in(folder):
    return "".join(
        path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".html", ".groovy")
    )


def test_a_result_is_that_of_the_file_but_for_the_url(slide, url, tmp_path, cache, web):
    expected, result = explained(slide, tmp_path / "file"), explained(url, tmp_path / "url")
    assert_same_values(result.folder, expected.folder)
    known, facts = expected.record["slide"], dict(result.record["slide"])
    assert facts.pop("version")
    assert facts == known | {"path": f"{web.url}/s/a%20b.svs"}
    assert result.record["settings"] == expected.record["settings"]
    texts = texts_in(result.folder)
    assert "secret" not in texts
    assert str(cache.folder) not in texts


def test_a_complete_result_stays_and_nothing_is_fetched(url, tmp_path, web, cache):
    explained(url, tmp_path / "out" / "a b")
    before = len(web.asked)
    (job,) = find_slides([url])
    results = KeptResults(shelved(tmp_path / "out"), SETTINGS)
    assert results.outcome(job).result.differences == ()
    assert [method for method, *_ in web.asked[before:]] == ["HEAD"]
    listed = replace(job, facts=store.facts_of(job.slide))
    before = len(web.asked)
    assert results.outcome(listed).result.differences == ()
    assert len(web.asked) == before
    other = replace(job, facts=store.Facts(listed.facts.size, "other"))
    assert results.outcome(other).result.differences == ("another slide file",)
    assert explained(url, tmp_path / "out" / "a b").kept
    web.files.clear()
    assert results.outcome(job) is None


def test_exports_are_added_with_the_slide_from_the_cache(url, tmp_path, web):
    explained(url, tmp_path / "out")
    before = len(web.asked)
    again = explained(url, tmp_path / "out", replace(SETTINGS, hotspots=2))
    assert again.exported
    assert "GET" not in [method for method, *_ in web.asked[before:]]


@contextmanager
def collected(shown, name, count, unit="patch"):
    shown.append((name, count, unit))
    yield shown.append


def test_the_download_is_shown(url, slide, tmp_path):
    shown = []
    explained(url, tmp_path / "out", progress=lambda *what: collected(shown, *what))
    size = slide.stat().st_size
    assert shown[:2] == [("a b.svs: download", size, "B"), size]


def test_the_next_slide_is_fetched_while_one_is_explained(url, web, tmp_path, slide, monkeypatch):
    shown = []
    web.files["/s/b.svs"] = slide.read_bytes()
    jobs = find_slides([url, f"{web.url}/s/b.svs"])
    work = SlideWork(
        tmp_path / "out",
        SETTINGS,
        load=explainer_for,
        progress=lambda *what: collected(shown, *what),
    )
    assert work(jobs[0]).failure is None
    web.hang, over = True, threading.Event()
    work.look_ahead(jobs[1], over.set)
    threading.Timer(0.5, setattr, (web, "hang", False)).start()
    del shown[:]
    assert work(jobs[1]).failure is None
    assert over.is_set()
    assert shown[0] == ("b.svs: download", slide.stat().st_size, "B")
    assert [method for method, path, _ in web.asked if path == "/s/b.svs"].count("GET") == 1


def test_a_slide_that_has_come_too_early_makes_room(url, web, tmp_path, slide):
    web.files["/s/b.svs"] = slide.read_bytes()
    jobs, over = find_slides([url, f"{web.url}/s/b.svs"]), threading.Event()
    settings = replace(SETTINGS, slide_cache_size=f"{slide.stat().st_size * 1.5 / 1000} kB")
    work = SlideWork(tmp_path / "out", settings, load=explainer_for)
    work.look_ahead(jobs[1], over.set)
    assert over.wait(60)
    assert [work(job).failure for job in jobs] == [None, None]


def test_worker_processes_open_what_is_at_urls(bucket, slide, tmp_path):
    for name in ("a #1?.svs", "sub/b.svs"):
        located(f"{bucket}/s/{name}").write_bytes(slide.read_bytes())
    located(f"{bucket}/s/text.svs").write_bytes(b"text")
    jobs = find_slides([f"{bucket}/s/", f"{bucket}/none.svs"])
    with LocalEngine(tmp_path / "out", make_work=opening) as engine:
        said = [outcome.failure for outcome in engine.run(jobs, RunSettings(device="cpu"))]
    assert said == [
        f"{bucket}/s/a #1?.svs: {slide.stat().st_size} bytes",
        f"{bucket}/s/sub/b.svs: {slide.stat().st_size} bytes",
        f"{bucket}/s/text.svs: it is a text file, not a slide",
        f"{bucket}/none.svs: the slide cannot be read (there is nothing of that name)",
    ]


def test_a_slide_that_does_not_come_in_time_is_stopped(url, local, web, tmp_path, cache):
    web.hang = True
    jobs = find_slides([url, local])
    with LocalEngine(tmp_path / "out", timeout=2.0, make_work=opening) as engine:
        (stopped, other) = engine.run(jobs, RunSettings(device="cpu"))
    web.hang = False
    assert stopped.failure == f"{web.url}/s/a%20b.svs: stopped after 2 s (--slide-timeout)"
    assert other.failure == f"{local}: {local.stat().st_size} bytes"
    assert [path.name for path in cache.folder.iterdir()] == [".lock"]


RUN = """
import sys
from pathlib import Path
from tests.helpers.workers import opening
from wsi_saliency.engines.local import LocalEngine
from wsi_saliency.interruption import Interruption, interruptible
from wsi_saliency.settings import RunSettings
from wsi_saliency.workflows.discovery import find_slides
if __name__ == "__main__":
    try:
        with interruptible(), LocalEngine(Path(sys.argv[1]), make_work=opening) as engine:
            list(engine.run(find_slides(sys.argv[2:]), RunSettings(device="cpu")))
    except Interruption as signalled:
        sys.exit(signalled.exit_code)
"""


@pytest.mark.parametrize("ahead", [False, True])
def test_a_run_that_is_interrupted_while_slides_come_leaves_nothing(url, slide, web, tmp_path, cache, ahead):
    web.hang = True
    web.files["/s/b.svs"] = slide.read_bytes()
    (tmp_path / "run.py").write_text(RUN)
    urls = [url, f"{web.url}/s/b.svs"] if ahead else [url]
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "out"), *urls]
    run = subprocess.Popen(command, cwd=ROOT)
    try:
        until = time.monotonic() + 120
        while len(list(cache.folder.glob(".*.growing/files/*"))) < len(urls):
            assert time.monotonic() < until
            time.sleep(0.05)
        start = time.monotonic()
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 128 + signal.SIGTERM
        assert time.monotonic() - start < 8
    finally:
        web.hang = False
        run.kill()
        run.wait()
    assert [path.name for path in cache.folder.iterdir()] == [".lock"]


def test_messages_and_the_table_name_the_url_without_its_signature(url, web, tmp_path):
    web.failures["/s/a%20b.svs"] = [403] * 50
    jobs = find_slides([url, f"{web.url}/none.svs?X-Amz-Signature=secret"])
    with LocalEngine(tmp_path / "out", make_work=opening) as engine:
        run = FolderRun(shelved(tmp_path / "out"), RunSettings(device="cpu"), engine)
        failures = [outcome.failure for outcome in run.outcomes(jobs)]
    assert failures[0].startswith(f"{web.url}/s/a%20b.svs: the slide cannot be read (you may not;")
    written = "".join(path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert f"{web.url}/s/a%20b.svs,failed" in written
    assert "secret" not in written


def test_a_dry_run_names_sizes_and_fetches_nothing(url, local, web, tmp_path):
    jobs, out = find_slides([url, local, f"{web.url}/none.svs"]), shelved(tmp_path / "out")
    settings = replace(SETTINGS, model="demo")
    found = list(estimates(jobs, out, settings))
    total = Total.of(found)
    assert (total.slides, total.failed, total.unseen) == (3, 1, 1)
    assert total.to_fetch == found[0].to_fetch == local.stat().st_size
    assert "GET" not in [method for method, path, _ in web.asked if "none" not in path]
    describe_slide(url, InspectSettings())
    seen = next(iter(estimates(jobs, out, settings)))
    assert (seen.to_fetch, seen.patches) == (None, found[1].patches)


def test_a_slide_is_described(url, web):
    lines = dict(describe_slide(url, InspectSettings()))
    assert lines["file"] == f"{web.url}/s/a%20b.svs"
    assert lines["size"] == "320 × 256 px"


def test_patches_are_those_of_the_file(url, slide):
    classifier = spot_classifier(64)
    sampled, expected = (sample_located([place], classifier, 5) for place in (url, slide))
    np.testing.assert_array_equal(sampled.patches, expected.patches)
    assert str(sampled.slides[0]) == url


def test_slides_of_one_name_are_told_apart_by_their_urls(tmp_path):
    places = [located(text) for text in ("memory://x/a.svs", "memory://y/a.svs", "memory://y/b.svs")]
    assert list(distinct_names([*places, tmp_path / "a.svs"]).values()) == [
        *("memory://x/a.svs", "memory://y/a.svs", "b.svs", "a.svs")
    ]


def test_a_result_is_shown_over_the_slide_that_is_fetched_again(url, web, tmp_path, cache):
    result = explained(url, tmp_path / "out")
    bare = result.record["slide"]["path"]
    for place in (None, located(url)):
        shown = Shown(result, place)
        assert json.loads(shown.facts)["tiles"]
        shown.close()
    render(result.folder, tmp_path / "figure.png")
    render(result.folder, tmp_path / "figure.pdf", slide=url)
    web.failures["/s/a%20b.svs"] = [403] * 50
    facts = json.loads(Shown(result).facts)
    assert facts["tiles"] is None
    assert facts["notices"][0].startswith(f"{bare}: the slide cannot be read (you may not;")
    assert "--slide PATH says where" in facts["notices"][0]
    with pytest.raises(SlideError, match="you may not"):
        render(result.folder, tmp_path / "figure.png")
