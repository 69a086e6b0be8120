"""Files below a URL: read, written and removed many at a time, and tried again where the line fails.

Nothing here knows what the files are. A method is done when all of its files are.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import fsspec
from fsspec.config import conf

from wsi_saliency.errors import OutputError
from wsi_saliency.interruption import is_interrupted
from wsi_saliency.messages import one_line
from wsi_saliency.urls import is_final, reaching, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from upath import UPath

_AT_ONCE = 64  # files on their way
_MORE_LINES = {"s3": {"config_kwargs": {"max_pool_connections": _AT_ONCE}}}
"""Options of stores that otherwise have fewer lines open: S3 has ten."""
_TRIES = 4
_PAUSE = 0.5  # seconds before the second try, and twice as long before each further one
_FINAL = (FileExistsError, NotImplementedError, ValueError, TypeError)
_SOON = 1.0  # seconds that a store may take to answer when the run is to end
_silent = threading.Event()
_T = TypeVar("_T")


def _nobody(count: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Remote:
    """The files below a URL, by their names relative to it, with slashes between the parts.

    Parameters
    ----------
    place
        The URL.
    """

    place: UPath

    def __str__(self) -> str:
        return shown(self.place).rstrip("/")

    @cached_property
    def _store(self) -> Any:
        """Return the store, the same for all threads."""
        scheme, options = self.place.protocol, self.place.storage_options
        more = _MORE_LINES.get(scheme, {})
        if not more or set(more) & {*options, *conf.get(scheme, {})}:
            return self.place.fs
        return fsspec.filesystem(scheme, **options, **more)

    def _at(self, name: str) -> str:
        """Return what the store calls a file; names are joined as they are, whatever signs are in them."""
        root = self.place.path.rstrip("/")
        return f"{root}/{name}" if name else root

    def _reaching(self, what: str, names: Iterable[str]) -> AbstractContextManager[None]:
        name = next(iter(names), "")
        return reaching(f"{self}/{name}" if name else self, OutputError, what)

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        """Read small files; None for each that is not there.

        Raises
        ------
        OutputError
            If one is there, or may be, and cannot be read.
        """
        paths = [self._at(name) for name in names]

        def read() -> list[bytes | None]:
            # S3 is asked once for a file of which all from 0 on is wanted, and twice for a whole one; but an
            # empty file has no 0.
            found = self._store.cat_ranges(paths, [0] * len(paths), [None] * len(paths), on_error="return")
            return [
                self._whole(path)
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError)
                else _known(content)
                for path, content in zip(paths, found, strict=True)
            ]

        with self._reaching("cannot be read", names):
            return _tried(read) if names else []

    def _whole(self, path: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return bytes(self._store.cat_file(path))
        return None

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes in bytes of all files of a folder, by their names relative to it.

        Raises
        ------
        OutputError
            If they cannot be listed.
        """
        root = self._at(folder)

        def found() -> dict[str, Any]:
            self._store.invalidate_cache()  # what others have written meanwhile counts
            with suppress(FileNotFoundError):
                return dict(self._store.find(root, detail=True))
            return {}

        with self._reaching("cannot be read", [folder]):
            return {
                path[len(root) + 1 :]: facts["size"]
                for path, facts in _tried(found).items()
                if path.startswith(f"{root}/") and facts["type"] == "file" and not path.endswith("/")
            }

    def put(self, files: Mapping[str, Path], done: Callable[[int], object] = _nobody) -> None:
        """Write files from this machine over those of the same names; ``done`` is told how many more are.

        Raises
        ------
        OutputError
            If one cannot be written; others may be.
        """
        with self._reaching("cannot be written", files):
            for some in _parts(list(files)):
                here, there = [str(files[name]) for name in some], [self._at(name) for name in some]
                _tried(partial(self._store.put, here, there))
                done(len(some))

    def fetch(self, files: Mapping[str, Path], done: Callable[[int], object] = _nobody) -> None:
        """Copy files to this machine, into folders that are made; ``done`` is told how many more are.

        Raises
        ------
        OutputError
            If one cannot be read, or not be written here.
        """
        with self._reaching("cannot be read", files):
            for some in _parts(list(files)):
                for name in some:
                    files[name].parent.mkdir(parents=True, exist_ok=True)
                here, there = [str(files[name]) for name in some], [self._at(name) for name in some]
                _tried(partial(self._store.get, there, here))
                done(len(some))

    def write(self, name: str, content: bytes, *, tries: int = _TRIES) -> None:
        """Write a small file.

        Raises
        ------
        OutputError
            If it cannot be.
        """
        with self._reaching("cannot be written", [name]):
            _tried(partial(self._store.pipe_file, self._at(name), content), tries)

    def create(self, name: str, content: bytes) -> bool:
        """Write a small file if there is none of that name, and say whether that was so.

        Where the store or its package knows no such condition, two that do it at once may both be told yes.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        if self.read([name]) != [None]:  # older packages take the condition and do not heed it
            return False
        try:
            self._store.pipe_file(self._at(name), content, mode="create")
        except FileExistsError:
            return False
        except Exception:  # perhaps a store that cannot do so
            self.write(name, content)
        return True

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; one that is not there does no harm.

        Raises
        ------
        OutputError
            If one cannot be removed.
        """
        names = list(names)
        with self._reaching("cannot be removed", names):
            for some in _parts(names):
                _tried(partial(_remove, self._store, [self._at(name) for name in some]))


def _known(content: bytes | Exception) -> bytes | None:
    return None if isinstance(content, Exception) else bytes(content)


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[i : i + _AT_ONCE] for i in range(0, len(names), _AT_ONCE))


def _tried(work: Callable[[], _T], tries: int = _TRIES) -> _T:
    """Do something, and again after a pause if it fails in a way that may pass.

    When the run is asked to end, it is done once, and soon.
    """
    if is_interrupted():
        return _soon(work)
    _silent.clear()
    for i in range(tries - 1):
        try:
            return work()
        except Exception as error:
            if is_final(error) or isinstance(error, _FINAL):
                raise
            time.sleep(_PAUSE * 2**i)
    return work()


def _soon(work: Callable[[], _T]) -> _T:
    """Do something, if the store answers soon; one that once did not is not asked again.

    Raises
    ------
    OutputError
        If it fails, in whatever way: here nobody takes an error for the signal that it may be.
    """
    if _silent.is_set():
        raise OutputError("the store does not answer, and the run is to end")
    doing: Future[_T] = Future()

    def do() -> None:
        try:
            doing.set_result(work())
        except BaseException as error:
            doing.set_exception(error)

    threading.Thread(target=do, name="soon", daemon=True).start()
    try:
        return doing.result(_SOON)
    except Exception as error:
        if not doing.done():
            _silent.set()
        raise OutputError(f"failed while the run was to end ({one_line(error)})") from error


def _remove(store: Any, paths: Sequence[str]) -> None:
    if store.async_impl:
        from fsspec.asyn import sync

        sync(store.loop, _all, [store._rm_file(path) for path in paths])
        return
    for path in paths:
        with suppress(FileNotFoundError):
            store.rm_file(path)


async def _all(steps: Sequence[Coroutine[Any, Any, object]]) -> None:
    for failed in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(failed, Exception) and not isinstance(failed, FileNotFoundError):
            raise failed
