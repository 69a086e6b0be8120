from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.evaluations import (
    ATTRIBUTIONS,
    LAYERS,
    METHODS,
    SMALL,
    Shape,
    area,
    made_evaluation,
    with_an_unchanged_map,
)
from wsi_saliency.errors import OutputError
from wsi_saliency.evaluation.measured import Evaluation, Localisation, MapKind, SanityStage
from wsi_saliency.evaluation.rivals import compare
from wsi_saliency.evaluation.statistics import paired, summary, verdict
from wsi_saliency.report.findings import findings
from wsi_saliency.report.outputs import metrics_csv, write_report

WIDE = Shape(METHODS[:3], ATTRIBUTIONS[:2], LAYERS[2:4], patches=30, steps=7, extras=True)


def refused(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return made_evaluation(WIDE)


@pytest.fixture(scope="module")
def folder(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "new"
    write_report(evaluation, path)
    return path


@pytest.fixture(scope="module")
def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text("utf-8"), parse_constant=refused)


def test_all_files_are_there(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == {
        "metrics.json",
        "metrics.csv",
        "curves.npz",
        "index.html",
        *(f"{n}.png" for n in ("choice", "scores", "curves", "total-variation", "examples")),
        *(f"{n}.png" for n in ("stability", "sanity")),
    }


def test_summaries_are_those_of_the_patches(evaluation: Evaluation, metrics: dict[str, Any]) -> None:
    assert metrics["schema"] == 1
    assert [c["label"] for c in metrics["combinations"]] == [s.kind.label for s in evaluation.scored]
    for written, scored in zip(metrics["combinations"], evaluation.scored, strict=True):
        assert written["deletion"] == vars(summary(scored.deletion))
        assert written["insertion"]["mean"] == pytest.approx(scored.insertion.mean())
        assert written["total_variation"]["n"] == 30
        assert written["faithfulness"]["mean"] == pytest.approx((scored.insertion - scored.deletion).mean())
        assert written["phase_stability"]["n"] == (30 if scored.kind.layer else 0)


def test_differences_are_paired_with_the_rivals_of_the_same_layer(
    evaluation: Evaluation, metrics: dict[str, Any]
) -> None:
    by_kind = {s.kind: s for s in evaluation.scored}
    found = next(c for c in metrics["combinations"] if c["label"] == "forward-hook · deeplift · layer2")
    own = by_kind[MapKind("forward-hook", "deeplift", "layer2", 8)]
    rivals = {
        "none": MapKind("none", "deeplift", "layer2", 8),
        "blurred-none": MapKind("forward-hook", "deeplift", "layer2", 8, "blurred-none"),
        "random": MapKind(None, None, None, None, "random"),
        "centred-gaussian": MapKind(None, None, None, None, "centred-gaussian"),
    }
    assert found["against"].keys() == rivals.keys()
    for name, kind in rivals.items():
        for metric, higher in (("insertion", True), ("deletion", False), ("faithfulness", True)):
            expected = paired(getattr(own, metric), getattr(by_kind[kind], metric))
            written = found["against"][name][metric]
            assert written == {**vars(expected), "verdict": verdict(expected, higher_is_better=higher)}
    assert found["against"]["none"]["total_variation"]["verdict"] == "better"
    assert found["against"]["none"]["phase_stability"]["verdict"] == "better"
    assert "total_variation" not in found["against"]["blurred-none"]
    assert found["against"]["random"].keys() == {"insertion", "deletion", "faithfulness"}


def test_plain_maps_and_controls_have_no_rival_of_their_own(metrics: dict[str, Any]) -> None:
    for combination in metrics["combinations"]:
        rivals = set(combination["against"])
        if combination["control"]:
            assert not rivals
        elif combination["method"] == "none":
            assert rivals == {"random", "centred-gaussian"}


def test_further_results_are_written(evaluation: Evaluation, metrics: dict[str, Any]) -> None:
    assert metrics["stability"][0] == vars(evaluation.stability[0])
    first, phase = metrics["phase"][0], evaluation.phase[0]
    assert first["label"] == phase.kind.label
    chosen = (phase.moves == (8, 24)).all(2)
    move = next(move for move in first["moves"] if (move["x"], move["y"]) == (8, 24))
    assert move["n"] == chosen.sum()
    assert move["mean"] == pytest.approx(phase.correlation[chosen].mean())
    assert sum(move["n"] for move in first["moves"]) == 30 * 4
    assert metrics["sanity"][1]["module"] == "fc"
    assert metrics["sanity"][1]["spearman"] == vars(summary(evaluation.sanity[1].spearman))
    assert metrics["localised"][0]["kind"]["label"] == "none · gradient · layer2"
    assert metrics["localised"][-1]["kind"] is None
    assert metrics["prediction_difference"].keys() == set(WIDE.methods)
    assert metrics["facts"] == evaluation.facts
    assert metrics["patches"] == evaluation.patch_rows
    assert metrics["findings"] == findings(evaluation)


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    made = made_evaluation(SMALL)
    made = replace(
        made,
        facts=made.facts | {"odd": [math.nan, math.inf, np.float32(0.5), np.int64(3), Path("x"), (1, None)]},
        localised=[Localisation("s", None, math.nan, math.nan, False, 0.0)],
        sanity=[SanityStage("none", "gradient", "layer2", "fc", np.full(4, np.nan), np.ones(4), np.ones(4))],
    )
    write_report(made, tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text("utf-8"), parse_constant=refused)
    assert written["facts"]["odd"] == [None, None, 0.5, 3, "x", [1, None]]
    assert written["localised"][0]["auroc"] is None
    assert written["sanity"][0]["spearman"] == {"n": 0, "mean": None, "std": None, "low": None, "high": None}


def test_a_map_that_does_not_change_is_flagged(tmp_path: Path) -> None:
    write_report(with_an_unchanged_map(), tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text("utf-8"))["sanity"]
    assert [stage["unchanged"] for stage in written] == [False, False, False, False, False, True]


def test_csv_agrees_with_json(folder: Path, metrics: dict[str, Any]) -> None:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(metrics["combinations"])
    for row, combination in zip(rows, metrics["combinations"], strict=True):
        assert row["label"] == combination["label"]
        assert row["control"] == (combination["control"] or "")
        assert row["reduction"] == str(combination["reduction"] or "")
        assert float(row["insertion_low"]) == combination["insertion"]["low"]
        assert row["phase_stability"] == (
            ""
            if combination["control"] in ("random", "centred-gaussian")
            else str(combination["phase_stability"]["mean"])
        )
        blurred = combination["against"].get("blurred-none")
        written = row["deletion_minus_blurred_none_high"], row["deletion_minus_blurred_none_verdict"]
        expected = (str(blurred["deletion"]["high"]), blurred["deletion"]["verdict"]) if blurred else ("", "")
        assert written == expected


def test_csv_leaves_out_what_is_not_there() -> None:
    made = made_evaluation(SMALL)
    control = next(s for s in made.scored if s.kind.control == "random")
    nan = replace(control, total_variation=np.full(40, np.nan))
    row = next(csv.DictReader(metrics_csv(compare(replace(made, scored=[nan]))).splitlines()))
    assert row["total_variation"] == ""
    assert float(row["insertion"]) == pytest.approx(control.insertion.mean())


def test_curves_can_be_summed_up_again(evaluation: Evaluation, folder: Path) -> None:
    with np.load(folder / "curves.npz", allow_pickle=False) as stored:
        chosen = np.flatnonzero(
            (stored["method"] == "none")
            & (stored["attribution"] == "deeplift")
            & (stored["layer"] == "layer1")
            & (stored["control"] == "")
        )
        assert len(chosen) == 1
        assert stored["label"][chosen[0]] == "none · deeplift · layer1"
        assert stored["reduction"][chosen[0]] == 4
        assert stored["insertion_curves"].shape == (len(evaluation.scored), 30, 8)
        np.testing.assert_allclose(
            area(stored["deletion_curves"][chosen[0]]), stored["deletion"][chosen[0]], rtol=1e-12
        )
        index = [s.kind.label for s in evaluation.scored].index("none · deeplift · layer1")
        np.testing.assert_array_equal(stored["insertion"][index], evaluation.scored[index].insertion)
        np.testing.assert_array_equal(
            stored["total_variation"][index], evaluation.scored[index].total_variation
        )


def test_the_same_evaluation_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(made_evaluation(SMALL), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file.*cannot be written"):
        write_report(made_evaluation(SMALL), tmp_path / "file")
