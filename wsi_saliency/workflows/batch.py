"""Many slides with one classifier: loading it once, and going on past bad slides."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_saliency.errors import BusyError, NoRoomError, NoRoomForSlideError, WsiSaliencyError
from wsi_saliency.heatmap.shelf import Manner
from wsi_saliency.heatmap.shelves import shelved
from wsi_saliency.interruption import reraise_interruption
from wsi_saliency.urls import name_of
from wsi_saliency.workflows.ahead import LookAhead
from wsi_saliency.workflows.explain import check_job, explain_slide, load_explainer, stays
from wsi_saliency.workflows.jobs import Outcome
from wsi_saliency.workflows.progress import shown_by

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsi_saliency.heatmap.result import Result
    from wsi_saliency.heatmap.shelf import Shelf
    from wsi_saliency.saliency.engine import Explainer
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.workflows.ahead import Prepared
    from wsi_saliency.workflows.jobs import Job
    from wsi_saliency.workflows.progress import Progress

log = logging.getLogger(__name__)


@dataclass
class SlideWork:
    """Explains slides, one at each call; the classifier is loaded for the first that can be opened.

    Parameters
    ----------
    out
        The output folder, or the shelf where results stand.
    settings
        What to compute.
    overwrite, wait, progress
        As `explain_slide` takes them.
    load
        Loads the classifier.

    Raises
    ------
    ModelError, SettingsError
        When called, if the classifier cannot be loaded; then no slide can be done.
    """

    out: Path | Shelf
    settings: RunSettings
    overwrite: bool = False
    wait: bool = True
    progress: bool | Progress = False
    load: Callable[[RunSettings], Explainer] | None = None
    _explainer: Explainer | None = field(default=None, init=False)
    _ahead: dict[Job, LookAhead] = field(default_factory=dict, init=False)
    _targets: tuple[str, ...] = field(default=(), init=False)  # those of the explainer

    def __call__(self, job: Job) -> Outcome:
        """Explain a slide; one that was looked at ahead is at hand."""
        ahead = self._ahead.pop(job, None)
        prepared = ahead.take(job, shown_by(self.progress)) if ahead else None
        try:
            return self._done(job, prepared)
        finally:
            if prepared:
                prepared.slide.close()

    def look_ahead(self, job: Job, done: Callable[[], object]) -> None:
        """Look at the slide that comes next, while another is explained; ``done`` is called at the end.

        It may be called from another thread.
        """
        if job in self._ahead:
            done()
            return
        for stale in list(self._ahead)[:-1]:  # that came in no turn; the last may be the one that is at work
            if passed := self._ahead.pop(stale, None):
                passed.drop()
        self._ahead[job] = LookAhead(job, job.settings(self.settings), self._explainer, done)

    def _done(self, job: Job, prepared: Prepared | None) -> Outcome:
        shelf, slide, settings = shelved(self.out), job.slide, job.settings(self.settings)
        gone = isinstance(slide, Path) and not slide.exists()  # at a URL, that is found out when it is opened
        if self._explainer is None or gone:
            how = {"overwrite": self.overwrite, "wait": self.wait}
            checked = _attempt(job, partial(check_job, slide, shelf.folder / job.name, settings, **how))
            if checked.failure is not None:
                return checked
            self._explainer = self._explainer or self._loaded(job)

        return _attempt(job, partial(self._explained, job, settings, shelf, prepared))

    def _explained(self, job: Job, settings: RunSettings, shelf: Shelf, prepared: Prepared | None) -> Result:
        explainer, show = self._explaining(settings.targets), shown_by(self.progress)

        def explained(folder: Path) -> Result:
            return explain_slide(
                job.slide,
                folder,
                settings,
                explainer=explainer,
                overwrite=self.overwrite,
                wait=self.wait,
                progress=self.progress,
                prepared=prepared,
                url="" if shelf.shared_folder else shelf.where(job.name),
            )

        def make(folder: Path) -> Result:
            try:
                return explained(folder)
            except NoRoomForSlideError:
                if not self._ahead:
                    raise
                for key in list(self._ahead):  # the next slide has come before this one, and takes its room
                    self._ahead.pop(key).give_up()
                return explained(folder)

        return shelf.explained(
            job.name,
            make,
            lambda result: stays(result, job.slide, settings, explainer),
            lambda what, files: show(f"{name_of(job.slide)}: {what}", files, "file"),
            Manner(self.overwrite, self.wait),
        )

    def _loaded(self, job: Job) -> Explainer:
        """Load the classifier; a target of one slide only, which there may not be, is found out later."""
        self._targets = self.settings.targets if job.targets is None else ("0",)
        return (self.load or load_explainer)(replace(self.settings, targets=self._targets))

    def _explaining(self, targets: tuple[str, ...]) -> Explainer:
        """Return the explainer of some targets."""
        assert self._explainer is not None
        if targets != self._targets:
            indices = self._explainer.classifier.target_indices(targets)
            self._explainer, self._targets = replace(self._explainer, targets=indices), targets
        return self._explainer


def _attempt(job: Job, work: Callable[[], Result | None]) -> Outcome:
    """Do something for a slide; if it fails, the outcome says why in one line."""
    try:
        try:
            return Outcome(job, work())
        except Exception:
            reraise_interruption()
            raise
    except BusyError as e:
        return Outcome(job, failure=str(e), busy=True)
    except WsiSaliencyError as e:
        no_room = isinstance(e, NoRoomError)
        return Outcome(job, failure=str(e), trace=traceback.format_exc(), no_room=no_room)
    except Exception as e:
        log.debug("%s", job.shown, exc_info=True)
        reason = " ".join(f"{type(e).__name__}: {e}".split())
        failure = f"{job.shown}: unexpected {reason}"
        return Outcome(job, failure=failure, trace=traceback.format_exc(), unexpected=True)
