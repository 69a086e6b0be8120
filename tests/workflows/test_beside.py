from __future__ import annotations

import threading

import pytest

from wsi_saliency.workflows.beside import beside

LONG = 120.0  # seconds


def test_both_run_at_the_same_time() -> None:
    one, other = threading.Event(), threading.Event()

    def work() -> None:
        one.set()
        assert other.wait(LONG)

    with beside(work):
        assert one.wait(LONG)
        other.set()


def test_the_end_waits_for_the_thread_and_has_its_error() -> None:
    def work() -> None:
        raise OSError("of the thread")

    went_on = False
    with pytest.raises(OSError, match="of the thread"), beside(work):
        went_on = True
    assert went_on


def test_an_error_of_the_block_comes_when_the_thread_is_done() -> None:
    failed, done = threading.Event(), []

    def work() -> None:
        assert failed.wait(LONG)
        done.append(True)
        raise OSError("of the thread")

    def block() -> None:
        with beside(work):
            failed.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done
