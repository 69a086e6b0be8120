"""The table of patches as it is written: row by row, and on from where an earlier run has ended."""

from __future__ import annotations

import csv
import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from wsi_saliency.files import writing
from wsi_saliency.heatmap.snapshot import DamagedSnapshotError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class TileTable:
    """A table of patches that is being written.

    Parameters
    ----------
    path
        Where it stands.
    file
        The open file.
    """

    path: Path
    file: IO[str]

    def write(self, row: Sequence[object]) -> None:
        """Write a row."""
        with writing(self.path):
            csv.writer(self.file).writerow(row)

    def size(self) -> int:
        """Write out all rows so far; return how many bytes they are."""
        with writing(self.path):
            self.file.flush()
            return os.fstat(self.file.fileno()).st_size


@contextmanager
def tile_table(path: Path, columns: Sequence[str], kept: int | None = None) -> Iterator[TileTable]:
    """Start a table of patches, or go on with one.

    Parameters
    ----------
    path
        Where it stands.
    columns
        Its headings.
    kept
        Bytes of a table that is there; what comes after them is cut off. None: it is a new one.

    Raises
    ------
    OutputError
        If it cannot be written.
    DamagedSnapshotError
        If fewer bytes are there.
    """
    if kept is not None and not (path.is_file() and path.stat().st_size >= kept):
        raise DamagedSnapshotError(f"{path.name} is too short")
    with ExitStack() as stack:
        with writing(path):
            mode = "w" if kept is None else "r+"
            table = TileTable(path, stack.enter_context(path.open(mode, newline="", encoding="utf-8")))
            if kept is None:
                table.write(columns)
            else:
                table.file.truncate(kept)
                table.file.seek(0, os.SEEK_END)
        yield table
        with writing(path):
            table.file.close()
