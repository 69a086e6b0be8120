"""The connection to a Ray cluster, or to one that is started here; the only place that uses Ray."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from wsi_saliency.engines.messages import Lost, Unable
from wsi_saliency.engines.ray_task import explain
from wsi_saliency.errors import ModelError, SettingsError
from wsi_saliency.interruption import reraise_interruption
from wsi_saliency.messages import one_line

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping

    from wsi_saliency.engines.messages import Message
    from wsi_saliency.engines.ray_task import Errand
    from wsi_saliency.workflows.jobs import Job

_STORE = 80_000_000  # bytes of shared memory for a cluster of this machine: only messages go through it
_ANSWERING = 10.0  # seconds that a cluster may take to answer
_TIDYING = 3.0  # seconds that tasks may take to end; Ray takes about two itself
_NO_USAGE_REPORT = "RAY_USAGE_STATS_ENABLED"


def connect(address: str | None) -> RayCluster:
    """Connect to a cluster; without an address, one is started on this machine.

    Raises
    ------
    SettingsError
        If Ray is not installed, or there is no cluster.
    """
    with _own_signals():
        try:
            importlib.import_module("ray")
        except ImportError as error:
            raise SettingsError("--engine ray needs Ray: pip install 'wsi-saliency[ray]'") from error
        return RayCluster(address)


class RayCluster:
    """Slides as tasks of a Ray cluster.

    Parameters
    ----------
    address
        ``auto`` or HOST:PORT; None starts a cluster on this machine.

    Raises
    ------
    SettingsError
        If there is no cluster.
    """

    def __init__(self, address: str | None) -> None:
        import ray

        self._ray: Any = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            _start(ray, address)
        self._explain = ray.remote(num_returns="streaming", max_retries=0)(explain)
        self._tasks: set[Any] = set()

    def machines(self) -> list[Mapping[str, float]]:
        """Return how many of ``CPU`` and ``GPU`` each machine has."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def submit(self, errand: Errand, job: Job, cpus: int, gpus: float) -> Hashable:
        """Let a slide be done where so much is free, as soon as it is."""
        task = self._explain.options(num_cpus=cpus, num_gpus=gpus, name=one_line(job.name)).remote(
            errand, job
        )
        self._tasks.add(task)
        return task

    def heard(self, seconds: float) -> Iterator[tuple[Hashable, Message]]:
        """Wait until tasks say something, not longer than so many seconds; yield it."""
        for task in self._ready(seconds):
            yield task, self._message(task)

    def _ready(self, seconds: float) -> list[Any]:
        """Wait until one has something to say; return all that have."""
        tasks = list(self._tasks)
        try:
            first = self._ray.wait(tasks, timeout=seconds)[0]
            return self._ray.wait(tasks, num_returns=len(tasks), timeout=0)[0] if first else []
        except KeyboardInterrupt:  # Ray's own, in place of that of the signal
            reraise_interruption()
            raise

    def _message(self, task: Any) -> Message:
        try:
            message: Message = self._ray.get(next(task))
            return message
        except StopIteration:
            return Lost("the process ended without a result", "")
        except self._ray.exceptions.RayError as error:
            return _lost(error)

    def forget(self, task: Hashable) -> None:
        """Listen no more to a task that is done or lost."""
        self._tasks.discard(task)

    def close(self) -> None:
        """End all tasks, which tidy up, and leave the cluster; a signal meanwhile ends it at once."""
        try:
            for task in self._tasks:
                self._ray.cancel(task)
            deadline = time.monotonic() + _TIDYING
            while self._tasks and time.monotonic() < deadline:
                for task, message in self.heard(deadline - time.monotonic()):
                    if isinstance(message, Lost):  # as a cancelled one is
                        self._tasks.discard(task)
        finally:
            self._tasks.clear()
            if self._ours:
                with _own_signals():
                    self._ray.shutdown()


def _start(ray: Any, address: str | None) -> None:
    """Connect, or start a cluster; Ray says nothing, and reports nothing of its use to its makers."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address is None:
        os.environ.setdefault(_NO_USAGE_REPORT, "0")
        ray.init("local", include_dashboard=False, object_store_memory=_STORE, **quiet)
        return
    try:
        _knock(address)
        ray.init(address, **quiet)
    except Exception as error:  # of many kinds
        raise SettingsError(
            f"address (--address) is {address!r}: no Ray cluster can be had there ({one_line(error)}); start "
            "one with 'ray start --head', and give the command on one of its machines"
        ) from error


def _knock(address: str) -> None:
    """Find out whether anybody answers at HOST:PORT; Ray would try for minutes.

    Raises
    ------
    OSError, ValueError
        If nobody does, or it is no HOST:PORT.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()) or "/" in host:
        raise ValueError("it is neither auto nor HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERING).close()


def _lost(error: Exception) -> Message:
    """Say in a few words what became of a task; Ray's own are many lines."""
    kind = {base.__name__ for base in type(error).__mro__}
    if "RayTaskError" in kind and "TaskCancelledError" not in kind:
        reason = one_line(str(error).strip().splitlines()[-1])
        if "ImportError" in kind or "ModuleNotFoundError" in str(error):
            return Unable(
                ModelError(
                    f"a machine of the Ray cluster cannot work ({reason}); install the same everywhere"
                )
            )
        return Lost(f"the process failed ({reason})", str(error))
    if kind & {"NodeDiedError", "LocalRayletDiedError"}:
        return Lost("the machine was lost", str(error))
    if "OutOfMemoryError" in kind:
        return Lost("the memory of the machine was used up", str(error))
    return Lost("the process or its machine was lost", str(error))


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what this program does at signals: Ray would end it in its own way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            with suppress(TypeError):  # one that was not set in Python
                signal.signal(number, handler)
