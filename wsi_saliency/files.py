"""Results are made here, and only here: by one run at a time, under a hidden name first, whole or not at all.

While a run works on ``NAME``, two things lie beside it: ``.NAME.lock``, locked, with the run's process and
host in it, and a working folder (`wsi_saliency.working`). Both go when the run ends, however it ends. A run
that is killed leaves them; the next one on ``NAME`` sees that nobody holds their locks, clears them away, and
puts the older result back if the dead run was about to replace it. Only a working folder with a journal in it
stays, for a run that can go on with it.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
import socket
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import SoftFileLock

from wsi_saliency.errors import BusyError, NoRoomError, OutputError
from wsi_saliency.interruption import tidying
from wsi_saliency.working import (
    GONE,
    NEW,
    OLD,
    clear,
    hidden,
    new_lock,
    resumable,
    try_lock,
    working_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from filelock import FileLock

    Kind = Literal["folder", "file"]

log = logging.getLogger(__name__)

_POLL = 0.2  # seconds
_NO_ROOM = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "ENODEV", "ENOTCONN", "ESTALE")
    if hasattr(errno, name)
)


@contextmanager
def writing(path: Path, kind: Kind = "folder", option: str = "-o") -> Iterator[None]:
    """Turn the operating system's errors while ``path`` is written into one line.

    Parameters
    ----------
    path
        What is written.
    kind, option
        What the user may choose another of, and with which option.

    Raises
    ------
    OutputError
        For any ``OSError`` inside: no permission, no such folder; `NoRoomError` if nothing else can be
        written there either.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        failed = NoRoomError if error.errno in _NO_ROOM else OutputError
        raise failed(f"{path}: cannot be written ({reason}); choose another {kind} with {option}") from error


def check_folder(folder: Path, option: str = "-o") -> None:
    """Make sure that no file stands where a folder is wanted; ``option`` is that which names it.

    Raises
    ------
    OutputError
        If ``folder``, or one that it would lie in, is a file.
    """
    with writing(folder, option=option):
        nearest = next((place for place in (folder, *folder.parents) if place.exists()), None)
        if nearest and not nearest.is_dir():
            raise OutputError(
                f"{nearest}: cannot be written (it is a file, not a folder); choose another folder with "
                f"{option}"
            )


def check_file(file: Path) -> None:
    """Make sure that no folder stands where a file is wanted.

    Raises
    ------
    OutputError
        If ``file`` is a folder, or would lie in a file.
    """
    check_folder(file.parent)
    with writing(file, "file"):
        if file.is_dir():
            raise OutputError(f"{file}: cannot be written (it is a folder); choose another file with -o")


def check_free(folder: Path, may_replace: Callable[[Path], bool] | None = None) -> None:
    """Make sure that a result may take a place: nothing is there, an empty folder, or what may be replaced.

    Raises
    ------
    OutputError
        If something else is there.
    """
    with writing(folder):
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
        if not (folder.is_dir() and may_replace and may_replace(folder)):
            raise OutputError(
                f"{folder}: exists and is not a result of this program; choose another folder with -o"
            )


def user_cache(name: str) -> Path:
    """Return a folder of ours in the cache of the user, where each system has that."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        base = Path(given)
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return base / "wsi-saliency" / name


# ------------------------------------------------------------------------------------- one run at a time


@contextmanager
def locked(target: Path, kind: Kind = "folder", *, wait: bool = True) -> Iterator[None]:
    """Keep a result's place, a folder or a file, to one run at a time.

    Who comes second waits, and says for whom; or does not wait, and is told so. What killed runs have left of
    ``target`` is cleared away, and an older result that one of them was about to replace is put back. Folders
    above ``target`` are made; those still empty at the end are removed.

    Raises
    ------
    OutputError
        If there cannot be a lock beside ``target``; `BusyError` if another run has it and ``wait`` is False.
    """
    with ExitStack() as stack:
        with writing(target, kind):
            make_folders = stack.enter_context(folders_above(target))
            lock = new_lock(hidden(target, "lock"))
            stack.enter_context(tidying(lambda: _release(lock)))
            _acquire(lock, target, make_folders, wait=wait)
            clear(target)
        yield


def _acquire(lock: FileLock, target: Path, make_folders: Callable[[], None], *, wait: bool) -> None:
    """Take the lock when it is free, and write into it who has it."""
    waits = itertools.count()
    while True:
        try:
            taken = try_lock(lock)
        except FileNotFoundError:  # the folder went with the run that had made it, and failed
            make_folders()
            continue
        if taken is not False:
            break
        if not wait:
            raise BusyError(f"{target}: {_holder(lock)} is working on it")
        if next(waits) == 1:
            log.warning("%s: %s is working on it; waiting for its end", target, _holder(lock))
        time.sleep(_POLL)
    if not taken:
        log.warning("%s: this file system has no locks; let one run at a time work on it", target)
        with suppress(OSError):
            os.unlink(lock.lock_file)
    elif not isinstance(lock, SoftFileLock):  # which writes the same itself
        with suppress(OSError):
            Path(lock.lock_file).write_text(f"{os.getpid()}\n{socket.gethostname()}\n", encoding="utf-8")


def _holder(lock: FileLock) -> str:
    with suppress(OSError, ValueError):
        process, host = Path(lock.lock_file).read_text(encoding="utf-8").splitlines()[:2]
        return f"process {process} on {host}"
    return "another process"


def _release(lock: FileLock) -> None:
    """Remove the lock's file while it is ours: a lock on a file without a name counts for nobody."""
    if lock.is_locked:
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


# ------------------------------------------------------------------------------------- whole or not at all


@contextmanager
def growing(
    folder: Path, may_replace: Callable[[Path], bool] | None = None, *, resume: bool = False
) -> Iterator[Path]:
    """Yield a working folder that becomes ``folder`` when the block ends well, and is removed otherwise.

    Enter it inside of `locked`. Two renames put a new result in the place of an older one; a run that is
    killed between them leaves the older one where the next `locked` finds it. A block that fails leaves the
    working folder if it has written a journal (`wsi_saliency.working.journal_of`).

    Parameters
    ----------
    folder
        Where the result goes.
    may_replace
        Tells whether what stands there, a folder with something in it, may be replaced.
    resume
        Go on with the working folder and the journal that an earlier run has left; else they are removed.

    Raises
    ------
    OutputError
        If something stands there that may not be replaced, or nothing can be written.
    """
    with ExitStack() as stack:
        with writing(folder):
            check_free(folder, may_replace)
            stack.enter_context(folders_above(folder))
            left = resumable(folder, wanted=resume)
            working = stack.enter_context(working_folder(folder, left))
            (working / NEW).mkdir(exist_ok=left is not None)
        with _named(working / NEW, folder):
            yield working / NEW
        with writing(folder):
            check_free(folder, may_replace)
            _take_place(working, folder)


@contextmanager
def filling(folder: Path, last: str, others: Collection[str] = ()) -> Iterator[Path]:
    """Yield a working folder whose files move into ``folder`` when the block ends well, over older ones.

    For a folder that holds more than these files. Enter it inside of `locked` of ``folder / last``.

    Parameters
    ----------
    folder
        Where the files go.
    last
        The file that says that the others are there: an older one is removed first, the new one comes last.
    others
        Files of an older set that the new one may lack.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    with ExitStack() as stack:
        with writing(folder):
            working = stack.enter_context(working_folder(folder / last))
            (working / NEW).mkdir()
        with _named(working / NEW, folder):
            yield working / NEW
        with writing(folder):
            for name in (last, *others):
                (folder / name).unlink(missing_ok=True)
            for file in sorted((working / NEW).iterdir(), key=lambda file: (file.name == last, file)):
                os.replace(file, folder / file.name)


def carry(source: Path, target: Path) -> None:
    """Take a file or a folder of a finished result over into a new one, without a copy where links can be.

    Raises
    ------
    OutputError
        If it cannot be read or written.
    """
    with writing(target):
        if source.is_dir():
            shutil.copytree(source, target, copy_function=_link)
        else:
            _link(source, target)


def _link(source: str | Path, target: str | Path) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
    return str(target)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a name to write a file under; it takes the place of ``file`` when the block ends well.

    Raises
    ------
    OutputError
        For any ``OSError`` inside.
    """
    with writing(file, "file"):
        clear(file)
        with working_folder(file) as working, _named(working / file.name, file):
            yield working / file.name
            os.replace(working / file.name, file)


@contextmanager
def _named(work: Path, target: Path) -> Iterator[None]:
    """Let messages name the place that the user knows."""
    try:
        yield
    except OutputError as error:
        raise type(error)(str(error).replace(str(work), str(target))) from error


def _take_place(working: Path, folder: Path) -> None:
    """Put the new folder in the place of an older one, which comes back on failure."""
    new, old = working / NEW, working / OLD
    try:
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        if old.exists():
            old.rename(working / GONE if folder.exists() else folder)


@contextmanager
def folders_above(target: Path) -> Iterator[Callable[[], None]]:
    """Make the folders above ``target``; yields what makes them again. Empty ones are removed at the end."""
    made: set[Path] = set()

    def make() -> None:
        made.update(folder for folder in target.parents if not folder.exists())
        target.parent.mkdir(parents=True, exist_ok=True)

    def tidy_up() -> None:
        for folder in sorted(made, key=lambda folder: len(folder.parts), reverse=True):
            with suppress(OSError):  # it is not empty
                folder.rmdir()

    with tidying(tidy_up):
        make()
        yield make
