"""Lists of slides: a CSV file with a row for each, which may say how that slide differs from the others."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_saliency.errors import SlideError
from wsi_saliency.messages import one_line
from wsi_saliency.settings import RunSettings, options_of
from wsi_saliency.slides.store import tried
from wsi_saliency.urls import is_url, located, name_of, reaching, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from wsi_saliency.urls import Location

COLUMNS = ("path", "mpp", "target", "annotations")


@dataclass(frozen=True)
class Listed:
    """A row of a list.

    Parameters
    ----------
    slide
        The slide, a path or a URL; a relative path is below the list's folder.
    mpp, targets
        In place of ``--mpp`` and ``--target``; None: as for all slides.
    annotations
        What was drawn on the slide; it is passed on to ``summary.csv``.
    """

    slide: Location
    mpp: float | None = None
    targets: tuple[str, ...] | None = None
    annotations: Location | None = None


def is_list(place: Location) -> bool:
    """Whether a path or a URL is that of a list of slides."""
    named = name_of(place).lower().endswith(".csv")
    return named and (not isinstance(place, Path) or place.is_file())


def read_list(place: Location) -> list[Listed]:
    """Read a list of slides; what it names is a URL, or lies below its own folder.

    Raises
    ------
    SlideError
        If it is no CSV file with a column ``path``, has a column that is not known, or a row that is wrong;
        the message names the column, or the row by its line.
    """
    path = shown(place)
    try:
        rows = csv.DictReader(io.StringIO(_text(place), newline=""), strict=True)
        _check_columns(path, rows.fieldnames or ())
        listed = [(rows.line_num, _row(place, rows.line_num, row)) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise SlideError(f"{path}: cannot be read as a list of slides ({one_line(error)})") from error
    if not listed:
        raise SlideError(f"{path}: lists no slides")
    return list(_each_once(path, listed))


def _text(place: Location) -> str:
    if isinstance(place, Path):
        return place.read_bytes().decode("utf-8-sig")
    with reaching(place, SlideError, "the list cannot be read"):
        content: bytes = tried(place.read_bytes)
    return content.decode("utf-8-sig")


def _below(place: Location, text: str) -> Location:
    """Return what a row names: a URL, a path, or what is in the folder of the list."""
    if is_url(text) or Path(text).is_absolute():
        return located(text)
    if isinstance(place, Path):
        return place.parent / text
    return located(f"{re.split('[?#]', str(place))[0].rpartition('/')[0]}/{text}")


def _check_columns(path: str, names: object) -> None:
    given = [str(name) for name in names] if isinstance(names, list | tuple) else []
    unknown = [name for name in given if name not in COLUMNS]
    if unknown or "path" not in given or len(given) > len(set(given)):
        wrong = f"unknown column {one_line(unknown[0])!r}" if unknown else "no column 'path', or one twice"
        raise SlideError(f"{path}: {wrong}; a list has the columns {', '.join(COLUMNS)}, with commas between")


def _row(place: Location, line: int, row: Mapping[str | None, str | list[str] | None]) -> Listed:
    """Check a row; whether there is something at a URL is found out later."""
    path = shown(place)
    if None in row or None in row.values():
        raise SlideError(f"{path}: line {line}: has more or fewer values than there are columns")
    texts = {str(name): str(value).strip() for name, value in row.items()}
    if not texts["path"]:
        raise SlideError(f"{path}: line {line}: names no slide")
    annotations = _below(place, texts["annotations"]) if texts.get("annotations") else None
    if isinstance(annotations, Path) and not annotations.exists():
        raise SlideError(f"{path}: line {line}: there are no annotations {annotations}")
    targets = tuple(name.strip() for name in texts.get("target", "").split(",") if name.strip())
    mpp = _mpp(path, line, texts.get("mpp", ""))
    return Listed(_below(place, texts["path"]), mpp, targets or None, annotations)


def _mpp(path: str, line: int, text: str) -> float | None:
    within = options_of(RunSettings)["mpp"].within
    assert within is not None
    try:
        number = float(text) if text else None
    except ValueError:
        number = float("nan")
    if number is not None and number not in within:
        raise SlideError(f"{path}: line {line}: mpp {one_line(text)!r} is not {within.wanted}")
    return number


def _each_once(path: str, listed: list[tuple[int, Listed]]) -> Iterator[Listed]:
    seen: dict[str, int] = {}
    for line, row in listed:
        first = seen.setdefault(str(row.slide.resolve() if isinstance(row.slide, Path) else row.slide), line)
        if first != line:
            raise SlideError(f"{path}: line {line}: names the slide of line {first} again")
        yield row
