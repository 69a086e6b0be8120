from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from tests.helpers.paths import REAL_SLIDES
from tests.helpers.slides import noise, pyramid, reduced, write_svs, write_tiff
from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Mpp, Region, Size
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.readers.openslide import ANCHOR, OpenSlideReader, _on_white

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from wsi_saliency.slides.slide import Slide


def soft(h: int, w: int) -> NDArray[np.uint8]:
    """Draw a coloured random picture that survives halving: blurred noise, stretched."""
    blurred = ndimage.gaussian_filter(noise(h, w, seed=3).astype(float), (6, 6, 0))
    stretched = 127 + (blurred - blurred.mean()) / blurred.std() * 50
    return np.asarray(np.clip(stretched, 0, 255), np.uint8)


PICTURE = soft(1501, 1201)


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slide]:
    """A slide whose levels OpenSlide can address exactly."""
    picture = PICTURE[:1472, :1152]
    path = write_svs(tmp_path_factory.mktemp("even") / "s.svs", pyramid(picture, (1, 2, 4)), quality=95)
    with open_slide(path) as slide:
        yield slide


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slide]:
    """A slide whose level sizes are rounded, so that OpenSlide's own downsamples are 2.0015 and 4.0033."""
    path = write_svs(tmp_path_factory.mktemp("uneven") / "s.svs", pyramid(PICTURE, (1, 2, 4)))
    with open_slide(path) as slide:
        yield slide


def test_facts_of_an_aperio_slide(even: Slide) -> None:
    assert even.format == "aperio"
    assert even.size == Size(1152, 1472)
    assert [level.downsample_x for level in even.levels] == [1, 2, 4]
    assert (even.mpp, even.mpp_source, even.objective_power) == (Mpp(0.5, 0.5), "the file", 20)
    assert even.bounds == Region(0, 0, 1152, 1472)
    assert even.warnings == ()


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_levels_are_read_without_resampling(tmp_path: Path, factor: int) -> None:
    picture = noise(512, 768)
    with open_slide(write_svs(tmp_path / "s.svs", pyramid(picture, (1, 2, 4)))) as slide:
        got = slide.read(Region(64, 128, 60 * factor, 50 * factor), Size(60, 50))
    x, y = 64 // factor, 128 // factor
    np.testing.assert_array_equal(got, reduced(picture, factor)[y : y + 50, x : x + 60])


def test_rounded_levels_keep_their_whole_downsample(uneven: Slide) -> None:
    assert [level.downsample_x for level in uneven.levels] == [1, 2, 4]
    reader = OpenSlideReader(uneven.path)
    assert [reader.anchor(level) for level in range(3)] == [None, ANCHOR, ANCHOR]
    reader.close()


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("corner", [(0, 0), (601, 733)])
def test_rounded_levels_are_placed_exactly(uneven: Slide, factor: int, corner: tuple[int, int]) -> None:
    x, y = (c // factor * factor for c in corner)
    got = uneven.read(Region(x, y, 128 * factor, 128 * factor), Size(128, 128)).astype(float)
    expected = reduced(PICTURE, factor)[y // factor :, x // factor :][:128, :128].astype(float)
    slope_y, slope_x, _ = np.gradient(expected)
    for slope in (slope_x, slope_y):  # least squares: by how many level pixels the picture is moved
        assert abs(((got - expected) * slope).sum() / (slope**2).sum()) < 0.01
    assert np.abs(got - expected).max() < 4


@settings(max_examples=40)
@given(
    st.sampled_from([1.0, 1.002, 0.5, 2.0005, 3.7, 4.0]),
    st.floats(-40, 300),
    st.integers(1, 119),
    st.integers(1, 89),
    st.booleans(),
)
def test_read_in_parts_equals_read_whole(
    even: Slide, uneven: Slide, scale: float, origin: float, column: int, row: int, rounded: bool
) -> None:
    slide = uneven if rounded else even

    def read(i: int, j: int, w: int, h: int) -> NDArray[np.float64]:
        region = Region(origin + i * scale, 2 * origin + j * scale, w * scale, h * scale)
        return slide.read(region, Size(w, h)).astype(float)

    upper = np.hstack([read(0, 0, column, row), read(column, 0, 120 - column, row)])
    lower = np.hstack([read(0, row, column, 90 - row), read(column, row, 120 - column, 90 - row)])
    assert np.abs(np.vstack([upper, lower]) - read(0, 0, 120, 90)).max() <= 1


def test_several_threads_read_the_same(even: Slide) -> None:
    regions = [Region(x, y, 190.3, 170.1) for x in range(0, 900, 90) for y in range(0, 1200, 200)]
    alone = [even.read(region, Size(150, 140)) for region in regions]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda region: even.read(region, Size(150, 140)), regions))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "s.tif", [PICTURE[:512, :512]])
    with open_slide(path) as slide:
        assert (slide.format, slide.reader) == ("generic-tiff", "openslide")
        beyond = np.asarray(openslide.OpenSlide(path).read_region((500, 500), 0, (24, 24)))
        assert (beyond[20, 20] == 0).all()  # OpenSlide's own answer: transparent black
        got = slide.read(Region(500, 500, 24, 24), Size(24, 24))
    assert (got[12:] == 255).all()
    np.testing.assert_array_equal(got[:12, :12], PICTURE[500:512, 500:512])


def test_rgba_is_composited_over_white() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 51]]], np.uint8)
    got = _on_white(Image.fromarray(rgba))
    np.testing.assert_array_equal(got, [[[10, 20, 30], [255, 255, 255], [204, 224, 244]]])


def test_half_transparent_pixels_are_composited(uneven: Slide) -> None:
    # Off a whole level pixel, OpenSlide's last column is partly transparent black; it must not come out dark.
    level, reader = uneven.levels[2].size, OpenSlideReader(uneven.path)
    got = reader.read_level(2, 200, 100, level.w - 200, 100)
    reader.close()
    assert got.shift_x != 0
    expected = reduced(PICTURE, 4)[100:200, level.w - 1].astype(float)
    assert (got.rgb[:, -1] >= expected - 25).all()


def test_objective_power_gives_an_estimate_that_is_stated(tmp_path: Path) -> None:
    with open_slide(write_svs(tmp_path / "s.svs", [PICTURE], mpp=None, power=40)) as slide:
        assert slide.mpp == Mpp(0.25, 0.25)
        assert slide.mpp_source == "estimated from the objective power 40×"
        assert slide.warnings


def test_generic_tiff_takes_resolution_tags_only_if_plausible(tmp_path: Path) -> None:
    with open_slide(write_tiff(tmp_path / "cm.tif", [PICTURE], mpp=0.25)) as slide:
        assert slide.mpp.x == pytest.approx(0.25)
    path = write_tiff(tmp_path / "dpi.tif", [PICTURE], resolution=(72, 72), resolutionunit="INCH")
    with pytest.raises(SlideError, match=r"352\.8.*not believed.*--mpp"):
        open_slide(path)


def test_truncated_slide_is_named(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "cut.svs", [noise(600, 600)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    region = Region(0, 0, 600, 600)
    with pytest.raises(SlideError, match=r"cut\.svs: ") as raised, open_slide(path) as slide:
        slide.read(region, Size(600, 600))
    assert "\n" not in str(raised.value)


def test_closed_slide_says_so(tmp_path: Path) -> None:
    slide = open_slide(write_svs(tmp_path / "s.svs", [PICTURE]))
    slide.close()
    slide.close()
    with pytest.raises(SlideError, match="is closed"):
        slide.read(Region(0, 0, 10, 10), Size(10, 10))


def real(name: str) -> Path:
    path = REAL_SLIDES / name
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    return path


def test_unreadable_slide_names_file_and_region_every_time() -> None:
    with open_slide(real("unreadable.svs")) as slide:
        for x in (0, 4, 8):
            with pytest.raises(
                SlideError, match=rf"unreadable\.svs: cannot read .*x={x}, y=2, w=8, h=6"
            ) as raised:
                slide.read(Region(x, 2, 8, 6), Size(8, 6))
            assert "\n" not in str(raised.value)


def test_dicom_opens() -> None:
    with open_slide(real("jpeg.dicom")) as slide:
        assert (slide.format, slide.size) == ("dicom", Size(957, 715))
        assert slide.mpp.x == pytest.approx(16.783)
        assert slide.warnings == ()
        assert slide.read_at(Region(0, 0, 957, 715), 33.566).shape == (357, 478, 3)  # 357.49 rows


def test_slide_without_mpp_needs_the_option() -> None:
    with pytest.raises(SlideError, match=r"tumor_001aaf\.tif: .*--mpp"):
        open_slide(real("tumor_001aaf.tif"))
    with open_slide(real("tumor_001aaf.tif"), mpp=7.8) as slide:
        assert (slide.mpp, slide.mpp_source) == (Mpp(7.8, 7.8), "--mpp")
