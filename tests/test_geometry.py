from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_saliency.errors import SettingsError
from wsi_saliency.geometry import (
    Canvas,
    Mpp,
    Placement,
    Size,
    Tile,
    TileGrid,
    TileSelection,
    positions,
    stride_for,
)

reductions = st.sampled_from([1, 2, 4, 8, 16, 32])
lengths = st.integers(1, 20_000)
overlaps = st.floats(0, 0.9)


@given(length=lengths, cells=st.integers(1, 40), overlap=overlaps, reduction=reductions)
def test_positions_cover_every_pixel_on_the_cell_grid(length, cells, overlap, reduction):
    patch = cells * reduction
    stride = stride_for(patch, overlap, reduction)
    found = positions(length, patch, stride, reduction)
    assert found[0] == 0
    assert all(p % reduction == 0 for p in found)
    assert all(0 < b - a <= stride for a, b in pairwise(found))
    assert all(p == k * stride for k, p in enumerate(found[:-1]))
    assert length <= found[-1] + patch < max(length, patch) + reduction


@pytest.mark.parametrize(("overlap", "stride"), [(0, 224), (0.5, 112), (0.75, 56), (0.9, 24)])
def test_stride(overlap, stride):
    assert stride_for(224, overlap, 8) == stride


@pytest.mark.parametrize(
    ("overlap", "reduction", "total", "stride"),
    [
        (0.5, 8, 32, 120),  # 112 has two of four phases
        (0.75, 8, 32, 56),
        (0.25, 8, 32, 168),
        (0.5, 16, 32, 112),
        (0.25, 16, 32, 176),  # 160 has one
        (0.5, 32, 32, 112 // 32 * 32 + 32),  # whole cells have one phase
        (0, 8, 32, 224),  # nothing is blended
        (0.01, 8, 32, 216),  # 232 would leave gaps
        (0.9, 16, 32, 16),
        (0.5, 4, 24, 116),  # six phases: 29 cells, for 28 have a common divisor with 6
    ],
)
def test_patches_take_all_phases_of_the_network_s_stride(overlap, reduction, total, stride):
    assert stride_for(224, overlap, reduction, total) == stride


@given(
    cells=st.integers(1, 60),
    overlap=st.floats(0.001, 0.9),
    reduction=reductions,
    phases=st.sampled_from([1, 2, 3, 4, 6, 8, 16, 32]),
)
def test_the_stride_is_near_what_was_asked_for_and_leaves_no_gap(cells, overlap, reduction, phases):
    patch, total = cells * reduction, phases * reduction
    stride = stride_for(patch, overlap, reduction, total)
    assert stride % reduction == 0
    assert 0 < stride <= patch
    assert len({k * stride % total for k in range(phases)}) == phases
    assert abs(stride - patch * (1 - overlap)) <= max(1.5 * reduction, total / 2)


def test_patch_that_is_no_multiple_of_the_reduction_still_shares_the_cell_grid():
    grid = TileGrid.over(Canvas(1000, 1000, 1, 1), 350, 0.5, 8)
    assert grid.stride == 176
    assert grid.canvas_xs == (0, 176, 352, 528, 656)


def test_canvas_scale_does_not_drift():
    canvas = Canvas.of(Size(200_000, 100_000), Mpp(0.2501, 0.2499), 0.5)
    for k in (0, 1, 777, 99_999):
        region = canvas.region(k, k, 1, 1)
        assert region.x == pytest.approx(k * 0.5 / 0.2501, rel=1e-12)
        assert region.y == pytest.approx(k * 0.5 / 0.2499, rel=1e-12)
    assert (canvas.w, canvas.h) == (100_040, 49_980)


def test_canvas_ignores_slivers_of_rounding():
    assert Canvas.of(Size(3000, 3000), Mpp(0.1, 0.1), 0.3).w == 1000


def test_grid_is_a_sequence_row_by_row():
    grid = TileGrid(Canvas(100, 60, 2.0, 2.0), 32, 16, 8)
    tiles = list(grid)
    assert len(grid) == len(tiles) == len(grid.canvas_xs) * len(grid.canvas_ys)
    assert tiles == sorted(tiles, key=lambda t: (t.row, t.column))
    assert grid[-1] == tiles[-1]
    assert grid[1:3] == tiles[1:3]
    with pytest.raises(IndexError):
        grid[len(grid)]


def test_level0_boxes_have_one_size_and_are_computed_from_the_index():
    grid = TileGrid(Canvas.of(Size(50_000, 50_000), Mpp(0.499, 0.499), 0.5), 224, 112, 8)
    boxes = [grid.level0_box(tile) for tile in grid[:60]]
    assert {box[2:] for box in boxes} == {(224, 224)}
    assert boxes[50][0] == round(50 * 112 * 0.5 / 0.499)


def test_cells_of_the_slide():
    grid = TileGrid(Canvas(300, 224, 1, 1), 224, 112, 8)
    assert grid.canvas_xs == (0, 80)
    for reduction, cell_x in ((8, 10), (4, 20), (1, 80)):
        assert grid.cell_origin(Tile(1, 0, 80, 0), reduction) == (cell_x, 0)
        assert grid.cell_size(reduction, 28, 28) == Size(cell_x + 28, 28)


def test_patch_smaller_than_a_cell_is_refused():
    with pytest.raises(SettingsError, match="--patch"):
        TileGrid.over(Canvas(100, 100, 1, 1), 16, 0.5, 32)


def test_placement_of_a_symmetric_layer():
    """Cell i of a layer with reduction 8 sits over pixel 8 i: from −3.5 to 4.5 (scale 2)."""
    place = Placement.of(Canvas(100, 100, 2.0, 2.0), 8, 0.5, 0.5)
    assert place == Placement(-7.0, -7.0, 16.0, 16.0)
    assert place.centre(3, 0) == (2 * (3 * 8 + 0.5), 1.0)
    assert place.at_level(2) == Placement(-7.0, -7.0, 64.0, 64.0)


def test_a_selection_is_its_tiles_and_little_else():
    grid = TileGrid(Canvas(900, 700, 1.3, 0.7), 224, 112, 16)
    numbers = np.array([3, 0, 17, 17, len(grid) - 1])
    some = TileSelection(grid, numbers)
    assert list(some) == [grid[i] for i in numbers]
    assert (some[-1], list(some[1:4])) == (grid[len(grid) - 1], [grid[0], grid[17], grid[17]])
    assert len(some[:0]) == 0


@given(st.floats(0.1, 7), st.floats(0.1, 7), st.integers(1, 3000), st.integers(1, 3000))
def test_boxes_of_all_tiles_are_those_of_each(scale_x, scale_y, w, h):
    grid = TileGrid(Canvas(w, h, scale_x, scale_y), 224, 112, 16)
    x, y, box_w, box_h = grid.level0_boxes()
    boxes = [(left, top, box_w, box_h) for top in y[:, 0].tolist() for left in x[0].tolist()]
    assert boxes == [grid.level0_box(tile) for tile in grid]
