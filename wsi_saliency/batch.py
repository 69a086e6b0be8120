"""Many slides: finding them, doing them one after another, and going on past bad ones."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_saliency.errors import SlideError, WsiSaliencyError
from wsi_saliency.pipeline import PARTIAL, TIFF, Result, explain_slide, load_explainer
from wsi_saliency.record import RUN_JSON
from wsi_saliency.slides.slide import is_slide_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from wsi_saliency.saliency.engine import Explainer
    from wsi_saliency.settings import RunSettings

log = logging.getLogger(__name__)

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})


@dataclass(frozen=True)
class Job:
    """A slide and the folder, below the output folder, where its results go."""

    slide: Path
    name: Path


def find_slides(inputs: Iterable[str | Path]) -> list[Job]:
    """Find the slides that files, folders and glob patterns name, in a stable order, each once.

    A folder is searched with all folders below it. What this program has written there is left out, and of
    the ``.dcm`` files in one folder, which are parts of one slide, the first stands for all. Results keep the
    slides' paths below that folder, or below the part of a pattern before its first wildcard. Two slides that
    differ in their suffix only keep it in the name of their results.

    Raises
    ------
    SlideError
        If a folder or a pattern has no slides, or the results of two slides would share a folder.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    for slide, name in chain.from_iterable(_expand(Path(text)) for text in inputs):
        found.setdefault(slide.resolve(), (slide, name))
    shared = Counter(name.with_suffix("") for _, name in found.values())
    jobs: dict[Path, Job] = {}
    for slide, name in found.values():
        stem = name.with_suffix("")
        job = Job(slide, stem if shared[stem] == 1 else name.with_name(name.name.replace(".", "_")))
        if job.name in jobs:
            raise SlideError(
                f"{jobs[job.name].slide} and {slide} would both be written to {job.name}; name the folder "
                "above both, or run them apart with another -o"
            )
        jobs[job.name] = job
    return list(jobs.values())


def _expand(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield slides with the path that their results keep."""
    if path.is_dir():
        root, slides = path, _slides_below(path)
        missing = "no slides in this folder; name a slide, a folder with slides or a pattern"
    elif glob.has_magic(str(path)) and not path.exists():
        root = _fixed_part(path)
        slides, missing = _matches(path, root), "no slides match this pattern"
    else:
        root, slides, missing = path.parent, [path], ""
    if not slides:
        raise SlideError(f"{path}: {missing}")
    yield from ((slide, slide.relative_to(root)) for slide in slides)


def _matches(pattern: Path, root: Path) -> list[Path]:
    """Files that match a pattern, and the slides in folders that do."""
    paths = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
    in_folders = [slide for path in paths if path.is_dir() for slide in _slides_below(path)]
    return _selected([*(path for path in paths if path.is_file()), *in_folders], root)


def _slides_below(folder: Path) -> list[Path]:
    return _selected(sorted(p for p in folder.rglob("*") if is_slide_name(p) and p.is_file()), folder)


def _selected(files: Iterable[Path], root: Path) -> list[Path]:
    """Leave out our own outputs and all DICOM files of a folder but the first.

    OpenSlide finds the other levels of a DICOM slide from any of its files.
    """
    selected: dict[Path, Path] = {}
    for file in files:
        if not _is_own_output(file, root):
            selected.setdefault(file.parent if file.suffix.lower() in DICOM_SUFFIXES else file, file)
    return list(selected.values())


def _is_own_output(file: Path, root: Path) -> bool:
    """Whether a file found below ``root`` belongs to a result of this program, finished or not."""
    growing = any(folder.name.endswith(PARTIAL) for folder in file.relative_to(root).parents)
    return growing or (file.name == TIFF and (file.parent / RUN_JSON).exists())


def _fixed_part(pattern: Path) -> Path:
    """Return the folder before the first wildcard."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def explain_slides(
    jobs: Sequence[Job], out: Path, settings: RunSettings, *, overwrite: bool = False, progress: bool = False
) -> Iterator[tuple[Job, Result | str]]:
    """Explain slides one after another; yield each with its result, or with what went wrong in one line.

    Raises
    ------
    ModelError, SettingsError
        If the classifier cannot be had; then no slide can be done.
    """
    explainer: Explainer | None = None
    for job in jobs:
        if not job.slide.exists():
            yield job, f"{job.slide}: no such file"
            continue
        if explainer is None:
            explainer = load_explainer(settings)
        try:
            yield (
                job,
                explain_slide(
                    job.slide,
                    out / job.name,
                    settings,
                    explainer=explainer,
                    overwrite=overwrite,
                    progress=progress,
                ),
            )
        except WsiSaliencyError as e:
            yield job, str(e)
        except Exception as e:
            log.debug("%s", job.slide, exc_info=True)
            reason = " ".join(f"{type(e).__name__}: {e}".split())
            yield job, f"{job.slide}: unexpected {reason} (run with -v for the traceback)"
