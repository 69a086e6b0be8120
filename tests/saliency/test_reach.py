from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from tests.helpers.nets import SpotNet
from wsi_saliency.saliency.layers import INPUT, measure, strided_convolutions
from wsi_saliency.saliency.passes import forward_once
from wsi_saliency.saliency.reach import Reach
from wsi_saliency.saliency.smoothing import SMOOTHING, smoothed
from wsi_saliency.saliency.surrogate import Surrogate, hash_of, replaceable
from wsi_saliency.saliency.surrogate_conv import SurrogateConv
from wsi_saliency.settings import METHODS

ACTING = [method for method in METHODS if SMOOTHING[method].acts_on]
ON_THE_WAY_BACK = [method for method in ACTING if not SMOOTHING[method].changes_predictions]
STANDING_IN = [method for method in ACTING if SMOOTHING[method].changes_predictions]


class Branches(nn.Module):
    """Two ways from the stem to the logits, one that leads nowhere, and a module that is never called."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.left = nn.Conv2d(4, 4, 3, 2, 1)
        self.right = nn.Conv2d(4, 4, 3, 2, 1)
        self.nowhere = nn.Conv2d(4, 4, 3, 2, 1)
        self.spare = nn.Conv2d(4, 4, 3, 2, 1)
        self.gate = nn.Conv2d(4, 4, 1, 2)
        self.body = nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x):
        x = self.stem(x)
        self.nowhere(x)
        y = self.body(self.left(x).relu_())
        y = y * self.gate(y).mean((2, 3), keepdim=True).sigmoid()
        return (y + self.right(x)).mean((2, 3))


def surrogate_of(net):
    layers = {name: SurrogateConv.like(c).eval() for name, c in replaceable(net).items()}
    return Surrogate(hash_of(net), layers)


def on_the_way(net, layer, images):
    """Ask autograd which strided convolutions' inputs the layer's output and the logits are both tied to."""
    inputs = {}

    def own_view(name):
        return lambda module, args: inputs.setdefault(name, args[0].view_as(args[0]))

    handles = [c.register_forward_pre_hook(own_view(name)) for name, c in strided_convolutions(net).items()]
    activations, logits = forward_once(net.requires_grad_(False), [layer], images)
    for handle in handles:
        handle.remove()
    tied = {name: x for name, x in inputs.items() if x.requires_grad}
    found = torch.autograd.grad(logits.sum(), [activations[layer], *tied.values()], allow_unused=True)[1:]
    return {name for name, gradient in zip(tied, found, strict=True) if gradient is not None}


@pytest.mark.parametrize(
    ("net", "layers"),
    [
        (Branches, ["input", "stem", "left", "right", "body", "gate"]),
        (lambda: timm.create_model("test_resnet"), ["input", "layer1", "layer2", "layer2.0.conv1", "layer4"]),
        (lambda: timm.create_model("densenet121"), ["input", "features.conv0", "features.denseblock1"]),
        (lambda: timm.create_model("test_vit"), ["input", "patch_embed.proj"]),
        (lambda: timm.create_model("test_efficientnet"), ["input", "blocks.0", "blocks.2"]),
    ],
    ids=["branches", "resnet", "densenet", "vit", "efficientnet"],
)
def test_what_is_strided_behind_a_layer_is_what_autograd_finds_there(net, layers):
    torch.manual_seed(0)
    net, images = net().eval(), torch.rand(1, 3, 160, 160)
    for layer in layers:
        behind = measure(net, layer, images).strided_behind
        assert set(behind) == on_the_way(net, layer, images), layer
        assert list(behind) == [name for name in strided_convolutions(net) if name in behind]


def test_of_two_ways_only_the_layer_s_own_counts():
    net, images = Branches().eval(), torch.zeros(1, 3, 32, 32)
    behind = {name: measure(net, name, images).strided_behind for name in ("input", "stem", "left", "body")}
    assert behind == {
        "input": ("stem", "left", "right", "gate"),
        "stem": ("left", "right", "gate"),
        "left": ("gate",),
        "body": ("gate",),
    }


@pytest.mark.parametrize("method", ACTING)
def test_a_method_acts_where_its_table_says(method):
    net = Branches().eval()
    plain = {name: (dict(c._forward_pre_hooks), "forward" in vars(c)) for name, c in net.named_modules()}
    with smoothed(net, method, surrogate_of(net) if SMOOTHING[method].imitates else None):
        changed = {
            name
            for name, c in net.named_modules()
            if (dict(c._forward_pre_hooks), "forward" in vars(c)) != plain[name]
        }
    assert changed == SMOOTHING[method].acts_on(net).keys()


@pytest.mark.parametrize("method", ACTING)
@pytest.mark.parametrize("layer", ["input", "stage1", "stage4", "stage5"])
def test_nothing_means_that_the_map_is_the_plain_one(method, layer):
    torch.manual_seed(0)
    net, images = SpotNet().eval().requires_grad_(False), torch.rand(1, 3, 64, 64)
    effect = Reach(net, images).effect(method, measure(net, layer, images))

    def seen():
        activations, logits = forward_once(net, [layer], images)
        return torch.autograd.grad(logits[0, 1], activations[layer])[0], logits.detach()

    plain, plain_logits = seen()
    with smoothed(net, method, surrogate_of(net) if SMOOTHING[method].imitates else None):
        smooth, logits = seen()
    assert torch.equal(plain, smooth) == (effect == "nothing")
    assert torch.equal(plain_logits, logits) == (not SMOOTHING[method].changes_predictions)


def test_only_the_stem_of_a_densenet_is_strided():
    net, images = timm.create_model("densenet121").eval(), torch.zeros(1, 3, 64, 64)
    reach, hidden = Reach(net, images), measure(net, "features.denseblock2", images)
    assert {reach.effect(method, hidden) for method in ACTING} == {"nothing"}
    assert reach.effect("shift-average", hidden) == "smooths"
    at_input = measure(net, INPUT, images)
    assert {m: reach.effect(m, at_input) for m in ACTING} == {
        **dict.fromkeys(ON_THE_WAY_BACK, "smooths"),
        **dict.fromkeys(STANDING_IN, "nothing"),
    }


def test_at_a_last_stage_predictions_still_change():
    net, images = SpotNet().eval(), torch.zeros(1, 3, 64, 64)
    reach, last = Reach(net, images), measure(net, "stage5", images)
    assert {m: reach.effect(m, last) for m in METHODS} == {
        "none": "nothing",
        "shift-average": "smooths",
        **dict.fromkeys(ON_THE_WAY_BACK, "nothing"),
        **dict.fromkeys(STANDING_IN, "changes"),
    }


HELP = "what helps: an earlier layer, --layer input or --method shift-average"


def test_notices_are_a_line_for_each_effect():
    net, images = SpotNet().eval(), torch.zeros(1, 3, 64, 64)
    layers = [measure(net, name, images) for name in ("stage4", "stage5.0", "stage5")]
    notices = Reach(net, images).notices(["none", "backward-hook", "centred-hook", "forward-hook"], layers)
    assert notices == [
        "no strided convolution lies behind layers stage5.0 and stage5: "
        f"backward-hook and centred-hook change nothing there; {HELP}",
        "no strided convolution lies behind layers stage5.0 and stage5: "
        f"forward-hook smooths nothing there, though activations and predictions change; {HELP}",
    ]


def test_a_stem_that_a_method_spares_is_told_from_no_strided_convolution():
    net, images = timm.create_model("densenet121").eval(), torch.zeros(1, 3, 64, 64)
    reach = Reach(net, images)
    assert reach.notices(["forward-hook"], [measure(net, INPUT, images)]) == [
        "no strided convolution that forward-hook acts on lies behind layer input: "
        "forward-hook changes nothing there; what helps: --method shift-average"
    ]
    assert reach.notices(["backward-hook"], [measure(net, INPUT, images)]) == []
    assert reach.notices(["backward-hook", "centred-hook"], [measure(net, "features", images)]) == [
        "no strided convolution lies behind layer features: backward-hook and centred-hook change nothing "
        "there; what helps: --layer input or --method shift-average",
    ]
    assert reach.notices(["none"], [measure(net, "features.norm5", images)]) == []
