"""Attributions against definitions, finite differences, plain autograd and Captum."""

from __future__ import annotations

import copy
import threading
import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
from captum.attr import LayerDeepLift, LayerGradCam, LayerGradientXActivation, LayerIntegratedGradients
from torch import nn

from tests.helpers.nets import random_net
from tests.helpers.paths import SAMPLE
from tests.helpers.pretrained import efficientnet_lite0, photographs
from tests.helpers.untouched import assert_untouched, state_of
from wsi_saliency import PatchExplainer, explain_patches, load_classifier, open_slide, smoothed
from wsi_saliency.errors import ModelError, SettingsError
from wsi_saliency.geometry import Region, Size
from wsi_saliency.saliency.layers import find_layer
from wsi_saliency.settings import ATTRIBUTIONS, METHODS

X = torch.randn(2, 3, 67, 65, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def behind(net, start, activation, target):
    """Logits of the part of a sequence behind a layer, summed."""
    return net[start + 1 :](activation)[:, target].sum()


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_gradient_against_finite_differences(start):
    net = random_net()
    maps = explain_patches(net, X, str(start), 1, "gradient", "none", signed=True)
    activation = net[: start + 1](X).detach()
    rng = np.random.default_rng(0)
    for _ in range(5):
        n, i, j = (int(rng.integers(0, size)) for size in (2, *activation.shape[2:]))
        difference, step = 0.0, 1e-6
        for channel in range(activation.shape[1]):
            for sign in (1, -1):
                moved = activation.clone()
                moved[n, channel, i, j] += sign * step
                difference += sign * float(behind(net, start, moved, 1).detach()) / (2 * step)
        assert maps[n, i, j] == pytest.approx(difference / activation.shape[1], rel=1e-4, abs=1e-9)


def plain_autograd(net, layer, target, method):
    """Activation and gradient without any of the engine's shortcuts: the whole graph is recorded."""
    kept = []
    with smoothed(net, method):
        x = X.clone().requires_grad_()
        if layer == "input":
            y = net(x)
            kept.append(x)
        else:
            handle = net[int(layer)].register_forward_hook(lambda m, i, o: kept.append(o))
            y = net(x)
            handle.remove()
        (g,) = torch.autograd.grad(y[:, target].sum(), kept[0])
    return kept[0].detach(), g


@pytest.mark.parametrize("method", ["none", "backward-hook", "forward-hook"])
@pytest.mark.parametrize("layer", ["input", "0", "1", "4"])
def test_gradients_against_plain_autograd(method, layer):
    a, g = plain_autograd(random_net(), layer, 2, method)
    expected = {"gradient": g, "gradient-x-activation": a * g, "gradcam": a * g.mean((2, 3), keepdim=True)}
    for attribution, values in expected.items():
        found = explain_patches(random_net(), X, layer, 2, attribution, method, reduce=None)
        torch.testing.assert_close(found, values.float())
        found = explain_patches(random_net(), X, layer, 2, attribution, method, signed=True)
        torch.testing.assert_close(found, values.mean(1).float())
        magnitude = explain_patches(random_net(), X, layer, 2, attribution, method)
        torch.testing.assert_close(magnitude, found.abs() if attribution == "gradient" else found)


@pytest.mark.parametrize("method", ["none", "backward-hook", "forward-hook"])
@pytest.mark.parametrize("layer", ["input", "0", "4"])
def test_integrated_gradients_against_the_definition(method, layer):
    """A midpoint rule of many steps, each a whole pass with the layer's output replaced."""
    net = random_net()
    a, _ = plain_autograd(net, layer, 0, method)
    zeros = torch.zeros_like(X[:1])
    kept = []
    with smoothed(net, method):
        if layer == "input":
            a0 = zeros
        else:
            handle = net[int(layer)].register_forward_hook(lambda m, i, o: kept.append(o))
            net(zeros)
            handle.remove()
            a0 = kept[0].detach()
        total, n = torch.zeros_like(a), 800
        part = net if layer == "input" else net[int(layer) + 1 :]
        for k in torch.arange(n).split(n // 50):  # no image of a batch looks at another
            leaf = (a0 + (k[:, None, None, None, None] + 0.5) / n * (a - a0)).flatten(0, 1).requires_grad_()
            (slopes,) = torch.autograd.grad(part(leaf)[:, 0].sum(), leaf)
            total += slopes.unflatten(0, (len(k), -1)).sum(0) / n
    found = explain_patches(net, X, layer, 0, "integrated-gradients", method, reduce=None, steps=200)
    expected = (a - a0) * total
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def spread(net, side, seed=0):
    """Give a random network's batch normalisations the statistics and weights of a trained one."""
    torch.manual_seed(seed)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        nn.init.uniform_(m.weight, 0.5, 1.5)
        nn.init.normal_(m.bias, 0, 0.3)
        m.train()
        m.momentum = None
    with torch.no_grad():
        net(torch.randn(2, 3, side, side))
    for name, parameter in net.named_parameters():
        if name.endswith("gamma"):  # ConvNeXt's layer scale starts at 1e-6: nothing would reach the logits
            nn.init.constant_(parameter, 0.5)
    return net.eval().double()


def without_inplace(net):
    """Captum cannot explain in front of operations that work in place."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return net


SIDE = 75  # small, for speed; inception_v4 needs as much
NETWORKS = [
    "resnet18", "resnet50", "densenet121", "efficientnet_b0", "convnext_tiny", "vgg16_bn", "regnety_004",
    "inception_v4", "mobilenetv3_large_100",
]  # fmt: skip
CAPTUM_RESCALES = {"resnet18", "resnet50", "densenet121"}
"""Where Captum's DeepLift sums to the difference of logits: nothing but ReLU above the layer. It has no rule
for SiLU, GELU, Hardswish and products, and is off where several windows of max pooling are (vgg16_bn:
−0.471 in place of −0.433; inception_v4: a tenth)."""


def build(name):
    if name.startswith("torchvision "):
        return spread(torchvision.models.get_model(name.split()[1]), SIDE)
    small_head = {"mlp_ratio": 0.03} if name.startswith("vgg") else {}
    return spread(timm.create_model(name, num_classes=5, **small_head), SIDE)


LARGE = {"resnet50", "densenet121", "convnext_tiny", "vgg16_bn", "inception_v4"}
"""Networks whose comparisons take seconds: with `make test-all` only, but for a DeepLift of each."""


def large_are_slow(names, large=LARGE):
    return [pytest.param(name, marks=pytest.mark.slow) if name in large else name for name in names]


@pytest.mark.parametrize("name", large_are_slow(NETWORKS))
def test_against_captum(name):
    """In float64: in float32 a gate near 0 may fall to either side with the order of summation."""
    net = build(name)
    x = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    target = torch.tensor([1, 4])
    layer = find_layer(net, 8, x)
    theirs = without_inplace(net)
    module = theirs.get_submodule(layer)

    def ours(attribution, **how):
        return explain_patches(net, x, layer, target, attribution, "none", reduce=None, **how)

    expected = {
        "gradient": LayerGradientXActivation(theirs, module, multiply_by_inputs=False).attribute(x, target),
        "gradient-x-activation": LayerGradientXActivation(theirs, module).attribute(x, target),
    }
    for attribution, values in expected.items():
        assert (ours(attribution) - values).abs().max() <= 1e-5 * values.abs().max()
    cam = LayerGradCam(theirs, module).attribute(x, target)
    assert (ours("gradcam").sum(1, keepdim=True) - cam).abs().max() <= 1e-5 * cam.abs().max()
    zeros = torch.zeros_like(x)
    ig = LayerIntegratedGradients(theirs, module).attribute(x, zeros, target, n_steps=3)
    assert (ours("integrated-gradients", steps=3) - ig).abs().max() <= 1e-5 * ig.abs().max()
    if name in CAPTUM_RESCALES:
        lift = LayerDeepLift(theirs, module).attribute(x, zeros, target)
        assert (ours("deeplift") - lift).abs().max() <= 1e-4 * lift.abs().max()


@pytest.mark.parametrize(
    "name", large_are_slow([*NETWORKS, "torchvision resnet18", "nf_resnet26", "ghostnet_050"])
)
@pytest.mark.parametrize("baseline", [None, pytest.param("random", marks=pytest.mark.slow)])
def test_deeplift_sums_to_the_difference_of_logits(name, baseline):
    """With reused ReLU, max and average pooling, SiLU, GELU, Hardswish, squeeze-and-excite, layer norm."""
    net = build(name)
    x = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    image = None if baseline is None else torch.randn(3, SIDE, SIDE, dtype=torch.float64)
    for layer in (find_layer(net, 8, x), "input"):
        found = explain_patches(net, x, layer, 2, "deeplift", "none", baseline=image, reduce=None)
        with torch.no_grad():
            delta = net(x)[:, 2] - net(torch.zeros_like(x) if image is None else image[None])[:, 2]
        assert (found.double().sum((1, 2, 3)) - delta).abs().max() <= 1e-3 * delta.abs().max()


class FunctionsInPlace(nn.Module):
    """Pooling with a positional ceil_mode, products and quotients of activations, in place and not."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        a = torch.max_pool2d(self.conv(x), 3, 2, 1, 1, True)
        gate = a.sigmoid()
        b = torch.relu_(a.clone()) * gate
        b *= gate
        b /= gate + 1
        return self.head(b.mean((2, 3)))


def test_deeplift_sums_where_functions_work_in_place():
    torch.manual_seed(0)
    net = FunctionsInPlace().double().eval()
    x, image = torch.randn(2, 3, 20, 21, dtype=torch.float64), torch.randn(3, 20, 21, dtype=torch.float64)
    found = explain_patches(net, x, "input", 1, "deeplift", "none", baseline=image, reduce=None)
    with torch.no_grad():
        delta = net(x)[:, 1] - net(image[None])[:, 1]
    assert (found.double().sum((1, 2, 3)) - delta).abs().max() <= 1e-5 * delta.abs().max()


def assert_complete(net, x, target, layer, steps, tolerance):
    with torch.no_grad():
        delta = (net(x) - net(torch.zeros_like(x[:1]))).gather(1, target[:, None])[:, 0]
    found = explain_patches(net, x, layer, target, "integrated-gradients", "none", reduce=None, steps=steps)
    assert (found.sum((1, 2, 3)) - delta).abs().max() <= tolerance * delta.abs().max()


@pytest.mark.parametrize("layer", ["layer1", "layer2", "layer3"])
def test_integrated_gradients_are_complete_within_a_percent_at_50_steps(layer):
    classifier = load_classifier("demo")
    with open_slide(SAMPLE) as slide:
        nests = [(1600, 1500), (3200, 1000), (3000, 2800)]
        patches = np.stack([slide.read(Region(x, y, 224, 224), Size(224, 224)) for x, y in nests])
    x = classifier.normalised(patches, torch.device("cpu"))
    assert_complete(classifier.module, x, torch.zeros(3, dtype=torch.long), layer, 50, 0.01)


@pytest.mark.slow
def test_integrated_gradients_are_complete_on_a_network_with_many_gates():
    """Every gate that opens on the way is a jump of the gradient: 50 nodes are not enough (1 to 4 %)."""
    net, x = efficientnet_lite0(), photographs(160, 2)
    with torch.no_grad():
        target = net(x).argmax(1)
    assert_complete(net, x, target, "16", 200, 0.01)


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
@pytest.mark.parametrize("method", [m for m in METHODS if m != "surrogate"])
@pytest.mark.parametrize("layer", ["input", "0", "3", "5"])
def test_layers_before_an_inplace_relu_and_nothing_stays(attribution, method, layer):
    net = random_net(inplace=True)
    before = state_of(net)
    found = explain_patches(net, X, layer, 0, attribution, method, steps=3)
    torch.testing.assert_close(
        found, explain_patches(random_net(), X, layer, 0, attribution, method, steps=3)
    )
    assert_untouched(net, before)
    assert found.dtype == torch.float32
    assert not found.requires_grad


def test_targets_one_each_and_batches():
    net, target = random_net(), torch.tensor([2, 0])
    together = explain_patches(net, X, "4", target)
    torch.testing.assert_close(together, explain_patches(net, X, "4", target, batch_size=1))
    for i in (0, 1):
        torch.testing.assert_close(
            together[i : i + 1], explain_patches(net, X[i : i + 1], "4", int(target[i]))
        )


@pytest.mark.parametrize(
    "head", [nn.Linear(6, 1), nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)), nn.Unflatten(1, (6, 1, 1))]
)
def test_all_shapes_of_logits(head):
    net = nn.Sequential(*random_net()[:11], head).double().eval()
    assert explain_patches(net, X, "4", 0).shape == (2, 17, 17)


def test_smoothgrad_is_the_mean_over_noisy_copies():
    net = random_net()
    found = explain_patches(net, X, "4", 0, smoothgrad=(3, 0.2), seed=5, signed=True)
    random = torch.Generator().manual_seed(5)
    noise = [0.2 * torch.randn(X.shape[1:], generator=random, dtype=X.dtype) for _ in range(3)]
    expected = torch.stack([explain_patches(net, X + n, "4", 0, signed=True) for n in noise]).mean(0)
    torch.testing.assert_close(found, expected)
    other = explain_patches(net, X, "4", 0, smoothgrad=(3, 0.2), seed=6, signed=True)
    assert not torch.equal(found, other)


def test_two_models_in_two_threads():
    nets, found = [random_net(1), random_net(2)], {}

    def work(i):
        for _ in range(3):
            found[i] = explain_patches(nets[i], X, "4", 1, "deeplift")

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in (0, 1):
        torch.testing.assert_close(found[i], explain_patches(nets[i], X, "4", 1, "deeplift"))


class Raises(nn.Module):
    def forward(self, x):
        raise ZeroDivisionError


class SortedHead(nn.Module):
    def forward(self, x):
        return x.sort(1).values


def traced(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(net, X)


REFUSED = {
    "traced": (lambda: traced(random_net()), "scripted or traced"),
    "softmax": (lambda: nn.Sequential(*random_net(), nn.Softmax(0)), "softmax"),
    "sigmoid": (lambda: nn.Sequential(*random_net(), nn.Sigmoid(), nn.Threshold(0, 0)), "sigmoid"),
    "features": (lambda: random_net()[:4], "logits"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_models_that_cannot_be_explained(why):
    make, message = REFUSED[why]
    with pytest.raises(ModelError, match=message):
        explain_patches(make(), X, "0", 0)


class Squashed(nn.Module):
    """A network that ends in a function, not in a module; its attention squashes too."""

    def __init__(self, squash):
        super().__init__()
        self.net, self.squash = random_net(), squash

    def forward(self, x):
        return self.squash(self.net(x * x.mean((2, 3), keepdim=True).softmax(1)))


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
@pytest.mark.parametrize(
    "squash",
    [nn.Softmax(1), nn.Sigmoid(), lambda y: nn.functional.log_softmax(y, 1), torch.sigmoid],
    ids=["Softmax", "Sigmoid", "log_softmax", "sigmoid"],
)
def test_logits_in_front_of_a_softmax_or_sigmoid_are_explained(attribution, squash):
    net, plain = Squashed(squash).eval(), Squashed(nn.Identity()).eval()
    plain.load_state_dict(net.state_dict())
    wanted = explain_patches(plain, X, "net.4", 1, attribution, "none", steps=2)
    before = state_of(net)
    assert torch.equal(explain_patches(net, X, net.net[4], 1, attribution, "none", steps=2), wanted)
    assert_untouched(net, before)


def test_an_explainer_says_what_it_leaves_out():
    assert PatchExplainer(Squashed(torch.sigmoid), X, "net.4").taken_off == "sigmoid"
    assert PatchExplainer(Squashed(nn.Softmax(1)), X, "net.4").taken_off == "Softmax"
    assert PatchExplainer(random_net(), X, "4").taken_off is None


def test_function_without_a_rule_is_named():
    net = nn.Sequential(*random_net(), SortedHead())
    with pytest.raises(ModelError, match=r"'sort'.*integrated-gradients"):
        explain_patches(net, X, "4", 0, "deeplift", "none")
    assert explain_patches(net, X, "4", 0, "integrated-gradients", "none", steps=2).isfinite().all()


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_nothing_stays_after_an_exception(attribution):
    net = nn.Sequential(*random_net()[:6], Raises())
    before = state_of(net)
    with pytest.raises(ZeroDivisionError):
        explain_patches(net, X, "4", 0, attribution)
    assert_untouched(net, before)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"target": None}, "3 classes"),
        ({"target": 3}, "not a class"),
        ({"target": torch.tensor([0, 1, 2])}, "one for each"),
        ({"target": 0, "baseline": torch.zeros(3, 8, 8)}, "baseline"),
        ({"target": 0, "images": X[0]}, "images"),
    ],
)
def test_settings_that_do_not_fit(how, message):
    with pytest.raises(SettingsError, match=message):
        explain_patches(random_net(), **({"images": X, "layer": "4", "attribution": "deeplift"} | how))


def test_an_explainer_is_made_once_and_gives_what_single_calls_give():
    net = random_net()
    for method in ("none", "backward-hook"):
        explain = PatchExplainer(net, X[:1], "3", "deeplift", method)
        for images in (X, X[:1]):
            expected = explain_patches(net, images, "3", 1, "deeplift", method)
            assert torch.equal(explain(images, 1), expected)


def test_an_explainer_works_on_weights_of_its_own():
    net = random_net()
    explain = PatchExplainer(net, X, "3")
    before = explain(X, 1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
        net[3].running_var.mul_(3)
    assert torch.equal(explain(X, 1), before)
