"""What a store says of a slide at a URL: the files that belong to it, how large they are, and their bytes."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from wsi_saliency.errors import SlideError
from wsi_saliency.interruption import reraise_interruption
from wsi_saliency.slides.readers.dicom import DICOM_SUFFIXES, HEAD, series_in
from wsi_saliency.urls import is_final, name_of, reaching, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from upath import UPath

    from wsi_saliency.urls import Location

log = logging.getLogger(__name__)

WAITS = (1.0, 4.0, 12.0)
"""Seconds before the second try, the third and the last."""

_BLOCK = 16 * 2**20  # bytes asked for at a time: what is lost when the network fails
_ANSWER = 90.0  # seconds
_SHORT = 2**14  # bytes
_INDEX = 2**20  # bytes of an index of Hamamatsu's; they have a few kB
_VERSIONS = ("etag", "content-md5", "md5hash", "lastmodified", "last-modified", "last_modified", "updated")
_VERSIONS_OF_OTHERS = ("mtime", "created")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Facts:
    """What is known of a file without reading it.

    Parameters
    ----------
    size
        Bytes; None where a server does not say.
    version
        What the store calls these very bytes: an ETag, or the time of their last change; None if it does not
        say, and of files on a disk.
    """

    size: int | None
    version: str | None = None

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Facts:
        """Take them from what fsspec says of a file."""
        known = {key.lower(): value for key, value in info.items() if value not in (None, "")}
        words = (known[name] for name in (*_VERSIONS, *_VERSIONS_OF_OTHERS) if name in known)
        version = next((str(word).removeprefix("W/").strip('"') for word in words), None)
        size = known.get("size")
        return cls(size if isinstance(size, int) else None, version)


@dataclass(frozen=True)
class Part:
    """A file of a slide: where the store has it, its name beside the others, and its facts."""

    path: str
    name: PurePosixPath
    facts: Facts


def facts_of(place: Location) -> Facts:
    """Ask for the facts of a slide, a file or what is at a URL.

    Raises
    ------
    SlideError
        If there is nothing, or it cannot be reached.
    """
    if isinstance(place, Path):
        with reaching(place, SlideError, "cannot be read"):
            return Facts(place.stat().st_size)
    with reaching(place, SlideError, "the slide cannot be read"):
        return _facts_at(place)


def _facts_at(place: UPath) -> Facts:
    with suppress(Exception):  # a store may not remember anything
        place.fs.invalidate_cache(place.path)
    info = tried(lambda: asked(place, "info", place.path))
    if info.get("type") == "directory":
        raise SlideError(f"{shown(place)}: is a folder, not a slide")
    return Facts.of(info)


def parts_of(place: UPath) -> list[Part]:
    """List the files of a slide, the one that is named first.

    A MIRAX slide has a folder beside it, a DICOM slide the other files of its series, and the indices of
    Hamamatsu's VMS and VMU name theirs. Any other slide is one file.

    Raises
    ------
    SlideError
        If the slide cannot be reached.
    """
    with reaching(place, SlideError, "the slide cannot be read"):
        first = Part(place.path, PurePosixPath(name_of(place)), _facts_at(place))
        if first.facts.size == 0:
            raise SlideError(f"{shown(place)}: the file is empty")
        return [first, *(part for part in _companions(place, first) if part.path != first.path)]


def _companions(place: UPath, first: Part) -> list[Part]:
    suffix = first.name.suffix.lower()
    if suffix == ".mrxs":
        folder = _beside(place, first.name.stem)
        found = tried(lambda: asked(place, "find", folder, detail=True))
        return [
            Part(path, PurePosixPath(first.name.stem, path[len(folder) :].lstrip("/")), Facts.of(info))
            for path, info in sorted(found.items())
            if ".." not in PurePosixPath(path).parts
        ]
    if suffix in DICOM_SUFFIXES:
        return _of_series(place, first)
    if suffix in (".vms", ".vmu"):
        index = _read_heads(place, [first.path], _INDEX)[0].decode("latin-1")
        named = {line.partition("=")[2].strip() for line in index.splitlines()}
        return [part for part in _files_beside(place) if part.name.name in named]
    return []


def _of_series(place: UPath, first: Part) -> list[Part]:
    files = [part for part in _files_beside(place) if part.name.suffix.lower() in DICOM_SUFFIXES]
    if len(files) < 2:
        return []
    series = series_at(place, [part.path for part in files])
    of_first = next((uid for part, uid in zip(files, series, strict=True) if part.path == first.path), None)
    return [part for part, uid in zip(files, series, strict=True) if uid is not None and uid == of_first]


def _files_beside(place: UPath) -> list[Part]:
    """List the files in a slide's folder; none where a server lists nothing."""
    try:
        infos = tried(lambda: asked(place, "ls", _beside(place, ""), detail=True))
    except FileNotFoundError:
        return []
    files = [info for info in infos if info["type"] == "file"]
    return [
        Part(info["name"], PurePosixPath(PurePosixPath(info["name"]).name), Facts.of(info)) for info in files
    ]


def _beside(place: UPath, name: str) -> str:
    return f"{place.path.split('?')[0].rpartition('/')[0]}/{name}"


def series_at(place: UPath, paths: Sequence[str]) -> list[str | None]:
    """Return the series of DICOM files of a store; None of what cannot be read, or is no DICOM file.

    Most have it in their first bytes; only of the others more is asked for.
    """
    series = dict(zip(paths, map(series_in, _read_heads(place, paths, _SHORT)), strict=True))
    others = [path for path, uid in series.items() if uid is None]
    series |= dict(zip(others, map(series_in, _read_heads(place, others, HEAD)), strict=True))
    return [series[path] for path in paths]


def _read_heads(place: UPath, paths: Sequence[str], length: int) -> list[bytes]:
    """Read the first bytes of files, side by side where a store can; what cannot be read is empty."""
    if not paths:
        return []
    paths = list(paths)
    heads = asked(place, "cat_ranges", paths, [0] * len(paths), [length] * len(paths), on_error="return")
    return [head if isinstance(head, bytes) else b"" for head in heads]


def fetch(place: UPath, part: Part) -> Iterator[bytes]:
    """Yield the bytes of a file block by block; where the network fails, a block is asked for again.

    Raises
    ------
    SlideError
        If it cannot be read to its end, or has more or fewer bytes than the store says.
    """
    size, done = part.facts.size, 0
    with reaching(place, SlideError, "the slide cannot be fetched"):
        for block in _whole(place, part) if size is None else _blocks(place, part, size):
            done += len(block)
            yield block
            reraise_interruption()  # in a thread, too, which no signal reaches
    if size is not None and done != size:
        raise SlideError(f"{shown(place)}: the store sent {done} of the slide's {size} bytes; try it again")


def _blocks(place: UPath, part: Part, size: int) -> Iterator[bytes]:
    for start in range(0, size, _BLOCK):
        length = min(_BLOCK, size - start)
        try:
            yield tried(partial(_block, place, part, size, start, length))
        except _NoRangesError:
            if start:
                raise
            yield from _whole(place, part)
            return


class _SilentError(TimeoutError):
    """A store has not answered for so long that it is not asked again."""


class _NoRangesError(Exception):
    """A server sends files whole only."""


def _block(place: UPath, part: Part, size: int, start: int, length: int) -> bytes:
    how = _patience(place) | ({"size": size} if _is_http(place) else {})
    with place.fs.open(part.path, "rb", block_size=_BLOCK, cache_type="none", **how) as file:
        try:
            file.seek(start)
            block: bytes = file.read(length)
        except ValueError as error:
            raise _NoRangesError("the server does not send parts of a file") from error
    if len(block) != length:
        raise OSError(f"it ends after {start + len(block)} of {size} bytes")
    return block


def _whole(place: UPath, part: Part) -> Iterator[bytes]:
    """Yield a file from its beginning to its end, from one answer."""
    how = _patience(place) | ({"block_size": 0} if _is_http(place) else {})
    with place.fs.open(part.path, "rb", **how) as file:
        while block := file.read(2**20):
            yield block


def _is_http(place: UPath) -> bool:
    return place.protocol in ("http", "https")


def _patience(place: UPath) -> dict[str, Any]:
    """Let HTTP take as long as it takes, while bytes come: five minutes in all would be its own limit."""
    if not _is_http(place):
        return {}
    from aiohttp import ClientTimeout

    return {"timeout": ClientTimeout(total=None, sock_connect=30, sock_read=60)}


def asked(place: UPath, what: str, *arguments: Any, **how: Any) -> Any:
    """Ask a store for something, such as ``"info"``; it has 90 seconds to answer."""
    from fsspec.asyn import AsyncFileSystem, sync
    from fsspec.exceptions import FSTimeoutError

    fs = place.fs
    if isinstance(fs, AsyncFileSystem) and not fs.asynchronous and what != "find":
        try:
            return sync(fs.loop, getattr(fs, f"_{what}"), *arguments, timeout=_ANSWER, **how)
        except FSTimeoutError as error:
            raise _SilentError from error
    return getattr(fs, what)(*arguments, **how)


def tried(ask: Callable[[], _T]) -> _T:
    """Ask a store again when the network fails, a few times, with growing waits."""
    for wait in WAITS:
        try:
            return ask()
        except Exception as error:
            reraise_interruption()
            if isinstance(error, _NoRangesError | _SilentError) or is_final(error):
                raise
            log.debug("asking again in %g s: %s", wait, type(error).__name__)
        until = time.monotonic() + wait
        while time.monotonic() < until:
            time.sleep(0.1)
            reraise_interruption()
    return ask()
