from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from wsi_saliency import interruption
from wsi_saliency.cli import cli
from wsi_saliency.errors import OutputError
from wsi_saliency.interruption import (
    Interruption,
    interruptible,
    reraise_interruption,
    tidying,
    undisturbed,
)
from wsi_saliency.workflows import doctor
from wsi_saliency.workflows.batch import _attempt
from wsi_saliency.workflows.jobs import Job

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


def send(name):
    """Send a signal to this thread; it has come when the call returns."""
    signal.raise_signal(getattr(signal, name))


def send_inside(name):
    with interruptible():
        send(name)


@pytest.mark.parametrize("name", CODES)
def test_each_signal_raises_in_the_block_and_has_its_code(name):
    before = [signal.getsignal(getattr(signal, name)) for name in CODES]
    with pytest.raises(Interruption) as caught:
        send_inside(name)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.exit_code == CODES[name]
    assert [signal.getsignal(getattr(signal, name)) for name in CODES] == before


def test_a_second_signal_does_not_disturb_the_tidying_up(monkeypatch):
    monkeypatch.setattr(interruption, "_GRACE", 1e9)
    tidied = []

    def work():
        try:
            send("SIGTERM")
        finally:
            send("SIGHUP")
            tidied.append(True)

    with pytest.raises(Interruption) as caught, interruptible():
        work()
    assert (caught.value.exit_code, tidied) == (143, [True])


def test_a_signal_that_got_lost_can_be_sent_again(monkeypatch):
    """Python ignores what is raised in callbacks, for example."""
    monkeypatch.setattr(interruption, "_GRACE", 0.1)
    seen = []
    with interruptible():
        for _ in range(2):
            try:
                send("SIGTERM")
            except Interruption:
                seen.append(True)
            time.sleep(0.2)
    assert seen == [True, True]


def test_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        send_inside("SIGHUP")
        with undisturbed():
            send("SIGHUP")
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", CODES)
def test_a_signal_waits_until_steps_that_belong_together_are_done(name):
    done = []

    def work():
        with undisturbed():
            send(name)
            done.append("first")
            send("SIGINT")
            done.append("second")
        done.append("third")

    with pytest.raises(Interruption) as caught, interruptible():
        work()
    assert (caught.value.exit_code, done) == (CODES[name], ["first", "second"])


def test_without_a_signal_nothing_waits():
    before = [signal.getsignal(getattr(signal, name)) for name in CODES]
    with undisturbed():
        assert [signal.getsignal(getattr(signal, name)) for name in CODES] != before
    assert [signal.getsignal(getattr(signal, name)) for name in CODES] == before


def test_another_thread_is_left_alone():
    done = []

    def work():
        with interruptible(), undisturbed():
            done.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.getsignal(signal.SIGTERM)]


def test_what_threads_would_tidy_up_is_tidied_up_where_the_block_ends():
    """The process may end before they do."""
    begun, over, steps = threading.Event(), threading.Event(), []

    def work():
        with tidying(lambda: steps.append(threading.current_thread().name)):
            begun.set()
            over.wait(60)

    thread = threading.Thread(target=work, name="work")
    with interruptible():
        thread.start()
        begun.wait(60)
    assert steps == ["MainThread"]
    over.set()
    thread.join()
    assert steps == ["MainThread", "work"]


def test_a_terminal_that_goes_away_does_not_spoil_the_tidying_up(tmp_path):
    """The message cannot be shown any more; writing it must not become another error."""
    code = """
import sys, time
from pathlib import Path
from wsi_saliency.interruption import interruptible
try:
    with interruptible():
        Path(sys.argv[1], "started").touch()
        time.sleep(600)
except KeyboardInterrupt as e:
    print("to nowhere", file=sys.stderr, flush=True)
    Path(sys.argv[1], "tidied").touch()
    sys.exit(e.exit_code)
"""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n{code}",
            tmp_path,
        ],
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        start_new_session=True,
    )
    os.close(theirs)
    while not (tmp_path / "started").exists() and process.poll() is None:
        time.sleep(0.02)
    os.close(ours)  # the terminal's window is closed
    assert process.wait(120) == 129
    assert (tmp_path / "tidied").exists()


def swallowed(name):
    """Do as ctypes does, when a signal comes while it converts an argument."""
    try:
        send(name)
    except KeyboardInterrupt as interruption:
        raise ctypes.ArgumentError(f"argument 1: {interruption!r}") from None


def test_an_interruption_that_a_library_has_swallowed_is_raised_again():
    def work():
        try:
            swallowed("SIGTERM")
        except ctypes.ArgumentError:
            reraise_interruption()

    with pytest.raises(Interruption) as caught, interruptible():
        work()
    assert caught.value.exit_code == 143
    reraise_interruption()  # the block has ended


def test_without_a_signal_nothing_is_raised_again():
    with interruptible():
        reraise_interruption()


def test_a_slide_that_a_signal_ends_is_none_that_failed():
    with pytest.raises(Interruption), interruptible():
        _attempt(Job(Path("slide.svs"), Path("slide")), lambda: swallowed("SIGTERM"))


def test_a_command_that_a_signal_ends_says_so(monkeypatch):
    def failing(folder):
        try:
            swallowed("SIGTERM")
        except ctypes.ArgumentError as error:
            raise OutputError("slide.svs: cannot be read (argument 1)") from error

    monkeypatch.setattr(doctor, "examine", failing)
    result = CliRunner().invoke(cli, ["doctor"])
    assert (result.exit_code, result.stderr) == (143, "Interrupted; nothing unfinished was left behind.\n")
