"""Reach: at which layers a smoothing method does something.

A method acts at strided convolutions. It smooths the gradient at a layer only if one of those lies behind the
layer, on the way to the logits. One that changes what the network computes shows at later layers too, but
smooths nothing there.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from wsi_saliency.saliency.layers import INPUT, measure
from wsi_saliency.saliency.smoothing import SMOOTHING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn

    from wsi_saliency.saliency.layers import LayerGeometry
    from wsi_saliency.settings import Method

Effect = Literal["smooths", "changes", "nothing"]


class Reach:
    """What smoothing methods do at the layers of one network.

    Parameters
    ----------
    model
        The network, in eval mode, with no method active on it.
    images
        Float tensor (N, 3, H, W) that fits the network; its values do not matter.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self._model, self._images = model, images

    @cached_property
    def _run(self) -> set[str]:
        """Names of the strided convolutions that the logits depend on."""
        return set(measure(self._model, INPUT, self._images).strided_behind)

    def effect(self, method: Method, layer: LayerGeometry) -> Effect:
        """Say what a method does to a layer's map.

        ``"smooths"``: it averages the gradient on its way back to the layer, or stands in for what would
        roughen it. ``"changes"``: it does not, but activations and predictions are others.
        ``"nothing"``: the map is that of ``none``.
        """
        smoothing = SMOOTHING[method]
        acts_on = smoothing.acts_on(self._model).keys() if smoothing.acts_on else set[str]()
        if acts_on & set(layer.strided_behind):
            return "smooths"
        return "changes" if smoothing.changes_predictions and acts_on & self._run else "nothing"

    def notices(self, methods: Iterable[Method], layers: Iterable[LayerGeometry]) -> list[str]:
        """Name the layers where methods smooth nothing: a line for those of one effect, ``none`` left out."""
        methods = [method for method in methods if SMOOTHING[method].acts_on is not None]
        found: dict[tuple[Effect, bool, tuple[Method, ...]], list[str]] = defaultdict(list)
        for layer in layers:
            by_effect: dict[Effect, list[Method]] = defaultdict(list)
            for method in methods:
                by_effect[self.effect(method, layer)].append(method)
            by_effect.pop("smooths", None)
            for effect, alike in by_effect.items():
                found[effect, bool(layer.strided_behind), tuple(alike)].append(layer.name)
        return [_notice(*key, names) for key, names in found.items()]


def _notice(effect: Effect, any_behind: bool, methods: Sequence[Method], layers: Sequence[str]) -> str:
    who, one = _listed(methods), len(methods) == 1
    such = f" that {who} {'acts' if one else 'act'} on" if any_behind else ""
    where = f"{'layer' if len(layers) == 1 else 'layers'} {_listed(layers)}"
    if effect == "nothing":
        what = f"{who} {'changes' if one else 'change'} nothing there"
    else:
        what = (
            f"{who} {'smooths' if one else 'smooth'} nothing there, though activations and predictions change"
        )
    return f"no strided convolution{such} lies behind {where}: {what}"


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
