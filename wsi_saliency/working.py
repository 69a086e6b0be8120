"""Working folders: where a result grows beside its place, and what becomes of those of runs that have died.

The one for ``NAME`` is called ``.NAME.xxxxxxxx.growing``. In it are a file that is locked while its run is
alive, the new result, for a moment the older one, and perhaps a journal: what another run needs to go on when
this one has died. `wsi_saliency.files` makes results in them.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from contextlib import contextmanager, suppress
from secrets import token_hex
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from wsi_saliency.errors import OutputError
from wsi_saliency.interruption import tidying, undisturbed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_GROWING = re.compile(r"\.(.+)\.[0-9a-f]{8}\.growing", re.DOTALL)  # the result that grows there
_ALIVE = "wsi-saliency.lock"  # in a working folder: says that it is ours; locked while its run is alive
_JOURNAL = "wsi-saliency.journal"
NEW, OLD, GONE = "new", "old", "gone"
"""In a working folder: the new result, the older one that it replaces, and that one before it is removed."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})  # some network file systems


def is_working_folder(path: Path) -> bool:
    """Whether a folder is one in which a result grows, or was growing when its run was killed."""
    return result_of(path) is not None


def result_of(path: Path) -> str | None:
    """Return the name of the result that grows in a working folder; None of any other folder."""
    found = _GROWING.fullmatch(path.name)
    return found[1] if found else None


def hidden(target: Path, ending: str) -> Path:
    """Name something beside a result that belongs to it.

    Raises
    ------
    OutputError
        If the result has no name.
    """
    if target.name in ("", ".."):
        raise OutputError(f"{target}: is no name of its own for a result; choose another with -o")
    return target.with_name(f".{target.name}.{ending}")


def new_lock(path: Path) -> FileLock:
    """Return a lock of a file, not yet taken."""
    with undisturbed():  # the library has locks of its own, which other threads would wait for
        return FileLock(path)


def try_lock(lock: FileLock) -> bool | None:
    """Take a lock if nobody has it; None where there are no locks, as on some network file systems."""
    try:
        with undisturbed():  # else its file could be there, and the lock not know that it is taken
            lock.acquire(blocking=False)
    except Timeout:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


@contextmanager
def working_folder(target: Path, left: Path | None = None) -> Iterator[Path]:
    """Make a folder for ``target`` that nobody else uses, or take over one that a dead run has ``left``.

    It is gone at the end, unless a journal is in it, and a result that has not taken its place.
    """
    folder = left or hidden(target, f"{token_hex(4)}.growing")
    lock = new_lock(folder / _ALIVE)

    def tidy_up() -> None:
        lock.release()
        if not _is_begun(folder):
            _remove(folder)

    with tidying(tidy_up):
        folder.mkdir(exist_ok=left is not None)
        try_lock(lock)
        yield folder


def clear(target: Path) -> None:
    """Remove the working folders of dead runs on ``target``, but for those in which another can go on.

    What one of them had just moved away is put back.
    """
    for folder in _dead(target):
        with suppress(FileNotFoundError):  # its run has just ended
            if (folder / OLD).exists() and not target.exists():
                (folder / OLD).rename(target)
            if not _is_resumable(folder):
                _remove(folder)


def _dead(target: Path) -> Iterator[Path]:
    """Yield the working folders for ``target`` whose runs have died, each locked until the next."""
    for folder in target.parent.iterdir():
        of = _GROWING.fullmatch(folder.name)
        if of is None or of[1] != target.name or not (folder / _ALIVE).is_file():
            continue  # not certainly ours
        lock = new_lock(folder / _ALIVE)
        try:
            if try_lock(lock):
                yield folder
        except FileNotFoundError:
            continue  # its run has just ended
        finally:
            lock.release()


# -------------------------------------------------------------------------------------------- going on


def journal_of(work: Path) -> Path:
    """Return where the run says how far the result in ``work`` is; with it, the folder outlives the run."""
    return work.parent / _JOURNAL


def start_anew(work: Path) -> None:
    """Remove the journal, and all that has grown in ``work``."""
    journal_of(work).unlink(missing_ok=True)
    shutil.rmtree(work)
    work.mkdir()


def persist(folder: Path, since: float) -> None:
    """Let all files that have changed since a time survive a power cut, as the journal that is written next.

    Parameters
    ----------
    folder
        Where they lie, however deep.
    since
        Seconds since the epoch; a minute more is taken, because file servers have clocks of their own.
    """
    for inside, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(inside, name)
            if os.stat(path).st_mtime >= since - 60:
                number = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
                try:
                    os.fsync(number)
                finally:
                    os.close(number)


def resumable(target: Path, *, wanted: bool) -> Path | None:
    """Return the working folder that a dead run on ``target`` has left with a journal, if it is wanted.

    All others are removed. Call it while the place of ``target`` is locked.
    """
    dead = list(_dead(target))
    found = [folder for folder in dead if wanted and _is_resumable(folder)]
    latest = max(found, key=lambda folder: (folder / _JOURNAL).stat().st_mtime_ns, default=None)
    for folder in dead:
        if folder != latest:
            _remove(folder)
    return latest


def half_done(targets: Iterable[Path]) -> int:
    """Count the results that another run can go on with."""
    names: dict[Path, set[str]] = {}
    for target in targets:
        names.setdefault(target.parent, set()).add(target.name)
    return sum(
        (of := _GROWING.fullmatch(folder.name)) is not None and of[1] in wanted and _is_resumable(folder)
        for parent, wanted in names.items()
        if parent.is_dir()
        for folder in parent.iterdir()
    )


def _is_resumable(folder: Path) -> bool:
    """Whether a journal and a growing result are there, both of this user and without links to elsewhere.

    A link that somebody else has put there would let us write where it leads.
    """
    if not _is_begun(folder):
        return False
    journal, new = folder / _JOURNAL, folder / NEW
    if hasattr(os, "geteuid") and {path.lstat().st_uid for path in (folder, journal, new)} != {os.geteuid()}:
        return False
    return not any(
        os.path.islink(os.path.join(inside, name))
        for inside, folders, files in os.walk(folder)
        for name in (*folders, *files)
    )


def _is_begun(folder: Path) -> bool:
    return (folder / _JOURNAL).is_file() and (folder / NEW).is_dir()


def _remove(folder: Path) -> None:
    with undisturbed():
        shutil.rmtree(folder, ignore_errors=True)
