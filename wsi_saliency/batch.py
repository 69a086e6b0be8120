"""Many slides: finding them, doing them one after another, and going on past bad ones."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_saliency.errors import SlideError, WsiSaliencyError
from wsi_saliency.pipeline import Result, explain_slide, load_explainer
from wsi_saliency.slides.slide import is_slide_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from wsi_saliency.saliency.engine import Explainer
    from wsi_saliency.settings import RunSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A slide and the folder, below the output folder, where its results go."""

    slide: Path
    name: Path


@dataclass
class Outcome:
    """What became of a batch: results in order, and what went wrong, by slide."""

    results: list[Result] = field(default_factory=list)
    failures: dict[Path, str] = field(default_factory=dict)


def find_slides(inputs: Iterable[str | Path]) -> list[Job]:
    """Find the slides that files, folders and glob patterns name, in a stable order, each once.

    A folder is searched with all folders below it; its slides keep their relative path. Two slides that
    differ in their suffix only keep it in the name of their results.

    Raises
    ------
    SlideError
        If a folder or a pattern has no slides.
    """
    found = {slide.resolve(): (slide, name) for text in inputs for slide, name in _expand(Path(text))}
    names = Counter(name.with_suffix("") for _, name in found.values())
    return [
        Job(slide, name.with_suffix("") if names[name.with_suffix("")] == 1 else _with_suffix_kept(name))
        for slide, name in found.values()
    ]


def _with_suffix_kept(name: Path) -> Path:
    return name.with_name(name.name.replace(".", "_"))


def _expand(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield slides with their path relative to what was named."""
    if path.is_dir():
        slides = sorted(p for p in path.rglob("*") if p.is_file() and is_slide_name(p))
        if not slides:
            raise SlideError(
                f"{path}: no slides in this folder; name a slide, a folder with slides or a pattern"
            )
        yield from ((slide, slide.relative_to(path)) for slide in slides)
    elif glob.has_magic(str(path)) and not path.exists():
        slides = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if not slides:
            raise SlideError(f"{path}: no slides match this pattern")
        yield from ((slide, Path(slide.name)) for slide in slides)
    else:
        yield path, Path(path.name)


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
            yield job, f"{job.slide}: unexpected {type(e).__name__}: {e} (run with -v for the traceback)"
