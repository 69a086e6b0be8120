"""The maps that are compared: of all methods, attributions and layers of one classifier, made together."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from wsi_saliency.evaluation.controls import blurred_to
from wsi_saliency.evaluation.measured import MapKind
from wsi_saliency.evaluation.metrics import total_variation
from wsi_saliency.mapspec import PLAIN, MapSpec
from wsi_saliency.saliency.batches import Batch, fitting_batch
from wsi_saliency.saliency.drift import DRIFT_PATCHES
from wsi_saliency.saliency.layers import INPUT, LayerGeometry, explainable_stages, find_layer
from wsi_saliency.saliency.network import eval_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from wsi_saliency.saliency.batches import DeviceMemory
    from wsi_saliency.saliency.network import Network
    from wsi_saliency.settings import Attribution, Method

_DEFAULT_REDUCTIONS = (4, 8, 16)
_MAIN_REDUCTION = 8


def compared_maps(
    methods: Iterable[Method], attributions: Iterable[Attribution], layers: Iterable[str]
) -> tuple[MapSpec, ...]:
    """Combine attributions, layers and methods, each once.

    ``none`` is always among the methods, and the first, for all others are compared with it.
    """
    wanted, layers = dict.fromkeys([PLAIN, *methods]), dict.fromkeys(layers)
    return tuple(
        MapSpec(layer, method, attribution)
        for attribution in dict.fromkeys(attributions)
        for layer in layers
        for method in wanted
    )


def plain_of(spec: MapSpec) -> MapSpec:
    """Return the map that a map is compared with: of the same layer and attribution, not smoothed."""
    return replace(spec, method=PLAIN)


def kind_of(network: Network, spec: MapSpec) -> MapKind:
    """Say which map it is, in the words of an evaluation."""
    return MapKind(spec.method, spec.attribution, spec.layer, network.geometry[spec].reduction)


def comparable_layers(model: nn.Module, sample: Tensor, asked: Sequence[str]) -> list[str]:
    """Find the layers that are asked for, each once.

    By default those are the input, the stages at 1/4, 1/8 and 1/16, as far as there are such, and the last.

    Raises
    ------
    ModelError
        If a layer that was asked for is not there.
    """
    with eval_mode(model):
        if asked:
            return list(dict.fromkeys(find_layer(model, layer, sample) for layer in asked))
        stages = explainable_stages(model, sample)
    last_at = {stage.reduction: stage.name for stage in stages}
    hidden = [last_at[r] for r in _DEFAULT_REDUCTIONS if r in last_at]
    return list(dict.fromkeys([INPUT, *hidden, *(stage.name for stage in stages[-1:])]))


def main_layer(network: Network) -> LayerGeometry:
    """Return the layer next to 1/8 of the resolution, for what is done at one only; rather not the input."""
    hidden = [spec for spec in network.maps if spec.layer != INPUT]
    layers = [network.geometry[spec] for spec in hidden or network.maps]
    return min(layers, key=lambda layer: abs(layer.reduction - _MAIN_REDUCTION))


class PatchMaps(NamedTuple):
    """The maps of one kind, of all patches.

    ``maps``: (N, h, w) float32 on the CPU, larger is more important. ``total_variation``: (N,) float64, over
    all channels of the attribution. ``placement``: reduction, and middle (x, y) of cell 0, in patch pixels.
    """

    maps: Tensor
    total_variation: Tensor
    placement: tuple[float, float, float] | None = None


def explain_all(
    network: Network,
    images: Tensor,
    target: Tensor,
    batch: int | Batch,
    progress: Callable[[int], object] | None = None,
) -> tuple[dict[MapKind, PatchMaps], dict[Method, Tensor]]:
    """Make all maps of some images, and for each method the blur of ``none`` that is as smooth as it is.

    All maps of a batch come from one call of the network. Memory holds, of one batch, the graph of a forward
    pass and all channels of those plain maps that rivals are still to come for.

    Parameters
    ----------
    network
        Its maps are compared; with each, the plain one is among them, as `compared_maps` sees to.
    images
        (N, 3, H, W) normalised floats on the network's device.
    target
        (N,) int64, likewise.
    batch
        Images per pass; halved when they do not fit.
    progress
        Called with the number of maps made since the last call: N for each of the network's, blurs not
        counted.

    Returns
    -------
    The maps by kind, controls ``blurred-none`` included, and the logits (N, K), on the CPU, by method.
    """
    collected = _MapCollector(network, progress)
    logits: dict[Method, list[Tensor]] = defaultdict(list)
    passes = Batch.of(batch).over(len(images), lambda some: collected.explain(images[some], target[some]))
    for by_method in passes:
        for method, found in by_method.items():
            logits[method].append(found.float().cpu())
    return collected.placed(), {method: torch.cat(parts) for method, parts in logits.items()}


def fitting(network: Network, image: Tensor, most: int, memory: DeviceMemory) -> int:
    """Return of how many images (1, 3, H, W) all maps can be made at a time; see `fitting_batch`."""

    def explain(n: int) -> None:
        targets = torch.zeros(n, dtype=torch.long, device=image.device)
        _MapCollector(network, None).explain(image.expand(n, -1, -1, -1), targets)

    return fitting_batch(most, memory, explain)


class _MapCollector:
    """Collects the maps of a network and their blurs, batch by batch."""

    def __init__(self, network: Network, progress: Callable[[int], object] | None) -> None:
        self._network, self._progress = network, progress
        self._rivals = Counter(plain_of(spec) for spec in network.maps if spec.method != PLAIN)
        self._maps: dict[MapKind, list[Tensor]] = defaultdict(list)
        self._variations: dict[MapKind, list[Tensor]] = defaultdict(list)

    def explain(self, images: Tensor, target: Tensor) -> dict[Method, Tensor]:
        """Keep the maps of a batch, of all of them or of none; returns its logits by method."""
        batch = _Batch(self._rivals)

        def take(spec: MapSpec, _: int, values: Tensor) -> None:
            self._take(spec, values.detach(), batch)
            self._show(len(values))

        plain_first = sorted(self._network.maps, key=lambda spec: spec.method != PLAIN)
        try:
            logits = self._network.explain(images, [target], take, plain_first)
        except torch.OutOfMemoryError:
            self._show(-batch.taken * len(images))
            raise
        for kind, (maps, variation) in batch.found.items():
            self._maps[kind].append(maps)
            self._variations[kind].append(variation)
        return logits

    def _show(self, maps: int) -> None:
        if self._progress is not None and maps:
            self._progress(maps)

    def _take(self, spec: MapSpec, values: Tensor, batch: _Batch) -> None:
        if values.device.type == "mps":  # which has no float64
            values = values.cpu()
        kind, variation = kind_of(self._network, spec), total_variation(values)
        batch.found[kind] = self._kept(spec, values, variation)
        if spec.method == PLAIN:
            batch.keep(spec, values)
        else:
            blurred = blurred_to(batch.plain(spec), variation)
            batch.found[_blur_of(kind)] = self._kept(spec, blurred, total_variation(blurred))
        batch.taken += 1

    def _kept(self, spec: MapSpec, values: Tensor, variation: Tensor) -> tuple[Tensor, Tensor]:
        return self._network.map_of(spec, values), variation.cpu()

    def placed(self) -> dict[MapKind, PatchMaps]:
        """Join the batches, and place the maps where a run would; in the order of the network's maps."""
        maps = {kind: torch.cat(parts) for kind, parts in self._maps.items()}
        explained = {}
        for spec in self._network.maps:
            kind, plain = kind_of(self._network, spec), plain_of(spec)
            drift = self._drift(spec, maps[kind_of(self._network, plain)], maps[kind])
            placements = {kind: _placement(self._network.geometry[spec], *drift)}
            if spec != plain:
                placements[_blur_of(kind)] = _placement(self._network.geometry[plain])
            for one, place in placements.items():
                explained[one] = PatchMaps(maps[one], torch.cat(self._variations[one]), place)
        return explained

    def _drift(self, spec: MapSpec, plain: Tensor, smooth: Tensor) -> tuple[float, float]:
        some = slice(None, None, -(-len(plain) // DRIFT_PATCHES) or 1)
        return self._network.drift(spec, plain[some], smooth[some])


class _Batch:
    """The maps found of a batch; keeps plain values (n, C, h, w) until each rival has asked for them once."""

    def __init__(self, rivals: Counter[MapSpec]) -> None:
        self.found: dict[MapKind, tuple[Tensor, Tensor]] = {}  # and their total variation
        self.taken = 0  # maps, but for blurs
        self._to_come = Counter(rivals)
        self._values: dict[MapSpec, Tensor] = {}

    def keep(self, plain: MapSpec, values: Tensor) -> None:
        if self._to_come[plain]:
            self._values[plain] = values

    def plain(self, rival: MapSpec) -> Tensor:
        plain = plain_of(rival)
        self._to_come[plain] -= 1
        return self._values[plain] if self._to_come[plain] else self._values.pop(plain)


def _blur_of(rival: MapKind) -> MapKind:
    return replace(rival, control="blurred-none")


def _placement(
    layer: LayerGeometry, drift_x: float = 0.0, drift_y: float = 0.0
) -> tuple[float, float, float]:
    return float(layer.reduction), layer.centre_x - drift_x, layer.centre_y - drift_y
