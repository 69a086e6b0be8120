r"""DeepLift's Rescale rule on any network, by watching its functions instead of its modules.

Between a baseline and an image, a function f of the network turns Δx into Δy; the rule sends a contribution
of Δy back to x with the multiplier Δy / Δx, where backpropagation would use the derivative. Watching
*functions* makes the rule hold where hooks on modules fail: one ReLU module used twice, functional calls,
products of two activations.

=====================  ==========================================================================
function               multiplier
=====================  ==========================================================================
linear                 its derivative, which is Δy / Δx
elementwise f(x)       Δy / Δx; f'(x) where Δx is too small to divide by
product a · b          (b + b′) / 2 for a and (a + a′) / 2 for b, so that both sum to Δ(a · b)
max pooling            Δy goes to the winner: the image's where y grew, the baseline's where it fell
layer normalisation    centred d times scale s: s for d and d′ for s; Δy / Δx for s as a function of d
=====================  ==========================================================================

Whatever else depends on the activation is refused by name, so that contributions sum to y − y′.
Sources: Shrikumar, Greenside, Kundaje, "Learning Important Features Through Propagating Activation
Differences", 2017; for max pooling and products, Lundberg and Lee's SHAP (Shapley values of two players).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from wsi_saliency.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

_SMALL = 1e-6  # |Δx| below which Δy / Δx says less than the derivative

_ELEMENTWISE = frozenset(
    [
        "relu",
        "relu6",
        "leaky_relu",
        "prelu",
        "rrelu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "softplus",
        "softsign",
        "hardswish",
        "hardsigmoid",
        "hardtanh",
        "sigmoid",
        "tanh",
        "logsigmoid",
        "clamp",
        "clamp_min",
        "exp",
        "log",
        "log1p",
        "sqrt",
        "rsqrt",
        "square",
        "pow",
        "abs",
        "erf",
        "reciprocal",
    ]
)
_PRODUCT = frozenset({"mul", "multiply", "rmul", "imul"})
_QUOTIENT = frozenset({"div", "divide", "true_divide", "truediv", "itruediv"})
# Linear functions, whose derivative is the rule; and those that compute no number from the activation.
_NEED_NO_RULE = frozenset(
    [
        "conv2d",
        "conv_transpose2d",
        "linear",
        "batch_norm",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "mean",
        "sum",
        "nansum",
        "add",
        "iadd",
        "radd",
        "sub",
        "isub",
        "rsub",
        "neg",
        "cat",
        "concat",
        "concatenate",
        "stack",
        "flatten",
        "unflatten",
        "view",
        "view_as",
        "reshape",
        "permute",
        "transpose",
        "swapaxes",
        "movedim",
        "t",
        "contiguous",
        "pad",
        "interpolate",
        "upsample",
        "dropout",
        "dropout2d",
        "feature_dropout",
        "chunk",
        "split",
        "unbind",
        "getitem",
        "narrow",
        "select",
        "index_select",
        "expand",
        "expand_as",
        "repeat",
        "repeat_interleave",
        "tile",
        "roll",
        "flip",
        "unsqueeze",
        "squeeze",
        "to",
        "type",
        "float",
        "double",
        "half",
        "bfloat16",
        "clone",
        "detach",
        "requires_grad",
        "get",
        "size",
        "dim",
        "numel",
        "is_floating_point",
        "is_contiguous",
        "stride",
        "pixel_shuffle",
        "pixel_unshuffle",
        "unfold",
        "fold",
        "copy",
        "zeros_like",
        "ones_like",
        "new_zeros",
        "new_ones",
        "new_empty",
        "empty_like",
        "cpu",
        "cuda",
        "len",
        "is_complex",
        "element_size",
        "data_ptr",
        "storage_offset",
        "device",
        "channel_shuffle",
        "identity",
        "alpha_dropout",
        "type_as",
    ]
)


@dataclass
class Tape:
    """What the functions above a layer were given and gave for the baseline, in the order of calls."""

    calls: list[tuple[str, tuple[Any, ...], Any]] = field(default_factory=list)


class RecordBaseline(TorchFunctionMode):
    """Notes the calls that have a rule on a `Tape`, once `start` was called."""

    def __init__(self) -> None:
        super().__init__()
        self.tape = Tape()
        self._on = False

    def start(self) -> None:
        """Note from here on."""
        self._on = True

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if not (self._on and _has_rule(name, args)):
            return func(*args, **kwargs)
        kept = tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)
        result = func(*args, **kwargs)
        self.tape.calls.append((name, kept, result.detach().clone()))
        return result


class RescaleRule(TorchFunctionMode):
    """Makes backpropagation send contributions back by the rule, once `start` was called.

    Parameters
    ----------
    tape
        Of the same network, layer and method, for the baseline.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._calls = iter(tape.calls)
        self._on = False

    def start(self) -> None:
        """Apply the rule from here on."""
        self._on = True

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if not self._on:
            return func(*args, **kwargs)
        if not _has_rule(name, args):
            result = func(*args, **kwargs)
            if name not in _NEED_NO_RULE | _PRODUCT | _QUOTIENT and _depends_on_activation(result):
                raise ModelError(f"deeplift has no rule for {name!r} in this model; use integrated-gradients")
            return result
        expected, baseline_args, baseline_result = next(self._calls, ("nothing", (), None))
        if expected != name:
            raise ModelError(
                f"the model calls {name!r} where it called {expected!r} for the baseline; deeplift needs a "
                "model that always does the same, use integrated-gradients"
            )
        return _apply(name, func, args, kwargs, baseline_args, baseline_result)


def _depends_on_activation(result: Any) -> bool:
    return any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves(result))


def _name(func: Any) -> str:
    """Return the name of a function without what marks it as a method or as working in place."""
    name = str(getattr(func, "__name__", "")).strip("_")
    return "max_pool2d" if name in ("max_pool2d_with_indices", "boolean_dispatch") else name


def _has_rule(name: str, args: tuple[Any, ...]) -> bool:
    if name in _PRODUCT or name in _QUOTIENT:
        factors = args[:2]
        return all(isinstance(a, Tensor) and not isinstance(a, nn.Parameter) for a in factors)
    return name in _ELEMENTWISE or name in ("max_pool2d", "layer_norm")


def _apply(
    name: str,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    baseline_args: tuple[Any, ...],
    baseline_result: Any,
) -> Any:
    x, x0 = args[0], _like(baseline_args[0], args[0])
    if name in _PRODUCT or name in _QUOTIENT:
        y = _product_or_quotient(name, x, args[1], x0, _like(baseline_args[1], args[1]))
    elif name == "max_pool2d":
        y = _max_pool(x, x0, args[1:], kwargs)
    elif name == "layer_norm":
        y = _layer_norm(x, x0, *args[1:], **kwargs)
    elif name == "relu":
        y = _relu(x, x0, _like(baseline_result, x))
    else:
        y = _elementwise(_out_of_place(func, args[1:], kwargs), x, x0, _like(baseline_result, x))
    return x.copy_(y) if _works_in_place(func, args, kwargs) else y


def _works_in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    name, spelled = _name(func), str(func.__name__)
    marked = spelled.endswith("_") and not spelled.endswith("__")
    asked = kwargs.get("inplace", False) or (name in _ELEMENTWISE and any(a is True for a in args[1:]))
    return marked or asked or name in ("imul", "itruediv")


def _out_of_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Return an elementwise function of its first argument that leaves it as it is."""
    if "inplace" in kwargs:
        kwargs = kwargs | {"inplace": False}
    args = tuple(False if a is True else a for a in args)
    return lambda x: func(x.clone(), *args, **kwargs)


def _like(baseline: Any, x: Any) -> Any:
    """Repeat the baseline's values along the batch, if there are several images to one baseline."""
    if not isinstance(baseline, Tensor) or baseline.ndim == 0 or baseline.shape[0] in (1, x.shape[0]):
        return baseline
    return baseline.repeat(x.shape[0] // baseline.shape[0], *[1] * (baseline.ndim - 1))


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


def _elementwise(f: Callable[[Tensor], Tensor], x: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
    y, slope = _value_and_slope(f, x.detach())
    return _by_differences(y, slope, x, x0, y0)


def _relu(x: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
    """Do what `_elementwise` does for ReLU, by far the most frequent, in fewer passes."""
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


def _product(a: Tensor, b: Tensor, a0: Tensor, b0: Tensor) -> Tensor:
    return _multiplied(a * b, (a, (b + b0) / 2), (b, (a + a0) / 2))


def _product_or_quotient(name: str, a: Tensor, b: Tensor, a0: Tensor, b0: Tensor) -> Tensor:
    if name in _QUOTIENT:
        b, b0 = _elementwise(torch.reciprocal, b, b0, 1 / b0), 1 / b0
    return _product(a, b, a0, b0)


def _layer_norm(
    x: Tensor,
    x0: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))

    def centred(t: Tensor) -> Tensor:
        return t - t.mean(axes, keepdim=True)

    d, d0 = centred(x), centred(x0)
    variance = _elementwise(torch.square, d, d0, d0.square()).mean(axes, keepdim=True) + eps
    variance0 = d0.square().mean(axes, keepdim=True) + eps
    scale0 = variance0.rsqrt()
    scale = _elementwise(torch.rsqrt, variance, variance0, scale0)
    # Δ(d·s) = s·Δd + d′·Δs: exact as well, and stable where the baseline is flat and its scale enormous
    y = _multiplied(d * scale, (d, scale), (scale, d0.expand_as(d)))
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


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


def _max_pool(x: Tensor, x0: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False} | dict(
        zip(names, args, strict=False)
    )
    given |= {k: v for k, v in kwargs.items() if k in names}
    return _MaxPool.apply(x, x0, tuple(given[name] for name in names))  # type: ignore[no-any-return]
