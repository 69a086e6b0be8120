"""Laying back: stitching, placement, pyramids and what other programs read. Nothing here imports torch."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from wsi_saliency.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's errors while ``path`` is written into one line.

    Raises
    ------
    OutputError
        For any ``OSError`` inside: no space, no permission, no such folder.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise OutputError(f"{path}: cannot be written ({reason}); choose another folder with -o") from error
