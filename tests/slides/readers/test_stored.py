"""What incomplete copies and damage leave behind in pixel data is refused or counted by both readers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from tests.helpers.slides import noise, pyramid, write_ome_tiff, write_svs, write_tiff
from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Region, Size
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.readers.stored import MAX_SIDE, _fault, _jpeg_2000_size, _jpeg_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from wsi_saliency.slides.slide import Slide


def soft(h: int, w: int) -> NDArray[np.uint8]:
    """Draw a random picture without black or white in it."""
    blurred = ndimage.gaussian_filter(noise(h, w, seed=3).astype(float), (6, 6, 0))
    return np.asarray(np.clip(127 + (blurred - blurred.mean()) * 15, 20, 235), np.uint8)


PICTURE = soft(512, 700)
WHOLE = Region(0, 0, 700, 512)


def openslide(path: Path, compression: str) -> Path:
    if compression == "jpeg":
        return write_svs(path, [PICTURE], quality=85)
    return write_tiff(path, [PICTURE], compression=compression if compression != "none" else None)


def tifffiles(path: Path, compression: str) -> Path:
    if compression == "jpeg":
        return write_ome_tiff(path, [PICTURE], quality=85)
    options = {"compression": compression if compression != "none" else None}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        sizes = {f"PhysicalSize{axis}": 0.5 for axis in "XY"}
        tiff.write(PICTURE, tile=(256, 256), metadata={"axes": "YXS"} | sizes, photometric="rgb", **options)
    return path


READERS = pytest.mark.parametrize("write", [openslide, tifffiles])


def overwrite(path: Path, place: int, new: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(new)


def data_of(path: Path, tile: int) -> tuple[int, int]:
    """Where a tile's data are, and how many bytes."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        return page.dataoffsets[tile], page.databytecounts[tile]


def set_table(path: Path, tag: str, tile: int, value: int, page: int = 0) -> None:
    """Change one entry of the table of tiles."""
    with tifffile.TiffFile(path) as tiff:
        table = tiff.pages[page].aspage().tags[tag]
        width = {3: 2, 4: 4}[int(table.dtype)]
    overwrite(path, table.valueoffset + tile * width, value.to_bytes(width, "little"))


def read(path: Path, region: Region = WHOLE) -> NDArray[np.uint8]:
    with open_slide(path, 0.5) as slide:
        return slide.read(region, Size(round(region.w), round(region.h)))


@READERS
@pytest.mark.parametrize("compression", ["jpeg", "deflate", "lzw", "none"])
def test_whole_tiles_are_right(tmp_path: Path, write: Callable[..., Path], compression: str) -> None:
    path = write(tmp_path / "s.tif", compression)
    assert np.abs(read(path).astype(int) - PICTURE).mean() < 4
    with open_slide(path, 0.5) as slide:
        assert slide.reader == ("openslide" if write is openslide else "tifffile")


@READERS
@pytest.mark.parametrize("compression", ["jpeg", "deflate", "lzw"])
@pytest.mark.parametrize("part", ["all", "end", "middle"])
def test_zeros_in_place_of_data_are_refused(
    tmp_path: Path, write: Callable[..., Path], compression: str, part: str
) -> None:
    path = write(tmp_path / "s.tif", compression)
    start, n = data_of(path, 1)
    begin, length = {"all": (0, n), "end": (n // 2, n - n // 2), "middle": (n // 2, 1200)}[part]
    overwrite(path, start + begin, bytes(length))
    read(path, Region(0, 0, 256, 256))
    with pytest.raises(SlideError, match=r"s\.tif: cannot read .*x=250.*copy is incomplete"):
        read(path, Region(250, 0, 50, 50))


@READERS
def test_zeros_in_uncompressed_pixels_are_counted(
    tmp_path: Path, write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "s.tif", "none")
    overwrite(path, data_of(path, 1)[0] + 1000, bytes(5000))
    with open_slide(path, 0.5) as slide, caplog.at_level(logging.WARNING, "wsi_saliency"):
        assert slide.warnings == ()
        for _ in range(2):
            slide.read(WHOLE, Size(700, 512))
        (warning,) = slide.warnings
        assert warning.startswith("1 tiles or strips hold long runs of zeros, which are black")
    slide.close()
    assert caplog.messages == [f"s.tif: {warning}"]


def test_zeros_in_uncompressed_strips_are_counted(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "s.tif", [PICTURE], tile=None, compression=None)
    overwrite(path, data_of(path, 2)[0], bytes(3 * 700 * 64))
    with open_slide(path) as slide:
        slide.read(WHOLE, Size(700, 512))
        assert slide.warnings[0].startswith("1 tiles or strips hold long runs")


def test_zeros_in_a_row_that_is_read_in_parts_are_counted(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "s.tif", [np.tile(PICTURE, (1, 3, 1))], tile=None, compression=None)
    overwrite(path, data_of(path, 2)[0] + 100, bytes(4096))
    with open_slide(path) as slide:
        for x in range(0, 2100, 512):
            slide.read(Region(x, 0, 512, 512), Size(512, 512))
        assert slide.warnings[0].startswith("1 tiles or strips hold long runs")


def test_what_fills_up_tiles_at_the_edge_is_not_counted(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "s.tif", [PICTURE[:300, :300]], compression=None)
    with open_slide(path) as slide:
        slide.read(Region(0, 0, 300, 300), Size(300, 300))
        assert slide.warnings == ()


@READERS
@pytest.mark.parametrize("compression", ["jpeg", "deflate", "none"])
def test_tiles_without_data_are_white_and_counted(
    tmp_path: Path, write: Callable[..., Path], compression: str
) -> None:
    path = write(tmp_path / "s.tif", compression)
    for tile in (1, 5):
        set_table(path, "TileByteCounts", tile, 0)
    with open_slide(path, 0.5) as slide:
        got = slide.read(WHOLE, Size(700, 512))
        assert ["2 of 6 at level 0" in warning for warning in slide.warnings] == [True]
        assert "white" in slide.warnings[0]
    assert (got[:256, 256:512] == 255).all()
    assert (got[256:, 512:] == 255).all()
    assert np.abs(got[:, :256].astype(int) - PICTURE[:, :256]).mean() < 4


@READERS
def test_a_slide_without_any_data_is_refused(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(tmp_path / "s.tif", "deflate")
    for tile in range(6):
        set_table(path, "TileByteCounts", tile, 0)
    with pytest.raises(SlideError, match=r"s\.tif: there are no pixels in the file"):
        open_slide(path, 0.5)


def test_aperio_fills_tiles_without_data_from_the_finer_level(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "s.svs", pyramid(PICTURE, (1, 4)))
    set_table(path, "TileByteCounts", 0, 0, page=1)
    with open_slide(path) as slide:
        got = slide.read(Region(0, 0, 400, 400), Size(100, 100))
        assert "elsewhere from the next finer level: 1 of 1 at level 1" in slide.warnings[0]
    assert abs(got.mean() - PICTURE[:400, :400].mean()) < 2


@READERS
@pytest.mark.parametrize("compression", ["jpeg", "none"])
@pytest.mark.parametrize(
    ("tag", "value", "words"),
    [
        ("TileOffsets", 2**31, "(pixels lie beyond its end|Short read)"),
        ("TileOffsets", 0, "tiles where none can be"),
        ("TileByteCounts", 2**32 - 1, "pixels lie beyond its end"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused_at_once(
    tmp_path: Path, write: Callable[..., Path], compression: str, tag: str, value: int, words: str
) -> None:
    path = write(tmp_path / "s.tif", compression)
    set_table(path, tag, 2, value)
    with pytest.raises(SlideError, match=rf"s\.tif: .*{words}"):
        open_slide(path, 0.5)


@READERS
@pytest.mark.parametrize("tag", ["ImageWidth", "ImageLength", "TileWidth", "TileLength"])
@pytest.mark.parametrize("value", [0, 1, 64, 10_000, 2**16 - 1, 2**30, 2**31 - 1, 2**32 - 1])
def test_absurd_sizes_are_refused_at_once(
    tmp_path: Path, write: Callable[..., Path], tag: str, value: int
) -> None:
    path = write(tmp_path / "s.tif", "deflate")
    with tifffile.TiffFile(path) as tiff:
        table = tiff.pages.first.tags[tag]
    width = {3: 2, 4: 4}[int(table.dtype)]
    overwrite(path, table.valueoffset, min(value, 256**width - 1).to_bytes(width, "little"))
    with pytest.raises(SlideError, match=r"s\.tif: ") as raised:
        open_slide(path, 0.5)
    assert "\n" not in str(raised.value)


def test_sizes_that_are_no_whole_numbers_are_refused(tmp_path: Path) -> None:
    path = tifffiles(tmp_path / "s.tif", "deflate")
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages.first.tags["ImageWidth"]
    overwrite(path, tag.offset + 2, (11).to_bytes(2, "little"))  # a float
    overwrite(path, tag.valueoffset, np.float32(700).tobytes())
    with pytest.raises(SlideError, match="sizes that are no whole numbers"):
        open_slide(path, 0.5)


def test_tables_are_checked_before_openslide_opens_the_file(tmp_path: Path) -> None:
    """OpenSlide divides by zero when the tiles of its coarsest level are far smaller than they were."""
    path = write_svs(tmp_path / "s.svs", pyramid(PICTURE, (1, 2, 4)))
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[2].aspage().tags["TileWidth"].valueoffset
    overwrite(path, place, (7).to_bytes(4, "little"))
    set_table(path, "TileByteCounts", 0, 0, page=1)
    with pytest.raises(SlideError, match=r"s\.svs: 175 × 128 pixels are 25 tiles or strips, its table has 1"):
        open_slide(path)


def test_a_slide_as_wide_as_none_is_refused_though_its_table_fits(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    how = {"tile": (16, 2**15), "photometric": "rgb", "compression": "deflate"}
    shape = (16, MAX_SIDE + 1, 3)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(iter([b""] * 306), shape=shape, dtype=np.uint8, metadata=None, **how)
    with pytest.raises(SlideError, match="a picture of 10000001 × 16 pixels"):
        open_slide(path, 0.5)


@READERS
def test_jpeg_without_its_end_is_refused(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(tmp_path / "s.tif", "jpeg")
    set_table(path, "TileByteCounts", 1, data_of(path, 1)[1] // 2)
    with pytest.raises(SlideError, match="tile or strip 1 has no end: it is damaged"):
        read(path)


@READERS
@pytest.mark.parametrize("side", [240, 257, 65500])
def test_jpeg_of_another_size_is_refused_before_it_takes_memory(
    tmp_path: Path, write: Callable[..., Path], side: int
) -> None:
    path = write(tmp_path / "s.tif", "jpeg")
    start, n = data_of(path, 1)
    frame = start + path.read_bytes()[start : start + n].index(b"\xff\xc0")
    overwrite(path, frame + 5, side.to_bytes(2, "big") * 2)
    with pytest.raises(SlideError, match=r"s\.tif: cannot read"):
        read(path)


def test_a_damaged_deflate_checksum_is_seen(tmp_path: Path) -> None:
    path = openslide(tmp_path / "s.tif", "deflate")
    start, n = data_of(path, 1)
    overwrite(path, start + n - 3, b"\x55\xaa")
    with pytest.raises(SlideError, match="tile or strip 1 has another checksum"):
        read(path)


def test_stored_sizes_of_pictures() -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    rgb = np.ascontiguousarray(PICTURE[:100, :60])
    assert _jpeg_size(imagecodecs.jpeg8_encode(rgb)) == (60, 100)
    for container in ("j2k", "jp2"):
        assert _jpeg_2000_size(imagecodecs.jpeg2k_encode(rgb, codecformat=container)) == (60, 100)
    for nothing in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe0", b"\xff\x4f\xff\x51"):
        assert _jpeg_size(nothing) is None
        assert _jpeg_2000_size(nothing) is None


def test_a_white_jpeg_is_no_fault() -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    white = np.full((512, 512, 3), 255, np.uint8)
    for optimize in (False, True):
        for sampling in ("444", "420"):
            data = imagecodecs.jpeg8_encode(white, optimize=optimize, subsampling=sampling)
            assert _fault(data, 7, 512, 512) is None
    assert _fault(imagecodecs.jpeg2k_encode(white, level=0), 33005, 512, 512) is None
    black = np.zeros((512, 512, 3), np.uint8)
    assert _fault(imagecodecs.jpeg2k_encode(black, level=0), 33005, 512, 512) is None


def test_a_read_of_a_slide_grows_its_warnings_only(tmp_path: Path) -> None:
    slide: Slide = open_slide(write_svs(tmp_path / "s.svs", [PICTURE]))
    with slide:
        slide.read(WHOLE, Size(700, 512))
        assert slide.warnings == ()
