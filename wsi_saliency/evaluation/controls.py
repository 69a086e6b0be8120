"""Controls: maps that know nothing of the classifier, or of smoothing, and that a good map has to beat."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from wsi_saliency.evaluation.metrics import total_variation

if TYPE_CHECKING:
    from torch import Tensor

_RUNGS = 12  # blurs tried on the way up, from a tenth of a cell to the map's side: about a factor of two each
_HALVINGS = 10  # of the last such step, which leaves it 0.1 % wide
_TAIL = 7  # standard deviations after which a Gaussian is nothing
_LEAST_SIGMA = 1e-3  # no blur at all; spares a division by zero


def random_maps(n: int, h: int, w: int, seed: int) -> Tensor:
    """Return maps (n, h, w) of independent values, uniform in [0, 1), float32 on the CPU."""
    return torch.rand(n, h, w, generator=torch.Generator().manual_seed(seed))


def centred_gaussian(h: int, w: int) -> Tensor:
    r"""Return a Gaussian (h, w) in the middle of the patch, float32 on the CPU, its largest value at most 1.

    .. math:: g[i, j] = \exp(-(i - (h-1)/2)^2 / 2 (h/4)^2 - (j - (w-1)/2)^2 / 2 (w/4)^2)

    Its standard deviation is a quarter of the patch's side.
    """
    rows, columns = (torch.exp(-8 * ((torch.arange(n) - (n - 1) / 2) / n) ** 2) for n in (h, w))
    return torch.outer(rows, columns)


def blurred_to(values: Tensor, wanted: Tensor) -> Tensor:
    """Blur each patch's map with the Gaussian that brings its total variation down to the wanted one.

    It is the control that smoothing has to beat: as smooth as the method's map, and made without it.

    Total variation is divided by the map's magnitude, which a blur lowers too: it mostly falls with the
    blur's width, but may rise a little, as on a checkerboard once only its edges are left. So widths are
    tried from small to large, each about twice the last, up to the map's side; where the wanted value is
    first passed, the width is found by bisection. That ends at the wanted value however the total variation
    runs between the two, for it is continuous.

    Parameters
    ----------
    values
        Maps (N, h, w), or (N, C, h, w) with one blur for all channels of a patch; any float dtype.
    wanted
        (N,) total variation as `total_variation` measures it.

    Returns
    -------
    Tensor
        Of the values' shape, dtype and device. A map that is as smooth as wanted already comes back as it is;
        where no blur is wide enough, the map is blurred with the widest.
    """
    blur = Blur(values)
    wanted = wanted.to(values.device, torch.float64)
    low = high = torch.zeros_like(wanted)
    reached = total_variation(values) <= wanted
    widest = max(values.shape[-2:])
    for rung in range(_RUNGS):
        if reached.all():
            break
        low = torch.where(reached, low, high)
        high = torch.where(reached, high, 0.1 * (10 * widest) ** (rung / (_RUNGS - 1)))
        reached = reached | (total_variation(blur(high)) <= wanted)
    low = torch.where(reached, low, high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        smooth = total_variation(blur(middle)) <= wanted
        low, high = torch.where(smooth, low, middle), torch.where(smooth, middle, high)
    unblurred = (high == 0).view(-1, *[1] * (values.ndim - 1))
    return torch.where(unblurred, values, blur(high).to(values.dtype))


class Blur:
    r"""Blurs maps with a Gaussian, reflecting at the edges, of a standard deviation for each patch.

    The same as ``scipy.ndimage.gaussian_filter`` without truncation. A symmetric kernel :math:`g` with
    reflecting edges only scales the modes of the discrete cosine transform, mode k of n by

    .. math:: \sum_d g(d) \cos(\pi k d / n) \Big/ \sum_d g(d),

    so that the maps are transformed once for all widths.

    Parameters
    ----------
    values
        (N, h, w) or (N, C, h, w); the arithmetic is at least float32.
    """

    def __init__(self, values: Tensor) -> None:
        maps = values if values.ndim == 4 else values[:, None]
        maps = maps.to(torch.promote_types(values.dtype, torch.float32))
        self._shape = values.shape
        self._rows, self._columns = (_cosines(n).to(maps) for n in maps.shape[2:])
        self._spectrum = self._rows @ maps @ self._columns.T

    def __call__(self, sigma: Tensor) -> Tensor:
        """Return the maps, blurred with standard deviations (N,) in cells; 0 is no blur."""
        left, right = (_shrinkage(sigma.double(), n).to(self._spectrum) for n in self._shape[-2:])
        kept = self._spectrum * left[:, None, :, None] * right[:, None, None, :]
        return (self._rows.T @ kept @ self._columns).view(self._shape)


def _shrinkage(sigma: Tensor, n: int) -> Tensor:
    """Return what Gaussians of standard deviations (N,) leave of the n modes of a row: (N, n) float64."""
    reach = math.ceil(_TAIL * float(sigma.max())) + 1
    away = torch.arange(reach, dtype=torch.float64, device=sigma.device)
    weights = torch.exp(-((away / sigma.clamp_min(_LEAST_SIGMA)[:, None]) ** 2) / 2)
    weights[:, 1:] *= 2  # to either side
    modes = torch.arange(n, dtype=torch.float64, device=sigma.device)
    return weights @ torch.cos(math.pi / n * away[:, None] * modes) / weights.sum(1, keepdim=True)


def _cosines(n: int) -> Tensor:
    """Orthonormal discrete cosine transform (DCT-II) of rows of length n: (n, n) float64, a mode a row."""
    modes, cells = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64) + 0.5
    matrix = torch.cos(math.pi / n * modes * cells) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix
