"""Maps that are nothing but rounding noise, and how they are found.

A normalisation over channels (LayerNorm of each cell, as behind every stage of a ConvNeXt) does not change
when a number is added to all channels of a cell. So the gradient in front of it sums to 0 over the channels,
exactly; and since it does not change when all channels are multiplied either, so does gradient × activation,
but for the normalisation's epsilon. What is left as the mean over channels is rounding, seven digits below
the channels' own values, and looks like a map. Attributions that compare with a baseline do not vanish: they
ask what a finite change does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from wsi_saliency.errors import ModelError
from wsi_saliency.mapspec import MapSpec
from wsi_saliency.saliency.attribution import ATTRIBUTION, AttributionInput, Baselines, attribute

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from wsi_saliency.settings import Attribution

ROUNDING = 1e-5
"""Mean over channels, relative to the channels' own magnitude, below which it is rounding (float32)."""

WITHOUT_BASELINE = tuple(name for name, rule in ATTRIBUTION.items() if not rule.needs_baseline)


def cancels(values: Tensor) -> bool:
    """Tell whether channels cancel each other, so that their mean is rounding noise.

    Parameters
    ----------
    values
        Attribution (N, C, h, w) of some patches, computed in float32 or better. Where it is 0 everywhere,
        nothing cancels.
    """
    magnitude = values.abs().double().mean()
    return bool(values.double().mean(1).abs().mean() < ROUNDING * magnitude)


def vanishing(
    model: nn.Module, layer: str, sample: Tensor, attributions: Iterable[Attribution] = WITHOUT_BASELINE
) -> tuple[Attribution, ...]:
    """Return the attributions whose maps would be rounding noise at a layer; found on an image of noise.

    Parameters
    ----------
    model
        The network, in eval mode.
    layer
        Name as `find_layer` returns it.
    sample
        (1, 3, H, W) floats on the model's device; only its shape matters.
    attributions
        Which to look at; by default those that compare with no baseline, for the others do not vanish.

    Raises
    ------
    ModelError
        If one of them cannot explain the network at this layer.
    """
    random = torch.Generator().manual_seed(0)
    image = torch.randn(sample.shape, generator=random).to(sample)
    target = torch.zeros(1, dtype=torch.long, device=sample.device)
    maps = [MapSpec(layer, "none", name) for name in attributions]
    baselines = Baselines(model, torch.zeros_like(sample))
    asked = AttributionInput(model, maps, image, [target], baselines, steps=1)
    vanish = {found.spec.attribution for found in attribute(asked) if cancels(found.values)}
    return tuple(spec.attribution for spec in maps if spec.attribution in vanish)


def refusal(attribution: Attribution, layer: str) -> ModelError:
    """Say that an attribution's map would be rounding noise at a layer, and what works there."""
    works = " or ".join(name for name, rule in ATTRIBUTION.items() if rule.needs_baseline)
    return ModelError(
        f"{attribution} at layer {layer!r}: the channels cancel each other, and the map would be rounding "
        f"noise (a normalisation over channels follows the layer); choose --attribution {works}, or another "
        "--layer"
    )
