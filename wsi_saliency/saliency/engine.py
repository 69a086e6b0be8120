"""The engine: patches of one classifier in, all their maps out, on one device and in one number format."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wsi_saliency.errors import ModelError, SettingsError
from wsi_saliency.mapspec import PLAIN, MapSpec
from wsi_saliency.saliency.batches import DEFAULT_BATCH, Batch, CudaMemory, fitting_batch
from wsi_saliency.saliency.cancellation import refusal, vanishing
from wsi_saliency.saliency.layers import find_layer
from wsi_saliency.saliency.network import Network, eval_mode
from wsi_saliency.saliency.smoothing import SMOOTHING
from wsi_saliency.settings import DEFAULT_ATTRIBUTION, DEFAULT_METHOD, default_layer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.saliency.batches import DeviceMemory
    from wsi_saliency.saliency.layers import LayerGeometry
    from wsi_saliency.settings import Attribution, Method, Precision


class Explanation(NamedTuple):
    """Maps of some patches and what the classifier said of them.

    ``maps`` (N, T, h, w) for each map, T targets: float32 on the CPU, the mean over the layer's channels; its
    magnitude where the attribution is one.
    ``logits`` (N, K): float32 on the CPU, of the classifier as it is, or as the first method changes it where
    all methods change it.
    """

    maps: Mapping[MapSpec, Tensor]
    logits: Tensor


def resolve_maps(
    model: nn.Module,
    sample: Tensor,
    *,
    layers: Sequence[str] = (),
    methods: Sequence[Method] = (DEFAULT_METHOD,),
    attributions: Sequence[Attribution] = (DEFAULT_ATTRIBUTION,),
) -> dict[MapSpec, tuple[str, ...]]:
    """Combine layers, attributions and methods, each once; without layers, each attribution has its own.

    Returns the maps, and for each the texts by which its layer was named.

    Parameters
    ----------
    model
        The network.
    sample
        (1, 3, H, W) floats that fit it.
    layers
        As `find_layer` takes them.

    Raises
    ------
    ModelError
        If there is no such layer.
    """
    texts = {attribution: layers or [default_layer(attribution)] for attribution in attributions}
    with eval_mode(model):
        names = {text: find_layer(model, text, sample) for some in texts.values() for text in some}
    maps: dict[MapSpec, tuple[str, ...]] = {}
    for text, name in names.items():
        for attribution in attributions:
            for method in methods if text in texts[attribution] else ():
                spec = MapSpec(name, method, attribution)
                maps[spec] = (*maps.get(spec, ()), text)
    return maps


@dataclass
class Explainer:
    """Explains patches of one classifier by several maps, on a copy of its network.

    Parameters
    ----------
    classifier
        The classifier; its module stays as it is.
    network
        The copy, with its maps and their layers.
    asked_as
        For each map, the texts by which its layer was named.
    targets
        Indices of the explained logits.
    device
        Where the network runs.
    batch
        Patches per pass; halved for good when they do not fit into the device's memory.
    """

    classifier: Classifier
    network: Network
    asked_as: Mapping[MapSpec, tuple[str, ...]]
    targets: tuple[int, ...]
    device: torch.device
    batch: int

    @classmethod
    def of(
        cls,
        classifier: Classifier,
        *,
        layers: Sequence[str] = (),
        targets: Sequence[str] = (),
        methods: Sequence[Method] = (DEFAULT_METHOD,),
        attributions: Sequence[Attribution] = (DEFAULT_ATTRIBUTION,),
        surrogate: Path | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        batch: int | None = None,
        signed: bool = False,
    ) -> Explainer:
        """Resolve layers, targets and device for a classifier, and measure the layers.

        ``layers`` and ``targets`` left out are the default ones; ``("all",)`` are all targets.

        Raises
        ------
        ModelError
            If a layer or a target is unknown or cannot be explained.
        SettingsError
            If there is no such device.
        """
        where = choose_device(device)
        indices = classifier.target_indices(targets)
        blank = torch.zeros(1, 3, classifier.patch, classifier.patch)
        maps = resolve_maps(
            classifier.module, blank, layers=layers, methods=methods, attributions=attributions
        )
        network = Network.of(
            classifier.module,
            tuple(maps),
            blank,
            surrogate=surrogate,
            precision=precision,
            device=where,
            signed=signed,
        )
        by_layer: dict[str, list[Attribution]] = defaultdict(list)
        for spec in maps:
            by_layer[spec.layer].append(spec.attribution)
        for layer, some in by_layer.items():
            for attribution in vanishing(network.module, layer, network.baseline_image, set(some)):
                raise refusal(attribution, layer)
        made = cls(classifier, network, maps, indices, where, batch or DEFAULT_BATCH[where.type])
        if batch is None and (memory := memory_of(where)):
            made.batch = fitting_batch(made.batch, memory, made._explain_blank)
        return made

    @property
    def maps(self) -> tuple[MapSpec, ...]:
        """What is made of each patch."""
        return self.network.maps

    def geometry(self, spec: MapSpec) -> LayerGeometry:
        """Return the layer of a map, measured under its method."""
        return self.network.geometry[spec]

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the explained classes."""
        return tuple(self.classifier.class_names[i] for i in self.targets)

    @property
    def may_drift(self) -> tuple[MapSpec, ...]:
        """Maps that may lie elsewhere than the plain ones, for which `drift` has something to measure."""
        return tuple(spec for spec in self.maps if self.network.may_drift(spec))

    def drift(self, patches: NDArray[np.uint8]) -> dict[MapSpec, tuple[float, float]]:
        """Measure on patches (N, P, P, 3) how far methods move their maps: (x, y) in patch pixels."""
        if not self.may_drift or not len(patches):
            return dict.fromkeys(self.may_drift, (0.0, 0.0))
        plain = {spec: replace(spec, method=PLAIN) for spec in self.may_drift}
        found = self(patches, tuple(dict.fromkeys([*plain, *plain.values()]))).maps
        return {
            spec: self.network.drift(spec, found[plain[spec]].flatten(0, 1), found[spec].flatten(0, 1))
            for spec in plain
        }

    def __call__(self, patches: NDArray[np.uint8], maps: Sequence[MapSpec] | None = None) -> Explanation:
        """Explain patches (N, P, P, 3), RGB, by all maps, or by those that are named."""
        batch = Batch(self.batch)
        try:
            passes = batch.over(len(patches), lambda some: self._explain(patches[some], maps or self.maps))
            parts = list(passes)
        except torch.OutOfMemoryError as e:
            raise ModelError(
                f"a single patch does not fit into the memory of {self.device}; "
                "use --device cpu or a smaller --patch"
            ) from e
        finally:
            self.batch = batch.size
        joined = {spec: torch.cat([part.maps[spec] for part in parts]) for spec in parts[0].maps}
        return Explanation(joined, torch.cat([part.logits for part in parts]))

    def _explain_blank(self, n: int) -> None:
        side = self.classifier.patch
        self._explain(np.full((n, side, side, 3), 255, np.uint8), self.maps)

    def _explain(self, patches: NDArray[np.uint8], maps: Sequence[MapSpec]) -> Explanation:
        found: dict[MapSpec, dict[int, Tensor]] = {spec: {} for spec in maps}

        def take(spec: MapSpec, target: int, values: Tensor) -> None:
            found[spec][target] = self.network.map_of(spec, values)

        images = self.classifier.normalised(patches, self.device)
        targets = [torch.full((len(patches),), i, device=self.device) for i in self.targets]
        logits = self.network.explain(images, targets, take, maps)
        stacked = {spec: torch.stack([by[i] for i in range(len(targets))], 1) for spec, by in found.items()}
        said = logits[min(logits, key=lambda method: SMOOTHING[method].changes_predictions)]
        return Explanation(stacked, said.float().cpu())


def memory_of(device: torch.device) -> DeviceMemory | None:
    """Return the memory of a device if it decides how many patches go together."""
    return CudaMemory(device) if device.type == "cuda" else None


def choose_device(name: str) -> torch.device:
    """Return the device of that name; ``"auto"`` is a GPU where there is one.

    Raises
    ------
    SettingsError
        If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    counts = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}
    if kind not in counts or (index and not index.isdigit()):
        raise SettingsError(f"unknown device {name!r}; --device takes auto, cpu, cuda, cuda:INDEX or mps")
    if int(index or 0) >= counts[kind]:
        raise SettingsError(f"there is no device {name!r} here; use --device auto or cpu")
    return torch.device(name)
