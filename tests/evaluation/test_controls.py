from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from wsi_saliency.evaluation.controls import Blur, blurred_to, centred_gaussian, random_maps
from wsi_saliency.evaluation.metrics import total_variation


def test_random_maps_are_uniform_and_follow_the_seed():
    maps = random_maps(4, 40, 30, seed=3)
    assert maps.shape == (4, 40, 30)
    assert torch.equal(maps, random_maps(4, 40, 30, seed=3))
    assert not torch.equal(maps, random_maps(4, 40, 30, seed=4))
    assert not torch.equal(maps[0], maps[1])
    assert maps.unique().numel() > 0.99 * maps.numel()
    assert float(maps.mean()) == pytest.approx(0.5, abs=0.02)


def test_the_centred_gaussian_is_a_quarter_of_the_side_wide():
    weights = centred_gaussian(24, 31).double().numpy()
    i, j = np.mgrid[:24, :31]
    expected = np.exp(-(((i - 11.5) / 6) ** 2) / 2 - ((j - 15) / 7.75) ** 2 / 2)
    assert np.allclose(weights, expected, rtol=1e-5)
    assert np.array_equal(weights, weights[::-1, ::-1])


# -- the blur --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0, 3.7, 40.0])
def test_the_blur_is_the_gaussian_with_reflecting_edges(sigma):
    maps = random_maps(2, 40, 33, seed=0).double()
    found = Blur(maps)(torch.full((2,), sigma, dtype=torch.float64))
    expected = np.stack([gaussian_filter(m, sigma, mode="reflect", truncate=9) for m in maps.numpy()])
    assert np.allclose(found.numpy(), expected, rtol=0, atol=1e-10)


def test_each_patch_has_its_own_blur_and_keeps_its_mean():
    values = torch.randn(3, 2, 12, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 4
    sigma = torch.tensor([0.0, 1.0, 5.0])
    together = Blur(values)(sigma)
    for i in range(3):
        assert torch.allclose(together[i], Blur(values[i])(sigma[i].expand(2)), atol=1e-12)
    assert torch.allclose(together.mean((2, 3)), values.mean((2, 3)))
    assert torch.allclose(together[0], values[0], atol=1e-12)


# -- blurred to a total variation ------------------------------------------------------------------------


def checkerboard(side):
    i, j = np.mgrid[:side, :side]
    return torch.from_numpy((-1.0) ** (i + j))


def spike(side):
    values = torch.zeros(side, side, dtype=torch.float64)
    values[side // 3, side // 2] = 1
    return values


ROUGH = {
    "random": lambda n: random_maps(1, n, n, seed=1)[0].double(),
    "checkerboard": checkerboard,
    "spike": spike,
    "normal, far from zero": lambda n: random_maps(1, n, n, seed=2)[0].double().erfinv() + 100,
}


@pytest.mark.parametrize("share", [0.95, 0.6, 0.3, 0.15])
@pytest.mark.parametrize("side", [14, 56])
@pytest.mark.parametrize("rough", ROUGH.values(), ids=ROUGH.keys())
def test_the_wanted_total_variation_is_reached_within_a_percent(rough, side, share):
    values = rough(side)[None]
    wanted = share * total_variation(values)
    found = total_variation(blurred_to(values, wanted))
    widest = total_variation(Blur(values)(torch.tensor([float(side)])))
    if wanted > widest:
        assert torch.allclose(found, wanted, rtol=0.01)
    else:
        assert torch.allclose(found, widest, rtol=1e-6)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000), share=st.floats(0.3, 0.99), h=st.integers(6, 30), channels=st.integers(1, 3)
)
def test_it_is_reached_for_any_channels_in_float32_too(seed, share, h, channels):
    values = torch.randn(2, channels, h, 20, generator=torch.Generator().manual_seed(seed))
    wanted = share * total_variation(values)
    found = blurred_to(values, wanted)
    assert found.shape == values.shape
    assert found.dtype == values.dtype
    assert torch.allclose(total_variation(found), wanted, rtol=0.01)


def test_the_smallest_blur_is_taken_that_reaches_it():
    values = random_maps(1, 56, 56, seed=0).double()
    wanted = total_variation(Blur(values)(torch.tensor([1.3])))
    found = blurred_to(values, wanted)
    assert torch.allclose(found, Blur(values)(torch.tensor([1.3])), atol=1e-3)


def test_a_map_that_is_smooth_enough_comes_back_as_it_is():
    values = torch.stack([centred_gaussian(20, 20), random_maps(1, 20, 20, 0)[0], torch.full((20, 20), 0.1)])
    wanted = total_variation(values)
    wanted[1] *= 0.5
    found = blurred_to(values, wanted)
    assert torch.equal(found[0], values[0])
    assert torch.equal(found[2], values[2])
    assert not torch.equal(found[1], values[1])


def test_what_no_blur_reaches_gets_the_widest():
    values = random_maps(2, 16, 24, seed=0).double()
    found = blurred_to(values, torch.zeros(2))
    assert torch.allclose(found, Blur(values)(torch.full((2,), 24.0)), rtol=1e-9)


def test_patches_do_not_depend_on_each_other():
    values = random_maps(4, 20, 20, seed=0).double()
    wanted = total_variation(values) * torch.tensor([0.9, 0.1, 1.0, 0.5])
    found = blurred_to(values, wanted)
    alone = torch.cat([blurred_to(values[i : i + 1], wanted[i : i + 1]) for i in range(4)])
    assert torch.allclose(found, alone, rtol=1e-9)
