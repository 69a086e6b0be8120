from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from wsi_saliency.evaluation.metrics import total_variation, upsampled


def slow_total_variation(attr):
    """One attribution (C, h, w), pixel by pixel, closely following the definition."""
    channels, height, width = attr.shape
    total = 0.0
    for channel in attr.double().numpy():
        a = channel - channel.mean()
        a = a / max(np.abs(a).mean(), 1e-6)
        for i in range(height):
            for j in range(width):
                total += abs(a[i + 1, j] - a[i, j]) if i + 1 < height else 0.0
                total += abs(a[i, j + 1] - a[i, j]) if j + 1 < width else 0.0
    return total / (channels * height * width)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (2, 1, 1, 6), (1, 2, 8, 8)])
def test_total_variation_is_the_definition(shape, dtype):
    attr = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 1).to(dtype)
    found = total_variation(attr)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([slow_total_variation(a) for a in attr], rel=1e-12)


def test_total_variation_of_known_maps():
    checkerboard = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    ramp = torch.tensor([[0.0, 2.0], [0.0, 2.0]])
    assert total_variation(torch.stack([checkerboard, ramp])).tolist() == [2.0, 1.0]


def test_total_variation_of_maps_is_that_of_one_channel():
    maps = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(total_variation(maps), total_variation(maps[:, None]))


def test_total_variation_ignores_scale_and_offset_of_each_channel():
    attr = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    scale = torch.tensor([1.0, 50.0, 0.01], dtype=torch.float64).view(1, 3, 1, 1)
    assert torch.allclose(total_variation(attr * scale + 3), total_variation(attr), rtol=1e-10)


def test_a_constant_map_and_a_single_cell_have_no_variation():
    assert total_variation(torch.full((2, 3, 4, 4), 0.1)).tolist() == [0.0, 0.0]
    assert total_variation(torch.full((1, 1, 1), 5.0)).tolist() == [0.0]


def test_below_the_least_magnitude_the_map_is_not_enlarged():
    attr = torch.tensor([[[1e-9, -1e-9]]], dtype=torch.float64)
    assert float(total_variation(attr)) == pytest.approx(1e-3)  # 2e-9 / 1e-6, over two cells


# -- upsampled -------------------------------------------------------------------------------------------


def slow_upsampled(cell_map, side, placement):
    """Bilinear interpolation at the middle of each pixel, one by one, with the cells' middles written out."""
    reduction, centre_x, centre_y = placement
    xs = centre_x + reduction * np.arange(cell_map.shape[1])
    ys = centre_y + reduction * np.arange(cell_map.shape[0])
    rows = np.stack([np.interp(np.arange(side[1]) + 0.5, xs, row) for row in cell_map.numpy()])
    return np.stack([np.interp(np.arange(side[0]) + 0.5, ys, column) for column in rows.T]).T


@pytest.mark.parametrize(("cells", "side"), [((7, 7), 56), ((4, 6), (33, 50)), ((1, 3), (8, 9)), ((9, 9), 5)])
def test_without_placement_it_is_interpolate(cells, side):
    maps = torch.randn(2, *cells, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    size = (side, side) if isinstance(side, int) else side
    expected = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(upsampled(maps, side), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reduction", [2, 8, 32])
def test_placed_in_blocks_it_is_interpolate(reduction):
    maps = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(maps[:, None], scale_factor=reduction, mode="bilinear")[:, 0]
    placed = upsampled(maps, 5 * reduction, (reduction, reduction / 2, reduction / 2))
    assert torch.allclose(placed, expected, rtol=0, atol=1e-6)


@given(
    reduction=st.sampled_from([1, 2, 8, 16]),
    centre_x=st.floats(-20, 40),
    centre_y=st.floats(-20, 40),
    cells=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    side=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_placed_anywhere_it_is_the_definition(reduction, centre_x, centre_y, cells, side):
    maps = torch.randn(1, *cells, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    placement = (reduction, centre_x, centre_y)
    found = upsampled(maps, side, placement)
    assert np.allclose(found[0].numpy(), slow_upsampled(maps[0], side, placement), rtol=0, atol=1e-12)


def test_a_cell_lies_where_its_placement_says():
    maps = torch.zeros(1, 7, 7)
    maps[0, 2, 3] = 1
    found = upsampled(maps, 56, (8, 0.5, 4.5))[0]  # x is not mixed up with y
    assert found[4 + 16, 24] == 1
    assert (found == 1).sum() == 1


def test_a_map_of_the_patch_stays_as_it_is():
    maps = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(upsampled(maps, (6, 9)), maps)
    assert torch.equal(upsampled(maps, (6, 9), (1, 0.5, 0.5)), maps)


@given(value=st.floats(-1e6, 1e6, width=32), side=st.integers(1, 50))
def test_a_constant_map_stays_exactly_constant(value, side):
    assert (upsampled(torch.full((1, 7, 3), value), side) == value).all()
