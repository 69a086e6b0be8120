"""Heads that end in probabilities: the softmax or sigmoid is taken off where that is exact."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

_SQUASHING: Mapping[type[nn.Module], Literal["softmax", "sigmoid"]] = {
    nn.Softmax: "softmax",
    nn.LogSoftmax: "softmax",
    nn.Sigmoid: "sigmoid",
}


def without_squashing(
    module: nn.Module, images: Tensor
) -> tuple[nn.Module, str, Literal["softmax", "sigmoid"]] | None:
    """Return a copy of a network that ends in front of its softmax or sigmoid, if that is its last module.

    It is, if what the network gives is the very tensor that the module gave, unchanged, and the module ran
    once. Then all in front of it computes the logits, bit for bit.

    Parameters
    ----------
    module
        The network, in eval mode; it stays as it is.
    images
        What it takes, (N, 3, H, W).

    Returns
    -------
    tuple or None
        The copy, the class of the module that it lacks, and what turns its logits into probabilities. None
        where the last thing the network does is another, or a softmax is not over two classes or more.
    """
    name = _last(module, images)
    if name is None:
        return None
    squash = module.get_submodule(name)
    shortened = copy.deepcopy(module)
    parent, _, attribute = name.rpartition(".")
    setattr(shortened.get_submodule(parent), attribute, nn.Identity())
    return shortened, type(squash).__name__, _SQUASHING[type(squash)]


def _last(module: nn.Module, images: Tensor) -> str | None:
    """Return the name of the squashing module that gives the network's output."""
    ran: list[tuple[str, Tensor, int]] = []

    def noted(name: str) -> Any:
        return lambda _module, _args, out: ran.append((name, out, out._version))

    named = {name: m for name, m in module.named_modules() if name and type(m) in _SQUASHING}
    hooks = [m.register_forward_hook(noted(name)) for name, m in named.items()]
    try:
        out = module(images)
    finally:
        for hook in hooks:
            hook.remove()
    last = [name for name, given, version in ran if given is out and version == out._version]
    times = [name for name, _, _ in ran].count(last[0]) if last else 0
    return last[0] if times == 1 and _is_over_classes(named[last[0]], out) else None


def _is_over_classes(squash: nn.Module, out: Tensor) -> bool:
    if isinstance(squash, nn.Sigmoid):
        return True
    dim = out.ndim - 1 if squash.dim is None else int(squash.dim) % out.ndim  # type: ignore[arg-type]
    return out.ndim > 1 and dim == 1 and out.shape[1] > 1
