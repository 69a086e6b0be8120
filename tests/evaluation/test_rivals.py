from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

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
)
from wsi_saliency.evaluation.rivals import compare
from wsi_saliency.evaluation.statistics import summary

if TYPE_CHECKING:
    from wsi_saliency.evaluation.measured import Evaluation

WIDE = Shape(METHODS[:3], ATTRIBUTIONS[:2], LAYERS[2:4], patches=30, steps=7, extras=True)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return made_evaluation(WIDE)


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
