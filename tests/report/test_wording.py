from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.helpers.evaluations import with_an_unchanged_map
from wsi_saliency.evaluation.statistics import summary
from wsi_saliency.report.wording import decimals, interval, listing, number, stage_name


@pytest.mark.parametrize(
    ("low", "high", "digits"),
    [(0, 0, 3), (-1, 1, 3), (0.1, 0.15, 3), (0, 0.004, 4), (0, 3e-9, 6), (0, math.inf, 3)],
)
def test_digits_follow_the_interval(low: float, high: float, digits: int) -> None:
    assert decimals(replace(summary(np.zeros(3)), low=low, high=high)) == digits


def test_numbers_are_written_plainly() -> None:
    assert number(-0.0123, signed=True) == "−0.012"
    assert number(0.0123, signed=True) == "+0.012"
    assert number(-0.0001, signed=True) == "0.000"
    assert number(math.nan) == "–"
    assert [number(math.inf), number(-math.inf), number(math.inf, signed=True)] == ["∞", "−∞", "+∞"]
    assert interval(replace(summary(np.zeros(3)), low=-0.02, high=0.0)) == "[−0.020, 0.000]"
    assert [listing(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a",
        "a and b",
        "a, b and c",
    ]


def test_a_network_that_is_random_nowhere_is_intact() -> None:
    stage = with_an_unchanged_map().sanity
    assert [stage_name(s) for s in stage[:3]] == ["intact", "fc", "conv1"]
