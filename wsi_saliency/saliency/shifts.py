r"""Shifts: moving patches by a part of a network's total stride, and their maps back.

A map depends on where the picture lies modulo the total stride (its *phase*); in a vision transformer that
is the patch embedding's, and no strided convolution lies behind a token at which a gradient could be
averaged. So the mean is taken over maps of the patch moved by d, each moved back by d:

.. math:: \bar m(x) = \frac{1}{K} \sum_d m_d(x + d), \quad m_d \text{ the map of the patch moved by } d

The shifts d lie evenly in the total stride s and symmetrically about 0, at ± s/4 along each axis for two of
them. So nothing is moved on the whole.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

Shift = tuple[int, int]  # (y, x) in pixels of the patch, positive to the lower right
NO_SHIFT: Shift = (0, 0)


def shifts_within(total_stride: int, side: int) -> list[Shift]:
    """Return ``side`` × ``side`` shifts within a total stride in pixels, rounded alike to both sides.

    Where the stride is too small for whole pixels, some of them are one, and it is returned once.
    """
    places = [(k - (side - 1) / 2) * total_stride / side for k in range(side)]
    pixels = [int(math.copysign(round(abs(place)), place)) for place in places]
    return list(dict.fromkeys(product(pixels, pixels)))


def moved(images: Tensor, shift: Shift) -> Tensor:
    """Move images (N, C, H, W) by whole pixels; what comes in repeats the edge, what goes out is lost."""
    for axis, pixels in zip((2, 3), shift, strict=True):
        if pixels:
            images = images.index_select(axis, _held(images, axis, -pixels))
    return images


def moved_back(values: Tensor, shift: Shift, reduction: int) -> Tensor:
    """Move values of moved images back, by shares of a cell: linear between cells, the edge repeated.

    Parameters
    ----------
    values
        (N, C, h, w), of images that were moved.
    shift
        By how many pixels.
    reduction
        Pixels per cell.
    """
    for axis, pixels in zip((2, 3), shift, strict=True):
        whole, rest = divmod(pixels, reduction)
        here = values.index_select(axis, _held(values, axis, whole))
        there = values.index_select(axis, _held(values, axis, whole + 1)) if rest else here
        values = torch.lerp(here, there, rest / reduction) if rest else here
    return values


def _held(values: Tensor, axis: int, start: int) -> Tensor:
    """Return indices along an axis from ``start`` on, as many as there are, none beyond the edge."""
    size = values.shape[axis]
    return torch.arange(start, start + size, device=values.device).clamp(0, size - 1)
