"""Explaining patches of any classifier, from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from wsi_saliency.errors import ModelError, SettingsError
from wsi_saliency.mapspec import MapSpec
from wsi_saliency.models.classifier import standard_logits
from wsi_saliency.models.heads import SquashWatch, without_squashing
from wsi_saliency.saliency.cancellation import cancels, refusal
from wsi_saliency.saliency.folding import try_out
from wsi_saliency.saliency.layers import find_layer
from wsi_saliency.saliency.network import Network, Noise, eval_mode, resolve_precision, working_copy
from wsi_saliency.settings import DEFAULT_ATTRIBUTION, DEFAULT_LAYER, DEFAULT_METHOD

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.saliency.folding import Trial
    from wsi_saliency.saliency.surrogate import Surrogate
    from wsi_saliency.settings import Attribution, Method, Precision


class PatchExplainer:
    """A classifier made ready to be explained at a layer, for many batches of patches.

    `explain_patches` makes one and uses it once. It works on a copy: later changes to the classifier's
    weights are not seen.

    Parameters
    ----------
    model
        Any network of eager PyTorch modules that gives logits (N, K), (N,), (N, 1) or (N, K, 1, 1). It is run
        in eval mode, on the device where it is, and is bit for bit the same afterwards. A softmax or sigmoid
        that is the last it does is left out: the logit is explained. `taken_off` names it.
    images
        (N, 3, H, W) floats of the kind that will come, normalised as the classifier wants them.
    layer
        A module, its dotted name, a reduction (8: the last stage at 1/8 of the resolution), ``"last"`` (the
        last stage) or ``"input"``.
    attribution, method
        A key of `ATTRIBUTION`, and one of `SMOOTHING`.
    baseline
        (3, H, W) or (1, 3, H, W) image that DeepLift and integrated gradients compare with, normalised;
        zeros if left out.
    surrogate
        For the method of that name: a `Surrogate` of this model, or its file.
    precision
        Number format of the network's arithmetic.
    steps
        Nodes of integrated gradients.
    smoothgrad
        (n, sigma): average over n copies of the images with Gaussian noise of that standard deviation.
    seed
        Of the noise.
    signed
        Keep the sign of ``gradient`` maps, which are magnitudes else: it is that of the layer's channels.

    Raises
    ------
    ModelError
        If the model, the layer or the combination cannot be explained; the message says why.
    SettingsError
        If the images or the baseline do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        layer: str | int | nn.Module = DEFAULT_LAYER,
        attribution: Attribution = DEFAULT_ATTRIBUTION,
        method: Method = DEFAULT_METHOD,
        *,
        baseline: Tensor | None = None,
        surrogate: Surrogate | Path | None = None,
        precision: Precision = "fp32",
        steps: int = 50,
        smoothgrad: tuple[int, float] | None = None,
        seed: int = 0,
        signed: bool = False,
    ) -> None:
        check_images(images)
        self._device = next((p.device for p in model.parameters()), images.device)
        sample = images[:1].to(self._device)
        with eval_mode(model):
            explained, trial, self.taken_off = _tried(model, sample)
            self._classes = standard_logits(trial.output).shape[1]
            name = find_layer(model, layer, sample)
            module, stand_in = working_copy(explained, sample, {name}, method, surrogate, trial)
        self._spec = MapSpec(name, method, attribution)
        self._network = Network(
            module,
            (self._spec,),
            baseline_image=_one_image(baseline, sample),
            precision=resolve_precision(precision),
            surrogate=stand_in,
            steps=steps,
            noise=Noise(*smoothgrad, seed) if smoothgrad else None,
            signed=signed,
        )
        self._map_checked = False

    def __call__(
        self,
        images: Tensor,
        target: int | Tensor | None = None,
        *,
        batch_size: int | None = None,
        reduce: Literal["mean"] | None = "mean",
    ) -> Tensor:
        """Explain images (N, 3, H, W): maps (N, h, w), or (N, C, h, w) with ``reduce=None``; float32, CPU.

        ``target``, ``batch_size`` and ``reduce`` are those of `explain_patches`.
        """
        check_images(images)
        targets = targets_for(images, target, self._classes).to(self._device)
        parts = []
        for start in range(0, len(images), batch_size or len(images)):
            batch = slice(start, start + (batch_size or len(images)))
            values = self._values(images[batch].to(self._device), targets[batch])
            parts.append(self._map(values) if reduce == "mean" else values.cpu())
        return torch.cat(parts)

    def _values(self, images: Tensor, targets: Tensor) -> Tensor:
        """Explain images on the device: values (N, C, h, w), float32."""
        taken: list[Tensor] = []
        self._network.explain(images, [targets], lambda spec, target, values: taken.append(values))
        return taken[0].detach().float()

    def _map(self, values: Tensor) -> Tensor:
        """Turn values (N, C, h, w) into maps, and make sure of the first that they are no rounding noise."""
        if not self._map_checked and self._network.precision == "fp32" and cancels(values[:1]):
            raise refusal(self._spec.attribution, self._spec.layer)
        self._map_checked = True
        return self._network.map_of(self._spec, values)


def explain_patches(
    model: nn.Module,
    images: Tensor,
    layer: str | int | nn.Module = DEFAULT_LAYER,
    target: int | Tensor | None = None,
    attribution: Attribution = DEFAULT_ATTRIBUTION,
    method: Method = DEFAULT_METHOD,
    *,
    baseline: Tensor | None = None,
    surrogate: Surrogate | Path | None = None,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    reduce: Literal["mean"] | None = "mean",
    steps: int = 50,
    smoothgrad: tuple[int, float] | None = None,
    seed: int = 0,
    signed: bool = False,
) -> Tensor:
    """Explain patches at a layer of any classifier; the classifier is bit for bit the same afterwards.

    Each call makes a copy of the network to work on; `PatchExplainer` keeps it for the next patches.

    Parameters
    ----------
    model, layer, attribution, method, baseline, surrogate, precision, steps, smoothgrad, seed, signed
        As in `PatchExplainer`.
    images
        (N, 3, H, W) floats, normalised as the classifier wants them.
    target
        Class index, one for all or (N,) one each; None for a classifier with a single logit.
    batch_size
        Images per pass; all at once if left out.
    reduce
        ``"mean"`` over channels, its magnitude for ``gradient`` unless ``signed``; or None for all channels.

    Returns
    -------
    Tensor
        Float32 on the CPU: (N, h, w); (N, C, h, w) with ``reduce=None``, which is always signed.

    Raises
    ------
    ModelError
        If the model, the layer or the combination cannot be explained; the message says why.
    SettingsError
        If the images, the target or the baseline do not fit.
    """
    explain = PatchExplainer(
        model,
        images,
        layer,
        attribution,
        method,
        baseline=baseline,
        surrogate=surrogate,
        precision=precision,
        steps=steps,
        smoothgrad=smoothgrad,
        seed=seed,
        signed=signed,
    )
    return explain(images, target, batch_size=batch_size, reduce=reduce)


def check_images(images: Tensor) -> None:
    """Make sure that images are (N, 3, H, W) floats, at least one.

    Raises
    ------
    SettingsError
        If they are not.
    """
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise SettingsError(
            f"images are {tuple(images.shape)} {images.dtype}; they have to be (N, 3, H, W) normalised floats"
        )


def _tried(model: nn.Module, sample: Tensor) -> tuple[nn.Module, Trial, str | None]:
    """Run the model once; refuse what cannot be explained.

    Returns
    -------
    tuple
        The model, or a copy without the softmax or sigmoid at its end; what it gives; what was left out.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "the model is scripted or traced, and hooks do not work in such a module; "
            "build it as a plain torch.nn.Module and load its state dict"
        )
    trial, squashed_by = _watched(model, sample)
    taken_off = None
    if squashed_by is not None:
        with torch.no_grad():
            shortened = without_squashing(model, sample)
        if shortened is not None:
            model, taken_off = shortened.module, shortened.taken_off
            trial, squashed_by = _watched(model, sample)
    if squashed_by is not None:
        raise ModelError(
            f"the model ends in a {squashed_by}; attributions explain logits: pass the model without "
            "that last step"
        )
    return model, trial, taken_off


def _watched(model: nn.Module, sample: Tensor) -> tuple[Trial, str | None]:
    """Run the model once; return what it gives, and by what its logits were squashed."""
    with SquashWatch() as watch:
        return try_out(model, sample), watch.squashed_by


def targets_for(images: Tensor, target: int | Tensor | None, classes: int) -> Tensor:
    """Return one class index for each image, (N,) int64.

    Raises
    ------
    SettingsError
        If ``target`` is no class of the model, not one or (N,) of them, or None where there are several.
    """
    if target is None and classes > 1:
        raise SettingsError(f"the model has {classes} classes; say which one is meant with target=")
    targets = torch.as_tensor(0 if target is None else target).long()
    if targets.ndim > 1 or targets.numel() not in (1, len(images)):
        raise SettingsError(
            f"target has shape {tuple(targets.shape)}; it has to be one index or one for each image"
        )
    if not ((targets >= 0) & (targets < classes)).all():
        raise SettingsError(
            f"target {targets.tolist()} is not a class of the model; it has {classes}, from 0"
        )
    return targets.reshape(-1).expand(len(images))


def _one_image(baseline: Tensor | None, sample: Tensor) -> Tensor:
    """Return the baseline as (1, 3, H, W), of the sample's dtype and device."""
    if baseline is None:
        return torch.zeros_like(sample)
    image = baseline.reshape(-1, *baseline.shape[-3:])
    if image.shape != sample.shape:
        raise SettingsError(
            f"the baseline is {tuple(baseline.shape)}; it has to be one image like the others, "
            f"{tuple(sample.shape[1:])}"
        )
    return image.to(sample)
