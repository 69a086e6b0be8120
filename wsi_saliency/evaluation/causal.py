"""Insertion and deletion: how the classifier answers when pixels come and go in the order of a map.

Source: Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC
2018, and the code published with it, which the blur follows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from wsi_saliency.errors import SettingsError
from wsi_saliency.evaluation.metrics import upsampled
from wsi_saliency.mapspec import PLAIN
from wsi_saliency.models.classifier import probabilities, standard_logits
from wsi_saliency.saliency.batches import Batch
from wsi_saliency.saliency.folding import try_out
from wsi_saliency.saliency.network import eval_mode, working_copy
from wsi_saliency.saliency.patches import check_images, targets_for
from wsi_saliency.saliency.smoothing import smoothed
from wsi_saliency.settings import SUBSTRATES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from wsi_saliency.models.classifier import Output
    from wsi_saliency.saliency.surrogate import Surrogate
    from wsi_saliency.settings import Method, Substrate

_STEP_ROWS = 8  # a step changes as many pixels as so many rows of the patch have
_BLUR_SIDE, _BLUR_SIGMA = 11, 5.0
_DEFAULT_BATCH = {"cuda": 128, "mps": 32}
_CPU_BATCH = 8


@dataclass(frozen=True)
class Curves:
    """Probabilities of the target after each step, (N, steps + 1) float64 on the CPU.

    ``insertion`` runs from the substrate to the image, ``deletion`` from the image to its substrate.
    """

    insertion: Tensor
    deletion: Tensor

    @property
    def insertion_auc(self) -> Tensor:
        """Areas under the insertion curves, (N,); high where the map finds what the classifier needs."""
        return _area(self.insertion)

    @property
    def deletion_auc(self) -> Tensor:
        """Areas under the deletion curves, (N,); low where the map finds what the classifier needs."""
        return _area(self.deletion)


def _area(curves: Tensor) -> Tensor:
    """Trapezoidal rule over the unit interval: (Σ − first/2 − last/2) / (points − 1)."""
    return (curves.sum(1) - (curves[:, 0] + curves[:, -1]) / 2) / (curves.shape[1] - 1)


class CausalScorer:
    """Patches and their classifier made ready to score many kinds of maps of them.

    What all maps have in common is computed once: the substrates, and the answers to them and to the whole
    images. Pixels are exchanged on the model's device, by each pixel's rank. Memory: the activations of
    ``batch_size`` images, and for all N the images, up to two substrates and the order of the pixels.

    Parameters
    ----------
    model
        Gives logits that `standard_logits` accepts. It is run in eval mode, and is as before afterwards; the
        work is done by a copy with folded batch normalisation, unless somebody listens to it with hooks.
    images
        (N, 3, H, W) floats, normalised as the classifier wants them.
    target
        Index of the class whose probability is followed, one or (N,); None for a model with one logit.
    step
        Pixels per step; None is 8 × W.
    deletion_to, insertion_from
        What pixels are replaced with: ``zeros`` (of the normalised image), ``blur``, ``mean`` (of each
        image's channels), or a normalised image that broadcasts to (N, 3, H, W), such as white as (3, 1, 1).
    batch_size
        Images per forward pass; None picks one by device. It does not change the result, but for rounding;
        what does not fit into the device's memory is halved.
    output
        What turns logits into probabilities; None is the sigmoid for one logit, softmax for more.
    method, surrogate
        Smoothing method, and its surrogate, under which the model answers.

    Raises
    ------
    ModelError
        If the model's output is not logits, or there is no surrogate for it.
    SettingsError
        If the target, the step or a substrate does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        target: int | Tensor | None = None,
        step: int | None = None,
        *,
        deletion_to: Substrate | Tensor = "zeros",
        insertion_from: Substrate | Tensor = "blur",
        batch_size: int | Batch | None = None,
        output: Output | None = None,
        method: Method = PLAIN,
        surrogate: Surrogate | None = None,
    ) -> None:
        self._step = _checked_step(images, step)
        images = images.to(next((p.device for p in model.parameters()), images.device))
        self._batch = Batch.of(batch_size or _DEFAULT_BATCH.get(images.device.type, _CPU_BATCH))
        with eval_mode(model):
            trial = try_out(model, images[:1])
            classes = standard_logits(trial.output).shape[1]
            self._network, self._surrogate = working_copy(model, images[:1], (), method, surrogate, trial)
        if self._surrogate is not None:
            self._surrogate.accept(self._network)
        self._method = method
        self._output: Output = output or ("sigmoid" if classes == 1 else "softmax")
        self._targets = targets_for(images, target, classes).to(images.device)
        self._images = images.contiguous(memory_format=torch.channels_last)
        self._deleted = substrate(self._images, deletion_to)
        self._blank = substrate(self._images, insertion_from)
        self._ends = [self._answers_to(x) for x in (self._images, self._deleted, self._blank)]

    @property
    def step(self) -> int:
        """Pixels per step."""
        return self._step

    @property
    def whole(self) -> Tensor:
        """Probabilities of the target for the whole images, (N,) float64 on the CPU."""
        return self._ends[0][:, 0]

    @property
    def steps(self) -> int:
        """Steps from the first point of a curve to the last."""
        return math.ceil(self._images.shape[2:].numel() / self._step)

    @property
    def cost(self) -> int:
        """How many images the classifier sees in each call."""
        return 2 * len(self._images) * (self.steps - 1)

    def __call__(
        self,
        maps: Tensor | NDArray[np.floating],
        *,
        placement: tuple[float, float, float] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Curves:
        """Score one map of each image.

        Parameters
        ----------
        maps
            (N, h, w) floats, larger is more important, on any device; `upsampled` to the patch. Pixels of
            equal value follow in the order of rows, then columns.
        placement
            Where the maps' cells lie, as for `upsampled`.
        progress
            Called with the number of images after each forward pass; they add up to ``cost``.

        Raises
        ------
        SettingsError
            If the maps are not one of each image, or not finite.
        """
        height, width = self._images.shape[2:]
        rank = _ranks(upsampled(_checked_maps(maps, self._images), (height, width), placement))
        whole, deleted, blank = self._ends
        insertion = self._answers_between(rank, self._images, self._blank, progress)
        deletion = self._answers_between(rank, self._deleted, self._images, progress)
        return Curves(torch.cat([blank, insertion, whole], 1), torch.cat([whole, deletion, deleted], 1))

    def _answers_between(
        self, rank: Tensor, first: Tensor, rest: Tensor, progress: Callable[[int], object] | None
    ) -> Tensor:
        """Answers (N, steps − 1) to images whose first pixels are of one kind and the rest of another."""
        inner = self.steps - 1

        def mixture(start: int, end: int) -> tuple[Tensor, Tensor]:
            each = torch.arange(start, end, device=rank.device)
            patch, exchanged = each // inner, (each % inner + 1) * self._step
            taken = rank[patch] < exchanged.view(-1, 1, 1, 1)
            return torch.where(taken, first[patch], rest[patch]), self._targets[patch]

        return self._answers(len(rank) * inner, mixture, progress).view(len(rank), inner)

    def _answers_to(self, images: Tensor) -> Tensor:
        """Answers (N, 1) to one image for each patch."""
        return self._answers(len(images), lambda a, b: (images[a:b], self._targets[a:b]), None)[:, None]

    @torch.no_grad()
    def _answers(
        self,
        n: int,
        batch_of: Callable[[int, int], tuple[Tensor, Tensor]],
        progress: Callable[[int], object] | None,
    ) -> Tensor:
        """Probabilities (n,), float64 on the CPU, of the targets of n images, made batch by batch."""
        dtype = torch.promote_types(self._images.dtype, torch.float32)
        found = torch.zeros(n, dtype=dtype, device=self._images.device)  # there, or each batch would wait

        def answer(some: slice) -> int:
            images, targets = batch_of(some.start, some.stop)
            logits = standard_logits(self._network(images.contiguous(memory_format=torch.channels_last)))
            p = probabilities(logits.to(dtype), self._output)
            found[some] = p.gather(1, targets[:, None])[:, 0]
            return len(images)

        with eval_mode(self._network), smoothed(self._network, self._method, self._surrogate):
            for done in self._batch.over(n, answer):
                if progress:
                    progress(done)
        return found.cpu().double()


def _ranks(values: Tensor) -> Tensor:
    """Place of each pixel in the descending order of values (N, H, W): (N, 1, H, W) int32, from 0."""
    order = values.flatten(1).argsort(descending=True, stable=True)
    places = torch.arange(order.shape[1], dtype=torch.int32, device=order.device).expand_as(order)
    return torch.empty_like(places).scatter_(1, order, places).view_as(values)[:, None]


def insertion_deletion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor | NDArray[np.floating],
    target: int | Tensor | None = None,
    step: int | None = None,
    *,
    deletion_to: Substrate | Tensor = "zeros",
    insertion_from: Substrate | Tensor = "blur",
    batch_size: int | Batch | None = None,
    output: Output | None = None,
    placement: tuple[float, float, float] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Curves:
    r"""Score maps of patches by insertion and deletion.

    Pixels are ordered by saliency, descending. Deletion replaces them, a step at a time, with the substrate;
    insertion puts them back into a substrate. The curve is the target's probability at each of the
    :math:`n = \lceil HW / \mathrm{step} \rceil + 1` points, and the area under it

    .. math:: \mathrm{AUC} = \left(\sum_i p_i - p_1 / 2 - p_n / 2\right) / (n - 1).

    To score several kinds of maps of the same patches, make a `CausalScorer` and keep it.

    Parameters
    ----------
    model, images, target, step, deletion_to, insertion_from, batch_size, output
        As in `CausalScorer`.
    maps, placement, progress
        As `CausalScorer` takes them when it is called.

    Raises
    ------
    ModelError
        If the model's output is not logits.
    SettingsError
        If maps, target, step or a substrate do not fit.
    """
    scorer = CausalScorer(
        model,
        images,
        target,
        step,
        deletion_to=deletion_to,
        insertion_from=insertion_from,
        batch_size=batch_size,
        output=output,
    )
    return scorer(maps, placement=placement, progress=progress)


# -- substrates ------------------------------------------------------------------------------------------


def substrate(images: Tensor, what: Substrate | Tensor) -> Tensor:
    """Return what pixels are replaced with, one image for each.

    Parameters
    ----------
    images
        (N, 3, H, W) normalised floats.
    what
        A name, or a normalised image that broadcasts to the images' shape.

    Returns
    -------
    Tensor
        (N, 3, H, W) like the images; a view of fewer numbers where it has fewer.

    Raises
    ------
    SettingsError
        If the name is unknown, or is ``white`` (which only the classifier's normalisation tells), or the
        image does not fit.
    """
    if isinstance(what, Tensor):
        return _broadcast(what.to(images), images.shape)
    if what == "zeros":
        return images.new_zeros(1, 1, 1, 1).expand_as(images)
    if what == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    if what == "blur":
        return blurred(images)
    if what == "white":
        raise SettingsError(
            "white depends on the classifier's normalisation; pass it as a tensor (3, 1, 1): (1 - mean) / std"
        )
    raise SettingsError(f"unknown substrate {what!r}; choose from {', '.join(SUBSTRATES)}, or pass a tensor")


def _broadcast(image: Tensor, shape: torch.Size) -> Tensor:
    try:
        return image.expand(shape)
    except RuntimeError as error:
        raise SettingsError(
            f"the substrate is {tuple(image.shape)}, which does not fit images {tuple(shape)}"
        ) from error


def blurred(images: Tensor) -> Tensor:
    """Blur images (N, 3, H, W) as RISE's published code does.

    Its kernel of 11 × 11 is a point blurred with σ = 5 inside a box with reflecting edges: as the box is
    narrow, the kernel is flatter than a Gaussian. Beyond the image there are zeros.
    """
    point = np.eye(_BLUR_SIDE)[_BLUR_SIDE // 2]
    line = torch.from_numpy(gaussian_filter1d(point, _BLUR_SIGMA)).to(images)
    channels, margin = images.shape[1], _BLUR_SIDE // 2
    rows = line.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    half = F.conv2d(images, rows, padding=(margin, 0), groups=channels)
    return F.conv2d(half, rows.transpose(2, 3), padding=(0, margin), groups=channels)


# -- checks ----------------------------------------------------------------------------------------------


def _checked_step(images: Tensor, step: int | None) -> int:
    check_images(images)
    if step is not None and step < 1:
        raise SettingsError(f"a step of {step} pixels; it has to be at least one")
    return step or _STEP_ROWS * images.shape[3]


def _checked_maps(maps: Tensor | NDArray[np.floating], images: Tensor) -> Tensor:
    values = maps.detach() if isinstance(maps, Tensor) else torch.from_numpy(np.array(maps, order="C"))
    if values.ndim != 3 or len(values) != len(images) or not values.is_floating_point():
        raise SettingsError(
            f"maps are {tuple(values.shape)} {values.dtype}; they have to be floats ({len(images)}, h, w), "
            "one map of each image"
        )
    if not values.isfinite().all():
        raise SettingsError("the maps hold NaN or infinite values, which have no order")
    return values.to(images.device)
