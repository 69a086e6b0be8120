"""What `LevelReader` promises, of every reader alike, on a file that all of them read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.helpers.slides import noise, pyramid, write_tiff
from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Mpp, Size
from wsi_saliency.slides.readers.openslide import OpenSlideReader
from wsi_saliency.slides.readers.tiff import TiffReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wsi_saliency.slides.readers.protocol import LevelReader

LEVELS = pyramid(noise(640, 512), (1, 2))


@pytest.fixture(params=[OpenSlideReader, TiffReader])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LevelReader]:
    reader = request.param(write_tiff(tmp_path / "s.tif", LEVELS))
    yield reader
    reader.close()


def test_facts_are_those_of_the_file(reader: LevelReader) -> None:
    assert [level.size for level in reader.levels] == [Size(512, 640), Size(256, 320)]
    assert [(level.downsample_x, level.downsample_y) for level in reader.levels] == [(1, 1), (2, 2)]
    assert reader.spacing.mpp is not None
    assert (reader.spacing.mpp.x, reader.spacing.mpp.y) == pytest.approx((0.5, 0.5))
    assert (reader.objective_power, reader.bounds, reader.notes, reader.findings()) == (None, None, (), ())
    assert (reader.name, reader.format) in {("openslide", "generic-tiff"), ("tifffile", "tiff")}


def test_given_mpp_wins(reader: LevelReader, tmp_path: Path) -> None:
    given = type(reader)(tmp_path / "s.tif", 0.3)  # type: ignore[call-arg]
    assert given.spacing.mpp == Mpp(0.3, 0.3)
    given.close()


@pytest.mark.parametrize("level", [0, 1])
def test_a_box_of_a_level_is_read_as_it_is_stored(reader: LevelReader, level: int) -> None:
    got = reader.read_level(level, 100, 30, 120, 250)
    np.testing.assert_array_equal(got.rgb, LEVELS[level][30:280, 100:220])
    assert got.rgb.dtype == np.uint8
    assert (got.shift_x, got.shift_y, reader.anchor(level)) == (0, 0, None)


def test_a_closed_reader_says_so(reader: LevelReader) -> None:
    reader.close()
    reader.close()
    with pytest.raises(SlideError, match=r"^the slide is closed$"):
        reader.read_level(0, 0, 0, 8, 8)


def test_decoded_tiles_are_the_level(reader: LevelReader, tmp_path: Path) -> None:
    level, decoded = LEVELS[1], np.zeros((512, 256, 3), np.uint8)
    jpeg = type(reader)(write_tiff(tmp_path / "jpeg.tif", LEVELS, quality=98))  # type: ignore[call-arg]
    tiles = jpeg.decoded(1)
    assert tiles is not None
    for tile in tiles.stored.under(0, 0, 256, 320):
        pixels = tiles.read(tile.number)
        assert pixels is not None
        y, x = tile.row * 256, tile.column * 256
        decoded[y : y + 256, x : x + 256][: pixels.shape[0]] = pixels
    shown = jpeg.read_level(1, 0, 0, 256, 320).rgb.astype(int)
    assert abs(decoded[:320] - shown).max() <= 3  # of 255: decoders round differently
    assert abs(decoded[:320] - level.astype(int)).mean() < 30
    jpeg.close()
    assert jpeg.decoded(1) is None
