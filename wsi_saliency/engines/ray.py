"""Slides on the machines of a Ray cluster; one that is lost costs no slide."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from wsi_saliency.engines.messages import Done, Loaded, Lost, Order
from wsi_saliency.engines.place import clear_after_death
from wsi_saliency.engines.process import log_level
from wsi_saliency.engines.process_engine import ProcessEngine
from wsi_saliency.engines.ray_cluster import connect
from wsi_saliency.engines.ray_sign import signed
from wsi_saliency.engines.ray_task import Errand
from wsi_saliency.errors import SettingsError
from wsi_saliency.heatmap.shelves import shelved
from wsi_saliency.interruption import undisturbed
from wsi_saliency.settings import ALL_GPUS
from wsi_saliency.workflows.jobs import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from wsi_saliency.engines.messages import Message
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.workflows.jobs import Job

log = logging.getLogger(__name__)

_DEVICES = ("auto", "cpu", ALL_GPUS, "mps")
_AT_ONCE = 1000  # slides that a cluster is told of: more than it has machines
_LISTENING = 1.0  # seconds
_PATIENCE = 30.0  # seconds until it is said that no machine has room


class Cluster(Protocol):
    """What an engine needs of a cluster: `RayCluster`."""

    def machines(self) -> Sequence[Mapping[str, float]]:
        """Return how many of ``CPU`` and ``GPU`` each machine has."""
        ...

    def submit(self, errand: Errand, job: Job, cpus: int, gpus: float) -> Hashable:
        """Let a slide be done where so much is free; returns a handle of the task."""
        ...

    def heard(self, seconds: float) -> Iterator[tuple[Hashable, Message]]:
        """Wait until tasks say something, not longer than so many seconds; yield it."""
        ...

    def forget(self, task: Hashable) -> None:
        """Listen no more to a task that is done or lost."""
        ...

    def close(self) -> None:
        """End all tasks, and leave the cluster."""
        ...


@dataclass(frozen=True)
class Share:
    """What a slide takes of a machine."""

    device: str
    cpus: int
    gpus: float

    @classmethod
    def of(cls, machines: Sequence[Mapping[str, float]], device: str, side_by_side: int) -> Share:
        """Divide machines among slides: as the smallest of those that count would be.

        A slide takes a GPU and what processors come with it, or without GPUs a whole machine; with several
        ``side_by_side``, so much less.
        """
        with_gpus = [machine for machine in machines if machine.get("GPU", 0) > 0]
        if device == "auto":
            device = ALL_GPUS if with_gpus else "cpu"
        if device == ALL_GPUS:
            each = (machine.get("CPU", 0) / machine["GPU"] for machine in with_gpus)
            gpus = math.floor(10_000 / side_by_side) / 10_000  # Ray counts no finer
            return cls(device, int(min(each, default=side_by_side) / side_by_side), gpus)
        cpus = (machine["CPU"] for machine in machines if machine.get("CPU", 0) >= 1)
        return cls(device, max(1, int(min(cpus, default=1) / side_by_side)), 0)

    def __str__(self) -> str:
        return f"CPU: {self.cpus}, GPU: {self.gpus:g}"


@dataclass
class RayEngine(ProcessEngine):
    """Runs slides on a Ray cluster whose machines see slides and results under the same paths or URLs.

    The parameters are those of `ProcessEngine`, and two more. A device is a GPU, or a machine where there are
    none.

    Parameters
    ----------
    address
        Where the cluster is, ``auto`` or HOST:PORT; None: one is started on this machine.
    connect
        Connects to the cluster.
    """

    address: str | None = None
    connect: Callable[[str | None], Cluster] = connect
    _cluster: Cluster | None = field(default=None, init=False)
    _sign: Path | None = field(default=None, init=False)
    _tasks: dict[Hashable, tuple[Job, Order]] = field(default_factory=dict, init=False)

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        """End all tasks within five seconds; a signal meanwhile ends them at once."""
        try:
            if self._cluster:
                self._cluster.close()
        finally:
            with undisturbed():  # a third signal finds nobody in the middle of this
                jobs = [job for job, _ in self._tasks.values()]
                if jobs:
                    clear_after_death(next(iter(self._tasks.values()))[1], *jobs)
                for left in jobs:
                    self._console.end(str(left.name))
                self._tasks.clear()
                self._folders.close()

    def run(self, jobs: Iterable[Job], settings: RunSettings) -> Iterator[Outcome]:
        """Run slides, as `Engine` says, as they are done.

        Raises
        ------
        SettingsError
            Also if Ray is not installed, there is no cluster, or it has no such devices.
        OutputError
            If a machine does not see the output folder.
        """
        if settings.device not in _DEVICES:
            raise SettingsError(
                f"device (--device) is {settings.device!r}; with --engine ray, Ray deals out the GPUs: it "
                f"has to be one of {', '.join(_DEVICES)}"
            )
        cluster = self._connected()
        share = Share.of(cluster.machines(), settings.device, self.side_by_side)
        order = Order(self.out, replace(settings, device=share.device), self.overwrite, log_level())
        waiting, told = deque(jobs), time.monotonic()
        while waiting or self._tasks:
            while waiting and len(self._tasks) < _AT_ONCE:
                yield from self._submit(cluster, waiting.popleft(), order, share)
            for task, message in cluster.heard(_LISTENING) if self._tasks else ():
                told = math.inf
                yield from self._take(cluster, task, message)
            if time.monotonic() - told > _PATIENCE:
                log.warning("no machine of the Ray cluster has room for a slide yet (%s); waiting", share)
                told = math.inf

    def _connected(self) -> Cluster:
        """Connect, and leave a sign in the output folder by which machines know it."""
        if self._cluster is None:
            self._cluster = self.connect(self.address)
            if folder := shelved(self.out).shared_folder:
                self._sign = self._folders.enter_context(signed(folder))
        return self._cluster

    def _submit(self, cluster: Cluster, job: Job, order: Order, share: Share) -> Iterator[Outcome]:
        """Let a slide be done."""
        if refused := self._without_folder(job):
            yield refused
            return
        errand = Errand(order, self.make_work, self.timeout, Path.cwd(), self._sign, self._proven)
        self._tasks[cluster.submit(errand, job, share.cpus, share.gpus)] = job, order

    def _take(self, cluster: Cluster, task: Hashable, message: Message) -> Iterator[Outcome]:
        """Take what a task says; yield the outcome of its slide if that is it, or if the task is lost."""
        job, order = self._tasks[task]
        match message:
            case Done(outcome):
                self._leave(cluster, task)
                yield outcome
            case Lost(reason, trace):
                self._leave(cluster, task)
                clear_after_death(order, job)
                yield Outcome(job, failure=f"{job.shown}: {reason}", trace=trace, lost=True)
            case Loaded():
                self._proven = True
            case _:
                self._console.show(str(job.name), message)

    def _leave(self, cluster: Cluster, task: Hashable) -> None:
        job, _ = self._tasks.pop(task)
        cluster.forget(task)
        self._console.end(str(job.name))
