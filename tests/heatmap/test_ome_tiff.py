from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
import ome_types
import pytest
import tifffile
import yaozarrs

from tests.helpers.heatmaps import INFO, VERSIONS, named, noise, written
from wsi_saliency.errors import OutputError
from wsi_saliency.geometry import Placement, Size
from wsi_saliency.heatmap.ome_tiff import needs_bigtiff, write_ome_tiff
from wsi_saliency.heatmap.ome_xml import COLOURS, DETAILS_NAMESPACE, PLACEMENT_NAMESPACE, ome_xml
from wsi_saliency.heatmap.ome_zarr import Heatmap, HeatmapWriter
from wsi_saliency.heatmap.pyramid import TILE, HeatmapInfo

if TYPE_CHECKING:
    from wsi_saliency.settings import OmeZarrVersion


@pytest.mark.parametrize("shape", [(5, 3), (1, 1), (900, 700), (30, 2300), (1100, 37)])
def test_every_level_equals_the_stores(tmp_path: Path, shape: tuple[int, int]) -> None:
    cells = noise(*shape)
    cells[: shape[0] // 2] = 0
    heatmap = written(tmp_path / "s.ome.zarr", cells)
    write_ome_tiff(tmp_path / "s.ome.tif", heatmap)
    with tifffile.TiffFile(tmp_path / "s.ome.tif") as tiff:
        levels = tiff.series[0].levels
        assert len(tiff.series) == len(tiff.pages) == 1
        assert len(levels) == len(heatmap.levels)
        for level, stored in enumerate(levels):
            np.testing.assert_array_equal(stored.asarray(), heatmap.read(level))


def test_tags_are_those_that_all_readers_take(tmp_path: Path) -> None:
    heatmap = written(tmp_path / "s.ome.zarr", noise(1500, 1100))
    write_ome_tiff(tmp_path / "s.ome.tif", heatmap)
    with tifffile.TiffFile(tmp_path / "s.ome.tif") as tiff:
        assert not tiff.is_bigtiff
        first = tiff.pages.first
        assert isinstance(first, tifffile.TiffPage)
        pages = [first, *(page.aspage() for page in first.pages or [])]
    assert [page.subfiletype for page in pages] == [0, 1, 1]
    for level, page in enumerate(pages):
        assert page.tile == (TILE, TILE)
        assert page.dtype == np.float32
        assert page.compression.name == "ADOBE_DEFLATE"
        assert page.predictor == 1
        assert page.photometric.name == "MINISBLACK"
        assert all(page.databytecounts)
        assert page.resolutionunit == 3
        per_cm = [numerator / denominator for numerator, denominator in map(page.tags.valueof, (282, 283))]
        assert per_cm[0] == pytest.approx(1e4 / (0.2521 * 8.01 * 2**level), rel=1e-6)
        assert per_cm[1] == pytest.approx(1e4 / (0.2498 * 7.99 * 2**level), rel=1e-6)


def test_the_ome_xml_describes_the_map(tmp_path: Path) -> None:
    heatmap = written(tmp_path / "s.ome.zarr", noise(30, 21))
    write_ome_tiff(tmp_path / "s.ome.tif", heatmap)
    ome = ome_types.from_tiff(tmp_path / "s.ome.tif")
    pixels = ome.images[0].pixels
    assert ome.images[0].name == INFO.slide_name
    assert (pixels.size_x, pixels.size_y, pixels.type.value) == (22, 30, "float")
    assert (pixels.physical_size_x, pixels.physical_size_y) == (0.2521 * 8.01, 0.2498 * 7.99)
    assert {pixels.physical_size_x_unit, pixels.physical_size_y_unit} == {
        ome_types.model.UnitsLength.MICROMETER
    }
    assert pixels.channels[0].name == INFO.channels[0]
    red, green, blue, *_ = pixels.channels[0].color.as_rgb_tuple()
    assert f"{red:02X}{green:02X}{blue:02X}" == COLOURS[0]


def test_the_annotation_places_the_map(tmp_path: Path) -> None:
    heatmap = written(tmp_path / "s.ome.zarr", noise(30, 21))
    write_ome_tiff(tmp_path / "s.ome.tif", heatmap)
    ome = ome_types.from_tiff(tmp_path / "s.ome.tif")
    notes = ome.structured_annotations.map_annotations
    entries = {note.namespace: note.value.model_dump() for note in notes if note.value}
    assert entries[DETAILS_NAMESPACE] == dict(INFO.details)
    facts = entries[PLACEMENT_NAMESPACE]
    assert facts == {key: str(value) for key, value in INFO.facts(Size(21, 30)).items()}
    place = Placement(*(float(facts[key]) for key in ("x0", "y0", "fx", "fy")))
    assert place == INFO.placement


HOSTILE = "a\x01\tb\n<&>\"'&#181;]]>\udcff\x85切片 \U0001f9ec.svs"
READABLE = "a\ufffd\ufffdb\ufffd<&>\"'&#181;]]>\ufffd\ufffd切片 \U0001f9ec.svs"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_hostile_name_does_not_spoil_a_file(tmp_path: Path, version: OmeZarrVersion) -> None:
    info = dataclasses.replace(INFO, slide_name=HOSTILE, channels=(HOSTILE,), details={HOSTILE: HOSTILE})
    heatmap = HeatmapWriter.create(tmp_path / "s.ome.zarr", Size(3, 5), info, version).finish()
    write_ome_tiff(tmp_path / "s.ome.tif", heatmap)
    xmls = (heatmap.path / "OME" / "METADATA.ome.xml").read_text("utf-8"), description(tmp_path / "s.ome.tif")
    for ome in map(ome_types.from_xml, xmls):
        image, details = ome.images[0], ome.structured_annotations.map_annotations[1].value
        assert image.name == image.pixels.channels[0].name == READABLE
        assert details
        assert details.model_dump() == {READABLE: READABLE}
    yaozarrs.validate_zarr_store(str(heatmap.path))
    assert heatmap.info == dataclasses.replace(
        INFO, slide_name=READABLE, channels=(READABLE,), details={READABLE: READABLE}
    )


def description(path: Path) -> str:
    """The bytes of tag 270 as they stand in the file, which are UTF-8."""
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages.first.tags[270]
        tiff.filehandle.seek(tag.valueoffset)
        return tiff.filehandle.read(tag.count).rstrip(b"\0").decode("utf-8")


def test_the_unit_stands_in_the_files_as_a_character(tmp_path: Path) -> None:
    heatmap = written(tmp_path / "s.ome.zarr", noise(5, 3))
    write_ome_tiff(tmp_path / "s.ome.tif", heatmap)
    in_store = (heatmap.path / "OME" / "METADATA.ome.xml").read_text("utf-8")
    for text in (description(tmp_path / "s.ome.tif"), in_store):
        assert text.startswith("<?xml version='1.0' encoding='UTF-8'?>")
        assert 'PhysicalSizeXUnit="µm"' in text
        assert "Name=\"böse 'slide'.svs\"" in text
        assert "&#" not in text


def test_bigtiff_starts_at_two_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not needs_bigtiff([Size(20_000, 20_000), Size(10_000, 10_000)])
    assert needs_bigtiff([Size(20_000, 20_000), Size(10_000, 10_001)])
    heatmap = written(tmp_path / "s.ome.zarr", noise(30, 21))
    monkeypatch.setattr("wsi_saliency.heatmap.ome_tiff.BIGTIFF_BYTES", 1000)
    write_ome_tiff(tmp_path / "s.ome.tif", heatmap)
    with tifffile.TiffFile(tmp_path / "s.ome.tif") as tiff:
        assert tiff.is_bigtiff
        np.testing.assert_array_equal(tiff.asarray(), heatmap.read(0))


def test_memory_is_bounded_by_a_row_of_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = 2000, 20_000
    band = noise(TILE, w)
    reads: list[int] = []
    read = Heatmap.read

    def watched(self: Heatmap, level: int, *cells: slice, channel: int = 0) -> np.ndarray:
        rows = read(self, level, *cells, channel=channel)
        reads.append(len(rows))
        return rows

    monkeypatch.setattr(Heatmap, "read", watched)
    tracemalloc.start()
    writer = HeatmapWriter.create(tmp_path / "s.ome.zarr", Size(w, h), INFO)
    for cell_y in range(0, h, 8 * TILE):
        writer.write_rows(cell_y, band[None, : min(TILE, h - cell_y)])
    write_ome_tiff(tmp_path / "s.ome.tif", writer.finish())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(reads) <= TILE
    assert peak < 10 * TILE * w * 4 < h * w * 4 / 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    heatmap = written(tmp_path / "s.ome.zarr", noise(30, 21))
    path = tmp_path / "s.ome.tif"
    path.symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"s\.ome\.tif: cannot be written \(No space left") as caught:
        write_ome_tiff(path, heatmap)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    heatmap = written(tmp_path / "s.ome.zarr", noise(5, 3))
    with pytest.raises(OutputError, match=r"s\.ome\.tif: cannot be written \(No such file"):
        write_ome_tiff(tmp_path / "missing" / "s.ome.tif", heatmap)


def test_the_colour_is_a_signed_32_bit_integer_as_the_schema_wants() -> None:
    text = ome_xml(INFO, Size(3, 5), Size(4, 6), pixels_in="tiff").decode("utf-8")
    assert f'Color="{0xFFA500FF - 2**32}"' in text


def test_details_may_be_empty(tmp_path: Path) -> None:
    info: HeatmapInfo = dataclasses.replace(INFO, details={})
    text = ome_xml(info, Size(3, 5), Size(4, 6), pixels_in="elsewhere").decode()
    assert ome_types.from_xml(text).images[0].pixels.metadata_only


# ----------------------------------------------------------------------------------------- channels


@pytest.mark.parametrize("shape", [(5, 3), (900, 700), (30, 2300)])
def test_each_channel_is_a_page_with_a_pyramid_of_its_own(tmp_path: Path, shape: tuple[int, int]) -> None:
    cells = np.stack([noise(*shape, seed) for seed in range(3)])
    heatmap = written(tmp_path / "s.ome.zarr", cells)
    write_ome_tiff(tmp_path / "s.ome.tif", heatmap)
    for channel, of_channel in enumerate(cells):
        one = written(tmp_path / f"{channel}.ome.zarr", of_channel)
        write_ome_tiff(tmp_path / f"{channel}.ome.tif", one)
    with tifffile.TiffFile(tmp_path / "s.ome.tif") as tiff:
        assert tiff.is_ome
        assert len(tiff.pages) == 3
        assert [len(page.aspage().pages or ()) for page in tiff.pages] == [len(heatmap.levels) - 1] * 3
        (series,) = tiff.series
        assert (series.axes, len(series.levels)) == ("CYX", len(heatmap.levels))
        for level, stored in enumerate(series.levels):
            assert stored.shape == heatmap.levels[level].shape
            for channel, values in enumerate(stored.asarray()):
                alone = tifffile.imread(tmp_path / f"{channel}.ome.tif", level=level)
                np.testing.assert_array_equal(values, alone)
                np.testing.assert_array_equal(values, heatmap.read(level, channel=channel))
        assert len(ET.fromstring(description(tmp_path / "s.ome.tif")).findall(".//{*}Image")) == 1
        assert [270 in page.aspage().tags for page in tiff.pages] == [True, False, False]


def test_the_ome_xml_names_and_colours_every_channel(tmp_path: Path) -> None:
    cells = np.stack([noise(30, 21, seed) for seed in range(3)])
    heatmap = written(tmp_path / "s.ome.zarr", cells)
    write_ome_tiff(tmp_path / "s.ome.tif", heatmap)
    (image,) = ome_types.from_tiff(tmp_path / "s.ome.tif").images
    pixels = image.pixels
    assert (pixels.size_c, pixels.size_x, pixels.size_y) == (3, 22, 30)
    assert [channel.name for channel in pixels.channels] == list(named(3).channels)
    assert [channel.samples_per_pixel for channel in pixels.channels] == [1] * 3
    colours = [channel.color.as_rgb_tuple()[:3] for channel in pixels.channels]
    assert ["".join(f"{part:02X}" for part in colour) for colour in colours] == list(COLOURS[:3])
    assert len({channel.id for channel in pixels.channels}) == 3
    (planes,) = pixels.tiff_data_blocks
    assert (planes.ifd, planes.plane_count) == (0, 3)
    assert all(name in image.description for name in named(3).channels)


def test_bigtiff_counts_all_channels() -> None:
    sizes = [Size(14_000, 14_000), Size(7000, 7000)]
    assert [needs_bigtiff(sizes, channels) for channels in (1, 2, 3)] == [False, False, True]
