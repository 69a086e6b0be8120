from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile

from tests.helpers.harmful_xml import BOMB, EXTERNAL
from tests.helpers.slides import noise, pyramid, reduced, write_ome_tiff, write_tiff
from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Mpp, Region, Size
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.readers import stored
from wsi_saliency.slides.readers import tiff as tiff_slides
from wsi_saliency.slides.readers.decoding import DecodedTiles
from wsi_saliency.slides.readers.tiff import TiffReader
from wsi_saliency.slides.slide import Slide

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PICTURE = noise(700, 900)
LAYOUTS = ["ome tiles", "ome strips", "strips", "raw strips", "planar strips", "big strips"]


def written(folder: Path, layout: str, levels: list[NDArray[np.uint8]]) -> Path:
    """Write the layouts that OpenSlide refuses or misreads."""
    path = folder / "s.tif"
    if layout.startswith("ome"):
        return write_ome_tiff(path, levels, tile=256 if "tiles" in layout else None)
    how: dict[str, dict[str, Any]] = {
        "strips": {},
        "raw strips": {"compression": None},
        "planar strips": {"planarconfig": "separate"},
        "big strips": {"rowsperstrip": 500, "predictor": True},
    }
    if layout == "planar strips":
        levels = [np.ascontiguousarray(np.moveaxis(level, 2, 0)) for level in levels]
    return write_tiff(path, levels, tile=None, **how[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_level_is_read_exactly(tmp_path: Path, layout: str) -> None:
    with open_slide(written(tmp_path, layout, pyramid(PICTURE, (1, 2, 4)))) as slide:
        assert slide.format == "tiff"
        assert slide.size == Size(900, 700)
        assert [level.downsample_x for level in slide.levels] == [1, 2, 4]
        assert slide.mpp.x == pytest.approx(0.5)
        for factor in (1, 2, 4):
            got = slide.read(Region(100, 212, 100 * factor, 90 * factor), Size(100, 90))
            x, y = 100 // factor, 212 // factor
            np.testing.assert_array_equal(got, reduced(PICTURE, factor)[y : y + 90, x : x + 100])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_edges_and_outside(tmp_path: Path, layout: str) -> None:
    with open_slide(written(tmp_path, layout, [PICTURE])) as slide:
        got = slide.read(Region(-10, -20, 920, 740), Size(920, 740))
    np.testing.assert_array_equal(got[20:720, 10:910], PICTURE)
    got[20:720, 10:910] = 255
    assert (got == 255).all()


def test_jpeg_tiles_decode_to_rgb(tmp_path: Path) -> None:
    y, x = np.mgrid[:512, :512]
    picture = np.dstack([x // 2, y // 2, (x + y) // 4]).astype(np.uint8)
    with open_slide(write_ome_tiff(tmp_path / "s.ome.tif", [picture], quality=95)) as slide:
        got = slide.read(Region(0, 0, 512, 512), Size(512, 512))
    assert np.abs(got.astype(int) - picture).max() < 12


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_becomes_rgb(tmp_path: Path, photometric: str) -> None:
    grey = np.ascontiguousarray(PICTURE[..., 0])
    with open_slide(write_tiff(tmp_path / "s.tif", [grey], tile=None, photometric=photometric)) as slide:
        got = slide.read(Region(0, 0, 900, 700), Size(900, 700))
    expected = grey if photometric == "minisblack" else 255 - grey
    np.testing.assert_array_equal(got, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha"])
def test_transparent_pixels_are_white(tmp_path: Path, alpha: str) -> None:
    opacity = np.zeros((700, 900, 1), np.uint8)
    opacity[:, 300:600], opacity[:, 600:] = 128, 255
    colours = PICTURE if alpha == "unassalpha" else np.rint(PICTURE * (opacity / 255)).astype(np.uint8)
    path = tmp_path / "s.tif"
    write_tiff(path, [np.dstack([colours, opacity])], tile=None, extrasamples=[alpha])
    with open_slide(path) as slide:
        got = slide.read(Region(0, 0, 900, 700), Size(900, 700))
    expected = PICTURE * (opacity / 255) + 255 * (1 - opacity / 255)
    assert np.abs(got - expected).max() <= 1
    assert (got[:, :300] == 255).all()


def test_tiles_that_the_file_leaves_out_are_white(tmp_path: Path) -> None:
    tiles = [PICTURE[:256, :256].tobytes(), b"", b"", PICTURE[256:512, 256:512].tobytes()]
    path = tmp_path / "s.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        layout: dict[str, Any] = {
            "shape": (512, 512, 3),
            "dtype": np.uint8,
            "tile": (256, 256),
            "photometric": "rgb",
        }
        tiff.write(
            iter(tiles), metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}, **layout
        )
    with open_slide(path) as slide:
        got = slide.read(Region(0, 0, 512, 512), Size(512, 512))
    np.testing.assert_array_equal(got[256:, 256:], PICTURE[256:512, 256:512])
    assert (got[:256, 256:] == 255).all()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, Mpp(0.5, 0.5)),
        ({"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm"}, Mpp(0.25, 0.5)),
        (
            {
                "PhysicalSizeX": 3e-4,
                "PhysicalSizeXUnit": "mm",
                "PhysicalSizeY": 4e-5,
                "PhysicalSizeYUnit": "cm",
            },
            Mpp(0.3, 0.4),
        ),
        ({"PhysicalSizeXUnit": "pixel"}, None),
    ],
)
def test_ome_pixel_size_takes_its_unit(
    tmp_path: Path, metadata: dict[str, Any], expected: Mpp | None
) -> None:
    path = write_ome_tiff(tmp_path / "s.ome.tif", [PICTURE], **metadata)
    with open_slide(path, mpp_required=False) as slide:
        mpp = slide.stated_mpp
    if expected is None:
        assert mpp is None
    else:
        assert mpp is not None
        assert (mpp.x, mpp.y) == pytest.approx((expected.x, expected.y))


def test_ome_objective_gives_an_estimate(tmp_path: Path) -> None:
    path = write_ome_tiff(tmp_path / "s.ome.tif", [PICTURE], mpp=None)
    instrument = (
        '<Instrument ID="Instrument:0"><Objective ID="Objective:0" NominalMagnification="40"/></Instrument>'
    )
    with tifffile.TiffFile(path) as tiff:
        metadata = str(tiff.ome_metadata).replace("<Image ", instrument + "<Image ", 1)
    tifffile.tiffcomment(path, metadata.encode())
    with open_slide(path) as slide:
        assert slide.mpp == Mpp(0.25, 0.25)
        assert slide.objective_power == 40


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (BOMB.format(root="OME"), "has a document type"),
        (EXTERNAL.format(root="OME"), "has a document type"),
        ("<OME><Pixels \x1b[31m</OME>", "is damaged"),
        ("<OME>" * 3 + "</OME>", "is damaged"),
    ],
)
def test_harmful_or_damaged_xml_is_refused(tmp_path: Path, xml: str, words: str) -> None:
    path = write_tiff(tmp_path / "s.tif", [PICTURE], description=xml)
    with pytest.raises(SlideError, match=rf"s\.tif: its OME-XML {words}") as raised:
        open_slide(path)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("size", ["1e-300", "1e308", "nan", "-1", "0,5", "0x10", ""])
def test_ome_pixel_size_that_means_nothing_is_not_taken(tmp_path: Path, size: str) -> None:
    path = write_ome_tiff(tmp_path / "s.ome.tif", [PICTURE], PhysicalSizeX=size)
    with pytest.raises(SlideError, match=r"s\.ome\.tif: the file does not say .*--mpp"):
        open_slide(path)


@pytest.mark.parametrize("dpi", [72, 96, 300])
def test_screen_resolution_is_no_mpp(tmp_path: Path, dpi: int) -> None:
    path = write_tiff(tmp_path / "s.tif", [PICTURE], tile=None, resolution=(dpi, dpi), resolutionunit="INCH")
    with pytest.raises(SlideError, match=r"not believed.*--mpp"):
        open_slide(path)


def test_missing_resolution_is_no_mpp(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "s.tif", [PICTURE], tile=None, mpp=None)
    with open_slide(path, mpp_required=False) as slide:
        assert slide.stated_mpp is None
        assert slide.warnings == ()


def test_unequal_resolutions(tmp_path: Path) -> None:
    how: dict[str, Any] = {"resolution": (20_000, 10_000), "resolutionunit": "CENTIMETER"}
    with open_slide(write_tiff(tmp_path / "s.tif", [PICTURE], tile=None, **how)) as slide:
        assert slide.mpp == Mpp(0.5, 1.0)


def test_pages_of_another_shape_are_no_levels(tmp_path: Path) -> None:
    label = noise(200, 300, seed=1)
    with open_slide(
        write_tiff(tmp_path / "s.tif", [PICTURE, label, *pyramid(PICTURE, (2,))], tile=None)
    ) as slide:
        assert [level.size for level in slide.levels] == [Size(900, 700), Size(450, 350)]


@pytest.mark.parametrize("tile", [None, 256])
@pytest.mark.parametrize(("dtype", "name"), [(np.uint16, "16-bit"), (np.float32, "32-bit")])
def test_deeper_pixels_are_refused_in_one_line(
    tmp_path: Path, tile: int | None, dtype: type, name: str
) -> None:
    path = write_tiff(tmp_path / "deep.tif", [PICTURE.astype(dtype)], tile=tile)
    with pytest.raises(SlideError, match=rf"deep\.tif: pixels are {name}.*only 8-bit") as raised:
        open_slide(path)
    assert "\n" not in str(raised.value)


def test_stack_of_channels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stack.ome.tif"
    tifffile.imwrite(path, noise(512, 512)[..., 0][None].repeat(4, 0), ome=True, metadata={"axes": "CYX"})
    with pytest.raises(SlideError, match=r"stack\.ome\.tif: 4 channels or planes"):
        open_slide(path, mpp=0.5)


@pytest.mark.parametrize("layout", ["ome tiles", "strips", "raw strips"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_file_is_one_clear_line(tmp_path: Path, layout: str, share: float) -> None:
    path = written(tmp_path, layout, [PICTURE])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(SlideError, match=r"s\.tif: ") as raised:
        open_slide(path)
    assert "\n" not in str(raised.value)


def test_damaged_tile_names_file_and_region(tmp_path: Path) -> None:
    path = write_ome_tiff(tmp_path / "s.ome.tif", [PICTURE])
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        offset, length = page.dataoffsets[1], page.databytecounts[1]
    content = bytearray(path.read_bytes())
    content[offset : offset + length] = b"\xff" * length
    path.write_bytes(content)
    with open_slide(path) as slide:
        slide.read(Region(0, 0, 200, 200), Size(200, 200))
        for _ in range(2):
            with pytest.raises(
                SlideError, match=r"s\.ome\.tif: cannot read .*x=200, y=0, w=100, h=50"
            ) as raised:
                slide.read(Region(200, 0, 100, 50), Size(100, 50))
            assert "\n" not in str(raised.value)


def test_one_huge_strip_is_refused_if_it_must_be_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "LARGEST_TILE", 500_000)
    huge: dict[str, Any] = {"tile": None, "rowsperstrip": 700}
    with pytest.raises(SlideError, match="re-save the slide as tiled TIFF"):
        open_slide(write_tiff(tmp_path / "s.tif", [PICTURE], **huge))
    with open_slide(write_tiff(tmp_path / "raw.tif", [PICTURE], compression=None, **huge)) as slide:
        assert slide.size == Size(900, 700)


def test_cache_spares_decoding_and_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_slides, "CACHE_BYTES", 3 * 256 * 256 * 3)
    decoded: list[int] = []
    decode = DecodedTiles.read

    def counted(tiles: DecodedTiles, index: int) -> NDArray[np.uint8] | None:
        decoded.append(index)
        return decode(tiles, index)

    monkeypatch.setattr(DecodedTiles, "read", counted)
    path = write_ome_tiff(tmp_path / "s.ome.tif", [PICTURE])
    reader = TiffReader(path)
    with Slide(path, reader) as slide:
        for x in (0, 10, 20):
            slide.read(Region(x, 0, 100, 100), Size(100, 100))
        assert decoded == [0]
        slide.read(Region(0, 0, 900, 700), Size(900, 700))
        store = reader._stores[0]
        assert isinstance(store, tiff_slides._Segmented)
        assert store._cache._bytes <= 3 * 256 * 256 * 3


def test_several_threads_read_the_same(tmp_path: Path) -> None:
    regions = [Region(x, y, 190, 170) for x in range(0, 700, 70) for y in range(0, 500, 100)]
    path = write_ome_tiff(tmp_path / "s.ome.tif", [PICTURE])
    with open_slide(path) as slide, ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda region: slide.read(region, Size(190, 170)), regions))
    for region, got in zip(regions, together, strict=True):
        x, y = int(region.x), int(region.y)
        np.testing.assert_array_equal(got, PICTURE[y : y + 170, x : x + 190])


def test_closed_slide_says_so(tmp_path: Path) -> None:
    slide = open_slide(write_ome_tiff(tmp_path / "s.ome.tif", [PICTURE]))
    slide.close()
    slide.close()
    with pytest.raises(SlideError, match="is closed"):
        slide.read(Region(0, 0, 10, 10), Size(10, 10))
