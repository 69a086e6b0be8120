"""Signals that ask the program to end do it as Ctrl-C does: everything is tidied up on the way out."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_GRACE = 1.0  # seconds


class Interruption(KeyboardInterrupt):
    """A signal asks the program to end.

    Attributes
    ----------
    exit_code : int
        What shells report for a program that the signal has ended: 128 and the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


_raised: list[Interruption] = []
"""What signals have raised in the running `interruptible` block."""


_promised: list[Callable[[], None]] = []
"""What is to be tidied up, the latest last."""


def is_interrupted() -> bool:
    """Whether a signal has come in the running `interruptible` block."""
    return bool(_raised)


def reraise_interruption() -> None:
    """Raise an interruption again that a library has turned into an error of its own; else do nothing.

    ctypes does so: a signal that comes while it converts an argument ends in its ``ArgumentError``. Python
    itself drops what is raised in a callback of the garbage collector. To be called where an error is about
    to become a line of text, and now and then in long work.

    Raises
    ------
    Interruption
        If a signal has come in the running `interruptible` block.
    """
    if _raised:
        raise _raised[-1]


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interruption` in this block at Ctrl-C, SIGTERM (kill, systemd, Slurm) and SIGHUP (no terminal).

    Further signals are ignored for a second, the time for tidying up: some that end a program send two.
    A signal that was ignored before, as SIGHUP is under nohup, stays so. Outside of the main thread, where no
    signal arrives, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _raised.clear()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    handler = _handler()
    for number, former in before.items():
        if former not in (signal.SIG_IGN, None):
            signal.signal(number, handler)
    try:
        yield
    finally:
        with undisturbed():
            while _promised:
                _promised.pop()()
        for number, former in before.items():
            if former is not None:
                signal.signal(number, former)
        _raised.clear()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep a signal that asks the program to end until this block is over.

    For short steps that belong together. Outside of the main thread, where none arrives, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before: dict[int, Any] = {}
    try:
        for number in _SIGNALS:
            former = signal.getsignal(number)
            if former not in (signal.SIG_IGN, None):
                before[number] = former
                signal.signal(number, lambda number, frame: came.append(number))
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
        if came:
            signal.raise_signal(came[0])


@contextmanager
def tidying(step: Callable[[], None]) -> Iterator[None]:
    """Do a step at the end of this block, however it ends, undisturbed by signals.

    The exception of a signal can come between any two instructions, also between those that enter and leave a
    block, so that a step may be left out. After a signal all are done again where `interruptible` ends, and
    there also those of threads that are still at work: the process may end before they do.

    Parameters
    ----------
    step
        Tidies up, and does no harm where there is nothing to tidy up.
    """
    try:
        _promised.append(step)
        yield
    finally:
        with undisturbed():
            step()
            if step in _promised and not _raised:
                _promised.remove(step)


def _handler() -> Callable[[int, FrameType | None], None]:
    last = -_GRACE

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last < _GRACE:
            return
        last = time.monotonic()
        _leave_lost_terminal()
        _raised.append(Interruption(number))
        raise _raised[-1]

    return interrupt


def _leave_lost_terminal() -> None:
    """Let nothing more be written to a terminal that has gone: it would be an error in the tidying up."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # not there, or no file
            number = stream.fileno()
            try:
                os.write(number, b"")
            except OSError:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)
