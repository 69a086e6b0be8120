"""Slides from URLs on this machine's disk: fetched once, shared by all processes, the least used go first.

In the cache's folder each slide has a folder of its own, named after its URL, sizes and versions, so that one
that has changed is fetched anew. It is there when all of it is there: until then it grows in a working folder
(`wsi_saliency.working`). Who reads a slide holds a lock in its folder ``uses``; the lock of a process that
has died is free. What changes the cache happens under one lock, and is short; downloads are not under it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from wsi_saliency.errors import NoRoomForSlideError, SlideError
from wsi_saliency.files import user_cache
from wsi_saliency.interruption import reraise_interruption, tidying, undisturbed
from wsi_saliency.messages import bytes_in_words
from wsi_saliency.settings import CacheSettings
from wsi_saliency.slides.slide import Source
from wsi_saliency.slides.store import facts_of, fetch, parts_of
from wsi_saliency.urls import shown, unsigned
from wsi_saliency.working import clear, new_lock, result_of, try_lock, working_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from upath import UPath

    from wsi_saliency.slides.store import Part
    from wsi_saliency.slides.whole import Watch

log = logging.getLogger(__name__)

_LOCK, _RECORD, _WANTED = ".lock", "slide.json", "wanted"
_FILES, _USES, _GONE = "files", "uses", ".gone"
_POLL = 0.2  # seconds
_OPTION = "--slide-cache names another folder"


@dataclass(frozen=True)
class _Entry:
    """A slide that is there."""

    folder: Path
    size: int
    kept: bool  # until others need the room; else until it is closed
    last: float

    @classmethod
    def read(cls, folder: Path) -> _Entry | None:
        record = folder / _RECORD
        try:
            facts = json.loads(record.read_text(encoding="utf-8"))
            return cls(folder, int(facts["bytes"]), bool(facts["kept"]), record.stat().st_mtime)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def users(self) -> list[str]:
        """Return the processes that read it; those that have died are forgotten."""
        return [lock.name.partition("-")[0] for lock in sorted(self.folder.glob(f"{_USES}/*")) if _held(lock)]


class _FolderError(SlideError):
    """The cache's folder cannot be read or written."""


class _BusyError(Exception):
    """There will be room, or the slide, when another process is done."""


class SlideCache:
    """A folder with slides from URLs.

    Parameters
    ----------
    folder
        Where they are.
    most
        Bytes that they take at most; 0: each slide goes when nobody reads it any more.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self._most = folder, most

    @classmethod
    def of(cls, settings: CacheSettings | None) -> SlideCache:
        """Return the cache that settings name, or the user's."""
        settings = settings or CacheSettings()
        return cls(settings.slide_cache or user_cache("slides"), settings.cache_bytes)

    def source(self, place: UPath, watch: Watch | None = None) -> Source:
        """Bring a slide here, unless it is here; it stays until its source is released.

        Another process that fetches the same slide is waited for. ``watch`` shows how many bytes have come.

        Raises
        ------
        SlideError
            If the slide cannot be reached, is larger than the cache or the disk, or cannot be written.
        """
        parts = parts_of(place)
        folder, warned = self.folder / _key(place, parts), False
        while True:
            try:
                if found := self._used(place, folder, parts) or self._fetched(place, folder, parts, watch):
                    return found
                continue
            except _FolderError as error:
                raise SlideError(f"{shown(place)}: {error}") from error
            except _BusyError as busy:
                if not warned:
                    log.warning("%s: %s; waiting", shown(place), busy)
                warned = True
            time.sleep(_POLL)
            reraise_interruption()

    def has(self, place: UPath, parts: Sequence[Part]) -> bool:
        """Whether a slide is here as the store has it now."""
        return _Entry.read(self.folder / _key(place, parts)) is not None

    def tidy(self) -> None:
        """Remove what dead processes have left unfinished."""
        if self.folder.is_dir():
            with suppress(SlideError), self._locked():
                self._clear()

    def _used(self, place: UPath, folder: Path, parts: Sequence[Part]) -> Source | None:
        """Return a slide that is here."""
        if _Entry.read(folder) is None:
            return None
        with self._locked():
            if _Entry.read(folder) is None:  # it has just gone
                return None
            if not all(_is_whole(_file_of(folder / _FILES, part), part) for part in parts):
                _remove(folder)  # others tidy up in caches, too
                return None
            return self._source(place, folder, parts)

    def _fetched(
        self, place: UPath, folder: Path, parts: Sequence[Part], watch: Watch | None
    ) -> Source | None:
        """Fetch a slide; None if another process was quicker."""
        size = sum(part.facts.size or 0 for part in parts)
        with ExitStack() as stack:
            with self._locked():
                self._clear()
                if _Entry.read(folder):
                    return None
                if any(result_of(other) == folder.name for other in self.folder.iterdir()):
                    raise _BusyError("another process is fetching it")
                self._make_room(place, size)
                work = stack.enter_context(working_folder(folder))
                (work / _WANTED).write_text(str(size), encoding="utf-8")
            got = self._download(place, parts, work / _FILES, watch)
            if facts_of(place) != parts[0].facts:
                raise SlideError(f"{shown(place)}: it has changed while it was fetched; run it again")
            with self._locked():
                new = work / "new"
                self._write(new, work / _FILES, place, got)
                os.replace(new, folder)
                return self._source(place, folder, parts)

    def _download(self, place: UPath, parts: Sequence[Part], to: Path, watch: Watch | None) -> int:
        """Write the files of a slide; return how many bytes they have."""
        done = 0
        with ExitStack() as stack:
            known = sum(part.facts.size or 0 for part in parts)
            advance = stack.enter_context(watch(known)) if watch else None
            for part in parts:
                target = _file_of(to, part)
                with self._storing():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as file:
                        for block in fetch(place, part):
                            file.write(block)
                            done += len(block)
                            if advance:
                                advance(len(block))
        return done

    def _write(self, new: Path, files: Path, place: UPath, size: int) -> None:
        """Put an entry together, its record last."""
        (new / _USES).mkdir(parents=True)
        os.replace(files, new / _FILES)
        facts = {"url": shown(place), "bytes": size, "kept": self._most > 0}
        (new / _RECORD).write_text(json.dumps(facts) + "\n", encoding="utf-8")

    def _source(self, place: UPath, folder: Path, parts: Sequence[Part]) -> Source:
        """Hold a slide."""
        lock = FileLock(folder / _USES / f"{os.getpid()}-{token_hex(4)}", thread_local=False)
        try_lock(lock)
        os.utime(folder / _RECORD)
        file = _file_of(folder / _FILES, parts[0])
        return Source(place, file, parts[0].facts.version, partial(self._release, folder, lock))

    def _release(self, folder: Path, lock: FileLock) -> None:
        """Let go of a slide."""
        with suppress(OSError, SlideError), self._locked():
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)
            entry = _Entry.read(folder)
            if entry and not entry.kept and self._most == 0 and not entry.users():
                _remove(folder)
            elif entry:
                os.utime(folder / _RECORD)

    # ------------------------------------------------------------------------------------------- room

    def _make_room(self, place: UPath, size: int) -> None:
        """Remove slides that nobody reads until a new one fits."""
        words = f"{shown(place)}: the slide has {bytes_in_words(size)}"
        if 0 < self._most < size:
            raise SlideError(
                f"{words}, and the cache holds {bytes_in_words(self._most)}; --slide-cache-size allows more"
            )
        entries = sorted(self._entries(), key=lambda entry: (entry.kept, entry.last))
        users = {entry.folder: entry.users() for entry in entries}
        growing = sum(self._reserved())
        for entry in entries:
            fits = not self._most or self._held(growing) + size <= self._most
            needed = not (fits and self._free() >= size) if entry.kept else True
            if needed and not users[entry.folder]:
                _remove(entry.folder)
        others = {user for names in users.values() for user in names} - {str(os.getpid())}
        if self._most and self._held(growing) + size > self._most:
            if others or growing:
                raise _BusyError("the cache is full of slides that are in use (--slide-cache-size)")
            raise NoRoomForSlideError(
                f"{words}, and the others in use leave no room in the cache; --slide-cache-size allows more"
            )
        if self._free() < size:
            raise SlideError(
                f"{words}, and {self.folder} has room for {bytes_in_words(self._free())}; {_OPTION}"
            )

    def _held(self, growing: int) -> int:
        return growing + sum(entry.size for entry in self._entries())

    def _free(self) -> int:
        with self._storing():
            return shutil.disk_usage(self.folder).free

    def _entries(self) -> Iterator[_Entry]:
        return (entry for folder in self.folder.iterdir() if (entry := _Entry.read(folder)))

    def _reserved(self) -> Iterator[int]:
        """Yield the sizes of slides that are being fetched."""
        for folder in self.folder.iterdir():
            if result_of(folder) is not None:
                with suppress(OSError, ValueError):
                    yield int((folder / _WANTED).read_text(encoding="utf-8"))

    def _clear(self) -> None:
        """Remove what dead processes have left."""
        with self._storing():
            for folder in list(self.folder.iterdir()):
                if name := result_of(folder):
                    clear(self.folder / name)
                elif folder.name.endswith(_GONE):
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep the cache to one process for a moment."""
        with self._storing():
            if not self.folder.is_dir():  # slides are of people: nobody else's business
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = new_lock(self.folder / _LOCK)
        with tidying(partial(lock.release, force=True)):
            while self._try(lock) is False:
                time.sleep(0.05)
                reraise_interruption()
            with self._storing():
                yield

    def _try(self, lock: FileLock) -> bool | None:
        with self._storing():
            return try_lock(lock)

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Turn the operating system's errors in the cache into one line."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise _FolderError(f"slides cannot be kept in {self.folder} ({reason}); {_OPTION}") from error


def _key(place: UPath, parts: Sequence[Part]) -> str:
    """Name an entry: after the URL without a signature, and all that tells one version from another."""
    facts: list[Any] = [[str(part.name), part.facts.size, part.facts.version] for part in parts]
    return hashlib.sha256(json.dumps([unsigned(place), facts]).encode()).hexdigest()[:32]


def _file_of(folder: Path, part: Part) -> Path:
    """Return where a file of a slide goes."""
    name = str(part.name)
    if sys.platform == "win32":
        name = name.translate(dict.fromkeys(map(ord, '<>:"|?*'), "_"))
    return folder / name


def _is_whole(file: Path, part: Part) -> bool:
    return file.is_file() and part.facts.size in (None, file.stat().st_size)


def _held(file: Path) -> bool:
    """Whether the process that has locked a file is alive; if not, the file goes."""
    try:
        lock = new_lock(file)
        if try_lock(lock) is not True:
            return True
        lock.release()
        file.unlink(missing_ok=True)
    except OSError:
        return True
    return False


def _remove(folder: Path) -> None:
    """Remove an entry, which is no more there from the first moment on."""
    with undisturbed(), suppress(OSError):
        gone = folder.with_name(f".{folder.name}.{token_hex(4)}{_GONE}")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
