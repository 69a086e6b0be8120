from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsi_saliency.heatmap.ticks import Ticks, length_label, nice_number, short_number


@given(st.floats(1e-3, 1e6))
@example(999999.9999999999)
@example(1000.0)
def test_a_nice_number_is_the_largest_that_fits(largest: float) -> None:
    number = nice_number(largest)
    assert largest / 2.5 * 0.999 <= number <= largest * (1 + 1e-9)
    assert f"{number:.6e}"[0] in "125"


@pytest.mark.parametrize(
    ("length", "label"), [(0.5, "0.5 µm"), (200, "200 µm"), (1000, "1 mm"), (20_000, "20 mm")]
)
def test_lengths_from_a_millimetre_on_are_in_millimetres(length: float, label: str) -> None:
    assert length_label(length) == label


@pytest.mark.parametrize(
    ("low", "high", "most", "labels", "power"),
    [
        (0, 9.2e-4, 6, "0 2 4 6 8", -4),
        (-1, 1, 5, "−1.0 −0.5 0.0 0.5 1.0", 0),
        (0.013, 0.041, 4, "0.02 0.03 0.04", 0),
        (-3e6, 3e6, 4, "−2 0 2", 6),
        (1e-44, 2e-44, 3, "1.0 1.5 2.0", -44),
        (998.5, 1001.2, 4, "999 1000 1001", 0),
    ],
)
def test_ticks_stand_at_round_numbers(low: float, high: float, most: int, labels: str, power: int) -> None:
    ticks = Ticks.between(low, high, most)
    assert " ".join(ticks.labels) == labels
    assert ticks.power == power


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(3, 20))
def test_there_are_several_ticks_but_not_too_many_and_their_labels_are_true(
    low: float, length: float, most: int
) -> None:
    ticks = Ticks.between(low, low + length, most)
    assert max(1, math.floor(most / 2.5) - 1) <= len(ticks.values) <= most
    assert len(set(ticks.labels)) == len(ticks.labels)
    for value, label in zip(ticks.values, ticks.labels, strict=True):
        assert low - 1e-6 * length <= value <= low + length * (1 + 1e-6)
        read = float(label.replace("−", "-")) * 10.0**ticks.power
        assert read == pytest.approx(value, abs=1e-6 * length)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.25, "0.25"), (-1.234, "−1.2"), (0.001, "0.001"), (5.51e-4, "5.5e−4"), (-2e-12, "−2e−12"),
     (9940.0, "9900"), (123456.0, "1.2e5"), (300.0, "300")],
)  # fmt: skip
def test_short_numbers_have_two_digits(value: float, text: str) -> None:
    assert short_number(value) == text
