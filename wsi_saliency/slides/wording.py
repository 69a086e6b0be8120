"""Words of others in messages: what libraries and files say, as one short printable line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_saliency.messages import printable

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST = 200  # characters


def one_line(text: object) -> str:
    """Return a text without line breaks and control characters, cut to 200 characters.

    A file can hold anything where a name should be, colours and cursor movements of a terminal included.
    """
    words = printable(" ".join(str(text).split()))
    return words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"


def library_says(library: str, error: Exception, path: Path | None = None) -> str:
    """Return a library's own message, to stand in brackets after the program's; it need not name the path."""
    words = str(error) if path is None else str(error).replace(str(path), path.name)
    return f"{library}: {one_line(words) or type(error).__name__}"
