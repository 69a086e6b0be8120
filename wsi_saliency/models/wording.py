"""Wording: what a file says, made fit for a message."""

from __future__ import annotations

_MOST = 300  # characters; what is longer is no name and no note


def plain(text: str) -> str:
    """Return a text on one line, cut to 300 characters, with U+FFFD for what cannot be printed.

    A weights file can say anything, and a terminal obeys control characters.
    """
    words = " ".join(text[: 4 * _MOST].split())
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    return printable if len(printable) <= _MOST else f"{printable[: _MOST - 1]}…"


def some(names: list[str], shown: int = 3) -> str:
    """List the first of some names, and say how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(plain(name) for name in names[:shown]) + more


def bytes_in_words(n: int) -> str:
    """Return a number of bytes as B, kB, MB, GB or TB."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} B"
