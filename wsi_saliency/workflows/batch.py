"""Many slides: doing them one after another, and going on past bad ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from wsi_saliency.errors import WsiSaliencyError
from wsi_saliency.files import check_folder
from wsi_saliency.workflows.explain import check_job, explain_slide, load_explainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from wsi_saliency.heatmap.result import Result
    from wsi_saliency.saliency.engine import Explainer
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.workflows.discovery import Job

log = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Parameters
    ----------
    job
        The slide, and where its results were to go.
    result
        What was written or kept; None if the slide failed.
    failure
        Why it failed, in one line that names the slide; None if it did not.
    """

    job: Job
    result: Result | None = None
    failure: str | None = None


def explain_slides(
    jobs: Sequence[Job], out: Path, settings: RunSettings, *, overwrite: bool = False, progress: bool = False
) -> Iterator[Outcome]:
    """Explain slides one after another, and yield the outcome of each when it is there.

    The classifier is loaded when there is a slide that can be opened, and a place for its results.

    Raises
    ------
    ModelError, SettingsError, OutputError
        If the classifier cannot be loaded, or ``out`` cannot be a folder; then no slide can be done.
    """
    check_folder(out)
    explainer: Explainer | None = None
    for job in jobs:
        folder = out / job.name
        if explainer is None or not job.slide.exists():
            check = partial(check_job, job.slide, folder, settings, overwrite=overwrite)
            _, failure = _attempt(job, check)
            if failure is not None:
                yield Outcome(job, failure=failure)
                continue
            explainer = explainer or load_explainer(settings)
        explain = partial(explain_slide, job.slide, folder, settings, explainer=explainer)
        yield Outcome(job, *_attempt(job, partial(explain, overwrite=overwrite, progress=progress)))


def _attempt(job: Job, work: Callable[[], _T]) -> tuple[_T | None, str | None]:
    """Do something for a slide; return what it gives or, if it fails, why in one line."""
    try:
        return work(), None
    except WsiSaliencyError as e:
        return None, str(e)
    except Exception as e:
        log.debug("%s", job.slide, exc_info=True)
        reason = " ".join(f"{type(e).__name__}: {e}".split())
        return None, f"{job.slide}: unexpected {reason} (run with -v for the traceback)"
