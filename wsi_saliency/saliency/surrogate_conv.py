"""What stands in for one strided convolution: layers that touch every input pixel alike.

Source: "Smooth Deep Saliency", arXiv 2404.02282.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SIMILARITY = 0.7  # of neighbouring pixels of a feature map, assumed for the initial weights


class SurrogateConv(nn.Module):
    """Convolution 3×3, bilinear resize, convolution 3×3; both with bias and zero padding that keeps the size.

    C_in → C_out, then C_out → C_out. Groups stay apart as in the original, which does not mix them either: in
    place of a depthwise convolution, dense layers are hundreds of times as large and learn more slowly.

    Parameters
    ----------
    in_channels, out_channels, groups
        Those of the convolution it stands for.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, out_channels, 3, padding=1, groups=groups)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=groups)

    @classmethod
    def like(cls, convolution: nn.Conv2d) -> SurrogateConv:
        """Start near a convolution, on its device: the best 3×3 kernel in front of the resize, then nothing.

        A resize by the stride ``s`` samples at ``s·i + (s−1)/2``, not at ``s·i``, and averages two pixels
        where that lies between them. The first kernel makes up for it in the sense of least squares, for
        features whose pixels are correlated with 0.7 per pixel of distance. Borders are left to learning.
        """
        layer = cls(*shape_of(convolution))
        kernel = convolution.weight.detach().double().cpu()
        axes = zip(
            convolution.kernel_size,
            convolution.stride,
            _padding(convolution),
            convolution.dilation,
            strict=True,
        )
        to_y, to_x = (_best_kernel(*axis) for axis in axes)
        with torch.no_grad():
            layer.first.weight.copy_(torch.einsum("ya,xb,oiab->oiyx", to_y, to_x, kernel))
            nn.init.dirac_(layer.second.weight, groups=convolution.groups)
            for target, bias in ((layer.first, convolution.bias), (layer.second, None)):
                nn.init.zeros_(target.bias)  # type: ignore[arg-type]
                if bias is not None:
                    target.bias.copy_(bias)  # type: ignore[union-attr]
        dtype = torch.promote_types(convolution.weight.dtype, torch.float32)
        return layer.to(convolution.weight.device, dtype)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels in, channels out, groups."""
        return shape_of(self.first)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return (N, C_out, *size) for (N, C_in, h, w)."""
        resized = F.interpolate(self.first(x), size, mode="bilinear", align_corners=False, antialias=False)
        second: Tensor = self.second(resized)
        return second


def shape_of(convolution: nn.Conv2d) -> tuple[int, int, int]:
    """Return channels in, channels out and groups of a convolution."""
    return convolution.in_channels, convolution.out_channels, convolution.groups


def _padding(convolution: nn.Conv2d) -> list[int]:
    """Return the padding above and to the left; timm's "same" convolutions do not state theirs."""
    sizes = [64 * stride for stride in convolution.stride]
    paddings = []
    for axis, found in enumerate(output_size(convolution, sizes[0], sizes[1])):
        reach = (convolution.kernel_size[axis] - 1) * convolution.dilation[axis] + 1
        stride, stated = convolution.stride[axis], convolution.padding[axis]
        stated = 0 if isinstance(stated, str) else stated
        as_stated = (sizes[axis] + 2 * stated - reach) // stride + 1 == found
        overhang = max(0, (found - 1) * stride + reach - sizes[axis])
        paddings.append(stated if as_stated else overhang // 2)
    return paddings


def _best_kernel(taps: int, stride: int, padding: int, dilation: int) -> Tensor:
    """Return the matrix (3, taps) from an original kernel to the 3-tap kernel in front of a resize, one axis.

    With the resize's weights R (3 taps → taps at input offsets) and the original's places P (taps → offsets),
    it is argmin over M of the expected square of (R M − P) k · x for x with covariance 0.7^|distance|.
    """
    middle = (stride - 1) / 2
    below, part = int(middle), middle % 1
    reached = {below: 1 - part, below + 1: part}
    low = min(-padding, below - 1)
    length = max((taps - 1) * dilation - padding, below + 2) - low + 1
    resize, places = torch.zeros(length, 3).double(), torch.zeros(length, taps).double()
    for tap in range(3):
        for offset, weight in reached.items():
            resize[offset + tap - 1 - low, tap] += weight
    for tap in range(taps):
        places[tap * dilation - padding - low, tap] = 1
    offsets = torch.arange(length)
    covariance = _SIMILARITY ** (offsets[:, None] - offsets).abs().double()
    best: Tensor = torch.linalg.solve(resize.T @ covariance @ resize, resize.T @ covariance @ places)
    return best


def output_size(convolution: nn.Conv2d, h: int, w: int) -> tuple[int, int]:
    """Return height and width of a convolution's output for an input of ``h`` × ``w``.

    The convolution's own code is asked, on tensors without data: it knows "same" padding as timm has it.
    """
    blank = copy.copy(convolution)
    vars(blank).pop("forward", None)
    vars(blank)["_parameters"] = {
        name: None if value is None else value.detach().to("meta")
        for name, value in convolution._parameters.items()
    }
    x = torch.empty(1, blank.in_channels, h, w, dtype=blank.weight.dtype, device="meta")
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        size = blank.forward(x).shape
    return size[2], size[3]
