"""The engine: patches in, maps out, on one device and in one number format."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from wsi_saliency.errors import ModelError, SettingsError
from wsi_saliency.saliency.attribution import ATTRIBUTION, Attributed, Baseline, Question
from wsi_saliency.saliency.cancellation import refusal, vanishing
from wsi_saliency.saliency.drift import measure_drift
from wsi_saliency.saliency.folding import own_copy
from wsi_saliency.saliency.layers import LayerGeometry, find_layer, measure
from wsi_saliency.saliency.smoothing import SMOOTHING, smoothed
from wsi_saliency.saliency.surrogate import Surrogate, surrogate_for
from wsi_saliency.settings import DEFAULT_ATTRIBUTION, DEFAULT_METHOD, default_layer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.saliency.folding import Trial
    from wsi_saliency.settings import Attribution, Method, Precision

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PLAIN: Method = "none"
DEFAULT_BATCH = {"cuda": 128, "mps": 32, "cpu": 16}


class Explanation(NamedTuple):
    """Maps of some patches and what the classifier said of them.

    ``maps`` (N, h, w): float32 on the CPU, the mean over the layer's channels; its magnitude where the
    attribution is one.
    ``logits`` (N, K): float32 on the CPU.
    """

    maps: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Noise:
    """SmoothGrad: explain ``n`` copies of each image with Gaussian noise of ``sigma``, and average."""

    n: int = 1
    sigma: float = 0.0
    seed: int = 0


@dataclass
class Network:
    """A network, one of its layers, and how that is explained.

    Parameters
    ----------
    module
        The network; it is changed while it explains, and as it was afterwards.
    layer
        Name of a module, or ``"input"``.
    method, attribution
        Keys of `SMOOTHING` and `ATTRIBUTION`.
    baseline_image
        (1, 3, H, W) on the network's device.
    precision
        Number format of the arithmetic.
    surrogate
        For the method of that name; made for this network, or for the one that it is a copy of.
    steps
        Nodes of integrated gradients.
    noise
        SmoothGrad, or None.
    signed
        Keep the sign of maps that are a magnitude else.
    """

    module: nn.Module
    layer: str
    method: Method
    attribution: Attribution
    baseline_image: Tensor
    precision: Precision = "fp32"
    surrogate: Surrogate | None = None
    steps: int = 50
    noise: Noise | None = None
    signed: bool = False
    _baseline: Baseline = field(init=False)

    def __post_init__(self) -> None:
        if self.surrogate is not None:
            self.surrogate.accept(self.module)  # where it is now: moved, it has other marks
        self._baseline = Baseline(self.module, self.layer, self.baseline_image)

    def __call__(self, images: Tensor, target: Tensor) -> Attributed:
        """Explain images (N, 3, H, W), a target (N,) each: values (N, C, h, w) and logits (N, K).

        Raises
        ------
        ModelError
            If the layer is not called, has no spatial grid, or there is no rule for a function above it.
        """
        with eval_mode(self.module), smoothed(self.module, self.method, self.surrogate), self._arithmetic():
            if self.noise is None:
                return self._ask(images, target)
            total, logits = torch.zeros(()), self._ask(images, target).logits
            for copy in self._noisy(images, self.noise):
                total = total + self._ask(copy, target).values / self.noise.n
            return Attributed(total, logits)

    @property
    def drifts(self) -> bool:
        """Whether the method moves its maps: the gradient, to one side, and no activation holds it."""
        weighed = ATTRIBUTION[self.attribution].weighs_activation
        return SMOOTHING[self.method].moves_gradient and not weighed

    @property
    def is_magnitude(self) -> bool:
        """Whether its maps are magnitudes, not signed evidence."""
        return ATTRIBUTION[self.attribution].magnitude and not self.signed

    @property
    def quantity(self) -> str:
        """What a map's values are, such as ``|gradient|`` or ``deeplift``."""
        return f"|{self.attribution}|" if self.is_magnitude else self.attribution

    def maps(self, values: Tensor) -> Tensor:
        """Turn values (N, C, h, w) into maps (N, h, w), float32."""
        return ATTRIBUTION[self.attribution].map_of(values, signed=self.signed)

    def _ask(self, images: Tensor, target: Tensor) -> Attributed:
        question = Question(self.module, self.layer, images, target, self._baseline, self.steps)
        return ATTRIBUTION[self.attribution].compute(question)

    @staticmethod
    def _noisy(images: Tensor, noise: Noise) -> Iterator[Tensor]:
        random = torch.Generator(images.device).manual_seed(noise.seed)
        for _ in range(noise.n):
            # the same noise for every image, so that a batch is explained as its images are one by one
            one = torch.randn(images.shape[1:], generator=random, device=images.device, dtype=images.dtype)
            yield images + noise.sigma * one

    def _arithmetic(self) -> AbstractContextManager[object]:
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(self.baseline_image.device.type, dtype) if dtype else nullcontext()


def working_copy(
    model: nn.Module,
    images: Tensor,
    layers: Collection[str],
    method: Method,
    surrogate: Surrogate | Path | None = None,
    trial: Trial | None = None,
) -> tuple[nn.Module, Surrogate | None]:
    """Return a copy of a network to explain layers of, and its surrogate if the method needs one.

    ``trial`` is what `try_out` has said of the network; it is tried on the images if left out.

    Raises
    ------
    ModelError
        If there is no surrogate for this network, or the file cannot be read.
    """
    if not SMOOTHING[method].imitates:
        return own_copy(model, images, layers, trial), None
    if not isinstance(surrogate, Surrogate):
        surrogate = surrogate_for(model, surrogate)
    surrogate.check(model)
    return own_copy(model, images, {*layers, *surrogate.layers}, trial), surrogate


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch a network to eval mode for a while; every module gets its own flag back."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True


@dataclass
class Explainer:
    """Explains patches of one classifier with fixed settings, on a copy of its network.

    Parameters
    ----------
    classifier
        The classifier; its module stays as it is.
    network
        The copy, with its layer, method and attribution.
    geometry
        The layer, measured under the smoothing method.
    target
        Index of the explained logit.
    device
        Where the network runs.
    batch
        Patches per pass; halved for good when they do not fit into the device's memory.
    """

    classifier: Classifier
    network: Network
    geometry: LayerGeometry
    target: int
    device: torch.device
    batch: int

    @classmethod
    def of(
        cls,
        classifier: Classifier,
        *,
        layer: str | None = None,
        target: str | None = None,
        method: Method = DEFAULT_METHOD,
        attribution: Attribution = DEFAULT_ATTRIBUTION,
        surrogate: Path | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        batch: int | None = None,
        signed: bool = False,
    ) -> Explainer:
        """Resolve layer, target and device for a classifier, and measure the layer.

        Raises
        ------
        ModelError
            If the layer or the target is unknown or cannot be explained.
        SettingsError
            If there is no such device.
        """
        where = choose_device(device)
        index = classifier.target_index(target)
        blank = torch.zeros(1, 3, classifier.patch, classifier.patch)
        with eval_mode(classifier.module):
            name = find_layer(classifier.module, layer or default_layer(attribution), blank)
            with smoothed(classifier.module, _PLAIN if SMOOTHING[method].imitates else method):
                geometry = measure(classifier.module, name, blank)
            module, stand_in = working_copy(classifier.module, blank, {name}, method, surrogate)
        number_format = "fp32" if precision == "auto" else precision
        network = Network(
            module.to(where),
            name,
            method,
            attribution,
            blank.to(where),
            number_format,
            stand_in,
            signed=signed,
        )
        if vanishing(network.module, name, network.baseline_image, [attribution]):
            raise refusal(attribution, name)
        return cls(classifier, network, geometry, index, where, batch or DEFAULT_BATCH[where.type])

    @property
    def may_drift(self) -> bool:
        """Whether the map may lie elsewhere than the plain one, so that `drift` has something to measure."""
        return self.network.drifts and (self.geometry.drift_x, self.geometry.drift_y) != (0.0, 0.0)

    def drift(self, patches: NDArray[np.uint8]) -> tuple[float, float]:
        """Measure on patches (N, P, P, 3) how far the method moves the map: (x, y) in patch pixels."""
        g = self.geometry
        most = (g.drift_y / g.reduction, g.drift_x / g.reduction)
        if not self.may_drift or not len(patches):
            return 0.0, 0.0
        n = self.network
        unsmoothed = replace(n, method=_PLAIN)
        smooth, plain = (self._in_batches(patches, network).maps for network in (n, unsmoothed))
        drift_y, drift_x = measure_drift(plain.numpy(), smooth.numpy(), most)
        return drift_x * g.reduction, drift_y * g.reduction

    def __call__(self, patches: NDArray[np.uint8]) -> Explanation:
        """Explain patches (N, P, P, 3), RGB."""
        return self._in_batches(patches, self.network)

    def _in_batches(self, patches: NDArray[np.uint8], network: Network) -> Explanation:
        parts, start = [], 0
        while start < len(patches):
            try:
                parts.append(self._explain(patches[start : start + self.batch], network))
            except torch.OutOfMemoryError as e:
                if self.batch == 1:
                    raise ModelError(
                        f"a single patch does not fit into the memory of {self.device}; "
                        "use --device cpu or a smaller --patch"
                    ) from e
                self.batch //= 2
                continue
            start += len(parts[-1].maps)
        return Explanation(torch.cat([p.maps for p in parts]), torch.cat([p.logits for p in parts]))

    def _explain(self, patches: NDArray[np.uint8], network: Network) -> Explanation:
        target = torch.full((len(patches),), self.target, device=self.device)
        values, logits = network(self.classifier.normalised(patches, self.device), target)
        return Explanation(self.network.maps(values).cpu(), logits.float().cpu())


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
