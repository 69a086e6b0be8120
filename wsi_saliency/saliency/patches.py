"""Explaining patches of any classifier, from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from wsi_saliency.errors import ModelError, SettingsError
from wsi_saliency.models.classifier import SquashWatch, standard_logits
from wsi_saliency.saliency.engine import Network, Noise, eval_mode, working_copy
from wsi_saliency.saliency.layers import find_layer

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.saliency.surrogate import Surrogate
    from wsi_saliency.settings import Attribution, Method, Precision


def explain_patches(
    model: nn.Module,
    images: Tensor,
    layer: str | int | nn.Module = "8",
    target: int | Tensor | None = None,
    attribution: Attribution = "gradient",
    method: Method = "backward-hook",
    *,
    baseline: Tensor | None = None,
    surrogate: Surrogate | Path | None = None,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    reduce: Literal["mean"] | None = "mean",
    steps: int = 50,
    smoothgrad: tuple[int, float] | None = None,
    seed: int = 0,
) -> Tensor:
    """Explain patches at a layer of any classifier; the classifier is bit for bit the same afterwards.

    Parameters
    ----------
    model
        Any network of eager PyTorch modules that gives logits (N, K), (N,), (N, 1) or (N, K, 1, 1). It is run
        in eval mode, on the device where it is.
    images
        (N, 3, H, W) floats, normalised as the classifier wants them.
    layer
        A module, its dotted name, a reduction (8: the last stage at 1/8 of the resolution), ``"last"`` (the
        last stage) or ``"input"``.
    target
        Class index, one for all or (N,) one each; None for a classifier with a single logit.
    attribution, method
        A key of `ATTRIBUTION`, and one of `SMOOTHING`.
    baseline
        (3, H, W) or (1, 3, H, W) image that DeepLift and integrated gradients compare with, normalised;
        zeros if left out.
    surrogate
        For the method of that name: a `Surrogate` of this model, or its file.
    batch_size
        Images per pass; all at once if left out.
    precision
        Number format of the network's arithmetic.
    reduce
        ``"mean"`` over channels, or None for all channels.
    steps
        Nodes of integrated gradients.
    smoothgrad
        (n, sigma): average over n copies of the images with Gaussian noise of that standard deviation.
    seed
        Of the noise.

    Returns
    -------
    Tensor
        Float32 on the CPU: (N, h, w), signed; (N, C, h, w) with ``reduce=None``.

    Raises
    ------
    ModelError
        If the model, the layer or the combination cannot be explained; the message says why.
    SettingsError
        If the images, the target or the baseline do not fit.
    """
    _check_images(images)
    where = next((p.device for p in model.parameters()), images.device)
    sample = images[:1].to(where)
    with eval_mode(model):
        targets = _targets(target, len(images), _class_count(model, sample)).to(where)
        name = find_layer(model, layer, sample)
        module, stand_in = working_copy(model, sample, name, method, surrogate)
        network = Network(
            module,
            name,
            method,
            attribution,
            _one_image(baseline, sample),
            "fp32" if precision == "auto" else precision,
            stand_in,
            steps,
            Noise(*smoothgrad, seed) if smoothgrad else None,
        )
        parts = []
        for start in range(0, len(images), batch_size or len(images)):
            batch = slice(start, start + (batch_size or len(images)))
            values = network(images[batch].to(where), targets[batch]).values.detach().float()
            parts.append((values.mean(1) if reduce == "mean" else values).cpu())
    return torch.cat(parts)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise SettingsError(
            f"images are {tuple(images.shape)} {images.dtype}; they have to be (N, 3, H, W) normalised floats"
        )


def _class_count(model: nn.Module, sample: Tensor) -> int:
    """Call the model once and return its number of logits; refuse what cannot be explained."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "the model is scripted or traced, and hooks do not work in such a module; "
            "build it as a plain torch.nn.Module and load its state dict"
        )
    with torch.no_grad(), SquashWatch() as watch:
        logits = standard_logits(model(sample))
    if watch.squashed_by is not None:
        raise ModelError(
            f"the model ends in a {watch.squashed_by}; attributions explain logits: pass the model without "
            "that last step"
        )
    return logits.shape[1]


def _targets(target: int | Tensor | None, n: int, classes: int) -> Tensor:
    """One class index for each image, (N,) int64."""
    if target is None:
        if classes > 1:
            raise SettingsError(f"the model has {classes} classes; say which one to explain with target=")
        target = 0
    targets = torch.as_tensor(target).long()
    if targets.ndim > 1 or targets.numel() not in (1, n):
        raise SettingsError(
            f"target has shape {tuple(targets.shape)}; it has to be one index or one for each image"
        )
    if not ((targets >= 0) & (targets < classes)).all():
        raise SettingsError(
            f"target {targets.tolist()} is not a class of the model; it has {classes}, from 0"
        )
    return targets.reshape(-1).expand(n)


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
