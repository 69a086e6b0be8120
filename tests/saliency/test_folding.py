from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from tests.helpers.nets import random_net
from tests.helpers.untouched import assert_untouched, state_of
from wsi_saliency.saliency.folding import own_copy


def folded_count(net):
    return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_b0", "densenet121", "mobilenetv3_small_050", "nf_resnet26"]
)
def test_a_folded_copy_gives_the_same_logits(name):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=3)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.running_mean)
    net = net.eval().double()
    before, x = state_of(net), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    copied = own_copy(net, x)
    torch.testing.assert_close(copied(x), net(x))
    assert folded_count(copied) < max(1, folded_count(net))
    assert not any(p.requires_grad for p in copied.parameters())
    assert_untouched(net, before)


def test_layers_that_are_looked_at_stay_what_they_are():
    net, x = random_net(), torch.randn(1, 3, 65, 65, dtype=torch.float64)
    assert isinstance(own_copy(net, x)[3], nn.Identity)
    kept = own_copy(net, x, keep={"2"})
    assert isinstance(kept[3], nn.BatchNorm2d)
    torch.testing.assert_close(kept[:3](x), net[:3](x))


class TwoReaders(nn.Module):
    """The convolution's output is seen by the normalisation and by another branch."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return (self.norm(x) + x).mean((2, 3))


def test_a_convolution_with_two_readers_is_not_folded():
    net = TwoReaders().eval()
    assert folded_count(own_copy(net, torch.randn(1, 3, 8, 8))) == 1


def test_somebody_elses_hooks_are_not_copied():
    net = random_net()
    net[0].register_forward_hook(lambda m, i, o: None)
    assert own_copy(net, torch.randn(1, 3, 65, 65, dtype=torch.float64)) is net


class UsesItsWeights(nn.Module):
    """The convolution's weights are used for something else, too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3)) * self.conv.weight.norm()


def test_a_convolution_whose_weights_are_used_elsewhere_is_not_folded():
    net, x = UsesItsWeights().eval(), torch.randn(1, 3, 8, 8)
    net.norm.running_var.fill_(4)
    copied = own_copy(net, x)
    assert folded_count(copied) == 1
    torch.testing.assert_close(copied(x), net(x))
