"""Lists of slides: a CSV file with a row for each, which may say how that slide differs from the others."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi_saliency.errors import SlideError
from wsi_saliency.messages import one_line
from wsi_saliency.settings import RunSettings, options_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

COLUMNS = ("path", "mpp", "target", "annotations")


@dataclass(frozen=True)
class Listed:
    """A row of a list.

    Parameters
    ----------
    slide
        The slide; a relative path is below the list's folder.
    mpp, targets
        In place of ``--mpp`` and ``--target``; None: as for all slides.
    annotations
        What was drawn on the slide; it is passed on to ``summary.csv``.
    """

    slide: Path
    mpp: float | None = None
    targets: tuple[str, ...] | None = None
    annotations: Path | None = None


def is_list(path: Path) -> bool:
    """Whether a path is that of a list of slides."""
    return path.suffix.lower() == ".csv" and path.is_file()


def read_list(path: Path) -> list[Listed]:
    """Read a list of slides.

    Raises
    ------
    SlideError
        If it is no CSV file with a column ``path``, has a column that is not known, or a row that is wrong;
        the message names the column, or the row by its line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            _check_columns(path, rows.fieldnames or ())
            listed = [(rows.line_num, _row(path, rows.line_num, row)) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise SlideError(f"{path}: cannot be read as a list of slides ({one_line(error)})") from error
    if not listed:
        raise SlideError(f"{path}: lists no slides")
    return list(_each_once(path, listed))


def _check_columns(path: Path, names: object) -> None:
    given = [str(name) for name in names] if isinstance(names, list | tuple) else []
    unknown = [name for name in given if name not in COLUMNS]
    if unknown or "path" not in given or len(given) > len(set(given)):
        wrong = f"unknown column {one_line(unknown[0])!r}" if unknown else "no column 'path', or one twice"
        raise SlideError(f"{path}: {wrong}; a list has the columns {', '.join(COLUMNS)}, with commas between")


def _row(path: Path, line: int, row: Mapping[str | None, str | list[str] | None]) -> Listed:
    """Check a row."""
    if None in row or None in row.values():
        raise SlideError(f"{path}: line {line}: has more or fewer values than there are columns")
    texts = {str(name): str(value).strip() for name, value in row.items()}
    if not texts["path"]:
        raise SlideError(f"{path}: line {line}: names no slide")
    annotations = path.parent / texts["annotations"] if texts.get("annotations") else None
    if annotations and not annotations.exists():
        raise SlideError(f"{path}: line {line}: there are no annotations {annotations}")
    targets = tuple(name.strip() for name in texts.get("target", "").split(",") if name.strip())
    mpp = _mpp(path, line, texts.get("mpp", ""))
    return Listed(path.parent / texts["path"], mpp, targets or None, annotations)


def _mpp(path: Path, line: int, text: str) -> float | None:
    within = options_of(RunSettings)["mpp"].within
    assert within is not None
    try:
        number = float(text) if text else None
    except ValueError:
        number = float("nan")
    if number is not None and number not in within:
        raise SlideError(f"{path}: line {line}: mpp {one_line(text)!r} is not {within.wanted}")
    return number


def _each_once(path: Path, listed: list[tuple[int, Listed]]) -> Iterator[Listed]:
    seen: dict[Path, int] = {}
    for line, row in listed:
        first = seen.setdefault(row.slide.resolve(), line)
        if first != line:
            raise SlideError(f"{path}: line {line}: names the slide of line {first} again")
        yield row
