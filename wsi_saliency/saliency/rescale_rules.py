r"""The rules of DeepLift's Rescale for single functions: values, whose gradients go back by multipliers.

Each takes x and x′, what x was for the baseline, and gives f(x). Backpropagation through it sends Δy to Δx
instead of following the derivative. `wsi_saliency.saliency.rescale` says which function has which rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

_SMALL = 1e-6  # |Δx| below which Δy / Δx says less than the derivative


class _Multiplied(torch.autograd.Function):
    """y, whose gradients go back to its arguments with given multipliers."""

    @staticmethod
    def forward(ctx: Any, y: tuple[Tensor], *arguments_and_multipliers: Tensor) -> Tensor:
        half = len(arguments_and_multipliers) // 2
        ctx.save_for_backward(*arguments_and_multipliers[half:])
        ctx.shapes = [a.shape for a in arguments_and_multipliers[:half]]
        return y[0]  # wrapped on the way in, so that it is an output and no view: it may be changed in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.shapes, strict=True)
        back = [(gradients[0] * m).sum_to_size(shape) for m, shape in pairs]
        return (None, *back, *[None] * len(back))


def _multiplied(y: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    arguments, multipliers = zip(*pairs, strict=True)
    return _Multiplied.apply((y.detach(),), *arguments, *(m.detach() for m in multipliers))  # type: ignore[no-any-return]


def elementwise(f: Callable[[Tensor], Tensor], x: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
    """Return f(x) with the multiplier Δy / Δx; f'(x) where Δx is too small."""
    y, slope = _value_and_slope(f, x.detach())
    return _by_differences(y, slope, x, x0, y0)


def relu(x: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
    """Do what `elementwise` does for ReLU, by far the most frequent, in fewer passes."""
    y = x.detach().relu()
    return _by_differences(y, (y > 0).to(y.dtype), x, x0, y0)


def _by_differences(y: Tensor, slope: Tensor, x: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
    dx = x.detach() - x0
    return _multiplied(y, (x, torch.where(dx.abs() < _SMALL, slope, (y - y0) / dx)))


def _value_and_slope(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.requires_grad_()
        y = f(leaf)
        (slope,) = torch.autograd.grad(y.sum(), leaf)
    return y.detach(), slope


def product(a: Tensor, b: Tensor, a0: Tensor, b0: Tensor) -> Tensor:
    """Return a · b: each factor has the mean of the other as its multiplier."""
    return _multiplied(a * b, (a, (b + b0) / 2), (b, (a + a0) / 2))


def quotient(a: Tensor, b: Tensor, a0: Tensor, b0: Tensor) -> Tensor:
    """Return a / b, the product of a and 1 / b."""
    return product(a, elementwise(torch.reciprocal, b, b0, 1 / b0), a0, 1 / b0)


def matrix_product(a: Tensor, b: Tensor, a0: Tensor, b0: Tensor) -> Tensor:
    """Return a @ b: as for every product, each factor's multiplier is the mean of the other."""
    mean_a, mean_b = (a.detach() + a0) / 2, (b.detach() + b0) / 2
    way_back = a @ mean_b + mean_a @ b
    return a.detach() @ b.detach() + (way_back - way_back.detach())


def _secant(dx: Tensor) -> Tensor:
    """(1 − exp(−|Δx|)) / |Δx|: what Δ exp(x) / Δx is of the larger of both exp(x)."""
    size = dx.abs()
    return torch.where(size > 0, -torch.expm1(-size) / size.clamp_min(torch.finfo(dx.dtype).tiny), 1)


def _difference(x: Tensor, x0: Tensor) -> Tensor:
    return torch.where(x == x0, 0, x - x0)  # −∞ of a mask is no difference to itself


def softmax(x: Tensor, x0: Tensor, dim: int) -> Tensor:
    """Return exp(z), z = x − log Σ exp(x): three functions, each by its rule, and none of them overflows."""
    total, total0 = (t.detach().logsumexp(dim, keepdim=True) for t in (x, x0))
    scale = torch.maximum(total, total0)
    larger = torch.exp(torch.maximum(x.detach(), x0) - scale)
    of_sum = larger * _secant(_difference(x.detach(), x0)) / _secant(total - total0)
    z, z0 = x - _multiplied(total, (x, of_sum)), x0 - total0
    larger = torch.exp(torch.maximum(z.detach(), z0))
    return _multiplied(x.detach().softmax(dim), (z, larger * _secant(_difference(z.detach(), z0))))


def attention(
    qkv: tuple[Tensor, ...], qkv0: tuple[Tensor, ...], mask: Tensor | None, scale: float | None
) -> Tensor:
    """Return softmax(scale · q kᵀ + mask) v, two products and a softmax."""
    (q, k, v), (q0, k0, v0) = qkv, qkv0
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = matrix_product(q * scale, k.transpose(-2, -1), q0 * scale, k0.transpose(-2, -1))
    scores0 = q0 * scale @ k0.transpose(-2, -1)
    if mask is not None:
        added = (
            torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
            if mask.dtype == torch.bool
            else mask
        )
        scores, scores0 = scores + added, scores0 + added
    return matrix_product(softmax(scores, scores0, -1), v, scores0.softmax(-1), v0)


def layer_norm(
    x: Tensor,
    x0: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return layer normalisation: a centred value times a scale, which depends on it as well."""
    axes = tuple(range(-len(normalized_shape), 0))

    def centred(t: Tensor) -> Tensor:
        return t - t.mean(axes, keepdim=True)

    d, d0 = centred(x), centred(x0)
    variance = elementwise(torch.square, d, d0, d0.square()).mean(axes, keepdim=True) + eps
    variance0 = d0.square().mean(axes, keepdim=True) + eps
    scale0 = variance0.rsqrt()
    scale = elementwise(torch.rsqrt, variance, variance0, scale0)
    # Δ(d·s) = s·Δd + d′·Δs: exact as well, and stable where the baseline is flat and its scale enormous
    y = _multiplied(d * scale, (d, scale), (scale, d0.expand_as(d)))
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def group_norm(
    x: Tensor,
    x0: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return group normalisation: layer normalisation of the channels of each group."""
    grouped, grouped0 = (t.reshape(len(t), num_groups, -1) for t in (x, x0))
    y = layer_norm(grouped, grouped0, (grouped.shape[-1],), eps=eps).view_as(x)
    of_channels = (1, -1, *[1] * (x.ndim - 2))
    y = y if weight is None else y * weight.view(of_channels)
    return y if bias is None else y + bias.view(of_channels)


def _root(t: Tensor) -> Tensor:
    return t.clamp_min(torch.finfo(t.dtype).tiny).sqrt()  # without an infinite slope at 0


def norm(x: Tensor, x0: Tensor, dim: tuple[int, ...] | int | None = None, keepdim: bool = False) -> Tensor:  # noqa: FBT001 - as torch calls it
    """Return the Euclidean norm over some axes: the root of a sum of squares."""
    of_squares, of_squares0 = elementwise(torch.square, x, x0, x0.square()), x0.square()
    total, total0 = (t.sum(dim, keepdim=keepdim) for t in (of_squares, of_squares0))
    return elementwise(_root, total, total0, _root(total0))


def normalize(x: Tensor, x0: Tensor, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """Return x over its Euclidean norm along an axis, which is ``eps`` at least."""
    length, length0 = norm(x, x0, dim, True), _root(x0.square().sum(dim, keepdim=True))
    least = length0.clamp_min(eps)
    return quotient(x, elementwise(lambda t: t.clamp_min(eps), length, length0, least), x0, least)


def multi_head_attention(
    inputs: tuple[Tensor, ...],
    inputs0: tuple[Tensor, ...],
    heads: int,
    into: tuple[Tensor, Tensor | None],
    out: tuple[Tensor, Tensor | None],
) -> Tensor:
    """Return attention of several heads, that of ``nn.MultiheadAttention``: linear layers around `attention`.

    Parameters
    ----------
    inputs, inputs0
        Query, key and value, (L, N, E) each, of images and baseline.
    heads
        Their number; each sees E / heads channels.
    into, out
        Weight and bias of the layer in front, (3 E, E), and behind.
    """
    weights = into[0].chunk(3)
    biases: tuple[Tensor | None, ...] = (None,) * 3 if into[1] is None else into[1].chunk(3)

    def each_head(t: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        length, n = t.shape[:2]
        return F.linear(t, weight, bias).view(length, n, heads, -1).permute(1, 2, 0, 3)

    now, before = (
        tuple(each_head(*parts) for parts in zip(three, weights, biases, strict=True))
        for three in (inputs, inputs0)
    )
    seen = attention(now, before, None, None)  # (N, heads, L, E / heads)
    return F.linear(seen.permute(2, 0, 1, 3).flatten(2), *out)


class _MaxPool(torch.autograd.Function):
    """Max pooling whose gradient goes back by the rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, x0: Tensor, how: tuple[Any, ...]) -> Tensor:
        y, winner = F.max_pool2d(x, *how, return_indices=True)
        y0, winner0 = F.max_pool2d(x0, *how, return_indices=True)
        grew = y >= y0
        ctx.save_for_backward(x, x0, y - y0, torch.where(grew, winner, winner0.expand_as(winner)))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, x0, dy, winner = ctx.saved_tensors
        dx = (x - x0).flatten(2).gather(2, winner.flatten(2)).view_as(dy)
        small = dx.abs() < _SMALL
        multiplier = torch.where(small, torch.ones_like(dy), dy / dx.masked_fill(small, 1))
        back = torch.zeros_like(x, memory_format=torch.contiguous_format).flatten(2)
        back.scatter_add_(2, winner.flatten(2), (gradients[0] * multiplier).flatten(2))
        return back.view(x.shape), None, None


def max_pool(x: Tensor, x0: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return max pooling: Δy goes to the image's winner where y grew, to the baseline's where it fell."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False} | dict(
        zip(names, args, strict=False)
    )
    given |= {k: v for k, v in kwargs.items() if k in names}
    return _MaxPool.apply(x, x0, tuple(given[name] for name in names))  # type: ignore[no-any-return]
