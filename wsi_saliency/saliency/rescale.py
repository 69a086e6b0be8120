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
layer normalisation    centred d times scale s: s for d and d′ for s; Δy / Δx for s as a function of d;
                       group normalisation is that of each group
norm, x / norm         the root of a sum of squares: Δy / Δx for each; a quotient is a product with 1 / b
matrix product a @ b   as the product
softmax                exp(z), z = x − log Σ exp(x): Δy / Δx for each of exp, sum, log and exp
attention              two matrix products and a softmax; of several heads, linear layers around it
=====================  ==========================================================================

Whatever else depends on the activation is refused by name, so that contributions sum to y − y′.
Sources: Shrikumar, Greenside, Kundaje, "Learning Important Features Through Propagating Activation
Differences", 2017; for max pooling and products, Lundberg and Lee's SHAP (Shapley values of two players).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from wsi_saliency.errors import ModelError
from wsi_saliency.saliency.rescale_rules import (
    attention,
    elementwise,
    group_norm,
    layer_norm,
    matrix_product,
    max_pool,
    multi_head_attention,
    norm,
    normalize,
    product,
    quotient,
    relu,
    softmax,
)

if TYPE_CHECKING:
    from collections.abc import Callable

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
_BY_TWO = (
    dict.fromkeys(["mul", "multiply", "rmul", "imul"], product)
    | dict.fromkeys(["div", "divide", "true_divide", "truediv", "itruediv"], quotient)
    | dict.fromkeys(["matmul", "bmm", "mm"], matrix_product)
)
_NORMALISING: dict[str, Any] = {"layer_norm": layer_norm, "group_norm": group_norm}
_EUCLIDEAN: dict[str, Any] = {"norm": norm, "normalize": normalize}
_OF_EUCLIDEAN: dict[str, Any] = {"norm": ("p", "dim", "keepdim"), "normalize": ("p", "dim", "eps")}
_HEADS = "multi_head_attention_forward"
_ATTENTION = ("attn_mask", "dropout_p", "is_causal", "scale")  # arguments behind query, key and value
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
        "reshape_as",
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


class _Watching(TorchFunctionMode):
    """Sees every function that is called, and does something about it once `start` was called.

    What is called before, below the layer, is none of its business.
    """

    def __init__(self) -> None:
        super().__init__()
        self._on = False

    def start(self) -> None:
        """Do it from here on."""
        self._on = True


class RecordBaseline(_Watching):
    """Notes the calls that have a rule on a `Tape`."""

    def __init__(self) -> None:
        super().__init__()
        self.tape = Tape()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if not (self._on and _has_rule(name, args, kwargs)):
            return func(*args, **kwargs)
        kept = tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)
        result = func(*args, **kwargs)
        given = result.detach().clone() if isinstance(result, Tensor) else None
        self.tape.calls.append((name, kept, given))
        return result


class RescaleRule(_Watching):
    """Makes backpropagation send contributions back by the rule.

    Parameters
    ----------
    tape
        Of the same network, layer and method, for the baseline.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._calls = iter(tape.calls)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if not self._on:
            return func(*args, **kwargs)
        if not _has_rule(name, args, kwargs):
            result = func(*args, **kwargs)
            if name not in _NEED_NO_RULE | _BY_TWO.keys() and _depends_on_activation(result):
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


def _has_rule(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name in _BY_TWO:
        return all(isinstance(a, Tensor) and not isinstance(a, nn.Parameter) for a in args[:2])
    if name == "scaled_dot_product_attention":
        given = dict(zip(_ATTENTION, args[3:], strict=False)) | kwargs
        return len(args) > 2 and not (given.get("is_causal") or given.get("enable_gqa"))
    if name == _HEADS:
        return _is_plain(args, kwargs)
    if name in _EUCLIDEAN:
        given = dict(zip(_OF_EUCLIDEAN[name], args[1:], strict=False)) | kwargs
        return given.get("p", 2) in (2, "fro") and given.get("dtype") is None
    return name in _ELEMENTWISE | _NORMALISING.keys() or name in ("max_pool2d", "softmax", "addcmul")


def _is_plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell attention of several heads without masks, further keys or a map of its weights."""
    odd = ("key_padding_mask", "need_weights", "attn_mask", "use_separate_proj_weight", "is_causal")
    given = [*args[7:10], *(kwargs.get(name) for name in odd)]
    return len(args) == 13 and all(value is None or value is False for value in given)


def _asked(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a norm, but for its ``p``."""
    given = dict(zip(_OF_EUCLIDEAN[name], args[1:], strict=False)) | kwargs
    return {key: given[key] for key in _OF_EUCLIDEAN[name][1:] if key in given}


def _apply(
    name: str,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    baseline_args: tuple[Any, ...],
    baseline_result: Any,
) -> Any:
    x, x0 = args[0], _like(baseline_args[0], args[0])
    if name in _BY_TWO:
        y = _BY_TWO[name](x, args[1], x0, _like(baseline_args[1], args[1]))
    elif name == "scaled_dot_product_attention":
        given = dict(zip(_ATTENTION, args[3:], strict=False)) | kwargs
        others = tuple(_like(b, a) for a, b in zip(args[:3], baseline_args, strict=False))
        y = attention(args[:3], others, given.get("attn_mask"), given.get("scale"))
    elif name == "softmax":
        y = softmax(x, x0, kwargs["dim"] if "dim" in kwargs else args[1])
    elif name == "max_pool2d":
        y = max_pool(x, x0, args[1:], kwargs)
    elif name == "addcmul":
        others = tuple(_like(b, a) for a, b in zip(args[1:3], baseline_args[1:], strict=False))
        y = x + kwargs.get("value", 1) * product(*args[1:3], *others)
    elif name in _EUCLIDEAN:
        y = _EUCLIDEAN[name](x, x0, **_asked(name, args, kwargs))
    elif name in _NORMALISING:
        y = _NORMALISING[name](x, x0, *args[1:], **kwargs)
    elif name == _HEADS:
        others = tuple(_like(b, a, axis=1) for a, b in zip(args[:3], baseline_args, strict=False))
        return multi_head_attention(args[:3], others, args[4], (args[5], args[6]), (args[11], args[12])), None
    elif name == "relu":
        y = relu(x, x0, _like(baseline_result, x))
    else:
        y = elementwise(_out_of_place(func, args[1:], kwargs), x, x0, _like(baseline_result, x))
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


def _like(baseline: Any, x: Any, axis: int = 0) -> Any:
    """Repeat the baseline's values along the batch, if there are several images to one baseline."""
    if not isinstance(baseline, Tensor) or baseline.ndim <= axis:
        return baseline
    if baseline.shape[axis] in (1, x.shape[axis]):
        return baseline
    times = [1] * baseline.ndim
    times[axis] = x.shape[axis] // baseline.shape[axis]
    return baseline.repeat(*times)
