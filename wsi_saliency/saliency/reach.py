"""Reach: at which layers a smoothing method does something.

Most methods act at strided convolutions. They smooth the gradient at a layer only if one of those lies behind
the layer, on the way to the logits. One that changes what the network computes shows at later layers too, but
smooths nothing there. One that averages over shifts of the patch needs no convolution, only a total stride.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from wsi_saliency.saliency.layers import INPUT, measure, strided_behind_stem
from wsi_saliency.saliency.shifts import NO_SHIFT, shifts_within
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
        smoothing, acts_on = SMOOTHING[method], self._acts_on(method)
        shifted = shifts_within(layer.total_stride, smoothing.shifts) != [NO_SHIFT]
        if shifted or acts_on & set(layer.strided_behind):
            return "smooths"
        return "changes" if smoothing.changes_predictions and acts_on & self._run else "nothing"

    def _acts_on(self, method: Method) -> set[str]:
        acts_on = SMOOTHING[method].acts_on
        return set(acts_on(self._model)) if acts_on else set()

    def notices(self, methods: Iterable[Method], layers: Iterable[LayerGeometry]) -> list[str]:
        """Name the layers where methods smooth nothing, and what helps: a line for those of one effect.

        ``none`` is left out.
        """
        methods = [method for method in methods if not SMOOTHING[method].is_plain]
        found: dict[tuple[Effect, bool, tuple[Method, ...]], list[str]] = defaultdict(list)
        for layer in layers:
            by_effect: dict[Effect, list[Method]] = defaultdict(list)
            for method in methods:
                by_effect[self.effect(method, layer)].append(method)
            by_effect.pop("smooths", None)
            for effect, alike in by_effect.items():
                found[effect, bool(layer.strided_behind), tuple(alike)].append(layer.name)
        return [
            _notice(effect, alike, at, any_behind=behind) + self._help(alike, at)
            for (effect, behind, alike), at in found.items()
        ]

    def _help(self, methods: Sequence[Method], layers: Sequence[str]) -> str:
        """Name what smooths where these methods do not, if anything does."""
        acting = self._run.intersection(*map(self._acts_on, methods)) if INPUT not in layers else set[str]()
        deep = acting & strided_behind_stem(self._model).keys()
        shifting = [name for name, s in SMOOTHING.items() if s.shifts > 1 and name not in methods]
        ways = ["an earlier layer"] * bool(deep) + [f"--layer {INPUT}"] * bool(acting)
        ways += [f"--method {name}" for name in shifting]
        return f"; what helps: {_listed(ways, 'or')}" if ways else ""


def _notice(effect: Effect, methods: Sequence[Method], layers: Sequence[str], *, any_behind: bool) -> str:
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


def _listed(names: Sequence[str], word: str = "and") -> str:
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last
