from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from wsi_saliency import phase_stability
from wsi_saliency.errors import SettingsError
from wsi_saliency.evaluation.maps import compared_maps, explain_all, kind_of
from wsi_saliency.evaluation.measured import KindScores, MapKind, Phase, with_phase
from wsi_saliency.evaluation.phase import (
    Surroundings,
    agreement,
    border,
    coarse_moves,
    measure_phase,
    moves_of,
    phase_cost,
)
from wsi_saliency.saliency.network import Network

SMOOTH = ("backward-hook", "centred-hook")


def linear(kernel):
    """A convolution of stride 2 with one kernel for all channels, summed up: the gradient is the kernel."""
    convolution = nn.Conv2d(3, 1, 2, 2, bias=False)
    with torch.no_grad():
        convolution.weight[:] = torch.tensor(kernel)
    return nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def one_pixel():
    """Looks at one pixel of four, and so at others when the picture moves by one."""
    return linear([[1.0, 0.0], [0.0, 0.0]])


def all_alike():
    return linear([[1.0, 1.0], [1.0, 1.0]])


def noise(n=3, side=34, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) + 0.1


# ------------------------------------------------------------------------------------- closed forms


def test_a_network_that_looks_at_every_other_pixel_is_not_steady():
    # one pixel of four is on, another after each move: −q² / (q − q²) of a share q, up to the number of cells
    ones = torch.ones(2, 3, 66, 66)
    found = phase_stability(one_pixel(), ones, "input", attribution="gradient-x-activation", method="none")
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.full((2,), -1 / 3).double(), atol=0.02, rtol=0)


def test_a_network_that_looks_at_all_pixels_alike_is_steady():
    found = phase_stability(all_alike(), noise(), "input", attribution="gradient-x-activation", method="none")
    torch.testing.assert_close(found, torch.ones(3).double())


@pytest.mark.parametrize("method", SMOOTH)
def test_smoothing_makes_it_steady(method):
    how = {"layer": "input", "attribution": "gradient-x-activation"}
    assert (phase_stability(one_pixel(), noise(), method="none", **how) < 0.2).all()
    torch.testing.assert_close(
        phase_stability(one_pixel(), noise(), method=method, **how), torch.ones(3).double()
    )


def test_a_magnitude_is_compared_as_such():
    class Signs(nn.Module):
        """Counts the second and fourth quarter of a cell of 2 × 2 pixels against the picture."""

        def forward(self, x):
            signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(x.shape[2] // 2, x.shape[3] // 2)
            cells = nn.functional.avg_pool2d((x**2 * signs).mean(1, keepdim=True), 2)
            return cells.mean((2, 3))

    images = noise()[..., :16, :16].repeat(1, 1, 2, 2)
    signed, magnitude = (
        phase_stability(Signs().eval(), images, "input", attribution=attribution, method="none", moves=9)
        for attribution in ("gradient-x-activation", "gradient")
    )
    torch.testing.assert_close(magnitude, torch.ones(3).double())
    # moved by one pixel the other way round; by one in both axes as before: mean of −r, −r and 1
    assert (signed < 0).all()


def test_a_constant_map_has_no_figure():
    steady = phase_stability(all_alike(), noise(), "input", attribution="gradient", method="none")
    assert steady.isnan().all()


def test_without_a_stride_there_is_nothing_to_move_by():
    net = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert phase_stability(net, noise(), "0", 1).isnan().all()


def test_the_draw_is_seeded_and_all_moves_are_all_moves():
    how = {"layer": "input", "attribution": "gradient-x-activation", "method": "none"}
    first, again, *others = (
        phase_stability(one_pixel(), noise(), moves=1, seed=seed, **how) for seed in (1, 1, 2, 3, 4, 5)
    )
    assert torch.equal(first, again)
    assert not all(torch.equal(first, other) for other in others)
    every = phase_stability(one_pixel(), noise(), moves=3, seed=1, **how)
    torch.testing.assert_close(every, phase_stability(one_pixel(), noise(), moves=99, seed=2, **how))


@pytest.mark.parametrize(("h", "w"), [(34, 32), (4, 4)])
def test_images_that_cannot_be_moved(h, w):
    with pytest.raises(SettingsError, match=rf"{w} × {h} px; .* by up to 2 px, the network's total stride"):
        phase_stability(one_pixel(), torch.ones(1, 3, h, w), "input")


# -------------------------------------------------------------------------------------------- moves


@pytest.mark.parametrize(
    ("total", "reduction", "step", "n"),
    [
        *((32, reduction, 8, 15) for reduction in (1, 2, 4, 8)),
        (32, 16, 16, 3),
        (32, 32, 32, 0),
        (16, 1, 4, 15),
        (36, 6, 12, 8),  # whole cells, not a quarter
        (2, 1, 1, 3),
        (1, 1, 1, 0),
        (6, 1, 1, 35),
    ],
)
def test_moves_are_multiples_below_the_total_stride(total, reduction, step, n):
    moves = coarse_moves(total, reduction)
    assert moves.shape == (n, 2)
    assert len({tuple(move) for move in moves.tolist()}) == n
    assert (0, 0) not in {tuple(move) for move in moves.tolist()}
    assert (moves % step == 0).all()
    assert (moves % reduction == 0).all()
    assert (moves < total).all()


def test_each_move_is_made_equally_often():
    drawn = moves_of(30, 32, 1, 4, seed=3)
    assert drawn.shape == (30, 4, 2)
    times = np.unique(drawn.reshape(-1, 2), axis=0, return_counts=True)[1]
    assert times.tolist() == [8] * 15
    assert (drawn[0] != drawn[1]).any()
    assert moves_of(4, 32, 1, 99).shape == (4, 15, 2)
    assert moves_of(4, 32, 16).shape == (4, 3, 2)
    assert moves_of(4, 1, 1).shape == (4, 0, 2)


def test_the_border_is_a_total_stride_but_of_a_small_patch():
    assert (border(224, 32), border(64, 32), border(16, 2)) == (32, 10, 2)


# ------------------------------------------------------------------------------------- moving back


def slow(a, b, x, y, cut):
    """Pair the cells that lie over each other, one by one."""
    h, w = a.shape
    inner = [(i, j) for i, j in product(range(cut, h - cut), range(cut, w - cut))]
    pairs = [(a[i, j], b[i - y, j - x]) for i, j in inner if (i - y, j - x) in set(inner)]
    return np.corrcoef(np.array(pairs).T)[0, 1]


@pytest.mark.parametrize(("x", "y"), [(0, 0), (0, 1), (2, 0), (3, 1), (-1, 2), (-2, -3)])
def test_maps_are_moved_back_by_whole_cells(x, y):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, 13, 12))
    b = np.roll(a, (-y, -x), (1, 2)) + 0.5 * rng.normal(size=a.shape)
    found = agreement(a, b, np.array([(8 * x, 8 * y)] * 2), 8, 9)
    np.testing.assert_allclose(found, [slow(*pair, x, y, 2) for pair in zip(a, b, strict=True)])


def test_the_border_does_not_count():
    a = np.random.default_rng(0).normal(size=(1, 12, 12))
    b = a.copy()
    b[:, :2], b[:, -2:], b[:, :, :2], b[:, :, -2:] = 5, 6, 7, 8
    assert agreement(a, b, np.zeros((1, 2), int), 8, 16) == pytest.approx(1)
    assert agreement(a, b, np.zeros((1, 2), int), 8, 8) < 0.9


def test_too_few_cells_and_constant_maps_have_no_figure():
    a = np.random.default_rng(0).normal(size=(1, 8, 8))
    for far in (48, 64, 800, -48, -64, -800):
        assert math.isnan(agreement(a, a, np.array([(far, far)]), 8, 0)[0])
    assert math.isnan(agreement(a, a, np.array([(0, 0)]), 8, 64)[0])
    assert math.isnan(agreement(a, np.ones_like(a), np.array([(8, 0)]), 8, 0)[0])


# ------------------------------------------------------------------------------------ surroundings


def surroundings(corners, known=None, total=2, side=34):
    n = len(corners)
    return Surroundings(noise(n, side), np.array(corners), np.array(known or [True] * n), total)


def test_patches_move_to_where_there_is_room():
    around = surroundings([(0, 0), (2, 1), (1, 2)])
    windows, moved = around.moved(np.array([(1, 0), (1, 1), (1, 1)]))
    assert moved.tolist() == [[1, 0], [-1, 1], [1, -1]]
    assert windows.shape == (3, 3, 32, 32)
    for window, image, (x, y) in zip(windows, around.images, [(1, 0), (1, 2), (2, 1)], strict=True):
        assert torch.equal(window, image[:, y : y + 32, x : x + 32])


def test_all_maps_and_their_blurs_are_measured():
    net = two_strides()
    around = surroundings([(0, 0), (4, 0), (2, 3), (1, 1)], [True, True, True, False], total=4, side=44)
    patches, target = around.moved(np.zeros((4, 2), int))[0], torch.zeros(4, dtype=torch.long)
    network = Network.of(
        net, compared_maps(["backward-hook"], ["gradient"], ["1", "input", "3"]), patches[:1]
    )
    explained, _ = explain_all(network, patches, target, 3)
    seen = []
    phase = measure_phase(network, explained, around, target, 3, moves=2, seed=5, progress=seen.append)
    assert sum(seen) == phase_cost(network, 4, 4, 2) == 2 * 4 * 4
    kinds = [kind_of(network, spec) for spec in network.maps]
    # at the last layer a cell is as large as the total stride
    assert [found.kind for found in phase] == [kind for kind in explained if kind.layer != "3"]
    assert {found.kind for found in phase} >= {*kinds[:4], replace(kinds[1], control="blurred-none")}
    for found in phase:
        assert found.correlation.shape == (4, 2)
        assert np.isnan(found.correlation[3]).all()  # beyond the slide
        assert (np.abs(found.correlation[:3]) <= 1).all()
    for found in phase:
        assert (found.moves == moves_of(4, 4, found.kind.reduction, 2, 5)).all()

    # the first patch stands in the corner of its image, as the function has them
    alone = phase_stability_of_one(net, around.images[:1], moves_of(4, 4, 1, 2, 5)[:1, 0])
    by_kind = {found.kind: found for found in phase}
    assert by_kind[kinds[2]].correlation[0, 0] == pytest.approx(alone, abs=1e-4)


def two_strides():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(2), Mean()
    )
    torch.manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net.eval()


def test_where_a_cell_is_as_large_as_the_total_stride_there_is_no_figure():
    assert phase_stability(two_strides(), noise(2, 44), "3", 0).isnan().all()
    assert not phase_stability(two_strides(), noise(2, 44), "1", 0, "gradient").isnan().any()


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(2)


def phase_stability_of_one(net, image, move):
    """Compare the input's gradient as the definition says."""
    (x, y), maps = move[0].tolist(), []
    for left, top in ((0, 0), (x, y)):
        window = image[..., top : top + 40, left : left + 40].clone().requires_grad_()
        net(window)[0, 0].backward()
        maps.append(window.grad.mean(1)[0].abs().numpy())
    return slow(*maps, x, y, 4)


def test_a_patch_s_figure_is_the_mean_of_its_known_moves():
    kind, other = MapKind("none", "gradient", "a", 8), MapKind(None, None, None, None, "random")
    correlation = np.array([[0.5, np.nan], [0.2, 0.4], [np.nan, np.nan]])
    phase = [Phase(kind, np.zeros((3, 2, 2), int), correlation)]
    zeros, unknown = np.zeros(3), np.full(3, np.nan)
    scored = [KindScores(k, zeros, zeros, zeros, zeros, zeros, unknown) for k in (kind, other)]
    first, second = with_phase(scored, phase)
    np.testing.assert_allclose(first.phase_stability, [0.5, 0.3, np.nan])
    assert np.isnan(second.phase_stability).all()
