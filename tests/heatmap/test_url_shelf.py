"""Results that stand at a URL."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from wsi_saliency import remote as remotes
from wsi_saliency.errors import BusyError, NoRoomError, OutputError, SettingsError
from wsi_saliency.files import growing, locked
from wsi_saliency.heatmap import url_shelf
from wsi_saliency.heatmap.folder_shelf import FolderShelf
from wsi_saliency.heatmap.result import Result, write_record
from wsi_saliency.heatmap.shelf import Manner
from wsi_saliency.heatmap.shelves import shelved
from wsi_saliency.heatmap.url_shelf import UrlShelf
from wsi_saliency.remote import Remote
from wsi_saliency.urls import located

NAME = Path("sub", "slide [1]")
MAPS = "saliency.ome.zarr"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(remotes, "_PAUSE", 0)


@pytest.fixture(params=["memory", "s3"])
def shelf(request, tmp_path):
    url = request.getfixturevalue("bucket") if request.param == "s3" else f"memory://{tmp_path.name}"
    return shelved(located(f"{url}/maps"), tmp_path / "work")


@pytest.fixture
def memory(tmp_path):
    return shelved(located(f"memory://{tmp_path.name}/maps"), tmp_path / "work")


def files(version):
    """All files of a result but ``run.json``, as version says."""
    chunks = {f"{MAPS}/0/c/{i}": f"{version} chunk {i}" for i in range(version)}
    return chunks | {f"{MAPS}/zarr.json": "{}", "tiles.csv": "x" * version, "report.html": f"{version}"}


def maker(version, **how):
    """Return what makes a result, as `explain_slide` does."""

    def make(folder):
        with locked(folder), growing(folder, lambda folder: True) as work:
            for name, text in files(version).items():
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                (work / name).write_text(text)
            write_record(work, {"version": version, "maps": []})
        return replace(Result.read(folder), **how)

    return make


def never(folder):
    raise AssertionError("there is nothing to make")


def is_version(version):
    """Return what keeps results of a version."""
    return lambda result: replace(result, kept=True) if result.record["version"] == version else None


@contextmanager
def unwatched(what, count):
    yield lambda done: None


def explained(shelf, version, make=None, overwrite=False, name=NAME):
    manner = Manner(overwrite, wait=False)
    return shelf.explained(name, make or maker(version), is_version(version), unwatched, manner)


def standing(shelf, name=NAME):
    """Return the version of the result at the URL, and of all its files; None if there is no complete one."""
    there = Remote(shelf.place)
    (record,) = there.read([f"{name.as_posix()}/run.json"])
    if record is None or json.loads(record).get("status") != "complete":
        return None
    version = json.loads(record)["version"]
    names = sorted(file for file in there.sizes(name.as_posix()) if file != "run.json")
    assert names == sorted(files(version))
    contents = there.read([f"{name.as_posix()}/{file}" for file in names])
    assert {n: c.decode() for n, c in zip(names, contents, strict=True)} == files(version)
    return version


def here(shelf):
    """What is on this machine."""
    return sorted(path for path in (shelf.work or shelf.folder).rglob("*") if path.is_file())


def test_a_result_is_put_there_whole_and_replaced_as_a_whole(shelf):
    result = explained(shelf, 3)
    assert result.where == shelf.where(NAME) == f"{shelf}/sub/slide [1]"
    assert standing(shelf) == 3
    assert explained(shelf, 3, never).kept
    explained(shelf, 2, overwrite=True)
    assert standing(shelf) == 2
    assert here(shelf) == []
    assert [found and found.record["version"] for found in shelf.results([Path("no"), NAME])] == [None, 2]
    assert shelf.size(NAME) > 0
    assert sorted(Remote(shelf.place).sizes("")) == sorted(f"{NAME}/{f}" for f in [*files(2), "run.json"])


def test_what_it_lacks_is_added_to_what_was_there(shelf, tmp_path):
    explained(shelf, 1)

    def add(folder):
        result = Result.read(folder)
        assert result.record["version"] == 1
        assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {
            *files(1),
            "run.json",
        }
        return maker(2)(folder)

    explained(shelf, 2, add)
    assert standing(shelf) == 2
    assert here(shelf) == []


def test_what_turns_out_to_be_kept_is_not_put_there_again(memory):
    explained(memory, 1)

    def keep(folder):
        return replace(Result.read(folder), kept=True, differences=("other weights",))

    result = explained(memory, 2, keep)
    assert (result.where, result.differences) == (memory.where(NAME), ("other weights",))
    assert standing(memory) == 1
    assert here(memory) == []


def test_what_fails_leaves_what_was_there(memory):
    explained(memory, 1)

    def fail(folder):
        raise OutputError(f"{folder}: cannot be written; choose another folder with -o")

    with pytest.raises(OutputError, match="choose another folder with --work"):
        explained(memory, 2, fail)
    assert standing(memory) == 1
    assert here(memory) == []


def test_files_of_others_stay_and_their_folders_are_not_written_into(memory):
    there = Remote(memory.place)
    there.write(f"{NAME}/notes.txt", b"mine")
    explained(memory, 1)
    assert there.read([f"{NAME}/notes.txt"]) == [b"mine"]
    there.write(f"{NAME}/mine/notes.txt", b"mine")
    with pytest.raises(OutputError, match=r"holds more than a result \(mine/notes.txt\)"):
        explained(memory, 2, overwrite=True)
    assert there.read([f"{NAME}/run.json"]) != [None]


@pytest.mark.parametrize("name", ["saliency.x/../../../escaped", "saliency.x/..\\escaped", "saliency.x//a"])
def test_names_that_lead_elsewhere_are_not_fetched(memory, name, tmp_path, monkeypatch):
    explained(memory, 1)
    sizes = Remote.sizes
    monkeypatch.setattr(Remote, "sizes", lambda self, folder: sizes(self, folder) | {name: 1})
    with pytest.raises(OutputError, match="cannot be the name of a file here"):
        explained(memory, 2)
    assert here(memory) == []


# ------------------------------------------------------------------------------------------ what goes wrong


class Failing:
    """Fails all that is asked of the memory from the k-th call on, or with ``once`` the k-th only."""

    CALLS = ("pipe_file", "put_file", "get_file", "cat_file", "rm_file", "find")

    def __init__(self, patch, error, once=False):
        self.k, self.seen, self.error, self.once = 10**9, 0, error, once
        for call in self.CALLS:
            patch.setattr(MemoryFileSystem, call, self.wrapped(getattr(MemoryFileSystem, call)))

    def wrapped(self, call):
        def wrapper(store, *arguments, **how):
            self.seen += 1
            if self.seen == self.k or (self.seen > self.k and not self.once):
                raise self.error
            return call(store, *arguments, **how)

        return wrapper

    def at(self, k):
        self.k, self.seen = k, 0


@pytest.mark.parametrize("overwrite", [False, True], ids=["added to", "replaced"])
@pytest.mark.parametrize("error", [OSError("down"), KeyboardInterrupt()], ids=["fails", "killed"])
def test_whatever_the_step_that_fails_nothing_looks_finished_that_is_not(
    memory, monkeypatch, overwrite, error
):
    with monkeypatch.context() as patch:
        store, failed, k = Failing(patch, error), True, 0
        while failed:
            k += 1
            store.at(10**9)
            MemoryFileSystem.store.clear()
            shutil.rmtree(memory.work, ignore_errors=True)
            explained(memory, 1)
            store.at(k)
            try:
                explained(memory, 2, overwrite=overwrite)
                failed = store.seen >= k
            except (OutputError, KeyboardInterrupt):
                failed = True
            store.at(10**9)
            assert standing(memory) in (None, 1, 2)
            finished = Result.read(memory.folder / NAME)
            make = never if finished and finished.record["version"] == 2 else maker(2)
            explained(replace(memory, run="next"), 2, make)
            assert standing(memory) == 2
            assert here(memory) == []
    assert k > 10


def test_a_step_that_fails_once_is_tried_again(memory, monkeypatch):
    with monkeypatch.context() as patch:
        store, k = Failing(patch, OSError("hiccup"), once=True), 0
        while True:
            k += 1
            store.at(k)
            explained(memory, 1 + k % 2, overwrite=True)
            if store.seen < k:
                break
        assert k > 10
    assert standing(memory) == 1 + k % 2


def test_a_result_that_could_not_be_put_there_stays_here_and_the_run_goes_on(memory, monkeypatch):
    put_file = MemoryFileSystem.put_file

    def refuse(self, lpath, rpath, **how):
        if rpath.endswith("tiles.csv"):
            raise OSError("too busy")
        put_file(self, lpath, rpath, **how)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", refuse)
        with pytest.raises(
            OutputError, match=r"the finished result stays in .*the same command puts it"
        ) as said:
            explained(memory, 3)
    assert not isinstance(said.value, NoRoomError)
    assert "\n" not in str(said.value)
    assert memory.half_done([NAME]) == 1
    assert standing(memory) is None
    explained(memory, 3, never, overwrite=True)
    assert standing(memory) == 3
    assert memory.half_done([NAME]) == 0


def test_where_nothing_can_be_written_the_run_ends(memory, monkeypatch):
    def refuse(self, *arguments, **how):
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", refuse)
        patch.setattr(MemoryFileSystem, "pipe_file", refuse)
        with pytest.raises(NoRoomError, match=r"^memory://.*cannot be written \(you may not.*with -o$"):
            memory.check()


def test_a_folder_here_that_takes_nothing_is_said_at_once(memory):
    memory.work.touch()
    with pytest.raises(OutputError, match=r"^\S+: cannot be written .*another folder with --work$"):
        memory.check()


def test_a_finished_result_of_other_settings_is_not_put_there(memory):
    maker(1)(memory.folder / NAME)
    explained(memory, 2)
    assert standing(memory) == 2


def test_a_result_that_a_killed_run_has_put_there_does_not_stay_here(memory):
    explained(memory, 1)
    there = Remote(memory.place)
    maker(1)(memory.folder / NAME)
    (content,) = there.read([f"{NAME}/run.json"])
    (memory.folder / NAME / "run.json").write_bytes(content)
    assert next(memory.results([NAME]))
    assert here(memory) == []


# ------------------------------------------------------------------------------------------ other runs


def test_one_run_at_a_time_works_on_a_result_on_this_machine_and_on_others(memory, tmp_path):
    others = [replace(memory, run="here"), replace(memory, run="there", work=tmp_path / "other machine")]

    def make(folder):
        for other in others:
            assert other.is_busy(NAME)
            with pytest.raises(BusyError, match=r"^memory://.*is working on it$"):
                explained(other, 1)
            other.clear([NAME])
            assert other.is_busy(NAME)
        return maker(1)(folder)

    explained(memory, 1, make)
    assert not any(other.is_busy(NAME) for other in others)


def test_what_another_run_takes_over_meanwhile_is_left_to_it(memory, tmp_path):
    other = replace(memory, run="other", work=tmp_path / "other machine")

    def make(folder):
        result = maker(1)(folder)
        other._claim(NAME)._has_taken()
        Remote(memory.place).remove([other._claim(NAME).name])
        explained(other, 2)
        return result

    with pytest.raises(BusyError, match="another run has taken it over"):
        explained(memory, 1, make)
    assert standing(memory) == 2
    assert here(memory) == []


def test_a_claim_of_a_dead_process_of_the_same_run_is_cleared(memory):
    memory._claim(NAME).take("slide", wait=False)
    memory.clear([NAME])
    assert Remote(memory.place).sizes("") == {}


# ------------------------------------------------------------------------------------------ where files are


def test_small_files_of_the_folder_are_changed_there(shelf):
    for text in ("first", "second"):
        with shelf.borrowed("summary.csv", "index.html") as folder:
            assert (folder / "summary.csv").exists() == (text == "second")
            (folder / "summary.csv").write_text(text)
            with (
                pytest.raises(BusyError),
                replace(shelf, work=shelf.work / "b", run="b").borrowed("summary.csv"),
            ):
                pass
    assert Remote(shelf.place).sizes("") == {"summary.csv": 6}
    assert shelf.has("summary.csv")
    shelf.write(Path("a.error.log"), "why \udce9")
    shelf.remove(Path("a.error.log"), unlikely=True)
    assert shelf.has("a.error.log")
    shelf.remove(Path("a.error.log"), unlikely=False)
    assert not shelf.has("a.error.log")
    with (
        pytest.raises(OutputError, match=f"^{shelf}/summary.csv: is odd"),
        shelf.borrowed("summary.csv") as folder,
    ):
        raise OutputError(f"{folder / 'summary.csv'}: is odd")


def test_results_grow_in_a_folder_of_their_url_for_nobody_else(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "fast"))
    a, b = (shelved(located(f"memory://{name}")) for name in "ab")
    assert a.folder != b.folder
    assert a.folder.parent == b.folder.parent == tmp_path / "fast" / f"wsi-saliency-{os.geteuid()}"
    a.check()
    assert a.folder.parent.stat().st_mode & 0o77 == 0
    monkeypatch.setattr(url_shelf.os, "geteuid", lambda: os.getuid() + 1)
    shutil.move(tmp_path / "fast" / f"wsi-saliency-{os.getuid()}", a.folder.parent)
    with pytest.raises(OutputError, match="belongs to somebody else; choose another folder with --work"):
        a.check()
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert a.folder.is_relative_to(tmp_path / "cache" / "wsi-saliency")


def test_it_goes_to_other_machines(shelf):
    assert list(shelf.results([NAME])) == [None]
    again = pickle.loads(pickle.dumps(shelf))
    assert again == shelf
    assert (again.folder, str(again)) == (shelf.folder, str(shelf))


def test_what_only_this_process_sees_is_for_one_slide(memory, bucket):
    with pytest.raises(SettingsError, match="other processes do not see memory:// URLs"):
        memory.check_shared()
    shelved(located(bucket)).check_shared()


def test_a_folder_is_a_shelf_and_so_is_a_url_of_one(tmp_path):
    assert shelved(located(f"file://{tmp_path}")) == shelved(tmp_path) == FolderShelf(tmp_path)
    assert isinstance(shelved(shelved(located("memory://a"))), UrlShelf)
