from __future__ import annotations

import timm
import torch
from torch import nn

from tests.helpers.convolutions import CountConvolutions
from wsi_saliency.saliency.passes import LayerPass, forward_once


def check_again(net, layer, x):
    """The part above, run again, gives what a whole pass with the layer's output replaced gives."""
    run = LayerPass(net, layer, x)
    activation, logits = run.record()
    torch.testing.assert_close(logits, net(x))
    other = activation * 0.5 + 0.1
    for _ in range(3):
        leaf, found = run.again(other)
    handle = net.get_submodule(layer).register_forward_hook(lambda m, i, o: other.clone())
    torch.testing.assert_close(found, net(x))
    handle.remove()
    assert torch.autograd.grad(found.sum(), leaf)[0].abs().sum() > 0


def test_only_the_part_above_runs_again():
    net = timm.create_model("resnet18", num_classes=3).eval()
    run = LayerPass(net, "layer2", torch.randn(1, 3, 64, 64))
    activation, _ = run.record()
    with CountConvolutions() as watch:
        run.again(activation)
    above = [m for layer in (net.layer3, net.layer4) for m in layer.modules() if isinstance(m, nn.Conv2d)]
    assert watch.count == len(above)


def test_layers_between_and_within_blocks_and_branches():
    torch.manual_seed(0)
    for name, layers in {
        "resnet18": ["layer2", "layer2.0.conv1", "layer2.0.downsample"],
        "densenet121": ["features.denseblock2.denselayer3"],
        "mobilenetv3_small_050": ["blocks.2.0.conv_dw", "blocks.1"],
    }.items():
        net = timm.create_model(name, num_classes=3).eval().double()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)  # zero in the last of a block, where it starts
        for layer in layers:
            check_again(net, layer, torch.randn(2, 3, 40, 40, dtype=torch.float64))


class Reused(nn.Module):
    """One ReLU module before and after the layer, and functions that work in place on a module's output."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.a(x))
        shortcut = self.c(x)
        shortcut += 1
        return (self.relu(self.b(x)) + shortcut).mean((2, 3))


def test_reused_modules_and_functions_in_place():
    torch.manual_seed(0)
    check_again(Reused().double(), "b", torch.randn(2, 3, 16, 16, dtype=torch.float64))
    net = Reused()
    before = [sorted(vars(m)) for m in net.modules()]
    run = LayerPass(net, "b", torch.randn(1, 3, 8, 8))
    run.again(run.record()[0])
    assert [sorted(vars(m)) for m in net.modules()] == before


def test_nothing_below_the_layer_is_recorded():
    net = timm.create_model("resnet18", num_classes=3).eval()
    recorded = {}

    def note(name):
        return lambda module, args, output: recorded.update({name: output.requires_grad})

    for name in ("layer1", "layer2", "layer3"):
        net.get_submodule(name).register_forward_hook(note(name))
    forward_once(net, ["layer2"], torch.randn(1, 3, 64, 64))
    assert recorded == {"layer1": False, "layer2": False, "layer3": True}
    assert torch.is_grad_enabled()
