"""What pages are made of: pictures, tables and their cells; ``templates/parts.html`` makes HTML of them."""

from __future__ import annotations

import math
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from wsi_saliency.report.wording import interval, mean, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsi_saliency.evaluation.rivals import Difference
    from wsi_saliency.evaluation.statistics import Summary, Verdict

    Order = Literal["", "ascending", "descending"]

_LEGIBLE = 0.7  # share of its size below which a picture is not shrunk: it scrolls in its box
_SIGN: dict[Verdict, str] = {"better": "✓", "worse": "✗", "undecided": "?"}


@dataclass(frozen=True)
class Picture:
    """A picture with its name on the page, its words, its PNG and its size on the page in pixels."""

    name: str
    title: str
    caption: str
    png: bytes
    w: int
    h: int

    @property
    def base64(self) -> str:
        """The PNG as it is written into an address."""
        return b64encode(self.png).decode("ascii")

    @property
    def min_w(self) -> int:
        """The width in pixels below which its letters would be too small."""
        return round(_LEGIBLE * self.w)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Parameters
    ----------
    heading
        The text above it.
    numeric
        Whether it holds numbers: these stand at the right, and are sorted by size.
    first
        Whether it begins a group of columns.
    order
        How its values are ordered, if the table comes sorted by them.
    """

    heading: str
    numeric: bool = False
    first: bool = False
    order: Order = ""


@dataclass(frozen=True)
class Group:
    """A heading over so many columns; empty: none."""

    heading: str
    columns: int


@dataclass(frozen=True)
class Mark:
    """A sign before a cell's text, the kind that gives its colour, and a word for those who cannot see it."""

    sign: str
    kind: str
    word: str


@dataclass(frozen=True)
class Link:
    """A text that leads to an address."""

    text: str
    address: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Parameters
    ----------
    text
        What it shows.
    value
        What it is sorted by; None and NaN come last.
    note
        What stands below the text in small letters.
    mark
        A sign before the text.
    links
        What stands behind the text.
    picture
        Address of a picture that is shown small, and leads to itself.
    """

    text: str = ""
    value: str | float | None = None
    note: str = ""
    mark: Mark | None = None
    links: Sequence[Link] = ()
    picture: str = ""

    @property
    def sort_key(self) -> str:
        """The value as the page's script reads it, with all digits."""
        if self.value is None or (isinstance(self.value, float) and math.isnan(self.value)):
            return ""
        if isinstance(self.value, float) and math.isinf(self.value):
            return "Infinity" if self.value > 0 else "-Infinity"
        return str(self.value)


@dataclass(frozen=True)
class Row:
    """A row of a table; ``names`` is the text by which it is found, ``kind`` how it is shown."""

    cells: Sequence[Cell]
    names: str = ""
    kind: Literal["", "control"] = ""


@dataclass(frozen=True)
class Table:
    """A table, its ``name`` on the page, and ``groups`` of columns from left to right, if there are any.

    Raises
    ------
    ValueError
        If a row has more or fewer cells than there are columns, or the groups span more or fewer.
    """

    name: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    groups: Sequence[Group] = ()

    def __post_init__(self) -> None:
        spans = {len(row.cells) for row in self.rows} | ({sum(g.columns for g in self.groups)} - {0})
        if spans - {len(self.columns)}:
            raise ValueError(f"table {self.name}: {len(self.columns)} columns, but rows of {sorted(spans)}")


def words(text: str) -> Cell:
    """Make a cell of plain text."""
    return Cell(text, text)


def number_cell(value: float) -> Cell:
    """Make a cell of a number."""
    return Cell(number(value), value)


def mean_cell(found: Summary) -> Cell:
    """Make a cell of a mean, with its interval as a note; empty if nothing was measured."""
    return Cell(mean(found), found.mean, interval(found)) if found.n else Cell()


def difference_cell(found: Difference) -> Cell:
    """Make a cell of a mean difference, marked as better, worse or undecided."""
    mark = Mark(_SIGN[found.verdict], found.verdict, found.verdict)
    return Cell(mean(found.summary, signed=True), found.summary.mean, interval(found.summary), mark)
