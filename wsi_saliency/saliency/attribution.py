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

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Size, Tensor, nn

from wsi_saliency.saliency.layers import layout_of
from wsi_saliency.saliency.passes import LayerPass, forward_once, independent_of
from wsi_saliency.saliency.rescale import RecordBaseline, RescaleRule
from wsi_saliency.saliency.smoothing import GradientAverage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from wsi_saliency.mapspec import MapSpec
    from wsi_saliency.saliency.rescale import Tape
    from wsi_saliency.saliency.tokens import Layout
    from wsi_saliency.settings import Attribution, Method

SlopeKind = Literal["derivative", "rescale", "path"]


@dataclass(frozen=True)
class Baseline:
    """What some layers and the functions above them are for the baseline image; the same for every patch.

    Parameters
    ----------
    model, layers
        The network, with the smoothing method active that the patches are explained with, and its layers.
    image
        (1, 3, H, W) normalised floats on the model's device.
    """

    model: nn.Module
    layers: tuple[str, ...]
    image: Tensor

    @cached_property
    def _recorded(self) -> tuple[dict[str, Tensor], Tape]:
        with RecordBaseline() as record:
            activations, _ = forward_once(self.model, self.layers, self.image, record.start)
        return {layer: activation.detach() for layer, activation in activations.items()}, record.tape

    def activation(self, layer: str) -> Tensor:
        """Return A′ of a layer, of one image."""
        return self._recorded[0][layer]

    @property
    def tape(self) -> Tape:
        """Calls above the first layer, for DeepLift."""
        return self._recorded[1]


@dataclass
class Baselines:
    """The baseline and the layers of a network under one smoothing method, found when first needed.

    Parameters
    ----------
    model, image
        As in `Baseline`.
    layouts
        How the cells of layers lie in their outputs, by layer and size of images, as far as that is known.
    """

    model: nn.Module
    image: Tensor
    layouts: dict[tuple[str, Size], Layout] = field(default_factory=dict)
    _made: dict[tuple[str, ...], Baseline] = field(default_factory=dict, init=False)

    def of(self, layers: tuple[str, ...]) -> Baseline:
        """Return what it is at some layers, and above the first of them."""
        if layers not in self._made:
            self._made[layers] = Baseline(self.model, layers, self.image)
        return self._made[layers]

    def layout(self, layer: str, images: Tensor) -> Layout:
        """Return how the cells of a layer lie in its output for images of this size."""
        key = layer, images.shape[2:]
        if key not in self.layouts:
            self.layouts[key] = layout_of(self.model, layer, images)
        return self.layouts[key]


@dataclass(frozen=True)
class AttributionInput:
    """What is asked of a network: maps, images, targets, and the baseline.

    Parameters
    ----------
    model
        Network in eval mode, with a smoothing method active on it, or none, or `averaging` with ``average``.
    maps
        Layers, methods and attributions. All methods leave predictions alone, or there is only one.
    images
        (N, 3, H, W) normalised floats on the model's device.
    targets
        Class indices (N,) int64, likewise; every map is made for each of them.
    baselines
        Of the same model, under the same method.
    average
        What follows the methods from one backward pass to the next, if there are several.
    steps
        Nodes of integrated gradients.
    """

    model: nn.Module
    maps: Sequence[MapSpec]
    images: Tensor
    targets: Sequence[Tensor]
    baselines: Baselines
    average: GradientAverage = field(default_factory=GradientAverage)
    steps: int = 50

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Layers of the maps, each once."""
        return tuple(dict.fromkeys(spec.layer for spec in self.maps))

    def of(self, images: Tensor, baselines: Baselines) -> AttributionInput:
        """Ask the same of other images, compared with another baseline."""
        return replace(self, images=images, baselines=baselines)

    @property
    def baseline(self) -> Baseline:
        """What the baseline image is at these layers."""
        return self.baselines.of(self.layers)

    @cached_property
    def methods(self) -> tuple[Method, ...]:
        """Methods of the maps, each once."""
        return tuple(dict.fromkeys(spec.method for spec in self.maps))

    def backward(
        self, activations: dict[str, Tensor], logits: Tensor
    ) -> Iterator[tuple[Method, int, dict[str, Tensor]]]:
        """Yield a method, the number of a target, and the logit's gradient at each activation."""
        passes = [(method, i) for method in self.methods for i in range(len(self.targets))]
        for method, i in passes:
            self.average.follow(method)
            chosen = logits.gather(1, self.targets[i][:, None]).sum()
            again = (method, i) != passes[-1]
            found = torch.autograd.grad(
                chosen, list(activations.values()), retain_graph=again, allow_unused=True
            )
            yield method, i, dict(zip(activations, _all_used(activations, found), strict=True))


def _all_used(activations: dict[str, Tensor], gradients: Sequence[Tensor | None]) -> Iterator[Tensor]:
    for layer, gradient in zip(activations, gradients, strict=True):
        if gradient is None:
            raise independent_of(layer)
        yield gradient


class Slopes(NamedTuple):
    """How steeply the logits depend on layers: derivatives, or what an attribution takes in their place.

    ``activations`` by layer, as the layer gives them. ``logits`` (N, K). ``each`` yields a method, the number
    of a target and slopes by layer, alike.
    """

    activations: dict[str, Tensor]
    logits: Tensor
    each: Iterator[tuple[Method, int, dict[str, Tensor]]]


def derivatives(asked: AttributionInput) -> Slopes:
    """Return ∂y/∂A: one forward pass, and one backward pass for each method and target."""
    activations, logits = forward_once(asked.model, asked.layers, asked.images)
    return Slopes(activations, logits, asked.backward(activations, logits))


def rescale_multipliers(asked: AttributionInput) -> Slopes:
    """Return the multipliers m of the Rescale rule, from as many passes as `derivatives`."""
    with RescaleRule(asked.baseline.tape) as rule:
        activations, logits = forward_once(asked.model, asked.layers, asked.images, rule.start)
    return Slopes(activations, logits, asked.backward(activations, logits))


def path_means(asked: AttributionInput) -> Slopes:
    """Return the gradient's mean on the way from A′ to A; only the part above A runs again."""
    runs = {layer: LayerPass(asked.model, layer, asked.images) for layer in asked.layers}
    recorded = {layer: run.record() for layer, run in runs.items()}
    activations = {layer: activation for layer, (activation, _) in recorded.items()}
    logits = next(logits for _, logits in recorded.values())

    def each() -> Iterator[tuple[Method, int, dict[str, Tensor]]]:
        for layer, run in runs.items():
            totals = _path_totals(asked, run, layer, activations[layer])
            for (method, i), total in totals.items():
                yield method, i, {layer: total}

    return Slopes(activations, logits, each())


def _path_totals(
    asked: AttributionInput, run: LayerPass, layer: str, activation: Tensor
) -> dict[tuple[Method, int], Tensor]:
    start = asked.baseline.activation(layer)
    difference = activation - start
    totals: dict[tuple[Method, int], Tensor] = {}
    for node, weight in zip(*gauss_legendre(asked.steps), strict=True):
        point, logits = run.again(start + node * difference)
        for method, i, gradients in asked.backward({layer: point}, logits):
            total = totals.get((method, i), torch.zeros_like(activation))
            total += weight * gradients[layer]
            totals[method, i] = total
    return totals


def gauss_legendre(n: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of the Gauss–Legendre rule on [0, 1]; exact for polynomials up to degree 2n − 1."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


SLOPES: dict[SlopeKind, Callable[[AttributionInput], Slopes]] = {
    "derivative": derivatives,
    "rescale": rescale_multipliers,
    "path": path_means,
}


def _slope_alone(activation: Tensor, slope: Tensor) -> Tensor:
    return slope


def _weighed(activation: Tensor, slope: Tensor) -> Tensor:
    return activation * slope


def _weighed_by_mean(activation: Tensor, slope: Tensor) -> Tensor:
    return activation * slope.mean((2, 3), keepdim=True)


@dataclass(frozen=True)
class AttributionRule:
    """An attribution: how it is computed, and what its values are.

    Parameters
    ----------
    slope
        What stands for the slope of the logit: a key of `SLOPES`.
    values
        Takes the activation, less that of the baseline where there is one, and the slope, (N, C, h, w) both;
        gives the values of all channels.
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

    slope: SlopeKind
    values: Callable[[Tensor, Tensor], Tensor]
    magnitude: bool = False
    weighs_activation: bool = True
    needs_baseline: bool = False

    def map_of(self, values: Tensor, *, signed: bool = False) -> Tensor:
        """Turn values (N, C, h, w) into maps (N, h, w), float32; with ``signed`` never a magnitude."""
        maps = values.mean(1, dtype=torch.float32)
        return maps.abs() if self.magnitude and not signed else maps


ATTRIBUTION: dict[Attribution, AttributionRule] = {
    "gradient": AttributionRule("derivative", _slope_alone, magnitude=True, weighs_activation=False),
    "gradient-x-activation": AttributionRule("derivative", _weighed),
    "deeplift": AttributionRule("rescale", _weighed, needs_baseline=True),
    "integrated-gradients": AttributionRule("path", _weighed, needs_baseline=True),
    "gradcam": AttributionRule("derivative", _weighed_by_mean),
}


class AttributionOutput(NamedTuple):
    """Values (N, C, h, w) of one map and one target, given by its number, and the logits (N, K)."""

    spec: MapSpec
    target: int
    values: Tensor
    logits: Tensor


def attribute(asked: AttributionInput) -> Iterator[AttributionOutput]:
    """Compute all maps that are asked for, each for all targets, with as few passes as possible.

    Maps whose slopes are of one kind share one forward pass, whatever their layers, and all layers share the
    backward passes: one for each method and target.

    Raises
    ------
    ModelError
        If a layer is not called, has no spatial grid, or there is no rule for a function above it.
    """
    for kind, slopes_of in SLOPES.items():
        maps = [spec for spec in asked.maps if ATTRIBUTION[spec.attribution].slope == kind]
        if maps:
            yield from _from_slopes(replace(asked, maps=maps), slopes_of)


def _from_slopes(
    asked: AttributionInput, slopes_of: Callable[[AttributionInput], Slopes]
) -> Iterator[AttributionOutput]:
    layouts = {layer: asked.baselines.layout(layer, asked.images) for layer in asked.layers}
    slopes = slopes_of(asked)
    logits = slopes.logits.detach()
    for method, i, by_layer in slopes.each:
        for layer, slope in by_layer.items():
            if layouts[layer].only_others_in(slope):
                raise independent_of(layer, "the cells, only on the other tokens,")
        for spec in asked.maps:
            if spec.method == method and spec.layer in by_layer:
                rule, activation = ATTRIBUTION[spec.attribution], slopes.activations[spec.layer].detach()
                if rule.needs_baseline:
                    activation = activation - asked.baseline.activation(spec.layer)
                grid = layouts[spec.layer].grid
                values = rule.values(grid(activation), grid(by_layer[spec.layer]))
                yield AttributionOutput(spec, i, values, logits)
