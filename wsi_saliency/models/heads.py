"""Heads that end in probabilities: the softmax or sigmoid is taken off where that is exact."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wsi_saliency.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import CodeType

Squashing = Literal["softmax", "sigmoid"]

_MODULES: Mapping[type[nn.Module], Squashing] = {
    nn.Softmax: "softmax",
    nn.LogSoftmax: "softmax",
    nn.Sigmoid: "sigmoid",
}
_FUNCTIONS: Mapping[str, Squashing] = {
    "softmax": "softmax",
    "log_softmax": "softmax",
    "sigmoid": "sigmoid",
    "special_expit": "sigmoid",
}

# Functions with weights, and those that turn logits into probabilities, by the name PyTorch gives them.
_WEIGHTED = frozenset({"linear", "conv2d", "matmul", "__matmul__", "mm", "bmm", "addmm", "einsum"})
_SQUASHING = _FUNCTIONS.keys() | {"logsigmoid", "hardsigmoid"}

_TORCH = str(Path(torch.__file__).parent)
_PASSED_ON = tuple(str(Path(_TORCH, file)) for file in ("nn/functional.py", "overrides.py"))


class _Watch(TorchFunctionMode):
    """Sees every function of PyTorch that a forward pass calls."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self.called(func, getattr(func, "__name__", ""), args, kwargs or {})

    def called(
        self, func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Return what the function gives."""
        return func(*args, **kwargs)


class SquashWatch(_Watch):
    """Sees whether a forward pass squashes its result after the last function that has weights.

    Looking at the functions is exact; looking at values is not, for a single logit may well lie in [0, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.squashed_by: str | None = None

    def called(
        self, func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Note what the function does to the result."""
        name = name if name.startswith("__") else name.rstrip("_")  # in place: sigmoid_
        if name in _WEIGHTED:
            self.squashed_by = None
        elif name in _SQUASHING:
            self.squashed_by = name
        return func(*args, **kwargs)


class Shortened(NamedTuple):
    """A network that ends in front of its softmax or sigmoid.

    Parameters
    ----------
    module
        A copy that gives logits.
    taken_off
        Class of the module, or name of the function, that it lacks.
    output
        What turns its logits into probabilities.
    """

    module: nn.Module
    taken_off: str
    output: Squashing


def without_squashing(module: nn.Module, images: Tensor) -> Shortened | None:
    """Return a copy of a network that ends in front of its softmax or sigmoid, if that is the last it does.

    It is, if what the network gives is the very tensor that this module or function gave, unchanged, and it
    ran once; axes of one element may come or go (``squeeze``, ``flatten``). Then all in front of it computes
    the logits, bit for bit.

    Parameters
    ----------
    module
        The network, in eval mode; it stays as it is.
    images
        What it takes, (N, 3, H, W).

    Returns
    -------
    Shortened or None
        None where the last thing the network does is another, a softmax is not over two classes or more, or
        the network cannot be copied.
    """
    try:
        return _without_module(module, images) or _without_call(module, images)
    except (RuntimeError, TypeError):  # weights that are computed (weight norm), locks, open files
        return None


def _is_view(out: object, given: Tensor) -> bool:
    """Tell whether an output is a tensor itself, or its memory seen with the same images and classes."""
    if out is given:
        return True
    if not isinstance(out, Tensor) or (out.data_ptr(), out.dtype) != (given.data_ptr(), given.dtype):
        return False
    return _layout(out) is not None and _layout(out) == _layout(given)


def _layout(out: Tensor) -> list[tuple[int, int]] | None:
    """Return how many images and classes there are, and their strides; None where there are more axes."""
    if not out.ndim or any(size != 1 for size in out.shape[2:]):
        return None
    axes = [*zip(out.shape, out.stride(), strict=True), (1, 0)][:2]
    return [(size, stride if size > 1 else 0) for size, stride in axes]


# ------------------------------------------------------------------------------------- a module at the end


def _without_module(module: nn.Module, images: Tensor) -> Shortened | None:
    name = _last(module, images)
    if name is None:
        return None
    squash = module.get_submodule(name)
    shortened = copy.deepcopy(module)
    parent, _, attribute = name.rpartition(".")
    setattr(shortened.get_submodule(parent), attribute, nn.Identity())
    return Shortened(shortened, type(squash).__name__, _MODULES[type(squash)])


def _last(module: nn.Module, images: Tensor) -> str | None:
    """Return the name of the squashing module that gives the network's output."""
    ran: list[tuple[str, Tensor, int]] = []

    def noted(name: str) -> Any:
        return lambda _module, _args, out: ran.append((name, out, out._version))

    named = {name: m for name, m in module.named_modules() if name and type(m) in _MODULES}
    hooks = [m.register_forward_hook(noted(name)) for name, m in named.items()]
    try:
        out = module(images)
    finally:
        for hook in hooks:
            hook.remove()
    last = [(name, given) for name, given, version in ran if _is_view(out, given) and version == out._version]
    if len(last) != 1 or [name for name, _, _ in ran].count(last[0][0]) != 1:
        return None
    name, given = last[0]
    dim = getattr(named[name], "dim", None)
    return name if _is_over_classes(_MODULES[type(named[name])], dim, given) else None


def _is_over_classes(output: Squashing, dim: int | None, out: Tensor) -> bool:
    if output == "sigmoid":
        return True
    over = out.ndim - 1 if dim is None else dim % out.ndim
    return out.ndim > 1 and over == 1 and out.shape[1] > 1


# ----------------------------------------------------------------------------------- a function at the end

_Site = tuple["CodeType", int]
"""Where a function is called: the caller's code, and the instruction in it."""


def _site() -> _Site | None:
    """Return where the function that a mode sees is called; None where that is a module of PyTorch."""
    frame = sys._getframe(3)  # behind this function, `called` and __torch_function__
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PASSED_ON):
        frame = frame.f_back
    inside = frame.f_code.co_filename.startswith(_TORCH)
    return None if inside else (frame.f_code, frame.f_lasti)


class _Call(NamedTuple):
    """A call of a squashing function: where, its name, over which axis, what it was given and gave."""

    site: _Site | None
    name: str
    dim: int | None
    logits: Tensor
    out: Tensor
    version: int


class _Calls(_Watch):
    """Notes all calls of squashing functions."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[_Call] = []

    def called(
        self, func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call it and note it."""
        out = func(*args, **kwargs)
        if name in _FUNCTIONS and len(args) in (1, 2):
            dim = kwargs.get("dim", args[1] if len(args) == 2 else None)
            self.noted.append(_Call(_site(), name, dim, args[0], out, out._version))
        return out


class _LeaveOut(_Watch):
    """Lets the function that is called at a place give back what it was given."""

    def __init__(self, site: _Site) -> None:
        super().__init__()
        self._site = site
        self.logits: list[Tensor] = []

    def called(
        self, func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call it, but for the one."""
        if name not in _FUNCTIONS or _site() != self._site:
            return func(*args, **kwargs)
        self.logits.append(args[0])
        return args[0]


def _without_call(module: nn.Module, images: Tensor) -> Shortened | None:
    with _Calls() as calls:
        out = module(images)
    last = [call for call in calls.noted if _is_view(out, call.out) and call.version == out._version]
    if not last or "forward" in vars(module):
        return None
    site, name, dim, logits, given, _ = last[0]
    once = [call.site for call in calls.noted].count(site) == 1
    if site is None or not once or not _is_over_classes(_FUNCTIONS[name], dim, given):
        return None
    shortened = _ending_before(site, module)
    same = torch.equal(shortened(images), logits.reshape(out.shape))
    return Shortened(shortened, name, _FUNCTIONS[name]) if same else None


def _ending_before(site: _Site, module: nn.Module) -> nn.Module:
    """Return a copy with the same names, whose class leaves a call out of its forward pass."""
    kind = type(module)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _LeaveOut(site) as left_out:
            out = kind.forward(self, *args, **kwargs)
        if len(left_out.logits) != 1 or not _is_view(out, left_out.logits[0]):
            raise ModelError(f"{kind.__name__} does not always end in the same way; its logits are not known")
        return out

    shortened = copy.deepcopy(module)
    shortened.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return shortened
