from __future__ import annotations

import functools
from collections import Counter
from itertools import product

import pytest
import torch
from torch import nn

from tests.helpers.nets import narrow_net, random_net, untrained
from tests.helpers.untouched import assert_untouched, state_of
from wsi_saliency.mapspec import MapSpec
from wsi_saliency.saliency.network import Network, eval_mode
from wsi_saliency.saliency.smoothing import smoothed
from wsi_saliency.settings import ATTRIBUTIONS, METHODS

LEAVING = ("none", "backward-hook", "centred-hook")  # methods that leave predictions alone


class Branched(nn.Module):
    """Branches that run one after the other and meet again: no layer of one depends on the other's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(inplace=True))
        self.left = nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1), nn.BatchNorm2d(6))
        self.right = nn.Sequential(nn.Conv2d(6, 6, 3, 2, 1), nn.Tanh())
        self.last = nn.Sequential(nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(inplace=True))
        self.head = nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x):
        x = self.stem(x)
        left, right = self.left(x), self.right(x)
        left += right
        return self.head(self.last(left).mean((2, 3)))


def residual():
    """A ResNet whose blocks add something from the start."""
    net = narrow_net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return net


NETS = {
    "in place": (lambda: random_net(inplace=True), ["input", "0", "3", "4", "6"]),
    "residual": (residual, ["layer2", "layer2.0", "layer2.0.conv1", "input", "layer3"]),
    "branches": (Branched, ["left", "right", "last", "left.1", "stem"]),
}


@pytest.fixture(params=NETS)
def net_and_layers(request):
    make, layers = NETS[request.param]
    return make(), layers


def sample(n, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 64, 64, generator=random, dtype=torch.float64)


def network_of(net, maps, **how):
    network = Network.of(net, maps, sample(1), **how)
    network.steps = 2
    return network


def all_of(layers, methods=("none",), attributions=("gradient",)):
    return tuple(MapSpec(*parts) for parts in product(layers, methods, attributions))


def explained(network, images, targets, maps=None):
    """Values by map and target, each of which has to come once; and the logits."""
    found = {}

    def take(spec, target, values):
        assert (spec, target) not in found
        found[spec, target] = values.clone()

    numbers = [torch.full((len(images),), target) for target in targets]
    return found, network.explain(images, numbers, take, maps)


# -------------------------------------------------------------------------------------------- values


TARGETS = (1, 0)


@pytest.fixture(scope="module")
def alone():
    """Explain two images by a network that makes one map, each target alone; each map once for all tests."""

    @functools.cache
    def alone(name, spec):
        net = NETS[name][0]().eval()
        stand_in = untrained(net) if spec.method == "surrogate" else None
        single = network_of(net, [spec], surrogate=stand_in)
        made = [explained(single, sample(2), [target]) for target in TARGETS]
        return [(values[spec, 0], said[spec.method]) for values, said in made]

    return alone


@pytest.mark.parametrize("attributions", [ATTRIBUTIONS[:2] + ATTRIBUTIONS[-1:], ("deeplift",), ATTRIBUTIONS])
@pytest.mark.parametrize("name", NETS)
def test_maps_that_are_made_together_are_those_that_are_made_alone(alone, name, attributions):
    make, layers = NETS[name]
    net = make()
    methods = METHODS if attributions == ATTRIBUTIONS[:2] + ATTRIBUTIONS[-1:] else (*LEAVING, "forward-hook")
    net.eval()
    stand_in = untrained(net) if "surrogate" in methods else None
    maps = all_of(layers, methods, attributions)
    network = network_of(net, maps, surrogate=stand_in)
    together, logits = explained(network, sample(2), TARGETS)
    assert together.keys() == set(product(maps, range(len(TARGETS))))
    for spec in maps:
        for number, (values, said) in enumerate(alone(name, spec)):
            assert together[spec, number].abs().max() > 0
            torch.testing.assert_close(together[spec, number], values, rtol=1e-9, atol=1e-15)
            torch.testing.assert_close(logits[spec.method], said, rtol=1e-9, atol=1e-15)


def test_gradients_against_the_definition(net_and_layers):
    """One layer, one target and one image at a time, the activation put in the place of the output."""
    net, layers = net_and_layers
    images, targets = sample(2), (2 % net(sample(1)).shape[1], 0)
    found, _ = explained(network_of(net, all_of(layers)), images, targets)
    with eval_mode(net):
        for (spec, number), values in found.items():
            for image, value in zip(images, values, strict=True):
                expected = gradient_at(net, spec.layer, image[None], targets[number])
                torch.testing.assert_close(value[None], expected, rtol=1e-9, atol=1e-15)


def gradient_at(net, layer, image, target):
    leaves = []

    def replace(module, args, output):
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[0].clone()

    if layer == "input":
        leaves.append(image.clone().requires_grad_())
        logits = net(leaves[0].clone())
    else:
        handle = net.get_submodule(layer).register_forward_hook(replace)
        logits = net(image)
        handle.remove()
    return torch.autograd.grad(logits[0, target], leaves[0])[0]


def test_logits_are_those_of_each_method():
    net = random_net(inplace=True)
    network = network_of(net, all_of(["4", "6"], (*LEAVING, "forward-hook")))
    _, logits = explained(network, sample(3), [0])
    for method, said in logits.items():
        with smoothed(net, method), torch.no_grad():
            torch.testing.assert_close(said, net(sample(3)))
    assert not torch.allclose(logits["forward-hook"], logits["none"])


def test_only_the_maps_that_are_named_are_made():
    maps = all_of(["4", "6"], ("none", "forward-hook"))
    network = network_of(random_net(), maps)
    found, logits = explained(network, sample(2), [0], maps[1:2])
    assert set(found) == {(maps[1], 0)}
    assert set(logits) == {"forward-hook"}


# -------------------------------------------------------------------------------------------- passes


def passes(maps, targets, monkeypatch):
    """Forward passes of the images, which have to go through the whole network, and backward passes."""
    network = network_of(residual(), maps)
    images, calls, backward = sample(2), Counter(), []
    explained(network, images, targets)  # what is recorded of the baseline is there from now on

    def count(module, args):
        calls[module] += len(args[0]) == len(images)

    convolutions = [m for m in network.module.modules() if isinstance(m, nn.Conv2d)]
    for convolution in convolutions:
        convolution.register_forward_pre_hook(count)
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **how: backward.append(1) or grad(*args, **how))
    explained(network, images, targets)
    (forward,) = {calls[convolution] for convolution in convolutions}
    return forward, len(backward)


THREE = ["layer1", "layer2", "layer3"]
SHARING = ("gradient", "gradient-x-activation", "gradcam")


@pytest.mark.parametrize(
    ("maps", "targets", "expected"),
    [
        pytest.param(all_of(THREE), [1], (1, 1), id="three layers"),
        pytest.param(all_of(["input", "layer2", "layer2.0"]), [1], (1, 1), id="nested"),
        pytest.param(all_of(THREE), [1, 0], (1, 2), id="two targets"),
        pytest.param(all_of(THREE, LEAVING), [1], (1, 3), id="methods that leave predictions alone"),
        pytest.param(all_of(THREE, LEAVING), [1, 0], (1, 6), id="methods and targets"),
        pytest.param(all_of(THREE, attributions=SHARING), [1], (1, 1), id="attributions of the gradient"),
        pytest.param(all_of(THREE, attributions=("deeplift",)), [1], (1, 1), id="deeplift"),
        pytest.param(all_of(THREE, LEAVING, ("deeplift",)), [1, 0], (1, 6), id="deeplift by methods"),
        pytest.param(all_of(THREE, attributions=("gradient", "deeplift")), [1], (2, 2), id="both"),
        pytest.param(all_of(THREE, ("none", "forward-hook")), [1, 0], (2, 4), id="forward hook"),
        pytest.param(all_of(THREE, ("forward-hook",)), [1], (1, 1), id="forward hook alone"),
    ],
)
def test_passes_are_shared(monkeypatch, maps, targets, expected):
    assert passes(maps, targets, monkeypatch) == expected


# ------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("after", range(0, 20, 3))
def test_what_fails_on_the_way_leaves_the_network_as_it_was(after):
    methods, attributions = (*LEAVING, "forward-hook"), ("gradient", "deeplift", "integrated-gradients")
    network = network_of(residual(), all_of(["layer3"], methods, attributions))
    explained(network, sample(2), [1, 0])
    before, taken = state_of(network.module), []

    def take(spec, target, values):
        taken.append(spec)
        if len(taken) > after:
            raise KeyError(spec.name)

    with pytest.raises(KeyError):
        network.explain(sample(2), [torch.tensor([0, 1]), torch.tensor([1, 1])], take)
    assert len(taken) == after + 1
    assert_untouched(network.module, before)
    assert torch.is_grad_enabled()
    again, _ = explained(network, sample(2), [1])
    expected, _ = explained(network_of(residual(), network.maps), sample(2), [1])
    assert all(torch.equal(values, expected[key]) for key, values in again.items())


def test_explaining_leaves_the_network_and_its_copy_as_they_were():
    net = residual()
    network = network_of(net, all_of(["input", "layer2"], (*LEAVING, "forward-hook"), ATTRIBUTIONS))
    before, copy = state_of(net), state_of(network.module)
    explained(network, sample(2), [1, 0])
    assert_untouched(net, before)
    assert_untouched(network.module, copy)
