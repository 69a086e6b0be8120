"""Results are whole or not there, one run at a time; with other processes where it is about processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from tests.helpers.paths import ROOT
from wsi_saliency import files, working
from wsi_saliency.errors import BusyError, OutputError
from wsi_saliency.files import (
    carry,
    check_file,
    check_folder,
    check_free,
    filling,
    growing,
    locked,
    replacing,
)
from wsi_saliency.working import is_working_folder

LEFT = ".out.0123abcd.growing"  # a working folder for `out`


def tree(folder):
    """All that is below a folder, with the text of files."""
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def made(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def broken(error, context, write=lambda _: None):
    """Fail inside of a context, after something was written to what it yields."""
    with context as work:
        write(work)
        raise error


def killed(code, *arguments):
    """Run Python code in another process that kills itself where the code says so."""
    code = f"""
import os, signal, sys
from pathlib import Path
from wsi_saliency.files import *
def kill(): os.kill(os.getpid(), signal.SIGKILL)
{code}
"""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


@contextmanager
def other_process(target, *, seconds=600.0):
    """Let another process hold the lock of a place for some time, or until the block is left."""
    code = """
import sys, time
from pathlib import Path
from wsi_saliency.files import locked
with locked(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(float(sys.argv[2]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, target, str(seconds)], stdout=subprocess.PIPE, text=True
    )
    try:
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


# ---------------------------------------------------------------------------------- whole or not at all


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with growing(tmp_path / "new" / "out") as work:
        made(work, a="1")
        assert not (tmp_path / "new" / "out").exists()
        assert is_working_folder(work.parent)
    assert tree(tmp_path) == {"new": None, "new/out": None, "new/out/a": "1"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_of_a_failure_nothing_is_left_and_an_older_folder_stays(tmp_path, error):
    made(tmp_path / "there", a="old")
    before = tree(tmp_path)
    for folder in (tmp_path / "new" / "out", tmp_path / "there"):
        with pytest.raises(error):
            broken(error, growing(folder, lambda _: True), lambda work: made(work, a="1"))
    assert tree(tmp_path) == before


def test_only_what_may_be_replaced_is(tmp_path):
    made(tmp_path / "out", a="old", b="old")
    asked = []
    with growing(tmp_path / "out", lambda folder: not asked.append(folder)) as work:
        made(work, a="new")
    assert tree(tmp_path) == {"out": None, "out/a": "new"}
    assert asked == [tmp_path / "out"] * 2
    for allowed in (None, lambda _: False):
        with (
            pytest.raises(OutputError, match="out: exists and is not a result"),
            growing(tmp_path / "out", allowed),
        ):
            pytest.fail("work was done")
    made(tmp_path / "empty")
    with growing(tmp_path / "empty") as work:
        made(work, a="new")
    assert tree(tmp_path / "empty") == {"a": "new"}


def test_what_somebody_puts_there_meanwhile_is_not_replaced(tmp_path):
    work = growing(tmp_path / "out")
    made(work.__enter__(), a="new")
    made(tmp_path / "out", mine="1")
    with pytest.raises(OutputError, match="exists"):
        work.__exit__(None, None, None)
    assert tree(tmp_path) == {"out": None, "out/mine": "1"}


def test_messages_name_the_place_that_the_user_knows(tmp_path):
    with pytest.raises(OutputError) as caught, growing(tmp_path / "out") as work, files.writing(work / "a"):
        raise OSError(28, "No space left on device")
    assert str(caught.value).startswith(
        f"{tmp_path / 'out' / 'a'}: cannot be written (No space left on device)"
    )


def test_a_file_appears_when_it_is_complete(tmp_path):
    file = made(tmp_path, file="old") / "file"
    with replacing(file) as part:
        part.write_text("new")
        assert file.read_text() == "old"
    assert tree(tmp_path) == {"file": "new"}
    with pytest.raises(KeyboardInterrupt):
        broken(KeyboardInterrupt, replacing(file), lambda part: part.write_text("newer"))
    full = OSError(28, "No space left on device")
    with pytest.raises(OutputError, match=r"file: cannot be written \(No space .*choose another file"):
        broken(full, replacing(file))
    assert tree(tmp_path) == {"file": "new"}


def test_files_move_into_a_folder_that_holds_others_the_last_one_last(tmp_path, monkeypatch):
    out = made(tmp_path / "out", last="old", picture="old", mine="1")
    seen, move = [], os.replace

    def watched(source, target):
        seen.append((Path(target).name, (out / "last").exists()))
        move(source, target)

    monkeypatch.setattr(files.os, "replace", watched)
    with pytest.raises(ValueError, match="wrong"):
        broken(ValueError("wrong"), filling(out, "last", ["picture"]), lambda work: made(work, last="new"))
    assert tree(out) == {"last": "old", "picture": "old", "mine": "1"}
    with filling(out, "last", ["picture", "never"]) as work:
        made(work, a="new", last="new", z="new")
    assert tree(out) == {"a": "new", "last": "new", "mine": "1", "z": "new"}
    assert seen == [("a", False), ("z", False), ("last", False)]


@pytest.mark.parametrize("links", [True, False])
def test_files_are_carried_over_by_links_or_else_as_copies(tmp_path, monkeypatch, links):
    def refuse(*args, **how):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    old, new = tmp_path / "old", tmp_path / "new"
    (old / "store" / "0").mkdir(parents=True)
    (old / "store" / "0" / "chunk").write_text("values")
    (old / "file").write_text("text")
    new.mkdir()
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for name in ("store", "file"):
        carry(old / name, new / f"renamed.{name}")
    assert tree(new) == {
        "renamed.file": "text",
        "renamed.store": None,
        "renamed.store/0": None,
        "renamed.store/0/chunk": "values",
    }
    assert (old / "file").samefile(new / "renamed.file") == links
    assert (old / "store/0/chunk").samefile(new / "renamed.store/0/chunk") == links


def test_what_is_not_there_to_be_carried_over_is_one_line(tmp_path):
    with pytest.raises(OutputError, match="new: cannot be written") as caught:
        carry(tmp_path / "missing", tmp_path / "new")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [".", "..", "a/..", "/"])
def test_a_place_without_a_name_of_its_own_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for make in (locked, replacing, growing):
        with pytest.raises(OutputError, match="choose another"), make(Path(name)):
            pytest.fail("work was done")
    assert tree(tmp_path) == {}


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = made(tmp_path, file="") / "file"
    check_file(file)
    for place in (Path(), Path(".."), tmp_path):
        with pytest.raises(
            OutputError, match=r"cannot be written \(it is a folder\); choose another file .*-o"
        ):
            check_file(place)
    with pytest.raises(OutputError, match="file: cannot be written"):
        check_file(file / "below")
    for folder in (file, file / "below" / "out"):
        with pytest.raises(
            OutputError, match=r"file: cannot be written \(it is a file, not a folder\); .* -o"
        ):
            check_folder(folder)
    for folder in (tmp_path, tmp_path / "a" / "b", Path("a"), Path()):
        check_folder(folder)
    with pytest.raises(OutputError, match="file: exists and is not a result"):
        check_free(file, lambda _: True)


# --------------------------------------------------------------------------------------- killed runs


def test_a_killed_run_leaves_hidden_things_that_the_next_one_clears_away(tmp_path):
    killed("with locked(Path(sys.argv[1])), growing(Path(sys.argv[1])) as work: kill()", tmp_path / "out")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2
    assert all(name.startswith(".out.") for name in names)
    with locked(tmp_path / "out"):
        assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("succeeds", [True, False])
def test_killed_between_two_renames_the_older_result_comes_back(tmp_path, succeeds):
    """Also when the next run fails."""
    out = made(tmp_path / "out", a="old")
    killed(
        """
rename = Path.rename
def kill_before_the_second(self, target):
    kill() if self.name == "new" else rename(self, target)
Path.rename = kill_before_the_second
with locked(Path(sys.argv[1])), growing(Path(sys.argv[1]), lambda _: True) as work:
    (work / "a").write_text("new")
""",
        out,
    )
    assert not out.exists()
    if succeeds:
        with locked(out), growing(out, lambda _: True) as work:
            assert tree(out) == {"a": "old"}
            made(work, a="newer")
    else:
        with pytest.raises(ValueError, match="wrong"), locked(out):
            raise ValueError("wrong")
    assert tree(tmp_path) == {"out": None, "out/a": "newer" if succeeds else "old"}


def test_an_older_result_that_was_replaced_does_not_come_back(tmp_path):
    """Its run was killed while it removed that; half of it may be gone."""
    out = made(tmp_path / "out", a="old", b="old")
    killed(
        """
import shutil
def rmtree(folder, **how):
    (Path(folder) / "gone" / "b").unlink()
    kill()
shutil.rmtree = rmtree
with locked(Path(sys.argv[1])), growing(Path(sys.argv[1]), lambda _: True) as work:
    (work / "a").write_text("new")
""",
        out,
    )
    assert tree(out) == {"a": "new"}
    (out / "a").unlink()
    out.rmdir()
    with locked(out):
        assert not out.exists()
    assert tree(tmp_path) == {}


def test_what_is_not_certainly_of_a_dead_run_is_left_alone(tmp_path):
    """Folders of a user, of other results, and of a run that is alive."""
    theirs = ["out.partial", ".out.mine.growing", LEFT, ".out.b.0123abcd.growing", ".ou.0123abcd.growing"]
    for name in theirs:
        made(tmp_path / name / "old", a="1")
    for name in theirs[-2:]:
        (tmp_path / name / working._ALIVE).touch()
    alive = made(tmp_path / ".out.89abcdef.growing" / "new", a="1").parent
    before = tree(tmp_path)
    with FileLock(alive / working._ALIVE):
        with locked(tmp_path / "out"), replacing(tmp_path / "out") as part:
            part.write_text("new")
        assert tree(tmp_path) == before | {"out": "new", f"{alive.name}/{working._ALIVE}": ""}
    with locked(tmp_path / "out"):
        assert not alive.exists()
    assert tree(tmp_path).keys() >= {f"{name}/old/a" for name in theirs}


# ------------------------------------------------------------------------------------ one run at a time


def test_who_comes_second_waits_and_says_for_whom(tmp_path, caplog):
    target, order = tmp_path / "new" / "out", []

    def second():
        with locked(target):
            order.append("second")

    with other_process(target) as process:
        waiting = threading.Thread(target=second)
        waiting.start()
        while not caplog.records and waiting.is_alive():
            time.sleep(0.01)
        assert not order
        order.append("first")
    waiting.join(120)
    assert order == ["first", "second"]
    who = f"process {process.pid} on {files.socket.gethostname()}"
    assert [record.getMessage() for record in caplog.records] == [
        f"{target}: {who} is working on it; waiting for its end"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["new"]  # made by the first, which was killed


def test_threads_exclude_each_other_too(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_POLL", 0.001)
    inside, most = [], []

    def work():
        for _ in range(20):
            with locked(tmp_path / "out"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert most == [1] * 80
    assert tree(tmp_path) == {}


def test_waiting_outlives_the_folder_of_a_run_that_fails(tmp_path):
    """The first run made the folder, and takes it away again when it fails."""
    target = tmp_path / "new" / "out"
    with other_process(target, seconds=0.5), locked(target), growing(target) as work:
        made(work, a="1")
    assert tree(tmp_path) == {"new": None, "new/out": None, "new/out/a": "1"}


def test_where_there_are_no_locks_it_works_and_says_so(tmp_path, monkeypatch, caplog):
    """As on a network file system without a lock service; what another run may be growing is left alone."""
    theirs = made(tmp_path / LEFT / "new", a="1").parent
    (theirs / working._ALIVE).touch()

    def acquire(self, **how):
        Path(self.lock_file).touch()
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with locked(tmp_path / "new" / "out"), growing(tmp_path / "new" / "out") as work:
        made(work, a="1")
    with locked(tmp_path / "out"):
        pass
    assert tree(theirs) == {"new": None, "new/a": "1", working._ALIVE: ""}
    assert tree(tmp_path / "new") == {"out": None, "out/a": "1"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [LEFT, "new"]
    assert caplog.messages[0] == (
        f"{tmp_path / 'new' / 'out'}: this file system has no locks; let one run at a time work on it"
    )


def test_places_of_similar_names_do_not_wait_for_each_other(tmp_path):
    with locked(tmp_path / "out"), locked(tmp_path / "out.svs"), locked(tmp_path / "out" / "a"):
        pass
    assert tree(tmp_path) == {}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with (
        pytest.raises(OutputError, match=r"out: cannot be written \(Permission denied\)"),
        locked(tmp_path / "out"),
    ):
        pytest.fail("work was done")


def test_who_does_not_want_to_wait_is_told_who_is_at_work(tmp_path):
    with other_process(tmp_path / "out") as other:
        with pytest.raises(BusyError, match=f"out: process {other.pid} on .* is working on it"):
            locked(tmp_path / "out", wait=False).__enter__()
        assert (tmp_path / ".out.lock").exists()
    with locked(tmp_path / "out", wait=False):
        pass
    assert tree(tmp_path) == {}


def test_a_signal_at_any_moment_leaves_nothing(tmp_path):
    """Also between the instructions that make something and note that it is to be removed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.signalled", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("system", "given", "folder"),
    [
        ("linux", {}, "home/.cache"),
        ("darwin", {}, "home/Library/Caches"),
        ("win32", {}, "home/AppData/Local"),
        ("win32", {"LOCALAPPDATA": "local"}, "local"),
        ("darwin", {"XDG_CACHE_HOME": "named"}, "named"),
    ],
)
def test_the_cache_of_the_user_is_where_each_system_has_it(monkeypatch, system, given, folder):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(files.sys, "platform", system)
    monkeypatch.setattr(Path, "home", lambda: Path("home"))
    assert files.user_cache("slides") == Path(folder, "wsi-saliency", "slides")
