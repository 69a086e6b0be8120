"""What tests of compared maps and of their scores share: pictures, their targets, the control of a map."""

from __future__ import annotations

import torch
from PIL import Image
from torch import nn

from wsi_saliency.evaluation.measured import MapKind

TARGET = torch.tensor([0, 1, 1, 0, 1])


def pictures(n=5, side=64, seed=0):
    """Smooth pictures (n, 3, side, side), float64, as tissue is."""
    coarse = torch.randn(n, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(2 * coarse, side, mode="bilinear")


def control_of(kind):
    """The control of a map: the plain one, blurred until it is as smooth."""
    return MapKind(kind.method, kind.attribution, kind.layer, kind.reduction, "blurred-none")


def write_pictures(folder, greys, side):
    """Write pictures of one grey each, by their names below a folder."""
    for name, grey in greys.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), (grey,) * 3).save(folder / name)
