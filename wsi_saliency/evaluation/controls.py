"""Controls: maps that know nothing of the classifier, or of smoothing, and that a good map has to beat."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from wsi_saliency.evaluation.metrics import roughness

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_NARROWEST = 0.25  # cells; the narrowest blur that is tried
_CLOSE = 0.005  # relative excess that is near enough to the wanted total variation
_STEPS = 20  # of false position at most; it takes about five
_ROUNDING = 1e-5  # relative excess that is none
_SMOOTHEST = 1e-9  # spares a division by zero where a constant map is wanted
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
    tried from small to large, each twice the last, up to the map's side; where the wanted value is first
    passed, the width is found by false position. That ends at the wanted value however the total variation
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

    def excess(sigma: Tensor) -> Tensor:
        """By how much the blurred map is too rough, relative; −1 where it is constant."""
        blurred = blur(sigma)
        found = roughness(blurred if blurred.ndim == 4 else blurred[:, None]).double()
        return found / wanted.clamp_min(_SMOOTHEST) - 1

    low = high = torch.zeros_like(wanted)
    above = under = excess(high)
    while (short := (under > _ROUNDING) & (high < max(values.shape[-2:]))).any():
        low, above = torch.where(short, high, low), torch.where(short, under, above)
        high = torch.where(short, (2 * high).clamp(_NARROWEST, max(values.shape[-2:])), high)
        under = torch.where(short, excess(high), under)
    high = _close_in(excess, low, above, high, under)
    unblurred = (high == 0).view(-1, *[1] * (values.ndim - 1))
    return torch.where(unblurred, values, blur(high).to(values.dtype))


def _close_in(
    excess: Callable[[Tensor], Tensor], low: Tensor, above: Tensor, high: Tensor, under: Tensor
) -> Tensor:
    """Return ``high``, moved down to where the excess is just below 0 (false position, Illinois variant).

    ``above`` and ``under`` are the excess at ``low`` and ``high``; where the latter is positive, no width is
    enough, and where it is at ``low`` none is needed.
    """
    for _ in range(_STEPS):
        open_ends = (under < -_CLOSE) & (high > low)
        if not open_ends.any():
            break
        # aim a little below 0, so that the end below closes in
        weight = ((above + _CLOSE / 2) / (above - under)).clamp(0.05, 0.95)
        middle = torch.where(open_ends, low + weight * (high - low), high)
        found = excess(middle)
        lower, upper = open_ends & (found <= 0), open_ends & (found > 0)
        low, above = torch.where(upper, middle, low), torch.where(upper, found, above)
        high, under = torch.where(lower, middle, high), torch.where(lower, found, under)
        above = torch.where(lower, above / 2, above)
    return high


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
