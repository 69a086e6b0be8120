"""The engine: patches in, maps out, on one device and in one number format."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from wsi_saliency.errors import ModelError, SettingsError
from wsi_saliency.models.classifier import Classifier, standard_logits
from wsi_saliency.saliency.attribution import ATTRIBUTION
from wsi_saliency.saliency.drift import measure_drift
from wsi_saliency.saliency.layers import INPUT, LayerGeometry, find_layer, measure, spatial_output
from wsi_saliency.saliency.smoothing import SMOOTHING, smoothed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from wsi_saliency.settings import Attribution, Method, Precision

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PLAIN: Method = "none"
_DEFAULT_BATCH = {"cuda": 128, "mps": 32, "cpu": 16}


class Explanation(NamedTuple):
    """Maps of some patches and what the classifier said of them.

    ``maps`` (N, h, w): float32 on the CPU, signed, the mean over the layer's channels.
    ``logits`` (N, K): float32 on the CPU.
    """

    maps: Tensor
    logits: Tensor


def explain(
    model: nn.Module, images: Tensor, layer: str, target: int, attribution: Attribution = "gradient"
) -> Explanation:
    """Explain images at a layer, with whatever smoothing method is active on the model.

    Nothing below the layer is recorded for the gradient, and no parameter gets one.

    Parameters
    ----------
    model
        Network in eval mode; its output is (N, K), (N,), (N, 1) or (N, K, 1, 1) logits.
    images
        (N, 3, H, W) normalised floats on the model's device.
    layer
        Name of a module, or ``"input"``.
    target
        Index of the logit to explain.
    attribution
        A key of `ATTRIBUTION`.

    Raises
    ------
    ModelError
        If the layer is not called, or has no spatial grid, or nothing behind it depends on it.
    """
    with torch.no_grad():
        activation, logits = _forward(model, images, layer)
    (gradient,) = torch.autograd.grad(logits[:, target].sum(), activation)
    maps = ATTRIBUTION[attribution](activation.detach(), gradient).mean(1, dtype=torch.float32)
    return Explanation(maps.cpu(), logits.detach().float().cpu())


def _forward(model: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Run the network, recording from the layer on; return the layer's activation and the logits."""
    if layer == INPUT:
        activation = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = standard_logits(model(_copy(activation)))
    else:
        captured: list[Tensor] = []

        def record_from_here(output: Tensor) -> Tensor:
            torch.set_grad_enabled(True)  # until the caller's no_grad block ends
            captured.append(output.detach().requires_grad_())
            return _copy(captured[0])

        with spatial_output(model, layer, record_from_here):
            logits = standard_logits(model(images))
        activation = captured[0]
    if not logits.requires_grad:
        raise ModelError(f"the logits do not depend on layer {layer!r}; choose another --layer")
    return activation, logits


def _copy(leaf: Tensor) -> Tensor:
    """Let a following in-place operation (``ReLU(inplace=True)``) change a copy, not the leaf."""
    return leaf.clone()


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
    """Explains patches of one classifier with fixed settings.

    Parameters
    ----------
    classifier
        The classifier; its module is moved to ``device``.
    geometry
        The layer, measured under the smoothing method.
    target
        Index of the explained logit.
    method, attribution
        Keys of `SMOOTHING` and `ATTRIBUTION`.
    device
        Where the network runs.
    precision
        Number format of the network's arithmetic; maps are float32.
    batch
        Patches per pass; halved for good when they do not fit into the device's memory.
    """

    classifier: Classifier
    geometry: LayerGeometry
    target: int
    method: Method
    attribution: Attribution
    device: torch.device
    precision: Precision
    batch: int

    @classmethod
    def of(
        cls,
        classifier: Classifier,
        *,
        layer: str = "8",
        target: str | None = None,
        method: Method = "backward-hook",
        attribution: Attribution = "gradient",
        patch: int | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        batch: int | None = None,
    ) -> Explainer:
        """Resolve layer, target and device for a classifier, and measure the layer.

        Raises
        ------
        ModelError
            If the layer is unknown or cannot be explained.
        SettingsError
            If the target or the device is unknown.
        """
        where = choose_device(device)
        side = patch or classifier.patch
        blank = torch.zeros(1, 3, side, side)
        with eval_mode(classifier.module):
            name = find_layer(classifier.module.cpu(), layer, blank)
            with smoothed(classifier.module, method):
                geometry = measure(classifier.module, name, blank)
        classifier.module.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(
            classifier,
            geometry,
            classifier.target_index(target),
            method,
            attribution,
            where,
            "fp32" if precision == "auto" else precision,
            batch or _DEFAULT_BATCH[where.type],
        )

    def drift(self, patches: NDArray[np.uint8]) -> tuple[float, float]:
        """Measure on patches (N, P, P, 3) how far the method moves the map: (x, y) in patch pixels."""
        g = self.geometry
        most = (g.drift_y / g.reduction, g.drift_x / g.reduction)
        if not SMOOTHING[self.method].moves_gradient or not any(most) or not len(patches):
            return 0.0, 0.0
        smooth, plain = (self._in_batches(patches, method).maps for method in (self.method, _PLAIN))
        drift_y, drift_x = measure_drift(plain.numpy(), smooth.numpy(), most)
        return drift_x * g.reduction, drift_y * g.reduction

    def __call__(self, patches: NDArray[np.uint8]) -> Explanation:
        """Explain patches (N, P, P, 3), RGB."""
        return self._in_batches(patches, self.method)

    def _in_batches(self, patches: NDArray[np.uint8], method: Method) -> Explanation:
        parts, start = [], 0
        while start < len(patches):
            try:
                parts.append(self._explain(patches[start : start + self.batch], method))
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

    def _explain(self, patches: NDArray[np.uint8], method: Method) -> Explanation:
        model = self.classifier.module
        with eval_mode(model), smoothed(model, method), self._arithmetic():
            return explain(
                model, self._normalised(patches), self.geometry.name, self.target, self.attribution
            )

    def _normalised(self, patches: NDArray[np.uint8]) -> Tensor:
        """Turn (N, P, P, 3) bytes into (N, 3, P, P) floats in channels-last order, without a reorder."""
        images = torch.from_numpy(patches).to(self.device).permute(0, 3, 1, 2).float()
        mean, std = (self._per_channel(v) for v in (self.classifier.mean, self.classifier.std))
        return images.div_(255).sub_(mean).div_(std)

    def _per_channel(self, values: tuple[float, float, float]) -> Tensor:
        return torch.tensor(values, device=self.device).view(1, 3, 1, 1)

    def _arithmetic(self) -> AbstractContextManager[object]:
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()


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
