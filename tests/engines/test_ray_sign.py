"""The sign of a run in its folder: there while the run is, whatever ends it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.paths import ROOT
from wsi_saliency.engines import ray_sign
from wsi_saliency.engines.ray_sign import signed
from wsi_saliency.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path

    from filelock import FileLock

KILLED = """
import os, signal, sys
from pathlib import Path
from wsi_saliency.engines.ray_sign import signed
with signed(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_a_run(out: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(out)], cwd=ROOT, check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL


def test_a_sign_and_the_folders_made_for_it_go_with_the_run(tmp_path: Path) -> None:
    def interrupted() -> None:
        with signed(tmp_path / "new" / "out") as sign:
            assert sign.is_file()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_the_next_run_removes_the_sign_of_one_that_was_killed(tmp_path: Path) -> None:
    kill_a_run(tmp_path)
    kill_a_run(tmp_path)  # the second removes that of the first
    (left,) = tmp_path.iterdir()
    others = [tmp_path / name for name in (".mine.ray", "0123456789abcdef.ray", ".0123456789abcdef.ray.txt")]
    for other in others:
        other.touch()
    with signed(tmp_path) as sign:
        assert sign != left
        assert set(tmp_path.iterdir()) == {sign, *others}
    assert set(tmp_path.iterdir()) == set(others)


def test_the_sign_of_a_run_that_is_alive_stays(tmp_path: Path) -> None:
    with signed(tmp_path) as first, signed(tmp_path) as second, signed(tmp_path) as third:
        assert set(tmp_path.iterdir()) == {first, second, third}


def test_without_locks_no_sign_of_others_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".0123456789abcdef.ray").touch()
    monkeypatch.setattr(ray_sign, "try_lock", lambda lock: None)
    with signed(tmp_path) as sign:
        assert sign.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".0123456789abcdef.ray"]


def test_a_sign_that_nobody_may_touch_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign, taken = tmp_path / ".0123456789abcdef.ray", ray_sign.try_lock
    foreign.touch()

    def refused(lock: FileLock) -> bool | None:
        if lock.lock_file == str(foreign):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return taken(lock)

    monkeypatch.setattr(ray_sign, "try_lock", refused)
    with signed(tmp_path) as sign:
        assert set(tmp_path.iterdir()) == {sign, foreign}


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"), signed(tmp_path / "file"):
        pass
