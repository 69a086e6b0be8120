"""Memory that is free in this process, given back to the system; free of torch."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return what has been freed to the system, where the C library can do so (glibc's ``malloc_trim``).

    glibc keeps freed memory for later, and in one heap for each thread. After a look at a large slide these
    are 150 MB in many places, where the blocks of the slide do not go.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
