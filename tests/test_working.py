"""Working folders that outlive their run, for there is a journal in them; with processes that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from filelock import FileLock

from wsi_saliency import working
from wsi_saliency.files import growing, locked
from wsi_saliency.working import half_done, journal_of, persist, start_anew


def killed(out, code="kill()"):
    """Let another process write into a working folder and its journal, and kill itself."""
    code = f"""
import os, signal, sys
from pathlib import Path
from wsi_saliency.files import growing, locked
from wsi_saliency.working import journal_of
def kill(): os.kill(os.getpid(), signal.SIGKILL)
out = Path(sys.argv[1])
with locked(out), growing(out, lambda _: True, resume=True) as work:
    (work / "a").write_text("half")
    journal_of(work).write_text("saved")
    {code}
"""
    done = subprocess.run([sys.executable, "-c", code, str(out)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def broken(out, error, *, journal=True, resume=True):
    with growing(out, resume=resume) as work:
        (work / "a").write_text("half")
        if journal:
            journal_of(work).write_text("saved")
        raise error


def test_the_next_run_goes_on_where_a_killed_one_has_ended(tmp_path):
    killed(tmp_path / "out")
    with locked(tmp_path / "out"):
        pass  # one that only looks leaves it
    with locked(tmp_path / "out"), growing(tmp_path / "out", resume=True) as work:
        assert journal_of(work).read_text() == "saved"
        assert (work / "a").read_text() == "half"
        (work / "a").write_text("whole")
    assert names_in(tmp_path) == ["out"]
    assert names_in(tmp_path / "out") == ["a"]


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_a_block_that_fails_leaves_a_working_folder_if_there_is_a_journal(tmp_path, error):
    with pytest.raises(type(error)), locked(tmp_path / "new" / "out"):
        broken(tmp_path / "new" / "out", error, journal=False)
    assert names_in(tmp_path) == []
    for _ in range(2):
        with pytest.raises(type(error)), locked(tmp_path / "new" / "out"):
            broken(tmp_path / "new" / "out", error)
        (left,) = names_in(tmp_path / "new")
        assert left.endswith(".growing")
    with locked(tmp_path / "new" / "out"), growing(tmp_path / "new" / "out", resume=True) as work:
        assert (work / "a").read_text() == "half"
        start_anew(work)
        assert (names_in(work), journal_of(work).exists()) == ([], False)
    assert names_in(tmp_path / "new") == ["out"]


def test_who_does_not_want_to_go_on_starts_anew(tmp_path):
    killed(tmp_path / "out")
    with locked(tmp_path / "out"), growing(tmp_path / "out") as work:
        assert names_in(work) == []
        assert not journal_of(work).exists()
        assert len([name for name in names_in(tmp_path) if name.endswith(".growing")]) == 1
    assert names_in(tmp_path) == ["out"]


def test_of_several_the_latest_is_taken_and_the_others_go(tmp_path):
    folders = [tmp_path / f".out.0123abc{i}.growing" for i in range(3)]
    for i, folder in enumerate(folders):
        (folder / "new").mkdir(parents=True)
        (folder / working._ALIVE).touch()
        (folder / working._JOURNAL).write_text(str(i))
        os.utime(folder / working._JOURNAL, (0, (1, 3, 2)[i]))
    with locked(tmp_path / "out"), growing(tmp_path / "out", resume=True) as work:
        assert work.parent == folders[1]
        assert names_in(tmp_path) == [folders[1].name, ".out.lock"]
    assert names_in(tmp_path) == ["out"]


def test_what_a_live_run_grows_is_not_taken(tmp_path):
    killed(tmp_path / "out")
    (left,) = tmp_path.glob("*.growing")
    with FileLock(left / working._ALIVE), growing(tmp_path / "out", resume=True) as work:
        assert work.parent != left
    assert left.is_dir()


def test_the_older_result_comes_back_and_the_new_one_can_go_on(tmp_path):
    """Killed between the two renames that put the new result in the place of the older one."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    killed(tmp_path / "out", 'out.rename(work.parent / "old"); kill()')
    assert not (tmp_path / "out").exists()
    with locked(tmp_path / "out"):
        assert (tmp_path / "out" / "a").read_text() == "old"
        with growing(tmp_path / "out", lambda _: True, resume=True) as work:
            assert (work / "a").read_text() == "half"
    assert (tmp_path / "out" / "a").read_text() == "half"
    assert names_in(tmp_path) == ["out"]


def test_killed_when_the_new_result_is_in_its_place_nothing_is_left(tmp_path):
    killed(tmp_path / "out", "work.rename(out); kill()")
    with locked(tmp_path / "out"):
        pass
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("link", ["wsi-saliency.journal", "new/tiles.csv", "new/store", "new"])
def test_no_link_leads_elsewhere(tmp_path, link):
    """Somebody else may have put the folder there; what the link names is neither changed nor removed."""
    killed(tmp_path / "out")
    (left,) = tmp_path.glob("*.growing")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "tiles.csv").write_text("mine")
    if link == "new":
        (left / "new" / "a").unlink()
        (left / "new").rmdir()
    (left / link).unlink(missing_ok=True)
    (left / link).symlink_to(theirs if link in ("new", "new/store") else theirs / "tiles.csv")
    with locked(tmp_path / "out"), growing(tmp_path / "out", resume=True) as work:
        assert names_in(work) == []
    assert (theirs / "tiles.csv").read_text() == "mine"
    assert names_in(tmp_path) == ["out", "theirs"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have owners on POSIX only")
def test_what_somebody_else_has_begun_is_not_gone_on_with(tmp_path, monkeypatch):
    killed(tmp_path / "out")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with growing(tmp_path / "out", resume=True) as work:
        assert names_in(work) == []


def test_results_that_can_be_gone_on_with_are_counted(tmp_path):
    killed(tmp_path / "a" / "out")
    killed(tmp_path / "b")
    (tmp_path / ".c.0123abcd.growing" / "new").mkdir(parents=True)  # without a journal
    targets = [tmp_path / name for name in ("a/out", "b", "c", "d", "missing/e")]
    assert half_done(targets) == 2
    assert half_done(targets[2:]) == 0


def test_what_has_changed_is_put_on_the_disk_and_nothing_else(tmp_path, monkeypatch):
    """Two minutes before the time is long ago; half a minute may be the file server's clock."""
    (tmp_path / "below").mkdir()
    ages = {"old": -120, "below/recent": -30, "below/new": 5}
    for name, age in ages.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 1e9 + age))
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))
    persist(tmp_path, 1e9)
    assert sorted(synced) == sorted((tmp_path / name).stat().st_ino for name in list(ages)[1:])
