"""The worker process: explains the slides that its parent names, with a classifier that it loads once.

It never outlives its parent: a thread reads the pipe between the two, and its end is that of the parent.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import signal
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from logging.handlers import QueueHandler
from typing import TYPE_CHECKING

from wsi_saliency.engines.messages import (
    Advanced,
    Ahead,
    Begun,
    Done,
    Loaded,
    Loading,
    Logged,
    Looked,
    Looking,
    Message,
    Order,
    Started,
    Unable,
)
from wsi_saliency.errors import ModelError, WsiSaliencyError
from wsi_saliency.interruption import Interruption, interruptible
from wsi_saliency.workflows.progress import PATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

    from wsi_saliency.saliency.engine import Explainer
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.workflows.jobs import Job, Outcome
    from wsi_saliency.workflows.progress import Advance

    Send = Callable[[Message], None]
    Work = Callable[[Job], Outcome]
    LookAhead = Callable[[Job, Callable[[], object]], None]
    MakeWork = Callable[[Order, Send], Work]

LOGGERS = ("wsi_saliency", "tifffile")  # whose records are shown, as the parent shows its own
TIDYING = 4.0  # seconds to tidy up, from the signal that asks for it to the end
ASK_WHERE = getattr(signal, "SIGUSR1", None)  # asks a process in what code it is
_SHOWN_EVERY = 0.1  # seconds


def slide_work(order: Order, send: Send) -> Work:
    """Return what explains a slide; it says when it loads the classifier, and how far a slide is."""
    import torch

    from wsi_saliency.workflows.batch import SlideWork
    from wsi_saliency.workflows.explain import load_explainer

    if order.side_by_side > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // order.side_by_side))

    def load(settings: RunSettings) -> Explainer:
        send(Loading())
        explainer = load_explainer(settings)
        send(Loaded(torch.cuda.device_count() if explainer.device.type == "cuda" else 1))
        return explainer

    progress = partial(_progress, send)
    return SlideWork(order.out, order.settings, order.overwrite, wait=False, progress=progress, load=load)


def serve(pipe: Connection, order: Order, make_work: MakeWork, last_words: Path) -> None:
    """Do the jobs that come through the pipe until it ends; the main function of the process."""
    _leave_terminal_signals_to_the_parent()
    _tell_where_it_dies(last_words)
    send = _sender(pipe)
    _forward_logs(send, order.log_level)
    jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    hints = _Hints(send)
    try:
        with interruptible():
            _unblock_signals()
            threading.Thread(target=_receive, args=(pipe, jobs, hints), daemon=True).start()
            work = make_work(order, send)
            hints.begin(getattr(work, "look_ahead", None))
            send(Started())
            while (job := jobs.get()) is not None:
                send(Done(work(job)))
    except Interruption as signalled:
        raise SystemExit(signalled.exit_code) from None
    except Exception as error:
        send(Unable(_shippable(error)))


def _shippable(error: Exception) -> Exception:
    """Return an error that the parent can show in one line."""
    if isinstance(error, WsiSaliencyError):
        return error
    logging.getLogger(__name__).debug("the classifier", exc_info=True)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return ModelError(f"the classifier cannot be loaded: unexpected {reason} (run with -v for the traceback)")


class _Hints:
    """Passes on which slide comes next, as soon as there is somebody to look at it."""

    def __init__(self, send: Send) -> None:
        self._send, self._lock = send, threading.Lock()
        self._next: Job | None = None
        self._look: LookAhead | None = None

    def begin(self, look: LookAhead | None) -> None:
        """Name what looks at slides; None: nobody does."""
        with self._lock:
            self._look = look
            if self._next:
                self._pass_on(self._next)

    def add(self, job: Job) -> None:
        """Say which slide comes next."""
        with self._lock:
            self._next = job
            self._pass_on(job)

    def _pass_on(self, job: Job) -> None:
        if self._look:
            self._send(Looking(job))
            self._look(job, lambda: self._send(Looked(job)))


def _receive(pipe: Connection, jobs: queue.SimpleQueue[Job | None], hints: _Hints) -> None:
    """Pass jobs on; when the parent has closed the pipe, or is no more, see to it that this process ends."""
    with suppress(EOFError, OSError):
        while True:
            match pipe.recv():
                case Ahead(job):
                    hints.add(job)
                case job:
                    jobs.put(job)
    jobs.put(None)
    os.kill(os.getpid(), signal.SIGTERM)  # to the main thread, which tidies up
    time.sleep(TIDYING)
    os._exit(1)  # it sits in code that hears no signal


def _sender(pipe: Connection) -> Send:
    """Return what sends messages from any thread; to a parent that is no more, nothing is said."""
    lock = threading.Lock()

    def send(message: Message) -> None:
        with suppress(OSError), lock:
            pipe.send(message)

    return send


@contextmanager
def _progress(send: Send, name: str, count: int, unit: str = PATCH) -> Iterator[Advance]:
    """Tell the parent of patches, not more often than anybody looks."""
    done, last = 0, time.monotonic()
    send(Begun(name, count, unit))

    def advance(more: int) -> None:
        nonlocal done, last
        done += more
        if time.monotonic() - last >= _SHOWN_EVERY:
            send(Advanced(done))
            done, last = 0, time.monotonic()

    yield advance
    send(Advanced(done))


class _Forward(QueueHandler):
    """Sends records to the parent, whose handlers show them."""

    def __init__(self, send: Send) -> None:
        super().__init__(queue.SimpleQueue())
        self._send = send

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a record, made fit for it."""
        self._send(Logged(record))


def _forward_logs(send: Send, level: int) -> None:
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [_Forward(send)]
        logger.setLevel(level)
        logger.propagate = False


def _tell_where_it_dies(file: Path) -> None:
    """Let the system write to a file, which the parent reads, in what code a crash or a timeout found us."""
    words = file.open("w", encoding="utf-8")  # open until the end
    with suppress(OSError):  # some systems keep the names of open files
        file.unlink()
    faulthandler.enable(words)
    if ASK_WHERE is not None:
        faulthandler.register(ASK_WHERE, words)


def _leave_terminal_signals_to_the_parent() -> None:
    """Ignore what a terminal sends to all its processes: the parent hears it, and tells this one."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _unblock_signals() -> None:
    """Hear the signals that the parent had blocked until this process could deal with them."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
