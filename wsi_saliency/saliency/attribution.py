r"""Attributions at a hidden layer: what is computed from its activation and the logit above it.

========================  ==========================================================================
name                      values, (N, C, h, w), before the mean over channels
========================  ==========================================================================
gradient                  ∂y/∂A
gradient-x-activation     A · ∂y/∂A
deeplift                  (A − A′) · m, with the multipliers m of the Rescale rule
integrated-gradients      (A − A′) · ∫₀¹ ∂y/∂A (A′ + α (A − A′)) dα, Gauss–Legendre
gradcam                   A · mean of ∂y/∂A over h and w
========================  ==========================================================================

A is the layer's activation, y the target logit, A′ the activation of a baseline image.

The map is the mean over channels. What has the activation as a factor is *signed evidence*, for (+) and
against (−) the target, and is averaged over cells with its sign, which keeps the sum. The sign of the plain
gradient is that of the layer's channels and means little; averaged over cells it cancels. So the gradient's
map is a *magnitude*.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wsi_saliency.saliency.passes import LayerPass
from wsi_saliency.saliency.rescale import RecordBaseline, RescaleRule

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsi_saliency.saliency.rescale import Tape
    from wsi_saliency.settings import Attribution


class Attributed(NamedTuple):
    """``values`` (N, C, h, w) of a layer and the ``logits`` (N, K), both on the model's device."""

    values: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Baseline:
    """What a layer and the functions above it are for the baseline image; the same for every patch.

    Parameters
    ----------
    model, layer
        The network, with the smoothing method active that the patches are explained with, and its layer.
    image
        (1, 3, H, W) normalised floats on the model's device.
    """

    model: nn.Module
    layer: str
    image: Tensor

    @cached_property
    def _recorded(self) -> tuple[Tensor, Tape]:
        with RecordBaseline() as record:
            activation, _ = LayerPass(self.model, self.layer, self.image).forward(record.start)
        return activation.detach(), record.tape

    @property
    def activation(self) -> Tensor:
        """A′ (1, C, h, w)."""
        return self._recorded[0]

    @property
    def tape(self) -> Tape:
        """Calls above the layer, for DeepLift."""
        return self._recorded[1]


@dataclass(frozen=True)
class Question:
    """What is asked of a network: its layer, some images, a target each, and the baseline.

    ``target`` is (N,) int64; ``steps`` are the nodes of integrated gradients.
    """

    model: nn.Module
    layer: str
    images: Tensor
    target: Tensor
    baseline: Baseline
    steps: int = 50

    def run(self) -> LayerPass:
        """Return the images' passes through the network."""
        return LayerPass(self.model, self.layer, self.images)

    def gradient(self, logits: Tensor, activation: Tensor) -> Tensor:
        """Return the gradient of each image's target logit with respect to its own activation."""
        (gradient,) = torch.autograd.grad(logits.gather(1, self.target[:, None]).sum(), activation)
        return gradient


def gradient(question: Question) -> Attributed:
    """Return ∂y/∂A."""
    activation, logits = question.run().forward()
    return Attributed(question.gradient(logits, activation), logits.detach())


def gradient_x_activation(question: Question) -> Attributed:
    """Return A · ∂y/∂A."""
    activation, logits = question.run().forward()
    return Attributed(activation.detach() * question.gradient(logits, activation), logits.detach())


def deeplift(question: Question) -> Attributed:
    """Return (A − A′) · m; without smoothing, and with the whole network above, it sums to y − y′."""
    tape = question.baseline.tape
    with RescaleRule(tape) as rule:
        activation, logits = question.run().forward(rule.start)
    multipliers = question.gradient(logits, activation)
    return Attributed((activation.detach() - question.baseline.activation) * multipliers, logits.detach())


def integrated_gradients(question: Question) -> Attributed:
    """Return (A − A′) times the gradient's mean on the way from A′ to A; only the part above A runs again."""
    run = question.run()
    activation, logits = run.record()
    difference = activation - question.baseline.activation
    total = torch.zeros_like(activation)
    for node, weight in zip(*gauss_legendre(question.steps), strict=True):
        point, logits_there = run.again(question.baseline.activation + node * difference)
        total += weight * question.gradient(logits_there, point)
    return Attributed(difference * total, logits)


def gauss_legendre(n: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of the Gauss–Legendre rule on [0, 1]; exact for polynomials up to degree 2n − 1."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


def gradcam(question: Question) -> Attributed:
    """Return A · mean of ∂y/∂A over the layer's cells (Selvaraju et al. 2017, before the ReLU)."""
    activation, logits = question.run().forward()
    weights = question.gradient(logits, activation).mean((2, 3), keepdim=True)
    return Attributed(activation.detach() * weights, logits.detach())


@dataclass(frozen=True)
class AttributionRule:
    """An attribution: how it is computed, and what its values are.

    Parameters
    ----------
    compute
        Takes a question; gives values of all channels, and the logits.
    magnitude
        Whether a map is the magnitude of the mean over channels, for its sign means little; else it is
        signed evidence.
    weighs_activation
        Whether the activation is a factor. It stays where it is, also where a smoothing method moves the
        gradient.
    needs_baseline
        Whether it compares with a baseline. Such attributions do not vanish in front of a normalisation over
        channels (see `wsi_saliency.saliency.cancellation`).
    """

    compute: Callable[[Question], Attributed]
    magnitude: bool = False
    weighs_activation: bool = True
    needs_baseline: bool = False

    def map_of(self, values: Tensor, *, signed: bool = False) -> Tensor:
        """Turn values (N, C, h, w) into maps (N, h, w), float32; with ``signed`` never a magnitude."""
        maps = values.mean(1, dtype=torch.float32)
        return maps.abs() if self.magnitude and not signed else maps


ATTRIBUTION: dict[Attribution, AttributionRule] = {
    "gradient": AttributionRule(gradient, magnitude=True, weighs_activation=False),
    "gradient-x-activation": AttributionRule(gradient_x_activation),
    "deeplift": AttributionRule(deeplift, needs_baseline=True),
    "integrated-gradients": AttributionRule(integrated_gradients, needs_baseline=True),
    "gradcam": AttributionRule(gradcam),
}
