"""Candidates: the maps that are compared, of all methods, attributions and layers of one classifier."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from wsi_saliency.evaluation.controls import blurred_to
from wsi_saliency.evaluation.metrics import total_variation
from wsi_saliency.evaluation.results import MapKind
from wsi_saliency.saliency.drift import DRIFT_PATCHES, measure_drift
from wsi_saliency.saliency.engine import Network, eval_mode, working_copy
from wsi_saliency.saliency.layers import INPUT, LayerGeometry, explainable_stages, find_layer, measure
from wsi_saliency.saliency.smoothing import SMOOTHING, smoothed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from wsi_saliency.saliency.surrogate import Surrogate
    from wsi_saliency.settings import Attribution, Method, Precision

PLAIN: Method = "none"
_DEFAULT_REDUCTIONS = (4, 8, 16)
_MAIN_REDUCTION = 8


@dataclass(frozen=True)
class Candidate:
    """A method, an attribution and a layer, ready to explain.

    ``geometry`` is the layer's, measured under the method.
    """

    kind: MapKind
    network: Network
    geometry: LayerGeometry

    def drift(self, plain: Tensor, smooth: Tensor) -> tuple[float, float]:
        """How far its maps (N, h, w) lie to the lower right of the plain ones: (x, y) in patch pixels."""
        g = self.geometry
        most = g.drift_y / g.reduction, g.drift_x / g.reduction
        if not self.network.drifts or not any(most):
            return 0.0, 0.0
        some = slice(None, None, -(-len(plain) // DRIFT_PATCHES) or 1)
        drift_y, drift_x = measure_drift(plain[some].numpy(), smooth[some].numpy(), most)
        return drift_x * g.reduction, drift_y * g.reduction


def candidates(
    model: nn.Module,
    sample: Tensor,
    methods: Iterable[Method],
    attributions: Iterable[Attribution],
    layers: Sequence[str],
    *,
    surrogate: Surrogate | Path | None = None,
    precision: Precision = "fp32",
    device: torch.device | None = None,
) -> list[Candidate]:
    """Make a network ready to be explained in many ways, each once, on a copy that all of them share.

    ``none`` is always among them, for all others are compared with it.

    Parameters
    ----------
    model
        The classifier's network; it stays as it is.
    sample
        (1, 3, H, W) normalised floats on the model's device.
    methods, attributions, layers
        What is compared; layers by name, as `find_layer` returns them.
    surrogate
        For the method of that name.
    precision, device
        Of the copy's arithmetic; None leaves it where the model is.

    Raises
    ------
    ModelError
        If a layer cannot be measured, or there is no surrogate for the model.
    """
    wanted, layers = list(dict.fromkeys([PLAIN, *methods])), list(dict.fromkeys(layers))
    imitated: Method = next((m for m in wanted if SMOOTHING[m].imitates), PLAIN)
    with eval_mode(model):
        module, stand_in = working_copy(model, sample, layers, imitated, surrogate)
        geometry = {
            (method, layer): _measured(model, method, layer, sample) for method in wanted for layer in layers
        }
    module, blank = module.to(device), torch.zeros_like(sample, device=device)
    number_format = "fp32" if precision == "auto" else precision
    return [
        Candidate(
            MapKind(method, attribution, layer, geometry[method, layer].reduction),
            Network(
                module,
                layer,
                method,
                attribution,
                blank,
                number_format,
                stand_in if SMOOTHING[method].imitates else None,
            ),
            geometry[method, layer],
        )
        for attribution in dict.fromkeys(attributions)
        for layer in layers
        for method in wanted
    ]


def _measured(model: nn.Module, method: Method, layer: str, sample: Tensor) -> LayerGeometry:
    with smoothed(model, PLAIN if SMOOTHING[method].imitates else method):
        return measure(model, layer, sample)


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


def main_layer(compared: Sequence[Candidate]) -> LayerGeometry:
    """Return the layer next to 1/8 of the resolution, for what is done at one only; rather not the input."""
    hidden = [c.geometry for c in compared if c.kind.layer != INPUT]
    layers = hidden or [c.geometry for c in compared]
    return min(layers, key=lambda layer: abs(layer.reduction - _MAIN_REDUCTION))


class Explained(NamedTuple):
    """The maps of one kind, of all patches.

    ``maps``: (N, h, w) float32 on the CPU, larger is more important. ``total_variation``: (N,) float64, over
    all channels of the attribution. ``placement``: reduction, and middle (x, y) of cell 0, in patch pixels.
    """

    maps: Tensor
    total_variation: Tensor
    placement: tuple[float, float, float] | None = None


def explain_all(
    compared: Sequence[Candidate],
    images: Tensor,
    target: Tensor,
    batch: int,
    progress: Callable[[int], object] | None = None,
) -> tuple[dict[MapKind, Explained], dict[Method, Tensor]]:
    """Explain images in all ways, and make for each method the blur of ``none`` that is as smooth as it is.

    Parameters
    ----------
    compared
        What `candidates` has made.
    images
        (N, 3, H, W) normalised floats on the networks' device.
    target
        (N,) int64, likewise.
    batch
        Images per pass.
    progress
        Called with the number of images explained since the last call: N for each candidate.

    Returns
    -------
    The maps by kind, controls ``blurred-none`` included, and the logits (N, K), on the CPU, by method.
    """
    explained: dict[MapKind, Explained] = {}
    logits: dict[Method, Tensor] = {}
    for plain in (c for c in compared if c.network.method == PLAIN):
        rivals = [c for c in compared if _same_question(c, plain) and c is not plain]
        seen = _Seen()
        for start in range(0, len(images), batch):
            some = images[start : start + batch], target[start : start + batch]
            values = seen.explain(plain, *some)
            for rival in rivals:
                smooth = seen.explain(rival, *some)
                seen.note(_blur_of(rival), plain, blurred_to(values, total_variation(smooth)))
            if progress is not None:
                progress(len(some[0]) * (1 + len(rivals)))
        logits |= {method: torch.cat(parts) for method, parts in seen.logits.items()}
        explained |= seen.placed(plain, rivals)
    return explained, logits


def _same_question(a: Candidate, b: Candidate) -> bool:
    return (a.kind.attribution, a.kind.layer) == (b.kind.attribution, b.kind.layer)


def _blur_of(rival: Candidate) -> MapKind:
    return replace(rival.kind, control="blurred-none")


class _Seen:
    """Collects the maps of one attribution and layer, batch by batch."""

    def __init__(self) -> None:
        self.logits: dict[Method, list[Tensor]] = defaultdict(list)
        self._maps: dict[MapKind, list[Tensor]] = defaultdict(list)
        self._variations: dict[MapKind, list[Tensor]] = defaultdict(list)

    def explain(self, candidate: Candidate, images: Tensor, target: Tensor) -> Tensor:
        """Explain images, keep their maps, and return all channels (n, C, h, w)."""
        values, logits = candidate.network(images, target)
        if values.device.type == "mps":  # which has no float64
            values = values.cpu()
        self.logits[candidate.network.method].append(logits.float().cpu())
        self.note(candidate.kind, candidate, values)
        return values

    def note(self, kind: MapKind, candidate: Candidate, values: Tensor) -> None:
        self._maps[kind].append(candidate.network.maps(values).cpu())
        self._variations[kind].append(total_variation(values).cpu())

    def placed(self, plain: Candidate, rivals: Sequence[Candidate]) -> dict[MapKind, Explained]:
        """Join the batches, and place the maps where a run would."""
        maps = {kind: torch.cat(parts) for kind, parts in self._maps.items()}
        drifts = {rival.kind: rival.drift(maps[plain.kind], maps[rival.kind]) for rival in rivals}
        geometry = {plain.kind: plain.geometry} | {rival.kind: rival.geometry for rival in rivals}
        explained = {}
        for kind, joined in maps.items():
            g, (x, y) = geometry.get(kind, plain.geometry), drifts.get(kind, (0.0, 0.0))
            place = float(g.reduction), g.centre_x - x, g.centre_y - y
            explained[kind] = Explained(joined, torch.cat(self._variations[kind]), place)
        return explained
