from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.helpers.slides import pyramid, section, write_ome_tiff, write_svs, write_tiff
from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Region, Size
from wsi_saliency.slides import slide as slides
from wsi_saliency.slides import whole
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.tissue import mask_of, mask_size, tissue_mask
from wsi_saliency.slides.whole import read_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

W, H = 1500, 1100  # neither whole tiles nor whole reduced pixels
PICTURE = section(W, H, (200, 150, 500, 400), (900, 600, 600, 500))
SIZES = [Size(W // 16, H // 16), Size(40, 29)]

WAYS = {  # every way to the pixels: tiles one by one, or boxes
    "openslide, jpeg": lambda path: write_svs(path.with_suffix(".svs"), [PICTURE], quality=95),
    "openslide, deflate": lambda path: write_tiff(path, [PICTURE]),
    "openslide, tiles that do not fit": lambda path: write_svs(path, [PICTURE], quality=95, tile=240),
    "tifffile, tiles": lambda path: write_ome_tiff(path, [PICTURE]),
    "tifffile, strips": lambda path: write_tiff(path, [PICTURE], tile=None),
    "tifffile, strips that do not fit": lambda path: write_tiff(path, [PICTURE], tile=None, rowsperstrip=3),
    "tifffile, raw strips": lambda path: write_tiff(path, [PICTURE], tile=None, compression=None),
    "tifffile, planes": lambda path: write_tiff(
        path, [np.moveaxis(PICTURE, 2, 0)], tile=None, planarconfig="separate"
    ),
}


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take slides of a few hundred pixels for large ones."""
    monkeypatch.setattr(whole, "SMALL", 1000)
    monkeypatch.setattr(whole, "_PIECE", 256)


def slowly(size: Size, step: int) -> NDArray[np.uint8]:
    """Means of ``step`` × ``step`` pixels, of fewer at the far edges, and the same filter."""
    rows = range(0, H, step)
    means = [[PICTURE[y : y + step, x : x + step].mean(axis=(0, 1)) for x in range(0, W, step)] for y in rows]
    small = Image.fromarray(np.rint(means).astype(np.uint8))
    box = (0, 0, W / step, H / step)
    return np.asarray(small.resize((size.w, size.h), Image.Resampling.BILINEAR, box=box))


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("write", WAYS.values(), ids=WAYS.keys())
def test_a_slide_without_a_small_level_is_averaged(write: Callable[[Path], Path], tmp_path: Path) -> None:
    with open_slide(write(tmp_path / "s.tif")) as slide:
        pictures = read_whole(slide, SIZES)
    for picture, size in zip(pictures, SIZES, strict=True):
        expected = slowly(size, 8).astype(int)
        inside = np.s_[:-1, :-1]  # where the last pixels have no neighbours, filters differ
        assert picture.shape == expected.shape
        assert (
            abs(picture[inside] - expected[inside]).max() <= 12
        )  # of 255, at edges; JPEG and another filter
        assert abs(picture - expected).max() <= 60


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("write", WAYS.values(), ids=WAYS.keys())
def test_every_pixel_is_decoded_about_once(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(write(tmp_path / "s.tif")) as slide:
        monkeypatch.setattr(slide, "read", counted := Counted(slide.read))
        read_whole(slide, SIZES)
    assert counted.pixels <= 1.1 * W * H


@pytest.mark.parametrize("write", WAYS.values(), ids=WAYS.keys())
def test_a_small_slide_has_the_pixels_that_it_has_when_each_size_is_read_by_itself(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slides, "CELL", 512)  # several pieces
    monkeypatch.setattr(slides, "_STRIP", 300)
    with open_slide(write(tmp_path / "s.tif")) as slide:
        sizes = [*SIZES, Size(871, 639), Size(W, H)]
        for size, picture in zip(sizes, read_whole(slide, sizes), strict=True):
            np.testing.assert_array_equal(picture, slide.read(Region(0, 0, W, H), size))


class Counted:
    """Counts the pixels that are read."""

    def __init__(self, read: Callable[[Region, Size], NDArray[np.uint8]]) -> None:
        self._read, self.pixels = read, 0.0

    def __call__(self, region: Region, out: Size) -> NDArray[np.uint8]:
        self.pixels += region.w * region.h
        return self._read(region, out)


def test_the_same_tissue_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(write_svs(tmp_path / "s.svs", [PICTURE], quality=90)) as slide:
        plain = tissue_mask(slide).mask
        monkeypatch.setattr(whole, "SMALL", 1000)
        found = tissue_mask(slide).mask
    assert plain.any()
    assert (plain & found).sum() >= 0.97 * (plain | found).sum()


@pytest.mark.usefixtures("large")
def test_a_small_level_is_read_as_ever(tmp_path: Path) -> None:
    with open_slide(write_svs(tmp_path / "s.svs", pyramid(PICTURE, (1, 4)), quality=90)) as slide:
        region = Region(0, 0, W, H)
        for size, picture in zip(SIZES, read_whole(slide, SIZES), strict=True):
            np.testing.assert_array_equal(picture, slide.read(region, size))
        expected = mask_of(slide, slide.read(region, mask_size(slide)))
        np.testing.assert_array_equal(tissue_mask(slide).mask, expected.mask)


@pytest.mark.usefixtures("large")
def test_all_pieces_are_shown(tmp_path: Path) -> None:
    shown: list[int] = []

    @contextmanager
    def watch(pieces: int) -> Iterator[Callable[[int], object]]:
        yield shown.append
        assert sum(shown) == pieces

    with open_slide(write_svs(tmp_path / "s.svs", [PICTURE], quality=90)) as slide:
        read_whole(slide, SIZES, watch=watch)
    assert len(shown) == -(-H // 256)


@pytest.mark.usefixtures("large")
def test_a_damaged_tile_is_not_taken_for_white(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "s.svs", [PICTURE], quality=90)
    with open_slide(path) as slide:
        tiles = slide.decoded(0)
        assert tiles is not None
        place, length = int(tiles.stored._offsets[7]), int(tiles.stored._lengths[7])
    data = bytearray(path.read_bytes())
    data[place : place + length] = bytes(length)
    path.write_bytes(data)
    with open_slide(path) as slide, pytest.raises(SlideError, match=r"s\.svs: .* tile or strip 7"):
        read_whole(slide, SIZES)


def test_the_reduced_picture_is_bounded() -> None:
    for side in (8_000, 60_000, 200_000, 1_000_000):
        for step in (8, 30, 500):
            n = whole._reduction(Size(side, side), step)
            assert n & (n - 1) == 0
            assert (side / n) ** 2 <= whole.REDUCED
            assert n <= step / 2 or (2 * side / n) ** 2 > whole.REDUCED


@pytest.mark.parametrize("step", [1, 2, 8, 16, 32, 64])
@pytest.mark.parametrize("size", [(64, 128), (64, 100), (50, 128)])
def test_means_are_those_of_the_definition(step: int, size: tuple[int, int]) -> None:
    dark_and_bright = np.random.default_rng(step).choice(np.array([0, 1, 254, 255], np.uint8), (*size, 3))
    for pixels in (dark_and_bright, np.full((*size, 3), 255, np.uint8)):
        means = whole._means(pixels, step)
        assert means.shape == (-(-size[0] // step), -(-size[1] // step), 3)
        for row, column in np.ndindex(means.shape[:2]):
            part = pixels[row * step : (row + 1) * step, column * step : (column + 1) * step]
            mean = np.floor(part.astype(int).sum(axis=(0, 1)) / (part.shape[0] * part.shape[1]) + 0.5)
            np.testing.assert_array_equal(means[row, column], mean)
