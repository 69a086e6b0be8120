from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_saliency.geometry import Mpp, Placement, Size
from wsi_saliency.heatmap.pyramid import (
    COARSEST,
    STATISTICS_CELLS,
    HeatmapInfo,
    Window,
    halve,
    level_count,
    level_sizes,
    padded_size,
    sample_step,
    window_of,
)

SIZES = st.builds(Size, st.integers(1, 300_000), st.integers(1, 300_000))
LENGTHS = st.floats(0.01, 100)
INFOS = st.builds(
    HeatmapInfo,
    st.just("slide.svs"),
    SIZES,
    st.builds(Mpp, LENGTHS, LENGTHS),
    st.builds(Placement, st.floats(-1e5, 1e5), st.floats(-1e5, 1e5), LENGTHS, LENGTHS),
    st.lists(st.text(min_size=1), min_size=1, max_size=3).map(tuple),
    st.just({"model": "demo"}),
)


@given(SIZES)
def test_levels_are_the_fewest_that_end_small_and_at_least_two(size: Size) -> None:
    levels = level_count(size)
    longest = max(size.w, size.h)
    assert levels >= 2
    assert math.ceil(longest / 2 ** (levels - 1)) <= COARSEST
    assert levels == 2 or math.ceil(longest / 2 ** (levels - 2)) > COARSEST


@given(SIZES)
def test_every_level_is_exactly_half_of_the_one_before(size: Size) -> None:
    sizes = level_sizes(size)
    for finer, coarser in itertools.pairwise(sizes):
        assert (finer.w, finer.h) == (2 * coarser.w, 2 * coarser.h)
    assert max(sizes[-1].w, sizes[-1].h) <= COARSEST


@given(SIZES, st.integers(1, 12))
def test_padding_is_the_least_that_divides(size: Size, levels: int) -> None:
    padded, step = padded_size(size, levels), 2 ** (levels - 1)
    assert padded.w % step == padded.h % step == 0
    assert 0 <= padded.w - size.w < step
    assert 0 <= padded.h - size.h < step


@pytest.mark.parametrize(
    ("longest", "levels"), [(1, 2), (512, 2), (1024, 2), (1025, 3), (2048, 3), (2049, 4), (5000, 5)]
)
def test_level_count_of_known_lengths(longest: int, levels: int) -> None:
    assert level_count(Size(longest, 1)) == level_count(Size(1, longest)) == levels


def test_an_empty_map_has_no_levels() -> None:
    with pytest.raises(ValueError, match="empty"):
        level_count(Size(0, 3))


def test_halve_is_the_mean_over_two_by_two() -> None:
    cells = np.random.default_rng(0).standard_normal((6, 10), dtype=np.float32)
    expected = [
        [cells[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean(dtype=float) for x in range(5)] for y in range(3)
    ]
    np.testing.assert_array_equal(halve(cells), np.array(expected, np.float32))


def test_halve_does_not_overflow() -> None:
    largest = np.finfo(np.float32).max
    assert halve(np.full((2, 2), largest, np.float32))[0, 0] == largest


@given(INFOS, st.integers(0, 9))
def test_first_centre_is_the_placement_in_um_from_the_first_pixels_middle(
    info: HeatmapInfo, level: int
) -> None:
    x, y = info.first_centre_um(level)
    place, mpp = info.placement, info.slide_mpp
    assert x == pytest.approx(mpp.x * (place.x0 + (place.fx * 2**level - 1) / 2), rel=1e-9, abs=1e-9)
    assert y == pytest.approx(mpp.y * (place.y0 + (place.fy * 2**level - 1) / 2), rel=1e-9, abs=1e-9)


def test_a_cell_as_large_as_a_pixel_at_the_corner_has_no_offset() -> None:
    info = HeatmapInfo("s", Size(9, 9), Mpp(0.5, 0.25), Placement(0, 0, 1, 1), ("c",))
    assert info.first_centre_um(0) == (0, 0)
    assert info.first_centre_um(1) == (0.25, 0.125)
    assert info.cell_mpp(1) == Mpp(1.0, 0.5)


@given(INFOS, SIZES)
def test_facts_restore_the_info(info: HeatmapInfo, size: Size) -> None:
    facts = info.facts(size)
    assert HeatmapInfo.from_facts(facts, list(info.channels), info.details) == info
    assert (facts["width"], facts["height"]) == (size.w, size.h)


def test_facts_are_plain_numbers_also_from_numpy() -> None:
    one = np.float64(1.5)
    info = HeatmapInfo(
        "s", Size(np.int64(3), np.int64(4)), Mpp(one, one), Placement(one, one, one, one), ("c",)
    )
    assert {type(value) for value in info.facts(Size(1, 1)).values()} == {str, int, float}


@given(SIZES)
def test_the_sample_is_odd_and_bounded(size: Size) -> None:
    step = sample_step(size)
    assert step % 2 == 1
    assert (size.w / step) * (size.h / step) <= STATISTICS_CELLS
    assert step <= 2 or (size.w / (step - 2)) * (size.h / (step - 2)) > STATISTICS_CELLS


def test_window_spans_the_percentiles_of_the_computed_cells() -> None:
    cells = np.concatenate([np.arange(1, 102), np.zeros(5000)]).astype(np.float32)
    assert window_of(cells, 1.0, 101.0) == Window(0.0, 101.0, 2.0, 100.0)


@pytest.mark.parametrize(("value", "start", "end"), [(0.0, 0.0, 1.0), (3.0, 0.0, 3.0), (-3.0, -3.0, 0.0)])
def test_window_of_a_constant_map_has_a_length(value: float, start: float, end: float) -> None:
    cells = np.full((4, 4), value, np.float32)
    assert window_of(cells, value, value) == Window(start, end, start, end)


def test_what_viewers_shall_display_lies_within_the_range() -> None:
    window = Window(0.0, 2.0, 0.1, 1.9)
    assert window.showing(-1.0, 1.0) == Window(-1.0, 2.0, -1.0, 1.0)
    assert window.showing(0.5, 5.0) == Window(0.0, 5.0, 0.5, 5.0)
