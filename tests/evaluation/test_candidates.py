from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.candidates import TARGET, control_of, pictures
from tests.helpers.nets import SpotNet, narrow_net, untrained
from tests.helpers.untouched import assert_untouched, state_of
from wsi_saliency.errors import ModelError
from wsi_saliency.evaluation.candidates import (
    candidates,
    comparable_layers,
    explain_all,
    main_layer,
)
from wsi_saliency.evaluation.metrics import total_variation
from wsi_saliency.evaluation.results import MapKind
from wsi_saliency.saliency.attribution import ATTRIBUTION
from wsi_saliency.saliency.drift import measure_drift
from wsi_saliency.saliency.engine import eval_mode
from wsi_saliency.saliency.layers import measure
from wsi_saliency.saliency.patches import explain_patches
from wsi_saliency.saliency.smoothing import smoothed
from wsi_saliency.settings import METHODS

SIDE = 64
ASKED = ("gradient", "gradient-x-activation")
LAYERS = ("input", "layer1", "layer2")


def reference(net, kind, surrogate, **how):
    """Maps of one candidate, made on a copy of its own."""
    stand_in = surrogate if kind.method == "surrogate" else None
    return explain_patches(
        net, pictures(), kind.layer, TARGET, kind.attribution, kind.method, surrogate=stand_in, **how
    )


class Explained:
    """A network, its candidates, and what they have explained."""

    def __init__(self, batch=2):
        self.net = narrow_net()
        self.before = state_of(self.net)
        self.surrogate = untrained(self.net)
        self.compared = candidates(self.net, pictures()[:1], METHODS, ASKED, LAYERS, surrogate=self.surrogate)
        self.calls = []
        self.maps, self.logits = explain_all(self.compared, pictures(), TARGET, batch, self.calls.append)

    def each(self, *methods):
        """Candidates of some methods, each with the plain one that it is compared with."""
        plain = {(c.kind.attribution, c.kind.layer): c for c in self.compared if c.kind.method == "none"}
        return [
            (c, plain[c.kind.attribution, c.kind.layer]) for c in self.compared if c.kind.method in methods
        ]


@pytest.fixture(scope="module")
def whole():
    return Explained()


def test_each_is_there_once_and_none_always():
    made = candidates(
        narrow_net(),
        pictures()[:1],
        ("backward-hook", "forward-hook", "backward-hook"),
        ("deeplift", "gradient", "deeplift"),
        ("layer2", "input", "layer2"),
    )
    assert [c.kind for c in made] == [
        MapKind(method, attribution, layer, reduction)
        for attribution in ("deeplift", "gradient")
        for layer, reduction in (("layer2", 8), ("input", 1))
        for method in ("none", "backward-hook", "forward-hook")
    ]
    assert all((c.network.method, c.network.layer) == (c.kind.method, c.kind.layer) for c in made)


def test_all_share_one_copy_and_the_model_stays_as_it_is(whole):
    (module,) = {c.network.module for c in whole.compared}
    assert module is not whole.net
    assert not {p.data_ptr() for p in module.parameters()} & {p.data_ptr() for p in whole.net.parameters()}
    assert all((c.network.surrogate is not None) == (c.kind.method == "surrogate") for c in whole.compared)
    assert_untouched(whole.net, whole.before)


def test_the_model_stays_as_it_is_when_there_is_no_surrogate_for_it():
    net = narrow_net()
    before = state_of(net)
    with pytest.raises(ModelError, match="no surrogate comes with this model"):
        candidates(net, pictures()[:1], ("surrogate",), ASKED, LAYERS)
    assert_untouched(net, before)


def test_maps_are_those_of_explain_patches(whole):
    for kind in (c.kind for c in whole.compared):
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
        control, own, before = (whole.maps[k] for k in (control_of(rival.kind), rival.kind, plain.kind))
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
    assert {k for k in whole.maps if k.control} == {control_of(c.kind) for c, _ in whole.each(*METHODS[1:])}


def test_maps_are_placed_where_the_layer_is_less_the_drift(whole):
    drifted = 0
    for candidate, plain in whole.each(*METHODS):
        method, layer = candidate.kind.method, candidate.kind.layer
        with eval_mode(whole.net), smoothed(whole.net, "none" if method == "surrogate" else method) as net:
            g = measure(net, layer, pictures()[:1])
        assert candidate.geometry == g
        x = y = 0.0
        weighed = ATTRIBUTION[candidate.kind.attribution].weighs_activation
        if method == "backward-hook" and not weighed:
            most = g.drift_y / g.reduction, g.drift_x / g.reduction
            pair = (reference(whole.net, c.kind, None).numpy() for c in (plain, candidate))
            y, x = (cells * g.reduction for cells in measure_drift(*pair, most))
            drifted += x > 0 or y > 0
        found = whole.maps[candidate.kind].placement
        assert found == pytest.approx((g.reduction, g.centre_x - x, g.centre_y - y))
        if method != "none":
            place = plain.geometry
            expected = (place.reduction, place.centre_x, place.centre_y)
            assert whole.maps[control_of(candidate.kind)].placement == expected
    assert drifted


def test_a_forward_hook_is_placed_by_its_own_geometry(whole):
    for candidate, plain in whole.each("forward-hook"):
        moved = candidate.geometry.centre_x - plain.geometry.centre_x
        assert (moved < 0) == (candidate.kind.layer == "layer2")  # nothing but the stem is before the others


def test_the_drift_is_downwards_and_to_the_right():
    """A blot in the middle of a made map, and the same blot further on."""
    sample = torch.zeros(1, 3, 64, 64)
    plain, hooked = candidates(SpotNet(), sample, ("backward-hook",), ASKED[:1], ("stage2",))
    maps = np.zeros((2, 1, 16, 16), np.float32)
    maps[0, 0, 5:8, 5:8] = maps[1, 0, 6:9, 7:10] = 1
    x, y = hooked.drift(*torch.from_numpy(maps))
    assert (x, y) == pytest.approx((2 * 4, 1 * 4), abs=1)
    assert plain.drift(*torch.from_numpy(maps)) == (0, 0)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_batch_size_changes_nothing(whole, batch):
    other = Explained(batch)
    for kind, found in whole.maps.items():
        scale = float(found.maps.abs().max())
        torch.testing.assert_close(other.maps[kind].maps, found.maps, rtol=1e-4, atol=1e-5 * scale)
        torch.testing.assert_close(other.maps[kind].total_variation, found.total_variation)
        assert other.maps[kind].placement == found.placement
    for method, logits in whole.logits.items():
        torch.testing.assert_close(other.logits[method], logits)
    for explained in (whole, other):
        assert sum(explained.calls) == len(TARGET) * len(whole.compared)


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
    made = candidates(narrow_net(), pictures()[:1], (), ASKED, layers)
    assert main_layer(made).name == main
