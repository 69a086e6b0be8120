"""Slides at URLs: one listing of a store says all that is to be known of them."""

from __future__ import annotations

import glob
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from wsi_saliency.errors import SlideError
from wsi_saliency.heatmap.result import RUN_JSON, is_map_file
from wsi_saliency.slides.opening import is_slide_name
from wsi_saliency.slides.readers.dicom import DICOM_SUFFIXES
from wsi_saliency.slides.store import Facts, asked, series_at, tried
from wsi_saliency.urls import located, name_of, reaching, shown
from wsi_saliency.working import is_working_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from upath import UPath

    from wsi_saliency.urls import Location

    _Infos = Mapping[str, Mapping[str, Any]]
    _T = TypeVar("_T")

_MANY = 10  # slides of a list in one folder, from which on that is listed
_WANTED = "name a slide, a folder with slides or a pattern"


@dataclass(frozen=True)
class Found:
    """A slide at a URL, its path below what was searched, and its facts if a listing had them."""

    place: UPath
    name: Path
    facts: Facts | None = None


def slides_at(url: str | UPath) -> list[Found]:
    """Find the slides that a URL names: a slide, a folder with all below it, or a pattern.

    What ends in a slide's suffix is a slide, and nothing is asked of its store; over HTTP, so is all that
    does not end in ``/``.

    Raises
    ------
    SlideError
        If there are none, or the store cannot be reached or does not let it be listed.
    """
    text, place = str(url), located(url)
    assert not isinstance(place, Path)
    name, http = name_of(text), text.lower().startswith("http")
    magic = glob.has_magic(text.split("?")[0] if http else text)
    if not magic and (is_slide_name(name) or (http and not text.endswith("/"))):
        return [Found(place, Path(name))]
    if magic and not (is_slide_name(name) and _ask(place, lambda: asked(place, "exists", place.path))):
        root, infos = _matches(place)
        missing = "no slides match this pattern"
    else:
        if magic or not (text.endswith("/") or _is_folder(place)):
            return [Found(place, Path(name))]
        root, infos = place.path, _files_below(place, place.path)
        missing = f"no slides in this folder; {_WANTED}"
    found = _selected(place, root, infos)
    if not found:
        raise SlideError(f"{shown(text)}: {missing}")
    return found


def _is_folder(place: UPath) -> bool:
    return not _ask(place, lambda: asked(place, "isfile", place.path))


def known_facts(places: Iterable[Location]) -> dict[str, Facts]:
    """Return the facts of files at URLs by these, where one listing of a folder says those of many.

    What is left out is asked for when it is needed.
    """
    folders: dict[str, list[UPath]] = {}
    for place in places:
        if not isinstance(place, Path) and place.protocol not in ("http", "https"):
            folders.setdefault(str(place.parent), []).append(place)
    known: dict[str, Facts] = {}
    for many in folders.values():
        if len(many) < _MANY:
            continue
        with suppress(SlideError):  # each slide says what is wrong
            first = many[0]
            listed = _ask(first, partial(asked, first, "ls", first.parent.path, detail=True))
            infos = {info["name"]: info for info in listed if info.get("type") == "file"}
            known |= {
                str(place): facts
                for place in many
                if place.path in infos and (facts := _facts(infos[place.path]))
            }
    return known


def _ask(place: UPath, what: Callable[[], _T]) -> _T:
    with reaching(place, SlideError, "slides cannot be listed"):
        return tried(what)


def _files_below(place: UPath, folder: str) -> _Infos:
    """List all files below a folder that may be slides, or the record of a result."""

    def listed() -> _Infos:
        place.fs.invalidate_cache()
        found: _Infos = asked(place, "find", folder, detail=True)
        if not found:  # which may be a refusal that `find` passes over
            asked(place, "ls", folder, detail=False)
        return found

    infos = _ask(place, listed)
    return {
        path: info for path, info in infos.items() if is_slide_name(_name(path)) or _name(path) == RUN_JSON
    }


def _matches(place: UPath) -> tuple[str, _Infos]:
    """List what matches a pattern, and what is in folders that do; and the folder before the pattern."""
    parts = place.path.split("/")
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = "/".join(parts[:fixed])
    found = dict(_ask(place, lambda: asked(place, "glob", place.path, detail=True)))
    for path, info in list(found.items()):
        if info.get("type") == "directory":
            del found[path]
            found |= _files_below(place, path)
    return root, found


def _selected(place: UPath, root: str, infos: _Infos) -> list[Found]:
    """Leave out what this program has written, and all DICOM files of a slide but the first."""
    paths = sorted(infos, key=PurePosixPath)
    kept = [path for path in paths if _name(path) != RUN_JSON and not _is_own_output(path, root, infos)]
    first = _first_of_series(place, kept)
    found = [
        Found(_place_of(place, root, path), _below(place, root, path), _facts(infos[path]))
        for path in kept
        if path in first
    ]
    return [one for one in found if ".." not in one.name.parts and one.name.name]


def _facts(info: Mapping[str, Any]) -> Facts | None:
    facts = Facts.of(info)
    return None if facts.size is None else facts


def _place_of(place: UPath, root: str, path: str) -> UPath:
    """Return where a file of a listing is, with what is known of the login."""
    kind: Any = type(place)
    if place.protocol in ("http", "https"):
        found: UPath = kind(path, **place.storage_options)
        return found
    base = place
    for _ in range(len(PurePosixPath(place.path).parts) - len(PurePosixPath(root).parts)):
        base = base.parent
    return base.joinpath(_relative(root, path))


def _below(place: UPath, root: str, path: str) -> Path:
    relative = _relative(root, path)
    if place.protocol not in ("http", "https"):
        return Path(relative)
    return Path(*(name_of(f"https://host/{part}") for part in relative.split("/") if part))


def _relative(root: str, path: str) -> str:
    return path[len(root.rstrip("/")) :].lstrip("/")


def _name(path: str) -> str:
    return unquote(path.rpartition("/")[2])


def _is_own_output(path: str, root: str, paths: Collection[str]) -> bool:
    folder, _, name = path.rpartition("/")
    growing = any(is_working_folder(Path(part)) for part in _relative(root, folder).split("/"))
    return growing or (is_map_file(name) and f"{folder}/{RUN_JSON}" in paths)


def _first_of_series(place: UPath, paths: Collection[str]) -> set[str]:
    """Leave out the files of DICOM slides but the first; their series stand at their beginning."""
    dicom = [path for path in paths if PurePosixPath(path).suffix.lower() in DICOM_SUFFIXES]
    first: dict[tuple[str, str | None], str] = {}
    for path, uid in zip(dicom, series_at(place, dicom) if len(dicom) > 1 else [None], strict=False):
        first.setdefault((path.rpartition("/")[0], uid), path)
    return {path for path in paths if path not in dicom} | set(first.values())
