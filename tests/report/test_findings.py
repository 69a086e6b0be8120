from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.helpers.evaluations import (
    ATTRIBUTIONS,
    BACKWARD,
    LAYERS,
    METHODS,
    SMALL,
    Shape,
    made_evaluation,
    shifted,
    with_an_unchanged_map,
)
from wsi_saliency.evaluation.measured import Evaluation, KindScores, Localisation, MapKind
from wsi_saliency.evaluation.rivals import compare
from wsi_saliency.report.findings import findings

WIDE = Shape(METHODS[:3], ATTRIBUTIONS[:2], LAYERS[2:4], patches=30, steps=7, extras=True)


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

    def move(s: KindScores) -> KindScores:
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
    assert said[1].startswith("On none of 5 patches does the classifier see the target")
    assert "not methods" in said[2]
    assert not any(s.startswith(("Few", "On ")) for s in findings(made_evaluation(SMALL)))


def test_a_map_that_does_not_change_is_named() -> None:
    made = with_an_unchanged_map()
    said = next(s for s in findings(made) if s.startswith("Sanity"))
    assert "1 of 2 maps hardly changed" in said
    assert "Do not rely on gradcam at layer4 with backward-hook" in said
    assert "without smoothing" not in said
    good = replace(made, sanity=[stage for stage in made.sanity if stage.method == "none"])
    said = next(s for s in findings(good) if s.startswith("Sanity"))
    assert "every map is another: rank correlation with the original at most 0.10" in said


def test_maps_and_patch_probabilities_are_set_side_by_side() -> None:
    kind = MapKind("none", "gradient", "layer2", 8)
    rows = [
        Localisation("a", BACKWARD, 0.9, 0.5, True, 0.2),
        Localisation("b", BACKWARD, 0.8, 0.5, True, 0.2),
        Localisation("a", kind, 0.86, 0.5, True, 0.2),
        Localisation("b", kind, math.nan, math.nan, True, 0.0),
        Localisation("a", None, 0.95, 0.5, True, 0.2),
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
