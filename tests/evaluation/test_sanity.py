from __future__ import annotations

import functools
import itertools
import math
import threading

import numpy as np
import pytest
import scipy.stats
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from tests.helpers.nets import random_net
from tests.helpers.untouched import assert_untouched, state_of
from wsi_saliency.errors import ModelError
from wsi_saliency.evaluation.correlation import spearman
from wsi_saliency.evaluation.measured import SanityStage
from wsi_saliency.evaluation.sanity import Part, cascade, parts_of, randomised
from wsi_saliency.saliency.patches import explain_patches

STAGES = {
    "resnet18": ["head", "layer4", "layer3", "layer2", "layer1", "act1"],
    "tf_efficientnet_lite0": ["head", "blocks.6", "blocks.4", "blocks.2", "blocks.1", "blocks.0"],
    "densenet121": [
        "head",
        "features.norm5",
        *(f"features.denseblock{i}" for i in (3, 2, 1)),
        "features.norm0",
    ],
    # the last of VGG's stages is a pooling, without weights
    "vgg16_bn": ["head", "features.42", "features.32", "features.22", "features.12", "features.5"],
    "convnext_tiny": ["head", "stages.3", "stages.2", "stages.1", "stages.0"],
}


@functools.cache
def network(name):
    torch.manual_seed(0)
    few = {"mlp_ratio": 0.02} if name == "vgg16_bn" else {}
    return timm.create_model(name, num_classes=2, **few).eval()


def images(n=4, side=64, seed=0):
    """Smooth pictures, as tissue is: noise would look alike to any network."""
    torch.manual_seed(seed)
    return nn.functional.interpolate(3 * torch.randn(n, 3, 6, 6), side, mode="bilinear")


def weighted(model):
    return [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]


def calls_of(model, names, x):
    """When each module is called, first and last."""
    calls, handles = {}, []
    for i, name in enumerate(names):
        handles.append(
            model.get_submodule(name).register_forward_hook(
                lambda *_, i=i: calls.setdefault(i, []).append(len(order))
            )
        )
    order = []
    handles += [m.register_forward_hook(lambda *_: order.append(0)) for m in model.modules()]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return {name: (calls[i][0], calls[i][-1]) for i, name in enumerate(names)}


@pytest.mark.parametrize("name", STAGES)
def test_every_module_with_weights_is_in_one_part_and_those_run_from_the_stem_to_the_head(name):
    model = network(name)
    before = state_of(model)
    found = parts_of(model, images(1))
    assert_untouched(model, before)
    assert [part.name for part in found] == STAGES[name]
    modules = [module for part in found for module in part.modules]
    assert sorted(modules) == sorted(weighted(model))
    calls = calls_of(model, modules, images(1))
    for later, earlier in itertools.pairwise(found):
        assert max(calls[m][1] for m in earlier.modules) < min(calls[m][0] for m in later.modules)


def test_the_head_is_what_comes_after_the_last_features():
    assert parts_of(network("tf_efficientnet_lite0"), images(1))[0].modules == (
        "conv_head",
        "bn2",
        "classifier",
    )
    assert parts_of(network("vgg16_bn"), images(1))[0].modules == (
        "pre_logits.fc1",
        "pre_logits.fc2",
        "head.fc",
    )


def test_a_sequence_is_cut_where_its_resolution_changes():
    found = parts_of(random_net(), torch.zeros(1, 3, 64, 64).double())
    assert found == [
        Part("head", ("11",)),
        Part("8", ("7",)),
        Part("6", ("5",)),
        Part("4", ("2", "3")),
        Part("1", ("0",)),
    ]


class OddNet(nn.Module):
    """Weights of its own, a module called twice, one whose weights only its parent uses, statistics alone."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, 2, 1)
        self.twice = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3, affine=False)
        self.around = nn.Module()
        self.around.inside = nn.Conv2d(3, 4, 3, 2, 1)
        self.around.forward = lambda x: nn.functional.conv2d(x, self.around.inside.weight, stride=2)
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, x):
        x = self.twice(self.norm(self.twice(self.stem(x))))
        return self.scale * self.head(self.around(x).mean((2, 3)))


def test_weights_that_are_shared_or_used_by_others():
    found = parts_of(OddNet().eval(), torch.zeros(1, 3, 32, 32))
    assert found == [
        Part("head", ("head", "")),
        Part("around", ("twice", "around.inside")),  # what is called twice can be no layer
        Part("norm", ("stem", "norm")),
    ]


def own_state(model, names):
    return [t for name in names for t in model.get_submodule(name).parameters(recurse=False)]


def test_parts_become_random_one_after_the_other_and_the_model_stays():
    model, pictures = network("resnet18"), images()
    parts = parts_of(model, pictures[:1])
    before, state = state_of(model), torch.get_rng_state()
    done = list(randomised(model, parts, pictures, seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert_untouched(model, before)
    assert [name for name, _ in done] == STAGES["resnet18"]
    for i, (_, random) in enumerate(done):
        assert not random.training
        for j, part in enumerate(parts):
            # what is not random yet is the original, what is random already stays as it became
            same_as = done[j][1] if j < i else model if j > i else random
            for new, old in zip(
                own_state(random, part.modules), own_state(same_as, part.modules), strict=True
            ):
                assert torch.equal(new, old)
        assert not torch.equal(*(m.get_submodule(parts[i].modules[0]).weight for m in (random, model)))
        assert random.get_submodule(parts[i].modules[0]).weight.std() > 1e-3


def test_a_seed_gives_its_own_weights_and_each_part_others():
    net, x = random_net(), images().double()
    alike = nn.Sequential(
        net[0], nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), *net[9:11], nn.Linear(8, 3)
    )
    alike = alike.double().eval()

    def weights(seed):
        *_, (_, random) = randomised(alike, parts_of(alike, x), x, seed)
        return [random[i].weight for i in (1, 2, 5)]

    first, again, other = weights(0), weights(0), weights(1)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert not torch.equal(first[0], first[1])


class HalfReset(nn.Linear):
    """Has a parameter that its ``reset_parameters`` knows nothing of."""

    def __init__(self):
        super().__init__(8, 3)
        self.gain = nn.Parameter(torch.arange(3.0))


def test_parameters_that_nobody_resets_are_permuted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), HalfReset()).eval()
    model.scale = nn.Parameter(torch.randn(4, 5))
    *_, (_, random) = randomised(model, parts_of(model, images()), images())
    assert not torch.equal(random.scale, model.scale)
    assert torch.equal(random.scale.flatten().sort()[0], model.scale.flatten().sort()[0])
    assert sorted(random[3].gain.tolist()) == [0, 1, 2]
    assert not set(random[3].weight.flatten().tolist()) & set(model[3].weight.flatten().tolist())


def test_batch_norm_of_random_parts_has_the_statistics_of_the_images():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, 2), nn.BatchNorm2d(5, momentum=0.3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 1),
    )  # fmt: skip
    for i, channels in ((1, 4), (3, 5)):
        model[i].running_mean.normal_()
        model[i].running_var.uniform_(1, 2)
        nn.init.normal_(model[i].weight)
        nn.init.normal_(model[i].bias)
        assert model[i].num_features == channels
    x = images(5)
    random = dict(randomised(model.eval(), parts_of(model, x), x))["3"]
    with torch.no_grad():
        seen = random[2](model[1](model[0](x)))
    torch.testing.assert_close(random[3].running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(random[3].running_var, seen.var((0, 2, 3)))
    assert (random[3].weight == 1).all()
    assert (random[3].bias == 0).all()
    assert random[3].momentum == 0.3
    assert not random[3].training
    assert torch.equal(random[1].running_mean, model[1].running_mean)
    lowest = dict(randomised(model, parts_of(model, x), x))["1"]
    assert not torch.equal(lowest[3].running_mean, random[3].running_mean)


def test_statistics_of_many_images_are_the_mean_over_passes():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
    ).eval()
    x = images(17, 16)
    *_, (_, random) = randomised(model, parts_of(model, x), x)
    with torch.no_grad():
        seen = random[0](x)
    torch.testing.assert_close(
        random[1].running_mean, (seen[:9].mean((0, 2, 3)) + seen[9:].mean((0, 2, 3))) / 2
    )


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "densenet121"])
def test_logits_stay_finite_and_tell_images_apart(name):
    model, x = network(name), images()
    for _, random in randomised(model, parts_of(model, x), x):
        with torch.no_grad():
            logits = random(x)
        assert logits.isfinite().all()
        assert logits.abs().max() < 100
        # without statistics of its own, a random EfficientNet's logits differ by 1e-7 of their size
        assert (logits.std(0) > 0.01 * logits.abs().mean(0)).all()


def test_a_network_that_cannot_be_copied_is_refused():
    model = random_net()
    model.lock = threading.Lock()
    x = images(1).double()
    with pytest.raises(ModelError, match="--sanity"):
        next(randomised(model, parts_of(model, x), x))


maps = arrays(np.float32, (3, 4, 5), elements=st.integers(-3, 3))


@given(a=maps, b=maps)
def test_spearman_equals_scipy_s_with_ties(a, b):
    found = spearman(a, b)
    assert found.shape == (3,)
    assert found.dtype == np.float64
    for x, y, value in zip(a, b, found, strict=True):
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            assert value == 0
        else:
            assert math.isclose(value, scipy.stats.spearmanr(x.ravel(), y.ravel())[0], abs_tol=1e-12)


def test_spearman_sees_the_order_alone():
    a = np.random.default_rng(0).normal(size=(2, 6, 7))
    np.testing.assert_allclose(spearman(a, np.exp(a)), 1)
    np.testing.assert_allclose(spearman(a, -(a**3)), -1)


def test_the_rounding_of_a_constant_map_is_no_order():
    rng = np.random.default_rng(0)
    flat = (0.3 + 3e-8 * rng.integers(-3, 4, (2, 6, 6))).astype(np.float32)
    np.testing.assert_array_equal(spearman(flat, flat), 0)
    assert (spearman(flat * [[[1]], [[0]]], flat) == 0).all()


def test_a_map_of_the_weights_changes_down_the_cascade_and_one_of_the_image_does_not():
    model, x = random_net().requires_grad_(False), images(6).double()

    def by_weights(net):
        return explain_patches(net, x, "1", 0, "gradient-x-activation", "none").numpy()

    def edges(net):
        return x.diff(dim=2).abs().mean(1).numpy()

    def score(maps):
        return maps.max((1, 2)), maps.min((1, 2))

    steps = cascade(model, x, by_weights, score, seed=1)
    assert [step.module for step in steps] == [None, *(part.name for part in parts_of(model, x))]
    np.testing.assert_array_equal(steps[0].spearman, 1)
    assert abs(steps[-1].spearman).mean() < 0.5
    randoms = [model, *(net for _, net in randomised(model, parts_of(model, x), x, 1))]
    for step, net in zip(steps, randoms, strict=True):
        np.testing.assert_array_equal(step.insertion, by_weights(net).max((1, 2)))
        np.testing.assert_array_equal(step.deletion, by_weights(net).min((1, 2)))
        np.testing.assert_allclose(step.spearman, spearman(by_weights(model), by_weights(net)), rtol=1e-12)
    for step in cascade(model, x, edges, score):
        np.testing.assert_allclose(step.spearman, 1)
    assert SanityStage("none", "gradient", "1", *steps[1]).module == "head"
