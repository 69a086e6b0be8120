from __future__ import annotations

import math

import numpy as np
import pytest

from wsi_saliency.evaluation.rivals import Difference
from wsi_saliency.evaluation.statistics import summary
from wsi_saliency.report.parts import (
    Cell,
    Column,
    Group,
    Picture,
    Row,
    Table,
    difference_cell,
    mean_cell,
    number_cell,
    words,
)

TWO = [Column("a"), Column("b", numeric=True)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (math.nan, ""),
        (np.float64("nan"), ""),
        (1 / 3, "0.3333333333333333"),
        (np.float64(1 / 3), "0.3333333333333333"),
        (-0.5, "-0.5"),
        (math.inf, "Infinity"),
        (np.float64("-inf"), "-Infinity"),
        ("a", "a"),
        ("", ""),
    ],
)
def test_a_cell_sorts_by_all_digits_of_its_value(value: str | float | None, expected: str) -> None:
    assert Cell("shown", value).sort_key == expected


def test_numbers_are_shown_short_and_sorted_whole() -> None:
    assert number_cell(-1 / 3) == Cell("−0.333", -1 / 3)
    assert number_cell(math.nan).text == "–"
    assert words("deeplift") == Cell("deeplift", "deeplift")


def test_a_mean_has_its_interval_below_it() -> None:
    cell = mean_cell(summary(np.linspace(0.2, 0.4, 30)))
    assert cell.text.startswith("0.30")
    assert cell.value == pytest.approx(0.3)
    assert cell.note.startswith("[0.2")
    assert cell.mark is None


def test_what_was_not_measured_is_empty() -> None:
    assert mean_cell(summary(np.full(3, np.nan))) == Cell()


@pytest.mark.parametrize(("verdict", "sign"), [("better", "✓"), ("worse", "✗"), ("undecided", "?")])
def test_a_difference_is_marked_and_signed(verdict: str, sign: str) -> None:
    cell = difference_cell(Difference(summary(np.linspace(0.2, 0.4, 30)), verdict))
    assert cell.text.startswith("+0.30")
    assert cell.mark is not None
    assert (cell.mark.sign, cell.mark.kind, cell.mark.word) == (sign, verdict, verdict)


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        ([Row([Cell()])], []),
        ([Row([Cell(), Cell()]), Row([Cell(), Cell(), Cell()])], []),
        ([], [Group("", 1), Group("both", 2)]),
    ],
)
def test_a_table_has_cells_and_groups_for_all_columns(rows: list[Row], groups: list[Group]) -> None:
    with pytest.raises(ValueError, match="table t: 2 columns"):
        Table("t", TWO, rows, groups)


def test_a_picture_is_not_shrunk_below_legibility() -> None:
    picture = Picture("p", "Title", "Caption", b"\x89PNG", 1000, 500)
    assert picture.base64 == "iVBORw=="
    assert picture.min_w == 700
