"""Two things at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Do something in a thread while the block runs; the end waits for it, however the block ends.

    Raises
    ------
    BaseException
        What the block raises, or else what ``work`` does.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="beside") as thread:
        doing = thread.submit(work)
        yield
        doing.result()
