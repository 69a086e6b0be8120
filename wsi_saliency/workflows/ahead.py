"""The next slide, looked at in a thread while another one is explained.

Nothing of it is needed: what could not be looked at is looked at in its turn, and fails there if it fails.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_saliency.slides.blocks import PatchReader
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.urls import name_of
from wsi_saliency.workflows.first_look import look_at
from wsi_saliency.workflows.plan import plan_slide
from wsi_saliency.workflows.progress import download, silence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wsi_saliency.saliency.engine import Explainer
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.slides.slide import Slide
    from wsi_saliency.urls import Location
    from wsi_saliency.workflows.first_look import FirstLook
    from wsi_saliency.workflows.jobs import Job
    from wsi_saliency.workflows.progress import Advance, Progress

log = logging.getLogger(__name__)

_SHOWN_EVERY = 0.2  # seconds


@dataclass(frozen=True, eq=False)
class Prepared:
    """A slide that is open, and what it shows from afar."""

    slide: Slide
    seen: FirstLook


@dataclass(eq=False)
class LookAhead:
    """Looks at one slide in a thread.

    Parameters
    ----------
    job, settings
        The slide, and what is computed for it.
    explainer
        Says which patches are first, whose pixels are read once, so that they are at hand; None: no patches.
    done
        Called at the end, whatever it is.
    """

    job: Job
    settings: RunSettings
    explainer: Explainer | None
    done: Callable[[], object]
    _found: Prepared | None = field(default=None, init=False)
    _dropped: bool = field(default=False, init=False)
    _file: tuple[int, ...] = field(default=(), init=False)
    _wanted: int = field(default=0, init=False)  # bytes
    _come: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        # Not in the way of a process that ends, though the disk may not answer.
        self._thread = threading.Thread(target=self._look, name="look ahead", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        try:
            self._file = _file_facts(self.job.slide)
            slide = open_slide(self.job.slide, self.settings.mpp, cache=self.settings, watch=self._watch)
            try:
                self._found = Prepared(slide, look_at(slide, self.settings.workers, quality=self.settings.qc))
                self._read_first(self._found)
            except BaseException:
                self._found = None
                slide.close()
                raise
        except Exception:
            log.debug("%s: looked at ahead", self.job.shown, exc_info=True)
        finally:
            self._close_if_dropped()
            self.done()

    def _read_first(self, found: Prepared) -> None:
        if self.explainer is None:
            return
        plan = plan_slide(found.slide, self.explainer, self.settings, seen=found.seen)
        first = plan.tiles[: self.explainer.batch]
        for _ in PatchReader(found.slide, plan.grid, first, self.settings.workers):
            pass

    @contextmanager
    def _watch(self, count: int) -> Iterator[Advance]:
        """Count the bytes that come from a URL, for whoever waits for them."""
        self._wanted = count

        def advance(more: int) -> None:
            self._come += more

        yield advance
        self._come = count

    def _wait(self, progress: Progress) -> None:
        """Wait for the end; while the slide is still on its way, that is shown."""
        while self._thread.is_alive() and not self._wanted:
            self._thread.join(_SHOWN_EVERY)
        if self._come < self._wanted:
            told = 0
            with download(progress, name_of(self.job.slide))(self._wanted) as advance:
                while self._thread.is_alive() and told < self._wanted:
                    self._thread.join(_SHOWN_EVERY)
                    come = self._come
                    advance(come - told)
                    told = come
        self._thread.join()

    def take(self, job: Job, progress: Progress = silence) -> Prepared | None:
        """Return what was found of a slide, when it is there; None if it is of another one, or of none.

        Whoever takes it closes the slide.
        """
        self._wait(progress)
        found, self._found = self._found, None
        if found is None:
            return None
        if job == self.job and _file_facts(job.slide) == self._file:
            return found
        found.slide.close()
        return None

    def give_up(self) -> None:
        """Let go of what is found, and wait until that is done."""
        self.drop()
        self._thread.join()
        self._close_if_dropped()

    def drop(self) -> None:
        """Let go of what is found, at once or when it is."""
        self._dropped = True
        if not self._thread.is_alive():
            self._close_if_dropped()

    def _close_if_dropped(self) -> None:
        if self._dropped and self._found:
            self._found.slide.close()


def _file_facts(path: Location) -> tuple[int, ...]:
    """Return what tells a file from one that has come in its place; the copy of what is at a URL stays."""
    if not isinstance(path, Path):
        return ()
    with suppress(OSError):
        facts = path.stat()
        return facts.st_size, facts.st_mtime_ns, facts.st_ino
    return ()
