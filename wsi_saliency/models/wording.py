"""Wording: names and numbers of bytes in messages."""

from __future__ import annotations

from wsi_saliency.messages import one_line


def some(names: list[str], shown: int = 3) -> str:
    """List the first of some names, and say how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(one_line(name) for name in names[:shown]) + more


def bytes_in_words(n: int) -> str:
    """Return a number of bytes as B, kB, MB, GB or TB."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} B"
