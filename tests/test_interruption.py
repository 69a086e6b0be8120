from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from wsi_saliency import interruption
from wsi_saliency.interruption import Interruption, interruptible

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


def send(name):
    """Send a signal to this process, and give it time to come."""
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(0.3)


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


def test_a_second_signal_does_not_disturb_the_tidying_up():
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
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_is_left_alone():
    done = []

    def work():
        with interruptible():
            done.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.getsignal(signal.SIGTERM)]


def test_a_terminal_that_goes_away_does_not_spoil_the_tidying_up(tmp_path):
    """The message cannot be shown any more; writing it must not become another error."""
    code = """
import sys, time
from pathlib import Path
from wsi_saliency.interruption import interruptible
try:
    with interruptible():
        Path(sys.argv[1], "started").touch()
        time.sleep(30)
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
    assert process.wait(30) == 129
    assert (tmp_path / "tidied").exists()
