from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.nets import narrow_net
from tests.helpers.tokennets import SpotTokens, small_swin, small_vit
from wsi_saliency.mapspec import MapSpec
from wsi_saliency.models.classifier import standard_logits
from wsi_saliency.saliency.layers import measure
from wsi_saliency.saliency.network import Network
from wsi_saliency.saliency.patches import explain_patches
from wsi_saliency.saliency.reach import Reach
from wsi_saliency.saliency.shifts import moved, moved_back, shifts_within
from wsi_saliency.saliency.smoothing import SMOOTHING
from wsi_saliency.settings import ATTRIBUTIONS

METHOD = "shift-average"


@pytest.mark.parametrize(
    ("stride", "side", "pixels"),
    [
        (16, 2, [-4, 4]),
        (32, 2, [-8, 8]),
        (14, 2, [-4, 4]),
        (16, 1, [0]),
        (12, 3, [-4, 0, 4]),
        (3, 2, [-1, 1]),
    ],
)
def test_shifts_lie_symmetrically_within_the_stride(stride, side, pixels):
    assert shifts_within(stride, side) == [(y, x) for y in pixels for x in pixels]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_stride_of_less_than_three_pixels_has_no_shifts(stride):
    assert shifts_within(stride, 2) == [(0, 0)]


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-1, 0), (40, -40)])
def test_images_are_moved_and_the_edge_is_repeated(shift):
    images = torch.rand(2, 3, 7, 9)
    expected = torch.empty_like(images)
    for y in range(7):
        for x in range(9):
            at = min(max(y - shift[0], 0), 6), min(max(x - shift[1], 0), 8)
            expected[:, :, y, x] = images[:, :, at[0], at[1]]
    assert torch.equal(moved(images, shift), expected)


@pytest.mark.parametrize("shift", [(0, 0), (4, -4), (-3, 5), (8, 16), (1, -17)])
@pytest.mark.parametrize("reduction", [1, 4, 16])
def test_maps_are_moved_back_by_linear_interpolation(shift, reduction):
    values = torch.rand(1, 2, 5, 6, dtype=torch.float64)
    found = moved_back(values, shift, reduction)
    rows, columns = (
        np.clip(np.arange(size) + pixels / reduction, 0, size - 1)
        for size, pixels in zip((5, 6), shift, strict=True)
    )
    for channel in range(2):
        table = values[0, channel].numpy()
        by_rows = np.stack([np.interp(rows, np.arange(5), column) for column in table.T], 1)
        expected = np.stack([np.interp(columns, np.arange(6), row) for row in by_rows])
        np.testing.assert_allclose(found[0, channel].numpy(), expected)


def test_symmetric_shifts_move_nothing():
    """A line stays a line: what one shift moves to the right, its opposite moves to the left."""
    line = torch.arange(12.0, dtype=torch.float64).expand(1, 1, 12, 12)
    back = [moved_back(line, shift, 16) for shift in shifts_within(16, 2)]
    torch.testing.assert_close(sum(back)[..., 2:-2] / 4, line[..., 2:-2])
    ways = [moved_back(moved(line, shift), shift, 1) for shift in shifts_within(16, 2)]
    assert all(torch.equal(way[..., 4:-4, 4:-4], line[..., 4:-4, 4:-4]) for way in ways)


SUBJECTS = {
    "tokens": (small_vit, "blocks.1", (32, 48), 8),
    "channels last": (small_swin, "layers.1", (64, 96), 8),
    "convolutions": (narrow_net, "layer2", (64, 64), 32),
    "input": (small_vit, "input", (32, 48), 8),
}


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_it_is_the_mean_of_plain_maps_of_moved_patches_moved_back(name, attribution):
    make, layer, size, stride = SUBJECTS[name]
    net = make()
    torch.manual_seed(2)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    reduction = measure(net.eval(), layer, images).reduction
    how = {"reduce": None, "steps": 4}
    total = 0
    for shift in [(y, x) for y in (-stride // 4, stride // 4) for x in (-stride // 4, stride // 4)]:
        plain = explain_patches(net, moved(images, shift), layer, 1, attribution, "none", **how)
        total = total + moved_back(plain.double(), shift, reduction) / 4
    found = explain_patches(net, images, layer, 1, attribution, METHOD, **how)
    torch.testing.assert_close(found, total.float(), rtol=1e-4, atol=1e-6 * float(total.abs().max()))


def test_a_baseline_that_is_a_picture_is_moved_as_well():
    net = narrow_net()
    torch.manual_seed(2)
    images, baseline = torch.randn(2, 1, 3, 64, 64, dtype=torch.float64)
    total = 0
    for shift in shifts_within(32, 2):
        how = {"baseline": moved(baseline, shift)}
        plain = explain_patches(net, moved(images, shift), "layer2", 1, "deeplift", "none", **how)
        total = total + moved_back(plain[:, None].double(), shift, 8)[:, 0] / 4
    found = explain_patches(net, images, "layer2", 1, "deeplift", METHOD, baseline=baseline)
    torch.testing.assert_close(found, total.float(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("others", [["none"], ["centred-hook", "none"], []])
def test_predictions_are_those_of_the_patch_where_it_is(others):
    net, images = small_vit(), torch.randn(2, 3, 32, 48, dtype=torch.float64)
    maps = [MapSpec("blocks.1", method, "gradient") for method in (*others, METHOD)]
    network = Network.of(net, maps, images[:1], precision="fp32")
    network.baseline_image = network.baseline_image.double()
    made = []
    logits = network.explain(images, [torch.zeros(2).long()], lambda spec, i, values: made.append(spec))
    with torch.no_grad():
        expected = standard_logits(network.module(images))
    torch.testing.assert_close(logits[METHOD], expected, rtol=1e-12, atol=0)
    assert all(torch.equal(logits[METHOD], logits[other]) for other in others)
    assert made == maps


def test_a_network_whose_patches_are_seen_anew_at_each_shift_is_run_four_times():
    net, calls = small_vit(), []
    maps = [MapSpec("blocks.1", METHOD, a) for a in ("gradient", "gradcam")]
    network = Network.of(net, maps, torch.zeros(1, 3, 32, 48, dtype=torch.float64))
    images, targets = torch.randn(1, 3, 32, 48, dtype=torch.float64), [torch.zeros(1).long()]
    network.explain(images, targets, lambda *found: None)  # which measures the layer
    handle = network.module.blocks[0].register_forward_hook(lambda *a: calls.append(1))
    network.explain(images, targets, lambda *found: None)
    handle.remove()
    assert len(calls) == SMOOTHING[METHOD].passes + 1  # and once for the predictions


@pytest.mark.parametrize(("y", "x"), [(12, 12), (20, 36), (19, 23), (16, 28), (32, 32)])
def test_a_planted_spot_stays_where_it_is(y, x):
    """The map's centre of mass is that of the spot, also where the spot lies on the border of cells."""
    net, image = SpotTokens(8, 1).eval(), torch.ones(1, 3, 64, 64)
    image[:, :, y - 2 : y + 2, x - 2 : x + 2] = 0
    away = {}
    for method in ("none", METHOD):
        (found,) = explain_patches(net, image, "block", 0, "gradient-x-activation", method)
        away[method] = np.hypot(*(at - spot for at, spot in zip(centre(found, 8), (y, x), strict=True)))
    assert away[METHOD] <= away["none"] + 0.01
    assert away[METHOD] < 1.5  # of 8 px


def centre(values, reduction):
    """Centre of mass (y, x) in pixels of a map whose cells are centred in their squares."""
    weight = values.double().numpy()
    at = (np.arange(len(weight)) + 0.5) * reduction
    return (weight.sum(1) * at).sum() / weight.sum(), (weight.sum(0) * at).sum() / weight.sum()


def test_it_smooths_wherever_there_is_a_total_stride():
    net, image = small_vit(), torch.zeros(1, 3, 32, 48, dtype=torch.float64)
    layer = measure(net, "blocks.1", image)
    assert Reach(net, image).effect(METHOD, layer) == "smooths"
    (notice,) = Reach(net, image).notices(["centred-hook", METHOD], [layer])
    assert notice == (
        "no strided convolution lies behind layer blocks.1: "
        "centred-hook changes nothing there; what helps: --layer input or --method shift-average"
    )


def test_maps_depend_less_on_the_phase():
    """The same picture half a token further: without averaging, its map is another."""
    net = small_vit()
    torch.manual_seed(3)
    images = torch.nn.functional.avg_pool2d(torch.randn(8, 3, 44, 60, dtype=torch.float64), 5, 1) * 5
    alike = {}
    for method in ("none", METHOD):
        here, there = (
            explain_patches(net, images[:, :, d : d + 32, d : d + 48], "blocks.1", 1, "gradcam", method)
            for d in (0, 4)
        )
        back = moved_back(there[:, None], (-4, -4), 8)[:, 0]
        pair = torch.stack([m[:, 1:-1, 1:-1].flatten() for m in (here, back)])
        alike[method] = float(torch.corrcoef(pair)[0, 1])
    assert alike["none"] < 0.4 < 0.6 < alike[METHOD]
