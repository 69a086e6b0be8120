"""Slides from URLs on this machine: fetched once, whole or not there, and never gone while they are read."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from wsi_saliency.errors import SettingsError, SlideError
from wsi_saliency.settings import CacheSettings
from wsi_saliency.slides import cache as caches
from wsi_saliency.slides import store
from wsi_saliency.slides.cache import SlideCache
from wsi_saliency.slides.store import parts_of
from wsi_saliency.urls import located
from wsi_saliency.working import working_folder

CONTENT = bytes(1000)
SOURCE = """
import sys, time
from pathlib import Path
from wsi_saliency.interruption import Interruption, interruptible
from wsi_saliency.slides.cache import SlideCache
from wsi_saliency.urls import located
url, folder = sys.argv[1:3]
try:
    with interruptible():
        print("started", flush=True)
        source = SlideCache(Path(folder), 10**6).source(located(url))
        print(source.file.stat().st_size, flush=True)
        sys.stdin.read()
except Interruption:
    sys.exit(9)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(store, "WAITS", (0.0,))
    monkeypatch.setattr(caches, "_POLL", 0.01)


@pytest.fixture
def cache(tmp_path):
    return SlideCache(tmp_path / "cache", 2500)


@pytest.fixture
def put(web):
    def put(name, content=CONTENT):
        web.files[f"/{name}"] = content
        return located(f"{web.url}/{name}")

    return put


def held(cache):
    """Files of slides that are there."""
    return sorted(path.name for path in cache.folder.glob("[!.]*/files/*"))


def hidden(cache):
    return sorted(path.name for path in cache.folder.glob(".*") if path.name != ".lock")


def reads(web):
    return sum(method == "GET" for method, *_ in web.asked)


def other(url, cache):
    """Read a slide in another process, until its input ends."""
    command = [sys.executable, "-c", SOURCE, str(url), str(cache.folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_slide_is_fetched_once(cache, put, web):
    place = put("a.svs")
    first = cache.source(place)
    assert first.file.read_bytes() == CONTENT
    assert (first.file.name, first.place, first.size) == ("a.svs", place, 1000)
    second = cache.source(located(f"{place}?X-Amz-Signature=other&X-Amz-Date=now"))
    assert second.file == first.file
    assert reads(web) == 1
    first.release()
    second.release()
    assert held(cache) == ["a.svs"]
    assert cache.has(place, parts_of(place))


@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: file.write_bytes(b"half")])
def test_a_copy_that_others_have_spoilt_is_fetched_anew(cache, put, spoil):
    place = put("a.svs")
    first = cache.source(place)
    first.release()
    spoil(first.file)
    assert cache.source(place).file.read_bytes() == CONTENT
    assert hidden(cache) == []


def test_other_parameters_are_other_slides(cache, put):
    place = put("a.svs")
    first, second = (cache.source(located(f"{place}?id={i}&Signature={i}")) for i in (1, 2))
    assert first.file != second.file


def test_a_slide_that_has_changed_is_fetched_anew(cache, put):
    place = put("a.svs")
    cache.source(place).release()
    put("a.svs", b"other")
    assert not cache.has(place, parts_of(place))
    assert cache.source(place).file.read_bytes() == b"other"


def test_a_slide_that_changes_while_it_is_fetched_is_refused(cache, put, monkeypatch):
    place = put("a.svs")

    def changing(place, part):
        yield CONTENT
        put("a.svs", b"other")

    monkeypatch.setattr(caches, "fetch", changing)
    with pytest.raises(SlideError, match="it has changed while it was fetched"):
        cache.source(place)
    assert held(cache) == hidden(cache) == []


def test_bytes_are_shown(cache, put):
    shown = []

    class Watch:
        def __enter__(self):
            return shown.append

        def __exit__(self, *_):
            shown.append("end")

    cache.source(put("a.svs"), lambda count: shown.append(f"of {count}") or Watch())
    assert shown == ["of 1000", 1000, "end"]


def test_the_least_used_go_first_and_none_that_is_read(cache, put):
    sources = {name: cache.source(put(name)) for name in ("a.svs", "b.svs")}
    sources["a.svs"].release()
    sources["b.svs"].release()
    cache.source(put("a.svs")).release()  # used again
    for entry, last in zip(sorted(cache.folder.glob("*/slide.json")), (1, 1), strict=True):
        name = next(entry.parent.glob("files/*")).name
        os.utime(entry, (last, 2.0 if name == "a.svs" else 1.0))
    reading = cache.source(put("c.svs"))
    assert held(cache) == ["a.svs", "c.svs"]
    last = cache.source(put("d.svs"))
    assert held(cache) == ["c.svs", "d.svs"]
    with pytest.raises(SlideError, match="the others in use leave no room in the cache; --slide-cache-size"):
        cache.source(put("e.svs"))
    reading.release()
    cache.source(put("e.svs")).release()
    assert held(cache) == ["d.svs", "e.svs"]
    last.release()


def test_a_slide_without_room_is_refused_before_it_is_fetched(cache, put, web, monkeypatch):
    with pytest.raises(SlideError, match=r"has 3.0 kB, and the cache holds 2.5 kB; --slide-cache-size"):
        cache.source(put("a.svs", bytes(3000)))
    usage = shutil.disk_usage(cache.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=500))
    with pytest.raises(SlideError, match=r"cache has room for 500 B; --slide-cache names another folder"):
        cache.source(put("b.svs"))
    assert reads(web) == 0
    assert held(cache) == hidden(cache) == []


def test_without_a_size_a_slide_goes_when_nobody_reads_it(tmp_path, cache, put):
    kept = cache.source(put("kept.svs"))
    kept.release()
    passing = SlideCache(cache.folder, 0)
    first, second = (passing.source(put("a.svs")) for _ in range(2))
    first.release()
    assert held(cache) == ["a.svs", "kept.svs"]
    second.release()
    assert held(cache) == ["kept.svs"]
    assert hidden(cache) == []


def test_what_breaks_leaves_nothing(cache, put, web):
    place = put("a.svs")
    parts = parts_of(place)
    web.failures["/a.svs"] = [200, 200, *[10] * 20]
    with pytest.raises(SlideError, match="cannot be"):
        cache.source(place)
    assert held(cache) == hidden(cache) == []
    web.failures.clear()
    assert not cache.has(place, parts)
    assert cache.source(place).file.read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_is_named(tmp_path, put):
    (tmp_path / "file").touch()
    with pytest.raises(SlideError, match=r"a.svs: slides cannot be kept in .*file \(.*\); --slide-cache"):
        SlideCache(tmp_path / "file", 0).source(put("a.svs"))


def test_several_processes_fetch_a_slide_once(cache, put, web):
    place, web.pause = put("a.svs"), 0.3
    processes = [other(place, cache) for _ in range(3)]
    try:
        assert [process.stdout.readline() for process in processes] == ["started\n"] * 3
        assert [process.stdout.readline() for process in processes] == ["1000\n"] * 3
        assert reads(web) == 1
        assert len(list(cache.folder.glob("*/uses/*"))) == 3
    finally:
        for process in processes:
            process.communicate("")
    ours = [cache.source(put(f"{name}.svs")) for name in "bc"]  # in the room of the others, who are no more
    assert held(cache) == ["b.svs", "c.svs"]
    assert all(source.file.exists() for source in ours)


def test_one_that_another_process_reads_stays_until_that_has_died(cache, put):
    process = other(put("a.svs"), cache)
    try:
        assert [process.stdout.readline() for _ in range(2)] == ["started\n", "1000\n"]
        cache.source(put("b.svs")).release()
        cache.source(put("c.svs")).release()
        assert held(cache) == ["a.svs", "c.svs"]
        process.kill()
        process.wait()
        held_by_us = cache.source(put("c.svs"))
        cache.source(put("d.svs"))
        assert held(cache) == ["c.svs", "d.svs"]
        held_by_us.release()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_process_that_ends_while_it_fetches_leaves_nothing(cache, put, web, number):
    place = put("a.svs")
    web.hang = True
    process = other(place, cache)
    try:
        process.stdout.readline()
        until = time.monotonic() + 60
        while not list(cache.folder.glob(".*.growing/files/*")):
            assert time.monotonic() < until
            time.sleep(0.01)
        start = time.monotonic()
        process.send_signal(number)
        assert process.wait(60) in (9, -signal.SIGKILL)
        assert time.monotonic() - start < 5
    finally:
        web.hang = False
        process.kill()
        process.communicate()
    assert held(cache) == []
    assert bool(hidden(cache)) == (number == signal.SIGKILL)
    cache.tidy()
    assert hidden(cache) == []
    assert cache.source(place).file.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("50 GB", 50 * 10**9), ("1.5TB", 1.5e12), ("10 GiB", 10 * 2**30), ("7 kB", 7000), ("0 GB", 0)],
)
def test_sizes_have_units(text, size):
    assert CacheSettings(slide_cache_size=text).cache_bytes == size


@pytest.mark.parametrize("text", ["", "5", "GB", "-1 GB", "5 XB", "nan GB", "1e3 GB"])
def test_other_sizes_are_refused(text):
    with pytest.raises(SettingsError, match=r"--slide-cache-size\) is .* such as 200 GB"):
        CacheSettings(slide_cache_size=text)


def test_the_cache_is_in_that_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert SlideCache.of(None).folder == tmp_path / "wsi-saliency" / "slides"
    assert SlideCache.of(CacheSettings(slide_cache=tmp_path / "x")).folder == tmp_path / "x"


def test_where_a_slide_is_kept_is_not_recorded():
    assert CacheSettings(slide_cache=Path("x")).to_json() == {}
    assert re.search("cache", CacheSettings.heading) is None


def test_a_slide_that_another_run_fetches_is_waited_for_and_it_is_said_once(cache, put, caplog):
    place, sources = put("a.svs"), []
    cache.folder.mkdir()
    thread = threading.Thread(target=lambda: sources.append(cache.source(place)))
    with working_folder(cache.folder / caches._key(place, parts_of(place))):
        thread.start()
        while not caplog.messages:
            assert thread.is_alive()
            time.sleep(0.01)
        time.sleep(5 * caches._POLL)
        assert not sources
    thread.join(120)
    assert sources[0].file.read_bytes() == CONTENT
    assert [text.partition(": ")[2] for text in caplog.messages] == [
        "another process is fetching it; waiting"
    ]
