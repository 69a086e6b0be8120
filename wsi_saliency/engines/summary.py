"""The table and the page of an output folder, kept up to date while slides are done.

They are written every few seconds at most, and at the end; never so often that a run with many slides would
spend its time on them. Several runs on one folder write in turn, each what it knows better than the table.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from wsi_saliency.errors import BusyError, OutputError
from wsi_saliency.heatmap.shelves import shelved
from wsi_saliency.report.slides import (
    COMPLETE,
    INDEX,
    SUMMARY,
    SlideRow,
    read_summary,
    write_index,
    write_summary,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from wsi_saliency.heatmap.shelf import Shelf

log = logging.getLogger(__name__)

_EVERY = 5.0  # seconds
_SHARE = 20  # times as long as the last writing took, nothing is written
_PATIENCE = 60.0  # seconds that another run may take to write
_POLL = 0.05  # seconds


class Summary:
    """The table and the page of an output folder.

    Parameters
    ----------
    out
        The output folder, or the shelf where results stand.
    """

    def __init__(self, out: Path | Shelf) -> None:
        self._shelf = shelved(out)
        self._rows: dict[str, SlideRow] = {}
        self._next = time.monotonic() + _EVERY
        self._broken = False

    def add(self, row: SlideRow) -> None:
        """Take a row in place of the one of the same folder, and write if it is time to."""
        self._rows[row.folder] = row
        if time.monotonic() >= self._next:
            self._write(last=False)

    def close(self, *, quiet: bool = False) -> None:
        """Write all that is not written yet; ``quiet``: say nothing if that cannot be."""
        self._broken = self._broken or quiet
        if self._rows:
            self._write(last=True)

    def _write(self, *, last: bool) -> None:
        start = time.monotonic()
        try:
            self._merge(start + _PATIENCE if last else start)
        except BusyError:
            pass  # another run writes; there is a next time
        except (OutputError, OSError) as error:
            if not self._broken:
                log.warning("%s", error)
            self._broken = True
        self._next = time.monotonic() + max(_EVERY, _SHARE * (time.monotonic() - start))

    def _merge(self, until: float) -> None:
        """Put this run's rows into the table; what has gone from the folder goes from the table."""
        while True:
            try:
                with self._shelf.borrowed(SUMMARY, INDEX) as folder:
                    rows = {row.folder: row for row in read_summary(folder)}
                    rows |= {key: row for key, row in self._rows.items() if _is_newer(row, rows.get(key))}
                    there = self._still_so(rows.values())
                    there.sort(key=lambda row: row.folder)
                    write_summary(folder, there)
                    write_index(folder, there, browsable=self._shelf.shared_folder is not None)
                    return
            except BusyError:
                if time.monotonic() >= until:
                    raise
                time.sleep(_POLL)

    def _still_so(self, rows: Iterable[SlideRow]) -> list[SlideRow]:
        """Return the rows of which what they say can still be so."""
        others = [row.folder for row in rows if row.status == COMPLETE and row.folder not in self._rows]
        gone = set(others) - self._shelf.standing(others)
        return [row for row in rows if row.folder not in gone]


def _is_newer(row: SlideRow, than: SlideRow | None) -> bool:
    return than is None or row.when >= than.when
