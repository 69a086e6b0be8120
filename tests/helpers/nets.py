"""Small networks for tests: random ones for exactness, a hand-set one that sees dark spots."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from wsi_saliency.models.classifier import Classifier
from wsi_saliency.saliency.surrogate import Surrogate, hash_of, replaceable
from wsi_saliency.saliency.surrogate_conv import SurrogateConv


def random_net(seed: int = 0, *, inplace: bool = False) -> nn.Sequential:
    """A float64 network with every kind of strided convolution: plain, depthwise, 1×1, stride 4."""
    torch.manual_seed(seed)
    return (
        nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.ReLU(inplace),
            nn.Conv2d(8, 8, 5, 2, 2, groups=8),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace),
            nn.Conv2d(8, 6, 1, 2),
            nn.ReLU(inplace),
            nn.Conv2d(6, 6, 4, 4),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 3),
        )
        .double()
        .eval()
    )


def narrow_net(dtype=torch.float64):
    """A ResNet with few channels; part of it is in training mode, as users leave their networks."""
    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=2, layers=[1, 1, 1, 1], channels=[4, 6, 8, 8])
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.3, 1)
    net.eval().to(dtype).layer3.train()
    return net


def untrained(net):
    """A surrogate as its training starts."""
    return Surrogate(hash_of(net), {name: SurrogateConv.like(c) for name, c in replaceable(net).items()})


class SpotNet(nn.Module):
    """Answers to dark spots, in five strided stages of non-negative weights with gates between them.

    Parameters
    ----------
    kernel
        Side of the convolutions' uniform kernels.
    gate
        What each stage subtracts before its ReLU, so that it is off away from a spot.
    """

    def __init__(self, kernel: int = 3, gate: float = 0.02) -> None:
        super().__init__()
        for i in range(1, 6):
            convolution = nn.Conv2d(3 if i == 1 else 4, 4, kernel, 2, kernel // 2)
            nn.init.constant_(convolution.weight, 2 / (convolution.in_channels * kernel**2))
            nn.init.constant_(convolution.bias, -gate)
            self.add_module(f"stage{i}", nn.Sequential(convolution, nn.ReLU()))
        self.head = nn.Linear(4, 2)
        nn.init.constant_(self.head.weight, 0.25)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight[0] *= -1

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, 6):
            x = getattr(self, f"stage{i}")(x)
        return self.head(x.square().mean((2, 3)))


def spot_classifier(patch: int = 256, mpp: float = 0.5, **how: float) -> Classifier:
    """Wrap a `SpotNet`: white is 0 at its input, darker is more."""
    return Classifier(
        module=SpotNet(**how).eval().requires_grad_(False),
        uri="spots",
        architecture="spots",
        patch=patch,
        mpp=mpp,
        mean=(1.0, 1.0, 1.0),
        std=(-1.0, -1.0, -1.0),
        class_names=("normal", "tumour"),
        output="softmax",
        sha256="0" * 64,
    )
