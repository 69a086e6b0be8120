"""Wording: names in messages."""

from __future__ import annotations

from wsi_saliency.messages import one_line


def some(names: list[str], shown: int = 3) -> str:
    """List the first of some names, and say how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(one_line(name) for name in names[:shown]) + more
