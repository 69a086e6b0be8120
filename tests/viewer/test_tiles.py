from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from threading import Event

import numpy as np
import pytest
from PIL import Image

from tests.helpers.slides import noise, pyramid, write_svs
from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Size
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.whole import read_whole
from wsi_saliency.viewer import tiles as module
from wsi_saliency.viewer.tiles import TILE, SlideTiles, TileLayout, as_jpeg


@pytest.mark.parametrize(
    "size", [Size(1, 1), Size(512, 512), Size(513, 40), Size(1300, 2049), Size(100_003, 77)]
)
def test_tiles_cover_each_level_once(size):
    layout = TileLayout(size)
    assert (
        2**layout.max_level >= max(size.w, size.h) > 2 ** (layout.max_level - 1) or max(size.w, size.h) == 1
    )
    for level in {layout.min_level, layout.max_level}:
        scale = 2 ** (layout.max_level - level)
        w, h = -(-size.w // scale), -(-size.h // scale)
        columns, rows = -(-w // TILE), -(-h // TILE)
        found = [layout.tile(level, *place) for place in product(range(columns), range(rows))]
        assert all(found)
        assert sum(pixels.w * pixels.h for _, pixels in found) == w * h
        assert {region.w / pixels.w for region, pixels in found} == {scale}
        assert layout.tile(level, columns, 0) is layout.tile(level, 0, rows) is None
    assert layout.tile(layout.max_level + 1, 0, 0) is layout.tile(layout.min_level - 1, 0, 0) is None
    assert layout.tile(layout.min_level, 1, 0) is layout.tile(layout.min_level, 0, 1) is None  # a single one


def test_tiles_have_the_pixels_of_the_slide(tmp_path):
    smooth = np.kron(noise(90, 75), np.ones((16, 16, 1), np.uint8))  # which JPEG keeps well
    with open_slide(write_svs(tmp_path / "s.svs", pyramid(smooth, (1, 4)))) as slide:
        tiles = SlideTiles(slide)
        for level in range(tiles.layout.min_level, tiles.layout.max_level + 1):
            region, size = tiles.layout.tile(level, 0, 0)
            assert tiles.jpeg(level, 0, 0) == as_jpeg(slide.read(region, size))
        region, size = tiles.layout.tile(tiles.layout.max_level, 2, 1)
        assert (region.x, region.y, size) == (1024, 512, Size(176, 512))
        shown = np.asarray(Image.open(io.BytesIO(tiles.jpeg(tiles.layout.max_level, 2, 1))))
        assert np.abs(shown[..., 1].astype(int) - smooth[512:1024, 1024:, 1]).mean() < 12
        assert tiles.jpeg(tiles.layout.max_level, 9, 9) is None


def test_a_tile_is_made_once(tmp_path, monkeypatch):
    with open_slide(write_svs(tmp_path / "s.svs", [noise(300, 300)])) as slide:
        tiles = SlideTiles(slide)
        first = tiles.jpeg(tiles.layout.max_level, 0, 0)
        monkeypatch.setattr(slide, "read", None)
        assert tiles.jpeg(tiles.layout.max_level, 0, 0) is first


def test_a_slide_is_closed_when_the_last_read_has_ended(tmp_path, monkeypatch):
    with open_slide(write_svs(tmp_path / "s.svs", [noise(300, 600)])) as slide:
        tiles, began, go_on, order = SlideTiles(slide), Event(), Event(), []
        read, close, finest = slide.read, slide.close, tiles.layout.max_level

        def slow(*what):
            began.set()
            assert go_on.wait(30)
            order.append("read")
            return read(*what)

        monkeypatch.setattr(slide, "read", slow)
        monkeypatch.setattr(slide, "close", lambda: (order.append("closed"), close()))
        with ThreadPoolExecutor(2) as pool:
            reading = pool.submit(tiles.jpeg, finest, 0, 0)
            assert began.wait(30)
            closing = pool.submit(tiles.close)
            assert not closing.done()
            go_on.set()
            assert reading.result(30)
            closing.result(30)
        assert order == ["read", "closed"]
        with pytest.raises(SlideError, match="closed already"):
            tiles.jpeg(finest, 1, 0)


def test_a_slide_without_a_small_level_is_looked_at_once_for_all_coarse_tiles(tmp_path, monkeypatch):
    smooth = np.kron(noise(60, 85), np.ones((64, 64, 1), np.uint8))  # 5440 × 3840 pixels
    looks = []

    def look(slide, sizes):
        looks.append(sizes)
        return read_whole(slide, sizes)

    monkeypatch.setattr(module, "read_whole", look)
    monkeypatch.setattr(module, "SMALL", 2**20)
    with open_slide(write_svs(tmp_path / "s.svs", [smooth])) as slide:
        tiles, finest = SlideTiles(slide), TileLayout(slide.size).max_level
        for level in range(tiles.layout.min_level, finest - 2):
            for column, row in product(range(2), range(2)):
                found = tiles.layout.tile(level, column, row)
                shown = tiles.jpeg(level, column, row)
                assert (found is None) == (shown is None)
                if found:
                    pixels, direct = (
                        np.asarray(Image.open(io.BytesIO(jpeg)), int)
                        for jpeg in (shown, as_jpeg(slide.read(*found)))
                    )
                    assert pixels.shape == direct.shape
                    assert np.abs(pixels - direct).mean() < 6
        assert looks == [[tiles.layout.level_size(finest - 3)]]
        tiles.jpeg(finest - 2, 0, 0)
        assert len(looks) == 1
