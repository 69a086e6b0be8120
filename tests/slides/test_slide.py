from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.slides import noise, pyramid
from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Mpp, Region, Size
from wsi_saliency.slides.levels import Level, LevelPixels, level_of
from wsi_saliency.slides.slide import Slide
from wsi_saliency.slides.spacing import Spacing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


class MadeReader:
    """What readers made for a test have in common."""

    name = format = "made"
    objective_power = bounds = None
    notes: tuple[str, ...] = ()

    def __init__(self, levels: tuple[Level, ...]) -> None:
        self.levels = levels
        self.spacing = Spacing(Mpp(0.5, 0.25), "the test", ("of the spacing",))
        self.closed = 0

    def findings(self) -> tuple[str, ...]:
        return ()

    def anchor(self, level: int) -> int | None:
        return None

    def decoded(self, level: int) -> None:
        return None

    def read_level(self, level: int, level_x: int, level_y: int, level_w: int, level_h: int) -> LevelPixels:
        raise NotImplementedError

    def close(self) -> None:
        self.closed += 1


class ArrayReader(MadeReader):
    """Reads from memory; given skewed downsamples, reads start off whole pixels as OpenSlide's do."""

    def __init__(self, levels: Sequence[NDArray[np.uint8]], skewed: Sequence[float] | None = None) -> None:
        sizes = [Size(level.shape[1], level.shape[0]) for level in levels]
        super().__init__(tuple(level_of(sizes[0], size) for size in sizes))
        self._pixels = levels
        self._skewed = skewed

    def anchor(self, level: int) -> int | None:
        return 64 if self._skewed and self._skewed[level] % 1 else None

    def read_level(self, level: int, level_x: int, level_y: int, level_w: int, level_h: int) -> LevelPixels:
        pixels = self._pixels[level].astype(float)
        shift_x, shift_y = (self._shift(level, start) for start in (level_x, level_y))
        for axis, shift in ((1, shift_x), (0, shift_y)):
            step = int(math.copysign(1, -shift))
            neighbour = np.roll(pixels, step, axis)
            pixels = pixels * (1 - abs(shift)) + neighbour * abs(shift)
        box = pixels[level_y : level_y + level_h, level_x : level_x + level_w]
        return LevelPixels(np.rint(box).astype(np.uint8), shift_x, shift_y)

    def _shift(self, level: int, start: int) -> float:
        if self._skewed is None:
            return 0.0
        return round(start * self._skewed[level]) / self._skewed[level] - start


class FormulaReader(MadeReader):
    """Computes pixels where they are read, of a slide of any size."""

    def __init__(self, size: Size, formula: Callable[..., NDArray[np.float64]]) -> None:
        super().__init__((Level(size, 1, 1),))
        self._formula = formula
        self.largest_read = 0

    def read_level(self, level: int, level_x: int, level_y: int, level_w: int, level_h: int) -> LevelPixels:
        self.largest_read = max(self.largest_read, level_w * level_h)
        x, y = np.arange(level_w) + level_x + 0.5, np.arange(level_h) + level_y + 0.5
        values = np.rint(self._formula(x[None, :], y[:, None])).astype(np.uint8)
        return LevelPixels(np.repeat(np.broadcast_to(values, (level_h, level_w))[..., None], 3, axis=2))


def in_memory(levels: Sequence[NDArray[np.uint8]], skewed: Sequence[float] | None = None) -> Slide:
    return Slide(Path("array"), ArrayReader(levels, skewed))


@pytest.mark.parametrize(
    ("factors", "skewed", "sizes", "at_once"),
    [
        ((1,), None, [Size(110, 90), Size(30, 21)], True),
        ((1,), (1.0,), [Size(110, 90), Size(300, 200), Size(7, 5)], True),
        ((1,), None, [Size(110, 90)], False),  # by itself, it is read in pieces
        ((1, 2), (1.0, 2.0003), [Size(110, 90), Size(30, 21)], False),  # where a read starts moves pixels
        ((1, 8), None, [Size(110, 90), Size(30, 21)], False),  # of two levels
    ],
)
def test_sizes_that_are_made_of_one_level_are_read_at_once(
    factors: tuple[int, ...], skewed: tuple[float, ...] | None, sizes: list[Size], at_once: bool
) -> None:
    slide, reads = in_memory(pyramid(noise(211, 301), factors), skewed), []
    region, read_level = Region(-5.5, 3, 300, 200.5), slide._reader.read_level

    def counting(*box: int) -> LevelPixels:
        reads.append(box)
        return read_level(*box)

    slide._reader.read_level = counting  # type: ignore[method-assign]
    expected = [slide.read(region, size) for size in sizes]
    alone = reads.copy()
    for found, picture in zip(slide.read_each(region, sizes), expected, strict=True):
        np.testing.assert_array_equal(found, picture)
    assert reads[len(alone) :] == ([(0, 0, 0, 301, 211)] if at_once else alone)


def slow_resample(
    pixels: NDArray[np.uint8], start: tuple[float, float], step: float, out: Size
) -> NDArray[np.float64]:
    """Weight level pixels by a triangle of one output pixel (at least one level pixel); white outside."""
    weights = []
    for axis, count in ((0, out.w), (1, out.h)):
        length = pixels.shape[1 - axis]
        margin = math.ceil(step) + 3
        centres = start[axis] + (np.arange(count) + 0.5) * step
        low, high = math.floor(centres[0]) - margin, math.ceil(centres[-1]) + margin
        distance = np.abs(np.arange(low, high)[None, :] + 0.5 - centres[:, None]) / max(step, 1)
        weight = np.clip(1 - distance, 0, None)
        weight /= weight.sum(1, keepdims=True)
        inside = np.arange(low, high)
        picked = np.zeros((count, length))
        for column, where in enumerate(inside):
            if 0 <= where < length:
                picked[:, where] = weight[:, column]
        weights.append(picked)
    across, down = weights
    return np.asarray(255 + np.einsum("ij,jkc,lk->ilc", down, pixels - 255.0, across, optimize=True))


PICTURE = noise(300, 260)
SCALES = [0.5, 1.0, 1.002, 2.0005, 3.7, 0.3337, 7.0]


def test_whole_pixels_at_scale_one_are_copied() -> None:
    slide = in_memory([PICTURE])
    got = slide.read(Region(13, 27, 100, 90), Size(100, 90))
    np.testing.assert_array_equal(got, PICTURE[27:117, 13:113])


def test_copies_read_nothing_beside_the_region() -> None:
    reader = FormulaReader(Size(900, 900), lambda x, y: x / 9 + y / 9)
    Slide(Path("formula"), reader).read(Region(13, 27, 100, 90), Size(100, 90))
    assert reader.largest_read == 100 * 90


def test_failure_names_file_and_region() -> None:
    class Broken(ArrayReader):
        def read_level(self, *args: int) -> LevelPixels:
            raise SlideError("bad marker")

    with pytest.raises(SlideError) as raised:
        Slide(Path("array"), Broken([PICTURE])).read(Region(1, 2.5, 30, 40), Size(3, 4))
    assert str(raised.value) == (
        "array: cannot read the region x=1, y=2.5, w=30, h=40 (level-0 pixels): bad marker"
    )


def test_outside_is_white() -> None:
    slide = in_memory([PICTURE])
    got = slide.read(Region(-20, 280, 300, 40), Size(300, 40))
    np.testing.assert_array_equal(got[:20, 20:280], PICTURE[280:])
    assert (got[20:] == 255).all()
    assert (got[:, :20] == 255).all()
    assert (got[:, 280:] == 255).all()
    assert (slide.read(Region(1000, -500, 30, 30), Size(20, 20)) == 255).all()


@settings(max_examples=40)
@given(st.sampled_from(SCALES), st.floats(-20, 200), st.floats(-20, 200))
def test_read_follows_the_definition(scale: float, x: float, y: float) -> None:
    slide = in_memory([PICTURE])
    out = Size(23, 19)
    got = slide.read(Region(x, y, out.w * scale, out.h * scale), out)
    assert np.abs(got - slow_resample(PICTURE, (x, y), scale, out)).max() <= 1.5


@settings(max_examples=40)
@given(st.sampled_from(SCALES), st.floats(-9, 9), st.integers(1, 59), st.integers(1, 49), st.booleans())
def test_read_in_parts_equals_read_whole(
    scale: float, origin: float, column: int, row: int, skewed: bool
) -> None:
    levels = [PICTURE, *pyramid(PICTURE, (2, 4))]
    slide = in_memory(levels, (1, 2.0031, 4.013) if skewed else None)

    def read(i: int, j: int, w: int, h: int) -> NDArray[np.float64]:
        region = Region(origin + i * scale, origin / 3 + j * scale, w * scale, h * scale)
        return slide.read(region, Size(w, h)).astype(float)

    upper = np.hstack([read(0, 0, column, row), read(column, 0, 60 - column, row)])
    lower = np.hstack([read(0, row, column, 50 - row), read(column, row, 60 - column, 50 - row)])
    assert np.abs(np.vstack([upper, lower]) - read(0, 0, 60, 50)).max() <= 1


@pytest.mark.parametrize("scale", [2.0, 2.3, 4.0, 5.1])
def test_reader_that_starts_off_whole_pixels_is_placed_exactly(scale: float) -> None:
    y, x = np.mgrid[:600, :900]
    waves = np.rint(127 + 60 * np.sin(x / 11) + 60 * np.sin(y / 9)).astype(np.uint8)
    levels = pyramid(np.repeat(waves[..., None], 3, axis=2), (1, 2, 4))
    exact, skewed = in_memory(levels), in_memory(levels, (1, 2.0031, 4.013))
    region, out = Region(100, 50, 150 * scale, 80 * scale), Size(150, 80)
    expected = exact.read(region, out).astype(float)
    difference = skewed.read(region, out) - expected
    slope_y, slope_x = np.gradient(expected, axis=(0, 1))
    for slope in (slope_x, slope_y):  # least squares: by how many output pixels the picture is moved
        assert abs((difference * slope).sum() / (slope**2).sum()) < 0.01


@pytest.mark.parametrize(
    ("scale", "level"), [(0.5, 0), (1.9, 0), (1.997, 2), (2, 2), (3.9, 2), (4, 4), (50, 4)]
)
def test_coarsest_level_that_is_fine_enough_is_read(scale: float, level: int) -> None:
    levels = [np.full((400 // k, 400 // k, 3), k, np.uint8) for k in (1, 2, 4)]
    got = in_memory(levels).read(Region(100, 100, 4 * scale, 4 * scale), Size(4, 4))
    assert (got == max(level, 1)).all()


@pytest.mark.parametrize("step", [33, 100, 391.3])
def test_huge_region_is_read_in_bounded_pieces_and_placed_exactly(step: float) -> None:
    side = 8_000
    reader = FormulaReader(Size(side, side), lambda x, y: 20 + 100 * x / side + 120 * y / side)
    out = Size(int(side // step) - 2, int(side // step) - 2)
    got = Slide(Path("formula"), reader).read(Region(step, step, out.w * step, out.h * step), out)
    centres_x, centres_y = ((np.arange(n) + 1.5) * step for n in (out.w, out.h))
    expected = 20 + 100 * centres_x[None, :] / side + 120 * centres_y[:, None] / side
    inner = slice(1, -1)
    assert np.abs(got[inner, inner, 0] - expected[inner, inner]).max() <= 1
    assert reader.largest_read < 5_000_000


def test_read_at_uses_both_pixel_sizes() -> None:
    slide = in_memory([PICTURE])  # 0.5 × 0.25 µm
    assert slide.read_at(Region(0, 0, 100, 200), 1.0).shape == (50, 50, 3)


def test_warnings_are_those_of_the_doubt_the_spacing_the_file_and_what_reading_finds() -> None:
    class Finding(ArrayReader):
        notes = ("of the file",)

        def findings(self) -> tuple[str, ...]:
            return ("found",)

    slide = Slide(Path("array"), Finding([PICTURE]), "a doubt")
    assert slide.warnings == ("a doubt", "of the spacing", "of the file", "found")


def test_a_slide_closes_its_reader_once_and_says_what_reading_has_found(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Finding(ArrayReader):
        notes = ("of the file",)

        def findings(self) -> tuple[str, ...]:
            return ("found",)

    reader = Finding([PICTURE])
    with Slide(Path("array"), reader) as slide:
        assert not reader.closed
    slide.close()
    assert reader.closed == 1
    assert caplog.messages == ["array: found"]


def test_facts_are_the_reader_s_and_bounds_the_whole_slide_unless_it_says() -> None:
    reader = ArrayReader([PICTURE])
    slide = Slide(Path("array"), reader)
    assert (slide.reader, slide.format, slide.levels) == ("made", "made", reader.levels)
    assert (slide.size, slide.mpp, slide.mpp_source) == (Size(260, 300), Mpp(0.5, 0.25), "the test")
    assert slide.bounds == Region(0, 0, 260, 300)
    reader.bounds = Region(1, 2, 3, 4)
    assert Slide(Path("array"), reader).bounds == Region(1, 2, 3, 4)
