"""What a process of a Ray cluster does with a slide: it has a worker process of ours explain it.

So a slide that ends a process ends the worker only, which tells in what code it was, and never sees Ray. The
worker stays for the next slide that comes to the same process, with the classifier that it has loaded.
"""

from __future__ import annotations

import atexit
import os
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi_saliency.engines.messages import Unable
from wsi_saliency.engines.place import Place, end_all
from wsi_saliency.errors import OutputError, WsiSaliencyError
from wsi_saliency.heatmap.shelves import shelved

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wsi_saliency.engines.messages import Message, Order
    from wsi_saliency.engines.worker import MakeWork
    from wsi_saliency.workflows.jobs import Job

_LOOK_UP = 0.2  # seconds, after which Ray is heard that wants the task to end
_IDLE = 10.0  # seconds without a slide, after which the worker gives its memory back


@dataclass(frozen=True)
class Errand:
    """What is to be done with a slide on another machine.

    Parameters
    ----------
    order, make_work, timeout
        As `Place` takes them.
    cwd
        The folder in which relative paths begin.
    sign
        A file in the output folder, by which a machine knows that it sees the same folder; None: it is a URL.
    proven
        Whether the classifier could be loaded before.
    """

    order: Order
    make_work: MakeWork
    timeout: float | None
    cwd: Path
    sign: Path | None
    proven: bool = False


class Keeper:
    """Keeps the worker of this process from one slide to the next."""

    def __init__(self, idle: float = _IDLE) -> None:
        self._idle = idle
        self._place: Place | None = None
        self._made_for: tuple[object, ...] = ()
        self._slides = 0
        self._lock = threading.Lock()

    def messages(self, errand: Errand, job: Job) -> Iterator[Message]:
        """Let the worker do a slide, and yield what it says; last `Done`, or `Unable`."""
        with self._lock:
            self._slides += 1
            try:
                yield from self._heard(errand, job)
            except WsiSaliencyError as error:
                self._end()
                yield Unable(type(error)(f"{socket.gethostname()}: {error}"))
            except BaseException:  # Ray wants the task to end
                self._end()
                raise
        idle = threading.Timer(self._idle, self._end_after, (self._slides,))
        idle.daemon = True
        idle.start()

    def _heard(self, errand: Errand, job: Job) -> Iterator[Message]:
        _go_where_it_was_started(errand)
        place = self._place_for(errand)
        place.give(job, errand.order, errand.timeout)
        while place.job:
            left = place.seconds_left()
            if place.pipe.poll(_LOOK_UP if left is None else min(left, _LOOK_UP)) or left == 0:
                message = place.listen(proven=errand.proven)
                if isinstance(message, Unable):
                    raise message.error
                yield message

    def _place_for(self, errand: Errand) -> Place:
        """Return the worker that is there, if it is one for this errand and the GPU that Ray has given."""
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        wanted = (errand.order, errand.make_work, gpus)
        if self._place is None or self._made_for != wanted:
            self._end()
            self._place = Place("ray", errand.order.settings.device, errand.make_work)
            self._made_for = wanted
        return self._place

    def _end_after(self, slides: int) -> None:
        """End the worker, unless more slides than those have come."""
        with self._lock:
            if self._slides == slides:
                self._end()

    def end(self) -> None:
        """End the worker, unless it is at a slide."""
        if self._lock.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._lock.release()

    def _end(self) -> None:
        place, self._place = self._place, None
        if place:
            end_all([place])


def _go_where_it_was_started(errand: Errand) -> None:
    """Let relative paths mean what they mean where the command was given.

    Raises
    ------
    OutputError
        If this machine does not see the output folder.
    """
    if errand.cwd.is_dir():
        os.chdir(errand.cwd)
    if errand.sign and not errand.sign.exists():
        out = errand.cwd / shelved(errand.order.out).folder
        raise OutputError(
            f"{out} is not there, or is another folder than where the command was given; all "
            "machines have to see slides and results under the same paths"
        )


_keeper = Keeper()


def explain(errand: Errand, job: Job) -> Iterator[Message]:
    """Explain a slide, and yield what is said of it; a Ray task, found by its name."""
    yield from _keeper.messages(errand, job)


atexit.register(_keeper.end)  # before multiprocessing would wait for the worker
