"""A network made ready to be explained: a copy of it, and all maps that are made of its patches."""

from __future__ import annotations

from collections import defaultdict
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Size, Tensor, nn

from wsi_saliency.mapspec import PLAIN
from wsi_saliency.models.classifier import standard_logits
from wsi_saliency.saliency.attribution import ATTRIBUTION, AttributionInput, Baselines, attribute
from wsi_saliency.saliency.drift import measure_drift
from wsi_saliency.saliency.folding import own_copy
from wsi_saliency.saliency.layers import measure, total_stride
from wsi_saliency.saliency.shifts import NO_SHIFT, moved, moved_back, shifts_within
from wsi_saliency.saliency.smoothing import SMOOTHING, smoothed, smoothed_in_turn
from wsi_saliency.saliency.surrogate import Surrogate, surrogate_for

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from wsi_saliency.mapspec import MapSpec
    from wsi_saliency.saliency.folding import Trial
    from wsi_saliency.saliency.layers import LayerGeometry
    from wsi_saliency.saliency.shifts import Shift
    from wsi_saliency.saliency.tokens import Layout
    from wsi_saliency.settings import Attribution, Method, Precision

    Take = Callable[[MapSpec, int, Tensor], object]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Noise:
    """SmoothGrad: explain ``n`` copies of each image with Gaussian noise of ``sigma``, and average."""

    n: int = 1
    sigma: float = 0.0
    seed: int = 0

    def copies(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the copies of images (N, 3, H, W)."""
        random = torch.Generator(images.device).manual_seed(self.seed)
        for _ in range(self.n):
            # the same noise for every image, so that a batch is explained as its images are one by one
            one = torch.randn(images.shape[1:], generator=random, device=images.device, dtype=images.dtype)
            yield images + self.sigma * one


@dataclass
class Network:
    """A network, the maps that explain it, and how they are computed. `Network.of` makes one.

    Parameters
    ----------
    module
        The network; it is changed while it explains, and as it was afterwards.
    maps
        What `explain` makes if nothing else is asked for.
    geometry
        Their layers, each measured under its method; empty where nobody asks where cells lie.
    baseline_image
        (1, 3, H, W) on the network's device.
    precision
        Number format of the arithmetic, not ``"auto"``.
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
    maps: tuple[MapSpec, ...]
    _: KW_ONLY
    geometry: dict[MapSpec, LayerGeometry] = field(default_factory=dict)
    baseline_image: Tensor
    precision: Precision = "fp32"
    surrogate: Surrogate | None = None
    steps: int = 50
    noise: Noise | None = None
    signed: bool = False
    _baselines: dict[tuple[Method, Shift], Baselines] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.surrogate is not None:
            self.surrogate.accept(self.module)  # where it is now: moved, it has other marks

    @classmethod
    def of(
        cls,
        model: nn.Module,
        maps: Sequence[MapSpec],
        sample: Tensor,
        *,
        surrogate: Surrogate | Path | None = None,
        precision: Precision = "auto",
        device: torch.device | None = None,
        signed: bool = False,
    ) -> Network:
        """Copy a network and measure the layers of its maps; the network stays as it is.

        Parameters
        ----------
        model
            Any network of eager PyTorch modules.
        maps
            Layers by name, as `find_layer` returns them.
        sample
            (1, 3, H, W) normalised floats on the model's device; only the shape matters.
        surrogate
            For the method of that name.
        precision, device
            Of the copy's arithmetic; device None leaves it where the model is.
        signed
            As in `Network`.

        Raises
        ------
        ModelError
            If a layer cannot be measured, or there is no surrogate for the model.
        """
        layers = {spec.layer for spec in maps}
        imitating = [spec.method for spec in maps if SMOOTHING[spec.method].imitates]
        with eval_mode(model):
            geometry = _measured(model, maps, sample)
            module, stand_in = working_copy(model, sample, layers, (imitating or [PLAIN])[0], surrogate)
        blank = torch.zeros_like(sample, device=device)
        return cls(
            module.to(device),
            tuple(maps),
            geometry=geometry,
            baseline_image=blank,
            precision=resolve_precision(precision),
            surrogate=stand_in,
            signed=signed,
        )

    def explain(
        self,
        images: Tensor,
        targets: Sequence[Tensor],
        take: Take,
        maps: Sequence[MapSpec] | None = None,
    ) -> dict[Method, Tensor]:
        """Explain images by all maps for all targets, with as few passes as possible.

        Parameters
        ----------
        images
            (N, 3, H, W) normalised floats on the network's device.
        targets
            Class indices, (N,) int64 each.
        take
            Called with a map, the number of a target, and values (N, C, h, w) on the device.
        maps
            What is made; `maps` of the network if left out.

        Returns
        -------
        Logits (N, K) by method, on the device.

        Raises
        ------
        ModelError
            If a layer is not called, has no spatial grid, or there is no rule for a function above it.
        """
        sharing: dict[Method, list[MapSpec]] = defaultdict(list)
        for spec in self.maps if maps is None else maps:
            sharing[_passes_of(spec.method)].append(spec)
        logits: dict[Method, Tensor] = {}
        unchanged: Tensor | None = None
        for forward, some in sorted(sharing.items(), key=lambda shared: shared[0] != PLAIN):
            methods = list(dict.fromkeys(spec.method for spec in some))
            with (
                eval_mode(self.module),
                smoothed_in_turn(self.module, methods, self.surrogate) as average,
                self._arithmetic(),
            ):
                baselines = self._baselines_of(forward)
                asked = AttributionInput(
                    self.module, some, images, targets, baselines, average, steps=self.steps
                )
                found = self._explained(asked, self._in_full_precision(take), forward, unchanged)
            unchanged = found if forward == PLAIN else unchanged
            logits |= dict.fromkeys(methods, found)
        return logits

    def _explained(
        self, asked: AttributionInput, take: Take, forward: Method, unchanged: Tensor | None
    ) -> Tensor:
        """Hand on the values of one forward pass, or means over several; returns the images' logits.

        Those of the network as it is are ``unchanged``, if they are known: another pass differs by rounding.
        """
        shifts = self._shifts(forward)
        if self.noise is None and shifts == [NO_SHIFT]:
            for found in attribute(asked):
                take(found.spec, found.target, found.values)
                logits = found.logits
            return logits
        copies = [asked.images] if self.noise is None else self.noise.copies(asked.images)
        share = len(shifts) * (1 if self.noise is None else self.noise.n)
        totals: dict[tuple[MapSpec, int], Tensor] = {}
        for copy, shift in product(copies, shifts):
            variant = asked.of(moved(copy, shift), self._baselines_of(forward, shift))
            for spec, i, values, _ in attribute(variant):
                back = moved_back(values, shift, self._placed(spec).reduction) if any(shift) else values
                totals[spec, i] = totals.get((spec, i), torch.zeros(())) + back / share
        for (spec, i), total in totals.items():
            take(spec, i, total)
        if unchanged is not None and not SMOOTHING[forward].changes_predictions:
            return unchanged
        with torch.no_grad():
            return standard_logits(self.module(asked.images))

    def _shifts(self, method: Method) -> list[Shift]:
        side = SMOOTHING[method].shifts
        if side == 1:
            return [NO_SHIFT]
        return shifts_within(self._total_stride, side)

    @cached_property
    def _total_stride(self) -> int:
        return total_stride(self.module, self.baseline_image)

    def _placed(self, spec: MapSpec) -> LayerGeometry:
        """Geometry of a map's layer, measured now if nobody has asked for it."""
        if spec not in self.geometry:
            self.geometry[spec] = measure(self.module, spec.layer, self.baseline_image)
        return self.geometry[spec]

    def _baselines_of(self, forward: Method, shift: Shift = NO_SHIFT) -> Baselines:
        """Baselines under a method, moved as the images are; of one colour, they stay the same."""
        image = moved(self.baseline_image, shift)
        if torch.equal(image, self.baseline_image):
            shift = NO_SHIFT
        return self._baselines.setdefault((forward, shift), Baselines(self.module, image, self._layouts))

    @cached_property
    def _layouts(self) -> dict[tuple[str, Size], Layout]:
        """Layouts that were measured with the geometry; the same under all methods."""
        size = self.baseline_image.shape[2:]
        return {(spec.layer, size): g.layout for spec, g in self.geometry.items() if g.layout}

    def is_magnitude(self, attribution: Attribution) -> bool:
        """Whether maps of an attribution are magnitudes here, not signed evidence."""
        return ATTRIBUTION[attribution].magnitude and not self.signed

    def quantity(self, attribution: Attribution) -> str:
        """Name what a map's values are, such as ``|gradient|`` or ``deeplift``."""
        return f"|{attribution}|" if self.is_magnitude(attribution) else attribution

    def map_of(self, spec: MapSpec, values: Tensor) -> Tensor:
        """Turn values (N, C, h, w) into maps (N, h, w), float32, on the CPU."""
        return ATTRIBUTION[spec.attribution].map_of(values, signed=self.signed).cpu()

    def may_drift(self, spec: MapSpec) -> bool:
        """Whether a map may lie elsewhere than the plain one, so that there is something to measure.

        That is so where the method moves the gradient to one side, and no activation holds it.
        """
        weighed = ATTRIBUTION[spec.attribution].weighs_activation
        drift = self.geometry[spec].drift_x, self.geometry[spec].drift_y
        return SMOOTHING[spec.method].moves_gradient and not weighed and drift != (0.0, 0.0)

    def drift(self, spec: MapSpec, plain: Tensor, smooth: Tensor) -> tuple[float, float]:
        """How far maps (N, h, w) lie to the lower right of the plain ones: (x, y) in patch pixels."""
        if not self.may_drift(spec) or not len(plain):
            return 0.0, 0.0
        g = self.geometry[spec]
        most = g.drift_y / g.reduction, g.drift_x / g.reduction
        drift_y, drift_x = measure_drift(plain.numpy(), smooth.numpy(), most)
        return drift_x * g.reduction, drift_y * g.reduction

    def _in_full_precision(self, take: Take) -> Take:
        """Let what is done with values be done in their own precision, not in the network's."""

        def outside(spec: MapSpec, target: int, values: Tensor) -> object:
            with torch.no_grad(), torch.autocast(values.device.type, enabled=False):
                return take(spec, target, values)

        return take if self.precision == "fp32" else outside

    def _arithmetic(self) -> AbstractContextManager[object]:
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(self.baseline_image.device.type, dtype) if dtype else nullcontext()


def _passes_of(method: Method) -> Method:
    """Name the method whose forward passes it shares."""
    smoothing = SMOOTHING[method]
    return method if smoothing.changes_predictions or smoothing.shifts > 1 else PLAIN


def _measured(model: nn.Module, maps: Sequence[MapSpec], sample: Tensor) -> dict[MapSpec, LayerGeometry]:
    """Measure each layer under each method, once."""
    known: dict[tuple[Method, str], LayerGeometry] = {}
    for spec in maps:
        method = PLAIN if SMOOTHING[spec.method].imitates else spec.method
        if (method, spec.layer) not in known:
            with smoothed(model, method):
                known[method, spec.layer] = measure(model, spec.layer, sample)
        known[spec.method, spec.layer] = known[method, spec.layer]
    return {spec: known[spec.method, spec.layer] for spec in maps}


def resolve_precision(precision: Precision) -> Precision:
    """Return the number format of the arithmetic; ``"auto"`` is fp32, which is right everywhere."""
    return "fp32" if precision == "auto" else precision


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
