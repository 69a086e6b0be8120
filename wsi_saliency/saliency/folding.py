"""Folding: a copy of a network with batch normalisation folded into the convolutions before it.

In eval mode a batch normalisation is one factor and one summand per channel, which the convolution before it
can take over. That spares a pass over every activation on the way forth and another on the way back.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


class Trial(NamedTuple):
    """One pass through a network: what it gave, and what may be folded.

    ``output`` is the network's; ``pairs`` are names of a convolution and the batch normalisation that alone
    sees its output.
    """

    output: Any
    pairs: dict[str, str]


def own_copy(
    model: nn.Module, images: Tensor, keep: Collection[str] = (), trial: Trial | None = None
) -> nn.Module:
    """Return a copy of a network to work on: frozen, channels-last, batch normalisation folded.

    Where the network cannot be copied, or somebody listens to it with hooks, it is returned as it is.

    Parameters
    ----------
    model
        Network in eval mode.
    images
        (N, 3, H, W) normalised floats on the model's device, to try it on.
    keep
        Names of modules whose outputs have to stay what they are.
    trial
        What `try_out` has said of the network; it is tried on the images if left out.
    """
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules()):
        return model
    pairs = {c: b for c, b in (trial or try_out(model, images)).pairs.items() if c not in keep}
    copied = _copied(model, without=[model.get_submodule(name) for name in pairs])
    if copied is None:
        return model
    for convolution, norm in pairs.items():
        _fold(copied, convolution, norm)
    return copied.requires_grad_(False).to(memory_format=torch.channels_last)


def try_out(model: nn.Module, images: Tensor) -> Trial:
    """Run a network once, in eval mode, and find what may be folded.

    A pair may be folded if nothing else sees what is between the two, each is called once, and the
    convolution's weights are used for nothing else: the result is then the same but for rounding.
    """
    names = {module: name for name, module in model.named_modules()}
    made: dict[int, nn.Conv2d] = {}  # by the identity of the output; `uses` keeps the tensors alive
    pairs: dict[nn.Conv2d, nn.Module] = {}
    between: dict[nn.Conv2d, int] = {}
    calls: Counter[nn.Module] = Counter()
    uses = _Uses()

    def after_convolution(module: nn.Conv2d, args: Any, output: Tensor) -> None:
        calls[module] += 1
        made[id(output)] = module

    def before_norm(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        convolution = made.get(id(args[0]))
        if convolution is not None:
            pairs[convolution] = module
            between[convolution] = id(args[0])

    handles = []
    try:
        for module in names:
            if type(module) is nn.Conv2d:
                handles.append(module.register_forward_hook(after_convolution))
            elif _is_foldable(module):
                handles.append(module.register_forward_pre_hook(before_norm))
        with torch.no_grad(), uses:
            output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    found = {
        names[convolution]: names[norm]
        for convolution, norm in pairs.items()
        if calls[convolution] == calls[norm] == 1
        and uses.count[between[convolution]] == uses.count[id(convolution.weight)] == 1
    }
    return Trial(output, found)


def _is_foldable(module: nn.Module) -> bool:
    return (
        type(module) in (nn.BatchNorm2d, BatchNormAct2d)
        and not module.training
        and module.running_mean is not None
    )


def _copied(model: nn.Module, without: Iterable[nn.Module]) -> nn.Module | None:
    """Copy a network; None where that cannot be done.

    Some modules' parameters are not copied but shared, to be replaced.
    """
    shared = {id(p): p for module in without for p in module.parameters()}
    try:
        return copy.deepcopy(model, memo=dict(shared))
    except (RuntimeError, TypeError):  # weights that are computed (weight norm), locks, open files
        return None


def _fold(copied: nn.Module, convolution: str, norm: str) -> None:
    before, after = copied.get_submodule(convolution), copied.get_submodule(norm)
    assert isinstance(before, nn.Conv2d)
    assert isinstance(after, nn.BatchNorm2d)
    assert after.running_mean is not None
    assert after.running_var is not None
    before.weight, before.bias = fuse_conv_bn_weights(
        before.weight, before.bias, after.running_mean, after.running_var, after.eps, after.weight, after.bias
    )
    copied.set_submodule(norm, _rest_of(after))


def _rest_of(norm: nn.BatchNorm2d) -> nn.Module:
    """Return what is left of a batch normalisation: timm's may have an activation in them."""
    parts = [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]
    return nn.Sequential(*parts) if parts else nn.Identity()


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how many operations take each tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[int] = Counter()
        self._alive: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        result = func(*args, **(kwargs or {}))
        self._alive.append(result)
        return result
