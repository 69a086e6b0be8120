"""A place where slides run: a device, the worker process on it, and the slide that it is at."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi_saliency.engines.messages import Again, Done, Loaded, Loading, Looked, Looking, Started
from wsi_saliency.engines.process import Worker
from wsi_saliency.engines.worker import TIDYING, slide_work
from wsi_saliency.errors import ModelError
from wsi_saliency.heatmap.shelves import shelved
from wsi_saliency.interruption import undisturbed
from wsi_saliency.slides.cache import SlideCache
from wsi_saliency.workflows.jobs import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable
    from multiprocessing.connection import Connection

    from wsi_saliency.engines.messages import Message, Order
    from wsi_saliency.engines.worker import MakeWork
    from wsi_saliency.workflows.jobs import Job


@dataclass(eq=False)
class Place:
    """A device with a worker process, which is started for the first slide, and anew after it died.

    Parameters
    ----------
    name
        What the place is called; no two have the same name.
    device
        Where its classifier runs.
    make_work
        Makes, in the worker, what does a slide; it is found by its name there.
    job, ahead
        The slide that it is at, and the one that it has been told comes next.
    """

    name: str
    device: str
    make_work: MakeWork = slide_work
    job: Job | None = None
    ahead: Job | None = None
    _looked_at: Job | None = None
    _timeout: float | None = None
    _order: Order | None = None
    _worker: Worker | None = None

    @property
    def pipe(self) -> Connection:
        """Our end of the pipe to the worker."""
        return self._running().pipe

    def _running(self) -> Worker:
        assert self._worker is not None
        return self._worker

    def give(self, job: Job, order: Order, timeout: float | None = None) -> None:
        """Give a slide to the worker, and say how many seconds it may take, if not as long as it takes."""
        if self._worker and not self._worker.process.is_alive():  # it died while it had nothing to do
            self._worker.kill()
            self._forget()
        self._order, self._timeout = order, timeout
        self._worker = self._worker or Worker.start(order, self.make_work)
        self.job, self.ahead = job, None
        self._worker.give(job)

    def look_ahead(self, job: Job) -> None:
        """Let the worker look at the slide that comes next while it is at another."""
        self.ahead = job
        self._running().hint(job)

    def _forget(self) -> None:
        """Forget a worker that is no more."""
        self._worker, self.ahead, self._looked_at = None, None, None

    def seconds_left(self) -> float | None:
        """Return how long the slide may still take; None where there is no end, or it has not begun."""
        since = self._running().since
        if self._timeout is None or since is None:
            return None
        return max(0.0, since + self._timeout - time.monotonic())

    def listen(self, *, proven: bool) -> Message:
        """Return what the worker says; if its time is up or it has died, that its slide has failed.

        Parameters
        ----------
        proven
            Whether the classifier could be loaded before, here or elsewhere.

        Raises
        ------
        ModelError
            If it has died while it loaded the classifier, and that is not proven.
        """
        worker, job = self._running(), self.job
        assert job is not None
        if not worker.pipe.poll() and self.seconds_left() == 0:
            reason = f"stopped after {self._timeout:g} s (--slide-timeout)"
            return self._lost(Outcome(job, failure=f"{job.shown}: {reason}", trace=worker.stop()))
        message = worker.hear()
        if message is None:
            death, trace = worker.death()
            if self._looked_at:
                self._lost(Outcome(job))
                return Again(job)
            done = self._lost(Outcome(job, failure=f"{job.shown}: {death}", trace=trace, lost=True))
            if not worker.can_work and not proven:
                raise ModelError(f"{death} while the classifier was loaded")
            return done
        match message:
            case Started() | Loaded():
                worker.began()
            case Loading():
                worker.loads()
            case Looking(other):
                self._looked_at = other
            case Looked(other) if other == self._looked_at:
                self._looked_at = None
            case Done():
                self.job = None
        return message

    def _lost(self, outcome: Outcome) -> Done:
        self._forget()
        self._clear()
        return Done(outcome)

    def _clear(self) -> None:
        """Clear away what a dead worker has left of its slide: whoever takes the lock finds it."""
        if self.job and self._order:
            clear_after_death(self._order, self.job)
        self.job = None

    def ask_to_end(self) -> None:
        """Ask the worker to end: it leaves nothing unfinished."""
        if self._worker:
            self._worker.end()

    def wait_for_end(self, deadline: float) -> None:
        """Wait until it has, or a time of the monotonic clock has come."""
        if self._worker:
            self._worker.process.join(max(0.0, deadline - time.monotonic()))

    def kill(self) -> None:
        """End it at once, and clear away what it leaves."""
        if self._worker:
            self._worker.kill()
            self._forget()
            self._clear()


def end_all(places: Iterable[Place]) -> None:
    """End all workers within five seconds; a signal meanwhile ends them at once."""
    places = list(places)
    try:
        for place in places:
            place.ask_to_end()
        deadline = time.monotonic() + TIDYING
        for place in places:
            place.wait_for_end(deadline)
    finally:
        with undisturbed():  # a third signal finds nobody in the middle of this
            for place in places:
                place.kill()


def clear_after_death(order: Order, *jobs: Job) -> None:
    """Clear away what processes that are no more have left of slides, unless others work on them."""
    SlideCache.of(order.settings).tidy()
    shelved(order.out).clear([job.name for job in jobs])
