"""One run at a time on a place at a URL, where there are no locks: a small file beside it says who has it.

Whoever works there renews the file. If it has not been renewed for minutes, its owner is taken for dead, and
the next one takes the place over. Two owners at once are rare, and not impossible: stores without conditional
writes, clocks that differ by minutes, and machines that fall asleep allow it. So whoever puts something there
asks again and again, and before the last step, whether the place is still his.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING

from wsi_saliency.errors import BusyError
from wsi_saliency.interruption import tidying

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wsi_saliency.remote import Remote

log = logging.getLogger(__name__)

RENEWED = 30.0  # seconds
STALE = 300.0  # seconds without renewal, after which an owner is taken for dead
_POLL = 2.0  # seconds
_RELEASING = 1.5  # seconds that a store may take to answer at the end of a run


@dataclass(frozen=True)
class Owner:
    """Who has a place.

    Parameters
    ----------
    run
        Which run; it gives a slide to one process at a time, so another process of the same run is dead.
    folder
        The folder of its machine that it works in, for which it has a lock.
    host, process
        Where it is, for those who wait.
    token
        Differs for each owner.
    """

    run: str
    folder: str
    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)
    token: str = field(default_factory=lambda: token_hex(8))

    def may_take_from(self, holder: Owner) -> bool:
        """Whether another one is certainly dead: we have its lock, or its run has given the slide to us."""
        return holder.run == self.run or (holder.host, holder.folder) == (self.host, self.folder)

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


@dataclass
class Claim:
    """The file that says who has a place.

    Parameters
    ----------
    remote, name
        Where the file is.
    owner
        Who wants it.
    """

    remote: Remote
    name: str
    owner: Owner
    _taken: bool = field(default=False, init=False)

    def holder(self) -> Owner | None:
        """Return who has the place, other than one who is dead or ourselves.

        Raises
        ------
        OutputError
            If the store does not say.
        """
        (content,) = self.remote.read([self.name])
        return self.holder_in(content)

    def holder_in(self, content: bytes | None) -> Owner | None:
        """Return whom the content of the file names, other than one who is dead or ourselves."""
        holder, renewed = _parsed(content)
        if holder is None or holder == self.owner or self.owner.may_take_from(holder):
            return None
        return holder if time.time() - renewed < STALE else None

    def _content(self) -> bytes:
        return json.dumps(asdict(self.owner) | {"renewed": time.time()}).encode()

    def is_ours(self) -> bool:
        """Whether nobody has taken the place over."""
        (content,) = self.remote.read([self.name])
        return _parsed(content)[0] == self.owner

    def take(self, what: str, *, wait: bool) -> None:
        """Take the place when it is free.

        Raises
        ------
        BusyError
            If somebody else has it and ``wait`` is False.
        """
        told = False
        while not self._has_taken():
            if (holder := self.holder()) is None:
                continue
            if not wait:
                raise BusyError(f"{what}: {holder} is working on it")
            if not told:
                log.warning("%s: %s is working on it; waiting for its end", what, holder)
                told = True
            time.sleep(_POLL)

    def _has_taken(self) -> bool:
        self._taken = True  # a signal in between leaves what `release` finds
        if not self.remote.create(self.name, self._content()):
            if self.is_ours():  # the answer to an earlier try was lost
                return True
            if self.holder() is not None:
                return False
            self.remote.write(self.name, self._content())
        return self.is_ours()

    def renew(self) -> None:
        """Say that we are alive, unless somebody has taken the place over."""
        if self.is_ours():
            self.remote.write(self.name, self._content(), tries=1)

    def release(self) -> None:
        """Give the place back, if the store answers soon."""
        if not self._taken:
            return
        self._taken = False
        thread = threading.Thread(target=self._remove, name="release", daemon=True)
        thread.start()
        thread.join(_RELEASING)

    def _remove(self) -> None:
        with suppress(BaseException):  # whoever comes next sees that it is old
            if self.is_ours():
                self.remote.remove([self.name])


def _parsed(content: bytes | None) -> tuple[Owner | None, float]:
    """Return whom the content of a file names, and when it was renewed."""
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        facts = json.loads(content or b"")
        renewed = float(facts.pop("renewed"))
        return Owner(**facts), renewed
    return None, 0.0


@contextmanager
def claimed(claim: Claim, what: str, *, wait: bool) -> Iterator[Callable[[], None]]:
    """Have a place to oneself; yields what makes sure, before the last step, that this is still so.

    Parameters
    ----------
    claim, what
        The place, and what it is called.
    wait
        Wait until it is free; otherwise `BusyError` says that it is not.
    """

    def check() -> None:
        if not claim.is_ours():
            raise BusyError(
                f"{what}: another run has taken it over, since this one was not heard of for long"
            )

    with tidying(claim.release):
        claim.take(what, wait=wait)
        with _renewing(claim):
            yield check


@contextmanager
def _renewing(claim: Claim) -> Iterator[None]:
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEWED):
            with suppress(BaseException):  # the next time may do
                claim.renew()

    thread = threading.Thread(target=renew, name="renew", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_RELEASING)  # or it could write the file again when it has been removed
