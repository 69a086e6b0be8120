"""A sign in the output folder, by which the machines of a cluster know that they see the same one."""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager, suppress
from secrets import token_hex
from typing import TYPE_CHECKING

from wsi_saliency.files import folders_above, writing
from wsi_saliency.interruption import tidying
from wsi_saliency.working import new_lock, try_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from filelock import FileLock

_SIGN = re.compile(r"\.[0-9a-f]{16}\.ray")


@contextmanager
def signed(out: Path) -> Iterator[Path]:
    """Leave a sign in a folder while the block runs; remove those of runs that were killed.

    It is locked while its run is alive, for other machines too. Where a file system has no locks, nobody
    knows whose run is dead, and all signs stay.

    Raises
    ------
    OutputError
        If the folder cannot be written to.
    """
    sign = out / f".{token_hex(8)}.ray"
    with ExitStack() as stack:
        with writing(out):
            stack.enter_context(folders_above(sign))
            lock = new_lock(sign)
            stack.enter_context(tidying(lambda: _remove(lock, sign)))
            try_lock(lock)
            sign.touch()
            _remove_dead(out, sign)
        yield sign


def _remove_dead(out: Path, ours: Path) -> None:
    for sign in [path for path in out.iterdir() if _SIGN.fullmatch(path.name) and path != ours]:
        lock = new_lock(sign)
        with suppress(OSError):  # it has just gone, or belongs to another user
            if try_lock(lock):
                _remove(lock, sign)


def _remove(lock: FileLock, sign: Path) -> None:
    """Remove a sign, then let go of its lock: nobody can take that of a file without a name."""
    with suppress(OSError):  # the folder has gone
        sign.unlink(missing_ok=True)
    lock.release()
