"""Strided convolutions of every kind, and how often any is run."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = {
    **{f"kernel {k}, stride {s}": {"kernel_size": k, "stride": s, "padding": k // 2}
       for k in (1, 2, 3, 5, 7) for s in (2, 4)},
    "groups": {"kernel_size": 3, "stride": 2, "groups": 2},
    "depthwise": {"kernel_size": 3, "stride": 2, "groups": 4, "padding": 1},
    "dilation": {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 2},
    "uneven": {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 0)},
    "reflect": {"kernel_size": 3, "stride": 2, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "stride": 2, "padding": 1, "padding_mode": "circular"},
    "no bias": {"kernel_size": 3, "stride": 2, "bias": False},
}  # fmt: skip


class CountConvolutions(TorchFunctionMode):
    """Counts the 2-D convolutions that are run while it is entered."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.conv2d
        return func(*args, **(kwargs or {}))
