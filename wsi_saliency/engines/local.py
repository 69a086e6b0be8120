"""Slides in worker processes of this machine, on each device: a process that dies costs its slide only.

This process never imports torch. A worker loads the classifier once, and is started anew after it died.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from wsi_saliency.engines.messages import Again, Done, Loaded, Order
from wsi_saliency.engines.place import Place, end_all
from wsi_saliency.engines.process import log_level
from wsi_saliency.engines.process_engine import ProcessEngine
from wsi_saliency.interruption import undisturbed
from wsi_saliency.settings import ALL_GPUS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from wsi_saliency.settings import RunSettings
    from wsi_saliency.workflows.jobs import Job, Outcome


@dataclass
class LocalEngine(ProcessEngine):
    """Runs slides in worker processes of this machine; the parameters are those of `ProcessEngine`."""

    _places: list[Place] = field(default_factory=list, init=False)
    _alone: set[Job] = field(default_factory=set, init=False)  # done while nothing else is looked at

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        """End all workers within five seconds; a signal meanwhile ends them at once."""
        at_work = [place.name for place in self._places if place.job]
        try:
            end_all(self._places)
        finally:
            with undisturbed():  # a third signal finds nobody in the middle of this
                for name in at_work:
                    self._console.end(name)
                self._places.clear()
                self._folders.close()

    def run(self, jobs: Iterable[Job], settings: RunSettings) -> Iterator[Outcome]:
        """Run slides, as `Engine` says; with one place for them in their order, else as they are done."""
        waiting = deque(jobs)
        if not self._places:
            for device in settings.device.split(","):
                self._add_places(device.strip())
        while waiting or any(place.job for place in self._places):
            yield from self._begin(waiting, settings)
            for place in self._talking():
                for outcome in self._listen(place, waiting):
                    # A worker goes on while somebody deals with what it has done, unless that ends the run.
                    not_begun = self._begin(waiting, settings) if outcome.failure is None else []
                    yield outcome
                    yield from not_begun

    def _begin(self, waiting: deque[Job], settings: RunSettings) -> list[Outcome]:
        """Give a slide to each place that has none; return what became of those that cannot be begun."""
        not_begun: list[Outcome] = []
        for place in self._places:
            if waiting and place.job is None:
                not_begun += self._give(place, self._next_for(place, waiting), settings)
        self._let_look_ahead(waiting)
        return not_begun

    def _next_for(self, place: Place, waiting: deque[Job]) -> Job:
        """Take the slide that a place has looked at, or else one that no other place has."""
        others = {other.ahead for other in self._places if other is not place}
        free = (job for job in waiting if job not in others)
        job = place.ahead if place.ahead in waiting else next(free, waiting[0])
        assert job is not None
        waiting.remove(job)
        return job

    def _let_look_ahead(self, waiting: deque[Job]) -> None:
        """Let each place that is at work look at the slide that comes next."""
        for place in self._places:
            if place.job is None or place.job in self._alone or place.ahead in waiting:
                continue
            taken = {other.ahead for other in self._places}
            if job := next((job for job in waiting if job not in taken), None):
                place.look_ahead(job)

    def _add_places(self, device: str) -> None:
        number = len(self._places)
        self._places += [
            Place(f"{device} {number + i}", device, self.make_work) for i in range(self.side_by_side)
        ]

    def _give(self, place: Place, job: Job, settings: RunSettings) -> Iterator[Outcome]:
        """Give a slide to a place."""
        if refused := self._without_folder(job):
            yield refused
            return
        settings = replace(settings, device=place.device)
        order = Order(self.out, settings, self.overwrite, log_level(), self.side_by_side)
        place.give(job, order, self.timeout)

    def _talking(self) -> Iterator[Place]:
        """Wait until workers have something to say, or a slide has taken too long; yield their places."""
        busy = {place.pipe: place for place in self._places if place.job}
        if not busy:
            return
        left = [seconds for place in busy.values() if (seconds := place.seconds_left()) is not None]
        ready = wait(list(busy), min(left, default=None))
        yield from (place for pipe, place in busy.items() if pipe in ready or place.seconds_left() == 0)

    def _listen(self, place: Place, waiting: deque[Job]) -> Iterator[Outcome]:
        """Take what a worker says; yield the outcome of its slide if that is it."""
        message = place.listen(proven=self._proven)
        match message:
            case Done(outcome):
                self._console.end(place.name)
                yield outcome
            case Again(job):
                self._console.end(place.name)
                self._alone.add(job)
                waiting.appendleft(job)
            case Loaded(devices):
                self._proven = True
                self._take_all(place, devices)
            case _:
                self._console.show(place.name, message)

    def _take_all(self, place: Place, devices: int) -> None:
        """Use the other GPUs too, if all of them were asked for."""
        if place.device != ALL_GPUS:
            return
        for other in self._places:
            if other.device == ALL_GPUS:
                other.device = f"{ALL_GPUS}:0"
        for index in range(1, devices):
            self._add_places(f"{ALL_GPUS}:{index}")
