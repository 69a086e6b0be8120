"""Folding: a copy of a network with batch normalisation folded into the convolutions before it.

In eval mode a batch normalisation is one factor and one summand per channel, which the convolution before it
can take over. That spares a pass over every activation on the way forth and another on the way back.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Collection

_ALIKE = 1e-2  # relative difference of the logits: rounding stays far below it, a wrong folding far above


def own_copy(model: nn.Module, images: Tensor, keep: Collection[str] = ()) -> nn.Module:
    """Return a copy of a network to work on: frozen, channels-last, batch normalisation folded.

    Where the network cannot be copied, or somebody listens to it with hooks, it is returned as it is; where
    folding would change its logits, the copy is not folded.

    Parameters
    ----------
    model
        Network in eval mode.
    images
        (N, 3, H, W) normalised floats on the model's device, to try the copy on.
    keep
        Names of modules whose outputs have to stay what they are.
    """
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules()):
        return model
    copied = _copied(model)
    if copied is None:
        return model
    pairs, before = _foldable(copied, images)
    _fold(copied, {c: b for c, b in pairs.items() if c not in keep})
    if not pairs or _alike(before, copied, images):
        return copied
    return _copied(model) or model


def _copied(model: nn.Module) -> nn.Module | None:
    """Copy a network, frozen and channels-last; None where that cannot be done."""
    try:
        return copy.deepcopy(model).requires_grad_(False).to(memory_format=torch.channels_last)
    except (RuntimeError, TypeError):  # weights that are computed (weight norm), locks, open files
        return None


def _alike(before: Tensor, folded: nn.Module, images: Tensor) -> bool:
    with torch.no_grad():
        after = folded(images)
    return bool((before - after).abs().max() <= _ALIKE * before.abs().max().clamp_min(1e-6))


def _fold(model: nn.Module, pairs: dict[str, str]) -> None:
    for convolution, norm in pairs.items():
        before, after = model.get_submodule(convolution), model.get_submodule(norm)
        assert isinstance(before, nn.Conv2d)
        assert isinstance(after, nn.BatchNorm2d)
        folded = fuse_conv_bn_eval(before, after).requires_grad_(False)
        model.set_submodule(convolution, folded.to(memory_format=torch.channels_last))
        model.set_submodule(norm, _rest_of(after))


def _rest_of(norm: nn.BatchNorm2d) -> nn.Module:
    """Return what is left of a batch normalisation: timm's may have an activation in them."""
    parts = [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]
    return nn.Sequential(*parts) if parts else nn.Identity()


def _foldable(model: nn.Module, images: Tensor) -> tuple[dict[str, str], Tensor]:
    """Find pairs of convolution and batch normalisation where nothing else sees what is between them.

    Returns them by name, with the network's output.
    """
    names = {module: name for name, module in model.named_modules()}
    made: dict[int, nn.Module] = {}  # by the identity of the output; `uses` keeps the tensors alive
    pairs: dict[nn.Module, nn.Module] = {}
    calls: Counter[nn.Module] = Counter()
    uses = _Uses()

    def after_convolution(module: nn.Module, args: Any, output: Tensor) -> None:
        calls[module] += 1
        made[id(output)] = module

    def before_norm(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        convolution = made.get(id(args[0]))
        if convolution is not None:
            pairs[convolution] = module
            outputs[convolution] = id(args[0])

    outputs: dict[nn.Module, int] = {}
    handles = []
    for module in names:
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(after_convolution))
        elif isinstance(module, nn.BatchNorm2d) and not module.training:
            handles.append(module.register_forward_pre_hook(before_norm))
    with torch.no_grad(), uses:
        output = model(images)
    for handle in handles:
        handle.remove()
    found = {
        names[convolution]: names[norm]
        for convolution, norm in pairs.items()
        if calls[convolution] == calls[norm] == 1
        and uses.count[outputs[convolution]] == 1
        and isinstance(norm, nn.BatchNorm2d)
        and norm.track_running_stats
    }
    return found, output


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
