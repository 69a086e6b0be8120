"""Smoothing methods: what is changed in a network while it is explained, and nothing after.

A strided convolution multiplies neighbouring input pixels with different numbers of kernel weights, so the
gradient that flows back through it carries a checkerboard. Each method here is a context manager that
changes a network on entering and undoes it on leaving, whatever happens in between.

Source: "Smooth Deep Saliency", arXiv 2404.02282, for all but ``centred-hook``, which is its backward hook
made symmetric. The authors shift with wrap-around; here the edge is repeated, which differs in the first row
and column only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsi_saliency.errors import ModelError
from wsi_saliency.saliency.layers import strided_behind_stem, strided_convolutions
from wsi_saliency.saliency.surrogate import Surrogate, answered_for, surrogate_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from wsi_saliency.settings import Method


def box_average(x: Tensor, stride: tuple[int, ...]) -> Tensor:
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


def triangle_average(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    r"""Average each value with its neighbours on all sides: the box average, and then its mirror image.

    .. math:: \hat x[i, j] = \frac{1}{(s_y s_x)^2}
              \sum_{|a|<s_y} \sum_{|b|<s_x} (s_y - |a|)(s_x - |b|) \, x[i-a, j-b]

    For stride 2 that is [1 2 1] / 4 along each axis. Like the box, it is zero at the frequency of the
    checkerboard; unlike the box, it moves nothing.

    Parameters
    ----------
    x
        (N, C, h, w), any float dtype; values beyond the border repeat it.
    stride
        (s_y, s_x) of the convolution.
    """
    s_y, s_x = stride
    padded = F.pad(x, (s_x - 1, s_x - 1, s_y - 1, s_y - 1), mode="replicate")
    rows, columns = (x.new_tensor([s - abs(a) for a in range(1 - s, s)]) / s**2 for s in stride)
    kernel = torch.outer(rows, columns).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(padded, kernel, groups=x.shape[1])  # half the time of two average poolings


_Average = Callable[[Tensor, tuple[int, ...]], Tensor]
_Apply = Callable[[nn.Module, "Surrogate | None"], AbstractContextManager[None]]


@dataclass
class GradientAverage:
    """How gradients are averaged on their way back; another way may be taken for each backward pass.

    ``average`` None lets them pass as they are.
    """

    average: _Average | None = None

    def follow(self, method: Method) -> None:
        """Average as a method does that leaves predictions alone."""
        self.average = SMOOTHING[method].average


class _SmoothGradient(torch.autograd.Function):
    """The identity, whose gradient is averaged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: GradientAverage, stride: tuple[int, int]) -> Tensor:
        ctx.how, ctx.stride = how, stride
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        average = ctx.how.average
        return average(gradients[0], ctx.stride) if average else gradients[0], None, None


@dataclass(frozen=True)
class _BackwardHook:
    """Puts `_SmoothGradient` in front of a convolution."""

    how: GradientAverage

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        assert isinstance(module, nn.Conv2d)  # installed on strided convolutions only
        return (_SmoothGradient.apply(args[0], self.how, module.stride), *args[1:])


class _ForwardHook:
    """Averages a convolution's input, so that its output is the mean over shifted inputs, by linearity."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        assert isinstance(module, nn.Conv2d)  # installed on strided convolutions only
        return (box_average(args[0], module.stride), *args[1:])


@contextmanager
def _none(model: nn.Module, surrogate: Surrogate | None) -> Iterator[None]:
    yield


@contextmanager
def averaging(model: nn.Module, how: GradientAverage) -> Iterator[None]:
    """Let gradients be averaged inside a ``with`` block wherever they leave a strided convolution."""
    with _in_front_of(strided_convolutions(model).values(), _BackwardHook(how)):
        yield


def _averaging_by(average: _Average) -> _Apply:
    return lambda model, surrogate: averaging(model, GradientAverage(average))


@contextmanager
def _forward_hook(model: nn.Module, surrogate: Surrogate | None) -> Iterator[None]:
    with _in_front_of(strided_behind_stem(model).values(), _ForwardHook()):
        yield


@contextmanager
def _surrogate(model: nn.Module, surrogate: Surrogate | None) -> Iterator[None]:
    with (surrogate or surrogate_for(model)).installed(model):
        yield


@contextmanager
def _in_front_of(convolutions: Iterable[nn.Conv2d], hook: _BackwardHook | _ForwardHook) -> Iterator[None]:
    with ExitStack() as installed:
        for convolution in convolutions:
            installed.enter_context(convolution.register_forward_pre_hook(hook))
        yield


@dataclass(frozen=True)
class Smoothing:
    """A smoothing method.

    Parameters
    ----------
    apply
        Context manager that installs the method on a network; takes its surrogate, if the method needs one.
    acts_on
        Finds the convolutions of a network that it averages at or stands in for; None if it does neither.
    average
        How the gradient is averaged on its way back, where that is all that the method does.
    moves_gradient
        Whether the gradient is averaged to one side on its way back, so that the map drifts.
    changes_predictions
        Whether the network answers otherwise under it.
    imitates
        Whether it stands in for the network's own layers, so that their cells lie where they always do.
    shifts
        How many shifts of the patch along each axis its maps are the mean of; the network itself stays as it
        is (see `wsi_saliency.saliency.shifts`).
    """

    apply: _Apply
    acts_on: Callable[[nn.Module], Mapping[str, nn.Conv2d]] | None
    average: _Average | None = None
    moves_gradient: bool = False
    changes_predictions: bool = False
    imitates: bool = False
    shifts: int = 1

    @property
    def passes(self) -> int:
        """How many passes a map takes."""
        return self.shifts**2

    @property
    def is_plain(self) -> bool:
        """Whether it does nothing."""
        return self.acts_on is None and self.shifts == 1


SMOOTHING: dict[Method, Smoothing] = {
    "none": Smoothing(_none, None),
    "backward-hook": Smoothing(
        _averaging_by(box_average), strided_convolutions, box_average, moves_gradient=True
    ),
    "centred-hook": Smoothing(_averaging_by(triangle_average), strided_convolutions, triangle_average),
    "forward-hook": Smoothing(_forward_hook, strided_behind_stem, changes_predictions=True),
    "surrogate": Smoothing(_surrogate, strided_behind_stem, changes_predictions=True, imitates=True),
    "shift-average": Smoothing(_none, None, shifts=2),
}


@contextmanager
def smoothed(model: nn.Module, method: Method, surrogate: Surrogate | None = None) -> Iterator[nn.Module]:
    """Smooth a network's saliency inside a ``with`` block; the network is as before when the block is left.

    Parameters
    ----------
    model
        A network with strided `torch.nn.Conv2d` layers; where it has none, nothing changes.
    method
        A key of `SMOOTHING`. ``"shift-average"`` averages maps of whole passes: it changes nothing here.
    surrogate
        For ``"surrogate"``: one made for this network; left out, the one that comes with the program.

    Raises
    ------
    ModelError
        If a method is active on the network already, or there is no surrogate for it.
    """
    _check_not_smoothed(model)
    with SMOOTHING[method].apply(model, surrogate):
        yield model


@contextmanager
def smoothed_in_turn(
    model: nn.Module, methods: Sequence[Method], surrogate: Surrogate | None = None
) -> Iterator[GradientAverage]:
    """Smooth a network inside a ``with`` block by several methods, one for each backward pass.

    Yields what follows the methods. All of them leave predictions alone, or there is only one; so they share
    a forward pass.

    Raises
    ------
    ModelError
        As `smoothed`.
    """
    how, first = GradientAverage(), methods[0]
    if len(methods) == 1:
        with smoothed(model, first, surrogate):
            yield how
        return
    changing = [method for method in methods if SMOOTHING[method].changes_predictions]
    if changing:
        raise ValueError(f"{changing[0]} changes predictions and shares no forward pass")
    _check_not_smoothed(model)
    with averaging(model, how):
        yield how


def _check_not_smoothed(model: nn.Module) -> None:
    if any(_is_smoothed(convolution) for convolution in strided_convolutions(model).values()):
        raise ModelError("a smoothing method is active on this model already; leave it first")


def _is_smoothed(convolution: nn.Conv2d) -> bool:
    hooks = convolution._forward_pre_hooks.values()
    return answered_for(convolution) or any(isinstance(h, _BackwardHook | _ForwardHook) for h in hooks)
