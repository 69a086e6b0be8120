from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_saliency.geometry import Size
from wsi_saliency.slides.levels import Level, level_of


@pytest.mark.parametrize(
    ("slide", "level", "expected"),
    [
        ((4000, 3000), (2000, 1500), (2, 2)),
        ((4001, 3003), (2000, 1501), (2, 2)),  # rounded down
        ((4001, 3003), (2001, 1502), (2, 2)),  # rounded up
        ((46000, 32914), (2875, 2057), (16, 16)),
        ((100_000, 80_000), (390, 312), (256, 256)),
        ((900, 600), (300, 200), (3, 3)),
        ((4001, 3000), (2000, 1000), (2.0005, 3.0)),
        ((3000, 3000), (1250, 1250), (2.4, 2.4)),
    ],
)
def test_downsample_of_a_level(
    slide: tuple[int, int], level: tuple[int, int], expected: tuple[float, float]
) -> None:
    got = level_of(Size(*slide), Size(*level))
    assert (got.downsample_x, got.downsample_y) == pytest.approx(expected, abs=1e-12)


@given(st.integers(50, 10**6), st.integers(50, 10**6), st.integers(1, 6), st.booleans(), st.booleans())
def test_rounded_sizes_have_whole_downsamples(w: int, h: int, power: int, up_x: bool, up_y: bool) -> None:
    k = 2**power
    size = Size(max(1, w // k + up_x * (w % k > 0)), max(1, h // k + up_y * (h % k > 0)))
    got = level_of(Size(w, h), size)
    if min(size.w, size.h) > k:  # else several whole numbers may lead to the same size
        assert (got.downsample_x, got.downsample_y) == (k, k)


def test_downsample_that_the_file_states_wins() -> None:
    # The last level is padded to whole tiles, as some scanners write it.
    assert level_of(Size(4000, 3000), Size(1024, 1024), 4.0) == Level(Size(1024, 1024), 4.0, 4.0)
    mean = (4001 / 2000 + 3003 / 1501) / 2
    assert level_of(Size(4001, 3003), Size(2000, 1501), mean).downsample_x == 2
