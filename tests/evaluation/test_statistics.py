from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsi_saliency.evaluation.statistics import FEWEST, Summary, band, paired, summary, verdict

SCORES = arrays(np.float64, st.integers(1, 30), elements=st.floats(-1, 1, width=32))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def slow_interval(values: np.ndarray) -> tuple[float, float]:
    """Draw patches again and again, closely following the definition."""
    random = np.random.default_rng(99)
    means = sorted(random.choice(values, len(values)).mean() for _ in range(20_000))
    return means[500], means[19_500]


def test_mean_and_deviation_are_those_of_a_sample() -> None:
    found = summary(np.array([1.0, 2.0, 4.0, 5.0]))
    assert (found.n, found.mean) == (4, 3.0)
    assert found.std == pytest.approx(math.sqrt(10 / 3))


@pytest.mark.parametrize("values", [rng().normal(size=40), rng().beta(0.3, 2, 25), np.r_[np.zeros(9), 1.0]])
def test_the_interval_is_that_of_the_definition(values: np.ndarray) -> None:
    found = summary(values)
    low, high = slow_interval(values)
    noise = 0.15 * values.std() / math.sqrt(len(values))
    assert found.low == pytest.approx(low, abs=noise)
    assert found.high == pytest.approx(high, abs=noise)


def test_nineteen_of_twenty_intervals_hold_the_mean() -> None:
    found = [summary(values) for values in rng(1).normal(0.3, 1, (600, 60))]
    held = np.mean([s.low <= 0.3 <= s.high for s in found])
    assert 0.915 < held < 0.97


@given(SCORES, st.randoms())
@settings(max_examples=40)
def test_the_order_of_patches_changes_nothing(values: np.ndarray, random) -> None:
    order = list(range(len(values)))
    random.shuffle(order)
    assert summary(values[order]) == summary(values)
    assert paired(values[order], np.ones_like(values)) == paired(values, np.ones_like(values))


@given(SCORES)
@settings(max_examples=40)
def test_a_map_against_itself_differs_by_exactly_nothing(values: np.ndarray) -> None:
    assert paired(values, values.copy()) == Summary(len(values), 0.0, 0.0, 0.0, 0.0)


@given(SCORES)
@settings(max_examples=40)
def test_the_other_way_round_is_mirrored(a: np.ndarray) -> None:
    b = np.cos(7 * a)
    one, other = paired(a, b), paired(b, a)
    assert (other.low, other.high) == (
        pytest.approx(-one.high, abs=1e-12),
        pytest.approx(-one.low, abs=1e-12),
    )


@given(SCORES)
@settings(max_examples=40)
def test_intervals_lie_within_the_values(values: np.ndarray) -> None:
    found = summary(values)
    assert values.min() - 1e-12 <= found.low <= found.high <= values.max() + 1e-12


def test_pairing_takes_the_patches_own_level_out() -> None:
    level = rng().random(50)
    better = level + 0.02 + 0.01 * rng(1).random(50)
    assert summary(better).low < summary(level).high
    assert paired(better, level).low > 0


def test_one_patch_has_a_degenerate_interval() -> None:
    assert summary(np.array([0.25])) == Summary(1, 0.25, 0.0, 0.25, 0.25)


def test_nans_are_left_out_and_nothing_is_nan() -> None:
    assert summary(np.array([np.nan, 0.5, np.nan, 1.0])) == summary(np.array([0.5, 1.0]))
    found = summary(np.array([np.nan]))
    assert found.n == 0
    assert all(math.isnan(x) for x in (found.mean, found.std, found.low, found.high))


def test_the_seed_decides() -> None:
    values = rng().normal(size=30)
    assert summary(values, 3) == summary(values, 3)
    assert summary(values, 3).low != summary(values, 4).low


def test_other_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="not of the same patches"):
        paired(np.zeros(3), np.zeros(1))


def test_a_band_is_the_summary_of_each_step() -> None:
    curves = rng().random((20, 5)).cumsum(axis=1)
    found = band(curves, seed=5)
    for step in range(5):
        alone = summary(curves[:, step], seed=5)
        np.testing.assert_allclose(
            (found.mean[step], found.low[step], found.high[step]), (alone.mean, alone.low, alone.high)
        )


@pytest.mark.parametrize(
    ("low", "high", "if_higher", "if_lower"),
    [
        (0.1, 0.3, "better", "worse"),
        (-0.3, -0.1, "worse", "better"),
        (-0.1, 0.1, "undecided", "undecided"),
        (0.0, 0.1, "undecided", "undecided"),
        (-0.1, 0.0, "undecided", "undecided"),
        (0.0, 0.0, "undecided", "undecided"),
        (math.nan, math.nan, "undecided", "undecided"),
    ],
)
def test_verdicts(low: float, high: float, if_higher: str, if_lower: str) -> None:
    difference = Summary(50, (low + high) / 2, 1.0, low, high)
    assert verdict(difference, higher_is_better=True) == if_higher
    assert verdict(difference, higher_is_better=False) == if_lower


def test_few_patches_allow_no_verdict() -> None:
    # All differences have one sign by chance twice in 2**n, which is under 5 % from 6 patches on.
    assert 2 / 2 ** (FEWEST - 1) > 0.05 > 2 / 2**FEWEST
    assert verdict(summary(np.full(FEWEST - 1, 0.1)), higher_is_better=True) == "undecided"
    assert verdict(summary(np.full(FEWEST, 0.1)), higher_is_better=True) == "better"
