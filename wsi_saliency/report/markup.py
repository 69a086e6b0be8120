"""HTML by pieces: escaped text, and tables that a script sorts by clicking on a header."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# A file's name may hold anything; these are not allowed in HTML, however they are written.
_NOT_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, whether it holds numbers, whether it begins a group of columns."""

    heading: str
    numeric: bool = False
    first: bool = False


@dataclass(frozen=True)
class Cell:
    """What a cell shows, as HTML, the value that it is sorted by (None: at the end), and its class."""

    html: str
    value: str | float | None
    kind: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table; ``names`` is the text by which it is found."""

    cells: Sequence[Cell]
    names: str = ""
    kind: str = ""


def text(value: object) -> str:
    """Escape anything for HTML, between tags and in quoted attributes."""
    return escape(_NOT_TEXT.sub("\ufffd", str(value)), quote=True)


def words(value: object) -> Cell:
    """Make a cell of plain text."""
    return Cell(text(value), str(value))


def table(
    name: str,
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    groups: Sequence[tuple[str, int]] = (),
    sorted_by: tuple[int, str] | None = None,
) -> str:
    """Make a sortable table in a box of its own that scrolls.

    Parameters
    ----------
    name
        Its id; escaped as its caption in ``aria-label``.
    columns, rows
        Headings and cells; the first cell of a row is its heading.
    groups
        A row above the headings: texts, and how many columns each spans.
    sorted_by
        Column and direction (``ascending`` or ``descending``) in which the rows come.
    """
    above = "".join(
        f'<th scope="colgroup" colspan="{span}">{text(group)}</th>'
        if group
        else f'<td colspan="{span}"></td>'
        for group, span in groups
    )
    headings = "".join(_heading(i, column, sorted_by) for i, column in enumerate(columns))
    body = "\n".join(_row(row, columns) for row in rows)
    head = (f"<tr>{above}</tr>" if above else "") + f"<tr>{headings}</tr>"
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(name)} table">'
        f'<table id="{text(name)}">\n<thead>{head}</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _heading(index: int, column: Column, sorted_by: tuple[int, str] | None) -> str:
    order = f' aria-sort="{sorted_by[1]}"' if sorted_by and sorted_by[0] == index else ""
    return (
        f'<th scope="col" data-column="{index}"{_classes(column)}{order}>'
        f'<button type="button">{text(column.heading)}</button></th>'
    )


def _row(row: Row, columns: Sequence[Column]) -> str:
    cells = "".join(
        _cell(i, cell, column) for i, (cell, column) in enumerate(zip(row.cells, columns, strict=True))
    )
    kind = f' class="{row.kind}"' if row.kind else ""
    return f'<tr{kind} data-names="{text(row.names)}">{cells}</tr>'


def _cell(index: int, cell: Cell, column: Column) -> str:
    value = "" if cell.value is None else cell.value
    if isinstance(value, float):
        value = "" if math.isnan(value) else repr(value)
    tag, scope = ("th", ' scope="row"') if index == 0 else ("td", "")
    return f'<{tag}{scope}{_classes(column, cell.kind)} data-value="{text(value)}">{cell.html}</{tag}>'


def _classes(column: Column, kind: str = "") -> str:
    names = [name for name in ("number" * column.numeric, "first" * column.first, kind) if name]
    return f' class="{" ".join(names)}"' if names else ""
