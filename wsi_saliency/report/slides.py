"""The slides of an output folder: the table ``summary.csv`` and the page ``index.html``."""

from __future__ import annotations

import csv
import os
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote

from wsi_saliency.errors import OutputError
from wsi_saliency.files import replacing
from wsi_saliency.heatmap.result import REPORT, RUN_JSON, TILES, first_overview
from wsi_saliency.messages import storable
from wsi_saliency.report.parts import Cell, Column, Link, Row, Table, words
from wsi_saliency.report.rendering import rendered
from wsi_saliency.report.wording import plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from wsi_saliency.heatmap.result import Result

SUMMARY, INDEX = "summary.csv", "index.html"
COMPLETE, FAILED = "complete", "failed"
_OURS = b"wsi-saliency"  # stands at the beginning of each page
_BEGINNING = 1000  # bytes


@dataclass(frozen=True)
class SlideRow:
    """A slide in the table, as text; empty where there is nothing to say.

    Parameters
    ----------
    slide, status, reason
        The slide as it was named, ``complete`` or ``failed``, and why it failed.
    patches, tissue_mm2
        How many patches were explained, and the area of the tissue.
    target, positive, highest_probability
        The first target, how many patches are positive for it, and its highest probability.
    maps
        Names of the maps, with spaces between them.
    seconds, when
        How long the last run on it took, and when it ended (UTC, ISO 8601).
    folder
        Where the result is, or was to be, below the output folder; no two rows have the same.
    error_log
        File with the traceback of a failure, below the output folder.
    annotations
        What was drawn on the slide, if a list of slides said so.
    """

    slide: str
    status: str
    folder: str
    reason: str = ""
    patches: str = ""
    tissue_mm2: str = ""
    target: str = ""
    positive: str = ""
    highest_probability: str = ""
    maps: str = ""
    seconds: str = ""
    when: str = ""
    error_log: str = ""
    annotations: str = ""

    @classmethod
    def of(cls, slide: str | Path, name: Path, result: Result) -> SlideRow:
        """Return the row of a complete result; ``name`` is its folder below the output folder."""
        plain = cls(storable(str(slide)), COMPLETE, storable(name.as_posix()))
        try:
            return plain._with_figures(result) if result.is_current else plain
        except (OutputError, KeyError, TypeError, ValueError):  # a damaged record
            return plain

    def _with_figures(self, result: Result) -> SlideRow:
        record = result.record
        target = record["targets"][0]
        return SlideRow(
            self.slide,
            self.status,
            self.folder,
            "",
            str(record["patches"]["tissue"]),
            str(record["slide"]["tissue_mm2"]),
            storable(target["name"]),
            str(target["positive"]),
            "" if target["highest_probability"] is None else f"{target['highest_probability']:.6g}",
            storable(" ".join(found.spec.name for found in result.maps)),
            str(record["seconds"]["total"]),
            _end(record["started"], record["seconds"]["total"]),
        )

    @property
    def sort_key(self) -> tuple[bool, str]:
        """Failures first, then by folder."""
        return self.status != FAILED, self.folder


def _end(started: str, seconds: float) -> str:
    return (datetime.fromisoformat(started) + timedelta(seconds=seconds)).isoformat(timespec="seconds")


COLUMNS = tuple(field.name for field in fields(SlideRow))


def read_summary(out: Path) -> list[SlideRow]:
    """Read the table of an output folder; empty where there is none.

    Raises
    ------
    OutputError
        If a file of that name is none of this program's.
    """
    try:
        with (out / SUMMARY).open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if not set(COLUMNS) <= set(rows.fieldnames or ()):
                raise OutputError(
                    f"{out / SUMMARY}: is not of this version of the program, and stays as it is"
                )
            return [SlideRow(**{name: row[name] or "" for name in COLUMNS}) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise OutputError(f"{out / SUMMARY}: cannot be read ({error})") from error


def write_summary(out: Path, rows: Iterable[SlideRow]) -> None:
    """Replace the table of an output folder.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with replacing(out / SUMMARY) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(asdict(row) for row in rows)


def write_index(out: Path, rows: Sequence[SlideRow], *, browsable: bool = True) -> None:
    """Replace the page of an output folder.

    Parameters
    ----------
    out, rows
        The folder, and the slides.
    browsable
        Whether a browser shows what is in a folder; a link to one at a URL leads nowhere.

    Raises
    ------
    OutputError
        If it cannot be written, or a file of that name is none of this program's.
    """
    page = out / INDEX
    if page.exists() and _OURS not in page.read_bytes()[:_BEGINNING]:
        raise OutputError(f"{page}: is not of this program, and stays as it is")
    failed = sum(row.status == FAILED for row in rows)
    subject = f"{plural(len(rows), 'slide')}, {failed} failed" if failed else plural(len(rows), "slide")
    text = rendered("slides.html", subject=subject, slides=_table(rows, browsable=browsable))
    with replacing(page) as part:
        part.write_text(text, encoding="utf-8")


def _table(rows: Sequence[SlideRow], *, browsable: bool) -> Table:
    columns = [
        *map(Column, ("Slide", "Overview", "Status", "Target")),
        *(
            Column(name, numeric=True)
            for name in ("Positive", "Highest probability", "Patches", "Tissue mm²", "Seconds")
        ),
        *map(Column, ("Maps", "Files")),
    ]
    ordered = sorted(rows, key=lambda row: row.sort_key)
    return Table("slides", columns, [_row(row, browsable=browsable) for row in ordered])


def _row(row: SlideRow, *, browsable: bool) -> Row:
    complete = row.status == COMPLETE
    names = (row.folder, row.status, row.target, row.maps, row.reason)
    files = {"page": REPORT, "folder": "", "patches": TILES, "record": RUN_JSON} if complete else {}
    links = [Link(text, _address(row.folder, file)) for text, file in files.items() if file or browsable]
    if row.error_log:
        links.append(Link("traceback", _address(row.error_log)))
    return Row(
        [
            Cell(row.folder, row.folder, note=row.slide),
            Cell(picture=_address(row.folder, first_overview(row.maps.split()))) if complete else Cell(),
            Cell(row.status, row.status, note=row.reason),
            words(row.target),
            *map(_figure, (row.positive, row.highest_probability, row.patches, row.tissue_mm2, row.seconds)),
            words(row.maps),
            Cell(links=links),
        ],
        " ".join(names),
    )


def _figure(text: str) -> Cell:
    return Cell(text, text or None)


def _address(*parts: str) -> str:
    """Return a relative address that is none of another scheme or host, whatever names hold."""
    return "./" + quote(os.fsencode("/".join(parts)))
