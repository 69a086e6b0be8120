"""Text from files and from the command line, made fit for where it goes.

It may hold any character: names of slides, metadata of weights, what libraries say of either. `printable` is
for a terminal, `one_line` for a message of the program's, `storable` for a file that others read.
"""

from __future__ import annotations

import logging
import re

_LONGEST = 300  # characters of somebody else's words in a message

# C0 and C1 controls, line separators, marks that turn the direction of writing, and bytes that were no text.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]",
)

_NOT_STORABLE = re.compile("[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    r"""Return text in one line that cannot steer a terminal: controls become escapes such as ``\x1b``."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: object) -> str:
    """Return `printable` words with single spaces between them, cut to 300 characters."""
    words = printable(" ".join(str(text)[: 4 * _LONGEST].split()))
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


def storable(text: str) -> str:
    """Return text with U+FFFD for what not every format can hold: controls and undecodable bytes of names.

    XML cannot hold them, nor can the JSON that strict readers take.
    """
    return _NOT_STORABLE.sub("\ufffd", text)


def bytes_in_words(n: int) -> str:
    """Return a number of bytes as B, kB, MB, GB or TB."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} B"


def duration_in_words(seconds: float) -> str:
    """Return a duration as s, min, h or days, about."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {seconds:.0f} s"


class PrintableFormatter(logging.Formatter):
    """Formats records with their messages made `printable`; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: logging._SysExcInfoType) -> str:
        """Return the lines of a traceback."""
        return "\n".join(printable(line) for line in super().formatException(ei).splitlines())
