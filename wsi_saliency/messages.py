"""Text from files and from the command line on its way to a terminal."""

from __future__ import annotations

import logging
import re

# C0 and C1 controls, line separators, marks that turn the direction of writing, and bytes that were no text.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]",
)


def printable(text: str) -> str:
    r"""Return text in one line that cannot steer a terminal: controls become escapes such as ``\x1b``.

    Names of slides, metadata of weights and whatever else comes from outside may hold any character.
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class PrintableFormatter(logging.Formatter):
    """Formats records with their messages made `printable`; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: logging._SysExcInfoType) -> str:
        """Return the lines of a traceback."""
        return "\n".join(printable(line) for line in super().formatException(ei).splitlines())
