from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.helpers.evaluations import ATTRIBUTIONS, LAYERS, METHODS, Shape, made_evaluation
from tests.helpers.pages import HOSTILE, WIDTHS, Structure, browsed, measured, watched
from wsi_saliency.evaluation.rivals import compare
from wsi_saliency.report.outputs import write_report
from wsi_saliency.report.page import page as evaluation_page
from wsi_saliency.report.parts import Cell
from wsi_saliency.report.rendering import TEMPLATES

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = Shape(METHODS[:3], ATTRIBUTIONS[:2], LAYERS[2:4], patches=20, extras=True, examples=2, slide=HOSTILE)
# Clicks headers as a reader would, and writes down what comes of it.
ACT = """<script>
addEventListener("load", () => {
  const rows = () => [...document.querySelectorAll("#scores-rows tbody tr")];
  const header = (i) => document.querySelector(`#scores-rows th[data-column="${i}"]`);
  const found = { first: rows().map((row) => row.dataset.names), sorted: {} };
  for (const column of [0, 3, 4, 5, 7, 9, 11]) {
    found.sorted[column] = ["ascending", "descending"].map(() => {
      header(column).querySelector("button").click();
      const order = rows().map((row) => [row.cells[column].dataset.value, row.dataset.names]);
      return { order, aria: header(column).getAttribute("aria-sort") };
    });
  }
  found.arrows = document.querySelectorAll("#scores-rows th[aria-sort]").length;
  const input = document.querySelector(".filter input");
  input.value = "Forward LAYER1";
  input.dispatchEvent(new Event("input"));
  found.filtered = rows().filter((row) => row.getClientRects().length).map((row) => row.dataset.names);
  found.shown = document.getElementById("shown").textContent;
  found.images = [...document.images].map((image) => image.naturalWidth);
  found.tables = [...document.querySelectorAll("table")].map((table) => table.rows.length);
  found.failures = failures;
  const outcome = document.body.appendChild(document.createElement("pre"));
  outcome.id = "outcome";
  outcome.textContent = JSON.stringify(found);
});
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report")
    evaluation = made_evaluation(SHAPE)
    model = {"uri": "<b>timm:resnet18</b>" + 150 * "x", "classes": ["a & b"]}
    write_report(replace(evaluation, facts=evaluation.facts | {"model": model}), path)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "index.html").read_text("utf-8")


@pytest.fixture(scope="module")
def outcome(page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a browser made of the page."""
    return browsed(watched(page, ACT), tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def structure(page: str) -> Structure:
    return Structure.of(page)


def test_the_markup_is_sound(structure: Structure) -> None:
    assert not structure.open
    assert max(Counter(structure.ids).values()) == 1
    assert structure.references <= set(structure.ids)
    assert structure.tags["h1"] == structure.tags["main"] == structure.tags["title"] == 1


def test_nothing_is_fetched(page: str, structure: Structure) -> None:
    outside = {address for address in structure.addresses if not address.startswith(("data:image/png", "#"))}
    assert not outside
    assert {a[1:] for a in structure.addresses if a.startswith("#")} <= set(structure.ids)
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_names_cannot_become_markup(page: str, structure: Structure) -> None:
    assert structure.tags["script"] == 1
    assert structure.tags["b"] == 0
    assert structure.tags["img"] == 7
    assert page.count("</script>") == 1
    said = "".join(structure.words)
    assert "</script><img src=x onerror=alert(1)>&\"'\ufffd\ufffd.svs" in said
    assert "<b>timm:resnet18</b>" in said


def named(name: str) -> Structure:
    """Follow the page of an evaluation in which everything that has a name has this one."""
    made = made_evaluation(replace(SHAPE, slide=name, layers=((name, 4), ("layer2", 8))))
    facts: dict[str, Any] = {"model": name, "target": name, "classes": [name], name: {name: [{name: name}]}}
    patches = [row | {name: name} for row in made.patch_rows]
    stages = [replace(stage, module=name) for stage in made.sanity]
    made = replace(
        made, facts=facts, patch_rows=patches, sanity=stages, prediction_difference={name: np.ones(9)}
    )
    return Structure.of(evaluation_page(made, compare(made), [f"{name}? {name}", name], []))


def test_whatever_names_hold_the_page_is_built_the_same() -> None:
    benign, hostile = named("benign"), named(HOSTILE)
    assert not hostile.open
    assert hostile.tags == benign.tags
    assert hostile.ids == benign.ids
    cleaned = HOSTILE.replace("\x01", "\ufffd").replace("\udcff", "\ufffd")
    expected = [words.replace("benign", cleaned) for words in benign.words]
    different = [words for words, other in zip(hostile.words, expected, strict=True) if words != other]
    assert all(words.startswith("[{") for words in different)  # JSON writes some of the characters otherwise


def test_links_lead_to_all_sections_in_order(structure: Structure) -> None:
    linked = [name for name in structure.ids if f"#{name}" in structure.addresses]
    assert linked == ["findings", "terms", "pictures", "scores-table", "more", "facts"]
    assert structure.tags["section"] == structure.tags["h2"] == len(linked)


def test_the_page_says_what_it_shows(page: str, folder: Path, structure: Structure) -> None:
    said = "".join(structure.words)
    for sentence in json.loads((folder / "metrics.json").read_text("utf-8"))["findings"]:
        assert " ".join(sentence.split()) in " ".join(said.split())
    for word in (
        "Insertion (higher is better)",
        "Deletion (lower is better)",
        "Controls",
        "Phase stability",
        "seconds.total",
    ):
        assert word in said
    assert len(page) < 4_000_000


def test_the_page_renders(outcome: dict[str, Any]) -> None:
    assert outcome["failures"] == []
    assert len(outcome["images"]) == 7
    assert min(outcome["images"]) > 300
    assert outcome["tables"][0] == 2 + len(made_evaluation(SHAPE).scored)
    assert min(outcome["tables"]) > 1


def test_the_page_does_not_scroll_sideways(page: str, tmp_path: Path) -> None:
    found = measured(page, tmp_path)
    assert sorted(found) == sorted(WIDTHS)
    for width, size in found.items():
        assert size["client"] > width - 30
        assert size["scroll"] <= size["client"]
        assert size["boxes"] > 6
        assert size["stiff"] == 0  # what is too wide scrolls in its own box


def test_the_best_insertion_comes_first(outcome: dict[str, Any]) -> None:
    compared = compare(made_evaluation(SHAPE))
    expected = sorted(compared, key=lambda c: -c.scores["insertion"].mean)
    assert outcome["first"] == [c.kind.label for c in expected]


@pytest.mark.parametrize("column", [0, 3, 4, 5, 7, 9, 11])
def test_headers_sort(outcome: dict[str, Any], column: int) -> None:
    for direction, found in zip(("ascending", "descending"), outcome["sorted"][str(column)], strict=True):
        assert found["aria"] == direction
        values = [value for value, _ in found["order"]]
        known = [value for value in values if value != ""]
        # What is not there stays at the end, whichever way.
        assert values[: len(known)] == known
        key = float if column else str
        assert known == sorted(known, key=key, reverse=direction == "descending")
    assert outcome["arrows"] == 1


def test_sorting_takes_whole_rows_along(outcome: dict[str, Any]) -> None:
    compared = [c for c in compare(made_evaluation(SHAPE)) if "none" in c.against]
    for column, metric in (("9", "insertion"), ("11", "phase_stability")):
        expected = {c.kind.label: c.against["none"][metric].summary.mean for c in compared}
        ascending = outcome["sorted"][column][0]["order"]
        assert {name: float(value) for value, name in ascending if value} == expected
    assert len(ascending) == len(made_evaluation(SHAPE).scored)


def test_rows_are_found_by_words(outcome: dict[str, Any]) -> None:
    labels = [s.kind.label for s in made_evaluation(SHAPE).scored]
    expected = {label for label in labels if "forward" in label and "layer1" in label}
    assert set(outcome["filtered"]) == expected
    assert outcome["shown"] == f"{len(expected)} of {len(labels)} rows"


def test_an_evaluation_without_extras_has_no_empty_sections(tmp_path: Path) -> None:
    bare = replace(made_evaluation(), examples=[], prediction_difference={}, facts={})
    assert not bare.phase
    write_report(bare, tmp_path)
    shown = (tmp_path / "index.html").read_text("utf-8")
    present = partial(re.search, string=shown)
    assert not present(">Further tables<")
    assert not present(">Examples<")
    assert present(">All scores<")
    assert not present(">Phase stability<")  # a column
    assert present(">Insertion − deletion<")


INFINITE = """<!DOCTYPE html><body><table><thead>
<tr><th data-column="0" class="number"><button>n</button></th></tr></thead>
<tbody>ROWS</tbody></table><script>SCRIPT</script><script>
const values = () => [...document.querySelectorAll("td")].map((cell) => cell.dataset.value);
const press = () => { document.querySelector("button").click(); return values(); };
const outcome = document.body.appendChild(document.createElement("pre"));
outcome.id = "outcome";
outcome.textContent = JSON.stringify({ up: press(), down: press() });
</script>"""


def test_infinite_values_are_sorted_and_unknown_ones_stay_last(tmp_path: Path) -> None:
    values = [2.0, math.inf, math.nan, -math.inf, 10.0, math.inf, -3.0]
    rows = "".join(f'<tr><td data-value="{Cell("", value).sort_key}"></td></tr>' for value in values)
    script = TEMPLATES.get_template("page.js").render()
    found = browsed(INFINITE.replace("ROWS", rows).replace("SCRIPT", script), tmp_path)
    finite = ["-3.0", "2.0", "10.0"]
    assert found["up"] == ["-Infinity", *finite, "Infinity", "Infinity", ""]
    assert found["down"] == ["Infinity", "Infinity", *finite[::-1], "-Infinity", ""]
