"""The next slide, looked at in a thread while another one is explained.

Nothing of it is needed: what could not be looked at is looked at in its turn, and fails there if it fails.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsi_saliency.slides.blocks import PatchReader
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.workflows.first_look import look_at
from wsi_saliency.workflows.plan import plan_slide

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from wsi_saliency.saliency.engine import Explainer
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.slides.slide import Slide
    from wsi_saliency.workflows.first_look import FirstLook
    from wsi_saliency.workflows.jobs import Job

log = logging.getLogger(__name__)


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

    def __post_init__(self) -> None:
        # Not in the way of a process that ends, though the disk may not answer.
        self._thread = threading.Thread(target=self._look, name="look ahead", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        try:
            self._file = _file_facts(self.job.slide)
            slide = open_slide(self.job.slide, self.settings.mpp)
            try:
                self._found = Prepared(slide, look_at(slide, self.settings.workers, quality=self.settings.qc))
                self._read_first(self._found)
            except BaseException:
                self._found = None
                slide.close()
                raise
        except Exception:
            log.debug("%s: looked at ahead", self.job.slide, exc_info=True)
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

    def take(self, job: Job) -> Prepared | None:
        """Return what was found of a slide, when it is there; None if it is of another one, or of none.

        Whoever takes it closes the slide.
        """
        self._thread.join()
        found, self._found = self._found, None
        if found is None:
            return None
        if job == self.job and _file_facts(job.slide) == self._file:
            return found
        found.slide.close()
        return None

    def drop(self) -> None:
        """Let go of what is found, at once or when it is."""
        self._dropped = True
        if not self._thread.is_alive():
            self._close_if_dropped()

    def _close_if_dropped(self) -> None:
        if self._dropped and self._found:
            self._found.slide.close()


def _file_facts(path: Path) -> tuple[int, ...]:
    """Return what tells a file from one that has come in its place."""
    with suppress(OSError):
        facts = path.stat()
        return facts.st_size, facts.st_mtime_ns, facts.st_ino
    return ()
