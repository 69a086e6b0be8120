from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.helpers.evaluations import (
    ATTRIBUTIONS,
    LAYERS,
    METHODS,
    SMALL,
    Shape,
    made_evaluation,
    with_an_unchanged_map,
)
from wsi_saliency.evaluation.measured import Localisation
from wsi_saliency.evaluation.rivals import compare
from wsi_saliency.evaluation.statistics import summary
from wsi_saliency.report import tables
from wsi_saliency.report.parts import Table, mean_cell
from wsi_saliency.report.wording import mean

WIDE = Shape(METHODS[:3], ATTRIBUTIONS[:2], LAYERS[2:4], patches=20, extras=True)


def column(table: Table, heading: str, nth: int = 0) -> list[str]:
    """What stands below the n-th heading of this name."""
    at = [i for i, column in enumerate(table.columns) if column.heading == heading][nth]
    return [row.cells[at].text for row in table.rows]


def test_scores_come_with_the_best_insertion_first() -> None:
    compared = compare(made_evaluation(WIDE))
    table = tables.scores(compared)
    ordered = sorted(compared, key=lambda c: -c.scores["insertion"].mean)
    assert [row.names for row in table.rows] == [c.kind.label for c in ordered]
    assert column(table, "Insertion") == [mean(c.scores["insertion"]) for c in ordered]
    assert [c.heading for c in table.columns if c.order == "descending"] == ["Insertion"]
    assert [row.kind == "control" for row in table.rows] == [bool(c.kind.control) for c in ordered]


def test_scores_stand_beside_their_differences_from_each_rival() -> None:
    compared = compare(made_evaluation(WIDE))
    table = tables.scores(compared)
    assert [group.heading for group in table.groups[:3]] == [
        "",
        "Scores",
        "Against the same map without smoothing",
    ]
    begins = np.cumsum([0, *(group.columns for group in table.groups)])
    assert [i for i, c in enumerate(table.columns) if c.first] == begins[1:-1].tolist()
    of = {c.kind.label: c for c in compared}
    for row, shown in zip(table.rows, column(table, "Deletion", 1), strict=True):
        found = of[row.names].against.get("none")
        assert shown == (mean(found["deletion"].summary, signed=True) if found else "")


def test_a_metric_that_was_not_measured_has_no_column() -> None:
    headings = [c.heading for c in tables.scores(compare(made_evaluation(SMALL))).columns]
    assert "Phase stability" not in headings
    assert "Insertion − deletion" in headings


def test_a_map_that_hardly_changes_is_marked_at_its_last_stage() -> None:
    table = tables.sanity(with_an_unchanged_map())
    assert column(table, "Random down to") == 2 * ["intact", "fc", "conv1"]
    marks = [[cell.mark.word if cell.mark else "" for cell in row.cells] for row in table.rows]
    assert marks[-1] == ["", "", "", "", "unchanged", "", ""]
    assert not any(mark for row in marks[:-1] for mark in row)
    assert column(table, "Rank correlation")[-1] == "−0.800"


def test_further_tables_have_a_row_for_each_result() -> None:
    made = made_evaluation(WIDE)
    assert column(tables.predictions(made), "Method") == list(made.prediction_difference)
    first = tables.predictions(made).rows[0].cells[1]
    assert first == mean_cell(summary(made.prediction_difference["none"]))
    table = tables.stability(made)
    assert column(table, "Overlap") == [f"{row.overlap:g}" for row in made.stability]
    assert column(table, "Correlation") == [f"{row.correlation:.3f}" for row in made.stability]


def test_localisation_names_maps_and_the_patch_probabilities() -> None:
    kind = made_evaluation(SMALL).scored[0].kind
    rows = [
        Localisation("s", kind, 0.75, 0.5, True, 0.21),
        Localisation("s", None, float("nan"), 0.5, False, 0.21),
    ]
    table = tables.localisation(replace(made_evaluation(SMALL), localised=rows))
    assert column(table, "Map") == [kind.label, "patch probabilities"]
    assert column(table, "AUROC") == ["0.750", "–"]
    assert column(table, "Pointing game") == ["hit", "miss"]


@pytest.mark.parametrize(("last", "numeric"), [(7, True), ("seven", False), (None, False)])
def test_a_column_of_the_patches_is_numeric_if_all_are(last: object, numeric: bool) -> None:
    rows = [{"slide": "s", "n": 1, "p": 0.25}, {"slide": "s", "n": last, "p": 1 / 3}]
    table = tables.patches(replace(made_evaluation(SMALL), patch_rows=rows))
    assert [c.numeric for c in table.columns] == [False, numeric, True]
    assert column(table, "n") == ["1", str(last)]
    assert column(table, "p") == ["0.250", "0.333"]
    assert table.rows[1].cells[2].value == 1 / 3


def test_what_a_patch_does_not_have_is_empty() -> None:
    table = tables.patches(replace(made_evaluation(SMALL), patch_rows=[{"a": "x"}, {"b": 1.0}]))
    assert [[cell.text for cell in row.cells] for row in table.rows] == [["x", ""], ["", "1.0"]]
