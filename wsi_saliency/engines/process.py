"""A worker process as its parent sees it: started when there is a slide for it, and ended."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from typing import IO, TYPE_CHECKING

from wsi_saliency.engines.messages import Ahead
from wsi_saliency.engines.worker import ASK_WHERE, LOGGERS, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from wsi_saliency.engines.messages import Message, Order
    from wsi_saliency.engines.worker import MakeWork
    from wsi_saliency.workflows.jobs import Job

_SHELL_SIGNAL = 128  # and the number of a signal: what a process that a signal has ended reports
_ANSWERING = 5.0  # seconds that a process may take to write in what code it is
_POLL = 0.01  # seconds
_LONGEST = 100_000  # bytes of that
_LAST_WORDS = (b" in <module>\n", b"  ...\n")  # where that ends; dots stand for very many calls
_ENDING = 60.0  # seconds that a process whose pipe has ended may take to be gone


@dataclass
class Worker:
    """A worker process.

    Parameters
    ----------
    process
        The process.
    pipe
        This end of the pipe to it.
    can_work
        Whether it has come so far that what happens to it concerns its slide only: not while it starts, nor
        while it loads the classifier.
    since
        When it began with its slide; None while it starts or loads the classifier.
    last_words
        What it wrote when it died: in what code it was.
    """

    process: SpawnProcess
    pipe: Connection
    last_words: IO[bytes]
    can_work: bool = False
    since: float | None = field(default=None)

    @classmethod
    def start(cls, order: Order, make_work: MakeWork) -> Worker:
        """Start a process, which imports everything anew: a fork would take locks and devices along."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        number, name = tempfile.mkstemp(prefix="wsi-saliency-")  # the process removes it
        process = context.Process(target=serve, args=(theirs, order, make_work, Path(name)))
        try:
            with _signals_later():
                process.start()
        except BaseException:  # such as a signal that had waited
            if process.pid is not None:
                process.kill()
            os.close(number)
            raise
        theirs.close()
        return cls(process, ours, os.fdopen(number, "rb", buffering=0))

    def give(self, job: Job) -> None:
        """Let it do a slide."""
        with suppress(OSError):  # it has died; reading the pipe says so
            self.pipe.send(job)
        if self.can_work:
            self.began()

    def hint(self, job: Job) -> None:
        """Let it look at the slide that comes next."""
        with suppress(OSError):
            self.pipe.send(Ahead(job))

    def began(self) -> None:
        """Note that it is at its slide from now on."""
        self.can_work, self.since = True, time.monotonic()

    def loads(self) -> None:
        """Note that it loads the classifier."""
        self.can_work, self.since = False, None

    def hear(self) -> Message | None:
        """Return the next message; None if the process is no more."""
        try:
            message: Message = self.pipe.recv()
        except (EOFError, OSError):
            return None
        return message

    def end(self) -> None:
        """Ask it to end: it leaves nothing unfinished."""
        self.pipe.close()

    def kill(self) -> None:
        """End it at once; what it leaves behind has to be cleared away."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.last_words.close()

    def stop(self) -> str:
        """End it at once, and return in what code it was."""
        if ASK_WHERE is not None and self.process.pid is not None:
            with suppress(OSError):
                os.kill(self.process.pid, ASK_WHERE)
            self._wait_for_words()
        return self._dead()

    def _wait_for_words(self) -> None:
        """Wait until the process has written; no longer, for it goes on with its slide meanwhile.

        The main thread comes last, and in it what was called first.
        """
        until = time.monotonic() + _ANSWERING
        while time.monotonic() < until:
            if self._words().endswith(_LAST_WORDS):
                return
            time.sleep(_POLL)

    def death(self) -> tuple[str, str]:
        """Say how it ended, after its pipe has, and in what code it was, if it wrote that."""
        self.process.join(_ENDING)
        code = self.process.exitcode
        return f"the process died ({_cause(code)})", self._dead()

    def _dead(self) -> str:
        self.process.kill()
        self.process.join()
        words = self._words().decode("utf-8", "replace")
        self.kill()
        return words

    def _words(self) -> bytes:
        """Return all that it wrote so far; this end of the file has a place of its own."""
        self.last_words.seek(0)
        return self.last_words.read(_LONGEST)


def _cause(code: int | None) -> str:
    if code is None:
        return "it closed its pipe"
    number = -code if code < 0 else code - _SHELL_SIGNAL
    if number <= 0 or number not in {known.value for known in signal.Signals}:
        return f"exit code {code}"
    name = signal.Signals(number).name
    return f"signal {number}, {name}{'; often the memory was used up' if name == 'SIGKILL' else ''}"


@contextmanager
def _signals_later() -> Iterator[None]:
    """Let signals wait until the block is left; the process that starts in it waits until it hears them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    _start_tracker()  # it would be started in between, and unblock them
    numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """Start the process that frees what killed ones have left, such as semaphores; it need not say so."""
    silent = "ignore:resource_tracker:UserWarning"
    sys.warnoptions.append(silent)  # of this interpreter, which the other one gets too
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(silent)


def log_level() -> int:
    """Return from which level on this program's records are shown."""
    return logging.getLogger(LOGGERS[0]).getEffectiveLevel()
