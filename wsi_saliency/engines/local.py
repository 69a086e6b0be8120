"""Slides in worker processes of this machine, one for each device: a process that dies costs its slide only.

This process never imports torch. A worker loads the classifier once, and is started anew after it died.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from wsi_saliency.engines.bars import NoBars
from wsi_saliency.engines.messages import (
    Advanced,
    Begun,
    Done,
    Loaded,
    Loading,
    Logged,
    Order,
    Started,
    Unable,
)
from wsi_saliency.engines.process import Worker, log_level
from wsi_saliency.engines.worker import TIDYING, slide_work
from wsi_saliency.errors import ModelError, NoRoomError, OutputError
from wsi_saliency.files import folders_above, locked, writing
from wsi_saliency.interruption import undisturbed
from wsi_saliency.workflows.jobs import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from wsi_saliency.engines.bars import Bars
    from wsi_saliency.engines.messages import Message
    from wsi_saliency.engines.worker import MakeWork
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.workflows.jobs import Job

ALL_GPUS = "cuda"  # the device that stands for every GPU


@dataclass(eq=False)
class _Place:
    """A device, the worker on it, and the slide that it is at."""

    device: str
    worker: Worker | None = None
    job: Job | None = None


@dataclass
class LocalEngine:
    """Runs slides in worker processes.

    Parameters
    ----------
    out
        The output folder.
    overwrite
        Replace complete results.
    timeout
        Seconds that a slide may take; None: as long as it takes.
    bars
        Shows how far it is.
    make_work
        Makes, in the worker, what does a slide; it is found by its name there.
    """

    out: Path
    overwrite: bool = False
    timeout: float | None = None
    bars: Bars = field(default_factory=NoBars)
    make_work: MakeWork = slide_work
    _places: list[_Place] = field(default_factory=list, init=False)
    _proven: bool = field(default=False, init=False)  # the classifier could be loaded
    _folders: ExitStack = field(default_factory=ExitStack, init=False)  # those still empty at the end go
    _said: set[str] = field(default_factory=set, init=False)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        """End all workers within five seconds; a signal meanwhile ends them at once."""
        places = [place for place in self._places if place.worker]
        try:
            for place in places:
                self._worker(place).end()
            deadline = time.monotonic() + TIDYING
            for place in places:
                self._worker(place).process.join(max(0.0, deadline - time.monotonic()))
        finally:
            with undisturbed():  # a third signal finds nobody in the middle of this
                for place in places:
                    self._worker(place).kill()
                    self._clear(place)
                self._places.clear()
                self._folders.close()

    def run(self, jobs: Iterable[Job], settings: RunSettings) -> Iterator[Outcome]:
        """Run slides, as `Engine` says; with one device in their order, with several as they are done."""
        waiting = deque(jobs)
        devices = settings.device.split(",")
        self._places = self._places or [_Place(device.strip()) for device in devices]
        while waiting or any(place.job for place in self._places):
            for place in self._places:
                if waiting and place.job is None:
                    yield from self._give(place, waiting.popleft(), settings)
            for place in self._talking():
                yield from self._listen(place, settings)

    @staticmethod
    def _worker(place: _Place) -> Worker:
        assert place.worker is not None
        return place.worker

    def _give(self, place: _Place, job: Job, settings: RunSettings) -> Iterator[Outcome]:
        """Give a slide to the worker of a place, which is started if there is none."""
        folder = self.out / job.name
        try:
            with writing(folder):
                self._folders.enter_context(folders_above(folder))
        except OutputError as error:
            yield Outcome(job, failure=str(error), no_room=isinstance(error, NoRoomError))
            return
        if place.worker and not place.worker.process.is_alive():  # it died while it had nothing to do
            place.worker.kill()
            place.worker = None
        if place.worker is None:
            order = Order(self.out, replace(settings, device=place.device), self.overwrite, log_level())
            place.worker = Worker.start(order, self.make_work)
        place.job = job
        place.worker.give(job)

    def _talking(self) -> Iterator[_Place]:
        """Wait until workers have something to say, or a slide has taken too long; yield their places."""
        busy = {self._worker(place).pipe: place for place in self._places if place.job}
        if not busy:
            return
        starts = [since for place in busy.values() if (since := self._worker(place).since) is not None]
        left = None
        if self.timeout is not None and starts:
            left = max(0.0, min(starts) + self.timeout - time.monotonic())
        ready = wait(list(busy), left)
        yield from (place for pipe, place in busy.items() if pipe in ready or self._is_late(place))

    def _is_late(self, place: _Place) -> bool:
        since = self._worker(place).since
        return self.timeout is not None and since is not None and time.monotonic() - since >= self.timeout

    def _listen(self, place: _Place, settings: RunSettings) -> Iterator[Outcome]:
        """Take what a worker says; yield the outcome of its slide if that is it, or if the worker is dead."""
        worker, job = self._worker(place), place.job
        assert job is not None
        if not worker.pipe.poll() and self._is_late(place):
            reason = f"stopped after {self.timeout:g} s (--slide-timeout)"
            yield self._lost(place, Outcome(job, failure=f"{job.slide}: {reason}", trace=worker.stop()))
            return
        message = worker.hear()
        if message is None:
            death, trace = worker.death()
            if not worker.can_work and not self._proven:
                self._lost(place, Outcome(job))
                raise ModelError(f"{death} while the classifier was loaded")
            yield self._lost(place, Outcome(job, failure=f"{job.slide}: {death}", trace=trace))
        elif isinstance(message, Done):
            self._leave(place)
            yield message.outcome
        else:
            self._note(place, message)

    def _note(self, place: _Place, message: Message) -> None:
        """Take note of a message that is no outcome."""
        worker = self._worker(place)
        match message:
            case Started():
                worker.began()
            case Loading():
                worker.loads()
            case Loaded(devices):
                worker.began()
                self._proven = True
                self._take_all(place, devices)
            case Begun(name, count, unit):
                self.bars.begin(place.device, name, count, unit)
            case Advanced(count):
                self.bars.advance(place.device, count)
            case Logged(record):
                self._log(record)
            case Unable(error):
                raise error

    def _take_all(self, place: _Place, devices: int) -> None:
        """Use the other GPUs too, if all of them were asked for."""
        if place.device == ALL_GPUS:
            place.device = f"{ALL_GPUS}:0"
            self._places += [_Place(f"{ALL_GPUS}:{index}") for index in range(1, devices)]

    def _log(self, record: logging.LogRecord) -> None:
        """Show a record as one of this process; what the classifier notes in each worker is said once."""
        text = f"{record.levelname} {record.getMessage()}"
        if record.levelno < logging.WARNING or text not in self._said:
            self._said.add(text)
            logging.getLogger(record.name).handle(record)

    def _lost(self, place: _Place, outcome: Outcome) -> Outcome:
        """Clear away what a dead worker has left of its slide."""
        place.worker = None
        self._clear(place)
        return outcome

    def _clear(self, place: _Place) -> None:
        if place.job:  # whoever takes the lock finds what the dead have left
            with suppress(OutputError), locked(self.out / place.job.name, wait=False):
                pass
        self._leave(place)

    def _leave(self, place: _Place) -> None:
        place.job = None
        self.bars.end(place.device)
