"""Smoothing methods: what is changed in a network while it is explained, and nothing after.

A strided convolution multiplies neighbouring input pixels with different numbers of kernel weights, so the
gradient that flows back through it carries a checkerboard. Each method here is a context manager that
changes a network on entering and undoes it on leaving, whatever happens in between.

Source: "Smooth Deep Saliency", arXiv 2404.02282. The authors shift with wrap-around; here the edge is
repeated, which differs in the first row and column only.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsi_saliency.errors import ModelError
from wsi_saliency.saliency.layers import strided_convolutions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wsi_saliency.settings import Method


def box_average(x: Tensor, stride: tuple[int, int]) -> Tensor:
    r"""Average each value with its neighbours at lower indices, one stride wide.

    .. math:: \hat x[i, j] = \frac{1}{s_y s_x} \sum_{a<s_y} \sum_{b<s_x} x[i-a, j-b]

    Parameters
    ----------
    x
        (N, C, h, w), any float dtype; values before the first row and column repeat it.
    stride
        (s_y, s_x) of the convolution.
    """
    s_y, s_x = stride
    return F.avg_pool2d(F.pad(x, (s_x - 1, 0, s_y - 1, 0), mode="replicate"), stride, stride=1)


class _SmoothGradient(torch.autograd.Function):
    """The identity, whose gradient is averaged by `box_average`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: tuple[int, int]) -> Tensor:
        ctx.stride = stride
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return box_average(gradients[0], ctx.stride), None


class _BackwardHook:
    """Puts `_SmoothGradient` in front of a convolution."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        assert isinstance(module, nn.Conv2d)  # installed on strided convolutions only
        return (_SmoothGradient.apply(args[0], module.stride), *args[1:])


@contextmanager
def _none(model: nn.Module) -> Iterator[None]:
    yield


@contextmanager
def _backward_hook(model: nn.Module) -> Iterator[None]:
    with ExitStack() as installed:
        for convolution in strided_convolutions(model).values():
            installed.enter_context(convolution.register_forward_pre_hook(_BackwardHook()))
        yield


@dataclass(frozen=True)
class Smoothing:
    """A smoothing method.

    Parameters
    ----------
    apply
        Context manager that installs the method on a network.
    moves_gradient
        Whether the gradient is averaged to one side on its way back, so that the map drifts.
    """

    apply: Callable[[nn.Module], Any]
    moves_gradient: bool


SMOOTHING: dict[Method, Smoothing] = {
    "none": Smoothing(_none, moves_gradient=False),
    "backward-hook": Smoothing(_backward_hook, moves_gradient=True),
}


@contextmanager
def smoothed(model: nn.Module, method: Method) -> Iterator[nn.Module]:
    """Smooth a network's saliency inside a ``with`` block; the network is as before when the block is left.

    Parameters
    ----------
    model
        A network with strided `torch.nn.Conv2d` layers; where it has none, nothing changes.
    method
        A key of `SMOOTHING`.

    Raises
    ------
    ModelError
        If a method is active on the network already.
    """
    if any(_is_smoothed(convolution) for convolution in strided_convolutions(model).values()):
        raise ModelError(
            "a smoothing method is active on this model already; leave it before entering another"
        )
    with SMOOTHING[method].apply(model):
        yield model


def _is_smoothed(convolution: nn.Conv2d) -> bool:
    return any(isinstance(hook, _BackwardHook) for hook in convolution._forward_pre_hooks.values())
