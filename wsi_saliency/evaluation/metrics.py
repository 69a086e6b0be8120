"""What is measured on a map alone: how rough it is; and how it is enlarged to be compared with the patch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_MAGNITUDE = 1e-6


def total_variation(attr: Tensor) -> Tensor:
    r"""Return the total variation of attributions, each channel normalised by its mean magnitude.

    .. math:: \frac{1}{C h w} \sum_c \sum_{i,j} |a_{c,i+1,j} - a_{c,i,j}| + |a_{c,i,j+1} - a_{c,i,j}|,
        \quad a_c = \frac{A_c - \bar A_c}{\max(\overline{|A_c - \bar A_c|}, 10^{-6})}

    It is invariant to the scale of a channel, but for those whose mean magnitude lies below the bound.
    Constant maps, those of a single cell among them, give 0.

    Parameters
    ----------
    attr
        (N, C, h, w), or (N, h, w) for maps of one channel; any float dtype.

    Returns
    -------
    Tensor
        (N,) float64, on the attribution's device.
    """
    return roughness((attr if attr.ndim == 4 else attr[:, None]).double())


def roughness(values: Tensor) -> Tensor:
    """Return the total variation of (N, C, h, w) in the arithmetic of its own dtype: (N,)."""
    # a channel's mean drops out of its differences, and its magnitude out of their sum
    magnitude = (values - values.mean((2, 3), keepdim=True)).abs().mean((2, 3))
    steps = [values.diff(dim=axis).abs_().sum((2, 3)) for axis in (2, 3)]
    return ((steps[0] + steps[1]) / magnitude.clamp_min(_LEAST_MAGNITUDE)).sum(1) / values[0].numel()


def upsampled(
    maps: Tensor, side: int | tuple[int, int], placement: tuple[float, float, float] | None = None
) -> Tensor:
    """Enlarge maps to the patch: bilinear between the middles of cells, the edge repeated beyond them.

    Every value lies between those of its neighbours, and a constant map stays exactly constant, so that
    enlarging breaks no ties.

    Parameters
    ----------
    maps
        (N, h, w), any float dtype.
    side
        Patch in pixels: (H, W), or one number for both.
    placement
        (reduction, centre_x, centre_y): pixels per cell, and the middle of cell 0 in patch pixels, pixel
        ``i`` covering ``[i, i + 1)``, as `LayerGeometry` has them. None lets the map cover the patch in
        blocks, as ``torch.nn.functional.interpolate`` with ``align_corners=False`` does.

    Returns
    -------
    Tensor
        (N, H, W), of the maps' dtype, on their device.
    """
    patch_h, patch_w = (side, side) if isinstance(side, int) else side
    if placement is None:
        block_h, block_w = patch_h / maps.shape[1], patch_w / maps.shape[2]
        centre_x, centre_y = block_w / 2, block_h / 2
    else:
        block_h = block_w = placement[0]
        _, centre_x, centre_y = placement
    rows = _enlarged(maps, 1, patch_h, block_h, centre_y)
    return _enlarged(rows, 2, patch_w, block_w, centre_x)


def _enlarged(maps: Tensor, axis: int, pixels: int, reduction: float, centre: float) -> Tensor:
    """Interpolate along one axis."""
    last = maps.shape[axis] - 1
    cells = ((torch.arange(pixels, dtype=torch.float64) + 0.5 - centre) / reduction).clamp(0, last)
    before = cells.long()
    share = (cells - before).to(maps)
    before, after = before.to(maps.device), (before + 1).clamp_max(last).to(maps.device)
    return torch.lerp(
        maps.index_select(axis, before),
        maps.index_select(axis, after),
        share[:, None] if axis == 1 else share,
    )
