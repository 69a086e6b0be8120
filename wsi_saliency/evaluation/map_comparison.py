"""The comparison of maps: all that a network makes of the same patches, and controls, scored alike."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from wsi_saliency.evaluation.causal import CausalScorer
from wsi_saliency.evaluation.controls import centred_gaussian, random_maps
from wsi_saliency.evaluation.maps import PatchMaps, explain_all, main_layer
from wsi_saliency.evaluation.measured import KindScores, MapKind
from wsi_saliency.evaluation.metrics import total_variation
from wsi_saliency.mapspec import PLAIN
from wsi_saliency.models.classifier import probabilities
from wsi_saliency.saliency.smoothing import SMOOTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from wsi_saliency.models.classifier import Output
    from wsi_saliency.saliency.batches import Batch
    from wsi_saliency.saliency.network import Network
    from wsi_saliency.settings import Method, ScoreOn, Substrate

    Progress = Callable[[int], object]
    Done = TypeVar("Done")

RANDOM = MapKind(None, None, None, None, "random")
CENTRED = MapKind(None, None, None, None, "centred-gaussian")


class MapScores(NamedTuple):
    """What a comparison of maps finds; the maps are kept to be shown."""

    scored: list[KindScores]
    prediction_difference: dict[str, NDArray[np.float64]]
    explained: dict[MapKind, PatchMaps]


@dataclass
class MapComparison:
    """A network with its maps, the patches that they are made of, and how they are scored.

    Parameters
    ----------
    model
        The classifier's network as it is, on the images' device; it comes back as it was.
    network
        What makes the maps that are compared; they are `compared_maps`.
    images, target
        (N, 3, H, W) normalised floats, and (N,) int64.
    output
        What turns logits into probabilities.
    batch
        Images per pass; halved when they do not fit.
    step, deletion_to, insertion_from
        As in `CausalScorer`.
    score_on
        ``original``: curves are those of the classifier as it is. ``method``: those of the classifier as the
        method changes it, and for the method's control likewise.
    seed
        Of the random maps.
    """

    model: nn.Module
    network: Network
    images: Tensor
    target: Tensor
    output: Output
    batch: Batch
    step: int | None = None
    deletion_to: Substrate | Tensor = "zeros"
    insertion_from: Substrate | Tensor = "blur"
    score_on: ScoreOn = "original"
    seed: int = 0
    _scorers: dict[Method, CausalScorer] = field(default_factory=dict, init=False)

    @property
    def cost(self) -> int:
        """Maps to make, and images that the classifier sees while they are scored."""
        maps = self.network.maps
        kinds = len(maps) + sum(spec.method != PLAIN for spec in maps) + 2
        return len(maps) * len(self.images) + kinds * self.scorer(PLAIN).cost

    @cached_property
    def probabilities(self) -> Tensor:
        """What the classifier says of the target, (N,) float64 on the CPU."""
        return self.scorer(PLAIN).whole

    def passes(self, work: Callable[[Tensor, Tensor], Done]) -> Iterator[Done]:
        """Do something for images and targets, pass by pass; yield what it returns."""
        return self.batch.over(len(self.images), lambda some: work(self.images[some], self.target[some]))

    def of(self, some: slice) -> MapComparison:
        """Return the comparison on some of the patches."""
        return replace(self, images=self.images[some], target=self.target[some])

    def run(self, progress: Progress | None = None) -> MapScores:
        """Explain and score; ``progress`` is called with what is done since the last call, `cost` in all."""
        explained, logits = explain_all(self.network, self.images, self.target, self.batch, progress)
        scored = [self._scored(kind, found, progress) for kind, found in explained.items()]
        scored.sort(key=lambda s: s.kind.control is not None)  # methods first; a stable sort
        grain = main_layer(self.network)  # a random map as coarse as maps are
        controls = {
            RANDOM: random_maps(len(self.images), grain.cell_h, grain.cell_w, self.seed),
            CENTRED: centred_gaussian(*self.images.shape[2:]).expand(len(self.images), -1, -1),
        }
        for kind, maps in controls.items():
            scored.append(self._scored(kind, PatchMaps(maps, total_variation(maps)), progress))
        return MapScores(scored, self._differences(logits), explained)

    def scorer(self, method: Method) -> CausalScorer:
        """Return what scores the maps of a method; most methods share one."""
        changed = self.score_on == "method" and SMOOTHING[method].changes_predictions
        key = method if changed else PLAIN
        if key not in self._scorers:
            self._scorers[key] = CausalScorer(
                self.model,
                self.images,
                self.target,
                self.step,
                deletion_to=self.deletion_to,
                insertion_from=self.insertion_from,
                batch_size=self.batch,
                output=self.output,
                method=key,
                surrogate=self.network.surrogate,
            )
        return self._scorers[key]

    def _scored(self, kind: MapKind, found: PatchMaps, progress: Progress | None) -> KindScores:
        scorer = self.scorer(kind.method or PLAIN)
        curves = scorer(found.maps, placement=found.placement, progress=progress)
        return KindScores(
            kind,
            curves.insertion.numpy(),
            curves.deletion.numpy(),
            curves.insertion_auc.numpy(),
            curves.deletion_auc.numpy(),
            found.total_variation.double().numpy(),
            np.full(len(scorer.whole), np.nan),
        )

    def _differences(self, logits: dict[Method, Tensor]) -> dict[str, NDArray[np.float64]]:
        """|p_method − p| of the target, (N,), by method."""
        chosen = self.target.cpu()[:, None]
        p = {m: probabilities(x.double(), self.output).gather(1, chosen)[:, 0] for m, x in logits.items()}
        return {method: (value - p[PLAIN]).abs().numpy() for method, value in p.items()}
