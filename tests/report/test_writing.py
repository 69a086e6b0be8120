from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.evaluations import ATTRIBUTIONS, LAYERS, METHODS, SMALL, Shape, area, made_evaluation
from wsi_saliency.errors import OutputError
from wsi_saliency.evaluation.comparison import compare
from wsi_saliency.evaluation.results import Evaluation, Localised, MapKind, SanityStage, Scored
from wsi_saliency.evaluation.statistics import paired, summary, verdict
from wsi_saliency.report.wording import decimals, interval, listing, number
from wsi_saliency.report.writing import findings, metrics_csv, write_report

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


def shifted(evaluation: Evaluation, kind: MapKind, insertion: float, deletion: float = 0.0) -> Evaluation:
    """Make one kind of map's areas those of ``none`` plus the same amount on all patches."""
    plain = next(s for s in evaluation.scored if s.kind.method == "none")
    scored = [
        replace(s, insertion=plain.insertion + insertion, deletion=plain.deletion + deletion)
        if s.kind == kind
        else s
        for s in evaluation.scored
    ]
    return replace(evaluation, scored=scored)


BACKWARD = MapKind("backward-hook", "gradient", "layer2", 8)


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
            assert written == {**vars(expected), "verdict": verdict(expected, higher)}
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


def test_permuted_patches_give_the_same_figures(evaluation: Evaluation) -> None:
    order = np.random.default_rng(3).permutation(30)
    fields = ("insertion_curves", "deletion_curves", "insertion", "deletion", "total_variation")
    fields += ("phase_stability",)
    scored = [replace(s, **{f: getattr(s, f)[order] for f in fields}) for s in evaluation.scored]
    permuted, original = compare(replace(evaluation, scored=scored)), compare(evaluation)
    assert str(permuted) == str(original)  # nan is not equal to itself


def test_a_map_like_none_differs_from_it_by_nothing() -> None:
    made = shifted(made_evaluation(SMALL), BACKWARD, 0.0)
    found = next(c for c in compare(made) if c.kind == BACKWARD).against["none"]["insertion"]
    assert vars(found.summary) == {"n": 40, "mean": 0.0, "std": 0.0, "low": 0.0, "high": 0.0}
    assert found.verdict == "undecided"


def test_the_seed_of_the_settings_is_that_of_the_intervals(evaluation: Evaluation) -> None:
    other = replace(evaluation, facts=evaluation.facts | {"settings": {"seed": 7}})
    assert compare(other)[0].scores["insertion"] == summary(evaluation.scored[0].insertion, 7)
    assert compare(replace(evaluation, facts={})) == compare(evaluation)


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
        localised=[Localised("s", None, math.nan, math.nan, False, 0.0)],
        sanity=[SanityStage("none", "gradient", "layer2", "fc", np.full(4, np.nan), np.ones(4), np.ones(4))],
    )
    write_report(made, tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text("utf-8"), parse_constant=refused)
    assert written["facts"]["odd"] == [None, None, 0.5, 3, "x", [1, None]]
    assert written["localised"][0]["auroc"] is None
    assert written["sanity"][0]["spearman"] == {"n": 0, "mean": None, "std": None, "low": None, "high": None}


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


def test_the_best_map_is_named_first() -> None:
    said = findings(shifted(made_evaluation(SMALL), BACKWARD, 0.1, -0.1))
    assert said[0].startswith(
        "Which map finds what is enough for the classifier? Of 2 maps, gradient at layer2"
    )
    assert "(insertion 0." in said[0]
    assert said[0].endswith(
        "It is better than a plain blur as smooth, a random map and a spot in the middle of the patch. "
        "The other is worse."
    )
    assert "gradient at layer2 with backward-hook" in said[1]
    assert "(deletion 0." in said[1]


def test_maps_that_the_patches_cannot_tell_apart_are_named() -> None:
    said = findings(shifted(made_evaluation(SMALL), BACKWARD, 0.0))
    best, other = "with backward-hook", "without smoothing"
    if best not in said[0].split("(")[0]:
        best, other = other, best
    assert said[0].endswith(f"These patches cannot tell it from gradient at layer2 {other}.")


@pytest.mark.parametrize(
    ("insertion", "deletion", "words"),
    [
        (0.1, -0.1, "better (insertion +0.100 [+"),
        (-0.2, 0.2, "worse (insertion −0.200 [−0.200, −0.200], deletion +0.200 [0.200, 0.200])"),
        (0.1, 0.1, "undecided (insertion +0.100"),
        (0.0, 0.1, "worse (insertion 0.000"),
    ],
)
def test_a_single_map_is_set_against_the_one_without_smoothing(
    insertion: float, deletion: float, words: str
) -> None:
    said = findings(shifted(made_evaluation(SMALL), BACKWARD, insertion, deletion))
    line = next(s for s in said if s.startswith("Does backward-hook make maps more faithful?"))
    assert f"against the same map without smoothing, {words.replace('[+', '[')}" in line


@pytest.mark.parametrize(
    ("insertion", "deletion", "blur", "meaning"),
    [
        (-0.2, 0.2, -0.3, "So it costs faithfulness"),
        (0.0, 0.0, 0.0, "So no gain or cost shows"),
        (0.1, -0.1, 0.05, "So it makes maps more faithful, and more than a blur does."),
        (0.1, -0.1, 0.1, "So it makes maps more faithful, but a plain blur does as much."),
    ],
)
def test_what_the_verdicts_mean_for_the_choice(
    insertion: float, deletion: float, blur: float, meaning: str
) -> None:
    made = shifted(made_evaluation(SMALL), BACKWARD, insertion, deletion)
    made = shifted(made, replace(BACKWARD, control="blurred-none"), blur, -blur)
    line = next(s for s in findings(made) if s.startswith("Does backward-hook"))
    assert meaning in line


def placed(evaluation: Evaluation, places: dict[str, tuple[float, float]]) -> Evaluation:
    """Give layers' maps of gradients a faithfulness and a phase stability; controls have less of both."""

    def move(s: Scored) -> Scored:
        faithful, steady = places.get(s.kind.layer or "", (-0.5, 0.0)) if not s.kind.control else (-0.5, 0.0)
        jitter = np.linspace(-0.01, 0.01, len(s.insertion))
        return replace(
            s, insertion=0.5 + jitter, deletion=0.5 - faithful + 0 * jitter, phase_stability=steady + jitter
        )

    return replace(evaluation, scored=[move(s) for s in evaluation.scored])


def test_maps_that_none_surpasses_in_both_are_named_for_the_choice() -> None:
    made = made_evaluation(Shape(METHODS[:1], ATTRIBUTIONS[:1], LAYERS[1:5]))
    places = {"conv1": (0.1, 0.95), "layer1": (0.3, 0.2), "layer2": (0.2, 0.7), "layer3": (0.15, 0.7)}
    (line,) = [s for s in findings(placed(made, places)) if s.startswith("Which map to choose")]
    order = ["gradient at layer1", "gradient at layer2", "gradient at conv1"]
    assert [line.index(name) for name in order] == sorted(line.index(name) for name in order)
    assert "layer2 without smoothing (insertion − deletion 0.200, phase stability 0.70)" in line
    assert "layer3" not in line
    (line,) = [s for s in findings(placed(made, {"layer2": (0.2, 0.7)})) if s.startswith("Which map to ch")]
    assert line.endswith("phase stability 0.70): no other map is more faithful, and none steadier.")


def test_a_map_that_knows_nothing_of_the_classifier_is_not_for_the_choice() -> None:
    made = made_evaluation(Shape(METHODS[:1], ATTRIBUTIONS[:1], LAYERS[2:4]))
    said = findings(placed(made, {"layer1": (0.3, 0.2), "layer2": (-0.6, 0.99)}))
    line = next(s for s in said if s.startswith("Which map to choose"))
    assert "layer2" not in line
    assert not any(s.startswith("Which map to choose") for s in findings(made))  # nothing was moved


def test_phase_stability_is_said_for_each_method() -> None:
    line = next(s for s in findings(made_evaluation(WIDE)) if "lain elsewhere" in s)
    assert "total stride (32 px)" in line
    assert "without smoothing, 0." in line
    assert line.endswith("as well as the tissue.")
    made = made_evaluation(Shape(METHODS[:1], ATTRIBUTIONS[:1], LAYERS[2:4]))
    steady = placed(made, {"layer1": (0.3, 0.97), "layer2": (0.1, 0.95)})
    assert any(
        "lain elsewhere" in s
        and s.endswith("0.96 without smoothing. From 0.9 on, that is as good as the same map.")
        for s in findings(steady)
    )


def test_many_maps_are_counted() -> None:
    line = next(s for s in findings(made_evaluation(WIDE)) if s.startswith("Does forward-hook make"))
    compared = [c for c in compare(made_evaluation(WIDE)) if c.kind.method == "forward-hook"]
    words = [
        {c.against["none"][metric].verdict for metric in ("insertion", "deletion")}
        for c in compared
        if not c.kind.control
    ]
    worse = sum("worse" in verdicts and "better" not in verdicts for verdicts in words)
    assert f"against the same map without smoothing, of {len(words)} maps" in line
    assert f"{worse} worse" in line.split(";")[0]
    assert len(findings(made_evaluation(WIDE))) < 15


def test_maps_that_do_not_beat_a_blind_one_are_named() -> None:
    made = made_evaluation(SMALL)
    bad = findings(shifted(made, BACKWARD, -0.4, 0.4))
    line = next(s for s in bad if s.startswith("Do the maps know anything of the classifier?"))
    assert "beat both" in line
    assert line.endswith("gradient at layer2 with backward-hook.")
    good = shifted(shifted(made, BACKWARD, 0.2, -0.2), replace(BACKWARD, method="none"), 0.2, -0.2)
    assert any("2 of 2 maps beat both. So they do." in s for s in findings(good))


def test_no_sentence_reads_as_if_no_map_were_meant() -> None:
    shape = replace(WIDE, methods=METHODS)
    for sentence in findings(made_evaluation(shape)):
        assert "none" not in sentence.replace("--", " ").split()
        assert " of none" not in sentence


def test_few_patches_give_no_verdict() -> None:
    said = findings(made_evaluation(replace(SMALL, patches=5)))
    assert not any("better than" in s or "more faithful" in s for s in said)


def test_cautions_come_first() -> None:
    made = made_evaluation(replace(SMALL, patches=5))
    rows = [row | {"probability": 0.1} for row in made.patch_rows]
    facts = made.facts | {"settings": {"score_on": "method"}}
    said = findings(replace(made, patch_rows=rows, facts=facts))
    assert said[0].startswith("Few patches (5)")
    assert said[1].startswith("On only 0 of 5 patches does the classifier see the target")
    assert "not methods" in said[2]
    assert not any(s.startswith(("Few", "On only")) for s in findings(made_evaluation(SMALL)))


def test_a_map_that_does_not_change_is_flagged(tmp_path: Path) -> None:
    scores = np.full(40, 0.5)

    def stages(method: str, last: float) -> list[SanityStage]:
        steps = ((None, 1.0), ("fc", 0.9), ("conv1", last))
        return [
            SanityStage(method, "gradcam", "layer4", module, np.full(40, rho), scores, scores)
            for module, rho in steps
        ]

    made = replace(made_evaluation(SMALL), sanity=stages("none", 0.1) + stages("backward-hook", -0.8))
    said = next(s for s in findings(made) if s.startswith("Sanity"))
    assert "1 of 2 maps hardly changed" in said
    assert "Do not rely on gradcam at layer4 with backward-hook" in said
    assert "without smoothing" not in said
    write_report(made, tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text("utf-8"))["sanity"]
    assert [stage["unchanged"] for stage in written] == [False, False, False, False, False, True]
    good = replace(made, sanity=stages("none", 0.1))
    said = next(s for s in findings(good) if s.startswith("Sanity"))
    assert "every map is another: rank correlation with the original at most 0.10" in said


def test_maps_and_patch_probabilities_are_set_side_by_side() -> None:
    kind = MapKind("none", "gradient", "layer2", 8)
    rows = [
        Localised("a", BACKWARD, 0.9, 0.5, True, 0.2),
        Localised("b", BACKWARD, 0.8, 0.5, True, 0.2),
        Localised("a", kind, 0.86, 0.5, True, 0.2),
        Localised("b", kind, math.nan, math.nan, True, 0.0),
        Localised("a", None, 0.95, 0.5, True, 0.2),
    ]
    said = findings(replace(made_evaluation(SMALL), localised=rows))[-1]
    assert "Best does gradient at layer2 without smoothing: AUROC 0.860" in said
    assert "patch probabilities reach 0.950. So regions are better found by these" in said


def test_findings_hold_no_slide_names() -> None:
    assert not any("secret" in s for s in findings(made_evaluation(replace(WIDE, slide="secret.svs"))))


def test_changed_predictions_are_told() -> None:
    said = findings(made_evaluation(WIDE))
    line = next(s for s in said if "change what the classifier says" in s)
    assert "] with forward-hook" in line
    assert "backward-hook" not in line


@pytest.mark.parametrize(
    ("low", "high", "digits"), [(0, 0, 3), (-1, 1, 3), (0.1, 0.15, 3), (0, 0.004, 4), (0, 3e-9, 6)]
)
def test_digits_follow_the_interval(low: float, high: float, digits: int) -> None:
    assert decimals(replace(summary(np.zeros(3)), low=low, high=high)) == digits


def test_numbers_are_written_plainly() -> None:
    assert number(-0.0123, signed=True) == "−0.012"
    assert number(0.0123, signed=True) == "+0.012"
    assert number(-0.0001, signed=True) == "0.000"
    assert number(math.nan) == "–"
    assert interval(replace(summary(np.zeros(3)), low=-0.02, high=0.0)) == "[−0.020, 0.000]"
    assert [listing(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a",
        "a and b",
        "a, b and c",
    ]
