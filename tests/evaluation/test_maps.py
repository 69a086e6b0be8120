from __future__ import annotations

import weakref
from collections import Counter

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.helpers.nets import SpotNet, narrow_net, untrained
from tests.helpers.pictures import TARGET, control_of, pictures
from tests.helpers.untouched import assert_untouched, state_of
from wsi_saliency.errors import ModelError
from wsi_saliency.evaluation import maps
from wsi_saliency.evaluation.maps import (
    comparable_layers,
    compared_maps,
    explain_all,
    fitting,
    kind_of,
    main_layer,
    plain_of,
)
from wsi_saliency.evaluation.measured import MapKind
from wsi_saliency.evaluation.metrics import total_variation
from wsi_saliency.saliency.attribution import ATTRIBUTION
from wsi_saliency.saliency.batches import Batch
from wsi_saliency.saliency.drift import measure_drift
from wsi_saliency.saliency.layers import measure
from wsi_saliency.saliency.network import Network, eval_mode
from wsi_saliency.saliency.patches import explain_patches
from wsi_saliency.saliency.smoothing import smoothed
from wsi_saliency.settings import METHODS

SIDE = 64
ASKED = ("gradient", "gradient-x-activation")
LAYERS = ("input", "layer1", "layer2")


def reference(net, kind, surrogate, **how):
    """Maps of one kind, made on a copy of its own."""
    stand_in = surrogate if kind.method == "surrogate" else None
    return explain_patches(
        net, pictures(), kind.layer, TARGET, kind.attribution, kind.method, surrogate=stand_in, **how
    )


def network_of(net, methods=METHODS, attributions=ASKED, layers=LAYERS, **how):
    return Network.of(net, compared_maps(methods, attributions, layers), pictures()[:1], **how)


class PatchMaps:
    """A network, its maps, and what they look like."""

    def __init__(self, batch=2):
        self.net = narrow_net()
        self.before = state_of(self.net)
        self.surrogate = untrained(self.net)
        self.network = network_of(self.net, surrogate=self.surrogate)
        self.calls = []
        self.maps, self.logits = explain_all(self.network, pictures(), TARGET, batch, self.calls.append)

    def each(self, *methods):
        """Maps of some methods, each with the plain one that it is compared with."""
        return [(spec, plain_of(spec)) for spec in self.network.maps if spec.method in methods]

    def of(self, spec):
        return self.maps[kind_of(self.network, spec)]

    def control(self, spec):
        return self.maps[control_of(kind_of(self.network, spec))]


@pytest.fixture(scope="module")
def whole():
    return PatchMaps()


def test_each_is_there_once_and_none_always():
    network = network_of(
        narrow_net(),
        ("backward-hook", "forward-hook", "backward-hook"),
        ("deeplift", "gradient", "deeplift"),
        ("layer2", "input", "layer2"),
    )
    assert [kind_of(network, spec) for spec in network.maps] == [
        MapKind(method, attribution, layer, reduction)
        for attribution in ("deeplift", "gradient")
        for layer, reduction in (("layer2", 8), ("input", 1))
        for method in ("none", "backward-hook", "forward-hook")
    ]


def test_the_model_stays_as_it_is(whole):
    assert_untouched(whole.net, whole.before)


def test_the_model_stays_as_it_is_when_there_is_no_surrogate_for_it():
    net = narrow_net()
    before = state_of(net)
    with pytest.raises(ModelError, match="no surrogate comes with this model"):
        network_of(net, ("surrogate",))
    assert_untouched(net, before)


def test_forward_passes_are_shared():
    """One for all that leave predictions alone, whatever the layers; one for each other method, and slope."""
    net, passes = narrow_net(), []
    network = network_of(net, ("backward-hook", "forward-hook"), (*ASKED, "deeplift"))
    network.module.conv1.register_forward_hook(lambda module, args, output: passes.append(len(output)))
    explain_all(network, pictures(), TARGET, 5)
    assert sorted(passes) == [1, 1, 5, 5, 5, 5]  # for DeepLift the baseline, too


@pytest.mark.parametrize("fails_at", [0, 1, 7])
def test_a_batch_that_does_not_fit_leaves_nothing_behind(whole, monkeypatch, fails_at):
    """Memory runs out in the first maps of a batch, or in later ones; smaller batches give the same."""
    calls, batch, seen = [], Batch(4), Counter()

    def narrow(self, spec, values):
        seen[len(values)] += 1
        if len(values) == 4 and seen[4] > fails_at:
            raise torch.OutOfMemoryError
        return map_of(self, spec, values)

    map_of = Network.map_of
    monkeypatch.setattr(Network, "map_of", narrow)
    found, logits = explain_all(whole.network, pictures(), TARGET, batch, calls.append)
    assert batch.size == 2
    assert sum(calls) == sum(whole.calls)
    assert found.keys() == whole.maps.keys()
    for kind, expected in whole.maps.items():
        assert_close(found[kind].maps, expected.maps, rtol=0, atol=0)
        assert_close(found[kind].total_variation, expected.total_variation, rtol=0, atol=0)
    assert_close(logits, whole.logits, rtol=0, atol=0)


def test_the_largest_batch_that_fits_is_found_by_explaining_all_maps():
    class Memory:
        def free(self):
            return 1000

        def peak_of(self, work):
            passes.clear()
            work()
            return 100 * max(passes)

    net, passes = narrow_net(), []
    network = network_of(net, ("backward-hook",), ("gradient",))
    network.module.conv1.register_forward_hook(lambda module, args, output: passes.append(len(output)))
    assert fitting(network, pictures()[:1], 128, Memory()) == 8  # 800 bytes, which is all that may be used


def test_plain_values_are_kept_only_as_long_as_rivals_need_them(monkeypatch):
    """All that leave predictions alone come in turn; the plain values wait for the forward hook's alone."""
    alive, blurs = [], []

    def watched(values, wanted):
        blurs.append(sum(ref() is not None for ref in alive))
        return values

    def kept(self, plain, values):
        alive.append(weakref.ref(values))
        keep(self, plain, values)

    keep = maps._Batch.keep
    monkeypatch.setattr(maps._Batch, "keep", kept)
    monkeypatch.setattr(maps, "blurred_to", watched)
    explain_all(network_of(narrow_net(), ("forward-hook",), ("gradcam",)), pictures(), TARGET, 5)
    assert blurs == [3, 2, 1]


def test_maps_are_those_of_explain_patches(whole):
    for kind in (kind_of(whole.network, spec) for spec in whole.network.maps):
        values = reference(whole.net, kind, whole.surrogate, reduce=None)
        expected, found = values.mean(1), whole.maps[kind]
        if ATTRIBUTION[kind.attribution].magnitude:
            expected = expected.abs()
        assert found.maps.dtype == torch.float32
        torch.testing.assert_close(found.maps, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        torch.testing.assert_close(found.total_variation, total_variation(values), rtol=1e-4, atol=0)


def test_logits_are_those_of_the_smoothed_network(whole):
    assert whole.logits.keys() == set(METHODS)
    for method, logits in whole.logits.items():
        stand_in = whole.surrogate if method == "surrogate" else None
        with torch.no_grad(), eval_mode(whole.net), smoothed(whole.net, method, stand_in) as net:
            torch.testing.assert_close(logits, net(pictures()).float(), rtol=1e-4, atol=1e-5)


def test_the_control_is_as_smooth_as_the_method_or_the_plain_map(whole):
    kept = blurred = 0
    for rival, plain in whole.each(*METHODS[1:]):
        control, own, before = whole.control(rival), whole.of(rival), whole.of(plain)
        smoother = own.total_variation < before.total_variation
        torch.testing.assert_close(
            control.total_variation[smoother], own.total_variation[smoother], rtol=0.01, atol=0
        )
        assert torch.equal(control.maps[~smoother], before.maps[~smoother])
        assert not any(
            torch.equal(*maps) for maps in zip(control.maps[smoother], before.maps[smoother], strict=True)
        )
        blurred, kept = blurred + int(smoother.sum()), kept + int((~smoother).sum())
    assert min(blurred, kept) > 5
    rivals = [kind_of(whole.network, rival) for rival, _ in whole.each(*METHODS[1:])]
    assert {k for k in whole.maps if k.control} == {control_of(kind) for kind in rivals}


def test_maps_are_placed_where_the_layer_is_less_the_drift(whole):
    drifted = 0
    for spec, plain in whole.each(*METHODS):
        method = "none" if spec.method == "surrogate" else spec.method
        with eval_mode(whole.net), smoothed(whole.net, method) as net:
            g = measure(net, spec.layer, pictures()[:1])
        x = y = 0.0
        if spec.method == "backward-hook" and not ATTRIBUTION[spec.attribution].weighs_activation:
            most = g.drift_y / g.reduction, g.drift_x / g.reduction
            pair = (reference(whole.net, kind_of(whole.network, s), None).numpy() for s in (plain, spec))
            y, x = (cells * g.reduction for cells in measure_drift(*pair, most))
            drifted += x > 0 or y > 0
        assert whole.of(spec).placement == pytest.approx((g.reduction, g.centre_x - x, g.centre_y - y))
        if spec != plain:
            assert whole.control(spec).placement == whole.of(plain).placement
    assert drifted


def test_a_forward_hook_is_placed_by_its_own_geometry(whole):
    for spec, plain in whole.each("forward-hook"):
        moved = whole.of(spec).placement[1] - whole.of(plain).placement[1]
        assert (moved < 0) == (spec.layer == "layer2")  # nothing but the stem is before the others


def spot_network():
    """The plain map and the backward hook's of a network whose gradient is moved far."""
    maps = compared_maps(("backward-hook",), ("gradient",), ("stage2",))
    return Network.of(SpotNet().requires_grad_(False), maps, torch.zeros(1, 3, 64, 64))


def test_the_drift_is_downwards_and_to_the_right():
    """A blot in the middle of a made map, and the same blot further on."""
    network = spot_network()
    blots = torch.zeros(2, 1, 16, 16)
    blots[0, 0, 5:8, 5:8] = blots[1, 0, 6:9, 7:10] = 1
    plain, hooked = network.maps
    assert network.drift(hooked, *blots) == pytest.approx((2 * 4, 1 * 4), abs=1)
    assert network.drift(plain, *blots) == (0, 0)


def test_the_drift_is_measured_on_patches_from_all_over(monkeypatch):
    """Of 70 patches every third is looked at, 24 in all."""
    seen = []
    network = spot_network()
    monkeypatch.setattr(Network, "drift", lambda self, *maps: seen.append(maps) or (2.0, 1.0))
    images = pictures(70).float()
    found, _ = explain_all(network, images, torch.zeros(70, dtype=torch.long), 35)
    plain, hooked = (found[kind_of(network, spec)] for spec in network.maps)
    assert torch.equal(seen[1][1], plain.maps[::3])
    assert torch.equal(seen[1][2], hooked.maps[::3])
    geometry = network.geometry[network.maps[1]]
    assert hooked.placement == (4, geometry.centre_x - 2, geometry.centre_y - 1)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_batch_size_changes_nothing(whole, batch):
    other = PatchMaps(batch)
    for kind, found in whole.maps.items():
        scale = float(found.maps.abs().max())
        torch.testing.assert_close(other.maps[kind].maps, found.maps, rtol=1e-4, atol=1e-5 * scale)
        torch.testing.assert_close(other.maps[kind].total_variation, found.total_variation)
        assert other.maps[kind].placement == found.placement
    for method, logits in whole.logits.items():
        torch.testing.assert_close(other.logits[method], logits)
    for explained in (whole, other):
        assert sum(explained.calls) == len(TARGET) * len(whole.network.maps)


def two_stages():
    """A network that ends at a quarter of the resolution; its module "4" is no layer to explain."""
    stem, body = (nn.Sequential(nn.Conv2d(c, 4, 3, 2, 1), nn.ReLU()) for c in (3, 4))
    return nn.Sequential(stem, body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()


@pytest.mark.parametrize(
    ("make", "asked", "found"),
    [
        (narrow_net, (), ["input", "layer1", "layer2", "layer3", "layer4"]),
        (narrow_net, ("8", "layer2", "last", "32", "input"), ["layer2", "layer4", "input"]),
        (two_stages, (), ["input", "1"]),
    ],
)
def test_layers_to_compare(make, asked, found):
    net = make()
    before = state_of(net)
    assert comparable_layers(net, pictures()[:1].to(next(net.parameters()).dtype), asked) == found
    assert_untouched(net, before)


@pytest.mark.parametrize("asked", [("8",), ("input", "nix")])
def test_a_layer_that_is_asked_for_has_to_be_there(asked):
    with pytest.raises(ModelError, match=r"no stage of the model lies at 1/8|no layer 'nix'"):
        comparable_layers(two_stages(), pictures()[:1].float(), asked)


@pytest.mark.parametrize(
    ("layers", "main"),
    [
        (("input", "layer1", "layer2", "layer3"), "layer2"),
        (("input", "layer4"), "layer4"),
        (("layer4", "layer3", "input"), "layer3"),
        (("input",), "input"),
    ],
)
def test_what_is_done_at_one_layer_is_done_next_to_an_eighth(layers, main):
    assert main_layer(network_of(narrow_net(), (), ASKED, layers)).name == main
