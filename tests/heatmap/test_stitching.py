from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_saliency.geometry import Canvas, TileGrid
from wsi_saliency.heatmap.snapshot import DamagedSnapshotError, Snapshot, write_snapshot
from wsi_saliency.heatmap.stitching import Stitcher, hann_window


def stitched(grid, tiles, maps, cells):
    """Run a stitcher; return the heatmap, and check that its rows came in order and without gaps."""
    bands = []

    def write_rows(cell_y, rows):
        assert cell_y == sum(b.shape[1] for b in bands)
        assert rows.dtype == np.float32
        bands.append(rows.copy())

    channels = len(next(iter(maps.values()), [0]))
    stitcher = Stitcher(grid, tiles, grid.reduction, cells, cells, channels, write_rows)
    for tile in tiles:
        stitcher.add(tile, maps[tile])
    stitcher.finish()
    return np.concatenate(bands, axis=1)


def reference(grid, tiles, maps, cells):
    """Stitch cell by cell in float64, closely following the definition."""
    size = grid.cell_size(grid.reduction, cells, cells)
    channels = len(next(iter(maps.values()), [0]))
    result = np.zeros((channels, size.h, size.w))
    for y in range(size.h):
        for x in range(size.w):
            total, weight = np.zeros(channels), 0.0
            for tile in tiles:
                cell_x, cell_y = tile.canvas_x // grid.reduction, tile.canvas_y // grid.reduction
                if cell_x <= x < cell_x + cells and cell_y <= y < cell_y + cells:
                    i, j = y - cell_y, x - cell_x
                    w = np.sin(np.pi * (i + 0.5) / cells) ** 2 * np.sin(np.pi * (j + 0.5) / cells) ** 2
                    total, weight = total + w * maps[tile][:, i, j], weight + w
            result[:, y, x] = total / weight if weight else 0.0
    return result


def random_case(seed, overlap, w, h, share, channels):
    rng = np.random.default_rng(seed)
    grid = TileGrid.over(Canvas(w, h, 1, 1), 32, overlap, 4)
    tiles = [tile for tile in grid if rng.random() < share]
    maps = {tile: rng.normal(size=(channels, 8, 8)).astype(np.float32) for tile in tiles}
    return grid, tiles, maps


cases = st.builds(
    random_case,
    st.integers(0, 99),
    st.floats(0, 0.9),
    st.integers(1, 120),
    st.integers(1, 120),
    st.floats(0, 1),
    st.integers(1, 3),
)


@settings(max_examples=20)
@given(case=cases)
def test_equals_the_definition(case):
    np.testing.assert_allclose(stitched(*case, 8), reference(*case, 8), atol=1e-5)


@settings(max_examples=20)
@given(case=cases, seed=st.integers(0, 9))
def test_order_of_tiles_does_not_matter(case, seed):
    grid, tiles, maps = case
    shuffled = random.Random(seed).sample(tiles, len(tiles))
    np.testing.assert_allclose(stitched(grid, shuffled, maps, 8), stitched(grid, tiles, maps, 8), atol=1e-5)


@pytest.mark.parametrize("overlap", [0, 0.3, 0.5, 0.75, 0.9])
def test_constant_in_is_constant_out(overlap):
    grid = TileGrid.over(Canvas(777, 555, 1, 1), 224, overlap, 8)
    constant = np.full((1, 28, 28), -3.25, np.float32)
    result = stitched(grid, list(grid), dict.fromkeys(grid, constant), 28)
    np.testing.assert_allclose(result, -3.25, rtol=1e-6)


def test_without_overlap_maps_stand_side_by_side():
    grid = TileGrid.over(Canvas(64, 64, 1, 1), 32, 0, 4)
    maps = {tile: np.full((1, 8, 8), i, np.float32) for i, tile in enumerate(grid)}
    result = stitched(grid, list(grid), maps, 8)
    np.testing.assert_allclose(result[0, ::8, ::8], [[0, 1], [2, 3]], rtol=1e-6)


def test_no_tiles_give_an_empty_map():
    grid = TileGrid.over(Canvas(5000, 5000, 1, 1), 32, 0.5, 4)
    result = stitched(grid, [], {}, 8)
    assert result.shape == (1, 1250, 1250)
    assert not result.any()


def test_memory_is_bounded_by_rows_whatever_the_height():
    grid = TileGrid.over(Canvas(256, 20_000, 1, 1), 64, 0.5, 8)
    stitcher = Stitcher(grid, grid, 8, 8, 8, 3, lambda y, rows: None)
    most = set()
    for tile in grid:
        stitcher.add(tile, np.ones((3, 8, 8), np.float32))
        most |= {stitcher._sum.shape, stitcher._weight.shape}
    assert max(shape[-2] for shape in most) == 8
    assert {shape[:-2] for shape in most} == {(3,), ()}


def test_a_map_of_the_wrong_size_is_refused():
    grid = TileGrid.over(Canvas(64, 64, 1, 1), 32, 0, 4)
    stitcher = Stitcher(grid, grid, 4, 8, 8, 2, lambda y, rows: None)
    for shape in ((2, 7, 8), (8, 8), (1, 8, 8), (3, 8, 8)):
        with pytest.raises(ValueError, match="2, 8, 8"):
            stitcher.add(grid[0], np.ones(shape, np.float32))


def test_missing_tiles_are_noticed():
    grid = TileGrid.over(Canvas(64, 64, 1, 1), 32, 0, 4)
    with pytest.raises(ValueError, match="4 tiles"):
        Stitcher(grid, grid, 4, 8, 8, 1, lambda y, rows: None).finish()


def test_window_is_positive_symmetric_and_one_cell_is_kept():
    window = hann_window(28, 14)
    assert window.shape == (14, 28)
    assert (window > 0).all()
    np.testing.assert_allclose(window, window[::-1, ::-1], rtol=1e-5)
    assert hann_window(1, 1) == 1


@settings(max_examples=20)
@given(
    case=st.builds(
        random_case,
        st.integers(0, 99),
        st.floats(0, 0.9),
        *[st.integers(1, 90)] * 2,
        st.floats(0, 1),
        st.just(3),
    )
)
def test_channels_are_stitched_as_maps_of_their_own(case):
    grid, tiles, maps = case
    together = stitched(grid, tiles, maps, 8)
    for channel in range(3 if tiles else 0):
        alone = stitched(grid, tiles, {tile: maps[tile][channel : channel + 1] for tile in tiles}, 8)
        np.testing.assert_array_equal(together[channel], alone[0])


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_layers_of_one_grid_have_cells_of_their_own_size(reduction):
    """The grid suits the coarsest layer; a finer one has more cells of each patch, at the same places."""
    grid = TileGrid.over(Canvas(200, 104, 1, 1), 32, 0.5, 8)
    bands, cells = [], 32 // reduction
    stitcher = Stitcher(grid, grid, reduction, cells, cells, 1, lambda y, rows: bands.append(rows))
    slide = np.random.default_rng(0).normal(size=(104 // reduction, 200 // reduction)).astype(np.float32)
    for tile in grid:
        x, y = tile.canvas_x // reduction, tile.canvas_y // reduction
        stitcher.add(tile, slide[None, y : y + cells, x : x + cells])
    stitcher.finish()
    np.testing.assert_allclose(np.concatenate(bands, axis=1)[0], slide, rtol=1e-5)


@settings(max_examples=30)
@given(case=cases, data=st.data())
def test_a_restored_stitcher_goes_on_as_if_nothing_had_happened(tmp_path_factory, case, data):
    """Also where tiles come in any order, and it happens twice."""
    grid, tiles, maps = case
    tiles = random.Random(data.draw(st.integers(0, 3))).sample(tiles, len(tiles))
    channels, bands = len(next(iter(maps.values()), [0])), []
    file = tmp_path_factory.mktemp("stitch") / "saved"

    def new():
        return Stitcher(grid, tiles, 4, 8, 8, channels, lambda y, rows: bands.append((y, rows.copy())))

    stops = sorted(data.draw(st.lists(st.integers(0, len(tiles)), max_size=2)))
    stitcher, start = new(), 0
    for stop in [*stops, len(tiles)]:
        for tile in tiles[start:stop]:
            stitcher.add(tile, maps[tile])
        write_snapshot(file, {}, stitcher.state())
        stitcher, start = new(), stop
        stitcher.restore(Snapshot.read(file), tiles[:stop])
    stitcher.finish()
    assert [y for y, _ in bands] == np.cumsum([0, *(rows.shape[1] for _, rows in bands)])[:-1].tolist()
    np.testing.assert_array_equal(
        np.concatenate([rows for _, rows in bands], axis=1), stitched(grid, tiles, maps, 8)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"top": np.array(9)},  # a row that is still to come
        {"top": np.array(-1)},
        {"weight": np.zeros((99, 16), np.float32), "sum": np.zeros((1, 99, 16), np.float32)},
        {"sum": np.zeros((1, 3, 16), np.float32)},
        {"sum": np.zeros((2, 8, 16), np.float32)},
    ],
)
def test_a_state_of_another_map_is_refused(tmp_path, change):
    grid = TileGrid.over(Canvas(64, 64, 1, 1), 32, 0, 4)
    stitcher = Stitcher(grid, grid, 4, 8, 8, 1, lambda y, rows: None)
    stitcher.add(grid[0], np.ones((1, 8, 8), np.float32))
    write_snapshot(tmp_path / "saved", {}, stitcher.state() | change)
    with pytest.raises(DamagedSnapshotError):
        stitcher.restore(Snapshot.read(tmp_path / "saved"), grid[:1])
