from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Canvas, TileGrid
from wsi_saliency.slides import blocks
from wsi_saliency.slides.blocks import BLOCK, Block, PatchReader, block_changes, blocks_under


class DrawnSlide:
    """A slide whose pixels say where they are, at scale 1; counts what is read."""

    def __init__(self, broken_at=None):
        self.broken_at = broken_at
        self.reads = []
        self.lock = threading.Lock()

    @staticmethod
    def pixels(x, y, w, h):
        ys, xs = np.mgrid[y : y + h, x : x + w]
        return np.stack([xs % 251, ys % 241, (xs + 3 * ys) % 239], -1).astype(np.uint8)

    def read(self, region, out):
        with self.lock:
            self.reads.append((region.x, region.y))
        if self.broken_at == (region.x, region.y):
            raise SlideError("drawn.svs: region cannot be read")
        return self.pixels(int(region.x), int(region.y), out.w, out.h)


def grid_of(w, h, patch=224, overlap=0.5):
    return TileGrid.over(Canvas(w, h, 1.0, 1.0), patch, overlap, 8)


@pytest.mark.parametrize("patch", [64, 224, 700])
@pytest.mark.parametrize("workers", [1, 4])
def test_patches_are_the_slide_and_each_block_is_read_once(patch, workers):
    slide, grid = DrawnSlide(), grid_of(2500, 1900, patch)
    reader = PatchReader(slide, grid, list(grid), workers)
    for tile, pixels in zip(grid, reader, strict=True):
        np.testing.assert_array_equal(pixels, slide.pixels(tile.canvas_x, tile.canvas_y, patch, patch))
    assert len(slide.reads) == len(set(slide.reads)) == reader.blocks_read


def test_batches_come_with_their_tiles():
    slide, grid = DrawnSlide(), grid_of(900, 700)
    tiles = list(grid)[::3]
    batches = list(PatchReader(slide, grid, tiles).batches(4))
    assert [tile for batch, _ in batches for tile in batch] == tiles
    assert all(len(batch) == len(pixels) <= 4 for batch, pixels in batches)


def test_only_blocks_under_wanted_patches_are_read():
    slide, grid = DrawnSlide(), grid_of(20 * BLOCK, 20 * BLOCK)
    list(PatchReader(slide, grid, [grid[0]]))
    assert slide.reads == [(0, 0)]


@settings(max_examples=40)
@given(
    w=st.integers(1, 5000), h=st.integers(1, 3000), overlap=st.floats(0, 0.9), share=st.floats(0, 1),
    capacity=st.integers(1, 30), seed=st.integers(0, 99),
)  # fmt: skip
def test_changes_hold_what_each_patch_needs_within_its_capacity(w, h, overlap, share, capacity, seed):
    rng = np.random.default_rng(seed)
    needs = [blocks_under(tile, 224) for tile in grid_of(w, h, 224, overlap) if rng.random() < share]
    held = set()
    for need, step in zip(needs, block_changes(needs, capacity), strict=True):
        held.difference_update(step.drop)
        assert not held & set(step.read)
        held.update(step.read)
        assert set(need) <= held
        assert len(held) <= max(capacity, len(need))


def test_changes_read_once_where_the_capacity_allows_and_more_often_where_not():
    needs = [blocks_under(tile, 224) for tile in grid_of(8 * BLOCK, 4 * BLOCK)]
    blocks = {block for need in needs for block in need}
    assert sum(len(step.read) for step in block_changes(needs, 17)) == len(blocks)
    assert len(blocks) < sum(len(step.read) for step in block_changes(needs, 4)) < len(needs) * 2


def test_the_next_patch_that_needs_a_block_is_the_next_that_has_it(monkeypatch):
    monkeypatch.setattr(blocks, "_PIECE", 5)
    needs = [blocks_under(tile, 224) for tile in grid_of(3 * BLOCK, 3 * BLOCK)]
    expected = [
        next((later for later in range(i + 1, len(needs)) if block in needs[later]), blocks._NEVER)
        for i, need in enumerate(needs)
        for block in need
    ]
    assert list(blocks._next_uses(needs)) == expected


def test_memory_in_flight_does_not_depend_on_the_size_of_the_slide():
    capacity, workers = 6, 2
    slide, grid = DrawnSlide(), grid_of(12 * BLOCK, 6 * BLOCK)
    reader = PatchReader(slide, grid, list(grid), workers, memory=capacity * BLOCK * BLOCK * 3)
    steps = block_changes([blocks_under(tile, 224) for tile in grid], capacity)
    needed = 0
    for _pixels, step in zip(reader, steps, strict=True):
        needed += len(step.read)
        assert len(slide.reads) <= needed + 8 * workers + 4  # a patch's own blocks are asked for together


def test_a_block_that_cannot_be_read_stops_the_reading():
    slide, grid = DrawnSlide(broken_at=(BLOCK, 0)), grid_of(4 * BLOCK, 2 * BLOCK)
    with pytest.raises(SlideError, match="cannot be read"):
        list(PatchReader(slide, grid, list(grid)))


def test_leaving_early_leaves_no_thread_behind():
    grid = grid_of(4 * BLOCK, 4 * BLOCK)
    patches = iter(PatchReader(DrawnSlide(), grid, list(grid)))
    next(patches)
    patches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("slide")]


def test_blocks_under_a_patch():
    tile = SimpleNamespace(canvas_x=BLOCK - 10, canvas_y=0)
    assert blocks_under(tile, 20) == [Block(0, 0), Block(1, 0)]
