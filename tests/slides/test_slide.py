from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.slides import noise, pyramid, write_svs, write_tiff
from wsi_saliency.errors import SettingsError, SlideError
from wsi_saliency.geometry import Mpp, Region, Size
from wsi_saliency.slides.resampling import LevelPixels
from wsi_saliency.slides.slide import (
    Level,
    Slide,
    Spacing,
    is_slide_name,
    level_of,
    open_slide,
    spacing_of,
    spacing_of_plain_tiff,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


class ArraySlide(Slide):
    """A slide in memory; given skewed downsamples, reads start off whole pixels as OpenSlide's do."""

    def __init__(self, levels: Sequence[NDArray[np.uint8]], skewed: Sequence[float] | None = None) -> None:
        sizes = [Size(level.shape[1], level.shape[0]) for level in levels]
        spacing = Spacing(Mpp(0.5, 0.25), "the test")
        super().__init__(Path("array"), "array", tuple(level_of(sizes[0], size) for size in sizes), spacing)
        self._pixels = levels
        self._skewed = skewed

    def _release(self) -> None:
        """Nothing to release."""

    def _anchor(self, level: int) -> int | None:
        return 64 if self._skewed and self._skewed[level] % 1 else None

    def _read_level(self, level: int, level_x: int, level_y: int, level_w: int, level_h: int) -> LevelPixels:
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


class FormulaSlide(Slide):
    """A slide of any size whose pixels are computed where they are read."""

    def __init__(self, size: Size, formula: Callable[..., NDArray[np.float64]]) -> None:
        super().__init__(Path("formula"), "formula", (Level(size, 1, 1),), Spacing(None, "unknown"))
        self._formula = formula
        self.largest_read = 0

    def _release(self) -> None:
        """Nothing to release."""

    def _read_level(self, level: int, level_x: int, level_y: int, level_w: int, level_h: int) -> LevelPixels:
        self.largest_read = max(self.largest_read, level_w * level_h)
        x, y = np.arange(level_w) + level_x + 0.5, np.arange(level_h) + level_y + 0.5
        values = np.rint(self._formula(x[None, :], y[:, None])).astype(np.uint8)
        return LevelPixels(np.repeat(np.broadcast_to(values, (level_h, level_w))[..., None], 3, axis=2))


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
    slide = ArraySlide([PICTURE])
    got = slide.read(Region(13, 27, 100, 90), Size(100, 90))
    np.testing.assert_array_equal(got, PICTURE[27:117, 13:113])


def test_copies_read_nothing_beside_the_region() -> None:
    slide = FormulaSlide(Size(900, 900), lambda x, y: x / 9 + y / 9)
    slide.read(Region(13, 27, 100, 90), Size(100, 90))
    assert slide.largest_read == 100 * 90


def test_failure_names_file_and_region() -> None:
    class Broken(ArraySlide):
        def _read_level(self, *args: int) -> LevelPixels:
            raise SlideError("bad marker")

    with pytest.raises(SlideError) as raised:
        Broken([PICTURE]).read(Region(1, 2.5, 30, 40), Size(3, 4))
    assert str(raised.value) == (
        "array: cannot read the region x=1, y=2.5, w=30, h=40 (level-0 pixels): bad marker"
    )


def test_outside_is_white() -> None:
    slide = ArraySlide([PICTURE])
    got = slide.read(Region(-20, 280, 300, 40), Size(300, 40))
    np.testing.assert_array_equal(got[:20, 20:280], PICTURE[280:])
    assert (got[20:] == 255).all()
    assert (got[:, :20] == 255).all()
    assert (got[:, 280:] == 255).all()
    assert (slide.read(Region(1000, -500, 30, 30), Size(20, 20)) == 255).all()


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(SCALES), st.floats(-20, 200), st.floats(-20, 200))
def test_read_follows_the_definition(scale: float, x: float, y: float) -> None:
    slide = ArraySlide([PICTURE])
    out = Size(23, 19)
    got = slide.read(Region(x, y, out.w * scale, out.h * scale), out)
    assert np.abs(got - slow_resample(PICTURE, (x, y), scale, out)).max() <= 1.5


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(SCALES), st.floats(-9, 9), st.integers(1, 59), st.integers(1, 49), st.booleans())
def test_read_in_parts_equals_read_whole(
    scale: float, origin: float, column: int, row: int, skewed: bool
) -> None:
    levels = [PICTURE, *pyramid(PICTURE, (2, 4))]
    slide = ArraySlide(levels, (1, 2.0031, 4.013) if skewed else None)

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
    exact, skewed = ArraySlide(levels), ArraySlide(levels, (1, 2.0031, 4.013))
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
    got = ArraySlide(levels).read(Region(100, 100, 4 * scale, 4 * scale), Size(4, 4))
    assert (got == max(level, 1)).all()


@pytest.mark.parametrize("step", [33, 100, 391.3])
def test_huge_region_is_read_in_bounded_pieces_and_placed_exactly(step: float) -> None:
    side = 8_000
    slide = FormulaSlide(Size(side, side), lambda x, y: 20 + 100 * x / side + 120 * y / side)
    out = Size(int(side // step) - 2, int(side // step) - 2)
    got = slide.read(Region(step, step, out.w * step, out.h * step), out)
    centres_x, centres_y = ((np.arange(n) + 1.5) * step for n in (out.w, out.h))
    expected = 20 + 100 * centres_x[None, :] / side + 120 * centres_y[:, None] / side
    inner = slice(1, -1)
    assert np.abs(got[inner, inner, 0] - expected[inner, inner]).max() <= 1
    assert slide.largest_read < 5_000_000


def test_read_at_uses_both_pixel_sizes() -> None:
    slide = ArraySlide([PICTURE])  # 0.5 × 0.25 µm
    assert slide.read_at(Region(0, 0, 100, 200), 1.0).shape == (50, 50, 3)


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


def test_mpp_given_wins() -> None:
    assert spacing_of(0.3, Mpp(0.5, 0.5), 20) == Spacing(Mpp(0.3, 0.3), "--mpp")


def test_mpp_of_the_file_wins_over_the_objective() -> None:
    assert spacing_of(None, Mpp(0.5, 0.6), 40) == Spacing(Mpp(0.5, 0.6), "the file")


def test_mpp_estimated_says_so() -> None:
    spacing = spacing_of(None, None, 40)
    assert spacing.mpp == Mpp(0.25, 0.25)
    assert spacing.source == "estimated from the objective power 40×"
    assert "--mpp" in spacing.warnings[0]


@pytest.mark.parametrize("stated", [None, Mpp(0, 0), Mpp(math.nan, 0.5), Mpp(-1, -1), Mpp(math.inf, 1)])
@pytest.mark.parametrize("power", [None, 0.0, math.nan])
def test_mpp_of_no_use_is_none(stated: Mpp | None, power: float | None) -> None:
    assert spacing_of(None, stated, power).mpp is None


@pytest.mark.parametrize("mpp", [0.0252, 62.0])
def test_implausible_mpp_is_used_with_a_warning(mpp: float) -> None:
    spacing = spacing_of(None, Mpp(mpp, mpp), None)
    assert spacing.mpp == Mpp(mpp, mpp)
    assert "0.05–20" in spacing.warnings[0]
    assert "--mpp" in spacing.warnings[0]


@pytest.mark.parametrize("stated", [1e-300, 1e308, 250.0, 0.0005, -0.5])
@pytest.mark.parametrize("power", [None, 20])
def test_impossible_mpp_of_a_file_is_refused_whatever_the_objective(
    tmp_path: Path, stated: float, power: float | None
) -> None:
    path = write_svs(tmp_path / "s.svs", [PICTURE], mpp=stated, power=power)
    with pytest.raises(SlideError, match=r"s\.svs: .*not believed.*give it with --mpp") as raised:
        open_slide(path)
    assert ("250 nm are 0.25 µm: --mpp 0.25" in str(raised.value)) == (stated == 250)
    assert ("0.0005 mm are 0.5 µm: --mpp 0.5" in str(raised.value)) == (stated == 0.0005)
    with open_slide(path, mpp_required=False) as slide:
        assert slide.stated_mpp is None
    with open_slide(path, mpp=0.5) as slide:
        assert slide.mpp == Mpp(0.5, 0.5)


@pytest.mark.parametrize("power", [1e-300, 1e300, 0.01])
def test_impossible_objective_gives_no_estimate(power: float) -> None:
    spacing = spacing_of(None, None, power)
    assert spacing.mpp is None
    assert "not believed" in spacing.warnings[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (500, "--mpp 500: µm per pixel lie within 0.001–100; 500 nm are 0.5 µm: --mpp 0.5"),
        (0.00025, "0.00025 mm are 0.25 µm: --mpp 0.25"),
        (1e-300, "--mpp 1e-300: µm per pixel lie within 0.001–100"),
        (1e308, "--mpp 1e+308: µm per pixel lie within 0.001–100"),
    ],
)
def test_mpp_option_in_another_unit_is_refused_with_what_it_may_mean(
    tmp_path: Path, given: float, words: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        open_slide(write_svs(tmp_path / "s.svs", [PICTURE]), mpp=given)
    assert str(raised.value).endswith(words)


def test_mpp_of_a_thumbnail_is_taken_with_a_warning(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "s.tif", [PICTURE], mpp=None)
    with open_slide(path, mpp=78) as slide:
        assert slide.mpp == Mpp(78, 78)
        assert "outside 0.05–20" in slide.warnings[0]
    with open_slide(path, mpp=7.8) as slide:
        assert slide.warnings == ()


@pytest.mark.parametrize("dpi", [72, 96, 300])
def test_resolution_of_a_screen_or_printer_is_not_believed(dpi: int) -> None:
    spacing = spacing_of_plain_tiff(None, Mpp(25400 / dpi, 25400 / dpi))
    assert spacing.mpp is None
    assert "not believed" in spacing.warnings[0]
    assert spacing_of_plain_tiff(0.5, Mpp(353, 353)) == Spacing(Mpp(0.5, 0.5), "--mpp")


def test_missing_mpp_is_an_error_that_names_file_and_option(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "s.svs", [PICTURE], mpp=None, power=None)
    with pytest.raises(SlideError, match=r"s\.svs: the file does not say .* give it with --mpp") as raised:
        open_slide(path)
    assert "\n" not in str(raised.value)
    with open_slide(path, mpp_required=False) as slide:
        assert slide.stated_mpp is None
        assert slide.mpp_source == "unknown"
        with pytest.raises(SlideError, match="--mpp"):
            _ = slide.mpp
    with open_slide(path, mpp=0.4) as slide:
        assert (slide.mpp, slide.mpp_source) == (Mpp(0.4, 0.4), "--mpp")


@pytest.mark.parametrize("mpp", [0.0, -1.0, math.nan, math.inf])
def test_mpp_option_must_be_positive(tmp_path: Path, mpp: float) -> None:
    with pytest.raises(SettingsError, match="--mpp"):
        open_slide(write_svs(tmp_path / "s.svs", [PICTURE]), mpp=mpp)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no such file"), (b"", "is empty"), (b"slide\nof text\n", "it is a text file")],
)
def test_what_is_no_slide_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "odd.svs"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SlideError, match=rf"odd\.svs: .*{reason}") as raised:
        open_slide(path)
    assert "\n" not in str(raised.value)


def test_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="is a folder"):
        open_slide(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.svs", True),
        ("b/A.TIFF", True),
        ("x.ome.tif", True),
        ("m.mrxs", True),
        ("d.dcm", True),
        ("._a.svs", False),
        ("a.svs.txt", False),
        ("svs", False),
        ("Slidedat.ini", False),
    ],
)
def test_slide_names(name: str, expected: bool) -> None:
    assert is_slide_name(name) is expected
