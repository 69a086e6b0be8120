from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from torch import nn

from tests.helpers.nets import random_net
from wsi_saliency.errors import ModelError, SettingsError
from wsi_saliency.evaluation.causal import CausalScorer, Curves, blurred, insertion_deletion, substrate
from wsi_saliency.evaluation.controls import random_maps
from wsi_saliency.evaluation.metrics import upsampled
from wsi_saliency.saliency.batches import Batch
from wsi_saliency.settings import SUBSTRATES


class Intensity(nn.Module):
    """Logits: the mean of the image, or of a region (H, W) of it; (N,), or (N, 2) with zeros before."""

    def __init__(self, region: torch.Tensor | None = None, classes: int = 1) -> None:
        super().__init__()
        self.region, self.classes = region, classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.ones_like(x[0, 0]) if self.region is None else self.region.to(x)
        logit = (x * weights).sum((1, 2, 3)) / (x.shape[1] * weights.sum())
        return logit if self.classes == 1 else torch.stack([torch.zeros_like(logit), logit], 1)


def some_images(n, side, seed=0, dtype=torch.float64):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow_curve(model, start, end, saliency, step, target):
    """One curve, closely following the definition: a group of pixels, a forward pass, and so on."""
    values = saliency.flatten().tolist()
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    now, points = start.clone(), []
    for first in range(0, len(order) + step, step):
        with torch.no_grad():
            logits = model(now[None])
        p = logits.sigmoid().item() if logits.numel() == 1 else logits.softmax(1)[0, target].item()
        points.append(p)
        group = order[first : first + step]
        now.flatten(1)[:, group] = end.flatten(1)[:, group]
    return points


def slow_blur(image):
    """RISE's kernel, all 11 × 11 weights of it, and zeros beyond the image."""
    point = np.zeros((11, 11))
    point[5, 5] = 1
    kernel = gaussian_filter(point, 5)
    return torch.from_numpy(np.stack([convolve2d(c, kernel, mode="same") for c in image.numpy()]))


def slow_curves(model, images, maps, step, targets):
    insertion, deletion = [], []
    for image, saliency, target in zip(images, maps, targets, strict=True):
        insertion.append(slow_curve(model, slow_blur(image), image, saliency, step, target))
        deletion.append(slow_curve(model, image, torch.zeros_like(image), saliency, step, target))
    return Curves(*(torch.tensor(c, dtype=torch.float64) for c in (insertion, deletion)))


def assert_same(found: Curves, expected: Curves, tolerance=1e-6):
    assert found.insertion.shape == expected.insertion.shape
    for curve in ("insertion", "deletion", "insertion_auc", "deletion_auc"):
        assert torch.allclose(getattr(found, curve), getattr(expected, curve), rtol=0, atol=tolerance), curve


# -- the definition --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "step"), [(96, None), (96, 1000), (224, None), (224, 7001), (350, 9999)])
def test_curves_and_areas_are_those_of_the_slow_reference(side, step):
    n = 2 if side == 96 else 1
    net, images = random_net(), some_images(n, side)
    maps, targets = random_maps(n, side, side, seed=1), torch.tensor([2, 0])[:n]
    found = insertion_deletion(net, images, maps, targets, step)
    step = step or 8 * side
    assert found.insertion.shape == (n, math.ceil(side * side / step) + 1)
    assert_same(found, slow_curves(net, images, maps, step, targets.tolist()))
    assert found.insertion.std(1).min() > 1e-5  # and they do say something


@pytest.mark.parametrize("step", [1, 7, 11, 143, 144, 500])
def test_any_step_will_do(step):
    net, images, maps = Intensity(), 5 * some_images(3, 12), random_maps(3, 12, 12, seed=0)
    found = insertion_deletion(net, images, maps, step=step)
    assert_same(found, slow_curves(net, images, maps, step, [0] * 3), 1e-12)


@settings(max_examples=15)
@given(seed=st.integers(0, 999), levels=st.integers(1, 4), step=st.integers(5, 70), batch=st.integers(1, 50))
def test_pixels_of_equal_saliency_follow_in_raster_order(seed, levels, step, batch):
    net, images = Intensity(classes=2), 5 * some_images(2, 10, seed)
    maps = (random_maps(2, 10, 10, seed) * levels).floor()
    maps[maps == 0] *= -1  # minus zero is zero
    found = insertion_deletion(net, images, maps, 1, step, batch_size=batch)
    assert_same(found, slow_curves(net, images, maps, step, [1, 1]), 1e-12)


@pytest.mark.parametrize("value", [0.0, -3.0, 0.1])
def test_a_constant_map_takes_the_pixels_row_by_row(value):
    images = torch.ones(1, 3, 16, 16, dtype=torch.float64)
    found = insertion_deletion(Intensity(), images, torch.full((1, 3, 5), value), insertion_from="zeros")
    kept = torch.tensor([1, 0.5, 0], dtype=torch.float64)  # of a step of 8 rows
    assert torch.allclose(found.deletion[0], kept.sigmoid())
    assert torch.allclose(found.insertion[0], kept.flip(0).sigmoid())


def test_areas_of_a_region_s_mean_in_closed_form():
    """Rows 0 to 8 matter. In order of the rows they come first; in the opposite order, last."""
    region = torch.zeros(32, 32)
    region[:8] = 1
    images = torch.full((2, 3, 32, 32), 2.0, dtype=torch.float64)
    rows = torch.arange(32.0)[:, None].expand(32, 32)
    curves = insertion_deletion(Intensity(region), images, torch.stack([-rows, rows]), insertion_from="zeros")
    on, off = 1 / (1 + math.exp(-2)), 0.5
    first, last = (on / 2 + 3 * on + off / 2) / 4, (on / 2 + 3 * off + off / 2) / 4
    assert curves.insertion_auc.tolist() == pytest.approx([first, last], abs=1e-12)
    assert curves.deletion_auc.tolist() == pytest.approx([last, first], abs=1e-12)


@pytest.mark.parametrize("side", [96, 224, 350])
def test_a_perfect_map_beats_a_random_one(side):
    region = torch.zeros(side, side)
    region[side // 4 : side // 2, side // 3 : side // 2] = 1
    model, images = Intensity(region, classes=2), torch.full((1, 3, side, side), 3.0)
    scorer = CausalScorer(model, images, 1, insertion_from="zeros")
    perfect, chance = scorer(region[None]), scorer(random_maps(1, side, side, seed=0))
    assert (perfect.insertion_auc > chance.insertion_auc + 0.1).all()
    assert (perfect.deletion_auc < chance.deletion_auc - 0.1).all()


def test_the_area_is_the_trapezoidal_rule():
    curves = Curves(torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), torch.tensor([[0.5, 0.1]]))
    assert curves.insertion_auc.tolist() == [0.5, 1.0]
    assert curves.deletion_auc.tolist() == pytest.approx([0.3])


# -- the order of things does not matter -----------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 16, 1000])
def test_the_batch_size_does_not_matter(batch_size):
    net, images, maps = random_net(), some_images(3, 64), random_maps(3, 8, 8, seed=0)
    expected = insertion_deletion(net, images, maps, 1, batch_size=5)
    assert_same(insertion_deletion(net, images, maps, 1, batch_size=batch_size), expected, 1e-12)


def test_batches_that_do_not_fit_are_halved_and_it_is_remembered():
    net, images, maps = random_net(), some_images(3, 64), random_maps(3, 8, 8, seed=0)
    expected = insertion_deletion(net, images, maps, 1, batch_size=5)
    batch, done = Batch(16), []

    def small(module, args):
        if len(args[0]) > 5:
            raise torch.OutOfMemoryError

    net.register_forward_pre_hook(small)
    scorer = CausalScorer(net, images, 1, batch_size=batch)
    assert_same(scorer(maps, progress=done.append), expected, 1e-12)
    assert sum(done) == scorer.cost
    assert batch.size == 4


def test_permuted_patches_give_permuted_curves():
    net, images, maps = random_net(), some_images(4, 64), random_maps(4, 8, 8, seed=0)
    targets, order = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 0, 3, 1])
    found = insertion_deletion(net, images[order], maps[order], targets[order])
    expected = insertion_deletion(net, images, maps, targets)
    assert_same(found, Curves(expected.insertion[order], expected.deletion[order]), 1e-12)


def test_a_map_compared_with_itself_differs_by_nothing():
    images, maps = some_images(3, 64), random_maps(3, 64, 64, seed=0)
    scorer = CausalScorer(random_net(), images, 1)
    one, other, again = scorer(maps), scorer(maps), insertion_deletion(random_net(), images, maps, 1)
    for curves in (other, again):
        assert torch.equal(curves.insertion, one.insertion)
        assert torch.equal(curves.deletion, one.deletion)


def test_a_monotone_change_of_the_map_changes_nothing():
    images, maps = some_images(2, 32), random_maps(2, 32, 32, seed=0)
    scorer = CausalScorer(random_net(), images, 1)
    assert torch.equal(scorer(maps).insertion, scorer(maps.double().exp() - 7).insertion)


# -- classifiers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 1, 1, 1)])
def test_one_logit_in_any_shape_goes_through_the_sigmoid(shape):
    class Shaped(Intensity):
        def forward(self, x):
            return super().forward(x).view(shape)

    images, maps = 5 * some_images(2, 16), random_maps(2, 16, 16, seed=0)
    expected = slow_curves(Intensity(), images, maps, 128, [0, 0])
    assert_same(insertion_deletion(Shaped(), images, maps), expected, 1e-12)


def test_several_logits_are_a_softmax_unless_told_otherwise():
    images, maps = 5 * some_images(2, 16), random_maps(2, 16, 16, seed=0)
    net = Intensity(classes=2)
    softmax = insertion_deletion(net, images, maps, 1)
    sigmoid = insertion_deletion(net, images, maps, 1, output="sigmoid")
    assert_same(softmax, insertion_deletion(Intensity(), images, maps), 1e-12)  # against a logit of 0
    assert_same(sigmoid, softmax, 1e-12)
    other = insertion_deletion(net, images, maps, 0)
    assert torch.allclose(other.insertion, 1 - softmax.insertion)
    assert (insertion_deletion(net, images, maps, 0, output="sigmoid").insertion == 0.5).all()


def test_the_model_is_as_before_and_runs_in_eval_mode():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(2)
    )
    images, maps = some_images(2, 16, dtype=torch.float32), random_maps(2, 16, 16, seed=0)
    net(images)
    expected = insertion_deletion(net.eval(), images, maps, 0)
    net.train()
    net[2].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    assert torch.equal(insertion_deletion(net, images, maps, 0).insertion, expected.insertion)
    assert [module.training for module in net] == [True, True, False, True, True]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


def test_a_model_that_is_listened_to_is_asked_itself_in_eval_mode():
    net = random_net().train()
    calls = []
    net[0].register_forward_pre_hook(lambda module, args: calls.append(net[3].training))
    images, maps = some_images(1, 64), random_maps(1, 64, 64, seed=0)
    scorer = CausalScorer(net, images, 0)
    calls.clear()
    found = scorer(maps)
    assert calls
    assert not any(calls)
    assert net.training
    assert_same(found, insertion_deletion(random_net(), images, maps, 0), 1e-12)


def test_in_float32_it_is_the_same_but_for_rounding():
    net, images, maps = random_net(), some_images(2, 64), random_maps(2, 64, 64, seed=0)
    expected = insertion_deletion(net, images, maps, 0)
    found = insertion_deletion(net.float(), images.float(), maps, 0)
    assert found.insertion.dtype == torch.float64
    assert_same(found, expected, 1e-5)


# -- maps ------------------------------------------------------------------------------------------------


def test_smaller_maps_are_enlarged_where_they_are_placed():
    images, maps = 5 * some_images(2, 32), random_maps(2, 4, 4, seed=0)
    scorer = CausalScorer(Intensity(), images, step=50)
    for placement in (None, (8, 0.5, 5.5)):
        found = scorer(maps, placement=placement)
        assert_same(found, scorer(upsampled(maps, 32, placement)), 0)
    assert not torch.equal(scorer(maps).insertion, found.insertion)


def test_arrays_and_maps_with_a_graph_are_welcome():
    images, maps = some_images(2, 16), random_maps(2, 16, 16, seed=0)
    scorer = CausalScorer(Intensity(), images)
    expected = scorer(maps)
    array = maps.numpy()[:, :, ::-1].copy()[:, :, ::-1]  # backwards in memory
    array.flags.writeable = False
    assert_same(scorer(array), expected, 0)
    assert_same(scorer(maps.clone().requires_grad_()), expected, 0)


# -- substrates ------------------------------------------------------------------------------------------


def test_the_blur_is_the_published_one():
    images = some_images(2, 20)
    assert torch.allclose(blurred(images), torch.stack([slow_blur(i) for i in images]), rtol=0, atol=1e-12)


def test_substrates_are_what_they_are_called():
    images = some_images(2, 8) + torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    assert set(SUBSTRATES) == {"zeros", "blur", "mean", "white"}
    assert torch.equal(substrate(images, "zeros"), torch.zeros_like(images))
    assert torch.equal(substrate(images, "blur"), blurred(images))
    for image, mean in zip(images, substrate(images, "mean"), strict=True):
        for channel in range(3):
            assert torch.allclose(mean[channel], image[channel].mean())


def test_ends_of_curves_are_the_image_and_its_substrates():
    net, images, maps = random_net(), some_images(2, 64), random_maps(2, 64, 64, seed=0)
    white = torch.tensor([2.0, 1.0, 3.0]).view(3, 1, 1)
    with torch.no_grad():
        image, mean, plain = (
            net(x).softmax(1)[:, 1]
            for x in (images, substrate(images, "mean"), white.expand_as(images).double())
        )
    for given_white in (white, white[None], white.expand(2, 3, 64, 64)):
        found = insertion_deletion(net, images, maps, 1, deletion_to="mean", insertion_from=given_white)
        assert torch.allclose(found.insertion[:, [0, -1]], torch.stack([plain, image], 1), atol=1e-12)
        assert torch.allclose(found.deletion[:, [0, -1]], torch.stack([image, mean], 1), atol=1e-12)


# -- progress and mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "cost"), [(None, 2 * 3 * 1), (100, 2 * 3 * 2), (256, 0), (1000, 0)])
def test_progress_adds_up_to_the_cost(step, cost):
    net, seen, images = Intensity(), [], some_images(3, 16)
    scorer = CausalScorer(net, images, step=step, batch_size=4)
    curves = scorer(random_maps(3, 16, 16, seed=0), progress=seen.append)
    assert scorer.cost == sum(seen) == cost
    assert curves.insertion.shape == (3, scorer.steps + 1)


def test_what_does_not_fit_is_refused_in_one_line():
    images, maps = some_images(2, 16), random_maps(2, 16, 16, seed=0)
    one, two = Intensity(), Intensity(classes=2)
    broken = maps.clone()
    broken[1, 3, 3] = torch.nan
    for message, call in {
        "NaN": lambda: insertion_deletion(one, images, broken),
        "one map of each image": lambda: insertion_deletion(one, images, maps[:1]),
        r"floats \(2, h, w\)": lambda: insertion_deletion(one, images, maps.long()),
        r"\(N, 3, H, W\)": lambda: insertion_deletion(one, images[0], maps),
        "say which one": lambda: insertion_deletion(two, images, maps),
        "not a class": lambda: insertion_deletion(two, images, maps, 2),
        "-1": lambda: insertion_deletion(two, images, maps, -1),
        "one index or one for each": lambda: insertion_deletion(two, images, maps, torch.zeros(3)),
        "at least one": lambda: insertion_deletion(one, images, maps, step=0),
        r"tensor \(3, 1, 1\)": lambda: insertion_deletion(one, images, maps, deletion_to="white"),
        "zeros, blur": lambda: insertion_deletion(one, images, maps, deletion_to="black"),
        "does not fit images": lambda: insertion_deletion(
            one, images, maps, deletion_to=torch.zeros(3, 9, 9)
        ),
    }.items():
        with pytest.raises(SettingsError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_model_without_logits_is_refused():
    with pytest.raises(ModelError, match="logits"):
        insertion_deletion(nn.Conv2d(3, 2, 3), some_images(1, 16).float(), random_maps(1, 16, 16, 0), 0)
