"""Finding the slides that files, folders and patterns name, and where the results of each go."""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_saliency.errors import SlideError
from wsi_saliency.heatmap.result import RUN_JSON, is_map_file
from wsi_saliency.slides.opening import is_slide_name
from wsi_saliency.slides.readers.dicom import DICOM_SUFFIXES, series_of
from wsi_saliency.urls import is_url, located, name_of, shown
from wsi_saliency.workflows.jobs import Job
from wsi_saliency.workflows.listings import known_facts, slides_at
from wsi_saliency.workflows.lists import Listed, is_list, read_list
from wsi_saliency.working import is_working_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from wsi_saliency.slides.store import Facts
    from wsi_saliency.urls import Location

    _Named = tuple[Listed, Path, Facts | None]


def find_slides(inputs: Iterable[str | Location]) -> list[Job]:
    """Find the slides that files, folders, glob patterns and lists name, in a stable order, each once.

    All of them may be URLs; of a folder there, one listing is asked for. A folder is searched with all
    folders below it. What this program has written there is left out, and of the ``.dcm`` files in one folder
    that are parts of one slide, the first stands for all. Results keep the slides' paths below that folder,
    below the part of a pattern before its first wildcard, or below the folder of a list; they never lie
    above. Slides that differ in their suffix only keep it in the name of their results, and so does one whose
    results would hold those of others.

    Raises
    ------
    SlideError
        If a folder or a pattern has no slides, a list is wrong, or the results of two slides would share a
        folder.
    """
    found: dict[str, _Named] = {}
    for listed, name, facts in chain.from_iterable(_expand(text) for text in inputs):
        key, says_more = _identity(listed.slide), listed != Listed(listed.slide)
        if says_more or key not in found:
            found[key] = (listed, name, facts)
    stems = Counter(_stem(name) for _, name, _ in found.values())
    above = {folder for stem in stems for folder in stem.parents}
    jobs: dict[Path, Job] = {}
    for listed, name, facts in found.values():
        stem, slide = _stem(name), listed.slide
        place = stem if stems[stem] == 1 and stem not in above else _whole(name)
        job = Job(slide, place, listed.mpp, listed.targets, listed.annotations, facts)
        if job.name in jobs or job.name in above:
            others = jobs[job.name].shown if job.name in jobs else "slides in a folder of that name"
            raise SlideError(
                f"{others} and {job.shown} would both be written to {job.name}; name the folder "
                "above both, or run them apart with another -o"
            )
        jobs[job.name] = job
    return list(jobs.values())


def _identity(slide: Location) -> str:
    return os.path.realpath(slide) if isinstance(slide, Path) else str(slide)


def find_paths(inputs: Iterable[str | Location]) -> list[Location]:
    """Find slides as `find_slides` does, for work in which none can have settings of its own.

    Raises
    ------
    SlideError
        As `find_slides`, or if a list says more of a slide than its path.
    """
    jobs = find_slides(inputs)
    for job in jobs:
        if (job.mpp, job.targets, job.annotations) != (None, None, None):
            raise SlideError(
                f"{job.shown}: the list says more than its path, which only run uses; leave other columns out"
            )
    return [job.slide for job in jobs]


def chosen(jobs: Sequence[Job], limit: int | None = None, shard: tuple[int, int] | None = None) -> list[Job]:
    """Return a part of the slides.

    Parameters
    ----------
    jobs
        All slides.
    limit
        So many of them at most, the first ones; after the shard is taken.
    shard
        Number, from 1 on, and count of the parts that slides are dealt into by their names: a slide stays in
        its part whatever others there are.
    """
    number, count = shard or (1, 1)
    mine = [job for job in jobs if _dealt(job.name, count) == number]
    return mine[:limit]


def _dealt(name: Path, count: int) -> int:
    digest = hashlib.sha256(os.fsencode(name.as_posix())).digest()
    return int.from_bytes(digest[:8]) % count + 1


def _stem(name: Path) -> Path:
    """Leave out a slide's suffix, unless only dots would be left, which name other folders."""
    return name.with_name(name.stem) if name.stem.strip(".") else _whole(name)


def _whole(name: Path) -> Path:
    return name.with_name(name.name.replace(".", "_"))


def _expand(text: str | Location) -> Iterator[_Named]:
    """Yield slides with the path that their results keep, and what is known of them."""
    place = located(text)
    if is_list(place):
        rows = read_list(place)
        facts = known_facts(row.slide for row in rows)
        yield from ((row, _below(place, row.slide), facts.get(str(row.slide))) for row in rows)
    elif isinstance(place, Path):
        yield from ((Listed(slide), name, None) for slide, name in _named(place, str(text)))
    else:
        url = text if isinstance(text, str) else place
        yield from ((Listed(one.place), one.name, one.facts) for one in slides_at(url))


def _below(place: Location, slide: Location) -> Path:
    """Return a slide's path below the folder of a list; of one that lies elsewhere, its name."""
    if not isinstance(place, Path) or not isinstance(slide, Path):
        folder, whole = (shown(text).rpartition("/")[0] for text in (place, slide))
        inside = is_url(place) and f"{whole}/".startswith(f"{folder}/")
        return Path(whole[len(folder) :].lstrip("/") if inside else "", name_of(slide))
    path = Path(os.path.normpath(os.path.relpath(slide, place.parent)))
    return Path(slide.name) if ".." in path.parts else path


def _named(path: Path, text: str) -> Iterator[tuple[Path, Path]]:
    """Yield the slides that a file, a folder or a pattern names."""
    if not text.strip():
        raise SlideError(f"{text!r} names no slide; name a slide, a folder with slides or a pattern")
    if path.is_dir():
        root, slides = path, _slides_below(path)
        missing = "no slides in this folder; name a slide, a folder with slides or a pattern"
    elif glob.has_magic(str(path)) and not path.exists():
        root = _fixed_part(path)
        if ".." in path.relative_to(root).parts:
            raise SlideError(f"{path}: '..' cannot stand behind a wildcard; name that folder itself")
        slides, missing = _matches(path, root), "no slides match this pattern"
    else:
        root, slides, missing = path.parent, [path], ""
    if not slides:
        raise SlideError(f"{path}: {missing}")
    yield from ((slide, slide.relative_to(root)) for slide in slides)


def _matches(pattern: Path, root: Path) -> list[Path]:
    """Files that match a pattern, and the slides in folders that do.

    ``file/**`` matches the file itself, which does not lie below its own path, and is left out.
    """
    matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
    paths = [path for path in matches if path != root or path.is_dir()]
    in_folders = [slide for path in paths if path.is_dir() for slide in _slides_below(path)]
    return _selected([*(path for path in paths if _is_to_be_read(path)), *in_folders], root)


def _slides_below(folder: Path) -> list[Path]:
    return _selected(sorted(p for p in folder.rglob("*") if is_slide_name(p) and _is_to_be_read(p)), folder)


def _is_to_be_read(path: Path) -> bool:
    """Whether there is a file, or a link to one that has gone: left out, nobody would learn of that."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _selected(files: Iterable[Path], root: Path) -> list[Path]:
    """Leave out our own outputs and all DICOM files of a slide but the first.

    OpenSlide finds the other levels of a DICOM slide from any of its files.
    """
    selected: dict[tuple[Path, str | None], Path] = {}
    for file in files:
        if not _is_own_output(file, root):
            selected.setdefault(_dicom_slide(file) or (file, None), file)
    return list(selected.values())


def _dicom_slide(file: Path) -> tuple[Path, str | None] | None:
    """Folder and series of a DICOM file, which are those of its slide; None of any other file."""
    if file.suffix.lower() not in DICOM_SUFFIXES:
        return None
    try:
        return file.parent, series_of(file)
    except OSError:  # opening the slide says what is wrong
        return file.parent, None


def _is_own_output(file: Path, root: Path) -> bool:
    """Whether a file found below ``root`` belongs to a result of this program, finished or not."""
    growing = any(is_working_folder(folder) for folder in file.relative_to(root).parents)
    return growing or (is_map_file(file.name) and (file.parent / RUN_JSON).exists())


def _fixed_part(pattern: Path) -> Path:
    """Return the folder before the first wildcard."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))
