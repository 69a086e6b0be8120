"""The classifier under evaluation: what it is explained by, and on which patches."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from wsi_saliency.errors import ModelError
from wsi_saliency.evaluation.map_comparison import MapComparison
from wsi_saliency.evaluation.maps import comparable_layers, compared_maps, fitting, main_layer
from wsi_saliency.evaluation.phase import Surroundings, measure_phase, phase_cost
from wsi_saliency.mapspec import PLAIN
from wsi_saliency.models.classifier import probabilities, standard_logits
from wsi_saliency.models.loading import load_chosen
from wsi_saliency.saliency.batches import DEFAULT_BATCH, Batch
from wsi_saliency.saliency.cancellation import refusal, vanishing
from wsi_saliency.saliency.engine import Explainer, choose_device, memory_of
from wsi_saliency.saliency.layers import strided_behind_stem
from wsi_saliency.saliency.network import Network, eval_mode
from wsi_saliency.saliency.reach import Reach
from wsi_saliency.saliency.smoothing import SMOOTHING
from wsi_saliency.saliency.surrogate import surrogate_for
from wsi_saliency.settings import METHODS
from wsi_saliency.workflows.sampling import PatchSample, sample_located, with_margins

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from wsi_saliency.evaluation.maps import PatchMaps
    from wsi_saliency.evaluation.measured import MapKind, Phase
    from wsi_saliency.mapspec import MapSpec
    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.settings import Attribution, EvaluationSettings, Method, Substrate
    from wsi_saliency.urls import Location

    Progress = Callable[[int], object]

log = logging.getLogger(__name__)

_DEFAULT_ATTRIBUTIONS: tuple[Attribution, ...] = ("gradient", "deeplift")


@dataclass(frozen=True)
class EvaluatedClassifier:
    """The classifier under evaluation, on its device, and all methods × attributions × layers compared.

    Parameters
    ----------
    settings
        What is compared and how.
    classifier
        The classifier as it is.
    device
        Where it runs.
    target
        Index of the explained logit.
    network
        What makes the maps that are compared, on a copy.
    batch
        Patches per pass.
    """

    settings: EvaluationSettings
    classifier: Classifier
    device: torch.device
    target: int
    network: Network
    batch: Batch

    @classmethod
    def of(cls, settings: EvaluationSettings) -> EvaluatedClassifier:
        """Load the classifier, and find the methods and layers that it can be explained by.

        Raises
        ------
        ModelError, SettingsError
            If the classifier cannot be loaded, or a method, layer, target or device does not exist.
        """
        classifier = load_chosen(settings)
        for note in classifier.notes:
            log.warning("%s: %s", settings.model, note)
        device = choose_device(settings.device)
        classifier.module.to(device)
        blank = torch.zeros(1, 3, classifier.patch, classifier.patch, device=device)
        maps = compared_maps(
            settings.methods or _available_methods(classifier, settings),
            settings.attributions or _DEFAULT_ATTRIBUTIONS,
            comparable_layers(classifier.module, blank, settings.layers),
        )
        network = Network.of(
            classifier.module, maps, blank, surrogate=settings.surrogate, precision=settings.precision
        )
        network = without_noise(network, asked=settings.attributions)
        _say_where_nothing_is_smoothed(classifier, blank, network)
        batch = Batch(settings.batch or DEFAULT_BATCH[device.type])
        if settings.batch is None and (memory := memory_of(device)):
            batch.size = fitting(network, blank, batch.size, memory)
        return cls(settings, classifier, device, classifier.target_index(settings.target), network, batch)

    @property
    def target_name(self) -> str:
        """Name of the explained class."""
        return self.classifier.class_names[self.target]

    @property
    def total_stride(self) -> int:
        """By how many pixels a picture has to move for the classifier to see the same."""
        return self.network.geometry[self.network.maps[0]].total_stride

    @cached_property
    def main(self) -> tuple[MapSpec, ...]:
        """All methods × attributions at one layer, for what takes too long at every layer."""
        layer = main_layer(self.network).name
        return tuple(spec for spec in self.network.maps if spec.layer == layer)

    @cached_property
    def explainer(self) -> Explainer:
        """What makes all these maps of RGB patches."""
        network = self.network
        asked_as = {spec: (spec.layer,) for spec in network.maps}
        return Explainer(self.classifier, network, asked_as, (self.target,), self.device, self.batch.size)

    def explainer_of(self, maps: Sequence[MapSpec]) -> Explainer:
        """Return what makes some of the maps of RGB patches, as a run does that is asked for them."""
        imitates = any(SMOOTHING[spec.method].imitates for spec in maps)
        surrogate = self.network.surrogate if imitates else None
        network = replace(self.network, maps=tuple(maps), surrogate=surrogate)
        return replace(self.explainer, network=network, batch=self.batch.size)

    def patch_maps(
        self, patches: NDArray[np.uint8], maps: Sequence[MapSpec]
    ) -> dict[MapSpec, NDArray[np.float32]]:
        """Make maps (N, h, w) of RGB patches (N, P, P, 3), all of them together."""
        found = self.explainer(patches, maps).maps
        return {spec: values[:, 0].numpy() for spec, values in found.items()}

    def sample(self, slides: Sequence[Location], *, progress: bool) -> PatchSample:
        """Sample the patches to judge by."""
        s = self.settings
        return sample_located(
            slides,
            self.classifier,
            s.patches,
            self._predicted_positive if s.predicted_positive else None,
            seed=s.seed,
            mpp=s.mpp,
            workers=s.workers,
            progress=progress,
            cache=s,
        )

    def comparison(self, patches: PatchSample) -> MapComparison:
        """Set up the comparison of all maps on some patches."""
        s, images = self.settings, self.classifier.normalised(patches.patches, self.device)
        return MapComparison(
            self.classifier.module,
            self.network,
            images,
            torch.full((len(images),), self.target, device=self.device),
            self.classifier.output,
            self.batch,
            s.step,
            self._substrate(s.deletion_to),
            self._substrate(s.insertion_from),
            s.score_on,
            s.seed,
        )

    def phase_cost(self, comparison: MapComparison) -> int:
        """How many maps `phase` makes."""
        n, moves = len(comparison.images), self.settings.phase_moves
        return phase_cost(self.network, n, self.total_stride, moves)

    def phase(
        self,
        patches: PatchSample,
        comparison: MapComparison,
        explained: Mapping[MapKind, PatchMaps],
        progress: Progress,
    ) -> list[Phase]:
        """Measure how much each map depends on where the picture lies between the network's strides."""
        s = self.settings
        if not self.phase_cost(comparison):
            return []
        around = with_margins(patches, self.total_stride, mpp=s.mpp, workers=s.workers, cache=s)
        surroundings = Surroundings(
            self.classifier.normalised(around.pictures, self.device),
            around.corners,
            around.inside,
            self.total_stride,
        )
        return measure_phase(
            self.network,
            explained,
            surroundings,
            comparison.target,
            self.batch,
            moves=s.phase_moves,
            seed=s.seed,
            progress=progress,
        )

    def _substrate(self, name: Substrate) -> Substrate | Tensor:
        if name != "white":
            return name
        mean, std = (torch.tensor(v, device=self.device) for v in (self.classifier.mean, self.classifier.std))
        return ((1 - mean) / std).view(3, 1, 1)

    @torch.no_grad()
    def _predicted_positive(self, patches: NDArray[np.uint8]) -> NDArray[np.bool_]:
        def positive(some: slice) -> NDArray[np.bool_]:
            images = self.classifier.normalised(patches[some], self.device)
            p = probabilities(standard_logits(self.classifier.module(images)), self.classifier.output)
            return np.asarray((p[:, self.target] > 0.5).cpu().numpy(), bool)

        with eval_mode(self.classifier.module):
            return np.concatenate(list(self.batch.over(len(patches), positive)))


def without_noise(network: Network, asked: Sequence[Attribution]) -> Network:
    """Leave out maps that would be rounding noise.

    Raises
    ------
    ModelError
        If their attributions were asked for, or nothing else is left.
    """
    by_layer: dict[str, dict[Attribution, None]] = defaultdict(dict)
    for spec in network.maps:
        by_layer[spec.layer][spec.attribution] = None
    noise = {
        (attribution, layer)
        for layer, some in by_layer.items()
        for attribution in vanishing(network.module, layer, network.baseline_image, some)
    }
    kept = tuple(spec for spec in network.maps if (spec.attribution, spec.layer) not in noise)
    for attribution, layer in sorted(noise):
        if asked or not kept:
            raise refusal(attribution, layer)
        log.warning("%s at layer %r is left out: its map would be rounding noise", attribution, layer)
    return replace(network, maps=kept) if noise else network


def _say_where_nothing_is_smoothed(classifier: Classifier, blank: Tensor, network: Network) -> None:
    methods = dict.fromkeys(spec.method for spec in network.maps)
    layers = {spec.layer: network.geometry[spec] for spec in network.maps if spec.method == PLAIN}
    for notice in Reach(classifier.module, blank).notices(methods, layers.values()):
        log.warning("%s", notice)


def _available_methods(classifier: Classifier, settings: EvaluationSettings) -> tuple[Method, ...]:
    """All methods that are worth their time.

    The surrogate needs one that is given or comes with the classifier. Averaging over shifts takes five times
    as long as a hook, and is for networks that no hook reaches.
    """
    methods = METHODS
    if strided_behind_stem(classifier.module):
        methods = tuple(m for m in methods if SMOOTHING[m].shifts == 1)
    if settings.surrogate is None:
        try:
            surrogate_for(classifier.module)
        except ModelError as reason:
            log.info("surrogate is left out: %s", reason)
            methods = tuple(m for m in methods if not SMOOTHING[m].imitates)
    return methods
