"""Wording: what a library says about a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_saliency.messages import one_line

if TYPE_CHECKING:
    from pathlib import Path


def library_says(library: str, error: Exception, path: Path | None = None) -> str:
    """Return a library's own message, to stand in brackets after the program's; it need not name the path."""
    words = str(error) if path is None else str(error).replace(str(path), path.name)
    return f"{library}: {one_line(words) or type(error).__name__}"
