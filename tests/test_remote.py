"""Files below a URL."""

from __future__ import annotations

import threading

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from wsi_saliency import remote as module
from wsi_saliency.errors import OutputError
from wsi_saliency.remote import Remote
from wsi_saliency.urls import located

STRANGE = "a [1]*?#% é/b{c}.txt"


@pytest.fixture(params=["memory", "s3"])
def remote(request, tmp_path):
    url = request.getfixturevalue("bucket") if request.param == "s3" else f"memory://{tmp_path.name}"
    return Remote(located(f"{url}/maps"))


def test_files_are_what_was_written_whatever_they_are_called(remote, tmp_path):
    assert remote.read([STRANGE, "no"]) == [None, None]
    remote.write(STRANGE, b"")
    assert remote.read([STRANGE]) == [b""]
    remote.write(STRANGE, b"1")
    (tmp_path / "file").write_bytes(b"22")
    told = []
    remote.put({"f/x": tmp_path / "file", "f/y/z": tmp_path / "file", "ff": tmp_path / "file"}, told.append)
    assert told == [3]
    assert remote.read(["f/x", "no", STRANGE]) == [b"22", None, b"1"]
    assert remote.sizes("f") == {"x": 2, "y/z": 2}
    assert remote.sizes("") == {STRANGE: 1, "f/x": 2, "f/y/z": 2, "ff": 2}
    assert remote.sizes("no") == {}
    remote.fetch({STRANGE: tmp_path / "new" / "here"})
    assert (tmp_path / "new" / "here").read_bytes() == b"1"
    remote.remove([STRANGE, "no", "f/x"])
    assert remote.sizes("") == {"f/y/z": 2, "ff": 2}


def test_a_file_is_created_once(remote):
    assert remote.create("lock", b"1")
    assert not remote.create("lock", b"2")
    assert remote.read(["lock"]) == [b"1"]


def test_a_store_without_conditions_looks_first(remote, monkeypatch):
    plain = type(remote._store).pipe_file

    def without(self, path, value, **how):
        if how:
            raise NotImplementedError
        plain(self, path, value)

    monkeypatch.setattr(type(remote._store), "pipe_file", without)
    assert remote.create("lock", b"1")
    assert not remote.create("lock", b"2")


@pytest.fixture
def failing(monkeypatch):
    """Let reading fail so many times; returns how often it was tried."""
    monkeypatch.setattr(module, "_PAUSE", 0)

    def fail(times, error):
        tries = []

        def cat_file(self, path, start=None, end=None, **how):
            tries.append(path)
            if len(tries) <= times:
                raise error
            return b"at last"

        monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
        return tries

    return fail


@pytest.mark.parametrize("error", [OSError("hiccup"), TimeoutError(), ConnectionResetError()])
def test_what_may_pass_is_tried_again(failing, error):
    memory = Remote(located("memory://bucket"))
    failing(3, error)
    assert memory.read(["a"]) == [b"at last"]
    tries = failing(99, error)
    with pytest.raises(OutputError, match=r"^memory://bucket/a: cannot be read \("):
        memory.read(["a"])
    assert len(tries) == 4 * 2  # from 0 on, and as a whole


def test_what_will_not_pass_is_not_tried_again(failing):
    tries = failing(99, PermissionError())
    with pytest.raises(OutputError, match="you may not; check the login"):
        Remote(located("memory://bucket")).read(["a"])
    assert len(tries) == 2


def test_a_bucket_that_is_not_there_has_nothing_and_takes_nothing(s3_endpoint):
    nowhere = Remote(located("s3://nowhere/maps"))
    assert nowhere.read(["a"]) == [None]
    with pytest.raises(OutputError, match=r"^s3://nowhere/maps/a: cannot be written \(there is nothing"):
        nowhere.write("a", b"")


def test_when_the_run_is_to_end_a_store_is_waited_for_once_and_not_for_long(monkeypatch):
    memory, asked, answers = Remote(located("memory://bucket")), [], threading.Event()
    monkeypatch.setattr(module, "_SOON", 0.01)
    monkeypatch.setattr(module, "is_interrupted", lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(
            MemoryFileSystem, "cat_file", lambda *_, **how: asked.append(1) or answers.wait(60) or b""
        )
        for _ in range(9):
            with pytest.raises(OutputError, match="to end"):
                memory.read(["a"])
        assert len(asked) == 1
        answers.set()
    monkeypatch.setattr(module, "is_interrupted", lambda: False)
    memory.write("a", b"1")
    monkeypatch.setattr(module, "is_interrupted", lambda: True)
    monkeypatch.setattr(module, "_SOON", 60)
    assert memory.read(["a", "no"]) == [b"1", None]
